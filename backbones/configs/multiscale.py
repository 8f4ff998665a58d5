"""The configs of MViT, MViTv2 and MultiTrain's variant, by name; see `backbones.multiscale`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal, Self, no_type_check

from attention_zoo import Grid, check_heads
from attention_zoo.grid import pooling_kernel
from backbones.config import Config, Configs, Rate, Ratio, configs, narrowed

Widening = Literal["mlp", "attention"]
Position = Literal["separable", "relative", "none"]
Skip = Literal["normed", "raw"]
Start = Literal["mvit", "multitrain"]
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
        check_heads(self.width, self.num_heads)

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
            query_kernel = self.pool_kernel or pooling_kernel(query_stride)
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


configs.register("multiscale")(Configs(MultiscaleConfig, models))
