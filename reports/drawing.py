"""How figures are drawn: a sheet with what it was measured on at its foot, colours, type, logarithms, bytes.

One hue carries what was measured here, black what a paper printed; families and schemes have the colours of Okabe and
Ito, told apart by readers with any colour vision. The same figure gives the same bytes on any processor: logarithms
are taken here and rounded, since numpy's differ in their last digit between processors, which moves a pixel.
"""

import io
import math
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patheffects import withStroke
from matplotlib.textpath import text_to_path

from records.visits import OUTDATED
from reports.exponents import scheme_of
from reports.table import PARTIAL, AblationTable
from reports.text import counted

MEASURED, VARIANT, PRINTED = "#0072B2", "#A3CCE6", "#111111"
INK, FAINT, GRID, BAND = "#222222", "#707070", "#E4E4E4", "#ECECEC"
FAMILIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
FORMATS = {  # what is written beside the picture itself: no time, no name of a machine
    "png": {"Software": None, "Title": "title", "Description": "about"},
    "svg": {"Date": None, "Title": "title", "Description": "about"},
    "pdf": {"CreationDate": None, "Title": "title", "Subject": "about"},
}
WIDTH, DPI, SMALL = 10.0, 130, 7.5
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 10, "axes.edgecolor": FAINT, "axes.labelcolor": INK, "text.color": INK,
    "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": False,
    "axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 0.8, "figure.facecolor": "white",
    "axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 7,
    "axes.labelsize": 9, "xtick.labelsize": 8.5, "ytick.labelsize": 9, "legend.frameon": False, "legend.fontsize": 9,
    "legend.handlelength": 1.4, "legend.columnspacing": 1.6, "svg.hashsalt": "attention-zoo",
    "figure.constrained_layout.h_pad": 0.07, "figure.constrained_layout.w_pad": 0.07,
}  # fmt: skip
HALO = [withStroke(linewidth=2.5, foreground="white")]  # letters stay legible where a line has to pass below them


@dataclass(frozen=True)
class Drawing:
    """A figure ready to be written: its bytes by format, and the sentence that stands for it."""

    files: dict[str, bytes]
    caption: str


