"""Which of several ways to compute the same is fastest on this GPU: measured on the first call of each shape.

What libraries make of a depthwise 3-D convolution depends on layout, format, card and version too much to be known
before.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from attention_zoo import dispatch

REPEATS = 5
Way = Callable[..., Tensor]
_chosen: dict[tuple, str] = {}


def fastest(operation: str, ways: dict[str, Way], *inputs: Tensor | None) -> Tensor:
    """The result of one of the ways, of which the first is for whoever looks at operators, and for other devices."""
    if inputs[0].device.type != "cuda" or dispatch.observed():
        return next(iter(ways.values()))(*inputs)
    inputs = dispatch.autocast(*inputs)
    key = (operation, torch.is_grad_enabled(), *map(_kind, inputs))
    if key not in _chosen:
        times = {name: _milliseconds(way, inputs) for name, way in ways.items()}
        _chosen[key] = min(times, key=times.get)
    return ways[_chosen[key]](*inputs)


def chosen() -> dict[str, list[str]]:
    """What was chosen in this process, by what it computes."""
    return {name: sorted({way for key, way in _chosen.items() if key[0] == name}) for name, *_ in _chosen}


def _kind(x: Tensor | None) -> tuple | None:
    return None if x is None else (x.device, x.dtype, x.shape, x.stride(), x.requires_grad)


def _milliseconds(way: Way, inputs: tuple[Tensor | None, ...]) -> float:
    """Median of some runs, with gradients where they are asked for; without end for a way that has no code for them."""
    leaves = [None if x is None else x.detach().requires_grad_(x.requires_grad) for x in inputs]
    differentiable = [x for x in leaves if x is not None and x.requires_grad] if torch.is_grad_enabled() else []

    def run() -> None:
        y = way(*leaves)
        if differentiable:
            torch.autograd.grad(y, differentiable, torch.empty_like(y))

    times = []
    try:
        run()
        for _ in range(REPEATS):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            run()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
    except RuntimeError:  # as cuDNN's "unable to find an engine"
        return float("inf")
    return statistics.median(times)
