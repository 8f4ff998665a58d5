"""Video sparse attention: attention between pooled tiles chooses the tiles that get attention token by token."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attention_zoo import blocks
from attention_zoo.grid import Grid
from attention_zoo.kernels import AUTO
from attention_zoo.projected import projected
from attention_zoo.scheme import register
from attention_zoo.windows import grid_of


@register("video_sparse")
class VideoSparseAttention(nn.Module):
    """Source: Zhang et al., VSA, arXiv:2505.13389, Sec. 3; code: hao-ai-lab/FastVideo@2f3d4074 (Apache-2.0).

    Queries, keys and values are averaged over tiles; softmax attention between these means is the coarse result, and
    its K largest scores of each query tile (per head and clip) name the tiles whose tokens are attended to: the fine
    one. y = proj(coarse * gate(x) + fine), with a linear gate on the coarse result alone, as in the code (the paper
    gates both). No gradient passes through the choice; a tile need not choose itself.

    Args:
        tile: tokens of a tile, clipped to the grid; those at the far ends may be short.
        keep: the share of tiles that are chosen, rounded up: one minus the published sparsity.
    """

    example = dict(tile=(2, 3, 3), keep=0.3)
    growth = {"frames": (2, 2), "size": (2, 2)}

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: Grid,
        *,
        tile: Sequence[int] = (4, 4, 4),
        keep: float = 0.125,
        kernel: str = AUTO,
    ):
        super().__init__()
        if not 0 < keep <= 1:
            raise ValueError(f"keep {keep} is not a share of the tiles above 0 and up to 1")
        self.dim, self.num_heads, self.grid, self.kernel = dim, num_heads, grid, kernel
        self.tile, self.keep = Grid.of(tile, "tile"), keep
        self.qkv, self.gate, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b t h w d"]) -> Float[Tensor, "b t h w d"]:
        cut = self._cut(x)
        q, k, v = projected(x, self.qkv, self.num_heads)
        keys, values = blocks.split(k, cut), blocks.split(v, cut)
        scores = self._scores(q, keys, cut)
        coarse = (scores.softmax(-1) @ blocks.means(values, cut)).index_select(2, cut.block).transpose(1, 2)
        chosen = blocks.largest(scores.detach(), self._count(cut.count))
        fine = blocks.attention(q, keys, values, cut, cut, chosen, kernel=self.kernel)
        gate = self.gate(x.flatten(1, 3))
        return self.proj(coarse.flatten(2) * gate + fine.flatten(2)).view(x.shape)

    def _cut(self, x: Float[Tensor, "b t h w d"]) -> blocks.Blocks:
        grid = grid_of(x)
        return blocks.cut(x.device, blocks.tiles_of, grid, grid.clipped(self.tile))

    def _scores(self, q: Tensor, keys: Tensor, cut: blocks.Blocks) -> Float[Tensor, "b m tiles tiles"]:
        means = blocks.means(blocks.split(q, cut), cut)
        return (means * q.shape[-1] ** -0.5) @ blocks.means(keys, cut).mT

    def _count(self, tiles: int) -> int:
        return min(max(math.ceil(self.keep * tiles), 1), tiles)

    def chosen(self, x: Float[Tensor, "b t h w d"]) -> Bool[Tensor, "b m tiles tiles"]:
        """Which tiles each tile chooses, numbered in (t, h, w) order."""
        cut = self._cut(x)
        q, k, _ = projected(x, self.qkv, self.num_heads)
        scores = self._scores(q, blocks.split(k, cut), cut)
        return blocks.table(blocks.largest(scores, self._count(cut.count)), cut.count)

    @torch.no_grad()
    def selection(self, x: Float[Tensor, "b t h w d"]) -> Bool[Tensor, "b m n n"]:
        """The (query, key) pairs of the fine branch; the coarse one sees every tile."""
        cut = self._cut(x)
        return blocks.pairs_of(self.chosen(x), cut, cut)

    def macs(self) -> int:
        """Projections and gate; scores and sums between tiles; those of each token over K whole tiles, padding too."""
        n, d, tile = self.grid.tokens, self.dim, self.grid.clipped(self.tile)
        tiles = self.grid.ceil_div(tile).tokens
        return 5 * n * d * d + 2 * tiles * tiles * d + 2 * n * self._count(tiles) * tile.tokens * d

    def reach(self) -> Bool[Tensor, "n n"]:
        """Everything: the coarse branch is dense."""
        return torch.ones(self.grid.tokens, self.grid.tokens, dtype=torch.bool)
