"""The recurrent family: a column of blocks that takes a clip frame by frame and keeps a state, of the same size for any
length.

RViT is a column of recurrent gates. As a model of clips it is a columnar one with a class token for each frame; as a
stream it takes one frame at a time, `model.stream()`, and gives the same scores.

Source: RViT, CVPR 2022, and its supplement; sizes by our arithmetic, see `models`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor

import attention_zoo
from attention_zoo import Grid, Tokens
from backbones.columnar import Columnar, ColumnarConfig
from backbones.family import Family, Origin, families
from backbones.layouts import NATIVE_NAME, Layout

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
            if not hasattr(attention_zoo.schemes.get(scheme), "step"):
                raise ValueError(f"{scheme} needs the whole clip; schemes of a stream have a step: recurrent_gate")


class Recurrent(Columnar):
    """Clip in, class scores out, or frame by frame."""

    def __init__(self, config: RecurrentConfig, num_classes: int, kernel: str):
        super().__init__(config, num_classes, kernel)
        self.readout = config.readout

    def scores(self, tokens: Tokens) -> Float[Tensor, "b k"]:
        heads = tokens.head[:, -1:] if self.readout == "last" else tokens.head
        return self.classified(self.norm(heads)).mean(1)

    def step(self, frame: Float[Tensor, "b c h w"], state: Any) -> tuple[Float[Tensor, "b k"], Any]:
        """The scores after one more frame, and what is kept of all frames so far: `state`, None before the first."""
        states, total, frames = state or ([None] * len(self.column), 0, 0)
        tokens = self.embedded(frame[:, :, None])
        after = []
        for block, memory in zip(self.column, states, strict=True):
            tokens, memory = block.step(tokens, memory)
            after.append(memory)
        scores = self.classified(self.norm(tokens.head)).mean(1)
        total, frames = total + scores, frames + 1
        return scores if self.readout == "last" else total / frames, (after, total, frames)

    def stream(self) -> Stream:
        return Stream(self)


class Stream:
    """A model that watches: each call takes one frame `b c h w` and gives the scores so far, without gradients."""

    def __init__(self, model: Recurrent):
        self.model, self.state = model, None

    @torch.inference_mode()
    def __call__(self, frame: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        scores, self.state = self.model.step(frame, self.state)
        return scores


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


families.register("recurrent")(
    Family(
        "recurrent",
        RecurrentConfig,
        Recurrent,
        models,
        (Layout(NATIVE_NAME, r"^column\.\d+\.attention\.\d+\.h_qkv\."),),
        origins={"rvit": Origin("RViT, CVPR 2022", "none released", "-", "none")},
    )
)
