"""Where in space and time a model saw a class: gradient-weighted activation maps (Grad-CAM) of one block.

Source: Selvaraju et al., Grad-CAM, arXiv:1610.02391, as in the released code of DualFormer (arXiv:2112.04674, Fig. 6).
It differs from the usual one in this: the score is the softmax probability averaged over views, not the logit, and
every time step has weights of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from attention_zoo import Tokens
from attention_zoo.registry import nearest
from backbones.family import Backbone
from harness import precision

TINY = 1e-20  # added to the range of a map, as published: a map that is zero everywhere stays zero


@dataclass(frozen=True)
class HeatMaps:
    """Heat of one class, 0 to 1 within each view, and what it was computed from."""

    heat: Float[Tensor, "v t h w"]
    target: int
    probabilities: Float[Tensor, " k"]  # averaged over the views
    block: str
    activations: Float[Tensor, "v c pt ph pw"]
    gradients: Float[Tensor, "v c pt ph pw"]


def heat_maps(
    model: Backbone,
    clips: Float[Tensor, "v 3 t h w"],
    *,
    target: int | None = None,
    block: str | None = None,
    batch_size: int = 4,
) -> HeatMaps:
    """Heat maps of the views of one video, in their size.

    Args:
        target: number of the class; the one with the highest probability where none is given.
        block: name of the block whose output is looked at, such as "stages.3.blocks.3"; the last where none is given.
        batch_size: views computed at a time. The result does not depend on it.

    Raises:
        ValueError: the model has no such class or block, or no classifier.
    """
    names = list(model.blocks())
    block = names[-1] if block is None else block
    if block not in names:
        raise ValueError(f"the model has no block {block!r}; {nearest(block, names)}")
    if model.classifier is None:
        raise ValueError("the model has no classifier, so there is no class to look for")
    if target is not None and not 0 <= target < model.num_classes:
        raise ValueError(f"target {target} is none of the {model.num_classes} classes, numbered from 0")
    parts = clips.split(batch_size)
    with precision.exact(), _evaluating(model):
        if target is None:
            with torch.no_grad():
                target = int(torch.cat([model(part).softmax(dim=-1) for part in parts]).mean(dim=0).argmax())
        with _watched(model.get_submodule(block)) as outputs:
            results = [_differentiated(model, part, target, len(clips), outputs) for part in parts]
    activations, gradients = (torch.cat([part[i] for part in results]) for i in (0, 1))
    return HeatMaps(
        heat=localised(activations, gradients, clips.shape[2:]),
        target=target,
        probabilities=torch.cat([part[2] for part in results]).mean(dim=0),
        block=block,
        activations=activations,
        gradients=gradients,
    )


def localised(
    activations: Float[Tensor, "v c pt ph pw"], gradients: Float[Tensor, "v c pt ph pw"], size: torch.Size
) -> Float[Tensor, "v t h w"]:
    """Weights are the mean gradient of each channel at each time step; of the weighted sum only what speaks for the
    class is kept, resized to the clip (corners not aligned) and stretched to 0..1 over time and space of each view.
    """
    weights = reduce(gradients, "v c t h w -> v c t 1 1", "mean")
    heat = (weights * activations).sum(dim=1, keepdim=True).relu()
    heat = interpolate(heat, size=tuple(size), mode="trilinear", align_corners=False)[:, 0]
    low, high = (reduce(heat, "v t h w -> v 1 1 1", kind) for kind in ("min", "max"))
    return (heat - low) / (high - low + TINY)


def _differentiated(
    model: Backbone, part: Tensor, target: int, views: int, outputs: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Activations and gradients of the watched block, channels first, and the probabilities of these views."""
    outputs.clear()
    with torch.enable_grad():
        probabilities = model(part).softmax(dim=-1)
        score = probabilities[:, target].sum() / views  # the mean over all views, of which these are a part
        (gradient,) = torch.autograd.grad(score, outputs)
    channels_first = (rearrange(x, "v t h w c -> v c t h w") for x in (outputs[0].detach(), gradient))
    return (*channels_first, probabilities.detach())


@contextlib.contextmanager
def _watched(module: nn.Module) -> Iterator[list[Tensor]]:
    """The output of a module, cut off from what came before: gradients are needed from there on only."""
    outputs: list[Tensor] = []

    def watch(_module: nn.Module, _inputs: tuple, output: Tokens) -> Tokens:
        cut = output.with_x(output.x.detach())
        outputs.append(cut.map.requires_grad_())
        return cut.of(outputs[-1], cut.head)

    with module.register_forward_hook(watch):
        yield outputs


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, and no gradients for weights; both as they were afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    needs = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, required in needs:
            parameter.requires_grad_(required)
