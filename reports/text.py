"""The words of a report, and the one writer of its tables (pandas): Markdown, CSV, LaTeX."""

import difflib
import re
from collections.abc import Callable, Iterable
from decimal import ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING, Any

from records.record import Measurement, Quantity

if TYPE_CHECKING:
    import pandas

MISSING = "—"
# A number at the start of a cell, alone or before a unit, an interval, a note or another number, but not before a word.
NUMBER = re.compile(r"[*~<≤]*[-+−]?\d[\d.,]*(?: ?(?:%|×|[A-Za-zμ/²]{1,3}))?(?![\w])(?! \w{4})")


UNITS = {  # unit of a measurement: as shown, divided by, decimals of an exact number
    "count": ("M", 10**6), "MAC": ("GMAC", 10**9), "bytes": ("MiB", 2**20), "percent": ("%", 1),
    "bytes, predicted": ("MiB", 2**20), "MAC/s": ("GMAC/s", 10**9), "bytes/s": ("GB/s", 10**9),
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
    multiple = (Decimal(count) / Decimal(scale)).quantize(Decimal(1).scaleb(-decimals), rounding=ROUND_HALF_UP)
    return multiple if decimals >= 0 else Decimal(int(multiple))  # 590, not 5.9E+2


class Notes:
    """Numbered footnotes; the same text gets the same number."""

    def __init__(self):
        self.texts: list[str] = []

    def mark(self, text: str) -> str:
        if text not in self.texts:
            self.texts.append(text)
        return f" [{self.texts.index(text) + 1}]"

    def numbered(self, page: str) -> tuple[str, list[str]]:
        """The page with its marks numbered as a reader meets them, and the lines of those that it has."""
        met: dict[str, int] = {}
        page = re.sub(r" \[(\d+)\]", lambda mark: f" [{met.setdefault(mark[1], len(met) + 1)}]", page)
        return page, [f"{number}. {sentence(self.texts[int(mark) - 1])}" for mark, number in met.items()]


Columns = list[tuple[str, Callable[[Any], str]]]
"""Each a heading, and what makes a cell of a row."""
ROW = ("row", lambda row: row.name)
WIDEST = 7  # columns of a table: more are not read side by side
LISTED = 6  # names in a sentence: more are counted


def packed(rows: Iterable[Any], groups: Iterable[Columns]) -> tuple[str, list[Columns]]:
    """What is the same in every row, in a sentence, and the other columns as they fit into tables.

    A group stays together; where it has no room beside the names of the rows and what is there, a table begins.
    """
    rows, same, tables = list(rows), [], []
    for group in groups:
        varying = []
        for heading, cell in group:
            cells = [cell(row) for row in rows]
            if len(rows) > 1 and len(set(cells)) == 1:
                same += [] if cells[0] == MISSING else [f"{heading}: {cells[0]}"]
            else:
                by_row = dict(zip(map(id, rows), cells, strict=True))
                varying.append((heading, lambda row, by_row=by_row: by_row[id(row)]))
        for start in range(0, len(varying), WIDEST - 1):
            part = varying[start : start + WIDEST - 1]
            if tables and len(tables[-1]) + len(part) < WIDEST:
                tables[-1] += part
            else:
                tables.append(part)
    return f"In all rows: {'; '.join(same)}." if same else "", tables


def tables(rows: Iterable[Any], lead: tuple[str, Callable[[Any], str]], groups: Iterable[Columns]) -> list[str]:
    """Markdown tables of at most seven columns, what all rows share in a sentence above them.

    A row without any figure stands in no table but, with the footnotes that say why, in a sentence below it.
    """
    rows = list(rows)
    same, blocks = packed(rows, groups)
    parts = [same]
    for columns in blocks:
        absent: dict[str, list[str]] = {}
        filled = []
        for row in rows:
            cells = [cell(row) for _, cell in columns]
            if all(cell.startswith(MISSING) for cell in cells):
                marks = "".join(dict.fromkeys(re.findall(r" \[\d+\]", " ".join(cells))))
                absent.setdefault(marks, []).append(lead[1](row))
            else:
                filled.append(row)
        parts.append(table_lines(filled, [lead, *columns]) if filled else "")
        absent.pop("", None)  # rows of which nothing was asked
        without = [f"{listed(names)}{marks}" for marks, names in absent.items()]
        parts.append(f"Without a figure here: {'; '.join(without)}." if without else "")
    return [part for part in parts if part]


def listed(names: list[str], noun: str = "row") -> str:
    """Some names, or how many they are."""
    return ", ".join(names) if len(names) <= LISTED else counted(len(names), noun)


def frame(rows: Iterable[Any], columns: Columns) -> "pandas.DataFrame":
    """The cells of a table, whoever writes it."""
    import pandas  # half a second, which a wrong command need not wait for

    headings = [heading for heading, _ in columns]
    return pandas.DataFrame([[cell(row) for _, cell in columns] for row in rows], columns=headings, dtype=object)


def table_lines(rows: Iterable[Any], columns: Columns) -> str:
    """A Markdown table: one line per row.

    Columns of numbers are set to the right; the first, and those that hold words, to the left.
    """
    cells = frame(rows, columns)
    right = [place > 0 and bool(len(cells)) and _is_numeric(cells.iloc[:, place]) for place in range(len(columns))]
    cells = cells.map(escape).rename(columns=escape)
    padded = cells.to_markdown(
        index=False, tablefmt="pipe", disable_numparse=True, colalign=[("left", "right")[numeric] for numeric in right]
    )
    head, _, *body = padded.splitlines()  # one space is enough: what is padded differs in every line of a diff
    rule = "| " + " | ".join("---:" if numeric else "---" for numeric in right) + " |"
    return "\n".join([re.sub(r" {2,}", " ", head), rule, *(re.sub(r" {2,}", " ", line) for line in body)])


def table_cells(lines: str) -> list[list[str]]:
    """The cells of a table that `table_lines` wrote, its headings first."""
    rows = [re.split(r"(?<!\\)\|", line.strip()[1:-1]) for line in lines.splitlines()]
    return [[re.sub(r"\\([|*])", r"\1", cell.strip()) for cell in row] for row in (rows[0], *rows[2:])]


def table_csv(rows: Iterable[dict[str, Any]], columns: Iterable[str]) -> str:
    """One line per row, numbers as they are; an empty cell where there is none."""
    columns = list(dict.fromkeys(columns))
    cells = frame(rows, [(name, lambda row, name=name: row.get(name)) for name in columns])
    return cells.to_csv(index=False, lineterminator="\n")


TEX = {
    "↓": r"$\downarrow$", "↑": r"$\uparrow$", "→": r"$\rightarrow$", "×": r"$\times$", "−": "$-$", "–": "--",
    "—": "---", "≤": r"$\leq$", "μ": r"$\mu$", "²": r"$^2$",
}  # fmt: skip


def table_tex(rows: Iterable[Any], columns: Columns) -> str:
    """A table for a paper, to be taken in by `\\input`: booktabs rules."""
    cells = frame(rows, columns)
    right = ["r" if place > 0 and _is_numeric(cells.iloc[:, place]) else "l" for place in range(len(columns))]
    cells = cells.map(tex)
    cells.columns = [tex(name) + " " * place for place, name in enumerate(cells.columns)]  # two may be called alike
    return cells.style.hide(axis="index").to_latex(hrules=True, column_format="".join(right)).rstrip()


def tex(text: str) -> str:
    text = re.sub(r"([&%$#_{}])", r"\\\1", text.replace("\\", "/")).replace("^", r"\^{}").replace("~", r"\~{}")
    text = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text)  # a link
    text = re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", re.sub(r"`([^`]*)`", r"\\texttt{\1}", text))
    return "".join(TEX.get(letter, letter) for letter in text)


def _is_numeric(column: Iterable[str]) -> bool:
    """Whether at least half of the cells that say anything are numbers."""
    filled = [cell for cell in column if cell and not cell.startswith(MISSING)]
    return 2 * sum(bool(NUMBER.match(cell)) for cell in filled) >= len(filled)


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


def linked(text: str) -> str:
    """Markdown in which an arXiv number leads to its paper."""
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def nearest(name: str, allowed: Iterable[str]) -> str:
    """The way out of a wrong name: the one that was meant, if one is close, and all that are allowed."""
    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return (f"did you mean {close[0]!r}? " if close else "") + f"allowed: {', '.join(allowed)}"
