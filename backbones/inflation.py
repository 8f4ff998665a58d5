"""From an image model to a video model: 2-D weights repeated over time, so that a still clip gives what the image gave.

Sources: DualFormer, arXiv:2112.04674, and `inflate_weights` in the released code of DualFormer and Video Swin.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from attention_zoo import Grid
from attention_zoo.registry import nearest
from backbones.checkpoint import CLASSIFIER, CheckpointError, listed, read, shape_text, translate, weights_of
from backbones.family import Backbone, families
from backbones.parts import of_image_model, of_one_frame

logger = logging.getLogger(__name__)

Rule = Literal["paper", "code"]
PRIOR = re.compile(r"^stages\.(\d+)\.blocks\.\d+\.attention\.priors\.\d+\.([1-9]\d*)\.(?:weight|bias)$")
BIAS_TABLE = ".bias.table"
# DualFormer's code overwrites the second convolution of its coarse prior by these, whatever the kernel's size: the mean
# for 32 frames, half of it for 16.
RELEASED_MEANS = {0: 1 / 16, 1: 1 / 4}


@dataclass(frozen=True)
class InflationReport:
    """What became of each tensor of the model: all by our names, `unexpected` by the file's."""

    layout: str
    copied: tuple[str, ...]
    inflated: tuple[str, ...]  # repeated over time
    averaging: tuple[str, ...]  # made a mean over the tokens behind a key
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]  # (shape in the image model, shape in this one)
    fresh: tuple[str, ...]  # as initialised: a classifier of another size, what an image model cannot have

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        shapes = [
            f"{k} {shape_text(a)} in the image model, {shape_text(b)} here" for k, (a, b) in self.mismatched.items()
        ]
        lines = (
            listed("missing (in the model, not in the image model)", self.missing),
            listed("unexpected (in the image model, not in the model)", self.unexpected),
            listed("of a shape that cannot be inflated", shapes, "; "),
        )
        return "\n".join(line for line in lines if line)


def inflate(
    state_2d: Mapping[str, Tensor] | str | os.PathLike[str],
    model: Backbone,
    *,
    rule: str = "paper",
    strict: bool = True,
) -> InflationReport:
    """Fills a video model with the weights of an image model: DualFormer's, image Swin's, or an image model of ours.

    Convolutions are repeated over the time axis of their kernel and divided by its length; relative position biases are
    repeated for every offset in time (and resized, bicubic, where the image model had another window), not divided;
    everything else is copied. The rules differ in the later convolutions of DualFormer's priors, such as the second
    one of its coarse branch:

    - "paper": inflated as any other convolution, or a mean over its kernel where the image model has none.
    - "code": the released code's constant, 1/16 in the first stage and 1/4 in the second, with a bias of 0. These are
      means for 32 frames only; for 16 frames they give half of a mean.

    Args:
        state_2d: a state dict, or a file with one; names as in any layout that `load_checkpoint` reads.
        strict: whether a tensor that is missing, unexpected or of a shape that cannot be inflated is an error. A
            classifier for another number of classes is none: it stays as it is.

    Raises:
        CheckpointError: the weights do not fit. The model is then unchanged.
    """
    if rule not in get_args(Rule):
        raise ValueError(f"unknown inflation rule {rule!r}; {nearest(str(rule), get_args(Rule))}")
    source = "the state dict"
    if not isinstance(state_2d, Mapping):
        source = str(state_2d)
        state_2d, _ = read(Path(state_2d))
    weights = weights_of(model)
    try:
        translated = translate(state_2d, model.config and model.config.family, weights)
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from None
    family = None if model.config is None else families.get(model.config.family)
    from_image = family and family.from_image
    tensors = family.of_image(model, translated.tensors) if family and family.of_image else translated.tensors
    filled: dict[str, Tensor] = {}
    kinds: dict[str, list[str]] = {kind: [] for kind in ("copied", "inflated", "averaging", "missing", "fresh")}
    mismatched = {}
    for key, target in weights.items():
        image = tensors.get(key)
        if from_image is None:
            kind, tensor = _tensor(model, weights, key, image, rule)
        else:
            kind, tensor = from_image(model, key, tensors)
        if kind == "mismatched":
            mismatched[key] = (tuple(image.shape), tuple(target.shape))
        else:
            kinds[kind].append(key)
        if tensor is not None:
            filled[key] = tensor
    # A model without classifier leaves the image model's behind.
    unexpected = [k for k in tensors if k not in weights and (model.num_classes or not k.startswith(CLASSIFIER))]
    report = InflationReport(
        layout=translated.layout.name,
        unexpected=tuple(translated.origin.get(key, key) for key in unexpected),
        mismatched=mismatched,
        **{kind: tuple(keys) for kind, keys in kinds.items()},
    )
    if not report.copied and not report.inflated:
        raise CheckpointError(f"{source} (layout: {report.layout}) has no tensor that fits the model\n{report}")
    if report.mismatched and all(ours == theirs for ours, theirs in report.mismatched.values()):
        raise CheckpointError(f"{source} (layout: {report.layout}) is a video model already; leave inflate out")
    if strict and not report.complete:
        raise CheckpointError(
            f"{source} (layout: {report.layout}) cannot be inflated to the model\n{report}\n"
            "  take the video model of the image model's size"
        )
    with torch.no_grad():
        for key, tensor in filled.items():
            weights[key].copy_(tensor)
    if report.fresh:
        logger.info("%s: the classifier has another number of classes and stays as initialised", source)
    if not report.complete:
        logger.warning("%s (layout: %s) inflated, but not all of it fits\n%s", source, report.layout, report)
    return report


