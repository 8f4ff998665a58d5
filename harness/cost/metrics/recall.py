"""Two of the six questions of the probes alone, recall in space and in time: what a dial of a scheme does to how far it
sees, in a third of the trainings.
"""

from __future__ import annotations

from harness.cost.metrics import register
from harness.cost.metrics.probes import PROBES, predicted, probed
from harness.cost.workload import Workload
from harness.probes.train import FULL, Effort
from records.record import Measurement

NAMES = ("space", "time")


def effort(quick: bool) -> Effort:
    """In quick mode for a moment, which only shows that all works."""
    return Effort(steps=50, batch=16, tested=64) if quick else FULL


def _seconds(quick: bool) -> float:
    return predicted(len(NAMES), effort(quick).maps)


@register("recall", *(PROBES[name] for name in NAMES), timed=True, process="recall", seconds=_seconds)
def recall(workload: Workload) -> list[Measurement]:
    """As `probes` measures them."""
    return probed(workload, NAMES, effort(workload.effort.quick))