@contextmanager
def styled() -> Iterator[None]:
    """Figures made inside look alike, whatever the user's own settings of matplotlib are."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def sheet(tall: float, foot: str, notes: Sequence[str] = (), wide: float = WIDTH) -> Figure:
    """An empty figure whose parts find their own places, `tall` inches without the lines at its foot.

    `foot` says where the figures come from; `notes` stand above it.
    """
    lines = [line for text in (*notes, foot) for line in wrapped(text, SMALL, 0.94 * wide)]
    figure = Figure(figsize=(wide, tall + 0.16 * len(lines)), dpi=DPI, layout="constrained")
    if lines:
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=SMALL, color=FAINT, linespacing=1.3)
    figure.set_label(foot)
    return figure


def rendered(figure: Figure, caption: str, formats: Iterable[str] = ("png",)) -> Drawing:
    """The figure as bytes; to be called inside of `styled()`. Raises: ValueError naming a format that is not known."""
    words, files = {"title": caption, "about": figure.get_label()}, {}
    for name in formats:
        if name not in FORMATS:
            raise ValueError(f"unknown format {name!r} of a figure; allowed: {', '.join(FORMATS)}")
        out = io.BytesIO()
        metadata = {key: words.get(value, value) or None for key, value in FORMATS[name].items()}
        figure.savefig(out, format=name, dpi=DPI, metadata=metadata)
        files[name] = out.getvalue()
    return Drawing(files, caption)


def format_of(path: Path) -> str:
    """Of a file that is to be written, by how its name ends. Raises: ValueError."""
    name = path.suffix[1:].lower()
    if name not in FORMATS:
        raise ValueError(f"{path}: a figure ends in {', '.join(f'.{ending}' for ending in FORMATS)}")
    return name


def picture_of(draw: Callable[[], tuple[Figure, str]], file: Path) -> bytes:
    """One figure as the bytes of a file that is to be written. Raises: ValueError."""
    kind = format_of(file)
    with styled():
        return rendered(*draw(), [kind]).files[kind]


def about(table: AblationTable, **extra: list[str]) -> str:
    """Device, clip, commit and command of all that a figure shows, in one line; `extra` circumstances go before."""
    facts = table.facts() | extra
    parts = [_alike(facts[key], key) for key in ("device", "dtype", "mode") if facts.get(key)]
    parts = parts or ["counted, on no device"]
    parts += [f"{key} {_alike(facts[key], key)}" for key in ("batch", "threads") if facts.get(key)]
    parts += [_clips(facts["clip"])] if facts.get("clip") else []
    commits = dict.fromkeys(commit for several in facts.get("commit") or [] for commit in several.split(" / "))
    parts += [f"commit {' / '.join(commits)}"] if commits else []
    outdated = sum(OUTDATED in row.facts().get("commit", "") for row in table.measured)
    parts += [f"{counted(outdated, 'row')} {OUTDATED}"] if outdated else []
    words = [word for word in table.arguments if word.partition("=")[0] not in PARTIAL]
    command = shlex.join(words or [f"ablation={table.name}"])
    return " · ".join([*parts, f"python -m harness.run {command}"])


def _alike(values: list[str], noun: str) -> str:
    values = list(dict.fromkeys(value for several in values for value in several.split(" / ")))
    return " / ".join(values) if len(values) < 3 else counted(len(values), noun)


def _clips(clips: list[str]) -> str:
    """All clips, of many of them the smallest and largest frames and sizes."""
    if len(clips) < 3:
        return " / ".join(clips)
    ends = []
    for form in (r"\d+(?= frame)", r"\d+x\d+"):
        texts = {int(text.split("x")[0]): text for clip in clips for text in re.findall(form, clip)}
        ends.append(" to ".join(dict.fromkeys((texts[min(texts)], texts[max(texts)]))))
    return f"{len(clips)} clips of {ends[0]} frames, {ends[1]} pixels"


def look(number: int) -> tuple[str, str]:
    """Colour and marker of one of several things: where colours begin again they meet other markers."""
    again = number // len(FAMILIES)
    return FAMILIES[number % len(FAMILIES)], MARKERS[(number + again) % len(MARKERS)]


def looks(table: AblationTable) -> dict[str, tuple[str, str]]:
    """Colour and marker of each scheme, by its place among all rows, measured or not: the same in all figures."""
    schemes = dict.fromkeys(scheme_of(row) for row in table.rows if not row.published_only)
    return {scheme: look(number) for number, scheme in enumerate(schemes)}


def legible(color: str) -> str:
    """The colour, dark enough for letters on white: a contrast of 4.5, as WCAG 2.1 (1.4.3) asks of small type."""
    channels = to_rgb(color)
    while _contrast(channels, (1, 1, 1)) < 4.5:
        channels = tuple(0.97 * channel for channel in channels)
    return to_hex(channels)


def ink_on(color: str) -> str:
    """Of white and dark letters those that stand out more from a bar of this colour."""
    return max(("white", INK), key=lambda ink: _contrast(to_rgb(ink), to_rgb(color)))


def _contrast(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    """From 1 to 21. Source: WCAG 2.1, relative luminance and contrast ratio."""
    linear = [[c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb] for rgb in (first, second)]
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


def short(value: float) -> str:
    """Three digits, for a picture."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


# logarithms


def log10(value: float) -> float:
    """The place of a value on a logarithmic axis, which here is a linear one of rounded logarithms."""
    return round(math.log10(value), 6)


def log_ticks(axis: Axis, low: float, high: float) -> None:
    """Ticks from `low` to `high`, given as logarithms: as few digits as leave four of them, so that they keep apart."""
    for digits in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), [1 + n / 5 for n in range(45)]):
        values = [round(d * 10.0**n, 12) for n in range(math.floor(low), math.ceil(high) + 1) for d in digits]
        values = [value for value in values if low <= log10(value) <= high]
        if len(values) >= 4:
            break
    axis.set_ticks([log10(value) for value in values], [f"{value:,.10g}" for value in values])


