"""The configs of RViT, by name; see `backbones.recurrent`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, no_type_check

from attention_zoo import Grid, declared
from backbones.config import Configs, configs
from backbones.configs.columnar import ColumnarConfig

Readout = Literal["last", "mean"]


@no_type_check  # it checks its values itself and takes lists where it keeps tuples
@dataclass(frozen=True)
class RecurrentConfig(ColumnarConfig):
    """A columnar config whose schemes all look back in time only.

    Args:
        readout: what is classified: the class token of the "last" frame, or every frame's, whose scores are averaged.
    """

    family = "recurrent"

    readout: Readout = "last"

    def __post_init__(self):
        super().__post_init__()
        if self.class_token != "frame":
            raise ValueError(f"class_token {self.class_token!r}: each frame of a stream has its own; write 'frame'")
        if self.patch.t != 1:
            raise ValueError(
                f"patch {tuple(self.patch)} joins frames, which a stream brings one by one; write (1, h, w)"
            )
        for scheme in self.schemes():
            if not declared.has(scheme, "step"):
                raise ValueError(f"{scheme} needs the whole clip; schemes of a stream have a step: recurrent_gate")


RVIT = dict(attention={}, blocks=(("recurrent_gate",),), class_token="frame", position="space", drop_path=0.0)


def models() -> dict[str, Callable[[], RecurrentConfig]]:
    """Depths of the large ones follow from the parameters and multiply-adds that TRecViT's paper quotes (72.0 M and
    1.34 T, 107.7 M and 3.99 T for three views): fits. Those of the small ones are guesses, as nothing is published.
    """
    sizes = {"small": (4, 32), "base": (6, 32), "large": (8, 32), "xl": (12, 64)}
    return {
        f"rvit_{name}": partial(RecurrentConfig, depth=depth, clip=Grid(frames, 224, 224), **RVIT)
        for name, (depth, frames) in sizes.items()
    }


configs.register("recurrent")(Configs(RecurrentConfig, models))
