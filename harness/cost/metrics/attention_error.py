"""How far attention alone is from the reference in float64 on the token counts of the published models, masked.

They are the ones on which fused kernels have been wrong. It follows from kernel, number format and device, not from the
scheme. The error is the largest over the shapes, in units of the largest value.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attention_zoo import kernels
from harness.cost.metrics import register
from harness.cost.workload import Workload
from records.record import Measurement, Quantity

# Batch, heads, queries, keys, channels, and whether a bias is learned: a mask alone lets in kernels that cannot train a
# bias, as cuDNN's. 3136 = 16x14x14 is 64 modulo 128, where the masked backward pass of cuDNN gives NaN.
SHAPES = (
    (1, 1, 3136, 392, 32, True),
    (1, 1, 3136, 3136, 32, True),
    (1, 1, 3136, 392, 32, False),
    (8, 1, 392, 392, 32, False),
)
QUICK_SHAPES = ((1, 2, 64, 192, 32, True), (1, 2, 64, 192, 32, False))
TOLERANCE = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}
LOW = 120  # by which scores are lowered: a sum of their exponentials that is not taken relative to the largest is zero
OUTPUT = Quantity("attention_error", "counted", "error of attention alone", "of the largest value", "lower")
GRADIENTS = Quantity("attention_gradient_error", "counted", "of its gradients", "of the largest value", "lower")


@register("attention_error", OUTPUT, GRADIENTS, timed=True, order=2, process="attention", once=True)
def attention_error(workload: Workload) -> list[Measurement]:
    """Of the result, and of the gradients of queries, keys, values and bias where the kernel has a backward pass."""
    case, device, dtype = workload.case, workload.device, workload.dtype
    kernel = workload.kernel
    shapes = QUICK_SHAPES if workload.effort.quick else SHAPES
    no_gradients = kernels.missing(kernel, device, dtype, True)
    forward, backward = [], []
    for shape in shapes:
        inputs, mask, probe = _inputs(shape, device, dtype)
        with torch.no_grad():
            forward.append(_error(_attend(inputs, mask, kernel), _attend(_exact(inputs), mask, "reference")))
        if no_gradients is None:
            result = _gradients(inputs, mask, probe, kernel)
            exact = _gradients(_exact(inputs), mask, probe, "reference")
            lowered = [_lowered(inputs[0], 1), _lowered(inputs[1], -LOW * shape[4] ** 0.5), *inputs[2:]]
            finite = all(x.isfinite().all() for x in _gradients(lowered, mask, probe, kernel))
            backward.append(max(map(_error, result, exact)) if finite else math.inf)
    details = {"shapes": [list(shape) for shape in shapes], "of": "attention", "tolerance": TOLERANCE[case.dtype]}
    details |= {"kernel_requested": case.kernel, "kernel": kernel, **workload.surroundings()}
    measured = []
    for quantity, errors in ((OUTPUT, forward), (GRADIENTS, backward)):
        worst = max(errors, default=0.0)
        wrong = {"wrong": True} if worst > details["tolerance"] else {}
        if not errors:
            measured.append(quantity.absent(f"not supported: {no_gradients}", details=details))
        elif math.isinf(worst):
            measured.append(quantity.absent("the result is not finite", details=details | wrong))
        else:
            measured.append(quantity.of([worst], {**details, **wrong, "errors": errors}))
    return measured


def _inputs(shape: tuple, device, dtype) -> tuple[list[Tensor], Tensor, Tensor]:
    """Queries, keys, values and perhaps a bias; a mask that leaves each query at least one key; a gradient."""
    b, m, n, s, c, learned = shape
    generator = torch.Generator().manual_seed(0)

    def noise(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator).to(device, dtype)

    forbidden = torch.rand(1, 1, n, s, generator=generator) < 0.4
    forbidden[..., : s // 2] = True  # whole blocks of leading keys, which online softmax must survive
    forbidden[..., s // 2] = False
    mask = torch.zeros(1, 1, n, s).masked_fill(forbidden, -torch.inf).to(device, dtype)
    inputs = [noise(b, m, n, c), noise(b, m, s, c), noise(b, m, s, c), *([noise(1, m, n, s)] if learned else [])]
    return inputs, mask, noise(b, m, n, c)


def _exact(inputs: list[Tensor]) -> list[Tensor]:
    return [x.double() for x in inputs]


def _lowered(x: Tensor, value: float) -> Tensor:
    """With one channel of a single value."""
    x = x.clone()
    x[..., 0] = value
    return x


def _attend(inputs: list[Tensor], mask: Tensor, kernel: str) -> Tensor:
    q, k, v, *bias = inputs
    return kernels.attend(q, k, v, sum(bias, mask.to(q)), kernel=kernel)


def _gradients(inputs: list[Tensor], mask: Tensor, probe: Tensor, kernel: str) -> list[Tensor]:
    """The result with gradients on, where PyTorch may choose another implementation, and the gradients."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    y = _attend(leaves, mask, kernel)
    return [y.detach(), *torch.autograd.grad(y, leaves, probe.to(y))]


def _error(result: Tensor, exact: Tensor) -> float:
    difference = (result.double() - exact).abs().max().item()
    return difference / exact.abs().max().item() if math.isfinite(difference) else math.inf