def _tensor(
    model: Backbone, weights: Mapping[str, Tensor], key: str, image: Tensor | None, rule: str
) -> tuple[str, Tensor | None]:
    """What becomes of one tensor of the model: the kind for the report, and its values if they change."""
    target = weights[key]
    pooling = PRIOR.match(key)
    weight_name = key.rpartition(".")[0] + ".weight"
    if pooling and weights[weight_name].ndim == 5:
        constant = RELEASED_MEANS.get(int(pooling[1])) if rule == "code" else None
        if constant is not None or image is None:
            return "averaging", _mean(target, constant)
    if key.endswith(BIAS_TABLE) and image is not None:
        window = model.get_submodule(key.removesuffix(".table")).window
        table = _inflated_table(image, window)
        return ("mismatched", None) if table is None or table.shape != target.shape else ("inflated", table)
    return of_image_model(key, target, image, _repeated)


def _repeated(image: Tensor, target: Tensor) -> Float[Tensor, "o i t h w"] | None:
    """A convolution over time as well, whose frames add up to that of the image model."""
    flat, frames = of_one_frame(image, target), target.shape[2]
    return None if flat is None else repeat(flat, "o i h w -> o i t h w", t=frames) / frames


def _mean(target: Tensor, constant: float | None) -> Tensor:
    """The mean over a kernel, channel by channel; its bias is 0. `constant` replaces one over the kernel's size."""
    if target.ndim == 1:
        return torch.zeros_like(target)
    out, per_group, *kernel = target.shape
    value = 1 / math.prod(kernel) if constant is None else constant
    channels = torch.ones(out, 1) if per_group == 1 else torch.eye(out, per_group)
    return (channels * value)[:, :, None, None, None].expand(target.shape).to(target)


def _inflated_table(table: Float[Tensor, "offsets m"], window: Grid) -> Float[Tensor, "_rows m"] | None:
    """The bias of each offset in space, for each offset in time; None if the image model's window is not square."""
    height, width = 2 * window.h - 1, 2 * window.w - 1
    if len(table) != height * width:
        side = math.isqrt(len(table))
        if side * side != len(table):
            return None
        square = rearrange(table, "(h w) m -> 1 m h w", h=side)
        square = interpolate(square, size=(height, width), mode="bicubic", align_corners=False)
        table = rearrange(square, "1 m h w -> (h w) m")
    return table.repeat(2 * window.t - 1, 1)
