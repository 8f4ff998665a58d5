"""A depthwise convolution whose stride is its kernel, with a backward pass that is fast on a CPU.

Each token belongs to one block, so both gradients are a product of the tokens (or weights) with the gradient of their
block; PyTorch's own takes several times as long there. In a compiled graph and for gradients of gradients PyTorch's own
is used, on a GPU what is faster there.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.functional import conv3d

from attention_zoo import chunks
from attention_zoo.fastest import fastest

_TRITON = find_spec("triton") is not None


def pooled(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Weighted sums of blocks, channel by channel.

    Args:
        x: (b, d, t, h, w), in whole blocks.
        weight: (d, 1, block t, block h, block w).

    Returns:
        (b, d, blocks over t, over h, over w).
    """
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad) and chunks.eager(x):
        return _Pooled.apply(*chunks.autocast(x, weight, bias))
    ways = {"convolution": _convolved, "sums": _summed}
    if x.device.type == "cuda" and _TRITON:
        ways["triton"] = _on_triton
    return fastest("pooling", ways, x, weight, bias)


def _on_triton(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    from attention_zoo._pooling_triton import block_sums

    return block_sums(x.permute(0, 2, 3, 4, 1), weight, bias).permute(0, 4, 1, 2, 3)


def _summed(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    tokens, taps = _blocks(x.permute(0, 2, 3, 4, 1), weight.shape[2:]), weight[:, 0].permute(1, 2, 3, 0)
    y = (tokens * taps[:, None, :, None]).sum((2, 4, 6))
    return (y if bias is None else y + bias).permute(0, 4, 1, 2, 3)


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return conv3d(x, weight, bias, stride=weight.shape[2:], groups=len(weight))


class _Pooled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _convolved(x, weight, bias)

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
            tokens, wide = _blocks(x.permute(0, 2, 3, 4, 1), block), torch.promote_types(x.dtype, torch.float32)
            # One layer of blocks at a time: its products stay in the cache.
            layers = [(tokens[:, i] * expanded[:, i]).sum((0, 2, 4), dtype=wide) for i in range(expanded.shape[1])]
            grad_weight = torch.stack(layers).sum(0).permute(3, 0, 1, 2)[:, None].to(x.dtype)
        return grad_x, grad_weight, gradient.sum((0, 2, 3, 4)) if needs_bias else None


def _blocks(tokens: Tensor, block: torch.Size) -> Tensor:
    """(b, t, h, w, d) as (b, blocks t, block t, blocks h, block h, blocks w, block w, d), without a copy."""
    bt, bh, bw = block
    return tokens.unflatten(1, (-1, bt)).unflatten(3, (-1, bh)).unflatten(5, (-1, bw))
