"""With what exponent a cost grows with the tokens of a clip: a line through the logarithms, beside the theory.

The figure `scaling` draws the lines; here are the numbers, as a table below it and as a CSV. A line takes the rows of
one scheme that differ in one axis of the clip alone. Memory is what a pass needs beside the weights, which do not grow
with the clip. The exponent in theory is that of the products of attention, and stands beside theirs alone.
"""

import math
from dataclasses import dataclass
from statistics import linear_regression

from reports.table import AblationTable, Row
from reports.table import schemes as table_schemes
from reports.text import MISSING, Notes, table_csv, tables

ATTENTION = "macs_attention"  # of the two products of attention: the only one that a theory is known of
FLAT = 0.05  # an exponent within it is no growth: parameters that depend on the clip a little
CSV = ("scheme", "varied", "at", "measurement", "exponent", "points", "theory")
FILE = "exponents.csv"
SAID = (
    "Exponents of the fitted lines: least squares of log cost on log tokens; in brackets the number of clips that a "
    "line is fitted to. A line through 2 of them always fits. A clip shorter or smaller than a window cuts it, so that "
    "a token costs less there: this lifts the lines of window and pyramid schemes above their theory."
)

Growth = dict[str, dict[str, list[int]]]  # by scheme and axis of the clip: least and greatest exponent


@dataclass(frozen=True)
class Line:
    """The rows of one scheme that differ in one axis of the clip alone, "frames" or "size"."""

    scheme: str
    axis: str
    rows: tuple[Row, ...]
    theory: str | None

    def points(self, name: str) -> list[tuple[int, float]]:
        """Tokens and cost, by the number of tokens; only of the rows that have a value above 0."""
        return sorted((tokens(row), value) for row in self.rows if (value := grows(row, name)))

    def exponent(self, name: str) -> float | None:
        """None with fewer than two sizes."""
        return exponent(self.points(name))

    @property
    def fixed(self) -> str:
        return fixed(self.rows[0], self.axis)


def lines(table: AblationTable) -> list[Line]:
    """Of each scheme one line of frames and one of size, as far as the rows vary them."""
    grown = []
    for axis, rows in axes(table).items():
        for scheme in dict.fromkeys(scheme_of(row) for row in rows):
            points = tuple(row for row in rows if scheme_of(row) == scheme)
            grown.append(Line(scheme, axis, points, theory(table.growth, points[0], axis)))
    return grown


def axes(table: AblationTable) -> dict[str, list[Row]]:
    """By axis of the clip, the rows that differ in it alone; an axis that is not varied has none."""
    rows = [row for row in table.measured if tokens(row)]
    return {axis: _longest(rows, axis) for axis in ("frames", "size")}


def _longest(rows: list[Row], axis: str) -> list[Row]:
    """The rows that differ in one axis of the clip alone: of all values of the other, that with the longest line."""
    second = {"frames": "size", "size": "frames"}[axis]
    groups: dict[int, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.record.case["clip"][second], []).append(row)
    lengths = {value: len({row.record.case["clip"][axis] for row in members}) for value, members in groups.items()}
    best = max(lengths, key=lambda value: (lengths[value], value), default=None)
    return groups[best] if best is not None and lengths[best] > 1 else []


def fixed(row: Row, axis: str) -> str:
    """What is the same along an axis, in words."""
    clip = row.record.case["clip"]
    return f"{clip['size']}x{clip['size']} pixels" if axis == "frames" else f"{clip['frames']} frames"


def scheme_of(row: Row) -> str:
    return row.name.split(" · ")[0]


