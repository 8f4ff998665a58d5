"""Exact counts of a case: parameters, multiply-adds and normalised elements, from a model without memory or arithmetic.

The model is built and run on the meta device with the reference kernel: fused attention hides its products from
counters on some devices, and shapes alone cost no memory however long the clip. The count must equal the closed form
that every scheme and backbone states; two counters that disagree are an error.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from harness.cost.build import build, example
from harness.cost.operators import macs_by_group
from harness.cost.stages import REST, stages_of
from harness.spec.case import Case
from records.record import canonical

aten = torch.ops.aten
LAYERNORM = {aten.native_layer_norm}
BATCHNORM = {aten.native_batch_norm, aten._native_batch_norm_legit_no_training}


class CountError(AssertionError):
    """Two counts of the same thing differ; the message holds both."""


@dataclass(frozen=True)
class Count:
    """Of one view of one clip, without the classifier but where a field says otherwise.

    `by_group` are the multiply-adds, classifier included, by the groups of `records.groups`: parts that some papers
    leave out, or count alone. Empty where a model shows no blocks, as public code does.
    """

    params: int
    classifier_params: int
    macs: int
    classifier_macs: int
    closed_form: int
    layernorm_elements: int
    batchnorm_elements: int
    by_group: dict[str, int]


_counts: dict[str, Count] = {}  # equal models occur in many tables of one run


def count(case: Case) -> Count:
    """Raises: CountError, when the counter and the closed form differ."""
    key = canonical([case.config, case.num_classes, case.clip.frames, case.clip.size])
    if key not in _counts:
        _counts[key] = _count(case)
    return _counts[key]


def _count(case: Case) -> Count:
    model = build(case, device="meta", kernel="reference")
    model.requires_grad_(False)  # the counter follows gradients into modules, and fails on a parameter handed to one
    classifier = model.classifier
    counts = _operations(model, example(case, batch_size=1))
    total, norms = counts["Global"], LAYERNORM | BATCHNORM
    products = {path: {op: n for op, n in operations.items() if op not in norms} for path, operations in counts.items()}
    linear = next((part for part in classifier.modules() if isinstance(part, nn.Linear)), None)
    last = (
        {} if linear is None else _operations(classifier, torch.empty(1, linear.in_features, device="meta"))["Global"]
    )
    everything, in_classifier = _macs(total), _macs(last)
    for name, counted, closed in (
        ("with classifier", everything, model.macs(classifier=True)),
        ("without classifier", everything - in_classifier, model.macs(classifier=False)),
    ):
        if counted != closed:
            raise CountError(
                f"multiply-adds {name}: the counter says {counted}, the closed form macs() says {closed} "
                f"(difference {counted - closed}); one of the two is wrong, so neither is reported"
            )
    classifier_params = sum(p.numel() for p in classifier.parameters())
    return Count(
        params=sum(p.numel() for p in model.parameters()) - classifier_params,
        classifier_params=classifier_params,
        macs=everything - in_classifier,
        classifier_macs=in_classifier,
        closed_form=model.macs(classifier=False),
        layernorm_elements=sum(total.get(op, 0) for op in LAYERNORM),
        batchnorm_elements=sum(total.get(op, 0) for op in BATCHNORM),
        by_group=macs_by_group(model, products) if model.blocks() else {},
    )


def by_stage(case: Case) -> tuple[dict[str, int], dict[str, int]]:
    """Of one view, classifier included, the numbers written and the multiply-adds of each stage and of the rest."""
    model = build(case, device="meta", kernel="reference").requires_grad_(False)
    stages, clip, top = stages_of(model), example(case, batch_size=1), type(model).__name__
    halves = []
    for rules in (dict.fromkeys(flop_registry, _written), {}):
        counts = {path: sum(operators.values()) for path, operators in _counted(model, clip, rules).items()}
        parts = {stage: sum(counts.get(f"{top}.{name}", 0) for name in names) for stage, names in stages.items()}
        halves.append(parts | {REST: counts["Global"] - sum(parts.values())})
    written, doubled = halves
    return written, {stage: number // 2 for stage, number in doubled.items()}


def _written(*args, out_shape=None, **kwargs) -> int:
    """The elements of what an operator writes; of several tensors the first, as of fused attention."""
    return torch.Size(out_shape if isinstance(out_shape[0], int) else out_shape[0]).numel()


def _operations(model: nn.Module, x: torch.Tensor) -> dict:
    """By module, what each operator of a forward pass counts: twice the multiply-adds, or what a norm reads."""

    def elements(shape, *args, out_shape=None, **kwargs) -> int:
        return shape.numel() if isinstance(shape, torch.Size) else torch.Size(shape).numel()

    return _counted(model, x, dict.fromkeys(LAYERNORM | BATCHNORM, elements))


def _counted(model: nn.Module, x: torch.Tensor, rules: dict) -> dict:
    """By module, what the rules make of each operator of a forward pass; without one, its floating-point operations."""
    counter = FlopCounterMode(display=False, custom_mapping=rules)
    with torch.no_grad(), counter:
        model(x)
    return counter.get_flop_counts()


def _macs(operations: dict) -> int:
    doubled = sum(value for op, value in operations.items() if op not in LAYERNORM | BATCHNORM)
    assert doubled % 2 == 0, "a counter of floating-point operations counts multiply and add separately"
    return doubled // 2
