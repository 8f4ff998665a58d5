"""The configs of VidTr, by name; see `backbones.vidtr`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, no_type_check

from attention_zoo import Grid
from backbones.config import Activation, Configs, Steps, configs
from backbones.configs.columnar import ClassToken, ColumnarConfig, Position


@no_type_check  # it checks its values itself and takes lists where it keeps tuples
@dataclass(frozen=True)
class VidtrConfig(ColumnarConfig):
    """A columnar config of separable attention alone, whose class tokens and positions are VidTr's own.

    Args:
        positions_in_all: whether every block adds the positions to what it attends with, not the first alone; the
            released models of 16 frames do.
        drop_layers, drop_frames: in which blocks the compact variant drops how many frames; none for the other one.
    """

    family = "vidtr"

    attention: dict[str, dict[str, Any]] = field(default_factory=dict)
    blocks: tuple[tuple[str, ...], ...] = (("separable",),)
    class_token: ClassToken = "none"
    position: Position = "joint"
    activation: Activation = "relu"
    positions_in_all: bool = False
    drop_layers: Steps = ()
    drop_frames: Steps = ()

    def __post_init__(self):
        super().__post_init__()
        if self.attention or self.blocks != (("separable",),):
            raise ValueError(f"blocks {self.blocks} of attention {self.attention}: VidTr has [['separable']] alone")
        if (self.class_token, self.position) != ("none", "joint"):
            raise ValueError(
                f"class_token {self.class_token!r}, position {self.position!r}: "
                "VidTr has its own; write 'none' and 'joint'"
            )
        if self.drop_layers or self.drop_frames:
            self._check_drops()

    def _check_drops(self) -> None:
        layers, frames, times = self.drop_layers, self.drop_frames, self.clip.ceil_div(self.patch).t
        if len(layers) != len(frames) or list(layers) != sorted(set(layers)) or layers[-1] >= self.depth:
            raise ValueError(
                f"drop_layers {layers} of drop_frames {frames}: one block for each number of frames, in order, "
                f"all from 1 to {self.depth - 1}"
            )
        if sum(frames) >= times:
            raise ValueError(f"drop_frames {frames} leaves none of the {times} time steps of this clip")
        if self.positions_in_all:
            raise ValueError("positions_in_all: the compact variant adds positions in the first block alone")

    def _smaller(self, width: float, depth: int | None, clip: Sequence[int]) -> dict[str, Any]:
        """Frames are dropped in proportion; at least the first block that drops some stays, and one after it."""
        changes = super()._smaller(width, depth, clip)
        if self.drop_layers:
            changes["depth"] = min(self.depth, max(changes["depth"], self.drop_layers[0] + 2))
            left, drops = clip[0], {}
            for layer, frames in zip(self.drop_layers, self.drop_frames, strict=True):
                fewer = max(1, frames * clip[0] // self.clip.t)
                if layer < changes["depth"] and fewer < left:
                    left, drops[layer] = left - fewer, fewer
            changes |= {"drop_layers": list(drops), "drop_frames": list(drops.values())}
        return changes

    def sizes(self) -> dict[str, Any]:
        """A stage for each number of frames that are left."""
        sizes = super().sizes()
        (t, *place), starts = sizes["tokens"][0], [0, *self.drop_layers, self.depth]
        left = [t - sum(self.drop_frames[:stage]) for stage in range(len(starts) - 1)]
        blocks = [end - start for start, end in zip(starts, starts[1:], strict=False)]
        return {"blocks": blocks, "widths": [self.width] * len(left), "tokens": [[frames, *place] for frames in left]}


def models() -> dict[str, Callable[[], VidtrConfig]]:
    """As released: 8, 16 and 32 frames, and the compact ones of 8 and 16."""
    make = partial(VidtrConfig, drop_path=0.0, dropout=0.5)
    return {
        "vidtr_small": partial(make, clip=Grid(8, 224, 224)),
        "vidtr_medium": partial(make, clip=Grid(16, 224, 224), positions_in_all=True),
        "vidtr_large": partial(make, clip=Grid(32, 224, 224)),
        "vidtr_compact_small": partial(make, clip=Grid(8, 224, 224), drop_layers=(1, 3, 5), drop_frames=(2, 2, 2)),
        "vidtr_compact_medium": partial(make, clip=Grid(16, 224, 224), drop_layers=(1, 2, 4), drop_frames=(8, 4, 2)),
    }


configs.register("vidtr")(Configs(VidtrConfig, models))
