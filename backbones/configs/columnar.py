"""The configs of columns, by name: TimeSformer, ViViT and DeiT; see `backbones.columnar`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, no_type_check

from attention_zoo import Grid, check_heads, declared
from backbones.config import Activation, Config, Configs, Rate, Ratio, configs, narrowed, patterns

ClassToken = Literal["clip", "frame", "distilled", "none"]
Position = Literal["space_time", "space", "joint", "none"]


@no_type_check  # it checks its values itself and takes lists where it keeps tuples
@dataclass(frozen=True)
class ColumnarConfig(Config):
    """A column of blocks and the attention schemes of each.

    Args:
        attention: the schemes that `blocks` may name, see `Config`.
        blocks: a pattern of blocks, repeated over the depth; a block is the names that it attends with, in order:
            `(("T", "S"),)` attends over time and then over space in every block.
        clip: the nominal input: frames, height and width in pixels. Sizes of parameters follow from it.
        patch: frames and pixels that become one token.
        class_token: one for the clip, one for each frame (the answer is then their mean), none (the mean of all), or
            "distilled": two for the clip, of which the second learnt from a teacher (DeiT). Each has its classifier and
            the answer is the mean of the two, which is one linear map of both tokens.
        position: learned, for places and for times, for places alone, or "joint", for each place at each time.
        activation, mlp_ratio, mlp_rank: of the MLPs, see `mlp.Mlp`.

    Raises:
        ValueError: a value is impossible.
        UnknownName: a scheme or a name in `blocks` is unknown; the nearest is given.
    """

    family = "columnar"

    attention: dict[str, dict[str, Any]]
    blocks: tuple[tuple[str, ...], ...]
    width: int = 768
    num_heads: int = 12
    depth: int = 12
    clip: Grid = Grid(8, 224, 224)
    in_channels: int = 3
    patch: Grid = Grid(1, 16, 16)
    mlp_ratio: Ratio = 4.0
    mlp_rank: Ratio | None = None
    class_token: ClassToken = "clip"
    position: Position = "space_time"
    activation: Activation = "gelu"
    drop_path: Rate = 0.1
    dropout: Rate = 0.0
    activation_checkpointing: bool = False

    def __post_init__(self):
        super().__post_init__()
        self._set("blocks", patterns("blocks", self.blocks, self.attention))
        check_heads(self.width, self.num_heads)
        if self.class_token != "none":
            for scheme in self.schemes():
                if not declared.has(scheme, "takes_prefix"):
                    able = [name for name in declared.names("schemes") if declared.has(name, "takes_prefix")]
                    raise ValueError(
                        f"class_token {self.class_token!r} needs schemes that take class tokens, {scheme} does not; "
                        f"allowed: {', '.join(able)}, or class_token 'none'"
                    )

    def used(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for block in self.blocks for name in block))

    def shrunk(self, width: float, depth: int | None, clip: Sequence[int]) -> ColumnarConfig:
        """At least one whole turn of the pattern of blocks stays."""
        return self.changed(self._smaller(width, depth, clip))

    def _smaller(self, width: float, depth: int | None, clip: Sequence[int]) -> dict[str, Any]:
        blocks = self.depth if depth is None else min(self.depth, max(depth, len(self.blocks)))
        return {"clip": clip, "depth": blocks} | narrowed(self, width)

    def sizes(self) -> dict[str, Any]:
        return {"blocks": [self.depth], "widths": [self.width], "tokens": [list(self.clip.ceil_div(self.patch))]}


DIVIDED = dict(
    attention={"T": dict(scheme="time_only", fc=True), "S": dict(scheme="space_only", prefix="shared")},
    blocks=(("T", "S"),),
)
JOINT = dict(attention={}, blocks=(("full",),))
SPACE_ONLY = dict(
    attention={"S": dict(scheme="space_only", prefix="own")}, blocks=(("S",),), class_token="frame", position="space"
)
VIVIT = dict(clip=Grid(32, 224, 224), patch=Grid(2, 16, 16), activation="gelu_tanh")
VIVIT_JOINT = dict(attention={}, blocks=(("full",),), position="joint", **VIVIT)
VIVIT_SELF = dict(attention={}, blocks=(("time_only", "space_only"),), class_token="none", position="joint", **VIVIT)
VIVIT_DOT = dict(attention={}, blocks=(("factorised_dot_product",),), class_token="none", position="joint", **VIVIT)


def models() -> dict[str, Callable[[], ColumnarConfig]]:
    """TimeSformer and ViViT (models 1, 3 and 4; 2 is in `encoders`) by size and form of attention, and DeiT."""
    large = dict(width=1024, num_heads=16, depth=24)
    image = dict(**JOINT, clip=Grid(1, 224, 224), position="space")
    deit = {"tiny": dict(width=192, num_heads=3), "small": dict(width=384, num_heads=6), "base": {}}
    return {
        "timesformer_base": partial(ColumnarConfig, **DIVIDED),
        "timesformer_hr": partial(ColumnarConfig, **DIVIDED, clip=Grid(16, 448, 448)),
        "timesformer_l": partial(ColumnarConfig, **DIVIDED, clip=Grid(96, 224, 224)),
        "timesformer_joint_base": partial(ColumnarConfig, **JOINT),
        "timesformer_space_only_base": partial(ColumnarConfig, **SPACE_ONLY),
        "vivit_base_16x2": partial(ColumnarConfig, **VIVIT_JOINT),
        "vivit_large_16x2": partial(ColumnarConfig, **VIVIT_JOINT, **large),
        "vivit_base_16x2_model3": partial(ColumnarConfig, **VIVIT_SELF),
        "vivit_base_16x2_model4": partial(ColumnarConfig, **VIVIT_DOT),
        **{f"deit_{name}": partial(ColumnarConfig, **image, **size) for name, size in deit.items()},
        **{
            f"deit_{name}_distilled": partial(ColumnarConfig, **image, **size, class_token="distilled")
            for name, size in deit.items()
        },
    }


configs.register("columnar")(Configs(ColumnarConfig, models))
