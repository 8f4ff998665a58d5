"""The family of Hiera: a column of plain blocks that leaves a quarter of the tokens between stages by taking maxima.

Early stages attend inside of mask units, boxes of tokens that always cover the same pixels, late ones to everything.
Without pooling a mask unit is a window: those blocks are the registered schemes `local_window` and `full`. In the first
block of a stage queries are pooled inside of attention, which changes the grid and so belongs to the backbone.

Source: Ryali et al., Hiera, arXiv:2306.00989, and facebookresearch/hiera at commit b12b8425.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

import attention_zoo
from attention_zoo import Grid, Tokens
from attention_zoo.kernels import attend
from attention_zoo.windows import Tiling, partition, reach, reverse
from backbones.column import Column, PreNormBlock
from backbones.configs.hiera import HieraConfig, models
from backbones.family import Family, Origin, families
from backbones.layouts import NATIVE_NAME, Layout
from backbones.mlp import Mlp
from backbones.multiscale import OverlappingEmbedding, SeparablePosition
from backbones.parts import initialise_linear, linear_rates

EPS = 1e-6
POOL = Grid(1, 2, 2)  # of the queries in the first block of each stage after the first


class PooledUnits(nn.Module):
    """Self-attention inside of boxes whose queries, but not keys, are the largest of every `POOL` tokens.

    A box of None is the whole map; other maps are taken where the box divides them. The width may change. Without
    pooling it is `local_window`, or `full`.
    """

    takes_prefix = False

    def __init__(self, dim: int, out_dim: int, num_heads: int, grid: Grid, unit: Grid | None, kernel: str):
        super().__init__()
        self.dim, self.out_dim, self.num_heads, self.grid, self.kernel = dim, out_dim, num_heads, grid, kernel
        self.unit, self.out_grid = unit, grid.ceil_div(POOL)
        self.qkv, self.proj = nn.Linear(dim, 3 * out_dim), nn.Linear(out_dim, out_dim)

    def forward(self, x: Float[Tensor, "b t h w d"]) -> Float[Tensor, "b _t _h _w e"]:
        before = Grid(*x.shape[1:4])
        unit = self.unit or before
        if before.padded(unit) != before:
            raise ValueError(f"a map of {tuple(before)} tokens is no multiple of the mask unit {tuple(unit)}")
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        after, small = before.ceil_div(POOL), unit.ceil_div(POOL)
        q = partition(pooled(q), Tiling(after, small))
        k, v = (partition(part, Tiling(before, unit)) for part in (k, v))
        q, k, v = (rearrange(part, "s n (m c) -> s m n c", m=self.num_heads) for part in (q, k, v))
        y = rearrange(attend(q, k, v, kernel=self.kernel), "s m n c -> s n (m c)")
        return reverse(self.proj(y), Tiling(after, small))

    def macs(self) -> int:
        """Of queries, keys and values; of both products; of the last map, which has fewer tokens."""
        n, after, units = self.grid.tokens, self.out_grid.tokens, (self.unit or self.grid).tokens
        return 3 * n * self.dim * self.out_dim + 2 * after * units * self.out_dim + after * self.out_dim**2

    def reach(self) -> Bool[Tensor, "n_out n"]:
        """What the first token of those that are pooled together sees; all of them see the same box."""
        place = torch.arange(self.grid.tokens).view(tuple(self.grid))[:, :: POOL.h, :: POOL.w].flatten()
        return reach(Tiling(self.grid, self.unit or self.grid))[place]


def pooled(x: Float[Tensor, "b t h w d"]) -> Float[Tensor, "b t _h _w d"]:
    """The largest of every `POOL` tokens."""
    return x.unflatten(2, (-1, POOL.h)).unflatten(4, (-1, POOL.w)).amax((3, 5))


class PooledProjection(nn.Module):
    """The way around attention where it pools: a linear map of the normed tokens, then the largest."""

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.proj = nn.Linear(dim, out_dim)

    def forward(self, tokens: Tokens, normed: Tokens) -> Tokens:
        return tokens.of(pooled(self.proj(normed.map)))

    def macs(self, grid: Grid, prefix: int) -> int:
        return grid.tokens * self.proj.weight.numel()


class Hiera(Column):
    """Clip in, class scores out, over a column of blocks in stages; see `HieraConfig`."""

    def __init__(self, config: HieraConfig, num_classes: int, kernel: str):
        super().__init__(config, num_classes)
        self.embed = OverlappingEmbedding(
            config.in_channels, config.width, config.patch_kernel, config.patch, config.grid
        )
        self.position = SeparablePosition(config.width, config.grid, class_token=False)
        rates = iter(linear_rates(config.drop_path, sum(config.depths)))
        grid, unit, dim, heads, blocks = config.grid, config.unit, config.width, config.num_heads, []
        for stage, depth in enumerate(config.depths):
            for first in [True, *[False] * (depth - 1)]:
                if first and stage:
                    # As released, the block that pools attends as the stage before it.
                    box = unit if stage <= config.unit_stages else None
                    attention = PooledUnits(dim, 2 * dim, 2 * heads, grid, box, kernel)
                else:
                    attention = _attention(config, stage, dim, heads, grid, unit, kernel)
                blocks.append(_block(config, grid, attention, next(rates)))
                if first and stage:
                    grid, unit, dim, heads = grid.ceil_div(POOL), unit.ceil_div(POOL), 2 * dim, 2 * heads
        self.column = nn.ModuleList(blocks)
        self.end_in(nn.LayerNorm(dim, EPS), dim, config.dropout)
        initialise_linear(self)

    def embedded(self, clip: Tensor) -> Tokens:
        return Tokens.of_map(self.position(self.embed(self.channels_last(clip))))

    def scores(self, tokens: Tokens) -> Float[Tensor, "b k"]:
        """Class scores; the released code applies a softmax to them in evaluation, which keeps their order."""
        return self.classified(self.norm(tokens.map.mean(dim=(1, 2, 3))))


def _block(config: HieraConfig, grid: Grid, attention: nn.Module, rate: float) -> PreNormBlock:
    """Where attention pools, so does the way around it."""
    dim, out_dim = attention.dim, attention.out_dim
    mlp = Mlp.of(config, out_dim, out_dim)
    skip = PooledProjection(dim, out_dim) if isinstance(attention, PooledUnits) else None
    return PreNormBlock(dim, grid, 0, attention, mlp, rate, out_dim=out_dim, eps=EPS, skip=skip)


def _attention(config: HieraConfig, stage: int, dim: int, heads: int, grid: Grid, unit: Grid, kernel: str) -> nn.Module:
    name = "local_window" if stage < config.unit_stages else "full"
    scheme, options = config.entry(name)
    box = {"window": tuple(unit)} if name == "local_window" else {}
    return attention_zoo.build(scheme, dim, heads, grid, kernel=kernel, **(box | options))


NATIVE = Layout(NATIVE_NAME, r"^column\.\d+\.")
RELEASED = Layout(
    "Hiera",
    r"^pos_embed_spatial$",
    renames=(
        (r"^patch_embed\.", "embed."),
        (r"^pos_embed_spatial$", "position.space"),
        (r"^pos_embed_temporal$", "position.time"),
        (r"^head\.projection\.", "classifier."),
        (r"^blocks\.(\d+)\.attn\.", r"column.\1.attention."),
        (r"^blocks\.(\d+)\.proj\.", r"column.\1.skip.proj."),
        (r"^blocks\.(\d+)\.", r"column.\1."),
    ),
    note="the released model gives probabilities in evaluation, a softmax of the class scores that this one gives",
)
ORIGINS = {"hiera": Origin("arXiv:2306.00989", "facebookresearch/hiera", "Apache-2.0", "K400: README")}
families.register("hiera")(Family("hiera", HieraConfig, Hiera, models, (NATIVE, RELEASED), ORIGINS))
