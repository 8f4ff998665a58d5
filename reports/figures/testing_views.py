"""Accuracy against the clips and crops of a test, and against the cost of all views, for each row tested so."""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from reports import accuracy, views
from reports.drawing import FAMILIES, INK, MARKERS, PRINTED, about, log10, log_limits, picture_of, sheet
from reports.table import AblationTable
from reports.text import counted
from reports.views import Curve, Point


def draw(table: AblationTable) -> tuple[Figure, str] | None:
    """Two panels for each row."""
    curves = {name: views.curves(table, name) for name in accuracy.names(table)}
    foot = about(table, **accuracy.circumstances(table, [name for name, shown in curves.items() if shown]))
    drawn = [curve for shown in curves.values() for curve in shown]
    return of_curves(drawn, foot) if drawn else None


def picture(curve: Curve, foot: str, file: Path) -> bytes:
    return picture_of(lambda: of_curves([curve], foot), file)


def of_curves(curves: Sequence[Curve], foot: str = "") -> tuple[Figure, str]:
    """For each model one line per number of crops: against clips, and against the cost of all views."""
    figure = sheet(3.9 * len(curves) + 0.3, foot)
    grid = figure.subplots(len(curves), 2, squeeze=False, sharey="row")
    for (left, right), curve in zip(grid, curves, strict=True):
        cost = (curve.macs_per_view or 1e9) / 1e9
        step = 0.06 / max(1, len(curve.crops) - 1)  # of a clip, so that intervals do not lie on each other
        aside = {crops: number * step for number, crops in enumerate(curve.crops)}
        _panel(left, curve, lambda point, aside=aside: point.clips + aside.get(point.crops, 0))
        _panel(right, curve, lambda point, cost=cost: log10(point.views * cost))
        left.set_title(f"Top-1, %: {curve.title}")
        left.set_xlabel("clips")
        left.set_xticks(sorted({point.clips for point in curve.points}))
        left.yaxis.set_major_locator(MaxNLocator(6))
        log_limits(right, xs=[log10(point.views * cost) for point in (*curve.points, *curve.published)])
        number = "views (clips x crops, log scale)"
        right.set_xlabel("GMACs of all views (log scale)" if curve.macs_per_view else number)
    handles = {handle.get_label(): handle for axes in grid[:, 0] for handle in axes.get_legend_handles_labels()[0]}
    lines = [*handles.values(), Line2D([], [], color=INK, lw=1.2, label="95 % interval over the test videos")]
    if any(curve.published for curve in curves):
        lines.append(Line2D([], [], color=PRINTED, marker="D", ls="", ms=5, label="published"))
    figure.legend(handles=lines, loc="outside upper left", ncols=6)
    costs = "their multiply-adds" if all(curve.macs_per_view for curve in curves) else "the number of views"
    return figure, f"Top-1 accuracy against clips and crops at test time, and against {costs}"


def _panel(axes: Axes, curve: Curve, place: Callable[[Point], float]) -> None:
    for number, crops in enumerate(curve.crops):
        line = [point for point in curve.points if point.crops == crops]
        color, marker = FAMILIES[number % len(FAMILIES)], MARKERS[number % len(MARKERS)]
        xs, ys = list(map(place, line)), [point.top1 for point in line]
        axes.plot(xs, ys, color=color, lw=1.3, marker=marker, ms=5.5, mec="white", label=counted(crops, "crop"))
        for x, point in zip(xs, line, strict=True):
            axes.plot([x, x], [point.low, point.high], color=color, lw=1.2, zorder=1)
    for point in curve.published:
        axes.plot(place(point), point.top1, "D", color=PRINTED, ms=5, mec="white", mew=0.8, zorder=4)
    axes.grid(True, axis="y")
