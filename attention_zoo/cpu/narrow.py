"""Attention in bfloat16 on a CPU with products of that format, a few queries at a time.

PyTorch's fused attention there widens its inputs and multiplies in float32. Products in bfloat16 are more than twice as
fast where the processor has instructions for them, and scores that stay in the cache cost little. Exponentials are
taken and summed in float32; scores, exponentials and sums are kept in the 8 bits of the format, as in code that writes
attention out.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from attention_zoo import cpu

BYTES = 2 * 2**20  # of scores at a time; 1 to 4 MiB are equally fast
LEAST, MOST = 2.0**-60, 2.0**100  # of sums of exponentials, between which none that counts is lost
LOG2_E = 1.4426950408889634


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
    bias = None if bias is None else bias * LOG2_E
    for first in range(0, b, sequences):
        at = slice(first, first + sequences)
        # Contiguous, else each product copies them.
        keys = torch.mul(k[at], LOG2_E * c**-0.5, out=k.new_empty(k[at].shape)).flatten(0, 1)
        values = v[at].flatten(0, 1).contiguous()
        for start in range(0, n, rows):
            some = slice(start, start + rows)
            part = q[at, :, some].flatten(0, 1).contiguous()
            x = scores[: len(part) * part.shape[1] * s].view(*part.shape[:2], s)
            added = None if bias is None else bias[at if len(bias) > 1 else slice(None), :, some]
            sums = _exponentials(x, part, keys, added, m, False)
            if not (sums.min() > LEAST and sums.max() < MOST):
                sums = _exponentials(x, part, keys, added, m, True)
            torch.div(*(z.unflatten(0, (-1, m)) for z in (torch.bmm(x, values), sums)), out=y[at, :, some])
    return y


def _exponentials(x: Tensor, q: Tensor, k: Tensor, bias: Tensor | None, m: int, relative: bool) -> Tensor:
    """2 to the power of the scores, written to `x` (b * m, n, s); `relative` to the largest, which takes a third of
    the time and is needed where they are very large or all very small. Returns their sums, (b * m, n, 1).
    """
    torch.bmm(q, k.mT, out=x)
    if bias is not None:
        x.unflatten(0, (-1, m)).add_(bias)
    if relative:
        x.sub_(x.amax(-1, keepdim=True))
    return torch.exp2(x, out=x).sum(-1, keepdim=True)
