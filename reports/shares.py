"""What the operators of a row belong to: the groups in words, and how far their measured time can be trusted."""

from records.groups import GROUPS
from reports import statistics
from reports.table import AblationTable, Row
from reports.text import MISSING, Columns

SAID = (
    "Attention is scores, softmax and weighted sum, of the multiply-adds the two products alone; projections are its "
    "linear maps; convolutions are patch embeddings, position encodings and pooling of keys; movement is copies, "
    "shifts, padding and concatenation without arithmetic; rest is residual sums, the classifier and what lies between "
    "operators. The milliseconds of the groups are of profiled passes: they are there for their shares, and their "
    "total is no latency."
)


def note(table: AblationTable) -> str:
    """What the groups hold, and the rows whose profiled passes were not like the timed ones; empty without groups."""
    if not any(table.has(name) for name in ("macs_mlp", "time_mlp")):
        return ""
    floor = max(table.floor("latency") or 0, statistics.ASSUMED_FLOORS["timed"])  # another process, another pass
    both = ((row.name, row.value("time_total"), row.value("latency")) for row in table.rows)
    apart = [
        f"{name} (profiled {profiled:.0f} ms, timed {timed:.0f} ms)"
        for name, profiled, timed in both
        if profiled and timed and max(profiled / timed, timed / profiled) - 1 > floor
    ]
    rough = f"Profiled passes that took over {floor:.0%} more or less than timed ones were disturbed"
    return SAID + (f" {rough}, and their shares are rough: {'; '.join(apart)}." if apart else "")


def shares_of(row: Row, kind: str) -> dict[str, float] | None:
    """The shares of a row's multiply-adds ("macs") or time ("time") by group, or None where they were not measured."""
    values = {group: row.value(f"{kind}_{group}") or 0 for group in GROUPS}
    total = sum(values.values())
    return {group: value / total for group, value in values.items()} if total else None


def columns(table: AblationTable) -> Columns:
    """What part of the multiply-adds and of the time of each row the two largest groups have, in percent."""
    kinds = {"macs": "multiply-adds", "time": "time"}
    shown = [(kind, group) for group in ("mlp", "attention") for kind in kinds if table.has(f"{kind}_{group}")]
    return [
        (f"{GROUPS[group]}, % of {kinds[kind]}", lambda row, kind=kind, group=group: _percent(row, kind, group))
        for kind, group in shown
    ]


def _percent(row: Row, kind: str, group: str) -> str:
    parts = shares_of(row, kind)
    return f"{100 * parts[group]:.0f}" if parts else MISSING
