"""What each sparse scheme gives for its cost: recall against multiply-adds and against milliseconds, dial by dial."""

from matplotlib.figure import Figure

from reports import sparsity
from reports.drawing import FAINT, PRINTED, about, log10, log_limits, look, pareto, place_labels, sheet
from reports.table import AblationTable
from reports.text import unit

TITLES = {"macs": "per multiply-add", "latency": "per millisecond, on this machine"}


def draw(table: AblationTable) -> tuple[Figure, str] | None:
    """A line for each dial, a dot for a scheme without one; dashed, the front."""
    costs = [cost for cost in sparsity.COSTS if sparsity.turned(table) and sparsity.front(table, cost)]
    if not costs:
        return None
    lines: dict[str, list] = {}
    for row in table.measured:
        if sparsity.gain(table, row) is not None:
            lines.setdefault(row.dial or row.name, []).append(row)
    figure = sheet(5.6, about(table))
    panels = figure.subplots(1, len(costs), squeeze=False, sharey=True)[0]
    bases = {base.name for row in table.rows if (base := table.baseline_of(row))}
    dials = [name for name, rows in lines.items() if rows[0].dial]
    looks = {name: look(number) for number, name in enumerate(dials)}
    least = min(sparsity.gain(table, row) for rows in lines.values() for row in rows)
    crowds = []
    for axes, cost in zip(panels, costs, strict=True):
        points, labels, drawn, (words, scale) = [], [], [], unit(table.quantities()[cost])
        for name, rows in lines.items():
            color, marker = looks.get(name, (PRINTED if name in bases else FAINT, "D" if name in bases else "o"))
            places = [(log10(row.value(cost) / scale), sparsity.gain(table, row)) for row in rows if row.value(cost)]
            if not places:
                continue
            points += places
            drawn.append([places[0], *places])  # a single point is a line, too
            alone = len(places) == 1 and name not in looks
            axes.plot(*zip(*places, strict=True), marker=marker, color=color, ms=5 if alone else 6, lw=1.2, mec="white",
                      mew=0.6, ls="-" if len(places) > 1 else "", label=None if alone else name, zorder=3)  # fmt: skip
            if alone:
                labels.append((*places[0], name, color, "bold" if name in bases else "normal"))
        corners = pareto(axes, points)
        log_limits(axes, [x for x, _ in points])
        axes.set_title(TITLES[cost])
        axes.set_xlabel(f"{table.quantities()[cost].title}, {words}")
        axes.grid(True)
        room = max(100 - least, 10.0)
        axes.set_ylim(least - 0.06 * room, 100 + 0.16 * room)  # names stand above those that recall all
        crowds.append((axes, labels, [corners, *drawn]))
    panels[0].set_ylabel("recall of the probes, %")
    figure.legend(handles=panels[0].get_legend_handles_labels()[0], loc="outside upper left", ncols=5)
    for axes, labels, obstacles in crowds:
        place_labels(axes, labels, obstacles, crowded=True)
    return figure, "Recall of each scheme along its dial, against multiply-adds and against latency, with the fronts"
