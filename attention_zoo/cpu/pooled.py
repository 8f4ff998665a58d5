"""A depthwise convolution whose stride is its kernel, with a backward pass that is fast on a CPU.

Each token belongs to one block, so both gradients are a product of the tokens (or weights) with the gradient of their
block; PyTorch's own takes several times as long there.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv3d


def by_blocks(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Weighted sums of blocks: x (b, d, t, h, w), weight (d, 1, block t, block h, block w)."""
    return _Pooled.apply(x, weight, bias)


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return conv3d(x, weight, bias, stride=weight.shape[2:], groups=len(weight))


class _Pooled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return convolved(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        block = weight.shape[2:]
        expanded = gradient.permute(0, 2, 3, 4, 1)[:, :, None, :, None, :, None]  # b pt 1 ph 1 pw 1 d
        grad_x = grad_weight = None
        if needs_x:
            taps = weight[:, 0].permute(1, 2, 3, 0)[:, None, :, None]  # bt 1 bh 1 bw d
            b, d, t, h, w = x.shape
            grad_x = (expanded * taps).reshape(b, t, h, w, d).permute(0, 4, 1, 2, 3)
        if needs_weight:
            tokens, wide = blocks_of(x.permute(0, 2, 3, 4, 1), block), torch.promote_types(x.dtype, torch.float32)
            # One layer of blocks at a time: its products stay in the cache.
            layers = [(tokens[:, i] * expanded[:, i]).sum((0, 2, 4), dtype=wide) for i in range(expanded.shape[1])]
            grad_weight = torch.stack(layers).sum(0).permute(3, 0, 1, 2)[:, None].to(x.dtype)
        return grad_x, grad_weight, gradient.sum((0, 2, 3, 4)) if needs_bias else None


def blocks_of(tokens: Tensor, block: torch.Size) -> Tensor:
    """(b, t, h, w, d) as (b, blocks t, block t, blocks h, block h, blocks w, block w, d), without a copy."""
    bt, bh, bw = block
    return tokens.unflatten(1, (-1, bt)).unflatten(3, (-1, bh)).unflatten(5, (-1, bw))
