"""What was measured in a table, by kind: the names of quantities, and what each is called with its unit."""

from reports.table import AblationTable
from reports.text import unit


def names(table: AblationTable, *kinds: str) -> list[str]:
    """Kind by kind, in the order of the records."""
    kind_of = {name: quantity.kind for name, quantity in table.quantities().items() if table.has(name)}
    return [name for kind in kinds for name in kind_of if kind_of[name] == kind]


def titled(table: AblationTable, name: str) -> tuple[str, float]:
    """What a quantity is called, with its unit, and what its values are divided by to be in it."""
    quantity = table.quantities()[name]
    words, scale = unit(quantity)
    return f"{quantity.title}, {words.partition(',')[0]}", scale
