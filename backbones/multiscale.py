"""The family whose attention changes the grid: MViT and MViTv2, one column of blocks that pool as they go.

A block pools its queries and, at the beginning of a stage, leaves a quarter of the tokens; the width doubles there, in
the MLP before (MViT) or inside of attention (MViTv2). Both skip paths follow.

Sources: MViT, arXiv:2104.11227, MViTv2, arXiv:2112.01526, and their released code, facebookresearch/SlowFast at commit
287ec007; MultiTrain, arXiv:2209.12362, and JunweiLiang/MultiTrain at commit 16723114, a variant of MViTv2.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Literal, Self, no_type_check

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool3d

import attention_zoo
from attention_zoo import Grid, Tokens
from attention_zoo.pooling_attention import Pool, after
from backbones.column import Column
from backbones.config import Config, Rate, Ratio, narrowed
from backbones.family import Family, Origin, families
from backbones.layouts import NATIVE_NAME, Layout
from backbones.mlp import Mlp
from backbones.parts import ClassToken, DropPath, initialise_linear, linear_rates, of_image_model
from backbones.residual import Attend, Block, PerToken, Residual

Widening = Literal["mlp", "attention"]
Position = Literal["separable", "relative", "none"]
Skip = Literal["normed", "raw"]
Start = Literal["mvit", "multitrain"]
EPS = 1e-6
QUERY_STRIDE = Grid(1, 2, 2)  # of the first block of each stage after the first


@no_type_check  # it checks its values itself and takes lists where it keeps tuples
@dataclass(frozen=True)
class StagedConfig(Config):
    """A column of blocks in stages, which leave a quarter of the tokens between them.

    Args:
        depths: blocks of each stage.
        width, num_heads: of the first stage; both double at the beginning of each further one.
        patch, patch_kernel: stride and size of the first convolution.
        clip, in_channels, mlp_ratio, mlp_rank, drop_path, dropout, activation_checkpointing: as in `PyramidConfig`.
    """

    depths: tuple[int, ...]
    width: int = 96
    num_heads: int = 1
    patch: Grid = Grid(2, 4, 4)
    patch_kernel: Grid = Grid(3, 7, 7)
    clip: Grid = Grid(16, 224, 224)
    in_channels: int = 3
    mlp_ratio: Ratio = 4.0
    mlp_rank: Ratio | None = None
    drop_path: Rate = 0.1
    dropout: Rate = 0.5
    activation_checkpointing: bool = False

    def __post_init__(self):
        super().__post_init__()
        attention_zoo.check_heads(self.width, self.num_heads)

    def shrunk(self, width: float, depth: int | None, clip: Sequence[int]) -> Self:
        """Every width is the first one doubled, so only that one is narrowed."""
        depths = [blocks if depth is None else min(blocks, depth) for blocks in self.depths]
        return self.changed({"clip": clip, "depths": depths} | narrowed(self, width))

    def sizes(self) -> dict[str, Any]:
        widths = [self.width * 2**stage for stage in range(len(self.depths))]
        return {"blocks": list(self.depths), "widths": widths, "tokens": [list(grid) for grid in self.stage_grids()]}

    @abstractmethod
    def stage_grids(self) -> list[Grid]:
        """The map that each stage leaves."""

    @property
    def grid(self) -> Grid:
        """The map of the first block."""
        return convolved(self.clip, self.patch_kernel, self.patch)


@no_type_check  # it checks its values itself and takes lists where it keeps tuples
@dataclass(frozen=True)
class MultiscaleConfig(StagedConfig):
    """A column of pooling blocks; see `StagedConfig` for what is not told here.

    Args:
        key_stride: of keys and values in the first stage; divided by each query stride that was met, but at least 1.
        pool_kernel: of all pooling convolutions; None for the stride plus one (the released file of the 24-block MViT).
        widen: where the width doubles: in the "mlp" of the block before a stage (MViT), or in the "attention" of its
            first block (MViTv2).
        pool_queries: whether every block pools its queries, with stride 1 inside of a stage (MViTv2).
        residual: whether pooled queries are added to what they gathered (MViTv2).
        position: "separable" adds a table over space and one over time to the tokens (MViT); "relative" gives every
            block decomposed relative positions (MViTv2); "none" does neither.
        class_token: whether one is there, and is what the classifier reads; without, it reads the mean of the map.
        widening_skip: what the way around attention reads where the width changes: tokens "normed" (MViTv2) or "raw"
            (MultiTrain).
        pool_eps: of the norms after pooling.
        start: initial weights: as in "mvit" all maps are truncated normal and all biases 0.02; as in "multitrain" only
            linear ones are, with biases 0, and convolutions are as PyTorch has them.
        attention: {"P": {"scheme": "pooling", ...}} changes an option of every block.

    Raises:
        ValueError: a value is impossible.
    """

    family = "multiscale"

    key_stride: Grid = Grid(1, 8, 8)
    pool_kernel: Grid | None = Grid(3, 3, 3)
    widen: Widening = "attention"
    pool_queries: bool = True
    residual: bool = True
    position: Position = "relative"
    class_token: bool = True
    widening_skip: Skip = "normed"
    pool_eps: Ratio = 1e-6
    start: Start = "mvit"
    attention: dict[str, dict[str, Any]] = field(default_factory=lambda: {"P": {"scheme": "pooling"}})

    def __post_init__(self):
        super().__post_init__()
        if list(self.attention) != ["P"] or self.attention["P"]["scheme"] != "pooling":
            raise ValueError(
                f"attention {self.attention} is not one entry P of the scheme pooling, which all blocks use"
            )

    def used(self) -> tuple[str, ...]:
        return ("P",)

    def stage_grids(self) -> list[Grid]:
        grids = [block.grid_out for block in self.block_sizes()]
        return [grids[end - 1] for end in accumulate(self.depths)]

    def block_sizes(self) -> list[BlockSizes]:
        """Sizes and strides of all blocks, by the rules of the released configuration."""
        sizes, grid, key_stride = [], self.grid, self.key_stride
        starts = {sum(self.depths[:stage]) for stage in range(1, len(self.depths))}
        width, heads = self.width, self.num_heads
        for block in range(sum(self.depths)):
            first, before_first = block in starts, block + 1 in starts
            if first:
                heads *= 2
                key_stride = Grid(*(max(1, s // q) for s, q in zip(key_stride, QUERY_STRIDE, strict=True)))
            query_stride = QUERY_STRIDE if first else Grid(1, 1, 1)
            inner = width * 2 if first and self.widen == "attention" else width
            out = width * 2 if before_first and self.widen == "mlp" else inner
            query_kernel = self.pool_kernel or after(query_stride)
            kernel = query_kernel if first or self.pool_queries else None
            size = BlockSizes(grid, width, inner, out, heads, kernel, query_stride, key_stride)
            sizes.append(size)
            grid, width = size.grid_out, out
        return sizes


@dataclass(frozen=True)
class BlockSizes:
    """One block: the map and width that go in, the width of attention and of the result, heads, pooling."""

    grid: Grid
    width: int
    inner: int
    out: int
    heads: int
    query_kernel: Grid | None
    query_stride: Grid
    key_stride: Grid

    @property
    def grid_out(self) -> Grid:
        return convolved(self.grid, self.query_kernel or Grid(1, 1, 1), self.query_stride)


def convolved(grid: Grid, kernel: Grid, stride: Grid) -> Grid:
    """What a convolution makes of a map, padded by half of its kernel."""
    return Grid(*((n + 2 * (k // 2) - k) // s + 1 for n, k, s in zip(grid, kernel, stride, strict=True)))


class PooledSkip(nn.Module):
    """The way around attention or MLP: a linear map of the tokens, normed or `raw`, where the width changes, and the
    largest of each neighbourhood where the grid does; class tokens are not pooled.
    """

    def __init__(self, dim: int, out_dim: int, stride: Grid, raw: bool = False):
        super().__init__()
        self.raw = raw
        self.proj = nn.Linear(dim, out_dim) if dim != out_dim else None
        self.stride = stride

    def forward(self, tokens: Tokens, normed: Tokens) -> Tokens:
        kept = tokens if self.proj is None else tokens.with_x(self.proj((tokens if self.raw else normed).x))
        if max(self.stride) == 1:
            return kept
        kernel = after(self.stride)
        maps = rearrange(kept.map, "b t h w d -> b d t h w")
        maps = max_pool3d(maps, tuple(kernel), tuple(self.stride), tuple(k // 2 for k in kernel))
        return kept.of(rearrange(maps, "b d t h w -> b t h w d"), kept.head)

    def macs(self, grid: Grid, prefix: int) -> int:
        return 0 if self.proj is None else (grid.tokens + prefix) * self.proj.weight.numel()


class MultiscaleBlock(Block):
    """Pooling attention, then MLP, each with the way around it that its grid and width ask for."""

    def __init__(self, config: MultiscaleConfig, sizes: BlockSizes, attention: nn.Module, drop_path: float):
        super().__init__(sizes.grid, int(config.class_token))
        self.norm1, self.attention = nn.LayerNorm(sizes.width, EPS), attention
        self.norm2, self.mlp = nn.LayerNorm(sizes.inner, EPS), Mlp.of(config, sizes.inner, sizes.out)
        self.drop_path = DropPath(drop_path)
        # One of the two ways around has weights at most: `skip`, around the MLP where that widens.
        self.widens_mlp = sizes.inner != sizes.out
        around = _skip(sizes.width, sizes.inner, sizes.query_stride, config.widening_skip == "raw")
        self.skip = PooledSkip(sizes.inner, sizes.out, Grid(1, 1, 1)) if self.widens_mlp else around
        self.pool = around if self.widens_mlp else None

    def residuals(self) -> tuple[Residual, Residual]:
        first, second = (self.pool, self.skip) if self.widens_mlp else (self.skip, None)
        return (
            Residual("attention", self.norm1, Attend(self.attention), first, self.drop_path),
            Residual("mlp", self.norm2, PerToken(self.mlp), second, self.drop_path),
        )


def _skip(dim: int, out_dim: int, stride: Grid, raw: bool) -> PooledSkip | None:
    return None if dim == out_dim and max(stride) == 1 else PooledSkip(dim, out_dim, stride, raw)


class OverlappingEmbedding(nn.Module):
    """Overlapping patches become tokens: one convolution, no norm."""

    kind = "embedding"

    def __init__(self, in_dim: int, dim: int, kernel: Grid, stride: Grid, grid: Grid):
        super().__init__()
        self.grid = grid
        self.proj = nn.Conv3d(in_dim, dim, tuple(kernel), tuple(stride), tuple(k // 2 for k in kernel))

    def forward(self, x: Float[Tensor, "b t h w i"]) -> Float[Tensor, "b _t _h _w d"]:
        return rearrange(self.proj(rearrange(x, "b t h w i -> b i t h w")), "b d t h w -> b t h w d")

    def macs(self) -> int:
        return self.grid.tokens * self.proj.weight.numel()


class SeparablePosition(nn.Module):
    """A learned table over space and one over time, both added; an entry of its own for class tokens.

    For clips of another size the tables are interpolated, the nearest entry in time and bicubic in space.
    """

    kind = "position"

    def __init__(self, dim: int, grid: Grid, class_token: bool):
        super().__init__()
        self.grid = grid
        self.space = nn.Parameter(torch.empty(1, grid.h * grid.w, dim))
        self.time = nn.Parameter(torch.empty(1, grid.t, dim))
        self.of_class = nn.Parameter(torch.empty(1, 1, dim)) if class_token else None
        for table in self.parameters():
            nn.init.trunc_normal_(table, std=0.02)

    def forward(self, x: Float[Tensor, "b t h w d"]) -> Float[Tensor, "b t h w d"]:
        t, h, w = x.shape[1:4]
        space = self.space.unflatten(1, (self.grid.h, self.grid.w))
        if (h, w) != (self.grid.h, self.grid.w):
            space = interpolate(space.movedim(-1, 1), size=(h, w), mode="bicubic", align_corners=False).movedim(1, -1)
        time = self.time
        if t != self.grid.t:
            time = interpolate(time.mT, size=t, mode="nearest").mT
        return x + (space[:, None] + time[:, :, None, None])


class Multiscale(Column):
    """Clip in, class scores out, over a column of pooling blocks; see `MultiscaleConfig`."""

    def __init__(self, config: MultiscaleConfig, num_classes: int, kernel: str):
        super().__init__(config, num_classes)
        self.embed = OverlappingEmbedding(
            config.in_channels, config.width, config.patch_kernel, config.patch, config.grid
        )
        self.class_token = ClassToken(config.width) if config.class_token else None
        separable = config.position == "separable"
        self.position = SeparablePosition(config.width, config.grid, config.class_token) if separable else None
        sizes = config.block_sizes()
        rates = linear_rates(config.drop_path, len(sizes))
        self.column = nn.ModuleList(
            MultiscaleBlock(config, size, _attention(config, size, kernel), rate)
            for size, rate in zip(sizes, rates, strict=True)
        )
        self.end_in(nn.LayerNorm(sizes[-1].out, EPS), sizes[-1].out, config.dropout)
        (self._initialise if config.start == "mvit" else self._initialise_plainly)()

    def scores(self, tokens: Tokens) -> Float[Tensor, "b k"]:
        """Class scores; the released code applies a softmax to them in evaluation, which keeps their order."""
        tokens = tokens.with_x(self.norm(tokens.x))
        return self.classified(tokens.map.mean(dim=(1, 2, 3)) if tokens.head is None else tokens.head[:, 0])

    def embedded(self, clip: Tensor) -> Tokens:
        x = self.embed(self.channels_last(clip))
        x = x if self.position is None else self.position(x)
        if self.class_token is None:
            return Tokens.of_map(x)
        head = self.class_token(len(x))
        return Tokens.of_map(x).of(x, head if self.position is None else head + self.position.of_class)

    def _initialise(self) -> None:
        """As the released code: weights truncated normal, biases of linear maps and of norms 0.02, not 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv3d):
                nn.init.trunc_normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
                nn.init.constant_(module.bias, 0.02)

    def _initialise_plainly(self) -> None:
        initialise_linear(self)
        for module in self.modules():
            if isinstance(module, Pool):
                nn.init.kaiming_uniform_(module.weight, a=5**0.5)  # as PyTorch starts convolutions


