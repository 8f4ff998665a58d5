"""How far what a case computes is from what it should be, and whether that is near enough to be timed.

A time says nothing where the result is wrong. So each case is computed once in miniature before it is timed: its model
with one run through the pattern of each stage on a small clip, with its kernel, number format and device, against the
same weights in float64 on the kernel `reference`. What is compared is the model and not attention alone, since the fast
paths around attention are timed with it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

import attention_zoo
import backbones
from attention_zoo import kernels, use_kernel
from harness.cost.build import build
from harness.spec.case import Case
from records.record import Measurement, canonical

TOLERANCE = {
    "forward_error": {"float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2},
    "backward_error": {"float32": 1e-4, "float16": 1e-1, "bfloat16": 2e-1},
}
"""Of the largest difference over the largest value: some times what rounding alone gives in the models of this project.
Float16 loses most where the gradient of a pooling convolution is a sum of very small numbers."""
CLIP, CLIPS, CLASSES = (8, 64), 2, 10  # frames, height and width
SMALLEST = 1e-2  # a gradient smaller than this share of the largest is compared with that share: it is mostly rounding


def miniature(case: Case) -> Case:
    """The case with its schemes, options, widths and heads, but few blocks and a small clip."""
    config = backbones.read_config(case.config)
    frames, size = min(config.clip.t, CLIP[0]), min(config.clip.h, CLIP[1])
    config = config.shrunk(1, 1, (frames, size, size))
    clip = replace(case.clip, frames=frames, size=size)
    return replace(
        case,
        config=config.to_dict(),
        clip=clip,
        num_classes=CLASSES,
        batch_size=CLIPS,
        compile=False,
        graph=False,
        mixed=False,
    )


def key(case: Case) -> str:
    """Equal for cases whose errors are the same: they differ in clip, batch, depth or name alone."""
    return canonical({**miniature(case).to_dict(), "row": "", "model": "", "threads": None})


def measured(case: Case, *, backward: bool) -> tuple[float, str | None]:
    """The error of the class scores, or the largest of the gradients, and the tensor that it is of.

    Scores are taken as in inference and with gradients, for which PyTorch may choose another implementation. Not a
    finite number where the result is not.
    """
    small = miniature(case)
    device, dtype = torch.device(case.device), getattr(torch, case.dtype)
    model = build(small, device="cpu").float()
    generator = torch.Generator().manual_seed(case.seed)
    with torch.no_grad():
        for parameter in model.parameters():  # as initialised, scores are nearly equal and hide an error in them
            if parameter.dim() > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
    clips = torch.randn(CLIPS, 3, small.clip.frames, small.clip.size, small.clip.size, generator=generator)
    probe = torch.randn(CLIPS, CLASSES, generator=generator)
    model, clips, probe = (x.to(device, dtype) for x in (model, clips, probe))  # rounded once, for both sides
    if hasattr(model, "counterpart"):  # public code is held against ours, on its weights
        exact = model.counterpart().double()
    else:
        exact = use_kernel(copy.deepcopy(model).double(), "reference")
    if not backward:
        with torch.inference_mode():
            pairs = {"scores": (model(clips), exact(clips.double()))}
        return _worst(pairs)
    kernels.resolve(case.kernel, device, dtype, backward=True)
    return _worst(_gradients(model, exact, clips, probe))


def _gradients(model: nn.Module, exact: nn.Module, clips: Tensor, probe: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """The scores and the gradients of clip and parameters, of both sides."""
    sides = []
    for side, x, weights in ((model, clips, probe), (exact, clips.double(), probe.double())):
        x = x.detach().clone().requires_grad_()
        scores = side(x)
        (scores * weights).sum().backward()
        # Of vectors (norms, biases) the gradient is a sum over all tokens, which libraries take in 16 bits: half of it
        # can be rounding, whatever the kernel.
        gradients = {name: p.grad for name, p in side.named_parameters() if p.grad is not None and p.dim() > 1}
        sides.append({"scores": scores.detach(), "clip": x.grad, **gradients})
    return {name: (sides[0][name], sides[1][name]) for name in sides[1] if name in sides[0]}


def _worst(pairs: dict[str, tuple[Tensor, Tensor]]) -> tuple[float, str | None]:
    """The largest difference over the largest value, tensor by tensor. A tensor that is not finite is the worst."""
    largest = max(exact.abs().max().item() for _, exact in pairs.values())
    errors = {}
    for name, (result, exact) in pairs.items():
        scale = max(exact.abs().max().item(), SMALLEST * largest)
        error = (result.double() - exact).abs().max().item() / scale
        errors[name] = error if error == error else float("inf")
    worst = max(errors, key=errors.get)
    return errors[worst], worst


def may_choose_others(case: Case) -> bool:
    """Whether a rounded score may choose other blocks than the exact one, which is no wrong result: in 16 bits."""
    schemes = (attention_zoo.schemes.get(name) for name in backbones.read_config(case.config).schemes())
    return case.dtype != "float32" and any(hasattr(scheme, "selection") for scheme in schemes)


def needed(case: Case, process: str) -> list[str]:
    """The errors that must be known before a case is timed in such a process; none on the reference itself."""
    if case.kernel == "reference" or may_choose_others(case):
        return []
    return {
        "forward": ["forward_error"],
        "stream": ["forward_error"],
        "largest_batch": ["forward_error"],
        "training": ["forward_error", "backward_error"],
        "training_largest_batch": ["forward_error", "backward_error"],
    }.get(process, [])


def why_wrong(measurements: Iterable[Measurement]) -> str | None:
    """Why nothing may be timed, from the errors of a case; None where none is beyond its tolerance."""
    for error in measurements:
        if error.details.get("wrong"):
            why = (
                error.missing or f"{error.value:.1e} of {error.details['of']} is above {error.details['tolerance']:.0e}"
            )
            return f"not timed, its result is wrong: {error.name.replace('_', ' ')}: {why}"
    return None
