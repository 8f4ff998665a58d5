"""What was measured in a table, by kind: the names of quantities, and what each is called with its unit."""

from reports.table import AblationTable
from reports.text import unit


def names(table: AblationTable, *kinds: str) -> list[str]:
    """Kind by kind, in the order of the records."""
    found = [m for row in table.measured for m in row.record.measurements.values() if m.samples]
    return list(dict.fromkeys(m.name for kind in kinds for m in found if m.kind == kind))


def titled(table: AblationTable, name: str) -> tuple[str, float]:
    """What a quantity is called, with its unit, and what its values are divided by to be in it."""
    measured = next(row.measurement(name) for row in table.rows if row.value(name) is not None)
    words, scale = unit(measured)
    return f"{measured.title}, {words.partition(',')[0]}", scale
