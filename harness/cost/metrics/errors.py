"""How far a case's result and its gradients are from the reference in float64 (harness/cost/errors.py); unit: 1.

A case on another kernel than the reference is not timed where its error is beyond the tolerance: these are measured
before its times, asked for or not.
"""

from __future__ import annotations

import math

from harness.cost import errors
from harness.cost.metrics import register
from harness.cost.workload import Workload
from records.record import Measurement, Quantity

FORWARD = Quantity("forward_error", "counted", "forward error", "of the largest value", "lower")
BACKWARD = Quantity("backward_error", "counted", "backward error", "of the largest value", "lower")
OF_A_CASE = {"timed": True, "process": "errors", "once": True}


@register("forward_error", FORWARD, order=0, **OF_A_CASE)
def forward_error(workload: Workload) -> list[Measurement]:
    """Largest difference of the class scores over the largest score, of the case in miniature."""
    return _measured(workload, FORWARD)


@register("backward_error", BACKWARD, order=1, **OF_A_CASE)
def backward_error(workload: Workload) -> list[Measurement]:
    """The same of the gradient of clip or weight that is furthest off, its largest value as the measure.

    Raises: KernelUnavailable, where the case's kernel has no backward pass.
    """
    return _measured(workload, BACKWARD)


def _measured(workload: Workload, quantity: Quantity) -> list[Measurement]:
    error, tensor = errors.measured(workload.case, backward=quantity is BACKWARD)
    tolerance = errors.TOLERANCE[quantity.name][workload.case.dtype]
    details = {
        "of": tensor,
        "tolerance": tolerance,
        "how": "eager model in miniature, largest difference to kernel reference in float64 over the largest value",
        **workload.what_ran(),
    }
    if not error <= tolerance and math.isfinite(error) and errors.may_choose_others(workload.case):
        details["holds"] = (
            "in 16 bits a rounded score may choose other blocks than in float64, which is no wrong result"
        )
    elif not error <= tolerance:
        details["wrong"] = True
    if not math.isfinite(error):
        reason = f"{tensor} are not finite" if tensor == "scores" else f"the gradient of {tensor} is not finite"
        return [quantity.absent(reason, details=details)]
    return [quantity.of([error], details)]
