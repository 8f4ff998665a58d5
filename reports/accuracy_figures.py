"""Figures of accuracy: against cost, one mark per row, and against the views of a test."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from reports import accuracy
from reports import testing_views as tests
from reports.drawing import DPI, FAMILIES, HALO, INK, MARKERS, PRINTED, WIDTH, place_labels, wrapped
from reports.table import AblationTable, Row
from reports.testing_views import Curve, Point


def accuracy_cost(table: AblationTable) -> tuple[Figure, str] | None:
    """Measured top-1 against the latency of the row's model, or its multiply-adds; one panel for each accuracy."""
    panels = []
    for name in accuracy.names(table):
        rows = [row for row in table.rows if row.value(name) is not None]
        cost = _cost_of(table, rows)
        rows = [row for row in rows if cost and row.value(cost) is not None]
        if len(rows) > 1:  # one mark alone says no more than its number
            title = wrapped(f"Top-1, %, on {accuracy.setting(table, name)}", 11.5, WIDTH - 0.4)  # 10.5, and bold
            panels.append((name, cost, rows, title))
    if not panels:
        return None
    high, line, foot = 4.3, 0.19, 0.62
    head = 0.61 + line * max(len(title) for *_, title in panels)
    tall = (high + head + foot) * len(panels)
    figure = Figure(figsize=(WIDTH, tall), dpi=DPI)
    for index, (name, cost, rows, title) in enumerate(panels):
        bottom = (tall - (index + 1) * (high + head + foot) + foot) / tall
        axes = figure.add_axes((0.075, bottom, 0.905, high / tall))
        at = bottom + (high + 0.48) / tall
        figure.text(0.02, at, "\n".join(title), fontsize=10.5, weight="bold", va="bottom", linespacing=1.25)
        handles = _accuracy_panel(figure, axes, table, rows, name, cost)
        figure.legend(
            handles=handles, loc="center left", bbox_to_anchor=(0.01, bottom + (high + 0.28) / tall),
            ncols=len(handles), fontsize=9,
        )  # fmt: skip
    said = " and ".join(dict.fromkeys("latency" if cost == "latency" else "multiply-adds" for _, cost, *_ in panels))
    return figure, f"Measured top-1 accuracy against {said}; lines are 95 % intervals"


def _cost_of(table: AblationTable, rows: Sequence[Row]) -> str | None:
    """Latency where all rows were timed alike, else multiply-adds, else nothing."""
    if rows and not table.mixed and all(row.value("latency") is not None for row in rows):
        return "latency"
    return "macs" if any(row.value("macs") is not None for row in rows) else None


def _accuracy_panel(
    figure: Figure, axes: Axes, table: AblationTable, rows: list[Row], name: str, cost: str
) -> list[Line2D]:
    scale = 1 if cost == "latency" else 1e9
    points, labels, segments = [], [], []
    bases = [row for row in rows if any(table.baseline_of(other) is row for other in rows)]
    for row in rows:
        found, x = accuracy.accuracy(row.measurement(name)), row.value(cost) / scale
        y, spread, base = found.value, found.interval, row in bases
        others = [one for one in rows if one not in bases]
        color, marker = (PRINTED, "D") if base else _apart(others.index(row))
        if spread:
            axes.plot([x, x], [spread.low, spread.high], color=color, lw=1.3, alpha=0.6, zorder=2)
            segments.append((x, spread.low, x, spread.high))
        if cost == "latency":
            across = row.interval(cost)
            axes.plot([across.low, across.high], [y, y], color=color, lw=1.3, alpha=0.6, zorder=2)
            segments.append((across.low, y, across.high, y))
        axes.plot(x, y, marker, color=color, ms=7, mec="white", mew=0.8, zorder=3)
        points.append((x, y, 9))
        labels.append((x, y, row.name, color, base))
    _limits(axes, points, segments)
    axes.xaxis.set_major_locator(MaxNLocator(7))
    axes.yaxis.set_major_locator(MaxNLocator(7))
    axes.grid(True)
    small = accuracy.full_column(table, name) is None
    whose = ", of the row's model as the table has it, not of the smaller one that was trained" if small else ""
    axes.set_xlabel(("latency, ms" if cost == "latency" else "GMACs of one view") + whose)
    place_labels(figure, axes, labels, points, segments)
    over_seeds = {accuracy.accuracy(row.measurement(name)).over_seeds for row in rows}
    kind = (
        {True: "over seeds", False: "over the videos of one run"}.get(over_seeds.pop()) if len(over_seeds) == 1 else ""
    )
    handles = [Line2D([], [], color=INK, lw=1.2, label=f"95 % interval {kind}".strip())]
    if bases:
        handles.insert(0, Line2D([], [], color=PRINTED, marker="D", ls="", ms=6, label="baseline"))
    return handles


