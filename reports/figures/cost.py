"""What each row costs: counts beside what the paper printed; time and memory as the difference to the baseline.

A bar from zero hides a few percent, so a dot shows how far a row lies from its baseline, with its interval, on a band
as wide as the noise floor: what does not leave it cannot be told apart. Without a baseline the dots are the medians.
"""

import textwrap
from dataclasses import dataclass
from decimal import Decimal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from reports.drawing import BAND, FAINT, INK, MEASURED, PRINTED, VARIANT, about, log10, sheet, short
from reports.markdown import PUBLISHED_COUNTS
from reports.statistics import Ratio
from reports.table import AblationTable, Row
from reports.text import counted

ACROSS = 3  # panels beside each other
TITLE = 30  # letters of a title that fit over a panel
ALIKE = 0.01  # counts that differ by less over all rows show nothing
FIT, OURS, AS_PUBLISHED = "fit: setting found by searching for the number", "variant of ours", "setting as published"


@dataclass(frozen=True)
class Mark:
    """A row's place in a panel and the words behind it; `distinguishable` is None without a baseline."""

    at: float
    text: str
    low: float | None = None
    high: float | None = None
    printed: float | None = None
    floor: float | None = None
    distinguishable: bool | None = None


@dataclass(frozen=True)
class Panel:
    title: str
    marks: dict[str, Mark]
    differences: bool = False


