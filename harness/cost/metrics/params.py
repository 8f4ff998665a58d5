"""Parameters of a model, as an exact integer, with and without its classifier."""

from __future__ import annotations

import backbones
from harness.cost.count import count
from harness.cost.metrics import register
from harness.spec.case import Case
from records.record import Measurement, Quantity

PARAMS = Quantity("params", "counted", "parameters", "count", "lower")
WITH_CLASSIFIER = Quantity("params_with_classifier", "counted", "parameters with classifier", "count")


@register("params", PARAMS, WITH_CLASSIFIER)
def params(case: Case) -> list[Measurement]:
    """Counted on the meta device, so that no weights are drawn; the sizes of the model's stages are details."""
    counted = count(case)
    sizes = backbones.read_config(case.config).sizes()
    return [
        PARAMS.of([counted.params], {"sizes": sizes}),
        WITH_CLASSIFIER.of([counted.params + counted.classifier_params]),
    ]
