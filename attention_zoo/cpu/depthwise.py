"""A depthwise convolution with a backward pass that is fast on a CPU.

PyTorch's own takes 7 to 49 times as long as its forward pass there. The gradient of the input is a convolution with the
flipped kernel, which runs as fast as the forward pass, over the gradient with zeros where the stride went past; that of
the kernel is PyTorch's of convolutions of frames, which is fast, one for each frame that the kernel spans. One thread,
8x56x56 tokens of width 96, kernel 3x3x3: 4 and 12 ms instead of 30 and 46 in channels last, 103 in channels first.
Where blocks are pooled each token belongs to one, so both gradients are a product of the tokens (or weights) with the
gradient of their block.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv3d, pad

Stride = tuple[int, int, int] | None
"""Of a kernel with half of it in zeros on all sides; None pools blocks of a kernel's size, with nothing around."""


def differentiable(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Stride) -> Tensor:
    """Convolution of tokens: x (b, t, h, w, d), weight (d, 1, kt, kh, kw)."""
    return _Depthwise.apply(x, weight, bias, stride)


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Stride = (1, 1, 1)) -> Tensor:
    channels_first, size = x.permute(0, 4, 1, 2, 3), weight.shape[2:]
    padding = tuple(0 if stride is None else n // 2 for n in size)
    return conv3d(channels_first, weight, bias, stride or size, padding, groups=len(weight)).permute(0, 2, 3, 4, 1)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Stride) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return convolved(x, weight, bias, stride)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        if ctx.stride is None:
            expanded = gradient[:, :, None, :, None, :, None]  # b pt 1 ph 1 pw 1 d
            grad_x = (expanded * taps_of(weight)).reshape(x.shape) if needs_x else None
            grad_weight = _block_weight_gradient(x, weight, expanded) if needs_weight else None
        else:
            grad_x = _input_gradient(x.shape, weight, gradient, ctx.stride) if needs_x else None
            grad_weight = _weight_gradient(x, weight, gradient, ctx.stride) if needs_weight else None
        return (
            grad_x,
            grad_weight,
            gradient.sum(dim=(0, 1, 2, 3)) if needs_bias else None,
            None,
        )


def blocks_of(x: Tensor, block: torch.Size) -> Tensor:
    """(b, t, h, w, d) as (b, blocks t, block t, blocks h, block h, blocks w, block w, d), without a copy."""
    bt, bh, bw = block
    return x.unflatten(1, (-1, bt)).unflatten(3, (-1, bh)).unflatten(5, (-1, bw))


def taps_of(weight: Tensor) -> Tensor:
    """The kernel beside `blocks_of`."""
    return weight[:, 0].permute(1, 2, 3, 0)[:, None, :, None]  # bt 1 bh 1 bw d


def _block_weight_gradient(x: Tensor, weight: Tensor, expanded: Tensor) -> Tensor:
    tokens, wide = blocks_of(x, weight.shape[2:]), torch.promote_types(x.dtype, torch.float32)
    # One layer of blocks at a time: its products stay in the cache.
    layers = [(tokens[:, i] * expanded[:, i]).sum((0, 2, 4), dtype=wide) for i in range(expanded.shape[1])]
    return torch.stack(layers).sum(0).permute(3, 0, 1, 2)[:, None].to(x.dtype)


def _input_gradient(shape: torch.Size, weight: Tensor, gradient: Tensor, stride: Stride) -> Tensor:
    """A convolution with the flipped kernel of the gradient, each of whose tokens stands where its window began."""
    flipped, kernel = weight.flip(2, 3, 4), weight.shape[2:]
    if max(stride) == 1 and all(k % 2 for k in kernel):
        return convolved(gradient, flipped, None)
    spread, edges = gradient, []  # neither written into nor flattened: many gradients at once could not be
    for axis, (n, k, s) in enumerate(zip(shape[1:4], kernel, stride, strict=True), 1):
        if s > 1:
            sizes = *spread.shape[:axis], s * spread.shape[axis], *spread.shape[axis + 1 :]
            spread = pad(spread.unsqueeze(axis + 1), (0, 0) * (4 - axis) + (0, s - 1)).reshape(sizes)
        edges = [k - 1 - k // 2, n + k // 2 - spread.shape[axis], *edges]
    spread = pad(spread, (0, 0, *edges))
    return conv3d(spread.permute(0, 4, 1, 2, 3), flipped, groups=len(weight)).permute(0, 2, 3, 4, 1)


def _weight_gradient(x: Tensor, weight: Tensor, gradient: Tensor, stride: Stride) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    (kt, kh, kw), (step, *of_frame), frames = weight.shape[2:], stride, gradient.shape[1]
    x = pad(x.to(wide), (0, 0, 0, 0, 0, 0, kt // 2, kt // 2)) if kt > 1 else x.to(wide)
    x, gradient = x.permute(0, 1, 4, 2, 3), gradient.to(wide).permute(0, 1, 4, 2, 3)
    gradient = gradient.reshape(gradient.shape[0] * frames, *gradient.shape[2:])
    parts = []
    for i in range(kt):
        met, taps = x[:, i : i + step * (frames - 1) + 1 : step].flatten(0, 1), weight[:, :, i].to(wide)
        padding, groups, wanted = [kh // 2, kw // 2], len(weight), [False, True, False]
        parts.append(
            torch.ops.aten.convolution_backward(
                gradient, met, taps, None, of_frame, padding, [1, 1], False, [0, 0], groups, wanted
            )[1]
        )
    return torch.stack(parts, 2).to(weight.dtype)
