"""Achieved multiply-adds per second over multiply-adds per byte, below the roof of the machine's two ceilings.

One roof for each machine, dtype and number of threads, at the medians of what its rows measured.
"""

import textwrap
from statistics import median

from matplotlib.figure import Figure

from reports import roofline
from reports.drawing import INK, about, log10, log_limits, look, looks, sheet, short
from reports.exponents import scheme_of
from reports.table import AblationTable, Row


def draw(table: AblationTable) -> tuple[Figure, str] | None:
    """A mark for each row that has its counts, its latency and both ceilings, named in the legend."""
    rows = [row for row in table.measured if None not in (roofline.intensity(row), *roofline.shares(row))]
    if not rows:
        return None
    where = list(dict.fromkeys(map(_where, rows)))
    roofs = {}
    for place in where:
        here = [row for row in rows if _where(row) == place]
        # GMAC/s of the matrix product, GB/s of the copy: medians over rows, each of which measured its own.
        roofs[place] = tuple(
            median(row.value(name) for row in here) / 1e9 for name in (roofline.PRODUCT, roofline.COPY)
        )
    spots = [(log10(roofline.intensity(row)), log10(roofline.achieved(row) / 1e9)) for row in rows]
    ridges = {place: (log10(product / copy), log10(product)) for place, (product, copy) in roofs.items()}
    figure = sheet(max(4.8, 0.23 * (len(rows) + 2 * len(where)) + 0.9), about(table))
    axes = figure.subplots()
    low = min(x for x, _ in [*spots, *ridges.values()]) - 0.4
    high = max(x for x, _ in [*spots, *ridges.values()]) + 0.3
    for number, place in enumerate(where):
        color = INK if len(where) == 1 else look(number)[0]
        ridge, top = ridges[place]
        product, copy = (short(rate) for rate in roofs[place])
        name = "" if len(where) == 1 else f"{_apart(place, where)}: "
        label = f"{name}large matrix product,\n{product} GMAC/s (flat), and large copy,\n{copy} GB/s (slope)"
        axes.plot([low, ridge, high], [top - (ridge - low), top, top], color=color, lw=1.6, label=label)
    marks = looks(table)
    for row, (x, y) in zip(rows, spots, strict=True):
        color, marker = marks[scheme_of(row)]
        color = color if len(where) == 1 else look(where.index(_where(row)))[0]
        name = textwrap.fill(row.name, 34)
        axes.plot(x, y, marker, color=color, ms=8, mec="white", mew=0.6, ls="", zorder=3, label=name)
    feet = [top - (ridge - low) for ridge, top in ridges.values()]
    log_limits(axes, [low, high], [*feet, *(y for _, y in spots), *(top for _, top in ridges.values())], room=0.03)
    axes.set_xlim(low, high)
    axes.grid(True)
    axes.set_title(", ".join(values[0] for values in zip(*where, strict=True) if len(set(values)) == 1 and values[0]))
    axes.set_xlabel("multiply-adds per byte that the operators read and write, MAC/byte: both counted (log scale)")
    axes.set_ylabel("achieved, GMAC/s: counted over measured (log scale)")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure, (
        "Multiply-adds per second over multiply-adds per byte, both of counts, below what the machine can do at best: "
        "a large matrix product (flat) and a large copy (slope), measured in the same run, medians over the rows"
    )


def _where(row: Row) -> tuple[str, ...]:
    """What one roof holds for: machine, dtype, threads."""
    facts = row.facts()
    threads = facts.get("threads", "")
    unit = "thread" if threads == "1" else "threads"
    return facts["device"], facts["dtype"], f"{threads} {unit}" if threads else ""


def _apart(place: tuple[str, ...], where: list[tuple[str, ...]]) -> str:
    """What tells one roof from the others, in words."""
    parts = zip(place, zip(*where, strict=True), strict=True)
    return ", ".join(words for words, values in parts if len(set(values)) > 1)
