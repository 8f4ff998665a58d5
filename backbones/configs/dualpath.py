"""The configs of DualPath on an image transformer, by name; see `backbones.dualpath`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, no_type_check

from attention_zoo import Grid, check_heads
from backbones.config import Activation, Config, Configs, Rate, Ratio, Whole, configs, narrowed

SPATIAL = 8  # frames of the spatial path
SIDE = 4  # frames along each side of a mosaic


class TwoPaths:
    """What the configs of all image models on two paths have: how a clip becomes frames and mosaics.

    Args:
        clip: frames (16, 32 or 48: one mosaic for each 16), height and width.
        shrink: by how much a frame in a mosaic is smaller: 4 makes mosaics of a frame's size, 2 and 1 larger ones.
    """

    tunable = Config.tunable | {"adapters": r"\.adapters\.|^classifier\.|^position\."}
    clip: Grid
    patch: Grid
    shrink: int

    def check_paths(self) -> None:
        """Raises: ValueError, where the clip fills no mosaics, or a patch is of several frames."""
        if self.shrink not in (1, 2, SIDE):
            raise ValueError(f"shrink {self.shrink!r} is not 1, 2 or 4, by which a frame in a mosaic is smaller")
        if self.clip.t % SIDE**2:
            raise ValueError(f"a clip of {self.clip.t} frames fills no mosaics of 16; allowed: 16, 32, 48, ...")
        if self.patch.t != 1:
            raise ValueError(
                f"patch {tuple(self.patch)} joins frames, which an image transformer cannot; write (1, h, w)"
            )

    @property
    def mosaics(self) -> int:
        return self.clip.t // SIDE**2

    @property
    def frame(self) -> Grid:
        """Pixels of a frame."""
        return Grid(1, *self.clip[1:])

    @property
    def mosaic(self) -> Grid:
        """Pixels of a mosaic."""
        return Grid(1, *(n * SIDE // self.shrink for n in self.clip[1:]))


@no_type_check  # it checks its values itself and takes lists where it keeps tuples
@dataclass(frozen=True)
class DualPathConfig(TwoPaths, Config):
    """An image transformer with adapters for clips.

    Args:
        clip, shrink: see `TwoPaths`.
        bottleneck: width of the adapters: 128 in the paper, 192 in the released file.
        before_attention: a further adapter before attention of the temporal path: in the released code always, in the
            paper on SSv2 alone.
        projection: width of the features of each path, 0 for those of the transformer (CLIP projects, others do not).
        first_norm, patch_bias, eps: with the activation, what tells CLIP's transformer from other image models.
        attention: {"A": {"scheme": "full"}} or another scheme that takes class tokens.
        adapter_dropout: inside of adapters.
        width, num_heads, depth, patch, mlp_ratio, mlp_rank, activation, in_channels, drop_path, dropout,
            activation_checkpointing: as in `ColumnarConfig`; the frozen transformer wants no stochastic depth.

    Raises:
        ValueError: a value is impossible.
    """

    family = "dualpath"

    width: int = 768
    num_heads: int = 12
    depth: int = 12
    clip: Grid = Grid(16, 224, 224)
    in_channels: int = 3
    patch: Grid = Grid(1, 16, 16)
    mlp_ratio: Ratio = 4.0
    mlp_rank: Ratio | None = None
    shrink: int = 4
    bottleneck: int = 128
    before_attention: bool = True
    projection: Whole = 512
    first_norm: bool = True
    patch_bias: bool = False
    activation: Activation = "quick_gelu"
    eps: Ratio = 1e-5
    attention: dict[str, dict[str, Any]] = field(default_factory=lambda: {"A": {"scheme": "full"}})
    adapter_dropout: Rate = 0.1
    drop_path: Rate = 0.0
    dropout: Rate = 0.0
    activation_checkpointing: bool = False

    def __post_init__(self):
        super().__post_init__()
        self.check_paths()
        if list(self.attention) != ["A"]:
            raise ValueError(f"attention {self.attention} is not one entry A, the scheme of all blocks")
        check_heads(self.width, self.num_heads)

    @property
    def frame_grid(self) -> Grid:
        """Patches of a frame."""
        return self.frame.ceil_div(self.patch)

    @property
    def mosaic_grid(self) -> Grid:
        """Patches of a mosaic."""
        return self.mosaic.ceil_div(self.patch)

    def used(self) -> tuple[str, ...]:
        return ("A",)

    def shrunk(self, width: float, depth: int | None, clip: Sequence[int]) -> DualPathConfig:
        """Clips keep enough frames for a mosaic; adapters narrow with the transformer."""
        frames = SIDE**2 * max(1, clip[0] // SIDE**2)
        changes: dict[str, Any] = {"clip": [frames, *clip[1:]]}
        if depth is not None:
            changes["depth"] = min(self.depth, depth)
        if width != 1:
            changes |= {"bottleneck": max(1, round(self.bottleneck * width))}
            changes |= {"projection": round(self.projection * width)}
        return self.changed(changes | narrowed(self, width))

    def sizes(self) -> dict[str, Any]:
        tokens = [list(self.frame_grid._replace(t=SPATIAL)), list(self.mosaic_grid._replace(t=self.mosaics))]
        return {"blocks": [self.depth, self.depth], "widths": [self.width] * 2, "tokens": tokens}


def models() -> dict[str, Callable[[], DualPathConfig]]:
    """CLIP's ViT-B/16 by the sizes of Table A4, with five adapters (SSv2) or four; an image ViT-B/16 of IN-21K."""
    image = dict(projection=0, first_norm=False, patch_bias=True, activation="gelu", eps=1e-6)
    changes: dict[str, dict[str, Any]] = {
        "clip_base_16f": {},
        "clip_base_16f_448": dict(shrink=2),
        "clip_base_16f_896": dict(shrink=1),
        "clip_base_32f": dict(clip=Grid(32, 224, 224)),
        "clip_base_48f": dict(clip=Grid(48, 224, 224)),
        "clip_base_16f_4_adapters": dict(before_attention=False),
        "clip_base_16f_released": dict(bottleneck=192),
        "in21k_base_16f": image,
    }
    return {f"dualpath_{name}": (lambda change=change: DualPathConfig(**change)) for name, change in changes.items()}


configs.register("dualpath")(Configs(DualPathConfig, models))
