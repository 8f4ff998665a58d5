"""The words of a report: cells, tables, footnotes and sentences in Markdown."""

import difflib
import re
from collections.abc import Callable, Iterable
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from records.record import Measurement, Quantity

MISSING = "—"
# A number at the start of a cell, alone or before a unit, an interval, a note or another number, but not before a word.
NUMBER = re.compile(r"[*~<≤]*[-+−]?\d[\d.,]*(?: ?(?:%|×|[A-Za-zμ/²]{1,3}))?(?![\w])(?! \w{4})")


UNITS = {  # unit of a measurement: as shown, divided by, decimals of an exact number
    "count": ("M", 10**6), "MAC": ("GMAC", 10**9), "bytes": ("MiB", 2**20), "percent": ("%", 1),
    "bytes, predicted": ("MiB, predicted", 2**20), "MAC/s": ("GMAC/s", 10**9), "bytes/s": ("GB/s", 10**9),
}  # fmt: skip
ARROWS = {"lower": " ↓", "higher": " ↑", "none": ""}


def unit(quantity: Quantity) -> tuple[str, float]:
    """The unit in which a quantity is shown, and what its numbers are divided by."""
    return UNITS.get(quantity.unit, (quantity.unit, 1))


def heading(quantity: Quantity) -> str:
    """`latency ↓, ms`."""
    return f"{quantity.title}{ARROWS[quantity.better]}, {unit(quantity)[0]}"


def shown(measured: Measurement, value: float | None = None) -> str:
    """A number of a measurement, its own if none is given, in the unit in which it is shown.

    A count of more than a thousand has three decimals; a number of whole things none; what was taken with noise three
    significant digits.
    """
    name, scale = unit(measured)
    value = measured.value if value is None else value
    if measured.kind == "counted":
        return (
            str(rounded(value, scale, 3)) if scale > 1 else f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
        )
    return f"{value:.0f}" if name == "clips" else significant(value / scale)


def rounded(count: float, scale: float, decimals: int) -> Decimal:
    """`count` in multiples of `scale`, rounded half up: `rounded(60_088_210_944, 10**9, 0)` is 60."""
    exact = Decimal(count) / Decimal(scale)
    return exact.quantize(Decimal(1).scaleb(-decimals), rounding=ROUND_HALF_UP)


class Notes:
    """Numbered footnotes; the same text gets the same number."""

    def __init__(self):
        self.texts: list[str] = []

    def mark(self, text: str) -> str:
        if text not in self.texts:
            self.texts.append(text)
        return f" [{self.texts.index(text) + 1}]"


def table_lines(rows: Iterable[Any], columns: list[tuple[str, Callable[[Any], str]]]) -> str:
    """A Markdown table: one line per row, each column a heading and what makes a cell of a row.

    Columns of numbers are set to the right; the first, and those that hold words, to the left.
    """
    cells = [[escape(cell(row)) for _, cell in columns] for row in rows]
    right = [False, *map(_of_numbers, list(zip(*cells, strict=True))[1:])] if cells else [False] * len(columns)
    lines = [[escape(heading) for heading, _ in columns], ["---:" if one else "---" for one in right], *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _of_numbers(column: Iterable[str]) -> bool:
    """Whether at least half of the cells that say anything are numbers."""
    said = [cell for cell in column if cell and not cell.startswith(MISSING)]
    return 2 * sum(bool(NUMBER.match(cell)) for cell in said) >= len(said)


def significant(value: float) -> str:
    """Three significant digits, never fewer than the whole number: 1234, 123, 12.3, 1.23, 0.0123."""
    if value == 0:
        return "0"
    size = Decimal(repr(float(value))).adjusted()
    return f"{value:.0f}" if size >= 2 else f"{value:.{2 - size}f}"


def counted(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def escape(text: str) -> str:
    return (
        text.replace("|", "\\|").replace("\n", " ").replace("*", "\\*") if "**" not in text else text.replace("\n", " ")
    )


def sentence(text: str) -> str:
    text = " ".join(text.split())
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "?", "!")) else text + "."


def nearest(name: str, allowed: Iterable[str]) -> str:
    """The way out of a wrong name: the one that was meant, if one is close, and all that are allowed."""
    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return (f"did you mean {close[0]!r}? " if close else "") + f"allowed: {', '.join(allowed)}"
