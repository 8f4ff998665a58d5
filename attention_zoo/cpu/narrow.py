"""Attention in bfloat16 on a CPU with products of that format, a few queries at a time.

PyTorch's fused attention there widens its inputs and multiplies in float32. Products in bfloat16 are more than twice as
fast where the processor has instructions for them, and scores that stay in the cache cost little. Their softmax is
taken in float32; scores and shares themselves have the 8 bits of the format, as in code that writes attention out.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from attention_zoo import cpu

BYTES = 2 * 2**20  # of scores at a time; 1 to 4 MiB are equally fast


@functools.cache
def multiplies() -> bool:
    """Whether this processor has instructions for products in bfloat16; others emulate them."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)


def fits(q: Tensor) -> bool:
    return q.dtype == torch.bfloat16 and cpu.inference(q) and multiplies()


@torch.library.custom_op("attention_zoo::chunked_attention", mutates_args=())
def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """As a kernel, without gradients: q (b, m, n, c), k and v (b, m, s, c), bias (b or 1, m or 1, n, s)."""
    (b, m, n, c), s = q.shape, k.shape[-2]
    sequences = max(1, BYTES // (m * n * s * q.element_size()))
    rows = -(-n // max(1, round(m * n * s * q.element_size() / BYTES)))
    y = q.new_empty(b, n, m, v.shape[-1]).transpose(1, 2)
    scores = q.new_empty(min(sequences, b) * m * rows * s)
    for first in range(0, b, sequences):
        at = slice(first, first + sequences)
        keys, values = (x.flatten(0, 1).contiguous() for x in (k[at] * c**-0.5, v[at]))  # else each product copies them
        for start in range(0, n, rows):
            some = slice(start, start + rows)
            part = q[at, :, some].flatten(0, 1).contiguous()
            x = scores[: len(part) * part.shape[1] * s].view(*part.shape[:2], s)
            torch.bmm(part, keys.mT, out=x)
            if bias is not None:
                x.unflatten(0, (-1, m)).add_(bias[at if len(bias) > 1 else slice(None), :, some])
            torch._softmax(x, -1, False, out=x)
            y[at, :, some] = torch.bmm(x, values).unflatten(0, (-1, m))
    return y
