"""Costs against the number of tokens, log-log, with a fitted line per scheme and its exponent in the legend.

The exponent in theory stands beside the fitted one where both are of the same thing: of the products of attention.
Memory is what a pass needs beside the weights, which do not grow with the clip. One column for frames and one for size
where the rows vary both; each takes the rows that differ in it alone. A panel in which no scheme has a value at two
sizes would show no growth and is left out.
"""

import textwrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports import exponents
from reports.drawing import about, log10, log_limits, looks, sheet
from reports.exponents import ATTENTION, Line
from reports.table import AblationTable, Row

NAME = 0.18  # inches of a name in a legend
TITLE = 50  # letters of a title that fit over a panel and its legend


def draw(table: AblationTable) -> tuple[Figure, str] | None:
    """One panel per quantity and varied axis."""
    axes_of: dict[str, list[Line]] = {}
    for line in exponents.lines(table):
        axes_of.setdefault(line.axis, []).append(line)
    every = [(name, axis, lines) for name in exponents.quantities(table) for axis, lines in axes_of.items()]
    panels = [panel for panel in every if any(line.exponent(panel[0]) is not None for line in panel[2])]
    if not panels:
        return None
    across = min(2, len(panels))
    notes = [
        "Behind each name: exponent of the fitted line, by least squares of log cost on log tokens over its panel."
    ]
    if any(name == ATTENTION for name, *_ in panels):
        notes.append("In brackets, for the products of attention (scores, weighted sum) alone: the exponent in theory.")
    if absent := _absent(panels):
        notes.append(f"† no value: {absent}")
    deep = -(-len(panels) // across)
    tall = max(3.0, 0.6 + NAME * max(len(lines) for lines in axes_of.values()))
    figure = sheet(tall * deep, about(table), notes)
    grid = figure.subplots(deep, across, squeeze=False)
    marks, titles = looks(table), {name: exponents.title(table, name) for name, *_ in panels}
    for axes, (name, axis, lines) in zip(grid.flat, panels, strict=False):
        _panel(axes, name, lines, marks, titles[name])
        _tokens(axes, axis, [row for line in lines for row in line.rows])
    for axes in list(grid.flat)[len(panels) :]:
        axes.remove()
    return figure, f"Cost against tokens: {', '.join(words for words, _ in titles.values())}"


def _panel(
    axes: Axes, name: str, lines: list[Line], marks: dict[str, tuple[str, str]], title: tuple[str, float]
) -> None:
    """Values as marks, fits as lines; the legend in the order of their ends."""
    words, unit = title
    ends, heights = [], []
    for line in lines:
        points = [(log10(x), log10(value / unit)) for x, value in line.points(name)]
        if not points:
            continue
        color, marker = marks[line.scheme]
        slope = line.exponent(name)
        theory = f" ({line.theory})" if name == ATTENTION and line.theory else ""
        lost = " †" if any(exponents.grows(row, name) is None for row in line.rows) else ""
        label = line.scheme + ("" if slope is None else f" {slope:.2f}") + theory + lost
        (handle,) = axes.plot(*zip(*points, strict=True), color=color, marker=marker, ms=5, lw=1.3, ls="", label=label)
        if slope is not None:
            middle = [sum(values) / len(points) for values in zip(*points, strict=True)]
            xs = [points[0][0], points[-1][0]]
            ys = [round(middle[1] + slope * (x - middle[0]), 6) for x in xs]
            axes.plot(xs, ys, color=color, lw=1.3)
            heights += ys
        ends.append((points[-1][1], handle))
        heights += [y for _, y in points]
    axes.set_title(textwrap.fill(words, TITLE))
    log_limits(axes, ys=heights)
    handles = [handle for _, handle in sorted(ends, key=lambda end: -end[0])]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1, 1.02), fontsize=8.5, handlelength=1.0)
    axes.grid(True)


def _tokens(axes: Axes, axis: str, rows: list[Row]) -> None:
    """The same ticks in every panel of an axis, whichever points it lacks: what is varied, below it the tokens."""
    ticks = {exponents.tokens(row): row.record.case["clip"][axis] for row in rows}
    axes.set_xlabel(f"{'frames' if axis == 'frames' else 'pixels'}, at {exponents.fixed(rows[0], axis)}; below: tokens")
    axes.set_xticks([log10(n) for n in sorted(ticks)], [f"{ticks[n]}\n{n:,}" for n in sorted(ticks)])
    axes.set_xlim(log10(min(ticks)) - 0.05, log10(max(ticks)) + 0.05)


def _absent(panels: list[tuple[str, str, list[Line]]]) -> str:
    """The points that panels lack, by the reason why."""
    lost: dict[str, dict[str, None]] = {}
    for name, _, lines in panels:
        for line in lines:
            for row in line.rows:
                if exponents.grows(row, name) is None:
                    frames, size = (row.record.case["clip"][key] for key in ("frames", "size"))
                    point = f"{line.scheme} at {frames}x{size}x{size}"
                    lost.setdefault(exponents.lacks(row, name), {})[point] = None
    return ", ".join(f"{', '.join(points)} ({why})" for why, points in lost.items())