def log_limits(axes: Axes, xs: Sequence[float] = (), ys: Sequence[float] = (), room: float = 0.06) -> None:
    """Limits and ticks of axes that hold logarithms, with some room around."""
    for values, axis, limit in ((xs, axes.xaxis, axes.set_xlim), (ys, axes.yaxis, axes.set_ylim)):
        if values:
            space = room * max(max(values) - min(values), 0.3)
            limit(min(values) - space, max(values) + space)
            log_ticks(axis, min(values) - space, max(values) + space)


def pareto(axes: Axes, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Draw the front of what nothing else beats in both, less of x and more of y, as far as points go; its corners."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or y > best[-1][1]:
            best += [(x, best[-1][1]), (x, y)] if best else [(x, y)]
    best.append((max(x for x, _ in points), best[-1][1]))
    axes.plot(*zip(*best, strict=True), color=FAINT, lw=1.0, ls=(0, (4, 3)), zorder=1, label="Pareto front")
    return best


# names of points


def place_labels(
    axes: Axes, labels: Sequence[tuple[float, float, str, str, str]], lines: Sequence[Sequence], crowded: bool = False
) -> None:
    """Write names (x, y, text, colour, weight) beside their points, in their order, each where it covers least.

    `lines` are the corners of lines to keep clear of. A name that stands away from its point has a line to it; in a
    `crowded` figure names may stand further away still, and keep a distance from each other. To be called last: what
    changes the layout moves the points.
    """
    renderer = FigureCanvasAgg(axes.figure).get_renderer()
    axes.figure.draw_without_rendering()
    frame, unit = axes.get_window_extent(renderer), axes.figure.dpi / 72
    spots = [tuple(axes.transData.transform((x, y))) for x, y, *_ in labels]
    around = 7 * unit
    covered = [(x - around, y - around, x + around, y + around) for x, y in spots]
    for start, end in ((a, b) for line in lines for a, b in zip(line, line[1:], strict=False)):
        (x0, y0), (x1, y1) = axes.transData.transform([start, end])
        steps = [n / 40 for n in range(41)]
        covered += [(x0 + s * (x1 - x0), y0 + s * (y1 - y0), x0 + s * (x1 - x0), y0 + s * (y1 - y0)) for s in steps]
    gap, others = (5 * unit, 13 * unit) if crowded else (0, 0)  # a name near another point would seem to be its name
    for (x, y), (at_x, at_y, text, color, weight) in zip(spots, labels, strict=True):
        note = axes.annotate(
            text, (at_x, at_y), (0, 0), textcoords="offset points", fontsize=8.5, color=legible(color), weight=weight,
            path_effects=HALO, zorder=5,
        )  # fmt: skip
        size = note.get_window_extent(renderer)
        rings = [(a - others, b - others, a + others, b + others) for a, b in spots if others and (a, b) != (x, y)]
        places = []
        for away in (10, 16, 24, 34, 46, 60) if crowded else (10, 16, 24):
            for side, up in ((1, 0), (-1, 0), (0, 1), (0, -1), (0.7, 0.7), (0.7, -0.7), (-0.7, 0.7), (-0.7, -0.7)):
                left = side * away * unit - size.width * (side < 0) - size.width / 2 * (side == 0)
                low = up * away * unit - size.height / 2 * (1 - up)
                box = (x + left, y + low, x + left + size.width, y + low + size.height)
                outside = box[0] < frame.x0 or box[2] > frame.x1 or box[1] < frame.y0 or box[3] > frame.y1
                hidden = sum(_covers(box, obstacle) for obstacle in covered + rings)
                places.append((hidden + 1e6 * outside, len(places), box))
        _, number, box = min(places)
        note.xyann = ((box[0] - x) / unit, (box[1] - y) / unit)
        if number >= 16:  # beyond the two nearest distances: which point is meant is not plain
            near = (min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3]))
            ends = axes.transData.inverted().transform([(x, y), near])
            axes.plot(*zip(*ends, strict=True), color=FAINT, lw=0.5, zorder=2)
        covered.append((box[0] - gap, box[1] - gap / 2, box[2] + gap, box[3] + gap / 2))


def _covers(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """How much two boxes have in common; a point counts as one unit."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return 0.0 if wide < 0 or high < 0 else max(wide * high, 1.0)