def tokens(row: Row) -> int | None:
    """Tokens of one clip after the patch embedding, from the record's own case."""
    case = row.record.case if row.record else {}
    clip, patch = case.get("clip") or {}, (case.get("config") or {}).get("patch")
    if not patch or not clip.get("frames") or not clip.get("size"):
        return None
    return math.prod(-(-size // p) for size, p in zip((clip["frames"], clip["size"], clip["size"]), patch, strict=True))


def grows(row: Row, name: str) -> int | float | None:
    """A measurement without what is the same for every clip: memory without the weights, where they are known."""
    value = row.value(name)
    if value is None or row.measurement(name).kind != "sized":
        return value
    weights = row.measurement(name).details.get("weights_bytes")
    return None if weights is None else max(0, value - weights)


def lacks(row: Row, name: str) -> str:
    """Why a row has no point on the line of a measurement."""
    return "its weights are not recorded" if row.value(name) is not None else row.reason(name)


def theory(growth: Growth, row: Row, axis: str) -> str | None:
    """The exponent of a row's attention products in the tokens, as "2" or "1–2"; None for a scheme that states none.

    Source: the closed forms of the schemes. Projections and MLP, which every model has, grow with exponent 1.
    """
    schemes = table_schemes(row.record.case)
    if not schemes or not all(axis in growth.get(scheme, {}) for scheme in schemes):
        return None
    low = min(growth[scheme][axis][0] for scheme in schemes)
    high = max(growth[scheme][axis][1] for scheme in schemes)
    return f"{low}" if low == high else f"{low}–{high}"


def quantities(table: AblationTable) -> list[str]:
    """What grows: the products of attention, then costs by kind; not rates, nor what all clips have in common."""
    of, fitted = table.quantities(), lines(table)
    growing = [name for name in table.named("counted") if name in table.metrics] + table.named("timed", "sized")
    growing = [
        name
        for name in growing
        if of[name].better == "lower" and any(abs(line.exponent(name) or 0.0) > FLAT for line in fitted)
    ]
    return [ATTENTION] * table.has(ATTENTION) + growing


def title(table: AblationTable, name: str) -> tuple[str, float]:
    """What a panel or a column calls it, and what its values are divided by."""
    words, scale = table.titled(name)
    sized = table.quantities()[name].kind == "sized"
    return words.replace(",", " without weights,", 1) if sized else words, scale


def exponent(points: list[tuple[float, float]]) -> float | None:
    """The slope of log cost over log tokens, by least squares; None with fewer than two sizes."""
    logs = [(math.log(x), math.log(y)) for x, y in points if x > 0 and y > 0]
    sizes = {x for x, _ in logs}
    return linear_regression(*zip(*logs, strict=True)).slope if len(sizes) > 1 else None


def section(table: AblationTable, notes: Notes) -> str:
    """The exponents of each scheme in a table; empty where no line has two points."""
    fitted = lines(table)
    kinds = [name for name in quantities(table) if any(line.exponent(name) is not None for line in fitted)]
    if not kinds:
        return ""
    groups = []
    for name in kinds:
        words = title(table, name)[0].rpartition(",")[0]
        groups.append([(f"{words}: exponent", lambda line, name=name: _cell(line, name, notes))])
        if name == ATTENTION:
            groups[-1].append(("theirs in theory", lambda line: line.theory or MISSING))
    lead = "scheme, growing with", lambda line: f"{line.scheme}, {line.axis} at {line.fixed}"
    return "\n\n".join([SAID, *tables(fitted, lead, groups)])


def _cell(line: Line, name: str, notes: Notes) -> str:
    lost = dict.fromkeys(lacks(row, name) for row in line.rows if grows(row, name) is None)
    mark = "".join(notes.mark(why) for why in lost)
    slope = line.exponent(name)
    if slope is None:
        return MISSING + mark
    return f"{round(slope, 2) + 0:.2f} ({len(line.points(name))})" + mark  # + 0: not -0.00


def to_csv(table: AblationTable) -> str:
    """One line per fitted exponent."""
    fitted = []
    for line in lines(table):
        for name in quantities(table):
            if (slope := line.exponent(name)) is not None:
                theoretical = line.theory if name == ATTENTION else None
                cells = line.scheme, line.axis, line.fixed, name, f"{slope:.6g}", len(line.points(name)), theoretical
                fitted.append(dict(zip(CSV, cells, strict=True)))
    return table_csv(fitted, CSV)
