"""A depthwise convolution of channels-last tokens and its gradients as programs of Triton, for CUDA.

PyTorch gives 3-D depthwise convolutions on channels-last views to cuDNN, which has no code of its own for them. Here
each token is read from memory once: the taps around it come from the cache. Imported where a GPU asks for it; Triton
need not be installed. With TRITON_INTERPRET=1 it runs on CPU tensors, as the tests do.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

TOKENS, CHANNELS, WARPS = 32, 64, 4  # of one program


@triton.jit
def _convolve(
    X, TAPS, BIAS, Y,
    T: tl.constexpr, H: tl.constexpr, W: tl.constexpr, D: tl.constexpr,
    KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    RESIDUAL: tl.constexpr, BIASED: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One program: some tokens of a row of the map, some channels. TAPS are (kt, kh, kw, d)."""
    row = tl.program_id(0).to(tl.int64)  # of all rows of all frames of all clips
    w = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    d = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    h, t = row % H, row // H % T
    real = (w[:, None] < W) & (d[None, :] < D)
    offset = (row * W + w[:, None]) * D + d[None, :]
    total = tl.zeros([TOKENS, CHANNELS], tl.float32)
    if BIASED:
        total += tl.load(BIAS + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
    if RESIDUAL:
        total += tl.load(X + offset, mask=real, other=0.0).to(tl.float32)
    for i in tl.static_range(KT):
        for j in tl.static_range(KH):
            dt, dh = i - KT // 2, j - KH // 2
            inside = (t + dt >= 0) & (t + dt < T) & (h + dh >= 0) & (h + dh < H)
            for k in tl.static_range(KW):
                column = w + (k - KW // 2)
                among = real & inside & (column[:, None] >= 0) & (column[:, None] < W)
                x = tl.load(X + offset + ((dt * H + dh) * W + (k - KW // 2)) * D, mask=among, other=0.0)
                tap = tl.load(TAPS + ((i * KH + j) * KW + k) * D + d, mask=d < D, other=0.0)
                total += x.to(tl.float32) * tap.to(tl.float32)[None, :]
    tl.store(Y + offset, total.to(Y.dtype.element_ty), mask=real)


@triton.jit
def _sum_taps(
    X, G, SUMS,
    T: tl.constexpr, H: tl.constexpr, W: tl.constexpr, D: tl.constexpr,
    KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One program: what one tap met in one frame. SUMS are (frames, kt * kh * kw, d), to be summed over frames."""
    frame = tl.program_id(0).to(tl.int64)
    tap = tl.program_id(1)
    d = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    dt, dh, dw = tap // (KH * KW) - KT // 2, tap // KW % KH - KH // 2, tap % KW - KW // 2
    t = frame % T
    total = tl.zeros([CHANNELS], tl.float32)
    for h in range(H):
        for start in range(0, W, TOKENS):
            w = start + tl.arange(0, TOKENS)
            real = (w[:, None] < W) & (d[None, :] < D)
            inside = (t + dt >= 0) & (t + dt < T) & (h + dh >= 0) & (h + dh < H)
            among = real & inside & (w[:, None] + dw >= 0) & (w[:, None] + dw < W)
            offset = ((frame * H + h) * W + w[:, None]) * D + d[None, :]
            x = tl.load(X + offset + ((dt * H + dh) * W + dw) * D, mask=among, other=0.0).to(tl.float32)
            g = tl.load(G + offset, mask=real, other=0.0).to(tl.float32)
            total += tl.sum(x * g, 0)
    tl.store(SUMS + (frame * (KT * KH * KW) + tap) * D + d, total, mask=d < D)


@triton_op("attention_zoo::depthwise", mutates_args={})
def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool) -> Tensor:
    """The convolution with zeros around, plus x if `residual`; x (b, t, h, w, d), weight (d, 1, kt, kh, kw)."""
    x = x.contiguous()
    b, t, h, w, d = x.shape
    taps, y = weight[:, 0].permute(1, 2, 3, 0).contiguous(), torch.empty_like(x)
    tokens, channels = _sizes(w, d)
    wrap_triton(_convolve)[(b * t * h, triton.cdiv(w, tokens), triton.cdiv(d, channels))](
        x, taps, x if bias is None else bias, y, t, h, w, d, *weight.shape[2:], residual, bias is not None,
        tokens, channels, num_warps=WARPS,
    )  # fmt: skip
    return y


@triton_op("attention_zoo::depthwise_taps", mutates_args={})
def tap_sums(x: Tensor, gradient: Tensor, kt: int, kh: int, kw: int) -> Tensor:
    """The gradient of the weight, (d, 1, kt, kh, kw) in float32; the same in every run."""
    x, gradient = x.contiguous(), gradient.contiguous()
    b, t, h, w, d = x.shape
    sums = x.new_empty(b * t, kt * kh * kw, d, dtype=torch.float32)
    tokens, channels = _sizes(w, d)
    wrap_triton(_sum_taps)[(b * t, kt * kh * kw, triton.cdiv(d, channels))](
        x, gradient, sums, t, h, w, d, kt, kh, kw, tokens, channels, num_warps=WARPS
    )
    return sums.sum(0).t().reshape(d, 1, kt, kh, kw)


def _sizes(w: int, d: int) -> tuple[int, int]:
    return min(TOKENS, triton.next_power_of_2(w)), min(CHANNELS, triton.next_power_of_2(d))


def _keep(ctx, inputs: tuple, output: Tensor) -> None:
    x, weight, bias, ctx.residual = inputs
    ctx.biased = bias is not None
    ctx.save_for_backward(x, weight)


def _gradients(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
    x, weight = ctx.saved_tensors
    needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
    return (
        depthwise(gradient, weight.flip(2, 3, 4), None, ctx.residual) if needs_x else None,
        tap_sums(x, gradient, *weight.shape[2:]).to(weight.dtype) if needs_weight else None,
        gradient.sum((0, 1, 2, 3)) if ctx.biased and needs_bias else None,
        None,
    )


depthwise.register_autograd(_gradients, setup_context=_keep)
