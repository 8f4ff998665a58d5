"""The configs of factorised encoders, by name: ViViT's model 2, X-ViT and VTN; see `backbones.encoders`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, no_type_check

from attention_zoo import Grid, check_heads
from backbones.config import Configs, Ratio, Whole, configs, narrower
from backbones.configs.columnar import ColumnarConfig

Temporal = Literal["positions", "plain", "windowed"]


@no_type_check  # it checks its values itself and takes lists where it keeps tuples
@dataclass(frozen=True)
class EncodersConfig(ColumnarConfig):
    """A columnar config for the frames, and what comes after it.

    Args:
        temporal: the second transformer: of ViT blocks with learned "positions" (ViViT), of "plain" ones without
            positions and without biases of queries, keys and values (X-ViT), or "windowed", Longformer's (VTN).
        temporal_depth, temporal_heads, temporal_mlp_ratio: its blocks.
        head_width: of the hidden layer between the last norm and the classifier; 0 for none.
        window: how many frames a frame sees in windowed attention, half of them before it.
        max_frames: rows of the table of positions of a windowed one; two of them are no frame's.
    """

    family = "encoders"

    temporal: Temporal = "positions"
    temporal_depth: int = 4
    temporal_heads: int = 12
    temporal_mlp_ratio: Ratio = 4.0
    head_width: Whole = 0
    window: int = 18
    max_frames: int = 288

    def __post_init__(self):
        super().__post_init__()
        check_heads(self.width, self.temporal_heads)
        if self.class_token != "frame":
            raise ValueError(
                f"class_token {self.class_token!r}: the second transformer sees one of each frame: 'frame'"
            )
        if self.window % 2 or self.max_frames < 3:
            raise ValueError(f"window {self.window} must be even, and max_frames {self.max_frames} 3 or more")

    def _smaller(self, width: float, depth: int | None, clip: Sequence[int]) -> dict[str, Any]:
        changes = super()._smaller(width, depth, clip)
        changes["temporal_depth"] = min(self.temporal_depth, depth or self.temporal_depth)
        if width != 1:
            changes["temporal_heads"] = narrower(self.width, self.temporal_heads, width)[1]
            changes["head_width"] = self.head_width and narrower(self.head_width, 1, width)[0]
        return changes

    def sizes(self) -> dict[str, Any]:
        grid = self.clip.ceil_div(self.patch)
        tokens = [list(grid), [grid.t, 1, 1]]
        return {"blocks": [self.depth, self.temporal_depth], "widths": [self.width] * 2, "tokens": tokens}


FRAMES = dict(class_token="frame", attention={"S": dict(scheme="space_only", prefix="own")}, blocks=(("S",),))
VIVIT = dict(
    **FRAMES, position="space", clip=Grid(32, 224, 224), patch=Grid(2, 16, 16), activation="gelu_tanh"
)  # model 2
XVIT = dict(
    class_token="frame",
    attention={"X": dict(scheme="space_time_mixing", segment=8)},
    blocks=(("X",),),
    clip=Grid(16, 224, 224),
    temporal="plain",
    temporal_depth=1,
    head_width=768,
    drop_path=0.0,
    dropout=0.5,
)
VTN = dict(
    **FRAMES, position="space", clip=Grid(250, 224, 224), temporal="windowed", temporal_depth=3, head_width=768,
    drop_path=0.0, dropout=0.5,
)  # fmt: skip


def models() -> dict[str, Callable[[], EncodersConfig]]:
    """ViViT's model 2 in two sizes, X-ViT and VTN as they were released."""
    large = dict(width=1024, num_heads=16, depth=24, temporal_heads=16)
    return {
        "vivit_base_16x2_model2": partial(EncodersConfig, **VIVIT),
        "vivit_large_16x2_model2": partial(EncodersConfig, **VIVIT, **large),
        "xvit_base_16f": partial(EncodersConfig, **XVIT),
        "vtn_base_250f": partial(EncodersConfig, **VTN),
    }


configs.register("encoders")(Configs(EncodersConfig, models))
