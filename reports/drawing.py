"""How figures are drawn: colours, type, bytes, and labels that keep out of each other's way.

One hue carries what was measured here, black what a paper printed; families and schemes have the colours of Okabe and
Ito, told apart by readers with any colour vision. The same figure gives the same bytes.
"""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation

MEASURED, VARIANT, PRINTED = "#0072B2", "#A3CCE6", "#111111"
INK, FAINT, GRID = "#222222", "#8A8A8A", "#E4E4E4"
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


def place_labels(
    figure: Figure,
    axes: Axes,
    labels: list[tuple[float, float, str, str, bool]],
    points: list[tuple[float, float, int]],
    segments: list[tuple[float, float, float, float]],
) -> None:
    """Write each label beside its point at the first place where it covers no point, no other label and no border."""
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
    for (x, y, text, color, bold), (_, _, size) in zip(labels, points, strict=True):
        weight = "bold" if bold else "normal"
        note = axes.annotate(
            text,
            (x, y),
            (0, 0),
            textcoords="offset points",
            fontsize=9,
            color=color,
            weight=weight,
            zorder=5,
            path_effects=HALO,
        )
        notes.append(note)
        options = []
        for preference, place in enumerate(_offsets(size / 2 + 2)):
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


def _move(note: Annotation, place: tuple[float, float, str, str]) -> None:
    note.xyann = place[:2]
    note.set_horizontalalignment(place[2])
    note.set_verticalalignment(place[3])


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
