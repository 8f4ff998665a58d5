"""Attention inside windows as one program of Triton, which reads queries, keys and values where the linear map wrote
them and writes the result where the next one reads it: no roll, no partition, no mask, no reverse.

Forward only. Imported where a GPU asks for it; Triton need not be installed. With TRITON_INTERPRET=1 it runs on CPU
tensors, as the tests do.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

QUERIES, KEYS, WARPS, STAGES = 64, 64, 4, 2  # of one program and of one turn of it
LOG2_E = 1.4426950408889634


@triton.jit
def _places(
    window, i,
    T: tl.constexpr, H: tl.constexpr, W: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    WT: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr, ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
):  # fmt: skip
    """Of tokens of a window: their number in the map, whether they lie in it, and the region that the shift cut off."""
    across: tl.constexpr = PW // WW
    down: tl.constexpr = PH // WH
    t = window // (down * across) * WT + i // (WH * WW)  # in the padded, rolled map
    h = window // across % down * WH + i // WW % WH
    w = window % across * WW + i % WW
    region = t * 0
    if ST > 0:
        region = (t >= PT - ST).to(tl.int32)
    if SH > 0:
        region = region * 2 + (h >= PH - SH).to(tl.int32)
    if SW > 0:
        region = region * 2 + (w >= PW - SW).to(tl.int32)
    t, h, w = (t + ST) % PT, (h + SH) % PH, (w + SW) % PW
    return (t * H + h) * W + w, (t < T) & (h < H) & (w < W), region


@triton.jit
def _attend(
    QKV, PADDING, BIAS, WINDOWS, Y, clips, scale,
    T: tl.constexpr, H: tl.constexpr, W: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    WT: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr, ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    HEADS: tl.constexpr, C: tl.constexpr, BIASED: tl.constexpr, HIDDEN: tl.constexpr, MIXED: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One program: some queries of one head in one window of one clip. Heads run fastest: they share memory lines.

    HIDDEN: padding is not attended to; else its keys and values are those of PADDING, (3, m, c). MIXED: windows of
    several regions.
    """
    n: tl.constexpr = WT * WH * WW
    d: tl.constexpr = HEADS * C
    tiles: tl.constexpr = (n + QUERIES - 1) // QUERIES
    program = tl.program_id(0)
    head, tile, rest = program % HEADS, program // HEADS % tiles, program // (HEADS * tiles)
    clip = (rest % clips).to(tl.int64) * (T * H * W)
    window = tl.load(WINDOWS + rest // clips)
    channel = head * C + tl.arange(0, C)
    i = tile * QUERIES + tl.arange(0, QUERIES)
    at, real, region = _places(window, i, T, H, W, PT, PH, PW, WT, WH, WW, ST, SH, SW)
    real = real & (i < n)
    q = tl.load(QKV + (clip + at)[:, None] * (3 * d) + channel[None, :], mask=real[:, None], other=0.0)
    highest = tl.full([QUERIES], -float("inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    y = tl.zeros([QUERIES, C], tl.float32)
    for start in range(0, n, KEYS):
        j = start + tl.arange(0, KEYS)
        of_key, in_map, key_region = _places(window, j, T, H, W, PT, PH, PW, WT, WH, WW, ST, SH, SW)
        in_window = j < n
        in_map = in_map & in_window
        line = QKV + (clip + of_key)[:, None] * (3 * d) + channel[None, :]
        k = tl.load(line + d, mask=in_map[:, None], other=0.0)
        v = tl.load(line + 2 * d, mask=in_map[:, None], other=0.0)
        seen = in_map
        if not HIDDEN:
            of_padding = (in_window & (in_map == 0))[:, None]
            k = tl.where(of_padding, tl.load(PADDING + d + channel)[None, :], k)
            v = tl.where(of_padding, tl.load(PADDING + 2 * d + channel)[None, :], v)
            seen = in_window
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if BIASED:
            both = (i < n)[:, None] & in_window[None, :]
            score += tl.load(BIAS + (head * n + i[:, None]) * n + j[None, :], mask=both, other=0.0) * 1.4426950408889634
        allowed = seen[None, :]
        if MIXED:
            allowed = allowed & (region[:, None] == key_region[None, :])
        score = tl.where(allowed, score, -float("inf"))
        high = tl.maximum(highest, tl.max(score, 1))
        level = tl.where(high == -float("inf"), 0.0, high)  # nothing is allowed yet: infinity less itself is no number
        share, kept = tl.exp2(score - level[:, None]), tl.exp2(highest - level)
        total = total * kept + tl.sum(share, 1)
        y = y * kept[:, None] + tl.dot(share.to(v.dtype), v, input_precision="ieee")
        highest = high
    y = y / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(Y + (clip + at)[:, None] * d + channel[None, :], y.to(Y.dtype.element_ty), mask=real[:, None])


@triton_op("attention_zoo::window_attend", mutates_args={})
def window_attend(
    qkv: Tensor, padding: Tensor | None, bias: Tensor | None, windows: Tensor, plain: int, num_heads: int,
    padded: list[int], window: list[int], shift: list[int],
) -> Tensor:  # fmt: skip
    """Attention of each token to those of its window and region.

    Args:
        qkv: (b, t, h, w, 3 * m * c), part-major.
        padding: (3 * m * c), what queries, keys and values of padding are; None hides padding.
        bias: (m, n, n), added to the scaled scores.
        windows: the numbers of all windows, int32, of which the first `plain` forbid nothing.
        padded, window, shift: along (t, h, w).

    Returns:
        (b, t, h, w, m * c).
    """
    qkv = qkv.contiguous()
    b, t, h, w, triple = qkv.shape
    d, n = triple // 3, window[0] * window[1] * window[2]
    y = qkv.new_empty(b, t, h, w, d)
    size = min(QUERIES, max(16, triton.next_power_of_2(n)))
    scale = LOG2_E * (d // num_heads) ** -0.5
    # Two launches: most windows forbid nothing, and comparing regions takes registers.
    for mixed, numbers in ((False, windows[:plain]), (True, windows[plain:])):
        if len(numbers):
            programs = num_heads * triton.cdiv(n, size) * len(numbers) * b
            wrap_triton(_attend)[(programs,)](
                qkv, qkv if padding is None else padding, qkv if bias is None else bias, numbers, y, b, scale,
                t, h, w, *padded, *window, *shift, num_heads, d // num_heads, bias is not None, padding is None, mixed,
                size, min(KEYS, size), num_warps=WARPS, num_stages=STAGES,
            )  # fmt: skip
    return y
