"""A depthwise convolution with a backward pass that is fast on a CPU.

PyTorch's own takes 8 to 25 times as long as its forward pass there. The gradient of the input is a convolution with the
flipped kernel, which runs as fast as the forward pass; that of the kernel is one product and sum for each of its taps.
One thread, 16x56x56 tokens of width 64, kernel 3x3x3: 88 instead of 191 ms; 8x2x2 tokens of width 64, 16 clips: 1.5
instead of 11.6 ms. In a compiled graph and for gradients of gradients PyTorch's own is used; on a GPU the layout
that is fastest there, or a program of Triton.
"""

from __future__ import annotations

import functools
import itertools
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.functional import conv2d, conv3d, pad

from attention_zoo import chunks
from attention_zoo.fastest import Way, fastest

_TRITON = find_spec("triton") is not None


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Same-size depthwise convolution of channels-last tokens.

    Args:
        x: (b, t, h, w, d).
        weight: (d, 1, kt, kh, kw), each kernel size odd; zeros are added around the tokens.
    """
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad) and chunks.eager(x):
        return _Depthwise.apply(*chunks.autocast(x, weight, bias))
    return fastest("depthwise convolution", _ways(x), x, weight, bias)


def with_residual(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The tokens plus their convolution; a program of Triton adds them up where it has them."""
    if x.device.type != "cuda" or torch.is_autocast_enabled("cuda"):  # whose sum is of more digits than its products
        return x + depthwise(x, weight, bias)
    ways = {name: functools.partial(_added, way) for name, way in _ways(x).items()}
    if "triton" in ways:
        ways["triton"] = functools.partial(_triton, residual=True)
    return fastest("depthwise convolution and sum", ways, x, weight, bias)


def _ways(x: Tensor) -> dict[str, Way]:
    ways = {"channels last": _convolved, "channels first": _channels_first, "frames": _frames}
    return ways | ({"triton": _triton} if x.device.type == "cuda" and _TRITON else {})


def _added(way: Way, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x + way(x, weight, bias)


def _triton(x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool = False) -> Tensor:
    from backbones._depthwise_triton import depthwise as triton_depthwise

    return triton_depthwise(x, weight, bias, residual)


def _channels_first(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """In the layout that PyTorch has a kernel of its own for on CUDA."""
    return _convolved(x.permute(0, 4, 1, 2, 3).contiguous().permute(0, 2, 3, 4, 1), weight, bias)


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


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    channels_first = x.permute(0, 4, 1, 2, 3)
    padding = tuple(n // 2 for n in weight.shape[2:])
    return conv3d(channels_first, weight, bias, padding=padding, groups=len(weight)).permute(0, 2, 3, 4, 1)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _convolved(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _convolved(gradient, weight.flip(2, 3, 4), None) if needs_x else None,
            _weight_gradient(x, weight.shape, gradient) if needs_weight else None,
            gradient.sum(dim=(0, 1, 2, 3)) if needs_bias else None,
        )


def _weight_gradient(x: Tensor, shape: torch.Size, gradient: Tensor) -> Tensor:
    """What each tap of the kernel met: the tokens shifted to where it looks, times the gradient, summed."""
    (kt, kh, kw), (t, h, w) = shape[2:], x.shape[1:4]
    padded = pad(x, (0, 0, kw // 2, kw // 2, kh // 2, kh // 2, kt // 2, kt // 2))
    places = x.shape[0] * h * w
    frames, wide = chunks.length(x, t, places * x.shape[-1]), torch.promote_types(x.dtype, torch.float32)
    sums = []
    for start in range(0, t, frames):  # what is multiplied stays in the cache until all taps have seen it
        part = gradient[:, start : start + frames]
        window = padded[:, start : start + part.shape[1] + kt - 1]
        taps = [
            (window[:, i : i + part.shape[1], j : j + h, k : k + w] * part).sum(dim=(0, 1, 2, 3), dtype=wide)
            for i, j, k in itertools.product(range(kt), range(kh), range(kw))
        ]
        sums.append(torch.stack(taps, dim=1))
    return torch.stack(sums).sum(0).to(x.dtype).reshape(shape)
