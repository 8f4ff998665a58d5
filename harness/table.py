"""The short table that a run prints at its end."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from harness.case import Entry, case_id
from harness.progress import human
from reports.record import RecordError, read_record

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
    """One line per case with what its record holds; reasons for what is missing stand below."""
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
    shown = [name for name in COLUMNS if any(name in measurements for _, measurements in rows)]
    table = Table(
        title=Text(folder.name + (": median [95 % interval]" if "latency" in shown else "")), title_justify="left"
    )
    table.add_column("row", overflow="fold")
    for name in shown:
        table.add_column(COLUMNS[name], justify="right")
    for row, measurements in rows:
        table.add_row(Text(row), *(Text(human(measurements.get(name))) for name in shown))
    return Group(table, *(Text(f"  — {reason}") for reason in reasons))
