"""Where the time, the multiply-adds and the memory of each row go, stage by stage: a stage is the blocks of one map."""

from functools import partial

from reports.statistics import medians
from reports.table import AblationTable, Row
from reports.text import MISSING, ROW, Columns, significant, tables

SAID = (
    "A stage is the blocks on maps of one size, with the embedding that makes the map; rest is what lies outside of "
    "them. Time is of passes of their own, for its shares; memory is the most that the process held in each stage "
    "above what it held before the pass. Activations are the numbers that linear maps, convolutions and the products "
    "of attention write, by fvcore's rule, as timm prints them."
)
PARTS = {  # title: the measurement, its detail, and whether shares of the whole are meant
    "% of time": ("stage_time", "parts_ms", True),
    "% of multiply-adds": ("activations", "macs_by_stage", True),
    "% of activations": ("activations", "by_stage", True),
    "MiB": ("stage_time", "peak_bytes", False),
}


def section(table: AblationTable) -> str:
    """The shares of every row by stage; empty where no metric took a model apart so."""
    blocks = [_columns(table, *part) for part in PARTS.items()]
    rows = [row for row in table.rows if not row.missing]
    parts = tables(rows, ROW, [block for block in blocks if block])
    return "\n\n".join(["### Stage by stage", *parts, SAID]) if parts else ""


def _columns(table: AblationTable, title: str, part: tuple[str, str, bool]) -> Columns:
    name, detail, share = part
    visits = {row.name: m.said(detail) if (m := row.measurement(name)) else [] for row in table.rows}
    by_row = {row: medians(of_row) for row, of_row in visits.items()}
    stages = dict.fromkeys(stage for parts in by_row.values() for stage in parts)
    return [(f"{stage}, {title}", partial(_cell, by_row, stage, share)) for stage in stages]


def _cell(by_row: dict[str, dict[str, float]], stage: str, share: bool, row: Row) -> str:
    parts = by_row[row.name]
    if stage not in parts or (share and not sum(parts.values())):
        return MISSING
    return f"{100 * parts[stage] / sum(parts.values()):.0f}" if share else significant(parts[stage] / 2**20)
