"""The recurrent family: a column of blocks that takes a clip frame by frame and keeps a state, of the same size for any
length.

RViT is a column of recurrent gates. As a model of clips it is a columnar one with a class token for each frame; as a
stream it takes one frame at a time, `model.stream()`, and gives the same scores.

Source: RViT, CVPR 2022, and its supplement; sizes by our arithmetic, see `models`.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from attention_zoo import Tokens
from backbones.columnar import Columnar
from backbones.configs.recurrent import RecurrentConfig, models
from backbones.family import Family, Origin, families
from backbones.layouts import NATIVE_NAME, Layout


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
