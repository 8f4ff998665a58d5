"""`torch.nn.functional.scaled_dot_product_attention`: PyTorch picks an implementation by device, dtype and shape."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from attention_zoo import cpu, dispatch
from attention_zoo.cpu import learned_bias
from attention_zoo.kernels import Kernel, add

WITHOUT_CUDNN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    if bias is not None and bias.requires_grad:
        if not torch.is_grad_enabled():
            # It sends PyTorch to the unfused path even where gradients are off.
            bias = bias.detach()
        elif q.shape[-1] == v.shape[-1] and cpu.eager(q):
            return learned_bias.attend(*dispatch.autocast(q, k, v, bias))
    with _safe_backends(q, k, bias):
        return scaled_dot_product_attention(q, k, v, attn_mask=bias)


def _safe_backends(q: Tensor, k: Tensor, bias: Tensor | None) -> contextlib.AbstractContextManager:
    """Without cuDNN where its backward gives NaN: a mask, and a length of 64 modulo 128 (pytorch issue 196678)."""
    if q.device.type == "cuda" and bias is not None and 64 in (q.shape[-2] % 128, k.shape[-2] % 128):
        return sdpa_kernel(WITHOUT_CUDNN)
    return contextlib.nullcontext()


add(Kernel("sdpa", sdpa, needs="nothing beyond PyTorch"))
