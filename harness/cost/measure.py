"""`measure(case, metrics)`: counted metrics here and now, timed ones in a process of their own, every absence with its
reason.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path

from harness import scratch
from harness.cost import isolation, metrics
from harness.deadline import Deadline
from harness.spec.case import Case
from records import provenance
from records.record import Measurement, write_json


@dataclass(frozen=True)
class Effort:
    """How long to sample: `samples` and `seconds` at least, but not beyond `budget` seconds once there are `fewest`."""

    samples: int = 20
    seconds: float = 3.0
    budget: float = 10.0
    fewest: int = 5
    warm_up_seconds: float = 4.0

    def split(self, rounds: int) -> Effort:
        """The effort of one of several rounds that together are this one; the warm-up is each process's own."""
        return replace(
            self,
            samples=ceil(self.samples / rounds),
            seconds=self.seconds / rounds,
            budget=self.budget / rounds,
            fewest=ceil(self.fewest / rounds),
        )

    def enough(self, samples: int, elapsed: float) -> bool:
        return (samples >= self.samples and elapsed >= self.seconds) or (
            samples >= self.fewest and elapsed >= self.budget
        )


CPU = Effort()
CUDA = Effort(samples=50, seconds=2.0, budget=30.0, fewest=10, warm_up_seconds=10.0)
QUICK = Effort(samples=3, seconds=0.0, budget=1.0, fewest=3, warm_up_seconds=0.2)


def effort_for(device: str, quick: bool) -> Effort:
    if quick:
        return QUICK
    return CUDA if device.startswith("cuda") else CPU


def measure(
    case: Case,
    names: list[str],
    clip: str | Path | None = None,
    *,
    effort: Effort = CPU,
    time_limit: float = 900,
    deadline: Deadline | None = None,
) -> list[Measurement]:
    """The measurements of some metrics for one case.

    `clip` is a file of decoded frames (`numpy.save`, uint8 `t h w 3`) and needed by timed metrics only. `time_limit` is
    in seconds, for all timed metrics of the case that share a process; near a `deadline` a process gets less.
    """
    chosen = [metrics.get(name) for name in names]
    measured = []
    for metric in chosen:
        if not metric.timed:
            try:
                measured += metric.run(case)
            except (
                Exception
            ) as error:  # a case that fails must not end the sweep; it is reported, and the exit status tells
                measured += metric.missing(f"{type(error).__name__}: {error}", retry=True)
    for timed in metrics.by_process(metric for metric in chosen if metric.timed):
        assert clip is not None, "timed metrics need a clip"
        limit = time_limit if deadline is None else deadline.limit(time_limit)
        measured += _in_child(case, timed, Path(clip), effort, limit)
    return measured


def _in_child(
    case: Case, timed: list[metrics.Metric], clip: Path, effort: Effort, time_limit: float
) -> list[Measurement]:
    """Ask `harness.cost.child` and turn whatever happens to it into measurements."""
    machine = provenance.machine(case.device)
    with scratch.folder() as folder:
        request, answer, log = (folder / name for name in ("request.json", "answer.json", "log.txt"))
        wanted = {
            "case": asdict(case),
            "clip": str(clip.absolute()),
            "metrics": [metric.name for metric in timed],
            "effort": asdict(effort),
            "machine": machine,
            "time_limit": time_limit,
        }
        write_json(wanted, request)
        failure = isolation.run(request, answer, log, time_limit)
        answered = json.loads(answer.read_text(encoding="utf-8")) if answer.exists() else {}
        last_words = _last_words(log)
    measured = []
    for metric in timed:
        if metric.name in answered:
            measured += [Measurement(**raw) for raw in answered[metric.name]]
        else:
            reason = failure or "the measuring process ended without an answer"
            if last_words and "time limit" not in reason:
                reason += f"; its last words: {last_words}"
            out_of_memory = "bad_alloc" in last_words or "allocate memory" in last_words
            if out_of_memory:
                reason = f"out of memory: {reason}"
            measured += metric.missing(reason, retry=not out_of_memory, details={"machine": machine})
    return measured


def _last_words(log: Path) -> str:
    """The last line a process wrote, without folders: records hold no path of this machine."""
    if not log.exists():  # it ended before it began
        return ""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return re.sub(r"(?:/[^\s/'\"]+)+/", "", lines[-1])[:300] if lines else ""
