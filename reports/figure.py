"""The figures of a report, by name: the same rows give the same bytes."""

import difflib
import math
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from statistics import median

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullLocator

from reports import accuracy_figures, exponents, roofline
from reports.drawing import (
    DPI,
    FAINT,
    FAMILIES,
    HALO,
    INK,
    MEASURED,
    PRINTED,
    VARIANT,
    WIDTH,
    Drawing,
    ink_on,
    legible,
    log_ticks,
    look,
    place_labels,
    rendered,
    styled,
    wrapped,
)
from reports.exponents import scheme_of
from reports.table import AblationTable, Row


def names() -> list[str]:
    return sorted(_FIGURES)


def draw(name: str, table: AblationTable) -> Drawing | None:
    """Draw one figure; None where the records hold nothing to draw. Raises: KeyError with the nearest name."""
    if name not in _FIGURES:
        close = difflib.get_close_matches(name, names(), n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise KeyError(f"unknown figure {name!r}; {hint}allowed: {', '.join(names())}")
    with styled():
        drawn = _FIGURES[name](table)
        return None if drawn is None else rendered(*drawn)


def cost(table: AblationTable) -> tuple[Figure, str] | None:
    """One bar per measured row: operations beside what the paper printed, latency with interval, peak memory."""
    rows = [row for row in table.rows if row.value("macs") is not None or row.value("latency") is not None]
    panels = _cost_panels(table, rows)
    if not rows or not panels:
        return None
    handles = [Patch(color=MEASURED, label="measured")]
    if table.paper and any(row.published is None for row in rows):
        handles = [Patch(color=MEASURED, label="measured, setting of the published row")]
        handles.append(Patch(color=VARIANT, label="measured, variant of ours"))
    if panels[0].printed and any(panels[0].printed):
        handles.append(Line2D([], [], color=PRINTED, marker="D", ls="", ms=5, label="published"))
    if any(panel.spread for panel in panels):
        handles.append(Line2D([], [], color=INK, lw=1.2, label="95 % interval"))
    head = 0.68 if len(handles) > 1 else 0.36
    names, left, high = _beside_bars(rows, 44)
    tall = max(0.36, high) * len(rows) + head + 0.37
    figure = Figure(figsize=(WIDTH, tall), dpi=DPI)
    share = (0.985 - left) / len(panels)
    top, bottom = 1 - head / tall, 0.32 / tall
    for index, panel in enumerate(panels):
        axes = figure.add_axes((left + index * share, bottom, share - 0.035, top - bottom))
        _bars(axes, panel, rows, names if index == 0 else [""] * len(rows))
    if len(handles) > 1:
        legend = figure.legend(
            handles=handles, loc="upper left", ncols=4, fontsize=9, handlelength=1.2, columnspacing=1.6
        )
        wide = legend.get_window_extent(FigureCanvasAgg(figure).get_renderer()).width / figure.bbox.width
        legend.set_bbox_to_anchor((min(left - 0.012, 0.995 - wide), 1 - 0.02 / tall))  # above the bars if it fits there
    caption = f"Cost per row: {', '.join(panel.title for panel in panels)}"
    return figure, caption + ("; lines are 95 % intervals" if any(panel.spread for panel in panels) else "")


def _beside_bars(rows: list[Row], most: int) -> tuple[list[str], float, float]:
    """Names of rows in lines of at most `most` letters, their share of the figure's width, inches that a row needs."""
    lines = [textwrap.wrap(row.name, most) for row in rows]
    left = 0.03 + 0.0082 * max(len(line) for name in lines for line in name)
    return ["\n".join(name) for name in lines], left, 0.18 * max(len(name) for name in lines) + 0.04


@dataclass(frozen=True)
class _Panel:
    title: str
    values: list[float | None]
    text: list[str]
    printed: list[float | None] | None = None
    spread: list[tuple[float, float] | None] | None = None


def _cost_panels(table: AblationTable, rows: list[Row]) -> list[_Panel]:
    panels = []
    if table.publishes("flops") and any(row.authors_flops is not None for row in rows):
        views = {row.views for row in rows}
        over = "all views" if len(views) > 1 else f"{rows[0].views} view{'s' if rows[0].views != 1 else ''}"
        exact = [
            None if row.macs_by_authors_rule is None else row.macs_by_authors_rule * row.views / 1e9 for row in rows
        ]
        text = [_beside(row.authors_flops, _comparable(row, "flops")) for row in rows]
        if any(row.comparable is not True for row in rows):  # the paper's rounding is for the paper's sizes
            text = [_short(value) for value in exact]
        panels.append(_Panel(f"GFLOPs, {over}", exact, text, printed=[_comparable(row, "flops") for row in rows]))
    elif any(row.value("macs") is not None for row in rows):
        macs = [None if row.value("macs") is None else row.value("macs") / 1e9 for row in rows]
        panels.append(_Panel("GMACs, one view", macs, [_short(value) for value in macs]))
    timed = False
    if any(row.value("latency") is not None for row in rows):
        timed = True
        values = [row.value("latency") for row in rows]
        intervals = [row.interval("latency") for row in rows]  # the same as in the table
        spread = [None if one is None else (one.low, one.high) for one in intervals]
        panels.append(_Panel("latency, ms", values, [_short(value) for value in values], spread=spread))
    if any(row.value("peak_memory") is not None for row in rows):
        timed = True
        values = [None if row.value("peak_memory") is None else row.value("peak_memory") / 2**20 for row in rows]
        panels.append(_Panel("peak memory, MiB", values, [_short(value) for value in values]))
    if not timed and any(row.value("params") is not None for row in rows):
        values = [None if row.authors_params_exact is None else row.authors_params_exact / 1e6 for row in rows]
        text = [
            _beside(row.authors_params, _comparable(row, "params")) if table.publishes("params") else _short(value)
            for value, row in zip(values, rows, strict=True)
        ]
        printed = [_comparable(row, "params") for row in rows]
        panels.append(_Panel("parameters, M", values, text, printed=printed if any(printed) else None))
    return panels


def _bars(axes: Axes, panel: _Panel, rows: list[Row], names: list[str]) -> None:
    """Horizontal bars from zero, the value written behind each, the published value as a diamond on it."""
    places = range(len(rows))
    most = max([v for v in [*panel.values, *(panel.printed or ())] if v is not None] or [1])
    if panel.spread:
        most = max([most, *(high for pair in panel.spread if pair for _, high in [pair])])
    for place, row in zip(places, rows, strict=True):
        value = panel.values[place]
        end = value or 0
        if value is None:
            axes.text(most * 0.01, place, "— see the table", va="center", ha="left", fontsize=8.5, color=FAINT)
        else:
            ours = row.published is None and row.default_counting is not None
            axes.barh(place, value, height=0.62, color=VARIANT if ours else MEASURED, lw=0)
        if panel.spread and panel.spread[place]:
            low, high = panel.spread[place]
            axes.plot([low, high], [place, place], color=INK, lw=1.2, solid_capstyle="butt", path_effects=HALO)
            end = max(end, high)
        if panel.printed and panel.printed[place] is not None:
            axes.plot(panel.printed[place], place, "D", color=PRINTED, ms=5, mec="white", mew=0.8, clip_on=False)
            end = max(end, panel.printed[place])
        if value is not None:
            axes.annotate(
                panel.text[place], (end, place), (6, 0), textcoords="offset points", va="center", ha="left", fontsize=9,
                path_effects=HALO,
            )  # fmt: skip
    axes.set_title(panel.title, pad=6)
    text = (max(len(text) for text in panel.text) * 7.6 + 18) / (axes.get_position().width * WIDTH * DPI)
    axes.set_xlim(0, most / (1 - min(text, 0.6)))
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.set_yticks(list(places), names)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", length=3, labelsize=8.5, colors=FAINT)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.grid(axis="x")
    axes.spines["left"].set_color(INK)
    axes.spines["bottom"].set_visible(False)


def accuracy_vs_flops(table: AblationTable) -> tuple[Figure, str] | None:
    """Published accuracy against the operations of all test views; families measured here in colour."""
    column = next((c for c in ("k400_top1", "top1") if table.publishes(c)), None)
    rows = [
        row for row in table.rows if column and row.printed(column) is not None and row.printed("flops") is not None
    ]
    if not rows:
        return None
    figure = Figure(figsize=(WIDTH, 6.0), dpi=DPI)
    axes = figure.add_axes((0.07, 0.105, 0.915, 0.785))
    ours = list(dict.fromkeys(_family(row) for row in rows if _measured_as_published(row)))
    points, labels, segments = [], [], []
    for family in dict.fromkeys(_family(row) for row in rows):
        color = FAMILIES[ours.index(family) % len(FAMILIES)] if family in ours else FAINT
        members = sorted(
            (row for row in rows if _family(row) == family), key=lambda row: (row.printed("flops"), row.printed(column))
        )
        line = [row for row in members if row.published.settings.get("pretrain") == _usual_pretraining(members)]
        if family in ours and len(line) > 1:
            xs, ys = [row.printed("flops") for row in line], [row.printed(column) for row in line]
            axes.plot(xs, ys, color=color, lw=1.2, alpha=0.5)
            segments += list(zip(xs[:-1], ys[:-1], xs[1:], ys[1:], strict=True))
        for row in members:
            x, y = row.printed("flops"), row.printed(column)
            axes.plot(x, y, "o", color=color, ms=6.5 if family in ours else 5.5, zorder=3)
            if _measured_as_published(row):
                exact = row.macs_by_authors_rule * row.views / 1e9
                axes.plot(exact, y, "D", color=color, mfc="none", ms=11, mew=1.3, zorder=4)
            points.append((x, y, 17 if _measured_as_published(row) else 7))  # a diamond is wider than its size
            labels.append(
                (x, y, re.sub(r"ImageNet-", "IN-", row.name), color if family in ours else "#5A5A5A", family in ours)
            )
    axes.set_xscale("log")
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    axes.set_xlim(min(xs) / 1.5, max(xs) * 1.9)
    log_ticks(axes.xaxis)
    margin = 0.07 * (max(ys) - min(ys) or 1)
    axes.set_ylim(min(ys) - margin, max(ys) + margin)
    axes.grid(True)
    axes.set_xlabel("GFLOPs of all test views (multiply-adds, log scale)")
    data = "Kinetics-400 top-1" if column == "k400_top1" else "top-1"
    figure.text(0.07, 0.955, f"{data} accuracy, %, as published", fontsize=10.5, weight="bold", va="center")
    handles = [
        Line2D([], [], marker="o", color=INK, ls="", ms=6, label="published FLOPs"),
        Line2D([], [], marker="D", color=INK, mfc="none", ls="", ms=9, mew=1.3, label="FLOPs measured here"),
    ]
    figure.legend(handles=handles, loc="center right", bbox_to_anchor=(0.985, 0.955), ncols=2, fontsize=9.5)
    if any("IN-" in text for _, _, text, _, _ in labels):
        figure.text(0.985, 0.03, "IN: pre-trained on ImageNet", fontsize=9, color=FAINT, ha="right", va="center")
    place_labels(figure, axes, labels, points, segments)
    return figure, f"Published {data} accuracy against the operations of all test views, published and measured"


def _measured_as_published(row: Row) -> bool:
    return row.authors_flops is not None and row.comparable is True


def _usual_pretraining(rows: list[Row]) -> str | None:
    """The pre-training that most of these rows share, so that a line joins models which differ in size alone."""
    found = [row.published.settings.get("pretrain") for row in rows]
    return max(dict.fromkeys(found), key=found.count)


def _family(row: Row) -> str:
    """The model's name without its size and setting: DualFormer-T -> DualFormer."""
    name = row.name.split(",")[0].split(" (")[0]
    return re.sub(r"[-/](T|S|B|L|XL|XXL)(\b.*)?$", "", name)


def scaling(table: AblationTable) -> tuple[Figure, str] | None:
    """Multiply-adds, latency and memory against the number of tokens, log-log, with a fitted line per scheme.

    The exponent in theory stands beside the fitted one where both are of the same thing: of the products of attention.
    Memory is what a pass needs beside the weights, which do not grow with the clip. One column for frames and one for
    size where the rows vary both; each takes the rows that differ in it alone. A panel in which no scheme has a value
    at two sizes would show no growth and is left out.
    """
    rows = [row for row in table.measured if exponents.tokens(row)]
    lines = [(axis, of_axis) for axis, of_axis in exponents.axes(table).items() if of_axis]
    kinds = (
        ("GMACs of attention products", "macs_attention", 1e9),
        ("GMACs, one view", "macs", 1e9),
        ("latency, ms", "latency", 1),
        ("peak memory without weights, MiB", "peak_memory", 2**20),
    )
    panels = [(kind, axis, of_axis) for kind in kinds for axis, of_axis in lines if _has_line(of_axis, kind[1])]
    if not panels:
        return None
    across = min(2, len(panels))
    fitted = "exponent of the fitted line, by least squares of log cost on log tokens over its panel"
    footnotes = [f"Behind each name: {fitted}."]
    if any(kind[1] == "macs_attention" for kind, _, _ in panels):
        products = "the products of attention (scores, weighted sum) alone"
        footnotes.append(f"In brackets, for {products}: the exponent in theory.")
    if absent := _absent(panels):
        footnotes.append(f"† no value: {absent}")
    notes = [line for note in footnotes for line in wrapped(note, 8.5, 0.97 * WIDTH)]
    foot, head, high = 0.18 + 0.15 * len(notes), 0.40, 3.2
    tall = -(-len(panels) // across) * high + foot
    figure = Figure(figsize=(WIDTH, tall), dpi=DPI)
    schemes = list(dict.fromkeys(scheme_of(row) for row in rows))
    looks = _looks(table)
    longest = max(len(_end_label(scheme, rows, "frames", 1.0)) for scheme in schemes)
    label, margin, share = 0.025 + 0.0063 * longest, 0.062, 1 / across
    for index, ((title, name, unit), axis, of_axis) in enumerate(panels):
        at = (margin + index % across * share, 1 - ((index // across + 1) * high - 0.6) / tall)
        axes = figure.add_axes((*at, share - margin - label, (high - 0.6 - head) / tall))
        ends, points, segments = [], [], []
        for scheme in dict.fromkeys(scheme_of(row) for row in of_axis):
            of_scheme = [row for row in of_axis if scheme_of(row) == scheme]
            found = [(exponents.tokens(row), exponents.grows(row, name)) for row in of_scheme]
            known = sorted((tokens, value / unit) for tokens, value in found if value)
            if not known:
                continue
            color, marker = looks[scheme]
            slope, line = _fitted(known)
            axes.plot(*zip(*known, strict=True), color=color, marker=marker, ms=5, ls="")
            axes.plot(*zip(*line, strict=True), color=color, lw=1.3)
            said = _end_label(scheme, of_scheme if name == "macs_attention" else [], axis, slope)
            lost = any(value is None for _, value in found)
            ends.append((*known[-1], said + (" †" if lost else ""), color))
            points += [(*point, 5) for point in known]
            segments += [(*start, *end) for start, end in pairwise(line)]
        _log_axes(axes, title, axis, of_axis)
        last = max(x for x, *_ in ends)
        _end_labels(figure, axes, [end for end in ends if end[0] == last])
        early = [(*end, False) for end in ends if end[0] < last]  # a thin line to the edge would cross the others
        if early:
            place_labels(figure, axes, early, [(x, y, 5) for x, y, *_ in early] + points, segments)
    figure.text(0.012, 0.1 / tall, "\n".join(notes), fontsize=8.5, color="#5A5A5A", va="bottom")
    return figure, f"Cost against tokens: {', '.join(dict.fromkeys(kind[0] for kind, _, _ in panels))}"


def _has_line(rows: list[Row], name: str) -> bool:
    """Whether some scheme has values at two sizes."""
    sizes: dict[str, set[int]] = {}
    for row in rows:
        if exponents.grows(row, name):
            sizes.setdefault(scheme_of(row), set()).add(exponents.tokens(row))
    return any(len(of_scheme) > 1 for of_scheme in sizes.values())


def _absent(panels: list[tuple[tuple[str, str, float], str, list[Row]]]) -> str:
    """The points that panels lack, by the reason why."""
    lost: dict[str, list[str]] = {}
    for (_, name, _), _, rows in panels:
        for row in (row for row in rows if exponents.grows(row, name) is None):
            lost.setdefault(exponents.lacks(row, name), []).append(f"{scheme_of(row)} at {_clip(row)}")
    return ", ".join(f"{', '.join(dict.fromkeys(points))} ({why})" for why, points in lost.items())


def _fitted(points: list[tuple[float, float]]) -> tuple[float | None, list[tuple[float, float]]]:
    """The exponent, and the ends of the fitted line; no exponent and the points themselves where nothing is fitted."""
    found = exponents.exponent(points)
    if found is None:
        return None, points
    slope, offset = found
    return slope, [(x, math.exp(offset + slope * math.log(x))) for x, _ in (points[0], points[-1])]


def _clip(row: Row) -> str:
    clip = row.record.case["clip"]
    return f"{clip['frames']}x{clip['size']}x{clip['size']}"


def _end_label(scheme: str, rows: list[Row], axis: str, slope: float | None) -> str:
    known = next((said for row in rows if scheme_of(row) == scheme and (said := exponents.theory(row, axis))), None)
    return scheme + ("" if slope is None else f" {slope:.2f}") + (f" ({known})" if known else "")


def _log_axes(axes: Axes, title: str, axis: str, rows: list[Row]) -> None:
    ticks = {exponents.tokens(row): row.record.case["clip"][axis] for row in rows}
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title(title, pad=11)
    varied = "frames" if axis == "frames" else "pixels"
    axes.set_xlabel(f"{varied}, at {exponents.fixed(rows[0], axis)}; below: tokens (log scale)", fontsize=9)
    axes.set_xticks(sorted(ticks), [f"{ticks[n]}\n{n:,}" for n in sorted(ticks)], fontsize=8.5)
    axes.xaxis.set_minor_locator(NullLocator())
    room = (max(ticks) / min(ticks)) ** 0.05
    axes.set_xlim(min(ticks) / room, max(ticks) * room)  # the same in every panel, whichever points it lacks
    log_ticks(axes.yaxis)
    axes.tick_params(axis="y", labelsize=8.5)
    axes.grid(True)


def _end_labels(figure: Figure, axes: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Name every line at the right edge; where ends lie together the names move apart, tied to them by thin lines."""
    FigureCanvasAgg(figure).draw()
    step = 12.5 * figure.dpi / 72
    placed = []
    for x, y, text, color in sorted(ends, key=lambda end: (end[1], end[2])):
        height = axes.transData.transform((x, y))[1]
        placed.append([height, x, y, text, color])
    low, high = axes.get_window_extent().y0, axes.get_window_extent().y1
    heights = [max(item[0], low) for item in placed]
    for _ in range(200):
        for i in range(len(heights) - 1):
            short = step - (heights[i + 1] - heights[i])
            if short > 0:
                heights[i] -= short / 2
                heights[i + 1] += short / 2
        if heights and heights[-1] > high:
            heights[-1] = high
        if heights and heights[0] < low:
            heights[0] = low
    for height, (start, x, y, text, color) in zip(heights, placed, strict=True):
        away = axes.transData.transform((x, y))[0]
        dx = (axes.get_window_extent().x1 - away) * 72 / figure.dpi + 4
        axes.annotate(
            text,
            (x, y),
            (dx, (height - start) * 72 / figure.dpi),
            textcoords="offset points",
            va="center",
            ha="left",
            fontsize=8.5,
            color=legible(color),
            annotation_clip=False,
            arrowprops=dict(arrowstyle="-", color=color, lw=0.6, alpha=0.6, shrinkA=0, shrinkB=4, relpos=(0, 0.5)),
        )


def _looks(table: AblationTable) -> dict[str, tuple[str, str]]:
    """Colour and marker of each scheme, by its place among all rows, measured or not: the same in all figures."""
    ours = (row for row in table.rows if not row.published_only)
    return {scheme: look(number) for number, scheme in enumerate(dict.fromkeys(scheme_of(row) for row in ours))}


OPERATORS = {  # group: what it is called, its colour
    "attention": ("attention products", "#0072B2"),
    "projections": ("projections", "#56B4E9"),
    "mlp": ("MLP", "#D55E00"),
    "convolutions": ("embedding, position, pooling", "#E69F00"),
    "norms": ("norms", "#009E73"),
    "movement": ("data movement", "#CC79A7"),
    "rest": ("rest", "#BDBDBD"),
}


def operator_share(table: AblationTable) -> tuple[Figure, str] | None:
    """Stacked bars: what the multiply-adds of each row belong to, beside what its time belongs to."""
    kinds = (("macs", "share of multiply-adds, %"), ("time", "share of time, %"))
    rows = [row for row in table.measured if any(shares_of(row, kind) for kind, _ in kinds)]
    panels = [(title, [shares_of(row, kind) for row in rows]) for kind, title in kinds]
    panels = [(title, parts) for title, parts in panels if any(parts)]
    if not panels:
        return None
    used = [group for group in OPERATORS if any(s and s.get(group) for _, parts in panels for s in parts)]
    head = 0.68
    names, left, high = _beside_bars(rows, 32)
    tall = max(0.42, high) * len(rows) + head + 0.37
    figure = Figure(figsize=(WIDTH, tall), dpi=DPI)
    share = (0.985 - left) / len(panels)
    top, bottom = 1 - head / tall, 0.32 / tall
    for index, (title, parts) in enumerate(panels):
        axes = figure.add_axes((left + index * share, bottom, share - 0.035, top - bottom))
        _stacks(axes, title, parts, names if index == 0 else [""] * len(rows))
    figure.legend(
        handles=[Patch(color=OPERATORS[group][1], label=OPERATORS[group][0]) for group in used], loc="upper left",
        bbox_to_anchor=(0.005, 1 - 0.02 / tall), ncols=7, fontsize=9, handlelength=1.0, columnspacing=1.2,
    )  # fmt: skip
    return figure, f"What each row spends on what: {', '.join(title for title, _ in panels)}"


def shares_of(row: Row, kind: str) -> dict[str, float] | None:
    """The shares of a row's multiply-adds ("macs") or time ("time") by group, or None where they were not measured."""
    values = {group: row.value(f"{kind}_{group}") or 0 for group in OPERATORS}
    total = sum(values.values())
    return {group: value / total for group, value in values.items()} if total else None


def _stacks(axes: Axes, title: str, parts: list[dict[str, float] | None], labels: list[str]) -> None:
    """One bar from 0 to 100 for each row; the number stands in every part that has room for it."""
    for place, shares in enumerate(parts):
        if shares is None:
            axes.text(1, place, "— see the table", va="center", ha="left", fontsize=8.5, color=FAINT)
            continue
        start = 0.0
        for group, (_, color) in OPERATORS.items():
            wide = 100 * shares[group]
            axes.barh(place, wide, left=start, height=0.66, color=color, edgecolor="white", lw=0.6)
            if wide >= 5.5:
                at, ink = start + wide / 2, ink_on(color)
                axes.text(at, place, f"{wide:.0f}", va="center", ha="center", fontsize=8.5, color=ink)
            start += wide
    axes.set_title(title, pad=6)
    axes.set_xlim(0, 100)
    axes.set_ylim(len(parts) - 0.45, -0.55)
    axes.set_yticks(range(len(parts)), labels)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", length=3, labelsize=8.5, colors=FAINT)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.spines["bottom"].set_visible(False)


def roofline_plot(table: AblationTable) -> tuple[Figure, str] | None:
    """Achieved multiply-adds per second over multiply-adds per byte, below the roof of the machine's two ceilings.

    One roof for each machine, dtype and number of threads, at the medians of what its rows measured.
    """
    rows = [row for row in table.measured if None not in (roofline.intensity(row), *roofline.shares(row))]
    if not rows:
        return None
    where = list(dict.fromkeys(_where(row) for row in rows))
    roofs = {one: _roof([row for row in rows if _where(row) == one]) for one in where}
    spots = [(roofline.intensity(row), roofline.achieved(row) / 1e9) for row in rows]
    xs = [x for x, _ in spots] + [product / copy for product, copy in roofs.values()]
    low, high = min(xs) / 2.5, max(xs) * 2.5
    feet = [min(product, low * copy) for product, copy in roofs.values()]
    bottom = min([y / 1.6 for _, y in spots] + feet)
    tops = [product for product, _ in roofs.values()]
    figure = Figure(figsize=(WIDTH, 5.6), dpi=DPI)
    axes = figure.add_axes((0.075, 0.115, 0.895, 0.79))
    _log_log(axes, (low, high), (bottom, max([*tops, *(y for _, y in spots)]) * 1.7))
    axes.set_xlabel("multiply-adds per byte that the operators read and write, MAC/byte: both counted (log scale)")
    axes.set_ylabel("achieved, GMAC/s: counted over measured (log scale)")
    segments, floor = [], 0.0
    for one in sorted(where, key=lambda one: roofs[one]):
        product, copy = roofs[one]
        color = INK if len(where) == 1 else look(where.index(one))[0]
        edges = [low, min(max(product / copy, low), high), high]
        heights = [min(product, x * copy) for x in edges]
        axes.plot(edges, heights, color=color, lw=1.6)
        segments += [(*start, *end) for start, end in pairwise(zip(edges, heights, strict=True))]
        rates = f"large matrix product: {_short(product)} GMAC/s", f"large copy: {_short(copy)} GB/s"
        if len(where) == 1:
            segments += _along_slope(axes, rates[1], color, (low, low * copy))
        said = rates[0] if len(where) == 1 else f"{_apart(one, where)}: {', '.join(rates)}"
        covered, floor = _above_flat(axes, said, color, edges[1:], product, floor, spots)
        segments += covered
    points, labels = [], []
    looks = _looks(table)
    for row, (x, y) in zip(rows, spots, strict=True):
        color, marker = looks[scheme_of(row)]
        if len(where) > 1:
            color, _ = look(where.index(_where(row)))
        axes.plot(x, y, marker, color=color, ms=8, zorder=3, mec="white", mew=0.6)
        points.append((x, y, 9))
        labels.append((x, y, row.name, color, False))
    shared = [values[0] for values in zip(*where, strict=True) if len(set(values)) == 1 and values[0]]
    figure.text(0.012, 0.965, ", ".join(shared), fontsize=10.5, weight="bold", va="center")
    place_labels(figure, axes, labels, points, segments)
    caption = (
        "Multiply-adds per second over multiply-adds per byte, both of counts, below what the machine can do at best: "
    )
    return (
        figure,
        caption
        + "a large matrix product (flat) and a large copy (slope), measured in the same run, medians over the rows",
    )


Segment = tuple[float, float, float, float]  # a line, by its ends
_LETTER = 5.2  # how wide a letter of a label is on average, in points


def _where(row: Row) -> tuple[str, ...]:
    """What one roof holds for: machine, dtype, threads."""
    facts = row.facts()
    threads = facts.get("threads", "")
    unit = "thread" if threads == "1" else "threads"
    return facts["device"], facts["dtype"], f"{threads} {unit}" if threads else ""


def _apart(one: tuple[str, ...], where: list[tuple[str, ...]]) -> str:
    """What tells one roof from the others, in words."""
    return ", ".join(said for said, values in zip(one, zip(*where, strict=True), strict=True) if len(set(values)) > 1)


def _roof(rows: list[Row]) -> tuple[float, float]:
    """GMAC/s of the matrix product and GB/s of the copy: medians over rows, each of which measured its own."""
    return tuple(median(row.value(name) for row in rows) / 1e9 for name in (roofline.PRODUCT, roofline.COPY))


def _log_log(axes: Axes, x: tuple[float, float], y: tuple[float, float]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(*x)
    axes.set_ylim(*y)
    for axis in (axes.xaxis, axes.yaxis):
        log_ticks(axis, fine=(1, 2, 3, 5, 7))
    axes.grid(True)


def _above_flat(
    axes: Axes,
    text: str,
    color: str,
    ends: list[float],
    rate: float,
    floor: float,
    spots: list[tuple[float, float]],
) -> tuple[list[Segment], float]:
    """Write what a roof is above its flat part, right where no point is, no lower than `floor` in pixels.

    Returns what that covers, and its upper edge.
    """
    step = axes.figure.dpi / 72
    (left, high), (right, _) = axes.transData.transform([(x, rate) for x in ends])
    low, wide = max(high + 4 * step, floor), _LETTER * step * len(text)
    taken = [x for x, y in axes.transData.transform(spots) if low - 8 * step < y < low + 20 * step]
    places = list(range(int(right - 4 * step), int(left + wide), -4))
    free = [end for end in places if not any(end - wide - 8 * step < x < end + 8 * step for x in taken)]
    end = (free or places or [right])[0]
    axes.annotate(
        text, axes.transData.inverted().transform((end, low)), ha="right", va="bottom", fontsize=9, color=legible(color)
    )
    lines = [((end - wide, low + up * step), (end, low + up * step)) for up in (2, 6, 10)]
    return _in_data(axes, lines), low + 12 * step


def _along_slope(axes: Axes, text: str, color: str, start: tuple[float, float]) -> list[Segment]:
    """Write what the slope is along its upper side, from `start` on; what that covers."""
    step = axes.figure.dpi / 72
    (x0, y0), (x1, y1) = axes.transData.transform([start, (2 * start[0], 2 * start[1])])
    lean = math.atan2(y1 - y0, x1 - x0)
    x, y = math.cos(lean), math.sin(lean)

    def place(along: float, across: float) -> tuple[float, float]:
        return x0 + step * (along * x - across * y), y0 + step * (along * y + across * x)

    axes.annotate(
        text, axes.transData.inverted().transform(place(20, 4)), ha="left", va="bottom", fontsize=9,
        color=legible(color), rotation=math.degrees(lean), rotation_mode="anchor",
    )  # fmt: skip
    return _in_data(axes, [(place(20, up), place(20 + _LETTER * len(text), up)) for up in (6, 10, 14)])


def _in_data(axes: Axes, lines: list[tuple[tuple[float, float], tuple[float, float]]]) -> list[Segment]:
    """Lines in pixels as lines in the units of the axes."""
    return [tuple(float(value) for end in axes.transData.inverted().transform(line) for value in end) for line in lines]


def _comparable(row: Row, column: str) -> int | float | None:
    """A published cell where the measured case is the published one."""
    return row.printed(column) if row.comparable is True else None


def _beside(measured: Decimal | None, printed: int | float | None) -> str:
    """The measured figure as the paper would print it, and the printed one where the two differ."""
    if measured is None:
        return ""
    differs = printed is not None and Decimal(str(printed)) != measured
    return f"{measured:f}" + (f" (published {printed})" if differs else "")


def _short(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


_FIGURES: dict[str, Callable[[AblationTable], tuple[Figure, str] | None]] = {
    "cost": cost,
    "accuracy_vs_flops": accuracy_vs_flops,
    "scaling": scaling,
    "operator_share": operator_share,
    "roofline": roofline_plot,
    "accuracy_cost": accuracy_figures.accuracy_cost,
    "testing_views": accuracy_figures.testing_views,
}
