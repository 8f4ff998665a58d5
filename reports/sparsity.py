"""What a sparse scheme gives for what it costs: recall against multiply-adds and against milliseconds, along its dial.

Multiply-adds saved are a promise, and time saved is what a machine made of it; the gap between the two is what masks,
gathers and small products take. A front holds the rows that no other beats in recall and cost at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Any

from reports import probes
from reports.accuracy import learning_words
from reports.statistics import Ratio
from reports.table import AblationTable, Row
from reports.text import MISSING, Columns, Notes, listed, sentence

NEAR = 5.0  # percentage points of recall below the baseline's, up to which a row counts as good as it
COSTS = {"macs": "multiply-adds", "latency": "milliseconds"}


@dataclass(frozen=True)
class Saved:
    """Shares of the baseline's multiply-adds and time that a row does without; less than 0 where it needs more."""

    macs: float | None = None
    ratio: Ratio | None = None  # of time

    @property
    def time(self) -> float | None:
        return None if self.ratio is None else 1 - self.ratio.interval.value

    @property
    def gap(self) -> float | None:
        """Percentage points by which the time saved stays behind the multiply-adds saved."""
        return None if self.time is None else 100 * (self.macs - self.time)


def turned(table: AblationTable) -> bool:
    """Whether rows stand along dials, with something that they are good for."""
    return bool(probes.names(table)) and any(row.dial for row in table.rows)


def gain(table: AblationTable, row: Row) -> float | None:
    """The mean accuracy of all questions that were asked of a row; None where one has no answer."""
    values = [row.value(name) for name in probes.names(table)]
    return None if None in values else fmean(values)


def saved(table: AblationTable, row: Row) -> Saved:
    base = table.baseline_of(row)
    if base is None or row.value("macs") is None or base.value("macs") is None:
        return Saved()
    ratio = table.ratio(row, "latency")
    return Saved(1 - row.value("macs") / base.value("macs"), ratio if isinstance(ratio, Ratio) else None)


def front(table: AblationTable, cost: str) -> list[Row]:
    """The rows that nothing beats, cheapest first: every other one costs more or gives no more."""
    points = [
        (row.value(cost), -value, row)
        for row in table.measured
        if (value := gain(table, row)) is not None and row.value(cost) is not None
    ]
    best: list[Row] = []
    for _, _, row in sorted(points, key=lambda point: point[:2]):
        if not best or gain(table, row) > gain(table, best[-1]):
            best.append(row)
    return best


def as_good(table: AblationTable, cost: str) -> Row | None:
    """The cheapest row with a recall near its baseline's, or above, where it costs less than that; else None."""
    for row in front(table, cost):
        base = table.baseline_of(row)
        comparable = base is not None and gain(table, base) is not None and base.value(cost) is not None
        if comparable and gain(table, row) >= gain(table, base) - NEAR:
            return row if row.value(cost) < base.value(cost) else None
    return None


def summary(table: AblationTable) -> list[str]:
    """What gives most for its multiply-adds, and what for its milliseconds; then both fronts."""
    if table.quick or not turned(table):
        return []
    words, fronts = [], []
    for cost, title in COSTS.items():
        if not (rows := front(table, cost)):
            continue
        says = f"no row gives more than the baseline: of those within {NEAR:g} points of its recall none is cheaper"
        if best := as_good(table, cost):
            base = table.baseline_of(best)
            share = 100 * (1 - best.value(cost) / base.value(cost))
            recalls = f"recall {gain(table, best):.0f} % against {gain(table, base):.0f} %"
            says = f"{best.name} gives most: {share:.0f} % less than {base.name} ({recalls})"
        words.append(f"for its {title}, {says}")
        fronts.append(f"{title}: {listed([row.name for row in rows])}")
    if not words:
        return []
    return [
        sentence("; ".join(words)),
        f"What no other row beats in recall and cost, by {'; by '.join(fronts)}.",
    ]


def _whole(points: float | None) -> str:
    """A number of points, with a minus that is no hyphen."""
    return MISSING if points is None else f"{round(points) + 0:d}".replace("-", "−")


def _recall(table: AblationTable, row: Row) -> str:
    """Recall, and what is the matter with the trainings behind it where there was something to learn."""
    measured = [row.measurement(name) for name in probes.names(table)]
    wrong = [probes.trained(m)[1] for m in measured if m and m.samples and not probes.out_of_reach(m)]
    words = ", ".join(learning_words([word for word in wrong if word]))
    return _whole(gain(table, row)) + (f": {words}" if words else "")


def _time(ratio: Ratio | None) -> str:
    """Percent of the time saved, with its interval."""
    if ratio is None:
        return MISSING
    value, low, high = (
        _whole(100 * (1 - at)) for at in (ratio.interval.value, ratio.interval.high, ratio.interval.low)
    )
    return value if ratio.once else f"{value} ({low} to {high})"


def columns(table: AblationTable, notes: Notes) -> Columns:
    """Recall, what is saved of multiply-adds and time, how far the second stays behind, and on which front a row is."""
    if not turned(table):
        return []
    fronts = {title: {row.name for row in front(table, cost)} for cost, title in COSTS.items()}
    savings = {row.name: saved(table, row) for row in table.rows}

    def macs(row: Row) -> float | None:
        share = savings[row.name].macs
        return None if share is None else 100 * share

    return [
        ("recall ↑, %", lambda row: _recall(table, row)),
        ("multiply-adds saved ↑, %", lambda row: _whole(macs(row))),
        ("time saved ↑, % (95 % interval)", lambda row: _time(savings[row.name].ratio)),
        ("gap ↓, points" + notes.mark(GAP), lambda row: _whole(savings[row.name].gap)),
        ("on the front of", lambda row: ", ".join(t for t, names in fronts.items() if row.name in names) or MISSING),
    ]


GAP = (
    "by how much the share of time saved stays behind the share of multiply-adds saved, against the baseline: what "
    "masks, gathers and small products take, which no count of multiply-adds holds"
)


def csv_row(table: AblationTable, row: Row) -> dict[str, Any]:
    """The same figures; empty where no dial is turned."""
    if not turned(table):
        return {}
    saving = saved(table, row)
    return {
        "dial": row.dial,
        "recall": gain(table, row),
        "macs_saved": saving.macs,
        "time_saved": saving.time,
        "gap_points": saving.gap,
        **{f"front_{cost}": str(row in front(table, cost)).lower() for cost in COSTS},
    }
