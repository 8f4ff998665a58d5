"""What a run starts from: its data sets, the numbers of its steps, the model with initial weights, and its objective.

Initial weights are those of a video model, or of an image model that is inflated. Both come from `backbones`; here is
what fine-tuning adds, a classifier for other classes and kernels that depend on the length of the clip. What stays as
initialised is told, never passed over.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from torch import nn

import backbones
from attention_zoo import UnknownName
from backbones import Backbone, CheckpointError, LoadReport, learning, load_checkpoint, save_checkpoint
from backbones.checkpoint import CLASSIFIER, listed
from backbones.family import part
from backbones.sets import with_sets
from harness.clips.rand_augment import INSTALL as RANDAUGMENT_NEEDS
from harness.cost.build import unavailable
from harness.datasets import DataSet
from harness.spec.recipe import Optimisation
from harness.training import many_sets, token_labels
from harness.training.distributed import Group
from harness.training.folder import BACKBONE
from harness.training.job import Job, TrainingError
from harness.training.objective import Objective, classification
from harness.training.optimizer import lr_factor
from harness.training.state import storing

LINES_PER_EPOCH = 20
# Convolutions that pool the map to keys: their kernels follow from the number of frames.
POOLING = re.compile(r"\.attention\.priors\.")


def check_device(job: Job) -> None:
    """Raises: TrainingError, where device, number format or kernel are not to be had here."""
    reason = unavailable(job.device, job.dtype, job.kernel)
    if reason is None and job.strategy == "fsdp" and job.dtype == "float16":
        reason = "float16 with strategy=fsdp: the gradients' scaler does not see all of them; use bfloat16 or float32"
    if reason is None and job.recipe.augmentation.rand_augment and find_spec("kornia") is None:
        reason = RANDAUGMENT_NEEDS
    if reason is not None:
        raise TrainingError(reason)


def check_views(job: Job) -> None:
    """Before the training, not at its end. Raises: TrainingError, where test crops do not fit into test frames."""
    testing = job.recipe.testing
    size = testing.size or job.recipe.augmentation.size
    if size > testing.resize:
        raise TrainingError(
            f"test crops of {size} x {size} pixels do not fit into frames of a short side of {testing.resize}; give "
            f"recipe.testing.resize={size} or more, or a smaller recipe.testing.size"
        )


def data_sets(job: Job) -> dict[str, list[DataSet]]:
    """What is trained on and what is tested on, by split: one data set, or several in the order of the job's `sets`.

    Raises: DataError, TrainingError.
    """
    sets: dict[str, list[DataSet]] = {}
    counts = list(job.sets.values()) or [job.classes]
    for split in ("train", job.test_split):
        sets[split] = [chosen.load(split) for chosen in job.chosen_data]
        for chosen, dataset, count in zip(job.chosen_data, sets[split], counts, strict=True):
            if not len(dataset):
                raise TrainingError(f"{chosen.data}, {split}: no videos are listed; look at the list")
            if len(dataset.classes) != count:
                raise TrainingError(f"{chosen.data}, {split}: {len(dataset.classes)} classes, but the job says {count}")
    return sets


@dataclass(frozen=True)
class Schedule:
    """The numbers that a job and the size of its data come to."""

    micro: int  # clips of a micro-batch
    parts: int  # micro-batches of one process in a step
    per_epoch: int  # steps of an epoch
    ends: list[int]  # the steps with which a course of the learning rate ends; the last ends the training
    every: int  # steps per line of the log

    @property
    def last(self) -> int:
        return self.ends[-1]

    def place(self, step: int) -> tuple[int, int]:
        """How many steps the course of a step (from 0) has before it, and how many in all."""
        number = sum(step >= end for end in self.ends[:-1])
        begun = self.ends[number - 1] if number else 0
        return step - begun, self.ends[number] - begun

    def rate(self, step: int, optimisation: Optimisation) -> float:
        """What the learning rates are multiplied by at a step (from 0)."""
        done, length = self.place(step)
        if length != self.ends[0]:
            optimisation = replace(optimisation, epochs=length / self.per_epoch)
        return lr_factor(done, self.per_epoch, optimisation)


def guessing(job: Job) -> float:
    """About the loss of a model that knows nothing."""
    loss, settings = math.log(job.classes), job.many_sets
    if job.sets:
        projected = len(job.sets) > 1 and settings.projections
        loss *= 1 + settings.projection_weight * projected
        loss += settings.informative * settings.std_weight
    return max(1.0, loss)


def unreached(optimisation: Optimisation, schedule: Schedule) -> list[str]:
    """What of a recipe a training of so many steps never comes to, in words."""
    epochs = schedule.last / max(1, schedule.per_epoch)
    length = f"the training ends after {epochs:.3g} epoch{'s' * (epochs != 1)}"
    notes = []
    if optimisation.warmup_epochs >= epochs:
        largest = max(optimisation.warmup_start, epochs / optimisation.warmup_epochs)
        notes.append(
            f"warning: the warm-up of {optimisation.warmup_epochs:g} epochs does not end, {length}: the learning rate "
            f"reaches {100 * largest:.0f} % of what is stated at most; give a lower recipe.optimisation.warmup_epochs"
        )
    late = [f"{epoch:g}" for epoch in optimisation.milestones if epoch >= epochs]
    if optimisation.schedule == "step" and late:
        notes.append(f"warning: milestones at epoch {', '.join(late)} are never reached, {length}")
    return notes


def schedule(job: Job, group: Group, count: int) -> Schedule:
    """Of `count` training videos. Raises: TrainingError, where the batch does not fit them or cannot be split."""
    batch, world = job.recipe.optimisation.batch_size, group.world
    if count < batch:
        names = job.data if isinstance(job.data, str) else " and ".join(job.data)
        raise TrainingError(
            f"a batch of {batch} is more than the {count} training videos of {names}; "
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
    per_epoch = count // batch
    steps = max(1, round(job.recipe.optimisation.epochs * per_epoch))
    return Schedule(
        micro=micro,
        parts=batch // (micro * world),
        per_epoch=per_epoch,
        ends=[min(steps, job.max_steps or steps)],
        every=job.log_every or max(1, per_epoch // LINES_PER_EPOCH),
    )


def new_model(job: Job, kernel: str, console: Console) -> Backbone:
    """The model with its initial weights, the same in every process. Raises: TrainingError where it cannot be built."""
    torch.manual_seed(job.seed)
    try:
        model = backbones.create(backbones.read_config(job.config), job.classes, kernel=kernel)
    except ValueError as error:  # what only a scheme itself can judge, such as windows that do not go into the map
        raise TrainingError(f"model {job.model} cannot be built: {error}") from None
    if job.sets:
        with_sets(model, job.sets, job.many_sets.hidden, job.many_sets.dropout)
    if job.recipe.linear_maps == "fan_in":
        scale_to_inputs(model)
    if job.checkpoint is not None:
        for note in initialise(model, job.checkpoint, job.inflate):
            console.print(escape(note), soft_wrap=True)
    elif job.trainable != "all":  # a checkpoint of the trained part needs a file with the rest
        with storing(job.folder):
            save_checkpoint(model, job.folder / BACKBONE)
    if job.activation_checkpointing:
        model.activation_checkpointing = True
    try:
        return learning(model, job.trainable)
    except UnknownName as error:
        raise TrainingError(f"trainable={job.trainable}: {error.args[0]}") from None


def autocast(job: Job, device: torch.device) -> torch.autocast:
    """What forward passes of a job run in; it also decorates functions."""
    return torch.autocast(device.type, getattr(torch, job.dtype), enabled=job.dtype != "float32")


def objective(job: Job, model: Backbone, device: torch.device) -> tuple[nn.Module, Objective]:
    """What is trained, which is the model or wraps it, and what its steps make smaller."""
    settings = job.recipe.token_labels
    if job.sets:
        whole = many_sets.ManySetsModel(model, job.many_sets)
        if job.recipe.linear_maps == "fan_in":
            scale_to_inputs(whole.projections)
        return whole, many_sets.ManySetsObjective(whole.spans, job.many_sets)
    if settings is None:
        return model, classification
    if settings.checkpoint is None:
        raise TrainingError(
            f"recipe {job.recipe.name} needs a trained teacher ({settings.teacher}); "
            "give its weights as recipe.token_labels.checkpoint=FILE"
        )
    teacher = token_labels.annotator(settings.checkpoint, job.classes, settings.teacher, tuple(model.clip))
    student = token_labels.TokenLabelled(model, settings)
    return student, token_labels.TokenLabelling(teacher.to(device), settings, autocast(job, device))


def initialise(model: nn.Module, checkpoint: str | os.PathLike[str], inflate: bool = False) -> list[str]:
    """Fills a model with the weights of a file. Returns what a reader of the run should know, in sentences.

    A classifier of another number of classes stays as initialised. So do pooling kernels of another clip length, as in
    the released fine-tuning of a 32-frame DualFormer on 16 frames, and what may be trained alone, such as adapters,
    where the file has none of it. Everything else must fit.

    Args:
        model: a `Backbone`, or what wraps one as its `student`.
        inflate: the file is of an image model; see `backbones.inflate`.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the weights do not fit. Those that do may be in the model by then.
    """
    model, checkpoint = getattr(model, "student", model), Path(checkpoint).expanduser()
    assert isinstance(model, Backbone)
    if inflate:
        return _inflated(model, checkpoint)
    report = load_checkpoint(model, checkpoint, strict=False)
    fresh = [key for key in (*report.mismatched, *report.missing) if key.startswith(CLASSIFIER)]
    tunable = [part(model, name) for name in model.tunable]
    added = [key for key in report.missing if key not in fresh and any(pattern.search(key) for pattern in tunable)]
    accepted = {*fresh, *added}
    misfits = [key for key in (*report.mismatched, *report.missing, *report.unexpected) if key not in accepted]
    # Other attention makes other pooling kernels too, and then they are no matter of the clip.
    same_attention = not {"attention", "stages"} & set(report.config_differs)
    pooling = [key for key in misfits if same_attention and POOLING.search(key)]
    if len(misfits) > len(pooling):
        misfit_text = _misfit(report, accepted | set(pooling))
        raise CheckpointError(
            f"{checkpoint} (layout: {report.layout}) does not fit the model\n{misfit_text}\n"
            "  make the model with the file's config; weights of an image model need inflate=true"
        )
    notes = [f"{len(report.loaded)} tensors from {checkpoint.name} ({report.layout})"]
    if fresh:
        shapes = report.mismatched.get(f"{CLASSIFIER}weight")
        why = f"the file's has {shapes[0][0]} classes, the model {model.num_classes}" if shapes else "the file has none"
        notes.append(f"the classifier starts fresh: {why}")
    if added:
        notes.append(f"what the file has not starts fresh; {listed('tensors', added).strip()}")
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


def _inflated(model: Backbone, path: Path) -> list[str]:
    report = backbones.inflate(path, model)
    counts = f"{len(report.copied)} tensors copied and {len(report.inflated)} inflated"
    notes = [f"{counts} from {path.name} ({report.layout}, rule paper)"]
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