def _apart(number: int) -> tuple[str, str]:
    """Colour and marker of a row that is no baseline: those are black, and diamonds."""
    colors, markers = FAMILIES[:-1], [one for one in MARKERS if one != "D"]
    return colors[number % len(colors)], markers[number // len(colors) % len(markers)]


def _limits(axes: Axes, points: list, segments: list) -> None:
    """Room around marks and intervals, so that names fit inside of the frame."""
    xs = [p[0] for p in points] + [x for s in segments for x in (s[0], s[2])]
    ys = [p[1] for p in points] + [y for s in segments for y in (s[1], s[3])]
    wide, high = (max(xs) - min(xs)) or 0.1 * max(xs) or 1, (max(ys) - min(ys)) or 1
    axes.set_xlim(min(xs) - 0.14 * wide, max(xs) + 0.14 * wide)
    axes.set_ylim(min(ys) - 0.08 * high, max(ys) + 0.08 * high)


def testing_views(table: AblationTable) -> tuple[Figure, str] | None:
    """Accuracy against the clips and crops of a test, for each row that was tested so."""
    found = [curve for name in accuracy.names(table) for curve in tests.curves(table, name)]
    return views_figure(found) if found else None


def views_figure(curves: Sequence[Curve]) -> tuple[Figure, str]:
    """For each model two panels with one line per number of crops: against clips, and against the cost of all views."""
    high, head, foot = 3.5, 0.55, 0.62
    tall = (high + head + foot) * len(curves)
    figure = Figure(figsize=(WIDTH, tall), dpi=DPI)
    for index, curve in enumerate(curves):
        bottom = (tall - (index + 1) * (high + head + foot) + foot) / tall
        left = figure.add_axes((0.065, bottom, 0.42, high / tall))
        right = figure.add_axes((0.56, bottom, 0.42, high / tall))
        figure.text(
            0.065, bottom + (high + 0.3) / tall, f"Top-1, %: {curve.title}", fontsize=10.5, weight="bold", va="center"
        )
        _views_panel(figure, left, curve, lambda point: point.clips, 1.0)
        left.set_xlabel("clips")
        left.xaxis.set_major_locator(FixedLocator(sorted({point.clips for point in curve.points})))
        cost = (curve.macs_per_view or 1e9) / 1e9
        _views_panel(figure, right, curve, lambda point, cost=cost: point.views * cost, None)
        right.set_xscale("log")
        right.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        right.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 10 else f"{x:g}"))
        right.xaxis.set_minor_locator(NullLocator())
        right.set_xlabel(
            "GMACs of all views (log scale)" if curve.macs_per_view else "views (clips x crops, log scale)"
        )
        handles = [Line2D([], [], color=INK, lw=1.2, label="95 % interval over the test videos")]
        if curve.published:
            handles.insert(0, Line2D([], [], color=PRINTED, marker="D", ls="", ms=5, label="published"))
        figure.legend(
            handles=handles, loc="center right", bbox_to_anchor=(0.985, bottom + (high + 0.3) / tall),
            ncols=len(handles), fontsize=9,
        )  # fmt: skip
    costs = "their multiply-adds" if all(curve.macs_per_view for curve in curves) else "the number of views"
    return figure, f"Top-1 accuracy against clips and crops at test time, and against {costs}"


def _views_panel(figure: Figure, axes: Axes, curve: Curve, place, shift: float | None) -> None:
    """One line per number of crops with its name at the end; `shift` sets the lines apart by a part of a clip."""
    crops = curve.crops
    ends = []
    for number, count in enumerate(crops):
        line = [point for point in curve.points if point.crops == count]
        moved = 0.0 if shift is None else 0.06 * shift * (number - (len(crops) - 1) / 2)
        color, marker = FAMILIES[number % len(FAMILIES)], MARKERS[number % len(MARKERS)]
        xs = [place(point) + moved for point in line]
        axes.plot(xs, [point.top1 for point in line], color=color, lw=1.3, alpha=0.7)
        for x, point in zip(xs, line, strict=True):
            axes.plot([x, x], [point.low, point.high], color=color, lw=1.2)
            axes.plot(x, point.top1, marker, color=color, ms=5.5, mec="white", mew=0.7)
        at = -1 if shift is not None else 0  # against cost the lines overlap at their ends, not where they begin
        ends.append((xs[at], line[at].top1, f"{count} crop{'s' if count > 1 else ''}", color))
    for point in curve.published:
        axes.plot(place(point), point.top1, "D", color=PRINTED, ms=5, mec="white", mew=0.8, zorder=4)
    shown: list[Point] = [*curve.points, *curve.published]
    lows = [point.low if point.low is not None else point.top1 for point in shown]
    highs = [point.high if point.high is not None else point.top1 for point in shown]
    margin = 0.06 * ((max(highs) - min(lows)) or 1)
    axes.set_ylim(min(lows) - margin, max(highs) + margin)
    xs = [place(point) for point in shown]
    if shift is None:
        axes.set_xlim(min(xs) / 1.35, max(xs) * 1.9)
    else:
        axes.set_xlim(min(xs) - 0.4, max(xs) + 0.24 * (max(xs) - min(xs) + 1))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(True, axis="y")
    if shift is None:
        for x, y, text, color in ends:
            axes.annotate(
                text, (x, y), (6, -6), textcoords="offset points", va="top", color=color, weight="bold",
                path_effects=HALO,
            )  # fmt: skip
        return
    step = 0.055 * (axes.get_ylim()[1] - axes.get_ylim()[0])  # names at the ends stand apart by a line of type
    last = -float("inf")
    for x, y, text, color in sorted(ends, key=lambda end: end[1]):
        last = max(y, last + step)
        axes.annotate(text, (x, last), (8, 0), textcoords="offset points", va="center", color=color, weight="bold")
