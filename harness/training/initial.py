"""What a model starts from: the weights of a video model, or of an image model that is inflated.

Both come from `backbones`; here is what fine-tuning adds, a classifier for other classes and kernels that depend on the
length of the clip. What stays as initialised is told, never passed over.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import backbones
from backbones import Backbone, CheckpointError, LoadReport, load_checkpoint
from backbones.checkpoint import CLASSIFIER, listed

# Convolutions that pool the map to keys: their kernels follow from the number of frames.
POOLING = re.compile(r"\.attention\.priors\.")


def initialise(
    model: nn.Module, checkpoint: str | os.PathLike[str], inflate: bool = False, rule: str = "paper"
) -> list[str]:
    """Fills a model with the weights of a file. Returns what a reader of the run should know, in sentences.

    A classifier of another number of classes stays as initialised. So do pooling kernels of another clip length, as in
    the released fine-tuning of a 32-frame DualFormer on 16 frames. Everything else must fit.

    Args:
        model: a `Backbone`, or the `TokenLabelled` student around one.
        inflate: the file is of an image model; see `backbones.inflate`, also for `rule`.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the weights do not fit. Those that do may be in the model by then.
    """
    model = getattr(model, "student", model)
    assert isinstance(model, Backbone)
    if inflate:
        return _inflated(model, Path(checkpoint), rule)
    report = load_checkpoint(model, checkpoint, strict=False)
    fresh = [key for key in (*report.mismatched, *report.missing) if key.startswith(CLASSIFIER)]
    misfits = [key for key in (*report.mismatched, *report.missing, *report.unexpected) if key not in fresh]
    # Other attention makes other pooling kernels too, and then they are no matter of the clip.
    same_attention = not {"attention", "stages"} & set(report.config_differs)
    pooling = [key for key in misfits if same_attention and POOLING.search(key)]
    if len(misfits) > len(pooling):
        raise CheckpointError(
            f"{checkpoint} (layout: {report.layout}) does not fit the model\n{_misfit(report, {*fresh, *pooling})}\n"
            "  make the model with the file's config; weights of an image model need inflate=true"
        )
    notes = [f"{len(report.loaded)} tensors from {Path(checkpoint).name} ({report.layout})"]
    if fresh:
        there = report.mismatched.get(f"{CLASSIFIER}weight")
        why = f"the file's has {there[0][0]} classes, the model {model.num_classes}" if there else "the file has none"
        notes.append(f"the classifier starts fresh: {why}")
    if pooling:
        notes.append(
            "the pooling kernels for another clip length are not taken over and start fresh; "
            + listed("tensors", pooling).strip()
        )
    return notes


def _misfit(report: LoadReport, accepted: set[str]) -> str:
    """What of a report is left to complain about."""
    return str(
        replace(
            report,
            missing=tuple(key for key in report.missing if key not in accepted),
            unexpected=tuple(key for key in report.unexpected if key not in accepted),
            mismatched={key: shapes for key, shapes in report.mismatched.items() if key not in accepted},
        )
    )


def _inflated(model: Backbone, path: Path, rule: str) -> list[str]:
    report = backbones.inflate(path, model, rule=rule)
    notes = [
        f"{len(report.copied)} tensors copied and {len(report.inflated)} inflated from {path.name} ({report.layout}, "
        f"rule {rule})"
    ]
    if report.averaging:
        notes.append(f"{len(report.averaging)} tensors of pooling steps start as a mean over the tokens behind a key")
    if report.fresh:
        notes.append("the classifier starts fresh: the image model's is of other classes")
    return notes


@torch.no_grad()
def scale_to_inputs(model: nn.Module) -> None:
    """Draw every linear map anew: truncated normal, deviation 1 / sqrt(its inputs)."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
