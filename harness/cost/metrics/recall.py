"""Two of the six questions of the probes alone, recall in space and in time: what a dial of a scheme does to how far it
sees, in a third of the trainings.
"""

from __future__ import annotations

from harness.cost.metrics import register
from harness.cost.metrics.probes import PROBES, predicted, probed
from harness.cost.workload import Workload
from harness.probes.train import FULL, QUICK
from records.record import Measurement

NAMES = ("space", "time")


def _seconds(quick: bool) -> float:
    return predicted(len(NAMES), (QUICK if quick else FULL).maps)


@register("recall", *(PROBES[name] for name in NAMES), timed=True, process="recall", seconds=_seconds)
def recall(workload: Workload) -> list[Measurement]:
    """As `probes` measures them."""
    return probed(workload, NAMES, QUICK if workload.effort.quick else FULL)
