"""Measured top-1: how far each row lies from its baseline, and what its model costs that was trained, with the front.

The cost is of the same model as the accuracy. Where a smaller one was trained than the row has, its multiply-adds are
those that were counted of it; the row's own latency is that of another model and is not drawn.
"""

import textwrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from records.intervals import Interval
from reports import accuracy
from reports.drawing import FAINT, INK, PRINTED, WIDTH, about, look, pareto, sheet, wrapped
from reports.table import AblationTable, Row


def draw(table: AblationTable) -> tuple[Figure, str] | None:
    """Two panels for each accuracy that two rows have; one mark alone says no more than its number."""
    panels = {name: [row for row in table.rows if row.value(name) is not None] for name in accuracy.names(table)}
    panels = {name: rows for name, rows in panels.items() if len(rows) > 1}
    if not panels:
        return None
    heights = [max(2.6, 0.34 * len(rows) + 1.1) for rows in panels.values()]
    figure = sheet(sum(heights) + 0.4, about(table, **accuracy.circumstances(table, panels)))
    parts = figure.subfigures(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    costs = []
    for part, (name, rows) in zip(parts, panels.items(), strict=True):
        words = wrapped(f"Top-1 on {accuracy.setting(table, name)}", 11.5, WIDTH - 0.6)
        part.suptitle("\n".join(words), fontsize=10.5, weight="bold", x=0.01, ha="left")
        cost = _cost(table, rows, name)
        grid = part.subplots(1, 2 if cost else 1, squeeze=False, width_ratios=(1, 1.25) if cost else None)[0]
        looks = _looks(table, rows)
        handles = _differences(grid[0], table, rows, name, looks)
        if cost:
            costs.append(cost[0])
            handles += _against(grid[1], rows, name, cost, looks)
        part.legend(handles=handles, loc="outside lower left", ncols=4)
    against = f", and against {' and '.join(dict.fromkeys(costs))}" if costs else ""
    return figure, f"Measured top-1 accuracy of each row{against}; lines are 95 % intervals"


def _looks(table: AblationTable, rows: list[Row]) -> dict[str, tuple[str, str]]:
    """Colour and marker by row: a baseline is black and a diamond."""
    bases = _bases(table)
    others = [row.name for row in rows if row.name not in bases]
    looks = {name: look(number) for number, name in enumerate(others)}
    return {row.name: looks.get(row.name, (PRINTED, "D")) for row in rows}


def _bases(table: AblationTable) -> set[str]:
    return {base.name for row in table.rows if (base := table.baseline_of(row))}


def _differences(axes: Axes, table: AblationTable, rows: list[Row], name: str, looks: dict) -> list[Line2D]:
    """A line per row: points more or less than its baseline; the accuracy itself where nothing is tested."""
    tests, bases = accuracy.orderings(table, name), _bases(table)
    tested = any(judged.difference for judged in tests.values())
    for place, row in enumerate(rows):
        test, (color, marker) = tests.get(row.name), looks[row.name]
        base, measured = row.name in bases, row.measurement(name)
        estimate = accuracy.accuracy(measured)
        axes.annotate(f"{estimate.value:.1f} %", (1, place), (5, 0), xycoords=("axes fraction", "data"), va="center",
                      textcoords="offset points", fontsize=8.5, annotation_clip=False)  # fmt: skip
        if tested and not base and (test is None or test.difference is None):
            axes.annotate("— not tested", (0.02, place), xycoords=("axes fraction", "data"), va="center",
                          fontsize=8.5, color=FAINT)  # fmt: skip
            continue
        interval = test.difference.interval if tested and not base else None if tested else estimate.interval
        x = 0.0 if tested and base else interval.value if interval else estimate.value
        if interval:
            axes.plot([interval.low, interval.high], [place, place], color=color, lw=1.4)
        axes.plot(x, place, marker, color=color, ms=7, mec="white", mew=0.7)
        if wrong := accuracy.learning_text(measured):  # no such accuracy stands alone
            aside = (8, -8 if interval else 0)  # not on the line
            axes.annotate(wrong, (x, place), aside, textcoords="offset points", va="center", fontsize=8.5, color=FAINT)
    axes.set_yticks(range(len(rows)), [textwrap.fill(row.name, 30) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="x")
    axes.set_xlabel("points more than the baseline" if tested else "top-1, %")
    if tested:
        axes.axvline(0, color=INK, lw=0.8, zorder=0)
    kinds = {accuracy.accuracy(row.measurement(name)).over_seeds for row in rows}
    over = {True: " over seeds", False: " over the videos of one run"}[kinds.pop()] if len(kinds) == 1 else ""
    handles = [Line2D([], [], color=INK, lw=1.2, label=f"95 % interval{over}")]
    if any(looks[row.name] == (PRINTED, "D") for row in rows):
        handles.insert(0, Line2D([], [], color=PRINTED, marker="D", ls="", ms=6, label="baseline"))
    return handles


Cost = tuple[str, str, dict[str, Interval]]


def _cost(table: AblationTable, rows: list[Row], name: str) -> Cost | None:
    """Title, label and values: latency where the row itself was trained and timed, else multiply-adds of what was."""
    if accuracy.full_column(table, name) and not table.mixed and all(row.interval("latency") for row in rows):
        return "latency", "latency, ms", {row.name: row.interval("latency") for row in rows}
    macs = {row.name: accuracy.macs_per_view(row, name) for row in rows}
    if None in macs.values() or len(set(macs.values())) < 2:
        return None
    values = {row: Interval(value / 1e9, value / 1e9, value / 1e9) for row, value in macs.items()}
    return "multiply-adds of the trained model", "GMACs of one view of the model that was trained", values


def _against(axes: Axes, rows: list[Row], name: str, cost: Cost, looks: dict) -> list[Line2D]:
    _, label, values = cost
    points: list[tuple[float, float]] = []
    for row in rows:
        top1, x, (color, marker) = accuracy.accuracy(row.measurement(name)), values[row.name], looks[row.name]
        points.append((x.value, top1.value))
        size = 4 if points[-1] in points[:-1] else 8  # the same model in two rows: one mark on the other
        if top1.interval:
            axes.plot([x.value, x.value], [top1.interval.low, top1.interval.high], color=color, lw=1.3, alpha=0.6)
        axes.plot([x.low, x.high], [top1.value, top1.value], color=color, lw=1.3, alpha=0.6)
        axes.plot(*points[-1], marker, color=color, ms=size, mec="white", mew=0.7, zorder=3)
    pareto(axes, points)
    axes.margins(0.08)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.grid(True)
    axes.set_xlabel(label)
    axes.set_ylabel("top-1, %")
    return axes.get_legend_handles_labels()[0]
