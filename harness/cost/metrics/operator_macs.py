"""The multiply-adds of one view by what they belong to, as exact integers; beside `operator_share`, their time."""

from __future__ import annotations

from harness.cost.count import count
from harness.cost.metrics import register
from harness.spec.case import Case
from records.groups import WITH_PRODUCTS
from records.record import Measurement, Quantity

MEASURES = {group: Quantity(f"macs_{group}", "counted", f"multiply-adds in {group}", "MAC") for group in WITH_PRODUCTS}


@register("operator_macs", *MEASURES.values(), order=2)
def operator_macs(case: Case) -> list[Measurement]:
    """Of one view, classifier included (it is the whole of the rest); the groups sum to `macs_with_classifier`."""
    counted = count(case).by_group
    if not counted:
        return [quantity.absent("public code shows no blocks") for quantity in MEASURES.values()]
    strangers = sorted(set(counted) - set(WITH_PRODUCTS))
    assert not strangers, f"multiply-adds in {strangers}, which should hold none"
    details = {"counter": "FlopCounterMode / 2 by module on the meta device, kernel reference"}
    return [quantity.of([counted.get(group, 0)], details) for group, quantity in MEASURES.items()]
