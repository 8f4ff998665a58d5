"""What the multiply-adds of each row belong to, beside what its time belongs to: stacked bars from 0 to 100 %."""

import textwrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from records.groups import GROUPS
from reports.drawing import FAINT, about, ink_on, sheet
from reports.shares import shares_of
from reports.table import AblationTable

COLORS = ("#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#009E73", "#CC79A7", "#BDBDBD")  # of the groups, in their order


def draw(table: AblationTable) -> tuple[Figure, str] | None:
    """One bar per row and kind; the number stands in every part that has room for it."""
    kinds = {"share of multiply-adds, %": "macs", "share of time, %": "time"}
    rows = [row for row in table.measured if any(shares_of(row, kind) for kind in kinds.values())]
    panels = {title: [shares_of(row, kind) for row in rows] for title, kind in kinds.items()}
    panels = {title: parts for title, parts in panels.items() if any(parts)}
    if not panels:
        return None
    names = [textwrap.fill(row.name, 32) for row in rows]
    figure = sheet(sum(0.2 + 0.17 * (1 + name.count("\n")) for name in names) + 1.1, about(table))
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    colors = dict(zip(GROUPS, COLORS, strict=True))
    for axes, (title, parts) in zip(grid, panels.items(), strict=True):
        axes.set_title(title)
        for place, shares in enumerate(parts):
            _stack(axes, place, shares, colors)
        axes.set_xlim(0, 100)
        axes.tick_params(axis="x", length=3, colors=FAINT)
        axes.tick_params(axis="y", length=0)
    grid[0].set_yticks(range(len(rows)), names)
    grid[0].set_ylim(len(rows) - 0.45, -0.55)
    used = [group for group in GROUPS if any(s and s.get(group) for parts in panels.values() for s in parts)]
    handles = [Patch(color=colors[group], label=GROUPS[group]) for group in used]
    figure.legend(handles=handles, loc="outside upper left", ncols=7, handlelength=1.0, columnspacing=1.2)
    return figure, f"What each row spends on what: {', '.join(panels)}"


def _stack(axes: Axes, place: int, shares: dict[str, float] | None, colors: dict[str, str]) -> None:
    if shares is None:
        axes.text(1, place, "— see the table", va="center", fontsize=8.5, color=FAINT)
        return
    start = 0.0
    for group, color in colors.items():
        wide = round(100 * shares[group], 4)
        axes.barh(place, wide, left=start, height=0.66, color=color, edgecolor="white", lw=0.6)
        if wide >= 5.5:
            middle, ink = start + wide / 2, ink_on(color)
            axes.text(middle, place, f"{wide:.0f}", va="center", ha="center", fontsize=8.5, color=ink)
        start += wide
