"""The multiply-adds of one view by what they belong to, as exact integers; beside `operator_share`, their time."""

from __future__ import annotations

from harness.cost.metrics import register
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
    """Multiply-adds by group: of each module without those of the modules inside of it."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from harness.cost.build import build, example
    from harness.cost.operators import group, groups_of

    model = build(case, device="meta", kernel="reference").requires_grad_(False)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(example(case, batch_size=1))
    counts = counter.get_flop_counts()
    top, inside, found = type(model).__name__, groups_of(model), {}
    for path, operators in counts.items():
        if path == "Global":
            continue
        outer = _outer(path, counts)
        for operator, flops in operators.items():
            for owner, sign in ((path, 1), (outer, -1)):
                if owner is not None:
                    of = group(inside[owner[len(top) :].lstrip(".")], str(operator))
                    found[of] = found.get(of, 0) + sign * flops
    assert sum(found.values()) == sum(counts["Global"].values()), "some operators ran outside of the model"
    assert all(flops % 2 == 0 for flops in found.values()), "a counter counts multiply and add separately"
    return {name: flops // 2 for name, flops in found.items() if flops}


def _outer(path: str, counts: dict) -> str | None:
    """The nearest module around `path` that was counted too."""
    while "." in path:
        path = path.rpartition(".")[0]
        if path in counts:
            return path
    return None
