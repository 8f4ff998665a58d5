"""Multiply-adds of one view, as an exact integer, and the normalised elements that some papers add to them."""

from __future__ import annotations

from harness.cost.metrics import register
from harness.spec.case import Case
from records.record import Measurement

MEASURES = {
    "macs": ("MAC", "lower"),
    "macs_with_classifier": ("MAC", "lower"),
    "layernorm_elements": ("elements", "none"),
    "batchnorm_elements": ("elements", "none"),
}


@register("macs", MEASURES, order=1)
def macs(case: Case) -> list[Measurement]:
    """Counted on the meta device with the reference kernel and compared with the closed form `model.macs()`.

    Norms, softmax, activations and pooling count as 0 here.

    Raises: CountError, when the two counts differ.
    """
    from harness.cost.count import count

    counted = count(case)
    samples = {
        "macs": counted.macs,
        "macs_with_classifier": counted.macs + counted.classifier_macs,
        "layernorm_elements": counted.layernorm_elements,
        "batchnorm_elements": counted.batchnorm_elements,
    }
    details = {
        "counter": "FlopCounterMode / 2 on the meta device, kernel reference",
        "closed_form": counted.closed_form,
    }
    return [
        Measurement(name, unit, better, (samples[name],), details=details if unit == "MAC" else {})
        for name, (unit, better) in MEASURES.items()
    ]
