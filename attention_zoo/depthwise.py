"""A depthwise convolution of tokens, in the way that is fastest where they are.

Where a CPU needs gradients it has a form of its own; on a GPU the layout that is fastest there, or a program of Triton.
In a compiled graph and for gradients of gradients PyTorch's own is used.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from attention_zoo import cpu, dispatch
from attention_zoo.cpu.depthwise import Stride, blocks_of, convolved, differentiable, taps_of
from attention_zoo.fastest import Way, fastest

try:
    from attention_zoo._depthwise_triton import depthwise as triton_depthwise
    from attention_zoo._pooling_triton import block_sums
except ImportError:  # Triton is not on every machine
    triton_depthwise = block_sums = None


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Stride = (1, 1, 1)) -> Tensor:
    """Depthwise convolution of channels-last tokens, with half of the kernel in zeros added on all sides.

    Args:
        x: (b, t, h, w, d).
        weight: (d, 1, kt, kh, kw).
    """
    if _trains_on_cpu(x, weight):
        return differentiable(*dispatch.autocast(x, weight, bias), stride)
    if max(stride) > 1 or not all(k % 2 for k in weight.shape[2:]):  # the other ways keep the map's size
        return convolved(x, weight, bias, stride)
    return fastest("depthwise convolution", _ways(x), x, weight, bias)


def pooled(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Weighted sums of blocks, channel by channel: a depthwise convolution whose stride is its kernel.

    Args:
        x: (b, t, h, w, d), in whole blocks.
        weight: (d, 1, block t, block h, block w).
    """
    if _trains_on_cpu(x, weight):
        return differentiable(*dispatch.autocast(x, weight, bias), None)
    ways = {"convolution": functools.partial(convolved, stride=None), "sums": _summed}
    if x.device.type == "cuda" and block_sums is not None:
        ways["triton"] = _triton_pooled
    return fastest("pooling", ways, x, weight, bias)


def _trains_on_cpu(x: Tensor, weight: Tensor) -> bool:
    return torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad) and cpu.eager(x)


def _summed(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = (blocks_of(x, weight.shape[2:]) * taps_of(weight)).sum((2, 4, 6))
    return y if bias is None else y + bias


def _triton_pooled(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return block_sums(x, weight, bias)


def with_residual(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The tokens plus their convolution; a program of Triton adds them up where it has them."""
    if x.device.type != "cuda" or torch.is_autocast_enabled("cuda"):  # whose sum is of more digits than its products
        return x + depthwise(x, weight, bias)
    ways = {name: functools.partial(_added, way) for name, way in _ways(x).items()}
    if "triton" in ways:
        ways["triton"] = functools.partial(_triton, residual=True)
    return fastest("depthwise convolution and sum", ways, x, weight, bias)


def _ways(x: Tensor) -> dict[str, Way]:
    ways = {"channels last": convolved, "channels first": _channels_first, "frames": _frames}
    return ways | ({"triton": _triton} if x.device.type == "cuda" and triton_depthwise is not None else {})


def _added(way: Way, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x + way(x, weight, bias)


def _triton(x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool = False) -> Tensor:
    return triton_depthwise(x, weight, bias, residual)


def _channels_first(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """In the layout that PyTorch has a kernel of its own for on CUDA."""
    return convolved(x.permute(0, 4, 1, 2, 3).contiguous().permute(0, 2, 3, 4, 1), weight, bias)


def _frames(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As convolutions of frames, for which cuDNN has code in channels last: one for each frame that a kernel spans."""
    (kt, kh, kw), (b, t) = weight.shape[2:], x.shape[:2]
    frames = pad(x, (0, 0, 0, 0, 0, 0, kt // 2, kt // 2)).permute(0, 1, 4, 2, 3)
    y = None
    for i in range(kt):
        part = conv2d(
            frames[:, i : i + t].flatten(0, 1), weight[:, :, i], None, padding=(kh // 2, kw // 2), groups=len(weight)
        )
        y = part if y is None else y + part
    y = y.unflatten(0, (b, t)).permute(0, 1, 3, 4, 2)
    return y if bias is None else y + bias
