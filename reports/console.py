"""What a terminal shows of records: a measurement in a few words, and the short table that a run prints at its end."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from records.record import Measurement, Record, RecordError, read_record
from reports import accuracy, table
from reports.statistics import Spread, by_visit, median_interval
from reports.text import MISSING, WIDEST, counted, heading, listed, shown, unit

ORDER = ("counted", "timed", "sized", "probed")  # an accuracy comes last; what is shared out is for the report


def results(folder: Path, case_ids: Iterable[str]) -> Group:
    """One line per case with what its record holds, an accuracy in percent, in tables of at most seven columns; reasons
    for what is missing stand below."""
    try:
        loaded = table.load(folder)
    except table.UNREADABLE:  # the report, made from the same files, says what is wrong
        loaded = None
    spreads = {row.record.case_id: row.spreads for row in loaded.measured} if loaded else {}
    records = [record for identifier in case_ids if (record := _record(folder / f"{identifier}.json"))]
    measured = [m for record in records for m in record.measurements.values()]
    titles = {m.name: m for kind in ORDER for m in measured if m.kind == kind and is_shown(m)}
    trained = accuracy.sorted_names(measured)
    intervals = "mean" if trained else "median" if any(m.kind == "timed" for m in titles.values()) else ""
    title = (loaded.name if loaded else folder.name) + (f": {intervals} [95 % interval]" if intervals else "")
    headings = {m.name: heading(m) for m in titles.values()}
    headings |= {name: _accuracy_heading([m for m in measured if m.name == name]) for name in trained}
    names, grids = list(headings), []
    for start in range(0, max(1, len(names)), WIDEST - 1):
        grid = Table(title=None if start else Text(title), title_justify="left")
        grid.add_column("row", overflow="fold")
        part = names[start : start + WIDEST - 1]
        for name in part:
            grid.add_column(headings[name], justify="right", overflow="fold")
        for record in records:
            row_spreads = spreads.get(record.case_id, {})
            cells = (human(record.get(name), row_spreads.get(name)) for name in part)
            grid.add_row(Text(record.row), *map(Text, cells))
        grids.append(grid)
    absent: dict[str, dict[str, None]] = {}
    for record in records:
        for measurement in record.measurements.values():
            if measurement.missing:
                absent.setdefault(measurement.missing, {})[record.row] = None
    reasons = [f"{listed(list(rows))}: {reason}" for reason, rows in absent.items()]
    orders = [line for name in trained if loaded and (line := accuracy.summary(loaded, name))]
    return Group(*grids, *(Text(f"  — {reason}") for reason in reasons), *(Text(f"  {line}") for line in orders))


def is_shown(measured: Measurement) -> bool:
    """Whether a terminal has a column for it: parts of a whole, and what only explains others, are in the report."""
    return measured.kind != "shared" and measured.better != "none"


def human(measurement: Measurement | None, spread: Spread | None = None) -> str:
    """A measurement as a person reads it: a few digits and a unit; a dash where there is none.

    `spread` is of its table; an interval stands where there is one, or where there are rounds to know it from.
    """
    if measurement is None or measurement.missing:
        return MISSING
    if measurement.kind == "scored":
        estimate = accuracy.accuracy(measurement)
        inside = f" [{estimate.interval.low:.1f}–{estimate.interval.high:.1f}]" if estimate.interval else ""
        wrong = accuracy.learning_text(measurement)
        return f"{estimate.value:.1f} %{inside}, {counted(estimate.seeds, 'seed')}" + (f": {wrong}" if wrong else "")
    text = f"{shown(measurement)} {unit(measurement)[0]}"
    if measurement.kind == "timed" and (spread or len(measurement.visits) > 1):
        interval = median_interval(by_visit(measurement), spread)
        text += f" [{shown(measurement, interval.low)}–{shown(measurement, interval.high)}]"
    return text


def _record(path: Path) -> Record | None:
    try:
        return read_record(path)
    except RecordError:  # not measured yet, or told of where it was read
        return None


def _accuracy_heading(measured: list[Measurement]) -> str:
    """What an accuracy is of: its data, its budget, and how small clip and model were."""
    details = measured[0].details
    parts = [str(details[key]) for key in ("data", "budget") if key in details]
    if {"frames", "size"} <= details.keys():
        parts.append(f"{details['frames']}x{details['size']}x{details['size']}")
    if details.get("width_factor", 1) != 1:
        parts.append(f"width factor {details['width_factor']:g}")
    if "initial" in details:
        parts.append("warm start")
    return f"top-1 ↑ ({', '.join(parts)})"
