"""The words of a report: cells, tables, footnotes and sentences in Markdown."""

from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any

MISSING = "—"


class Notes:
    """Numbered footnotes; the same text gets the same number."""

    def __init__(self):
        self.texts: list[str] = []

    def mark(self, text: str) -> str:
        if text not in self.texts:
            self.texts.append(text)
        return f" [{self.texts.index(text) + 1}]"


def table_lines(rows: Iterable[Any], columns: list[tuple[str, Callable[[Any], str]]]) -> str:
    """A Markdown table: one line per row, each column a heading and what makes a cell of a row."""
    lines = ["| " + " | ".join(escape(heading) for heading, _ in columns) + " |"]
    lines.append("| --- |" + " ---: |" * (len(columns) - 1))
    for row in rows:
        lines.append("| " + " | ".join(escape(cell(row)) for _, cell in columns) + " |")
    return "\n".join(lines)


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
