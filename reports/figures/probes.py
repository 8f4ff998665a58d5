"""What each scheme can see: one small panel for each row and question, accuracy against the dial beside its reach."""

import textwrap

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from reports import probes
from reports.drawing import FAINT, MEASURED, PRINTED, VARIANT, about, sheet
from reports.table import AblationTable

BLIND = "#D55E00"
TALL = 0.62  # inches of a row of panels


def draw(table: AblationTable) -> tuple[Figure, str] | None:
    """Easy values stand on the left; the black line is what the reach of two blocks allows."""
    names, quantities = probes.names(table), table.quantities()
    rows = [row for row in table.measured if any(probes.points(row.measurement(name)) for name in names)]
    if not rows:
        return None
    figure = sheet(TALL * len(rows) + 1.2, about(table, device=["trained here on a CPU, nothing timed"]))
    grid = figure.subplots(len(rows), len(names), squeeze=False, sharex="col", sharey=True)
    for panels, row in zip(grid, rows, strict=True):
        panels[0].set_ylabel(row.name, rotation=0, ha="right", va="center", fontsize=8)
        for axes, name in zip(panels, names, strict=True):
            axes.set_ylim(-4, 104)
            axes.set_yticks([0, 50, 100], ["", "", ""])
            axes.tick_params(length=2)
            points = probes.points(row.measurement(name))
            if not points:
                axes.text(0.5, 0.5, "— see the table", transform=axes.transAxes, ha="center", fontsize=7, color=FAINT)
                continue
            places = range(len(points))
            axes.axhline(points[0].chance, color=FAINT, lw=0.7, ls=":")
            ends = [p.accuracy.low for p in points], [p.accuracy.high for p in points]
            axes.fill_between(places, *ends, color=VARIANT, lw=0)
            axes.plot(places, [p.allowed for p in points], color=PRINTED, lw=0.9, ls=(0, (4, 2)))
            axes.plot(places, [p.accuracy.value for p in points], color=MEASURED, lw=1.4, marker="o", ms=2.5)
            wrong = [place for place in places if points[place].blind or points[place].leaks]
            axes.plot(wrong, [points[place].accuracy.value for place in wrong], "o", color=BLIND, ms=5)
    for column, name in enumerate(names):
        measured = next((m for row in rows if (m := row.measurement(name)) and m.samples), None)
        grid[0][column].set_title(textwrap.fill(quantities[name].title, 20), fontsize=8.5)
        if measured is not None:
            values = measured.details["values"]
            grid[-1][column].set_xticks(range(len(values)), [f"{value:g}" for value in values], fontsize=7.5)
            grid[-1][column].set_xlabel(measured.details["dial"], fontsize=8)
    handles = [
        Line2D([], [], color=MEASURED, marker="o", ms=3, label="accuracy, from 0 to 100 %"),
        Patch(color=VARIANT, label="95 % interval"),
        Line2D([], [], color=PRINTED, lw=0.9, ls=(0, (4, 2)), label="what the reach of two blocks allows"),
        Line2D([], [], color=FAINT, lw=0.7, ls=":", label="chance"),
        Line2D([], [], color=BLIND, marker="o", ls="", ms=5, label="reach and probe disagree"),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=5)
    return figure, "Accuracy of each scheme against the dial of each question, beside what its reach allows"
