"""Cutting a token map into non-overlapping 3-D windows: padding, cyclic shift, who may attend to whom, position bias.

One rule covers shift and padding: every token of the (padded, rolled) map has a label, and inside a window a token
attends to the tokens of its own label. Labels number the regions that the cyclic shift brought together from opposite
sides of the map; padding has a label of its own, so that no real token attends to it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

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


def forbids(tiling: Tiling) -> bool:
    """Whether any window holds tokens of different labels."""
    return any(tiling.shift) or (tiling.padding == "masked" and tiling.padded != tiling.grid)


def labels(tiling: Tiling, device: torch.device | str = "cpu") -> Int[Tensor, "s n"]:
    """The label of every token of every window."""
    region = torch.zeros(tuple(tiling.padded), dtype=torch.int64, device=device)
    for axis, (n, size, shift) in enumerate(zip(tiling.padded, tiling.window, tiling.shift, strict=True)):
        if shift:
            at = torch.arange(n, device=device)
            cut = (at >= n - size).long() + (at >= n - shift)
            region = region * 3 + cut.view([-1 if a == axis else 1 for a in range(3)])
    if tiling.padding == "masked" and tiling.padded != tiling.grid:
        region = region.masked_fill(_token_numbers(tiling, device) == PADDED, PADDED)
    return _cut(region, tiling.window)


def _token_numbers(tiling: Tiling, device: torch.device | str) -> Int[Tensor, "t h w"]:
    """The padded, rolled map, each token with its number in (t, h, w) order, padding with PADDED."""
    number = torch.arange(tiling.grid.tokens, device=device).view(tuple(tiling.grid))
    t, h, w = (p - n for p, n in zip(tiling.padded, tiling.grid, strict=True))
    return pad(number, (0, w, 0, h, 0, t), value=PADDED).roll([-s for s in tiling.shift], dims=(0, 1, 2))


def _cut(x: Int[Tensor, "t h w"], window: Grid) -> Int[Tensor, "s n"]:
    wt, wh, ww = window
    return rearrange(x, "(nt wt) (nh wh) (nw ww) -> (nt nh nw) (wt wh ww)", wt=wt, wh=wh, ww=ww)


def reach(tiling: Tiling) -> Bool[Tensor, "n n"]:
    """Which tokens of the grid share a window and a label."""
    number, label = _cut(_token_numbers(tiling, "cpu"), tiling.window), labels(tiling)
    pairs = (label[:, :, None] == label[:, None]) & (number[:, :, None] >= 0) & (number[:, None] >= 0)
    s, i, j = pairs.nonzero(as_tuple=True)
    seen = torch.zeros(tiling.grid.tokens, tiling.grid.tokens, dtype=torch.bool)
    seen[number[s, i], number[s, j]] = True
    return seen


def mask(tiling: Tiling, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "s 1 n n"] | None:
    """0 where two tokens of a window share their label, minus infinity where not; None where nothing is forbidden."""
    return _constant(_mask, tiling, device, dtype) if forbids(tiling) else None


def _mask(tiling: Tiling, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "s 1 n n"]:
    label = labels(tiling, device)
    apart = label[:, None, :, None] != label[:, None, None, :]
    return torch.zeros(apart.shape, dtype=dtype, device=device).masked_fill(apart, -torch.inf)


def bias_rows(nominal: Grid, used: Grid, rule: ClippedBias, device: torch.device | str = "cpu") -> Int[Tensor, " p"]:
    """The row of the bias table for each (query, key) pair of a window, flattened; tokens in (t, h, w) order.

    Source: Video Swin Transformer, arXiv:2106.13230, Sec. 3.2. Where a window is clipped, the released code takes the
    first rows and columns of the nominal window's indices ("published"); these are right where only time is clipped and
    belong to other offsets where height or width is. "geometric" keeps the offsets right.
    """
    _, h, w = nominal if rule == "published" else used
    number = torch.arange(used.tokens, device=device)
    t, h, w = number // (h * w), number // w % h, number % w
    dt, dh, dw = (a[:, None] - a + (n - 1) for a, n in zip((t, h, w), (nominal.t, nominal.h, nominal.w), strict=True))
    return ((dt * (2 * nominal.h - 1) + dh) * (2 * nominal.w - 1) + dw).flatten()


def _constant(make: Callable[..., Tensor], *key) -> Tensor:
    """A tensor that follows from its key alone, cached outside of any state dict.

    Inside a compiled model it is computed where it is used, which the compiler fuses; under a dispatch mode, which may
    make fake tensors, it is not kept. It is made outside of inference mode, whose tensors no training step could use.
    """
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
        return make(*key)
    with torch.inference_mode(False):
        return _cached(make, *key)


@functools.lru_cache(maxsize=32)
def _cached(make: Callable[..., Tensor], *key) -> Tensor:
    return make(*key)


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
        rows = _constant(bias_rows, self.window, used, self.clipped, self.table.device)
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
