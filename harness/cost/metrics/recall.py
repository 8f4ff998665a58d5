"""Two of the six questions of the probes alone, recall in space and in time: what a dial of a scheme does to how far it
sees, in a third of the trainings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.cost.metrics import register
from harness.cost.metrics.probes import PROBES, probed, quick

if TYPE_CHECKING:
    from harness.cost.workload import Workload
    from records.record import Measurement

NAMES = ("space", "time")


@register("recall", *(PROBES[name] for name in NAMES), timed=True, process="recall")
def recall(workload: Workload) -> list[Measurement]:
    """As `probes` measures them; quick mode, which only shows that all works, trains for a moment."""
    from harness.probes.train import FULL, Effort

    return probed(workload, NAMES, Effort(steps=50, batch=16, tested=64) if quick(workload) else FULL)
