"""Parameters that learn where the rest of a model is frozen (`trainable=`), an exact integer, classifier included."""

from __future__ import annotations

from harness.cost.build import build
from harness.cost.metrics import register
from harness.spec.case import Case
from records.record import Measurement, Quantity

TRAINABLE = Quantity("trainable_params", "counted", "trainable parameters", "count", "lower")


@register("trainable_params", TRAINABLE)
def trainable_params(case: Case) -> list[Measurement]:
    """Counted on the meta device, so that no weights are drawn."""
    model = build(case, device="meta", kernel="reference")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return [TRAINABLE.of([trained], {"all": sum(p.numel() for p in model.parameters()), "part": case.trainable})]
