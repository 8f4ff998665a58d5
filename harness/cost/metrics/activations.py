"""How many numbers the linear maps, convolutions and products of attention of one view write, exactly.

The third count beside parameters and multiply-adds: where memory is the limit, time follows it more closely than it
follows multiply-adds (Radosavovic et al., arXiv:2003.13678, Sec. 3.2). By fvcore's rule, as timm prints it.
"""

from __future__ import annotations

from harness.cost.count import by_stage
from harness.cost.metrics import register
from harness.spec.case import Case
from records.record import Measurement, Quantity

ACTIVATIONS = Quantity("activations", "counted", "activations", "count", "lower")


@register("activations", ACTIVATIONS, order=3)
def activations(case: Case) -> list[Measurement]:
    """On the meta device with the reference kernel, classifier included; by stage, with the multiply-adds, in the
    details.
    """
    written, macs = by_stage(case)
    details = {
        "counter": "numbers written by the operators that FlopCounterMode counts, on the meta device, kernel reference",
        "by_stage": written,
        "macs_by_stage": macs,
    }
    return [ACTIVATIONS.of([sum(written.values())], details)]
