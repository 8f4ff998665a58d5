"""How near a model comes to what its machine can do: derived from measurements, never stored as one.

Two ceilings are measured in the same process as the model, in its dtype and with its threads: the rate of a large
matrix product and of a large copy. A model's own rates are its counts (multiply-adds; bytes that its operators read and
write) over its latency. With few multiply-adds per byte a machine that kept nothing in its caches could go no faster
than the copy lets it; a share above 100 % of that ceiling says that caches held what operators hand to each other.
"""

from collections.abc import Callable
from dataclasses import dataclass

from records.record import Measurement
from reports.table import AblationTable, Row
from reports.text import MISSING, ROW, Notes, significant, tables

MACS, BYTES, LATENCY, PRODUCT, COPY = "macs", "bytes_moved", "latency", "matmul_ceiling", "copy_ceiling"


def achieved(row: Row) -> float | None:
    """Multiply-adds per second of a row's forward pass: its count times its batch over its latency."""
    return _over(_macs(row), _seconds(row))


def achieved_bytes(row: Row) -> float | None:
    """Bytes per second of a row's forward pass: what its operators read and write, over its latency."""
    return _over(row.value(BYTES), _seconds(row))


def share(row: Row) -> float | None:
    """Of the matrix product's rate, from 0 to about 1; None where the two were not measured together."""
    return _share(row, achieved(row), PRODUCT)


def share_bytes(row: Row) -> float | None:
    """Of the copy's rate; None where the two were not measured together."""
    return _share(row, achieved_bytes(row), COPY)


def shares(row: Row) -> tuple[float | None, float | None]:
    """Of the two ceilings: the matrix product's, the copy's."""
    return share(row), share_bytes(row)


def intensity(row: Row) -> float | None:
    """Multiply-adds per byte that the operators read and write: both counted."""
    return _over(_macs(row), row.value(BYTES))


def _over(count: float | None, whole: float | None) -> float | None:
    return None if count is None or not whole else count / whole


def _macs(row: Row) -> float | None:
    """Of one forward pass, the whole batch."""
    macs = row.value(MACS)
    return None if macs is None or row.record is None else macs * int(row.record.case.get("batch_size") or 1)


def _seconds(row: Row) -> float | None:
    milliseconds = row.value(LATENCY)
    return None if not milliseconds else milliseconds / 1e3


def _share(row: Row, rate: float | None, name: str) -> float | None:
    part = _over(rate, row.value(name))
    return part if part is not None and _together(row.measurement(LATENCY), row.measurement(name)) else None


def _together(first: Measurement, second: Measurement) -> bool:
    """Whether two measurements come from one machine and, where both say from which runs, share a run."""
    ours, theirs = ({visit.run for visit in measured.visits if visit.run} for measured in (first, second))
    same_machine = first.said("machine") == second.said("machine")
    return same_machine and (not ours or not theirs or not ours.isdisjoint(theirs))


@dataclass(frozen=True)
class Column:
    """A derived number: its heading, its name in the CSV, what it is made of, its value, and what a cell divides by."""

    heading: str
    name: str
    needs: tuple[str, ...]
    value: Callable[[Row], float | None]
    scale: float = 1


COLUMNS = (
    Column("bytes moved ↓, GB a pass, counted", BYTES, (BYTES,), lambda row: row.value(BYTES), 1e9),
    Column("MAC per byte, counted", "macs_per_byte", (MACS, BYTES), intensity),
    Column("achieved ↑, GMAC/s", "achieved_macs_per_second", (MACS, LATENCY), achieved, 1e9),
    Column("of the matrix product ↑, %", "share_of_matmul_ceiling", (MACS, LATENCY, PRODUCT), share, 0.01),
    Column("achieved ↑, GB/s of counted bytes", "achieved_bytes_per_second", (BYTES, LATENCY), achieved_bytes, 1e9),
    Column("of the copy ↑, %", "share_of_copy_ceiling", (BYTES, LATENCY, COPY), share_bytes, 0.01),
)
SAID = (
    "Achieved rates are counts over the latency above: multiply-adds without the classifier, and counted bytes, as if "
    "every operator read its inputs from memory and wrote its outputs once, fused attention being one operator. Caches "
    "and fusion make the real traffic smaller, so that a share of the copy can exceed 100 %. The two ceilings, a large "
    "matrix product and a large copy, were measured in the same run as the latency, in its dtype and with its threads."
)


def columns(table: AblationTable) -> list[Column]:
    """Those of which some row has a value; none where no ceiling was measured and no bytes were counted."""
    if not any(table.has(name) for name in (PRODUCT, COPY, BYTES)):
        return []
    return [column for column in COLUMNS if any(column.value(row) is not None for row in table.rows)]


def section(table: AblationTable, notes: Notes) -> str:
    """The rates of each row beside the limits of its machine."""
    rates = [(column.heading, lambda row, column=column: _cell(row, column, notes)) for column in columns(table)]
    parts = tables([row for row in table.rows if not row.missing], ROW, [rates]) if rates else []
    return "\n\n".join(["### How near the machine's limits", *parts, SAID]) if rates else ""


def csv_row(table: AblationTable, row: Row) -> dict[str, float | None]:
    """By the names of the CSV: rates per second, shares from 0 to about 1."""
    return {column.name: column.value(row) for column in columns(table)}


def _cell(row: Row, column: Column, notes: Notes) -> str:
    value = column.value(row)
    if value is not None:
        return significant(value / column.scale)
    if row.published_only:
        return MISSING
    absent = next((name for name in column.needs if row.value(name) is None), None)
    return MISSING + notes.mark(
        row.reason(absent) if absent else "the ceiling was measured on another machine or in another run"
    )
