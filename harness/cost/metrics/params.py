"""Parameters of a model, as exact integers: with and without its classifier, and those that learn where the rest is
frozen (`trainable=`), classifier included.
"""

from __future__ import annotations

import backbones
from harness.cost.build import build
from harness.cost.count import count
from harness.cost.metrics import register
from harness.spec.case import Case
from records.record import Measurement, Quantity

PARAMS = Quantity("params", "counted", "parameters", "count", "lower")
WITH_CLASSIFIER = Quantity("params_with_classifier", "counted", "parameters with classifier", "count")
TRAINABLE = Quantity("trainable_params", "counted", "trainable parameters", "count", "lower")


@register("params", PARAMS, WITH_CLASSIFIER)
def params(case: Case) -> list[Measurement]:
    """Counted on the meta device, so that no weights are drawn; the sizes of the model's stages are details."""
    counted = count(case)
    sizes = backbones.read_config(case.config).sizes()
    return [
        PARAMS.of([counted.params], {"sizes": sizes}),
        WITH_CLASSIFIER.of([counted.params + counted.classifier_params]),
    ]


@register("trainable_params", TRAINABLE)
def trainable_params(case: Case) -> list[Measurement]:
    """Likewise; all parameters and the part that learns are details."""
    parameters = list(build(case, device="meta", kernel="reference").parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return [TRAINABLE.of([trained], {"all": sum(p.numel() for p in parameters), "part": case.trainable})]
