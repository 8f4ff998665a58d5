"""Weighted sums of blocks of channels-last tokens, and their gradients, as programs of Triton, for CUDA.

Each token is read from memory once. Imported where a GPU asks for it; Triton need not be installed. With
TRITON_INTERPRET=1 it runs on CPU tensors, as the tests do.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

BLOCKS, CHANNELS, WARPS = 8, 64, 4  # of one program


@triton.jit
def _sum_blocks(
    X, TAPS, BIAS, Y,
    H: tl.constexpr, W: tl.constexpr, D: tl.constexpr, BT: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr,
    BIASED: tl.constexpr, BLOCKS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One program: some blocks of a row of blocks, some channels. TAPS are (bt, bh, bw, d)."""
    row = tl.program_id(0).to(tl.int64)  # of all rows of blocks of all clips, whose frames are whole blocks too
    w = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    d = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    down: tl.constexpr = H // BH
    across: tl.constexpr = W // BW
    real = (w[:, None] < across) & (d[None, :] < D)
    first = ((row // down * BT * H + row % down * BH) * W + w[:, None] * BW) * D + d[None, :]
    total = tl.zeros([BLOCKS, CHANNELS], tl.float32)
    if BIASED:
        total += tl.load(BIAS + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
    for i in range(BT):
        for j in range(BH):
            for k in range(BW):
                x = tl.load(X + first + ((i * H + j) * W + k) * D, mask=real, other=0.0)
                tap = tl.load(TAPS + ((i * BH + j) * BW + k) * D + d, mask=d < D, other=0.0)
                total += x.to(tl.float32) * tap.to(tl.float32)[None, :]
    tl.store(Y + (row * across + w[:, None]) * D + d[None, :], total.to(Y.dtype.element_ty), mask=real)


@triton.jit
def _sum_taps(
    X, G, SUMS,
    H: tl.constexpr, W: tl.constexpr, D: tl.constexpr, BT: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr,
    BLOCKS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One program: what one tap met in one layer of blocks. SUMS are (layers, bt * bh * bw, d), to be summed."""
    layer = tl.program_id(0).to(tl.int64)
    tap = tl.program_id(1)
    d = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    down: tl.constexpr = H // BH
    across: tl.constexpr = W // BW
    first = ((layer * BT + tap // (BH * BW)) * H + tap // BW % BH) * W + tap % BW
    total = tl.zeros([CHANNELS], tl.float32)
    for h in range(down):
        for start in range(0, across, BLOCKS):
            w = start + tl.arange(0, BLOCKS)
            real = (w[:, None] < across) & (d[None, :] < D)
            x = tl.load(X + (first + h * BH * W + w[:, None] * BW) * D + d[None, :], mask=real, other=0.0)
            g = tl.load(G + ((layer * down + h) * across + w[:, None]) * D + d[None, :], mask=real, other=0.0)
            total += tl.sum(x.to(tl.float32) * g.to(tl.float32), 0)
    tl.store(SUMS + (layer * (BT * BH * BW) + tap) * D + d, total, mask=d < D)


@triton_op("attention_zoo::block_sums", mutates_args={})
def block_sums(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (b, t, h, w, d) in whole blocks, weight (d, 1, bt, bh, bw); returns (b, t / bt, h / bh, w / bw, d)."""
    x = x.contiguous()
    (b, t, h, w, d), (bt, bh, bw) = x.shape, weight.shape[2:]
    y = x.new_empty(b, t // bt, h // bh, w // bw, d)
    blocks, channels = _sizes(w // bw, d)
    wrap_triton(_sum_blocks)[(b * (t // bt) * (h // bh), triton.cdiv(w // bw, blocks), triton.cdiv(d, channels))](
        x, weight[:, 0].permute(1, 2, 3, 0).contiguous(), x if bias is None else bias, y, h, w, d, bt, bh, bw,
        bias is not None, blocks, channels, num_warps=WARPS,
    )  # fmt: skip
    return y


@triton_op("attention_zoo::block_taps", mutates_args={})
def tap_sums(x: Tensor, gradient: Tensor, bt: int, bh: int, bw: int) -> Tensor:
    """The gradient of the weight, (d, 1, bt, bh, bw) in float32; the same in every run."""
    x, gradient = x.contiguous(), gradient.contiguous()
    b, t, h, w, d = x.shape
    layers, taps = b * (t // bt), bt * bh * bw
    sums = x.new_empty(layers, taps, d, dtype=torch.float32)
    blocks, channels = _sizes(w // bw, d)
    wrap_triton(_sum_taps)[(layers, taps, triton.cdiv(d, channels))](
        x, gradient, sums, h, w, d, bt, bh, bw, blocks, channels, num_warps=WARPS
    )
    return sums.sum(0).t().reshape(d, 1, bt, bh, bw)


def _sizes(across: int, d: int) -> tuple[int, int]:
    return min(BLOCKS, triton.next_power_of_2(across)), min(CHANNELS, triton.next_power_of_2(d))


def _keep(ctx, inputs: tuple, output: Tensor) -> None:
    x, weight, bias = inputs
    ctx.biased = bias is not None
    ctx.save_for_backward(x, weight)


def _gradients(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad
    expanded = gradient[:, :, None, :, None, :, None]  # b pt 1 ph 1 pw 1 d
    return (
        (expanded * weight[:, 0].permute(1, 2, 3, 0)[:, None, :, None]).reshape(x.shape) if needs_x else None,
        tap_sums(x, gradient, *weight.shape[2:]).to(weight.dtype) if needs_weight else None,
        gradient.sum((0, 1, 2, 3)) if ctx.biased and needs_bias else None,
    )


block_sums.register_autograd(_gradients, setup_context=_keep)
