"""Rounds of a timed measurement: which are there, which are left, and how one more joins the others.

A round visits every case of an ablation once, each in a process of its own, so that a drift of the machine hits all
rows alike and the variation between processes is inside the samples. A measurement keeps the samples of all its rounds
in one series; its details say which round each sample is of (`rounds`), how many rounds were wanted (`rounds_wanted`),
how each visit went and which run made it (`visits`), and why a round has no samples (`failed_rounds`). Only visits of
one run and round were made in turn with those of other cases, so only they are set against each other as pairs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from records import provenance
from records.record import Measurement

ROUNDS, QUICK_ROUNDS = 3, 1
OF_A_VISIT = ("run", "started", "measured", "warm_up", "settled", "compile_seconds", "parts_ms")


def order(entries: list, number: int) -> list:
    """The cases in the order in which round `number` (from 1) visits them: every second round goes backwards."""
    return list(entries) if number % 2 else list(reversed(entries))


def taken(measurement: Measurement | None) -> set[int]:
    """The rounds that have samples; one that names none was taken at once, and is complete."""
    if measurement is None or not measurement.samples:
        return set()
    return set(measurement.details.get("rounds", (1,)))


def complete(measurement: Measurement | None) -> bool:
    """Whether nothing more was wanted of it: all rounds are there, or its absence is the result."""
    if measurement is None or (measurement.missing and measurement.retry):
        return False
    return bool(measurement.missing) or len(taken(measurement)) >= measurement.details.get("rounds_wanted", 1)


def left(measurement: Measurement | None, wanted: int) -> set[int]:
    """The rounds to be measured for `wanted` of them in all."""
    if measurement is not None and measurement.missing and not measurement.retry:
        return set()
    if measurement is not None and measurement.samples and "rounds" not in measurement.details:
        return set()  # written before there were rounds
    return set(range(1, wanted + 1)) - taken(measurement)


def continues(measurement: Measurement | None, machine: str, source: dict[str, Any]) -> bool:
    """Whether more rounds may join these samples: they must come from the same machine and the same code.

    `source` is the provenance of the run that would add them. A commit does not say what the code of a checkout with
    local changes was, and nothing says it where the commit is unknown, so only the run that began goes on there. The
    name of a machine does not tell processors of one family apart; their generation does, where samples have it.
    """
    if measurement is None or not measurement.samples:
        return False
    details = measurement.details
    if (details.get("machine"), details.get("commit")) != (machine, source["commit"]):
        return False
    if details.get("cpu_generation", source["cpu_generation"]) != source["cpu_generation"]:
        return False
    told = source["commit"] != provenance.UNKNOWN and not (details.get("dirty") or source["dirty"])
    return told or details.get("run") == source["run"]


def joined(old: Measurement | None, new: Measurement, number: int, wanted: int) -> Measurement:
    """`old` with what round `number` gave, be it samples or the reason for having none."""
    if old is None or not old.samples:
        details = {**new.details, "rounds_wanted": wanted}
        if new.samples:
            details |= {"rounds": [number] * len(new.samples), "visits": [_visit(new, number)]}
        return replace(new, details=details)
    failed = {key: why for key, why in old.details.get("failed_rounds", {}).items() if key != str(number)}
    if new.missing:
        return replace(
            old, details={**old.details, "rounds_wanted": wanted, "failed_rounds": {**failed, str(number): new.missing}}
        )
    details: dict[str, Any] = {
        **old.details,
        **new.details,
        **{key: both for key in ("kernel", "operators") if (both := _both(old, new, key)) is not None},
        **{
            key: old.details.get(key, True) and new.details[key]
            for key in ("settled", "finite_logits", "finite_loss")
            if key in new.details
        },
        "rounds": [*old.details.get("rounds", [1] * len(old.samples)), *[number] * len(new.samples)],
        "rounds_wanted": wanted,
        "visits": [*old.details.get("visits", []), _visit(new, number)],
    }
    details.pop("failed_rounds", None)
    if failed:
        details["failed_rounds"] = failed
    return replace(new, samples=(*old.samples, *new.samples), details=details)


def _visit(measurement: Measurement, number: int) -> dict[str, Any]:
    kept = {key: measurement.details[key] for key in OF_A_VISIT if key in measurement.details}
    return {"round": number, "samples": len(measurement.samples), **kept}


def _both(old: Measurement, new: Measurement, key: str) -> Any:
    """What two rounds ran: the same, or all of it."""
    first, second = old.details.get(key), new.details.get(key)
    if first == second or first is None or second is None:
        return None
    if isinstance(first, list):
        return sorted({*first, *second})
    return " / ".join(dict.fromkeys([*str(first).split(" / "), str(second)]))
