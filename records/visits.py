"""Rounds of a measurement: which are there, which are left, and how one more joins the others.

A round visits every case of an ablation once, each in a process of its own, so that a drift of the machine hits all
rows alike and the variation between processes is inside the samples. A detail stands with the measurement where all
visits share it, else with each visit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from records import provenance
from records.record import Measurement, Visit

ROUNDS, QUICK_ROUNDS = 5, 1
OUTDATED = "outdated"  # the detail that says why
OF_A_VISIT = (
    "started", "measured", "warm_up", "settled", "compile_seconds", "parts_ms", "beside", "disturbed", "load",
)  # fmt: skip


def order(entries: list, number: int) -> list:
    """The cases in the order in which round `number` (from 1) visits them: every second round goes backwards."""
    return list(entries) if number % 2 else list(reversed(entries))


def taken(measurement: Measurement | None) -> set[int]:
    """The rounds that have samples."""
    return {visit.round for visit in measurement.visits} if measurement else set()


def complete(measurement: Measurement | None) -> bool:
    """Whether nothing more was wanted of it: all rounds are there, or its absence is the result."""
    if measurement is None or (measurement.missing and measurement.retry):
        return False
    return bool(measurement.missing) or len(taken(measurement)) >= measurement.rounds_wanted


def left(measurement: Measurement | None, rounds: int) -> set[int]:
    """The rounds to be measured for `rounds` of them in all."""
    if measurement is not None and measurement.missing and not measurement.retry:
        return set()
    return set(range(1, rounds + 1)) - taken(measurement)


def continues(measurement: Measurement | None, machine: str, source: dict[str, Any]) -> bool:
    """Whether more rounds may join these samples: they must come from the same machine and the same code.

    `source` is the provenance of the run that would add them. A commit does not say what the code of a checkout with
    local changes was, and nothing says it where the commit is unknown, so only the run that began goes on there. The
    name of a machine does not tell processors of one family apart; their generation does, where samples have it.
    """
    if measurement is None or not measurement.samples:
        return False
    if (measurement.said("machine"), measurement.said("commit")) != ([machine], [source["commit"]]):
        return False
    if any(generation != source["cpu_generation"] for generation in measurement.said("cpu_generation")):
        return False
    reproducible = source["commit"] != provenance.UNKNOWN and not (any(measurement.said("dirty")) or source["dirty"])
    return reproducible or {visit.run for visit in measurement.visits} == {source["run"]}


def outdated(measurement: Measurement, why: str) -> Measurement:
    """Samples of a model that this code does not make any more: they stay, marked, until they are measured again."""
    return replace(measurement, details={**measurement.details, OUTDATED: why})


def stamped(measurement: Measurement, source: dict[str, Any], time: str) -> Measurement:
    """A measurement that says which run took it, when, and by which code."""
    stamp = {name: source[name] for name in ("commit", "dirty", "cpu_generation")}
    visits = tuple(replace(visit, run=source["run"]) for visit in measurement.visits)
    return replace(measurement, visits=visits, details={**stamp, "measured": time, **measurement.details})


def joined(old: Measurement | None, new: Measurement, number: int, rounds: int) -> Measurement:
    """`old` with what round `number` gave, be it samples or the reason for having none."""
    if old is None or not old.samples:
        shared = {key: value for key, value in new.details.items() if not (new.samples and key in OF_A_VISIT)}
        return replace(new, visits=_apart(new, shared, number), rounds_wanted=rounds, details=shared)
    failed = {key: why for key, why in old.failed_rounds.items() if key != str(number)}
    if new.missing:
        return replace(old, rounds_wanted=rounds, failed_rounds={**failed, str(number): new.missing})
    shared = {
        key: value
        for key, value in old.details.items()
        if key not in OF_A_VISIT and key in new.details and new.details[key] == value
    }
    visits = (*_apart(old, shared), *_apart(new, shared, number))
    return replace(new, visits=visits, rounds_wanted=rounds, failed_rounds=failed, details=shared)


def _apart(measurement: Measurement, shared: dict[str, Any], number: int | None = None) -> tuple[Visit, ...]:
    """The visits with the details that are not shared."""
    unshared = {key: value for key, value in measurement.details.items() if key not in shared}
    return tuple(
        replace(visit, round=number or visit.round, details=unshared | visit.details) for visit in measurement.visits
    )


def by_seed(measured: Measurement | None, key: str | None = None) -> dict[Any, float]:
    """The samples, or what the visits say under `key`, by their seeds."""
    if measured is None:
        return {}
    values = {
        visit.details.get("seed", place): visit.samples[0] if key is None else visit.details.get(key)
        for place, visit in enumerate(measured.visits)
    }
    return {seed: value for seed, value in values.items() if value is not None}


def seed_by_seed(ours: dict[Any, float], theirs: dict[Any, float]) -> list[tuple[float, float]]:
    """What two rows have of each seed that both were trained with."""
    return [(value, theirs[seed]) for seed, value in ours.items() if seed in theirs]
