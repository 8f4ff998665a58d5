"""Attention with a bias that has a gradient, on a CPU, where PyTorch's fused attention gives it none.

Its plain path keeps the scores of all sequences for the backward pass. Here they are computed again, for as many
sequences as stay in the cache.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from attention_zoo import cpu


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """As a kernel: q (b, m, n, c), k and v (b, m, s, c), bias (b or 1, m or 1, n, s)."""
    return _LearnedBias.apply(q, k, v, bias)


class _LearnedBias(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        y = scaled_dot_product_attention(q, k, v, attn_mask=bias.detach())
        ctx.save_for_backward(q, k, v, bias, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q, k, v, bias, y = ctx.saved_tensors
        wide, scale = torch.promote_types(q.dtype, torch.float32), q.shape[-1] ** -0.5
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        grad_bias = bias.new_zeros(bias.shape, dtype=wide)
        size = cpu.chunk_length(y, len(y), q.shape[1] * bias.shape[-2] * bias.shape[-1])
        for start in range(0, len(y), size):
            part = slice(start, start + size)
            at_bias = part if len(bias) > 1 else slice(None)
            g, scaled, keys = grad[part].to(wide), q[part].to(wide) * scale, k[part].to(wide)
            shares = (scaled @ keys.mT).add_(bias[at_bias]).softmax(-1)
            grad_v[part] = shares.mT @ g
            change = g @ v[part].to(wide).mT
            change.sub_((g * y[part]).sum(-1, keepdim=True)).mul_(shares)  # of the scores
            grad_bias[at_bias] += change.sum_to_size(bias[at_bias].shape)
            grad_q[part] = (change @ keys).mul_(scale)
            grad_k[part] = change.mT @ scaled
        return grad_q, grad_k, grad_v, grad_bias.to(bias.dtype)