def _attention(config: MultiscaleConfig, sizes: BlockSizes, kernel: str) -> nn.Module:
    scheme, options = config.entry("P")
    derived = dict(
        query_kernel=sizes.query_kernel,
        query_stride=sizes.query_stride,
        key_kernel=config.pool_kernel,
        key_stride=sizes.key_stride,
        out_dim=sizes.inner,
        residual=config.residual,
        relative=config.position == "relative",
        eps=config.pool_eps,
    )
    return attention_zoo.build(scheme, sizes.width, sizes.heads, sizes.grid, kernel=kernel, **(derived | options))


# Named models. Sources: the released configuration files of SlowFast; MViT-B 32x3 and 64x3 of the paper's tables have
# none and are the 16-frame file with another clip.

MULTITRAIN = dict(position="separable", class_token=False, widening_skip="raw", pool_eps=1e-5, start="multitrain")
MVIT = dict(widen="mlp", pool_queries=False, residual=False, position="separable", depths=(1, 2, 11, 2), drop_path=0.2)


def models() -> dict[str, Callable[[], MultiscaleConfig]]:
    clips = {frames: Grid(frames, 224, 224) for frames in (16, 32, 64)}
    return {
        **{f"mvit_base_{n}f": lambda clip=clip: MultiscaleConfig(clip=clip, **MVIT) for n, clip in clips.items()},
        "mvit_base24_32f": lambda: MultiscaleConfig(
            clip=clips[32], **(MVIT | dict(depths=(2, 3, 16, 3), pool_kernel=None, drop_path=0.3))
        ),
        "mvit_v2_small_16f": lambda: MultiscaleConfig(clip=clips[16], depths=(1, 2, 11, 2), drop_path=0.2),
        "mvit_v2_base_32f": lambda: MultiscaleConfig(clip=clips[32], depths=(2, 3, 16, 3), drop_path=0.3),
        "multitrain_small_16f": lambda: MultiscaleConfig(
            clip=clips[16], depths=(1, 2, 11, 2), drop_path=0.1, **MULTITRAIN
        ),
        "multitrain_base_32f": lambda: MultiscaleConfig(
            clip=clips[32], depths=(2, 3, 16, 3), drop_path=0.1, **MULTITRAIN
        ),
    }


