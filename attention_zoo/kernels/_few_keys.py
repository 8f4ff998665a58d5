"""Attention of many queries to few keys as one program of Triton, for inference. Where the width allows it the linear
maps around it are inside: tokens are read once and results written once, queries never reach memory.

Imported where a GPU asks for it; Triton need not be installed. With TRITON_INTERPRET=1 it runs on CPU tensors, as the
tests do.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton
from torch.utils.flop_counter import register_flop_formula

QUERIES, KEYS, WARPS, STAGES = 128, 64, 8, 2  # of one program and of one turn of it
WIDEST = 128  # tokens of whose width the weights of a head fit beside them
LOG2_E = 1.4426950408889634


@triton.jit
def _weighted(q, K, V, S: tl.constexpr, C: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """What scaled queries of a head find among its S keys, (s, c)."""
    c = tl.arange(0, C)
    highest = tl.full([QUERIES], -float("inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    y = tl.zeros([QUERIES, C], tl.float32)
    for start in range(0, S, KEYS):
        j = start + tl.arange(0, KEYS)
        at, real = j[:, None] * C + c[None, :], (j < S)[:, None]
        k = tl.load(K + at, mask=real, other=0.0)
        v = tl.load(V + at, mask=real, other=0.0)
        score = tl.dot(q, tl.trans(k), input_precision="ieee")
        score = tl.where((j < S)[None, :], score, -float("inf"))
        high = tl.maximum(highest, tl.max(score, 1))  # each turn has a key, so it is a number
        share, kept = tl.exp2(score - high[:, None]), tl.exp2(highest - high)
        total = total * kept + tl.sum(share, 1)
        y = y * kept[:, None] + tl.dot(share.to(v.dtype), v, input_precision="ieee")
        highest = high
    return y / total[:, None]


@triton.jit
def _attend(
    X, WQ, BQ, K, V, WO, BO, Y, n, tiles, scale,
    S: tl.constexpr, HEADS: tl.constexpr, C: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One program: some tokens of one clip, all heads. WQ and WO are (d, d), as linear maps have them; BQ is scaled."""
    d: tl.constexpr = HEADS * C
    program = tl.program_id(0)
    clip = (program // tiles).to(tl.int64)
    i = program % tiles * QUERIES + tl.arange(0, QUERIES)
    wide, c = tl.arange(0, d), tl.arange(0, C)
    at = (clip * n + i[:, None]) * d + wide[None, :]
    x = tl.load(X + at, mask=(i < n)[:, None], other=0.0)
    y = tl.zeros([QUERIES, d], tl.float32) + tl.load(BO + wide).to(tl.float32)[None, :]
    for head in tl.static_range(HEADS):
        rows = head * C + c
        query_weight = tl.load(WQ + rows[None, :] * d + wide[:, None])
        q = tl.dot(x, query_weight, input_precision="ieee") + tl.load(BQ + rows).to(tl.float32)[None, :]
        head_offset = (clip * HEADS + head) * (S * C)
        weighted = _weighted((q * scale).to(x.dtype), K + head_offset, V + head_offset, S, C, QUERIES, KEYS)
        output_weight = tl.load(WO + wide[None, :] * d + rows[:, None])
        y += tl.dot(weighted.to(x.dtype), output_weight, input_precision="ieee")
    tl.store(Y + at, y.to(Y.dtype.element_ty), mask=(i < n)[:, None])


@triton.jit
def _attend_to(
    Q, K, V, Y, n, tiles, scale,
    S: tl.constexpr, HEADS: tl.constexpr, C: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One program: some queries of one head of one clip. Q and Y are (b, n, m, c)."""
    program = tl.program_id(0)
    head, clip = program % HEADS, (program // (HEADS * tiles)).to(tl.int64)
    i = program // HEADS % tiles * QUERIES + tl.arange(0, QUERIES)
    at = ((clip * n + i[:, None]) * HEADS + head) * C + tl.arange(0, C)[None, :]
    q = tl.load(Q + at, mask=(i < n)[:, None], other=0.0)
    head_offset = (clip * HEADS + head) * (S * C)
    q = (q.to(tl.float32) * scale).to(q.dtype)
    y = _weighted(q, K + head_offset, V + head_offset, S, C, QUERIES, KEYS)
    tl.store(Y + at, y.to(Y.dtype.element_ty), mask=(i < n)[:, None])


@triton_op("attention_zoo::pyramid_attend", mutates_args={})
def pyramid_attend(x: Tensor, wq: Tensor, bq: Tensor, k: Tensor, v: Tensor, wo: Tensor, bo: Tensor) -> Tensor:
    """A linear map to queries, attention, and a linear map of what they found.

    Args:
        x: (b, n, m * c), a power of two wide, `WIDEST` at most.
        wq, wo: (m * c, m * c), as of `torch.nn.Linear`; bq, bo: (m * c).
        k, v: (b, m, s, c).

    Returns:
        (b, n, m * c).
    """
    x, k, v, wq, wo = (tensor.contiguous() for tensor in (x, k, v, wq, wo))
    (b, n, _), (m, s, c) = x.shape, k.shape[1:]
    y, (queries, keys) = torch.empty_like(x), _sizes(n, s)
    tiles = triton.cdiv(n, queries)
    wrap_triton(_attend)[(b * tiles,)](
        x, wq, bq, k, v, wo, bo, y, n, tiles, LOG2_E * c**-0.5, s, m, c, queries, keys,
        num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    return y


@triton_op("attention_zoo::few_keys_attend", mutates_args={})
def few_keys_attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention alone: q (b, n, m * c), k and v (b, m, s, c). Returns (b, n, m * c)."""
    q, k, v = (tensor.contiguous() for tensor in (q, k, v))
    (b, n, _), (m, s, c) = q.shape, k.shape[1:]
    y, (queries, keys) = torch.empty_like(q), _sizes(n, s)
    tiles = triton.cdiv(n, queries)
    wrap_triton(_attend_to)[(m * b * tiles,)](
        q, k, v, y, n, tiles, LOG2_E * c**-0.5, s, m, c, queries, keys, num_warps=WARPS, num_stages=STAGES
    )
    return y


def _sizes(n: int, s: int) -> tuple[int, int]:
    """Of tiles: of queries, and of keys."""
    queries, keys = (max(16, triton.next_power_of_2(count)) for count in (n, s))
    return min(QUERIES, queries), min(KEYS, keys)


@register_flop_formula(torch.ops.attention_zoo.pyramid_attend)
def _flops(x, wq, bq, k, v, wo, bo, *args, out_shape=None, **kwargs) -> int:
    """Two linear maps and two products for each pair."""
    return 4 * x[0] * x[1] * x[2] * (x[2] + k[2])


@register_flop_formula(torch.ops.attention_zoo.few_keys_attend)
def _flops_alone(q, k, v, *args, out_shape=None, **kwargs) -> int:
    return 4 * q[0] * q[1] * q[2] * k[2]
