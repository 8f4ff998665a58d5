"""Attention inside windows as one program of Triton, which reads queries, keys and values where the linear map wrote
them and writes the result where the next one reads it: no roll, no partition, no mask, no reverse.

The backward pass computes shares again from the logarithm of their sum, which the forward pass keeps; no two programs
add to the same number, so its results repeat. Imported where a GPU asks for it; Triton need not be installed. With
TRITON_INTERPRET=1 it runs on CPU tensors, as the tests do.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton
from torch.utils.flop_counter import register_flop_formula

QUERIES, KEYS, WARPS, STAGES = 64, 64, 4, 2  # of one program and of one turn of it
BIAS_PROGRAMS = 1024  # for the gradient of a bias, which has few tiles: each then takes some of the windows
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
def _tile(
    WINDOWS, clips,
    T: tl.constexpr, H: tl.constexpr, W: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    WT: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr, ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    HEADS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """What a program works on: a head, the first line of a clip, a window, and SIZE tokens of it with their places."""
    n: tl.constexpr = WT * WH * WW
    tiles: tl.constexpr = (n + SIZE - 1) // SIZE
    program = tl.program_id(0)
    head, tile, rest = program % HEADS, program // HEADS % tiles, program // (HEADS * tiles)
    clip = (rest % clips).to(tl.int64) * (T * H * W)
    window = tl.load(WINDOWS + rest // clips)
    i = tile * SIZE + tl.arange(0, SIZE)
    at, real, region = _places(window, i, T, H, W, PT, PH, PW, WT, WH, WW, ST, SH, SW)
    return head, clip, window, i, at, real & (i < n), region


@triton.jit
def _attend(
    QKV, PADDING, BIAS, WINDOWS, Y, SUMS, clips, scale,
    T: tl.constexpr, H: tl.constexpr, W: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    WT: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr, ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    HEADS: tl.constexpr, C: tl.constexpr, BIASED: tl.constexpr, HIDDEN: tl.constexpr, MIXED: tl.constexpr,
    KEPT: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One program: some queries of one head in one window of one clip. Heads run fastest: they share memory lines.

    HIDDEN: padding is not attended to; else its keys and values are those of PADDING, (3, m, c). MIXED: windows of
    several regions. KEPT: SUMS, (b, t, h, w, m), are wanted, the logarithms to base 2 of the sums of exponentials.
    """
    n: tl.constexpr = WT * WH * WW
    d: tl.constexpr = HEADS * C
    head, clip, window, i, query_place, real, region = _tile(
        WINDOWS, clips, T, H, W, PT, PH, PW, WT, WH, WW, ST, SH, SW, HEADS, QUERIES
    )
    channel = head * C + tl.arange(0, C)
    q = tl.load(QKV + (clip + query_place)[:, None] * (3 * d) + channel[None, :], mask=real[:, None], other=0.0)
    highest = tl.full([QUERIES], -float("inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    y = tl.zeros([QUERIES, C], tl.float32)
    for start in range(0, n, KEYS):
        j = start + tl.arange(0, KEYS)
        key_place, in_map, key_region = _places(window, j, T, H, W, PT, PH, PW, WT, WH, WW, ST, SH, SW)
        in_window = j < n
        in_map = in_map & in_window
        line = QKV + (clip + key_place)[:, None] * (3 * d) + channel[None, :]
        k = tl.load(line + d, mask=in_map[:, None], other=0.0)
        v = tl.load(line + 2 * d, mask=in_map[:, None], other=0.0)
        visible = in_map
        if not HIDDEN:
            padded = (in_window & (in_map == 0))[:, None]
            k = tl.where(padded, tl.load(PADDING + d + channel)[None, :], k)
            v = tl.where(padded, tl.load(PADDING + 2 * d + channel)[None, :], v)
            visible = in_window
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if BIASED:
            pair = (i < n)[:, None] & in_window[None, :]
            score += tl.load(BIAS + (head * n + i[:, None]) * n + j[None, :], mask=pair, other=0.0) * 1.4426950408889634
        allowed = visible[None, :]
        if MIXED:
            allowed = allowed & (region[:, None] == key_region[None, :])
        score = tl.where(allowed, score, -float("inf"))
        high = tl.maximum(highest, tl.max(score, 1))
        level = tl.where(high == -float("inf"), 0.0, high)  # nothing is allowed yet: infinity less itself is no number
        share, carried = tl.exp2(score - level[:, None]), tl.exp2(highest - level)
        total = total * carried + tl.sum(share, 1)
        y = y * carried[:, None] + tl.dot(share.to(v.dtype), v, input_precision="ieee")
        highest = high
    total = tl.where(total == 0.0, 1.0, total)
    if KEPT:
        tl.store(SUMS + (clip + query_place) * HEADS + head, highest + tl.log2(total), mask=real)
    y = y / total[:, None]
    tl.store(Y + (clip + query_place)[:, None] * d + channel[None, :], y.to(Y.dtype.element_ty), mask=real[:, None])


@triton.jit
def _shares(
    q, k, v, g, mean, level, BIAS, head, i, j, row, column, region, key_region, scale,
    N: tl.constexpr, BIASED: tl.constexpr, MIXED: tl.constexpr,
):  # fmt: skip
    """Shares of keys `j` in what queries `i` find, computed again, and the gradient of their scores."""
    score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    allowed = row[:, None] & column[None, :]
    if BIASED:
        score += tl.load(BIAS + (head * N + i[:, None]) * N + j[None, :], mask=allowed, other=0.0) * 1.4426950408889634
    if MIXED:
        allowed = allowed & (region[:, None] == key_region[None, :])
    share = tl.where(allowed, tl.exp2(score - level[:, None]), 0.0)
    change = share * (tl.dot(g, tl.trans(v), input_precision="ieee") - mean[:, None])
    return share, change


@triton.jit
def _query_gradients(
    QKV, BIAS, WINDOWS, G, MEANS, SUMS, OF_QKV, clips, scale,
    T: tl.constexpr, H: tl.constexpr, W: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    WT: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr, ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    HEADS: tl.constexpr, C: tl.constexpr, BIASED: tl.constexpr, MIXED: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The gradient of some queries, a program as in `_attend`. MEANS: of what comes back, weighted with the result."""
    n: tl.constexpr = WT * WH * WW
    d: tl.constexpr = HEADS * C
    head, clip, window, i, at, real, region = _tile(
        WINDOWS, clips, T, H, W, PT, PH, PW, WT, WH, WW, ST, SH, SW, HEADS, QUERIES
    )
    channel = head * C + tl.arange(0, C)
    query_line = (clip + at)[:, None] * (3 * d) + channel[None, :]
    q = tl.load(QKV + query_line, mask=real[:, None], other=0.0)
    g = tl.load(G + (clip + at)[:, None] * d + channel[None, :], mask=real[:, None], other=0.0)
    mean = tl.load(MEANS + (clip + at) * HEADS + head, mask=real, other=0.0)
    level = tl.load(SUMS + (clip + at) * HEADS + head, mask=real, other=0.0)
    total = tl.zeros([QUERIES, C], tl.float32)
    for start in range(0, n, KEYS):
        j = start + tl.arange(0, KEYS)
        key_place, visible, key_region = _places(window, j, T, H, W, PT, PH, PW, WT, WH, WW, ST, SH, SW)
        visible = visible & (j < n)
        line = QKV + (clip + key_place)[:, None] * (3 * d) + channel[None, :]
        k = tl.load(line + d, mask=visible[:, None], other=0.0)
        v = tl.load(line + 2 * d, mask=visible[:, None], other=0.0)
        share, change = _shares(
            q, k, v, g, mean, level, BIAS, head, i, j, real, visible, region, key_region, scale, n, BIASED, MIXED
        )
        total += tl.dot(change.to(k.dtype), k, input_precision="ieee")
    total = total * (scale / 1.4426950408889634)
    tl.store(OF_QKV + query_line, total.to(OF_QKV.dtype.element_ty), mask=real[:, None])


@triton.jit
def _key_gradients(
    QKV, BIAS, WINDOWS, G, MEANS, SUMS, OF_QKV, clips, scale,
    T: tl.constexpr, H: tl.constexpr, W: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    WT: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr, ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    HEADS: tl.constexpr, C: tl.constexpr, BIASED: tl.constexpr, MIXED: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The gradients of some keys and values: as `_query_gradients`, keys and queries exchanged."""
    n: tl.constexpr = WT * WH * WW
    d: tl.constexpr = HEADS * C
    head, clip, window, j, key_place, visible, key_region = _tile(
        WINDOWS, clips, T, H, W, PT, PH, PW, WT, WH, WW, ST, SH, SW, HEADS, KEYS
    )
    channel = head * C + tl.arange(0, C)
    line = (clip + key_place)[:, None] * (3 * d) + channel[None, :]
    k = tl.load(QKV + line + d, mask=visible[:, None], other=0.0)
    v = tl.load(QKV + line + 2 * d, mask=visible[:, None], other=0.0)
    grad_k = tl.zeros([KEYS, C], tl.float32)
    grad_v = tl.zeros([KEYS, C], tl.float32)
    for start in range(0, n, QUERIES):
        i = start + tl.arange(0, QUERIES)
        at, real, region = _places(window, i, T, H, W, PT, PH, PW, WT, WH, WW, ST, SH, SW)
        real = real & (i < n)
        q = tl.load(QKV + (clip + at)[:, None] * (3 * d) + channel[None, :], mask=real[:, None], other=0.0)
        g = tl.load(G + (clip + at)[:, None] * d + channel[None, :], mask=real[:, None], other=0.0)
        mean = tl.load(MEANS + (clip + at) * HEADS + head, mask=real, other=0.0)
        level = tl.load(SUMS + (clip + at) * HEADS + head, mask=real, other=0.0)
        share, change = _shares(
            q, k, v, g, mean, level, BIAS, head, i, j, real, visible, region, key_region, scale, n, BIASED, MIXED
        )
        grad_v += tl.dot(tl.trans(share).to(g.dtype), g, input_precision="ieee")
        grad_k += tl.dot(tl.trans(change).to(q.dtype), q, input_precision="ieee")
    grad_k = grad_k * (scale / 1.4426950408889634)
    tl.store(OF_QKV + line + d, grad_k.to(OF_QKV.dtype.element_ty), mask=visible[:, None])
    tl.store(OF_QKV + line + 2 * d, grad_v.to(OF_QKV.dtype.element_ty), mask=visible[:, None])


@triton.jit
def _bias_gradients(
    QKV, BIAS, WINDOWS, G, MEANS, SUMS, OF_BIAS, clips, scale, count,
    T: tl.constexpr, H: tl.constexpr, W: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    WT: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr, ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    HEADS: tl.constexpr, C: tl.constexpr, MIXED: tl.constexpr, EACH: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The gradient of some pairs of the bias, summed over EACH of the `count` windows of all clips.

    OF_BIAS is (parts, m, n, n), to be summed over the parts.
    """
    n: tl.constexpr = WT * WH * WW
    d: tl.constexpr = HEADS * C
    across: tl.constexpr = (n + KEYS - 1) // KEYS
    tiles: tl.constexpr = (n + QUERIES - 1) // QUERIES * across
    program = tl.program_id(0)
    tile, head, part = program % tiles, program // tiles % HEADS, program // (tiles * HEADS)
    channel = head * C + tl.arange(0, C)
    i = tile // across * QUERIES + tl.arange(0, QUERIES)
    j = tile % across * KEYS + tl.arange(0, KEYS)
    total = tl.zeros([QUERIES, KEYS], tl.float32)
    for turn in range(0, EACH):
        number = part * EACH + turn
        within = number < count
        number = tl.where(within, number, 0)
        clip = (number % clips).to(tl.int64) * (T * H * W)
        window = tl.load(WINDOWS + number // clips)
        at, real, region = _places(window, i, T, H, W, PT, PH, PW, WT, WH, WW, ST, SH, SW)
        key_place, visible, key_region = _places(window, j, T, H, W, PT, PH, PW, WT, WH, WW, ST, SH, SW)
        real, visible = real & (i < n) & within, visible & (j < n)
        q = tl.load(QKV + (clip + at)[:, None] * (3 * d) + channel[None, :], mask=real[:, None], other=0.0)
        line = QKV + (clip + key_place)[:, None] * (3 * d) + channel[None, :]
        k = tl.load(line + d, mask=visible[:, None], other=0.0)
        v = tl.load(line + 2 * d, mask=visible[:, None], other=0.0)
        g = tl.load(G + (clip + at)[:, None] * d + channel[None, :], mask=real[:, None], other=0.0)
        mean = tl.load(MEANS + (clip + at) * HEADS + head, mask=real, other=0.0)
        level = tl.load(SUMS + (clip + at) * HEADS + head, mask=real, other=0.0)
        share, change = _shares(
            q, k, v, g, mean, level, BIAS, head, i, j, real, visible, region, key_region, scale, n, True, MIXED
        )
        total += change
    to = OF_BIAS + ((part * HEADS + head).to(tl.int64) * n + i[:, None]) * n + j[None, :]
    tl.store(to, total, mask=(i < n)[:, None] & (j < n)[None, :])


@triton_op("attention_zoo::window_attend", mutates_args={})
def window_attend(
    qkv: Tensor, padding: Tensor | None, bias: Tensor | None, windows: Tensor, plain: int, num_heads: int,
    padded: list[int], window: list[int], shift: list[int], keep: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention of each token to those of its window and region.

    Args:
        qkv: (b, t, h, w, 3 * m * c), part-major.
        padding: (3 * m * c), what queries, keys and values of padding are; None hides padding. It has no gradient.
        bias: (m, n, n), added to the scaled scores.
        windows: the numbers of all windows, int32, of which the first `plain` forbid nothing.
        padded, window, shift: along (t, h, w).
        keep: whether there will be a backward pass.

    Returns:
        (b, t, h, w, m * c), and for the backward pass the logarithms of the sums of exponentials, (b, t, h, w, m).
    """
    qkv = qkv.contiguous()
    b, t, h, w, triple = qkv.shape
    d = triple // 3
    y, sums = (
        qkv.new_empty(b, t, h, w, d),
        qkv.new_empty((b, t, h, w, num_heads) if keep else (0,), dtype=torch.float32),
    )
    size, sizes = _size(window), (t, h, w, *padded, *window, *shift, num_heads, d // num_heads)
    # Two launches: most windows forbid nothing, and comparing regions takes registers.
    for mixed, numbers in ((False, windows[:plain]), (True, windows[plain:])):
        if len(numbers):
            wrap_triton(_attend)[(_programs(numbers, window, num_heads, b),)](
                qkv, qkv if padding is None else padding, qkv if bias is None else bias, numbers, y, sums, b,
                _scale(d // num_heads), *sizes, bias is not None, padding is None, mixed, keep,
                size, size, num_warps=WARPS, num_stages=STAGES,
            )  # fmt: skip
    return y, sums


@triton_op("attention_zoo::window_attend_backward", mutates_args={})
def window_gradients(
    gradient: Tensor, y: Tensor, sums: Tensor, qkv: Tensor, bias: Tensor | None, windows: Tensor, plain: int,
    padded: list[int], window: list[int], shift: list[int], with_bias: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The gradients of `qkv` and, if it is wanted, of the bias, in float32; both the same in every run."""
    qkv, gradient = qkv.contiguous(), gradient.contiguous()
    b, t, h, w, num_heads = sums.shape
    c, n = y.shape[-1] // num_heads, window[0] * window[1] * window[2]
    means = (gradient.float() * y.float()).unflatten(-1, (num_heads, c)).sum(-1)
    grad_qkv = torch.empty_like(qkv)
    size, sizes = _size(window), (t, h, w, *padded, *window, *shift, num_heads, c)
    added = qkv if bias is None else bias
    for mixed, numbers in ((False, windows[:plain]), (True, windows[plain:])):
        for program in (_query_gradients, _key_gradients) if len(numbers) else ():
            wrap_triton(program)[(_programs(numbers, window, num_heads, b),)](
                qkv, added, numbers, gradient, means, sums, grad_qkv, b, _scale(c), *sizes, bias is not None, mixed,
                size, size, num_warps=WARPS, num_stages=STAGES,
            )  # fmt: skip
    if not with_bias:
        return grad_qkv, sums.new_empty(0)
    count, pairs = len(windows) * b, num_heads * triton.cdiv(n, size) ** 2
    each = triton.cdiv(count, max(1, min(count, BIAS_PROGRAMS // pairs)))
    parts = triton.cdiv(count, each)
    grad_pairs = sums.new_empty(parts, num_heads, n, n)
    wrap_triton(_bias_gradients)[(pairs * parts,)](
        qkv, added, windows, gradient, means, sums, grad_pairs, b, _scale(c), count, *sizes, plain < len(windows), each,
        size, size, num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    return grad_qkv, grad_pairs.sum(0)


def _size(window: list[int]) -> int:
    """Of tiles: of queries, and of keys."""
    return min(QUERIES, max(16, triton.next_power_of_2(window[0] * window[1] * window[2])))


def _programs(numbers: Tensor, window: list[int], num_heads: int, clips: int) -> int:
    return num_heads * triton.cdiv(window[0] * window[1] * window[2], _size(window)) * len(numbers) * clips


def _scale(channels: int) -> float:
    return LOG2_E * channels**-0.5


def _keep(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    qkv, _, bias, windows, *ctx.sizes, _ = inputs
    ctx.save_for_backward(qkv, bias, windows, *output)
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx, gradient: Tensor, _) -> tuple[Tensor | None, ...]:
    qkv, bias, windows, y, sums = ctx.saved_tensors
    plain, _, *sizes = ctx.sizes
    with_bias = bias is not None and ctx.needs_input_grad[2]
    grad_qkv, grad_pairs = window_gradients(gradient, y, sums, qkv, bias, windows, plain, *sizes, with_bias)
    return grad_qkv, None, grad_pairs.to(bias.dtype) if with_bias else None, *[None] * 7


window_attend.register_autograd(_gradients, setup_context=_keep)


@register_flop_formula(torch.ops.attention_zoo.window_attend)
def _flops(qkv, padding, bias, windows, plain, num_heads, padded, window, *args, out_shape=None, **kwargs) -> int:
    """Two products for each pair of a window, as a counter of PyTorch counts fused attention."""
    return 4 * qkv[0] * windows[0] * (window[0] * window[1] * window[2]) ** 2 * (qkv[-1] // 3)


@register_flop_formula(torch.ops.attention_zoo.window_attend_backward)
def _flops_backward(
    gradient, y, sums, qkv, bias, windows, plain, padded, window, *args, out_shape=None, **kwargs
) -> int:
    """Five products for each pair, as for fused attention: what is computed again once more is not counted."""
    return 10 * qkv[0] * windows[0] * (window[0] * window[1] * window[2]) ** 2 * (qkv[-1] // 3)