NATIVE = Layout(NATIVE_NAME, r"^column\.\d+\.")
RELEASED = Layout(
    "MViT (SlowFast)",
    r"^blocks\.\d+\.attn\.(?:pool_[qkv]|norm_[qkv])\.|^pos_embed_spatial$",
    renames=(
        (r"^patch_embed\.", "embed."),
        (r"^cls_token$", "class_token.token"),
        (r"^pos_embed_spatial$", "position.space"),
        (r"^pos_embed_temporal$", "position.time"),
        (r"^pos_embed_class$", "position.of_class"),
        (r"^head\.projection\.", "classifier."),
        (r"^blocks\.(\d+)\.attn\.norm_([qkv])\.", r"column.\1.attention.pool_\2.norm."),
        (r"^blocks\.(\d+)\.attn\.rel_pos_([thw])$", r"column.\1.attention.tables.\2"),
        (r"^blocks\.(\d+)\.attn\.", r"column.\1.attention."),
        (r"^blocks\.(\d+)\.proj(?:_max_pool)?\.", r"column.\1.skip.proj."),
        (r"^blocks\.(\d+)\.", r"column.\1."),
    ),
    note="the released model gives probabilities in evaluation, a softmax of the class scores that this one gives",
)
MULTI = replace(
    RELEASED,
    name="MultiTrain",
    sign=r"^blocks\.\d+\.proj_max_pool\.",
    note="",
    renames=((r"^head\.heads\.", "classifier."), *RELEASED.renames),  # of each data set, see `backbones.sets`
    ignored=(
        (
            r"^(?:head\.cross_dataset_heads|expander)\.",
            "projections and expander belong to the training, see harness.training.many_sets",
        ),
    ),
)

