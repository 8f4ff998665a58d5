"""The multiply-adds of one view by what they belong to, as exact integers; beside `operator_share`, their time."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from harness.cost.build import build, example
from harness.cost.metrics import register
from harness.cost.operators import macs_by_group
from harness.spec.case import Case
from records.groups import WITH_PRODUCTS
from records.record import Measurement, Quantity

MEASURES = {group: Quantity(f"macs_{group}", "counted", f"multiply-adds in {group}", "MAC") for group in WITH_PRODUCTS}


@register("operator_macs", *MEASURES.values(), order=2)
def operator_macs(case: Case) -> list[Measurement]:
    """Of one view, classifier included (it is the whole of the rest); the groups sum to `macs_with_classifier`."""
    counted = split(case)
    assert set(counted) <= set(WITH_PRODUCTS), (
        f"multiply-adds in {sorted(set(counted) - set(WITH_PRODUCTS))}, which should hold none"
    )
    details = {"counter": "FlopCounterMode / 2 by module on the meta device, kernel reference"}
    return [quantity.of([counted.get(group, 0)], details) for group, quantity in MEASURES.items()]


def split(case: Case) -> dict[str, int]:
    """Multiply-adds by group."""
    model = build(case, device="meta", kernel="reference").requires_grad_(False)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(example(case, batch_size=1))
    return macs_by_group(model, counter.get_flop_counts())
