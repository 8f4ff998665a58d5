"""Cutting a token map into non-overlapping 3-D windows: padding, cyclic shift, who may attend to whom, position bias.

One rule covers shift and padding: every token of the (padded, rolled) map has a label, and inside a window a token
attends to the tokens of its own label. Labels number the regions that the cyclic shift brought together from opposite
sides of the map; padding has a label of its own, so that no real token attends to it.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from attention_zoo.grid import Grid
from attention_zoo.sequence import self_attention, self_attention_macs

Padding = Literal["masked", "attended"]
ClippedBias = Literal["geometric", "published"]
PADDED = -1  # the label of tokens that padding added


class Tiling(NamedTuple):
    """How windows lie on a grid: the window really used, its shift, and whether padding can be attended to."""

    grid: Grid
    window: Grid
    shift: tuple[int, int, int] = (0, 0, 0)
    padding: Padding = "masked"

    @classmethod
    def fitted(
        cls, grid: Grid, window: Grid, shift: tuple[int, int, int] = (0, 0, 0), padding: Padding = "masked"
    ) -> Tiling:
        """The window clipped to the grid; no shift along an axis that one window covers."""
        used = tuple(0 if n <= size else s for n, size, s in zip(grid, window, shift, strict=True))
        return cls(grid, grid.clipped(window), used, padding)

    @property
    def padded(self) -> Grid:
        return self.grid.padded(self.window)

    @property
    def count(self) -> int:
        """Number of windows."""
        return self.grid.ceil_div(self.window).tokens


def check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name} {value!r} is not one of {', '.join(get_args(choices))}")


def grid_of(x: Float[Tensor, "b t h w d"]) -> Grid:
    """The grid of a token map, as integers even under `torch.jit.trace`, where sizes are tensors (fvcore counts so)."""
    _, t, h, w, _ = x.shape
    return Grid(int(t), int(h), int(w))


def partition(x: Float[Tensor, "b t h w d"], tiling: Tiling) -> Float[Tensor, "s n d"]:
    """Pads at the end of each axis, rolls by minus the shift, cuts: b * count sequences of window.tokens tokens."""
    if tiling.padded != tiling.grid:
        t, h, w = (p - n for p, n in zip(tiling.padded, tiling.grid, strict=True))
        x = pad(x, (0, 0, 0, w, 0, h, 0, t))
    if any(tiling.shift):
        x = x.roll([-s for s in tiling.shift], dims=(1, 2, 3))
    wt, wh, ww = tiling.window
    return rearrange(x, "b (nt wt) (nh wh) (nw ww) d -> (b nt nh nw) (wt wh ww) d", wt=wt, wh=wh, ww=ww)


def reverse(windows: Float[Tensor, "s n d"], tiling: Tiling) -> Float[Tensor, "b t h w d"]:
    """Undoes `partition`: joins, rolls back, crops the padding."""
    (nt, nh, nw), (wt, wh, ww) = tiling.grid.ceil_div(tiling.window), tiling.window
    x = rearrange(
        windows,
        "(b nt nh nw) (wt wh ww) d -> b (nt wt) (nh wh) (nw ww) d",
        nt=nt, nh=nh, nw=nw, wt=wt, wh=wh, ww=ww,
    )  # fmt: skip
    if any(tiling.shift):
        x = x.roll(tiling.shift, dims=(1, 2, 3))
    if tiling.padded != tiling.grid:
        x = x[:, : tiling.grid.t, : tiling.grid.h, : tiling.grid.w]
    return x


@functools.lru_cache(maxsize=512)
def labels(tiling: Tiling) -> np.ndarray | None:
    """Labels (count, window.tokens), or None where they forbid nothing because each window has a single label."""
    region = np.zeros(tiling.padded, dtype=np.int64)
    for axis, (n, size, shift) in enumerate(zip(tiling.padded, tiling.window, tiling.shift, strict=True)):
        if shift:
            at = np.arange(n)
            cut = (at >= n - size).astype(np.int64) + (at >= n - shift)
            region = region * 3 + np.expand_dims(cut, tuple(a for a in range(3) if a != axis))
    if tiling.padding == "masked" and tiling.padded != tiling.grid:
        real = np.zeros(tiling.padded, dtype=bool)
        real[: tiling.grid.t, : tiling.grid.h, : tiling.grid.w] = True
        region[~np.roll(real, [-s for s in tiling.shift], axis=(0, 1, 2))] = PADDED
    found = _cut(region, tiling.window)
    return None if (found == found[:, :1]).all() else found


def _cut(x: np.ndarray, window: Grid) -> np.ndarray:
    wt, wh, ww = window
    return rearrange(x, "(nt wt) (nh wh) (nw ww) -> (nt nh nw) (wt wh ww)", wt=wt, wh=wh, ww=ww)


def reach(tiling: Tiling) -> Bool[Tensor, "n n"]:
    """Which tokens of the grid share a window and a label."""
    number = np.full(tiling.padded, PADDED, dtype=np.int64)
    number[: tiling.grid.t, : tiling.grid.h, : tiling.grid.w] = np.arange(tiling.grid.tokens).reshape(tiling.grid)
    number = _cut(np.roll(number, [-s for s in tiling.shift], axis=(0, 1, 2)), tiling.window)
    label = labels(tiling)
    label = np.zeros_like(number) if label is None else label
    pairs = (label[:, :, None] == label[:, None]) & (number[:, :, None] >= 0) & (number[:, None] >= 0)
    s, i, j = pairs.nonzero()
    seen = torch.zeros(tiling.grid.tokens, tiling.grid.tokens, dtype=torch.bool)
    seen[torch.from_numpy(number[s, i]), torch.from_numpy(number[s, j])] = True
    return seen


def mask(tiling: Tiling, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "s 1 n n"] | None:
    """0 where two tokens of a window share their label, minus infinity where not; None where nothing is forbidden."""
    grid, window = (tiling.grid.t, tiling.grid.h, tiling.grid.w), (tiling.window.t, tiling.window.h, tiling.window.w)
    return _mask_constant(grid, window, tiling.shift, tiling.padding, device, dtype)


@torch.compiler.assume_constant_result
def _mask_constant(grid, window, shift, padding, device, dtype) -> Tensor | None:
    # Plain tuples: torch.compile cannot hand named ones to a function whose result it takes as a constant.
    return _constant(_mask, Tiling(Grid(*grid), Grid(*window), shift, padding), device, dtype)


@functools.lru_cache(maxsize=32)
def _mask(tiling: Tiling, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    label = labels(tiling)
    if label is None:
        return None
    apart = torch.from_numpy(label[:, None, :, None] != label[:, None, None, :])
    return torch.zeros(apart.shape, dtype=dtype, device="cpu").masked_fill_(apart, -torch.inf).to(device)


@functools.lru_cache(maxsize=512)
def bias_rows(nominal: Grid, used: Grid, rule: ClippedBias) -> np.ndarray:
    """The row of the bias table for each (query, key) pair of a window, flattened; tokens in (t, h, w) order.

    Source: Video Swin Transformer, arXiv:2106.13230, Sec. 3.2. Where a window is clipped, the released code takes the
    first rows and columns of the nominal window's indices ("published"); these are right where only time is clipped and
    belong to other offsets where height or width is. "geometric" keeps the offsets right.
    """
    at = np.stack(np.unravel_index(np.arange(nominal.tokens), nominal))
    if rule == "published":
        at = at[:, : used.tokens]
    else:
        at = at[:, (at < np.array(used)[:, None]).all(0)]
    dt, dh, dw = at[:, :, None] - at[:, None] + (np.array(nominal) - 1)[:, None, None]
    return ((dt * (2 * nominal.h - 1) + dh) * (2 * nominal.w - 1) + dw).ravel()


@functools.lru_cache(maxsize=64)
def _rows(nominal: Grid, used: Grid, rule: ClippedBias, device: torch.device) -> Int[Tensor, " p"]:
    return torch.from_numpy(bias_rows(nominal, used, rule)).to(device)


@torch.compiler.assume_constant_result
def _rows_constant(nominal, used, rule, device) -> Int[Tensor, " p"]:
    return _constant(_rows, Grid(*nominal), Grid(*used), rule, device)


def _constant(make, *key):
    """A cached constant, outside of any state dict; not cached under a dispatch mode, which may make fake tensors.

    Made outside of inference mode, whose tensors no later training step could use.
    """
    with torch.inference_mode(False):
        return make.__wrapped__(*key) if is_in_torch_dispatch_mode() else make(*key)


class RelativeBias(nn.Module):
    """A learned bias for every offset inside a window and head, shared by all windows."""

    def __init__(self, window: Grid, num_heads: int, clipped: ClippedBias = "geometric"):
        super().__init__()
        self.window, self.clipped = window, clipped
        offsets = (2 * window.t - 1) * (2 * window.h - 1) * (2 * window.w - 1)
        self.table = nn.Parameter(torch.empty(offsets, num_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, used: Grid) -> Float[Tensor, "1 m n n"]:
        """The bias of a window that may be clipped; queries, then keys."""
        nominal, clipped = (self.window.t, self.window.h, self.window.w), (used.t, used.h, used.w)
        rows = _rows_constant(nominal, clipped, self.clipped, self.table.device)
        return rearrange(self.table[rows], "(i j) m -> 1 m i j", i=used.tokens)


def window_attention(
    x: Float[Tensor, "b t h w d"],
    qkv: nn.Linear,
    proj: nn.Linear,
    num_heads: int,
    tiling: Tiling,
    bias: RelativeBias | None,
    *,
    kernel: str,
) -> Float[Tensor, "b t h w d"]:
    """Self-attention inside the windows of `tiling`."""
    forbidden = mask(tiling, x.device, x.dtype)
    added = None if bias is None else bias(tiling.window)
    if added is None:
        added = forbidden
    elif forbidden is not None:
        added = added + forbidden
    y = self_attention(partition(x, tiling), qkv, proj, num_heads, added, kernel=kernel)
    return reverse(y, tiling)


def window_attention_macs(tiling: Tiling, dim: int) -> int:
    """Every window costs the same, the padded tokens in it included."""
    return self_attention_macs(tiling.count, tiling.window.tokens, dim)
