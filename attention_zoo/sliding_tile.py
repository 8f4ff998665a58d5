"""Sliding tile attention: neighbourhood attention in units of tiles, so that blocks of scores are full or empty."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attention_zoo import gathered
from attention_zoo.grid import Grid
from attention_zoo.kernels import AUTO
from attention_zoo.neighborhood import axes, near, neighborhoods
from attention_zoo.projected import Projected
from attention_zoo.scheme import register

ONE, NEVER = Grid(1, 1, 1), (False, False, False)


@register("sliding_tile")
class SlidingTileAttention(Projected):
    """Source: Zhang et al., Sliding Tile Attention, arXiv:2502.04507, Sec. 3; code: hao-ai-lab/FastVideo@2f3d4074
    (Apache-2.0).

    Args:
        tile: tokens of a tile, clipped to the grid. The published one is (6, 8, 8); ours divides every map of the
            shared pyramid.
        window: how many tiles a tile sees along each axis: one triple, or one for each head. Windows stop at the border
            at full size. As published, an even number sees one more: half of it on both sides of the tile.

    It equals `neighborhood` with window = tiles times tile and stride = tile, and is computed as that; so a grid that
    tiles do not divide (the published code refuses it) has a last, partial tile, whose window ends at the border.
    """

    example = dict(tile=(2, 2, 3), window=(1, 3, 2))
    growth = {"frames": (1, 1), "size": (1, 1)}

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: Grid,
        *,
        tile: Sequence[int] = (4, 7, 7),
        window: Sequence[int] | Sequence[Sequence[int]] = (3, 3, 3),
        kernel: str = AUTO,
    ):
        super().__init__(dim, num_heads, grid, kernel)
        self.tile = Grid.of(tile, "tile")
        if isinstance(window, Sequence) and window and isinstance(window[0], Sequence):
            self.windows = [Grid.of(size, "window of a head") for size in window]
        else:
            self.windows = [Grid.of(window, "window")] * num_heads
        if len(self.windows) != num_heads:
            raise ValueError(
                f"{len(self.windows)} windows for {num_heads} heads; give one for each head, or one triple"
            )

    def attention(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> Float[Tensor, "b n m c"]:
        outputs = [None] * self.num_heads
        for window in dict.fromkeys(self.windows):
            heads = [head for head, head_window in enumerate(self.windows) if head_window == window]
            parts = (q, k, v) if len(heads) == self.num_heads else (part[:, :, heads] for part in (q, k, v))
            y = near(*parts, self._key(grid, window), self.kernel)
            for head, output in zip(heads, y.unbind(2), strict=True):
                outputs[head] = output
        return torch.stack(outputs, 2)

    def _key(self, grid: Grid, window: Grid) -> tuple:
        tile = grid.clipped(self.tile)
        tiles = grid.ceil_div(tile).clipped(Grid(*(n + 1 - n % 2 for n in window)))
        return grid, grid.clipped(tiles.times(tile)), tile, ONE, NEVER

    def products(self) -> int:
        """Scores and weighted sum over the tokens of each head's window."""
        keys = (math.prod(map(gathered.pairs, axes(*self._key(self.grid, window)))) for window in self.windows)
        return 2 * (self.dim // self.num_heads) * sum(keys)

    def buckets(self) -> list[gathered.Group]:
        """Of all heads together."""
        windows = dict.fromkeys(self.windows)
        return [bucket for window in windows for bucket in neighborhoods(*self._key(self.grid, window))]

    def reach(self) -> Bool[Tensor, "n n"]:
        """What any head sees."""
        return gathered.reach(self.grid.tokens, self.buckets())