IN_TIME = (".tables.t", "position.time")  # what an image model has one row of, or none


def from_image(model: Multiscale, key: str, image: Mapping[str, Tensor]) -> tuple[str, Tensor | None]:
    """The rule of MViTv2's paper for one tensor: convolutions, those that pool included, see their central frame alone,
    and neither an offset nor a place in time makes a difference: each has the row of the image model, or zeros.
    """
    target, tensor = model.state_dict()[key], image.get(key)
    if key.endswith(IN_TIME):
        row = torch.zeros_like(target) if tensor is None else tensor
        return ("inflated", row.expand_as(target)) if row.shape[-2] == 1 or tensor is None else ("mismatched", None)
    return of_image_model(key, target, tensor)


ORIGINS = {
    "mvit_base": Origin("arXiv:2104.11227", "facebookresearch/SlowFast", "Apache-2.0", "K400, K600: MODEL_ZOO"),
    "mvit_v2": Origin("arXiv:2112.01526", "facebookresearch/SlowFast", "Apache-2.0", "K400, SSv2: MODEL_ZOO"),
    "multitrain": Origin("arXiv:2209.12362", "JunweiLiang/MultiTrain", "Apache-2.0", "README"),
}
families.register("multiscale")(
    Family("multiscale", MultiscaleConfig, Multiscale, models, (NATIVE, MULTI, RELEASED), ORIGINS, from_image)
)
