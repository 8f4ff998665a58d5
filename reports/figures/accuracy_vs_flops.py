"""Published accuracy against the operations of all test views, with the Pareto front: as printed, and beside it
counted by one rule for all rows, plain multiply-adds."""

import re

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from reports.drawing import FAINT, FAMILIES, INK, about, log10, log_limits, pareto, place_labels, sheet
from reports.table import AblationTable, Row

COUNTED, CITED, PRINTED = "counted here (left: all as published)", "counted elsewhere, cited", "as printed"
FORMS = {COUNTED: (True, "o"), CITED: (False, "s"), PRINTED: (False, "o")}  # of points: whether filled, the marker


def draw(table: AblationTable) -> tuple[Figure, str] | None:
    """The accuracy is the first that the paper prints beside operations."""
    column = next((name for name in accuracies(table) if any(_printed(row, name) for row in table.rows)), None)
    rows = [row for row in table.rows if column and _printed(row, column)]
    if not rows:
        return None
    notes = ["IN: pre-trained on ImageNet"] if any("ImageNet-" in row.name for row in rows) else []
    figure = sheet(6.2, about(table), notes, wide=15.0)
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    data = "Kinetics-400 top-1" if column == "k400_top1" else column.replace("_", " ").replace("top1", "top-1")
    left.set_title(f"{data} accuracy, %, and operations as published")
    right.set_title("The same, all rows counted by one rule: plain multiply-adds")
    printed = {row.name: (*_printed(row, column), PRINTED) for row in rows}
    anew = {row.name: _anew(row, column) for row in rows}
    log_limits(left, xs=[x for points in (printed, anew) for x, _, _ in points.values()])
    left.margins(y=0.07)
    named = [_panel(left, rows, {name: (x, y, COUNTED) for name, (x, y, _) in printed.items()})]
    moved = [((x, y), anew[name][:2]) for name, (x, y, _) in printed.items() if abs(anew[name][0] - x) > 0.01]  # 2 %
    for start, end in moved:
        right.plot(*zip(start, end, strict=True), color=FAINT, lw=1.0, alpha=0.6, zorder=1)
        right.plot(*start, "|", color=FAINT, ms=7, zorder=1)
    labels, lines = _panel(right, rows, anew)
    named.append((labels, [*lines, *moved]))
    for axes in (left, right):
        axes.grid(True)
        axes.set_xlabel("GFLOPs of all test views (log scale)")
    handles = [
        Line2D([], [], marker=form, color=INK, mfc=INK if filled else "none", ls="", ms=6, label=kind)
        for kind, (filled, form) in FORMS.items()
        if any(point[2] == kind for point in anew.values())
    ]
    handles.append(Line2D([], [], marker="|", color=FAINT, ms=8, label="where it was printed"))
    handles += left.get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside upper right", ncols=5)
    for axes, (labels, lines) in zip((left, right), named, strict=True):
        place_labels(axes, labels, lines)
    return figure, f"Published {data} accuracy against the operations of all test views, as published and recounted"


def _panel(axes: Axes, rows: list[Row], points: dict[str, tuple[float, float, str]]) -> tuple[list, list]:
    """Points, lines between sizes of one model, and the front; labels and lines for `place_labels`."""
    counted = list(dict.fromkeys(_family(row) for row in rows if _counted(row)))
    lines, labels = [], []
    for family in dict.fromkeys(map(_family, rows)):
        ours = family in counted
        color = FAMILIES[counted.index(family) % len(FAMILIES)] if ours else FAINT
        members = sorted((row for row in rows if _family(row) == family), key=lambda row: points[row.name][0])
        line = [points[row.name][:2] for row in members if _pretraining(row) == _usual(members)]
        if ours and len(line) > 1:
            axes.plot(*zip(*line, strict=True), color=color, lw=1.2, alpha=0.5)
            lines.append(line)
        for row in members:
            x, y, kind = points[row.name]
            filled, form = FORMS[kind]
            axes.plot(x, y, form, color=color, mfc=color if filled else "white", ms=6, zorder=3)
            name = row.name.replace("ImageNet-", "IN-")
            labels.append((x, y, name, color if ours else "#5A5A5A", "bold" if ours else "normal"))
    lines.append(pareto(axes, [point[:2] for point in points.values()]))
    labels.sort(key=lambda label: (label[-1], -label[0]))  # bold ones first, then those at the edge, with least room
    return labels, lines


def accuracies(table: AblationTable) -> list[str]:
    """The accuracies that the paper prints of one view of all classes, in the order of its columns."""
    printed = dict.fromkeys(column for row in table.rows if row.published for column in row.published.cells)
    return [column for column in printed if column.endswith("top1")]


def _printed(row: Row, column: str) -> tuple[float, float] | None:
    flops, top1 = row.printed("flops"), row.printed(column)
    return None if flops is None or top1 is None else (log10(flops), top1)


def _anew(row: Row, column: str) -> tuple[float, float, str]:
    """The multiply-adds of all views, where they come from: counted here, cited, or as printed if there is neither."""
    x, y = _printed(row, column)
    macs, cited = row.value("macs"), (row.published.recounted or {}).get("flops")
    if _counted(row) and macs:
        return log10(macs * row.views / 1e9), y, COUNTED
    return (log10(cited * row.views), y, CITED) if cited and row.views else (x, y, PRINTED)


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
