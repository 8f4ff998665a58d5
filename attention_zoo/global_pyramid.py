"""DualFormer's global attention: every token attends to pooled copies of the clip; cost linear in the tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import conv3d, pad

from attention_zoo import cpu
from attention_zoo.cpu import onednn
from attention_zoo.depthwise import pooled
from attention_zoo.grid import Grid
from attention_zoo.kernels import AUTO, attend, of_few_keys
from attention_zoo.scheme import register
from attention_zoo.sequence import heads, joined
from attention_zoo.windows import check_choice

WHOLE = "whole"
Downsample = Literal["dwconv", "conv", "avgpool"]
Branch = Literal["single", "staged", "factorised"]
Branches = Literal["released", "single", "staged", "factorised"]
FIRST_STEP = 7  # the staged branch of the released code pools space by 7x7 first


@register("global_pyramid")
class GlobalPyramidAttention(nn.Module):
    """Source: Liang et al., DualFormer, arXiv:2112.04674, Sec. 3.3, GP-MSA; details from the released code.

    Args:
        scales: the pooled grids whose tokens are keys and values, in the order in which they are concatenated; "whole"
            stands for the unpooled map. A scale is an upper bound: its cells are blocks of ceil(map / scale) tokens.
        downsample: how a block becomes one key. "dwconv": depthwise convolution; "conv": full convolution; "avgpool":
            mean of the real tokens, without parameters.
        branches: how the convolution of a scale is built; one for all scales, or one for each. "single": one
            convolution. "staged": space by about 7x7, BatchNorm, ReLU, then the rest. "factorised": space, then time,
            as the paper's text says. "released" is the released code: the first scale single, every further one staged.

    Where the blocks do not divide the map, the map is padded with zeros at the end. Each key then still holds real
    tokens, so none has to be masked out.
    """

    example = dict(scales=((2, 3, 4), (2, 2, 2)))
    growth = {"frames": (1, 1), "size": (1, 1)}  # by its pooled stages

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: Grid,
        *,
        scales: Sequence[Sequence[int] | str] = ((8, 7, 7), (4, 4, 4)),
        downsample: Downsample = "dwconv",
        branches: Branches | Sequence[Branch] = "released",
        kernel: str = AUTO,
    ):
        super().__init__()
        check_choice("downsample", downsample, Downsample)
        self.dim, self.num_heads, self.grid, self.kernel = dim, num_heads, grid, kernel
        self.blocks = [_block(grid, scale) for scale in _scales(scales)]
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        forms = _branches(branches, len(self.blocks))
        self.priors = nn.ModuleList(
            _prior(dim, block, downsample, form) for block, form in zip(self.blocks, forms, strict=True)
        )
        self.norm = nn.LayerNorm(dim) if any(block.tokens > 1 for block in self.blocks) else None

    def forward(self, x: Float[Tensor, "b t h w d"]) -> Float[Tensor, "b t h w d"]:
        _, t, h, w, _ = x.shape
        k, v = heads(self.kv(self._keys(x)), 2, self.num_heads)
        tokens = x.flatten(1, 3)
        attend_few = of_few_keys(self.kernel, x, self.dim // self.num_heads, "global_pyramid")
        if attend_few is not None:
            y = attend_few(tokens, self.q, k, v, self.proj)
        elif cpu.inference(x):  # queries, and what they found
            weights = self.q.weight.numel() + self.proj.weight.numel()
            length = cpu.chunk_length(x, tokens.shape[1], x.shape[0] * 2 * self.dim, weights)
            q, proj = onednn.linear(self.q, x), onednn.linear(self.proj, x)
            parts = (self._attend(part, q, k, v, proj) for part in tokens.split(length, dim=1))
            y = cpu.joined(parts, tokens, dim=1)
        else:
            y = self._attend(tokens, self.q, k, v, self.proj)
        return y.unflatten(1, (t, h, w))

    def _attend(
        self,
        x: Float[Tensor, "b n d"],
        make: Callable[[Tensor], Tensor],
        k: Float[Tensor, "b m s c"],
        v: Float[Tensor, "b m s c"],
        project: Callable[[Tensor], Tensor],
    ) -> Float[Tensor, "b n d"]:
        (q,) = heads(make(x), 1, self.num_heads)
        return project(joined(attend(q, k, v, kernel=self.kernel)))

    def _keys(self, x: Float[Tensor, "b t h w d"]) -> Float[Tensor, "b s d"]:
        """The pooled copies, concatenated and normed."""
        maps = rearrange(x, "b t h w d -> b d t h w")
        pooled = [rearrange(prior(maps), "b d t h w -> b (t h w) d") for prior in self.priors]
        keys = pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=1)
        return keys if self.norm is None else self.norm(keys)

    def macs(self) -> int:
        """Queries and output projection, keys and values, attention, and the pooling convolutions."""
        n, d = self.grid.tokens, self.dim
        keys = sum(self.grid.ceil_div(block).tokens for block in self.blocks)
        pooling = sum(_convolution_macs(prior, self.grid) for prior in self.priors)
        return 2 * n * d * d + 2 * keys * d * d + 2 * n * keys * d + pooling

    def reach(self) -> Bool[Tensor, "n n"]:
        """Everything: the blocks of each scale cover the map."""
        return torch.ones(self.grid.tokens, self.grid.tokens, dtype=torch.bool)


class BlockConv3d(nn.Conv3d):
    """A convolution whose stride is its kernel, over a map padded with zeros at the end to whole blocks."""

    def __init__(self, dim: int, block: Grid, groups: int):
        super().__init__(dim, dim, kernel_size=tuple(block), stride=tuple(block), groups=groups)
        self.block = block

    def forward(self, x: Float[Tensor, "b d t h w"]) -> Float[Tensor, "b d pt ph pw"]:
        x = _whole_blocks(x, self.block)
        if self.groups == len(self.weight):
            return pooled(x.permute(0, 2, 3, 4, 1), self.weight, self.bias).permute(0, 4, 1, 2, 3)
        return conv3d(x, self.weight, self.bias, self.stride, groups=self.groups)

    def macs(self, grid: Grid) -> int:
        return grid.ceil_div(self.block).tokens * self.weight.numel()


class MeanPool3d(nn.Module):
    """The mean of the real tokens of each block."""

    def __init__(self, block: Grid):
        super().__init__()
        self.block = block

    def forward(self, x: Float[Tensor, "b d t h w"]) -> Float[Tensor, "b d pt ph pw"]:
        # Not avg_pool3d: PyTorch has it on CPU for float32 and float64 only.
        t, h, w = self.block
        sums = reduce(_whole_blocks(x, self.block), "b d (pt t) (ph h) (pw w) -> b d pt ph pw", "sum", t=t, h=h, w=w)
        nt, nh, nw = (
            (n - torch.arange(0, n, size, device=x.device)).clamp(max=size)
            for n, size in zip(x.shape[2:], self.block, strict=True)
        )
        return sums / (nt[:, None, None] * nh[:, None] * nw)


def _whole_blocks(x: Float[Tensor, "b d t h w"], block: Grid) -> Float[Tensor, "b d pt ph pw"]:
    t, h, w = (-n % size for n, size in zip(x.shape[2:], block, strict=True))
    return pad(x, (0, w, 0, h, 0, t)) if t or h or w else x


def _prior(dim: int, block: Grid, downsample: Downsample, form: Branch) -> nn.Sequential:
    """The modules that pool blocks to keys; none where a block is one token."""
    if block.tokens == 1:
        return nn.Sequential()
    if downsample == "avgpool":
        return nn.Sequential(MeanPool3d(block))
    groups = dim if downsample == "dwconv" else 1
    if form == "single":
        return nn.Sequential(BlockConv3d(dim, block, groups))
    if form == "factorised":
        steps = Grid(1, block.h, block.w), Grid(block.t, 1, 1)
        return nn.Sequential(*(BlockConv3d(dim, step, groups) for step in steps))
    first = Grid(1, _first_step(block.h), _first_step(block.w))
    rest = Grid(block.t, block.h // first.h, block.w // first.w)
    return nn.Sequential(
        BlockConv3d(dim, first, groups), nn.BatchNorm3d(dim), nn.ReLU(), BlockConv3d(dim, rest, groups)
    )


def _first_step(size: int) -> int:
    """7 where it divides, else the largest divisor below, else everything: the two steps always make up the block."""
    return next((step for step in range(FIRST_STEP, 1, -1) if size % step == 0), size)


def _convolution_macs(prior: nn.Sequential, grid: Grid) -> int:
    total = 0
    for step in prior:
        if isinstance(step, BlockConv3d):
            total += step.macs(grid)
            grid = grid.ceil_div(step.block)
    return total


def _block(grid: Grid, scale: Grid | None) -> Grid:
    """The tokens behind one key."""
    return Grid(1, 1, 1) if scale is None else grid.ceil_div(grid.clipped(scale))


def _scales(scales: Sequence[Sequence[int] | str]) -> list[Grid | None]:
    """Grids, None for the whole map."""
    if isinstance(scales, str) or not isinstance(scales, Sequence) or not scales:
        raise ValueError(
            f"scales {scales!r} is not a list of pooled grids, such as [[8, 7, 7], [4, 4, 4]] or ['whole']"
        )
    return [None if scale == WHOLE else Grid.of(scale, f"scale in {list(scales)!r}:") for scale in scales]


def _branches(branches: Branches | Sequence[Branch], count: int) -> list[str]:
    if branches == "released":
        return ["single"] + ["staged"] * (count - 1)
    forms = [branches] * count if isinstance(branches, str) else list(branches)
    for form in forms:
        if form not in get_args(Branch):
            raise ValueError(
                f"branch {form!r} is not one of {', '.join(get_args(Branch))}, or 'released' for all scales"
            )
    if len(forms) != count:
        raise ValueError(f"{len(forms)} branches {forms} for {count} scales; give one for each scale, or one for all")
    return forms
