"""`torch.nn.functional.scaled_dot_product_attention`: PyTorch picks an implementation by device, dtype and shape."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from attention_zoo import chunks
from attention_zoo.kernels import Kernel, add

WITHOUT_CUDNN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    if bias is not None and not torch.is_grad_enabled():
        # A bias that requires a gradient sends PyTorch to the unfused path even where gradients are off.
        bias = bias.detach()
    elif bias is not None and bias.requires_grad and q.shape[-1] == v.shape[-1] and chunks.eager(q):
        q, k, v, bias = chunks.autocast(q, k, v, bias)
        y = scaled_dot_product_attention(q, k, v, attn_mask=bias.detach())
        return _LearnedBias.apply(y, q.detach(), k.detach(), v.detach(), bias)
    with _safe_backends(q, k, bias):
        return scaled_dot_product_attention(q, k, v, attn_mask=bias)


class _LearnedBias(torch.autograd.Function):
    """Gives attention that was computed without the bias's gradient that gradient, and leaves all else as it is.

    On a CPU, PyTorch's fused attention has none, and its plain path keeps the scores of all windows for the backward
    pass. Here they are computed again, for as many sequences as stay in the cache.
    """

    @staticmethod
    def forward(ctx, y: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(y, q, k, v, bias)
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, q, k, v, bias = ctx.saved_tensors
        wide = torch.promote_types(q.dtype, torch.float32)
        found = bias.new_zeros(bias.shape, dtype=wide)
        size = chunks.length(y, len(y), 3 * q.shape[1] * bias.shape[-2] * bias.shape[-1])
        for start in range(0, len(y), size):
            at = slice(start, start + size)
            of_bias = at if len(bias) > 1 else slice(None)
            g, scores = grad[at].to(wide), (q[at].to(wide) * q.shape[-1] ** -0.5) @ k[at].to(wide).mT
            shares = scores.add_(bias[of_bias]).softmax(-1)
            change = g @ v[at].to(wide).mT
            change -= (g * y[at]).sum(-1, keepdim=True)
            found[of_bias] += (change * shares).sum_to_size(bias[of_bias].shape)
        return grad, None, None, None, found.to(bias.dtype)


def _safe_backends(q: Tensor, k: Tensor, bias: Tensor | None) -> contextlib.AbstractContextManager:
    """Without cuDNN where its backward gives NaN: a mask, and a length of 64 modulo 128 (pytorch issue 196678)."""
    if q.device.type == "cuda" and bias is not None and 64 in (q.shape[-2] % 128, k.shape[-2] % 128):
        return sdpa_kernel(WITHOUT_CUDNN)
    return contextlib.nullcontext()


add(Kernel("sdpa", sdpa, needs="nothing beyond PyTorch"))
