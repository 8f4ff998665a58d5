"""Power first: what a sweep of trainings can tell, said before it starts, and how many seeds a difference takes.

The number of seeds is settled before the first training and not while results come in: a test that is repeated until it
finds something finds it by chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from harness.accuracy.setup import QUICK_STEPS, Setup
from harness.spec.case import Entry
from harness.spec.names import AUTO
from harness.spec.reader import UsageError
from records import power
from records.record import Measurement, Record
from records.visits import by_seed

DIFFERENCE = 3.0  # percentage points that seeds=auto tells where none are said
FEWEST = 3  # seeds: with two, a difference has to be ten times the spread


@dataclass(frozen=True)
class Spread:
    """How much differences to the baseline vary over seeds, in percentage points; and seconds of a training."""

    points: float | None
    source: str
    seconds: float | None
    videos: int | None
    recorded: str = ""  # what the default row came to over more seeds, in words


def spread(setup: Setup, entries: Sequence[Entry], read: Callable[[Entry], Record | None]) -> Spread:
    """From the records of the rows, where two of them have two seeds in common; else what the budget's file holds.

    The difference of two rows that vary alike and by themselves varies by the root of two more than one row.
    """
    of_rows = {
        entry.case.row: measured
        for entry in entries
        if (record := read(entry)) and (measured := record.get(setup.measurement)) and measured.samples
    }
    recorded = setup.recorded
    seconds = [second for measured in of_rows.values() for second in by_seed(measured, "seconds").values()]
    of_videos = [n for measured in of_rows.values() if (n := measured.details.get("videos"))]
    videos = of_videos[0] if of_videos else recorded.get("videos")
    least = 100 / videos / math.sqrt(12) if videos else 0.0
    points, source = power.pooled(_differences(entries, of_rows), least), "of its records"
    if points is None and "spread" in recorded:
        points, source = recorded["spread"] * math.sqrt(2), f"as recorded for accuracy={setup.budget.name}"
        if setup.ablation in setup.budget.differences:
            points, source = setup.budget.differences[setup.ablation], f"as recorded for {setup.ablation}"
    return Spread(
        points, source, median(seconds) if seconds else recorded.get("seconds"), int(videos) if videos else None,
        power.recorded_words(recorded),
    )  # fmt: skip


def _differences(entries: Sequence[Entry], of_rows: dict[str, Measurement]) -> list[list[float]]:
    differences = []
    for entry in entries:
        ours, base = (by_seed(of_rows.get(name)) for name in (entry.case.row, entry.baseline))
        if entry.case.row != entry.baseline:
            differences.append([ours[seed] - base[seed] for seed in ours if seed in base])
    return differences


def settled(
    setup: Setup, entries: Sequence[Entry], read: Callable[[Entry], Record | None], slots: int
) -> tuple[Setup, str]:
    """The setup with its seeds as numbers, and in words what they can tell.

    Raises: UsageError, where seeds=auto has nothing to go by.
    """
    asked, varies, tests = setup.training, spread(setup, entries, read), max(1, len(entries) - 1)
    if asked.within is not None and AUTO not in (asked.seeds, asked.epochs):
        raise UsageError("within goes with seeds=auto or epochs=auto; leave it out, or add one of them")
    if setup.quick:
        seeds = (0,) if asked.seeds in (None, AUTO) else asked.seeds
        told = f"quick mode: {QUICK_STEPS} steps of each training; its accuracy says that it runs, and nothing else"
        return replace(setup, training=replace(asked, seeds=seeds)), told
    if asked.seeds != AUTO:
        seeds = asked.seeds or setup.budget.seeds
        minutes = asked.within and asked.within * slots / (len(seeds) * len(entries))  # of each training
        setup = replace(setup, training=replace(asked, seeds=seeds), minutes=minutes)
        return setup, _told(varies, len(seeds), tests, "")
    if asked.epochs == AUTO:
        raise UsageError("seeds=auto and epochs=auto: the time of a training is not known; give one as a number")
    if varies.points is None:
        raise UsageError(
            f"seeds=auto: no record says how much accuracy={setup.budget.name} on {setup.data_name} varies over seeds; "
            "train with seeds=[0,1,2] first"
        )
    wanted = asked.difference or DIFFERENCE
    needed = power.seeds_for(wanted, varies.points, tests)
    count, why = max(FEWEST, needed or power.MOST), ""
    if asked.within is not None:
        if varies.seconds is None:
            raise UsageError("within: no record says how long a training takes; train with seeds=[0,1,2] first")
        most = int(60 * asked.within * slots / (varies.seconds * len(entries)))
        if most < FEWEST:
            least = math.ceil(FEWEST * varies.seconds * len(entries) / slots / 60)
            raise UsageError(
                f"within={asked.within:g} minutes is too little for {FEWEST} seeds of {len(entries)} rows of about "
                f"{varies.seconds:.0f} s; give within={least} or more"
            )
        if most < count:
            count, why = (
                most,
                f"; within={asked.within:g} minutes allows no more, {wanted:g} points take {needed or '?'}",
            )
    elif needed is None:
        raise UsageError(
            f"difference={wanted:g} takes more than {power.MOST} seeds at a spread of {varies.points:.1f} points; "
            "give a larger one, or within=MINUTES"
        )
    return replace(setup, training=replace(asked, seeds=tuple(range(count)))), _told(varies, count, tests, why)


def _told(varies: Spread, seeds: int, tests: int, why: str) -> str:
    if varies.points is None:
        return f"power: {seeds} seed{'s' * (seeds > 1)}; no record says by how much accuracies vary over seeds{why}"
    videos = f" on {varies.videos} test videos (one is {100 / varies.videos:.2g} points)" if varies.videos else ""
    if seeds < 2:
        return (
            f"power: one seed{videos} tells no difference; seeds=auto takes as many as {DIFFERENCE:g} points need{why}"
        )
    told = power.smallest_difference(varies.points, seeds, tests)
    rows = f"{tests} rows" if tests > 1 else "one row"
    return (
        f"power: {seeds} seeds{videos} tell {told:.1f} points apart, {100 * power.POWER:.0f} times of 100 ({rows} "
        f"against the baseline, p < {power.SIGNIFICANT:g} after Holm; differences vary by {varies.points:.1f} points "
        f"over seeds, {varies.source}){why}" + (f"; {varies.recorded}" if varies.recorded else "")
    )
