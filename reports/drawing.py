"""How figures are drawn: colours, type, bytes, and labels that keep out of each other's way.

One hue carries what was measured here, black what a paper printed; families and schemes have the colours of Okabe and
Ito, told apart by readers with any colour vision. The same figure gives the same bytes.
"""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

MEASURED, VARIANT, PRINTED = "#0072B2", "#A3CCE6", "#111111"
INK, FAINT, GRID = "#222222", "#707070", "#E4E4E4"
FAMILIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
WIDTH, DPI = 10.0, 130
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 10, "axes.edgecolor": FAINT, "axes.labelcolor": INK, "text.color": INK,
    "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": False,
    "axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 0.8, "figure.facecolor": "white",
    "axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "legend.frameon": False,
}  # fmt: skip


HALO = [withStroke(linewidth=2.5, foreground="white")]  # letters stay legible where a line has to pass below them


@dataclass(frozen=True)
class Drawing:
    """A figure ready to be written: its bytes and the sentence that stands for it where it cannot be seen."""

    png: bytes
    caption: str


@contextmanager
def styled() -> Iterator[None]:
    """Figures made inside look alike, whatever the user's own settings of matplotlib are."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def rendered(figure: Figure, caption: str) -> Drawing:
    """The figure as bytes; to be called inside of `styled()`."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return Drawing(out.getvalue(), caption)


def look(number: int) -> tuple[str, str]:
    """Colour and marker of one of several things: where colours begin again they meet other markers."""
    again = number // len(FAMILIES)
    return FAMILIES[number % len(FAMILIES)], MARKERS[(number + again) % len(MARKERS)]


def legible(color: str) -> str:
    """The colour, dark enough for letters on white: a contrast of 4.5, as WCAG 2.1 (1.4.3) asks of small type."""
    channels = to_rgb(color)
    while _contrast(channels, (1, 1, 1)) < 4.5:
        channels = tuple(0.97 * channel for channel in channels)
    return to_hex(channels)


def ink_on(color: str) -> str:
    """Of white and dark letters those that stand out more from a bar of this colour."""
    return max(("white", INK), key=lambda ink: _contrast(to_rgb(ink), to_rgb(color)))


def _contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """From 1 to 21. Source: WCAG 2.1, relative luminance and contrast ratio."""
    linear = [[c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb] for rgb in (one, other)]
    low, high = sorted(0.2126 * red + 0.7152 * green + 0.0722 * blue for red, green, blue in linear)
    return (high + 0.05) / (low + 0.05)


def wrapped(text: str, size: float, inches: float) -> list[str]:
    """Lines of type of `size` points that are no wider than `inches`, but for a word that alone is wider."""
    lines: list[str] = []
    font = FontProperties(size=size)
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        points, _, _ = text_to_path.get_text_width_height_descent(longer, font, ismath=False)
        if lines and points / 72 <= inches:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def log_ticks(axis: Axis, fine: tuple[int, ...] = (1, 2, 5)) -> None:
    """Ticks of a logarithmic axis, fewer where it spans much, so that their numbers keep apart and differ."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=fine if high / low < 2e3 else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_locator(NullLocator())


def place_labels(
    figure: Figure,
    axes: Axes,
    labels: list[tuple[float, float, str, str, bool]],
    points: list[tuple[float, float, int]],
    segments: list[tuple[float, float, float, float]],
) -> None:
    """Write each label beside its point at the first place where it covers no point, no other label and no border.

    In two lines where one finds no such place. Points beyond those of the labels have no name, but are kept free.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    frame = axes.get_window_extent(renderer)
    scale = figure.dpi / 72
    taken = []
    for x, y, size in points:
        px, py = axes.transData.transform((x, y))
        half = size * scale / 2 + 3
        taken.append((px - half, py - half, px + half, py + half))
    for x0, y0, x1, y1 in segments:
        (px, py), (qx, qy) = axes.transData.transform([(x0, y0), (x1, y1)])
        steps = max(1, round(math.dist((px, py), (qx, qy)) / 4))  # denser than a label is high
        for share in (i / steps for i in range(steps + 1)):
            x, y = px + share * (qx - px), py + share * (qy - py)
            taken.append((x - 1, y - 1, x + 1, y + 1))
    notes, places = [], []
    for (x, y, text, color, bold), (_, _, size) in zip(labels, points, strict=False):
        weight = "bold" if bold else "normal"
        note = axes.annotate(
            text,
            (x, y),
            (0, 0),
            textcoords="offset points",
            fontsize=9,
            color=legible(color),
            weight=weight,
            zorder=5,
            path_effects=HALO,
        )
        notes.append(note)
        options = []
        for preference, (said, offset) in enumerate(product(_broken(text), _offsets(size / 2 + 3))):
            place = (*offset, said)
            _move(note, place)
            box = note.get_window_extent(renderer)
            outside = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
            options.append(((box.x0 - 1, box.y0, box.x1 + 1, box.y1), preference + (1e6 if outside else 0), place))
        places.append(options)
    fixed = [
        [cost + 50 * sum(_common(box, other) for k, other in enumerate(taken) if k != i) for box, cost, _ in options]
        for i, options in enumerate(places)
    ]
    chosen = [min(range(len(costs)), key=costs.__getitem__) for costs in fixed]
    for _ in range(8):  # each label in turn takes its best place among the others, until none moves
        before = list(chosen)
        for i, options in enumerate(places):
            others = [places[k][chosen[k]][0] for k in range(len(places)) if k != i]
            costs = [fixed[i][c] + 50 * sum(_common(box, o) for o in others) for c, (box, _, _) in enumerate(options)]
            chosen[i] = min(range(len(costs)), key=costs.__getitem__)
        if chosen == before:
            break
    for note, options, choice in zip(notes, places, chosen, strict=True):
        _move(note, options[choice][2])


def _broken(text: str) -> list[str]:
    """A label in one line, and a long one also in two, broken at the space nearest to its middle."""
    spaces = [at for at, letter in enumerate(text) if letter == " "]
    if len(text) < 12 or not spaces:
        return [text]
    at = min(spaces, key=lambda at: abs(at - len(text) / 2))
    return [text, f"{text[:at]}\n{text[at + 1 :]}"]


def _move(note: Annotation, place: tuple[float, float, str, str, str]) -> None:
    note.xyann = place[:2]
    note.set_horizontalalignment(place[2])
    note.set_verticalalignment(place[3])
    note.set_text(place[4])


def _offsets(gap: float) -> list[tuple[float, float, str, str]]:
    """Places for a label in the order of preference: right, left, above, below, then farther out."""
    places = []
    for far in (0, 6, 12, 20):
        d = gap + far
        places += [
            (d, 0, "left", "center"),
            (-d, 0, "right", "center"),
            (0, d, "center", "bottom"),
            (0, -d, "center", "top"),
        ]
        places += [(d * 0.7, d * 0.7, "left", "bottom"), (d * 0.7, -d * 0.7, "left", "top")]
        places += [(-d * 0.7, d * 0.7, "right", "bottom"), (-d * 0.7, -d * 0.7, "right", "top")]
    return places


def _common(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
