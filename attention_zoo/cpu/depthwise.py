"""A depthwise convolution with a backward pass that is fast on a CPU.

PyTorch's own takes 8 to 25 times as long as its forward pass there. The gradient of the input is a convolution with the
flipped kernel, which runs as fast as the forward pass; that of the kernel is one product and sum for each of its taps.
One thread, 16x56x56 tokens of width 64, kernel 3x3x3: 88 instead of 191 ms; 8x2x2 tokens of width 64, 16 clips: 1.5
instead of 11.6 ms.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn.functional import conv3d, pad

from attention_zoo import cpu


def by_taps(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Same-size convolution of tokens: x (b, t, h, w, d), weight (d, 1, kt, kh, kw), each kernel size odd."""
    return _Depthwise.apply(x, weight, bias)


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    channels_first = x.permute(0, 4, 1, 2, 3)
    padding = tuple(n // 2 for n in weight.shape[2:])
    return conv3d(channels_first, weight, bias, padding=padding, groups=len(weight)).permute(0, 2, 3, 4, 1)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return convolved(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            convolved(gradient, weight.flip(2, 3, 4), None) if needs_x else None,
            _weight_gradient(x, weight.shape, gradient) if needs_weight else None,
            gradient.sum(dim=(0, 1, 2, 3)) if needs_bias else None,
        )


def _weight_gradient(x: Tensor, shape: torch.Size, gradient: Tensor) -> Tensor:
    """What each tap of the kernel met: the tokens shifted to where it looks, times the gradient, summed."""
    (kt, kh, kw), (t, h, w) = shape[2:], x.shape[1:4]
    padded = pad(x, (0, 0, kw // 2, kw // 2, kh // 2, kh // 2, kt // 2, kt // 2))
    places = x.shape[0] * h * w
    frames, wide = cpu.chunk_length(x, t, places * x.shape[-1]), torch.promote_types(x.dtype, torch.float32)
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
