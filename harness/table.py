"""The short table that a run prints at its end."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

import reports.table
from harness.progress import human
from harness.spec.case import Entry, case_id
from records.record import Measurement, RecordError, read_record
from reports import accuracy
from reports.paper_table import PaperTableError

COLUMNS = {
    "params": "params ↓",
    "macs": "multiply-adds ↓",
    "latency": "latency ↓",
    "throughput": "throughput ↑",
    "peak_memory": "peak memory ↓",
    "training_latency": "training step ↓",
    "training_memory": "training memory ↓",
    "predicted_training_memory": "training memory, predicted ↓",
    "largest_batch": "largest batch ↑",
    "largest_batch_throughput": "throughput at it ↑",
    "training_largest_batch": "largest batch in training ↑",
    "training_largest_batch_throughput": "throughput at it, training ↑",
}


def results(folder: Path, entries: list[Entry]) -> Group:
    """One line per case with what its record holds, an accuracy in percent; reasons for what is missing stand below."""
    rows, reasons = [], {}
    for entry in entries:
        try:
            record = read_record(folder / f"{case_id(entry.case)}.json")
        except RecordError:
            rows.append((entry.case.row, {}))
            continue
        rows.append((entry.case.row, record.measurements))
        for measurement in record.measurements.values():
            if measurement.missing:
                reasons[f"{entry.case.row}: {measurement.missing}"] = None
    trained = accuracy.sorted_names(one for _, measurements in rows for one in measurements.values())
    shown = [name for name in (*COLUMNS, *trained) if any(name in measurements for _, measurements in rows)]
    title = {"latency": ": median [95 % interval]"} | dict.fromkeys(trained, ": mean [95 % interval]")
    said = next((title[name] for name in ("latency", *trained) if name in shown), "")
    table = Table(title=Text(folder.name + said), title_justify="left")
    table.add_column("row", overflow="fold")
    for name in shown:
        table.add_column(
            COLUMNS.get(name) or _heading(name, [m for _, one in rows if (m := one.get(name))]), justify="right"
        )
    for row, measurements in rows:
        table.add_row(Text(row), *(Text(human(measurements.get(name))) for name in shown))
    return Group(table, *(Text(f"  — {reason}") for reason in reasons), *_orderings(folder, trained))


def _orderings(folder: Path, trained: list[str]) -> list[Text]:
    """What became of the paper's order, by each accuracy."""
    if not trained:
        return []
    try:
        found = reports.table.load(folder)
    except (RecordError, PaperTableError):  # the report, made from the same files, says what is wrong
        return []
    return [Text(f"  {line}") for name in trained if (line := accuracy.summary(found, name))]


def _heading(name: str, measured: list[Measurement]) -> str:
    """What an accuracy is of: its data, its budget, and how small clip and model were."""
    details = next((one.details for one in measured), {})
    parts = [*([details["data"]] if "data" in details else []), accuracy.budget(name)]
    if {"frames", "size"} <= details.keys():
        parts.append(f"{details['frames']}x{details['size']}x{details['size']}")
    if details.get("width_factor", 1) != 1:
        parts.append(f"width factor {details['width_factor']:g}")
    return f"top-1 ↑ ({', '.join(parts)})"
