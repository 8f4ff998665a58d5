"""A model that names the colour of a clip, and clips of one colour: small enough to know every answer beforehand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import backbones
from backbones import PyramidConfig

COLOURS = ("red", "green", "blue")
SIZE, FRAMES = 32, 4


def colour_config() -> PyramidConfig:
    return PyramidConfig(
        attention={"L": {"scheme": "local_window", "window": [2, 4, 4]}},
        stages=[["L"]],
        widths=[8],
        num_heads=[2],
        depths=[2],
        clip=[FRAMES, SIZE, SIZE],
        temporal_pooling=[],
        position="none",
    )


def colour_model() -> backbones.Pyramid:
    """Channels 0 to 2 of a token are the mean red, green and blue of its patch, the blocks add nothing, and the
    classifier reads these channels."""
    model = backbones.create(colour_config(), len(COLOURS))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and ("embed" in name or "attention.proj" in name or "fc2" in name):
                parameter.zero_()
        embed = model.stages[0].embed.proj.weight
        for channel in range(3):
            embed[channel, channel] = 1 / embed[0, 0].numel()
        model.classifier.weight.zero_()
        model.classifier.weight[:, :3] = torch.eye(3)
        model.classifier.bias.zero_()
    return model.eval()


def colour_video(path: Path, colour: str, frames: int = 12, height: int = 48, width: int = 64) -> Path:
    import av

    pictures = np.zeros((height, width, 3), np.uint8)
    pictures[..., COLOURS.index(colour)] = 230
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pictures, format="rgb24")))
        container.mux(stream.encode())
    return path


def published(model: backbones.Pyramid) -> dict[str, torch.Tensor]:
    """The state dict under the names of DualFormer's released code, where the colour model has any."""
    renames = (
        (".embed.", ".", "patch_embeds."),
        (".blocks.", ".", "blocks."),
    )
    state = {}
    for key, tensor in model.state_dict().items():
        new = key.replace("classifier.", "cls_head.fc_cls.").replace(".attention.", ".attn.")
        for inside, between, start in renames:
            head, separator, tail = new.partition(inside)
            if separator:
                new = f"{start}{head.removeprefix('stages.')}{between}{tail}"
        state[new if new.startswith("cls_head.") else f"backbone.{new}"] = tensor
    return state
