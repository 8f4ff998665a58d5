"""Trainable parameters of a model, as an exact integer, with and without its classifier."""

from __future__ import annotations

from harness.cost.metrics import register
from harness.spec.case import Case
from records.record import Measurement


@register("params", {"params": ("count", "lower"), "params_with_classifier": ("count", "lower")})
def params(case: Case) -> list[Measurement]:
    """Counted on the meta device, so that no weights are drawn."""
    from harness.cost.count import count

    counted = count(case)
    return [
        Measurement("params", "count", "lower", (counted.params,)),
        Measurement("params_with_classifier", "count", "lower", (counted.params + counted.classifier_params,)),
    ]