def draw(table: AblationTable) -> tuple[Figure, str] | None:
    """One line per measured row, one panel per quantity."""
    panels = [panel for panel in (*_counted(table), *_measured(table)) if panel.marks]
    rows = [row for row in table.rows if any(row.name in panel.marks for panel in panels)]
    if not rows:
        return None
    across = 2 if len(panels) == 4 else min(ACROSS, len(panels))
    deep = -(-len(panels) // across)
    names = [textwrap.fill(row.name, 34) for row in rows]
    lines = sum(0.1 + 0.17 * (1 + name.count("\n")) for name in names)
    figure = sheet(deep * (lines + 0.75) + 0.6, about(table))
    grid = figure.subplots(deep, across, squeeze=False, sharey=True)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _dots(axes, panel, rows)
    for axes in list(grid.flat)[len(panels) :]:
        axes.remove()
    grid[0, 0].set_yticks(range(len(rows)), names)
    grid[0, 0].set_ylim(len(rows) - 0.4, -0.6)
    figure.legend(handles=_legend(table, panels, rows), loc="outside upper left", ncols=4)
    return figure, _caption(table, panels)


def _caption(table: AblationTable, panels: list[Panel]) -> str:
    counts, costs = ([p.title for p in panels if p.differences == kind] for kind in (False, True))
    bases = dict.fromkeys(row.baseline for row in table.measured if row.baseline)
    base = next(iter(bases)) if len(bases) == 1 else "the row's baseline"
    clauses = [", ".join(counts)] if counts else []
    clauses += [f"{', '.join(costs)} as difference to {base}, with 95 % intervals and noise floor"] if costs else []
    return f"Cost per row: {'; '.join(clauses)}"


def _counted(table: AblationTable) -> list[Panel]:
    """Operations and parameters as the paper counts them where it prints them, else what was counted.

    What is the same in all rows is left out, unless nothing else is there.
    """
    panels = []
    if table.publishes("flops") and any(row.authors_flops is not None for row in table.rows):
        views = {row.views for row in table.measured}
        over = "all views" if len(views) > 1 else counted(views.pop() or 1, "view")
        panels.append(Panel(f"GFLOPs, {over}", {row.name: mark for row in table.rows if (mark := _flops(row))}))
    if table.publishes("params"):
        panels.append(Panel("parameters, M", {row.name: mark for row in table.rows if (mark := _params(row))}))
    done = {name for column, name in PUBLISHED_COUNTS.items() if table.publishes(column)}
    names = [name for name in table.named("counted") if name in table.metrics and name not in done]
    panels += [_medians(table, name) for name in names]
    spread = [panel for panel in panels if _range(panel) > ALIKE]
    return spread or panels[:1]


def _range(panel: Panel) -> float:
    values = [mark.at for mark in panel.marks.values()] or [0.0]
    return (max(values) - min(values)) / (max(values) or 1)


def _flops(row: Row) -> Mark | None:
    if row.macs_by_authors_rule is None or not row.views:
        return None
    if row.comparable is not True:  # the paper's rounding is for the paper's sizes
        exact = row.macs_by_authors_rule * row.views / 1e9
        return Mark(exact, short(exact))
    return _as_printed(row.authors_flops, row.printed("flops"))


def _params(row: Row) -> Mark | None:
    if row.authors_params_exact is None:
        return None
    return _as_printed(row.authors_params, row.printed("params") if row.comparable is True else None)


def _as_printed(measured: Decimal, printed: float | None) -> Mark:
    """What was counted as the paper would print it; what it printed in words only where the two differ."""
    differs = printed is not None and Decimal(str(printed)) != measured
    return Mark(float(measured), f"{measured:f}" + f" (published {printed})" * differs, printed=printed)


def _measured(table: AblationTable) -> list[Panel]:
    """Time and memory: differences to the baseline, or medians where no row has both."""
    panels, bases = [], {row.baseline for row in table.rows}
    for name in table.named("timed", "sized"):
        title, scale = table.titled(name)
        ratios = {row.name: ratio for row in table.rows if isinstance(ratio := table.ratio(row, name), Ratio)}
        marks = {}
        for row in table.rows:
            value = row.value(name)
            if row.name in ratios:
                marks[row.name] = _difference(short(value / scale), ratios[row.name])
            elif value is not None and row.name in bases:
                marks[row.name] = Mark(0.0, short(value / scale))
        panels.append(Panel(title, marks, differences=True) if ratios else _medians(table, name))
    return panels


def _difference(value: str, ratio: Ratio) -> Mark:
    interval = ratio.interval
    more = 100 * (interval.value - 1)
    label = f"{value} ({more:+.{0 if abs(more) > 10 else 1}f} %)" if abs(more) >= 0.05 else f"{value} (0 %)"
    at, low, high, floor = (log10(x) for x in (interval.value, interval.low, interval.high, 1 + ratio.floor))
    return Mark(at, label.replace("-", "−"), low, high, floor=floor, distinguishable=ratio.distinguishable)


def _medians(table: AblationTable, name: str) -> Panel:
    title, scale = table.titled(name)
    marks = {}
    for row in table.rows:
        if interval := row.interval(name):
            value, low, high = (x / scale for x in (interval.value, interval.low, interval.high))
            marks[row.name] = Mark(value, short(value), *((low, high) if low < high else (None, None)))
    return Panel(title, marks)


def _dots(axes: Axes, panel: Panel, rows: list[Row]) -> None:
    axes.set_title(textwrap.fill(panel.title, TITLE))
    for place, row in enumerate(rows):
        mark = panel.marks.get(row.name)
        if mark is None:
            axes.annotate("— see the table", (0.02, place), xycoords=("axes fraction", "data"), va="center",
                          fontsize=8.5, color=FAINT, bbox={"fc": "white", "ec": "none", "pad": 1.0})  # fmt: skip
            continue
        if mark.floor:
            axes.barh(place, 2 * mark.floor, left=-mark.floor, height=0.9, color=BAND, lw=0, zorder=0)
        color = FAINT if mark.distinguishable is False else MEASURED
        if mark.low is not None:
            axes.plot([mark.low, mark.high], [place, place], color=color, lw=1.4, solid_capstyle="butt")
        if mark.printed is not None:
            axes.plot(mark.printed, place, "D", color=PRINTED, mfc="none", ms=10, mew=1.1, clip_on=False)
        baseline = panel.differences and mark.distinguishable is None
        axes.plot(mark.at, place, **(dict(marker="|", color=INK, ms=13, mew=2) if baseline else _look(row, color)))
        axes.annotate(mark.text, (1, place), (5, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                      va="center", fontsize=8.5, annotation_clip=False)  # fmt: skip
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", length=3, colors=FAINT)
    if panel.differences:
        axes.axvline(0, color=INK, lw=0.8)
        _percent(axes, panel)
    else:
        axes.margins(x=0.12)
        axes.xaxis.set_major_locator(MaxNLocator(4))


def _look(row: Row, color: str) -> dict[str, object]:
    """A hollow dot for a fit, a square for a variant of ours, a dot for what the paper has, or where it has nothing."""
    if row.fit:
        return dict(marker="o", color=color, mfc="white", ms=7, mew=1.6)
    if row.published is None and row.default_counting is not None:
        return dict(marker="s", color=VARIANT if color == MEASURED else color, ms=6.5)
    return dict(marker="o", color=color, ms=7)


def _percent(axes: Axes, panel: Panel) -> None:
    """Ticks in percent more or less than the baseline; in multiples of it where rows differ by much."""
    ends = [x for m in panel.marks.values() for x in (m.at, m.low, m.high, m.floor, -(m.floor or 0)) if x is not None]
    room = 0.06 * ((max(ends) - min(ends)) or 0.01)
    low, high = min(ends) - room, max(ends) + room
    if high - low > 0.6:  # fourfold
        values = {digit * 10.0**n: f"{digit * 10.0**n:g}×" for n in range(-4, 5) for digit in (1, 2, 5)}
    else:
        step = next((n for n in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if 10**high - 10**low <= n / 20), 100)
        values = {1 + n * step / 100: f"{n * step:+g} %".replace("-", "−") for n in range(-9, 20) if n * step > -100}
    ticks = [(0.0, "1×" if high - low > 0.6 else "0")]  # then outwards, as far apart as letters need
    for value, words in sorted(values.items(), key=lambda item: abs(log10(item[0]))):
        at = log10(value)
        if low <= at <= high and all(abs(at - placed) > 0.24 * (high - low) for placed, _ in ticks):
            ticks.append((at, words))
    axes.set_xlim(low, high)
    axes.set_xticks(*zip(*ticks, strict=True))


def _legend(table: AblationTable, panels: list[Panel], rows: list[Row]) -> list:
    """What the marks of this figure mean, and nothing else."""
    marks = [mark for panel in panels for mark in panel.marks.values()]
    handles = []
    if table.paper:
        # Of each kind its first row shows the mark.
        kinds = {FIT if row.fit else OURS if row.published is None else AS_PUBLISHED: row for row in reversed(rows)}
        shown = {words: kinds[words] for words in (AS_PUBLISHED, OURS, FIT) if words in kinds}
        handles += [Line2D([], [], ls="", label=words, **_look(row, MEASURED)) for words, row in shown.items()]
    if any(mark.printed is not None for mark in marks):
        handles.append(Line2D([], [], ls="", marker="D", color=PRINTED, mfc="none", ms=9, label="printed by the paper"))
    if any(mark.low is not None for mark in marks):
        handles.append(Line2D([], [], color=MEASURED, lw=1.4, label="95 % interval"))
    if any(mark.distinguishable is not None for mark in marks):
        handles.append(Line2D([], [], ls="", marker="|", color=INK, ms=12, mew=2, label="baseline"))
        handles.append(Patch(color=BAND, label="noise floor"))
    if any(mark.distinguishable is False for mark in marks):
        handles.append(Line2D([], [], ls="-", marker="o", color=FAINT, ms=7, label="cannot be told from the baseline"))
    return handles
