"""Multiply-adds of one view, as an exact integer, and the parts that some papers add or leave out."""

from __future__ import annotations

from harness.cost.count import count
from harness.cost.metrics import register
from harness.spec.case import Case
from records.record import Measurement, Quantity

MACS = Quantity("macs", "counted", "multiply-adds", "MAC", "lower")
MACS_WITH_CLASSIFIER = Quantity("macs_with_classifier", "counted", "multiply-adds with classifier", "MAC")
LAYERNORM = Quantity("layernorm_elements", "counted", "LayerNorm elements", "elements")
BATCHNORM = Quantity("batchnorm_elements", "counted", "BatchNorm elements", "elements")
ATTENTION = Quantity("attention_products", "counted", "multiply-adds of attention's products", "MAC")
MLPS = Quantity("mlp_macs", "counted", "multiply-adds of the MLPs", "MAC")


@register("macs", MACS, MACS_WITH_CLASSIFIER, LAYERNORM, BATCHNORM, ATTENTION, MLPS, order=1)
def macs(case: Case) -> list[Measurement]:
    """Counted on the meta device with the reference kernel and compared with the closed form `model.macs()`.

    Norms, softmax, activations and pooling count as 0 here.

    Raises: CountError, when the two counts differ.
    """
    counted = count(case)
    attention, mlp, projections = (counted.by_group.get(group, 0) for group in ("attention", "mlp", "projections"))
    details = {
        "counter": "FlopCounterMode / 2 on the meta device, kernel reference",
        "closed_form": counted.closed_form,
        # Not a quantity of its own: records of before would be incomplete for want of it.
        "linear_maps": mlp + projections,
    }
    return [
        MACS.of([counted.macs], details),
        MACS_WITH_CLASSIFIER.of([counted.macs + counted.classifier_macs], details),
        LAYERNORM.of([counted.layernorm_elements]),
        BATCHNORM.of([counted.batchnorm_elements]),
        ATTENTION.of([attention]),
        MLPS.of([mlp]),
    ]
