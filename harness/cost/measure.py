"""`measure(case, metrics)`: counted metrics here and now, timed ones in a process of their own, every absence with its
reason.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import attention_zoo
import backbones
from attention_zoo import laws
from harness.cost import child, errors, metrics, process
from harness.deadline import Deadline
from harness.spec.case import Case
from harness.spec.effort import CPU, Effort
from records import provenance
from records.record import Measurement

OUT_OF_MEMORY = ("bad_alloc", "allocate memory")  # in the last words of a process that could not go on


def measure(
    case: Case,
    names: list[str],
    clip: str | Path | None = None,
    *,
    effort: Effort = CPU,
    time_limit: float = 900,
    deadline: Deadline | None = None,
    round: int = 1,
) -> list[Measurement]:
    """The measurements of some metrics for one case.

    `clip` is a file of decoded frames (`numpy.save`, uint8 `t h w 3`) and needed by timed metrics only. `time_limit` is
    in seconds, for all timed metrics of the case that share a process; near a `deadline` a process gets less. `round`
    is the number of this visit, by which a metric that draws at random tells its visits apart.
    """
    chosen = [metrics.get(name) for name in names]
    measured = []
    for metric in chosen:
        if not metric.timed:
            try:
                measured += metric.run(case)
            except NotImplementedError as error:  # such as public code that is not installed: no try mends it
                measured += metric.missing(child.unsupported(error), retry=False)
            except Exception as error:  # one case that fails must not end the run; the exit status tells
                measured += metric.missing(f"{type(error).__name__}: {error}", retry=True)
    law = outlaw(case) if any(metric.timed for metric in chosen) else None
    for timed in metrics.by_process(metric for metric in chosen if metric.timed):
        if law is not None:
            measured += [m for metric in timed for m in metric.missing(law, retry=False)]
            continue
        assert clip is not None, "timed metrics need a clip"
        limit = deadline.limit(time_limit) if deadline else time_limit
        checked = _errors(case, timed[0].process, Path(clip), effort, limit)
        wrong = errors.why_wrong(checked)
        if wrong:
            machine = {"machine": provenance.machine(case.device), "wrong": True}
            measured += [m for metric in timed for m in metric.missing(wrong, retry=False, details=machine)]
            continue
        error_values = {measurement.name: measurement.value for measurement in checked if measurement.samples}
        results = _in_child(case, timed, Path(clip), effort, limit, round)
        measured += [replace(measurement, details={**error_values, **measurement.details}) for measurement in results]
    return measured


def outlaw(case: Case) -> str | None:
    """The law that a scheme of another package in this case breaks; such a scheme is a row with that reason."""
    for name in backbones.read_config(case.config).schemes():
        ours = attention_zoo.schemes.get(name).__module__.startswith("attention_zoo.")
        why = None if ours else _law(name)
        if why is not None:
            return f"not timed: {why}"
    return None


_law = cache(laws.check)  # of a scheme once in a run
_checked: dict[str, Measurement] = {}  # in this run; many cases are one in miniature


def _errors(case: Case, process: str, clip: Path, effort: Effort, time_limit: float) -> list[Measurement]:
    """The errors that must be known before a case is timed in such a process, measured where they are not known yet."""
    names = {name: f"{name} {errors.key(case)}" for name in errors.needed(case, process)}
    for name, key in names.items():
        if key not in _checked:
            (error,) = _in_child(case, [metrics.get(name)], clip, effort, time_limit)
            if error.retry:  # what keeps it from being computed keeps its times away too, with the same reason
                return []
            _checked[key] = error
    return [_checked[key] for key in names.values()]


def _in_child(
    case: Case, timed: list[metrics.Metric], clip: Path, effort: Effort, time_limit: float, round: int = 1
) -> list[Measurement]:
    """Have a process measure, and turn whatever happens to it into measurements.

    One that ends well before all is answered met an error that would have reached the metrics after it: another takes
    these.
    """
    machine = provenance.machine(case.device)
    answered: dict[str, list[Measurement]] = {}
    failure, end = None, time.monotonic() + time_limit
    while failure is None and (names := [metric.name for metric in timed if metric.name not in answered]):
        remaining = max(0.0, end - time.monotonic()) if answered else time_limit
        request = child.Request(case, names, str(clip.absolute()), effort, machine, remaining, round)
        answers, failure = process.run(child.answer, (request,), remaining)
        answered |= answers
        if not answers:
            break
    reason = failure or "the measuring process ended without an answer"
    out_of_memory = any(sign in reason for sign in OUT_OF_MEMORY)
    if out_of_memory:
        reason = f"out of memory: {reason}"
    measured = []
    for metric in timed:
        measured += answered.get(metric.name) or metric.missing(
            reason, retry=not out_of_memory, details={"machine": machine}
        )
    return measured
