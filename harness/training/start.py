"""What a run starts from: its data sets, the numbers of its steps, the model with initial weights, and its teacher."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import torch
from rich.console import Console
from rich.markup import escape
from torch import nn

import backbones
from backbones.family import Backbone
from harness import datasets
from harness.clips.rand_augment import INSTALL as RANDAUGMENT_NEEDS
from harness.cost.build import unavailable
from harness.datasets import DataSet
from harness.training import token_labels
from harness.training.distributed import Group
from harness.training.initial import initialise, scale_to_inputs
from harness.training.job import Job, TrainingError

LINES_PER_EPOCH = 20


def check_device(job: Job) -> None:
    """Raises: TrainingError, where device, number format or kernel are not to be had here."""
    reason = unavailable(job.device, job.dtype, job.kernel)
    if reason is None and job.strategy == "fsdp" and job.dtype == "float16":
        reason = "float16 with strategy=fsdp: the gradients' scaler does not see all of them; use bfloat16 or float32"
    if reason is None and job.recipe.augmentation.rand_augment and find_spec("kornia") is None:
        reason = RANDAUGMENT_NEEDS
    if reason is not None:
        raise TrainingError(reason)


def data_sets(job: Job) -> dict[str, DataSet]:
    """What is trained on and what is tested on, by split. Raises: DataError, TrainingError."""
    found = {split: datasets.load(job.data, split, job.root, **job.data_options) for split in ("train", job.test_split)}
    for split, dataset in found.items():
        if not len(dataset):
            raise TrainingError(f"{job.data}, {split}: no videos are listed; look at the list")
        if len(dataset.classes) != job.classes:
            raise TrainingError(f"{job.data}, {split}: {len(dataset.classes)} classes, but the job says {job.classes}")
    return found


@dataclass(frozen=True)
class Schedule:
    """The numbers that a job and the size of its data come to.

    Args:
        micro: clips of a micro-batch.
        parts: micro-batches of one process in a step.
        per_epoch: steps of an epoch.
        last: the step with which training ends.
        every: steps per line of the log.
    """

    micro: int
    parts: int
    per_epoch: int
    last: int
    every: int


def schedule(job: Job, group: Group, count: int) -> Schedule:
    """Of `count` training videos. Raises: TrainingError, where the batch does not fit them or cannot be split."""
    micro, parts = _parts(job, group, count)
    optimisation = job.recipe.optimisation
    per_epoch = count // optimisation.batch_size
    steps = max(1, round(optimisation.epochs * per_epoch))
    return Schedule(
        micro=micro,
        parts=parts,
        per_epoch=per_epoch,
        last=min(steps, job.max_steps or steps),
        every=job.log_every or max(1, per_epoch // LINES_PER_EPOCH),
    )


def _parts(job: Job, group: Group, count: int) -> tuple[int, int]:
    """Clips of a micro-batch, and micro-batches of one process in a step. Raises: TrainingError."""
    batch, world = job.recipe.optimisation.batch_size, group.world
    if count < batch:
        raise TrainingError(
            f"a batch of {batch} is more than the {count} training videos of {job.data}; "
            f"give recipe.optimisation.batch_size={count} or less"
        )
    micro = job.micro_batch or batch // world
    if micro < 1 or batch % (micro * world):
        allowed = [n for n in range(1, batch + 1) if batch % (n * world) == 0]
        hint = f"micro_batch of {', '.join(map(str, allowed))}" if allowed else f"a batch that {world} divides"
        raise TrainingError(
            f"a batch of {batch} cannot be split into micro-batches of {micro} on {world} "
            f"{'processes' if world > 1 else 'process'}; allowed: {hint}"
        )
    return micro, batch // (micro * world)


def new_model(job: Job, kernel: str, console: Console) -> Backbone:
    """The model with its initial weights, the same in every process."""
    torch.manual_seed(job.seed)
    model = backbones.create(backbones.read_config(job.config), job.classes, kernel=kernel)
    if job.recipe.linear_maps == "fan_in":
        scale_to_inputs(model)
    if job.checkpoint is not None:
        for note in initialise(model, job.checkpoint, job.inflate):
            console.print(escape(note), soft_wrap=True)
    if job.activation_checkpointing:
        model.activation_checkpointing = True
    return model


def token_labelled(job: Job, model: Backbone, device: torch.device) -> tuple[nn.Module, token_labels.Annotator | None]:
    """What is trained: the model, or the student around it; then with its teacher."""
    settings = job.recipe.token_labels
    if settings is None:
        return model, None
    if settings.checkpoint is None:
        raise TrainingError(
            f"recipe {job.recipe.name} needs a trained teacher ({settings.teacher}); "
            "give its weights as recipe.token_labels.checkpoint=FILE"
        )
    teacher = token_labels.annotator(settings.checkpoint, job.classes, settings.teacher, tuple(model.clip))
    return token_labels.TokenLabelled(model, settings), teacher.to(device)
