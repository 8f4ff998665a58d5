"""Published accuracy against the operations of all test views, with the Pareto front, and what was counted here."""

import re

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from reports.drawing import FAINT, FAMILIES, INK, about, log10, log_limits, pareto, place_labels, sheet
from reports.table import AblationTable, Row


def draw(table: AblationTable) -> tuple[Figure, str] | None:
    """The accuracy is the first that the paper prints beside operations."""
    column = next((name for name in accuracies(table) if any(_point(row, name) for row in table.rows)), None)
    rows = [row for row in table.rows if column and _point(row, column)]
    if not rows:
        return None
    figure = sheet(
        6.0, about(table), ["IN: pre-trained on ImageNet"] if any("ImageNet-" in r.name for r in rows) else []
    )
    axes = figure.subplots()
    counted = list(dict.fromkeys(_family(row) for row in rows if _counted(row)))
    spots, lines, labels = [_point(row, column) for row in rows], [], []
    for family in dict.fromkeys(map(_family, rows)):
        ours = family in counted
        color = FAMILIES[counted.index(family) % len(FAMILIES)] if ours else FAINT
        members = sorted((row for row in rows if _family(row) == family), key=lambda row: _point(row, column))
        line = [_point(row, column) for row in members if _pretraining(row) == _usual(members)]
        if ours and len(line) > 1:
            axes.plot(*zip(*line, strict=True), color=color, lw=1.2, alpha=0.5)
            lines.append(line)
        for row in members:
            x, y = _point(row, column)
            axes.plot(x, y, "o", color=color, ms=6, zorder=3)
            if _counted(row):
                exact = log10(row.macs_by_authors_rule * row.views / 1e9)
                axes.plot(exact, y, "D", color=color, mfc="none", ms=11, mew=1.3, zorder=4)
            name = row.name.replace("ImageNet-", "IN-")
            labels.append((x, y, name, color if ours else "#5A5A5A", "bold" if ours else "normal"))
    lines.append(pareto(axes, spots))
    log_limits(axes, xs=[x for x, _ in spots])
    axes.margins(y=0.07)
    axes.grid(True)
    axes.set_xlabel("GFLOPs of all test views (multiply-adds, log scale)")
    data = "Kinetics-400 top-1" if column == "k400_top1" else column.replace("_", " ").replace("top1", "top-1")
    axes.set_title(f"{data} accuracy, %, as published")
    handles = [
        Line2D([], [], marker="o", color=INK, ls="", ms=6, label="published FLOPs"),
        Line2D([], [], marker="D", color=INK, mfc="none", ls="", ms=9, mew=1.3, label="FLOPs counted here"),
        *axes.get_legend_handles_labels()[0],
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=3)
    labels.sort(key=lambda label: (label[-1], -label[0]))  # bold ones first, then those at the edge, with least room
    place_labels(axes, labels, lines)
    return figure, f"Published {data} accuracy against the operations of all test views, published and counted here"


def accuracies(table: AblationTable) -> list[str]:
    """The accuracies that the paper prints of one view of all classes, in the order of its columns."""
    printed = dict.fromkeys(column for row in table.rows if row.published for column in row.published.cells)
    return [column for column in printed if column.endswith("top1")]


def _point(row: Row, column: str) -> tuple[float, float] | None:
    flops, top1 = row.printed("flops"), row.printed(column)
    return None if flops is None or top1 is None else (log10(flops), top1)


def _counted(row: Row) -> bool:
    """Whether the operations of the published model were counted here."""
    return row.authors_flops is not None and row.comparable is True


def _pretraining(row: Row) -> str | None:
    return row.published.settings.get("pretrain")


def _usual(rows: list[Row]) -> str | None:
    """The pre-training that most of these rows share, so that a line joins models which differ in size alone."""
    values = [_pretraining(row) for row in rows]
    return max(dict.fromkeys(values), key=values.count)


def _family(row: Row) -> str:
    """The model's name without its size and setting: DualFormer-T -> DualFormer."""
    name = row.name.split(",")[0].split(" (")[0]
    return re.sub(r"[-/](T|S|B|L|XL|XXL)(\b.*)?$", "", name)
