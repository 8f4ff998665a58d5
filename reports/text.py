"""The words of a report: cells, tables, footnotes and sentences in Markdown."""

import re
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any

MISSING = "—"
# A number at the start of a cell, alone or before a unit, an interval, a note or another number, but not before a word.
NUMBER = re.compile(r"[*~<≤]*[-+−]?\d[\d.,]*(?: ?(?:%|×|[A-Za-zμ/²]{1,3}))?(?![\w])(?! \w{4})")


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
