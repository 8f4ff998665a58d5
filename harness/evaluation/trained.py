"""A trained model as the command lines take it: a checkpoint, what it was trained for, and how it is to be tested."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import backbones
from attention_zoo.registry import nearest
from backbones import checkpoint as files
from backbones.family import Backbone
from backbones.layouts import NATIVE_NAME
from backbones.sets import answering, sets_in, sets_of, with_sets
from harness.cost.build import unavailable
from harness.datasets.several import name_of
from harness.evaluation.predictions import FILE, Predictions, PredictionsError
from harness.evaluation.protocol import Protocol, TestOptions, class_names, protocol
from harness.spec.reader import UsageError, text_of
from harness.spec.recipe import Recipe, Source, published
from harness.spec.recipe import load as load_recipe
from harness.spec.recipe import names as recipe_names
from harness.training.job import Job
from records import provenance

JOB, BACKBONE = "job.json", "backbone.safetensors"  # as `harness.training.folder` writes them
NO_CLASSIFIER = "{} has no classifier: a backbone alone, whose answers would be random; train it first"
RELEASED: Source = "code"  # whose tests published weights are for, where a paper says otherwise
ABOVE = 3  # folders above a checkpoint that may hold the job: RUN/checkpoints/step-0000100/model.safetensors


@dataclass(frozen=True)
class Trained:
    """A model with its weights, the names of its classes and the way its clips are made."""

    model: Backbone
    name: str
    checkpoint: Path
    layout: str
    classes: tuple[str, ...]
    named: bool  # whether `classes` are names; else they are numbers
    protocol: Protocol  # a control is tested as it was trained
    data: str | None = None  # what it was trained on, where that is known, as are `root` and `data_options`
    root: str | None = None
    data_options: dict[str, Any] = field(default_factory=dict)
    set: str | None = None  # of a model of several data sets, the one that it answers for
    recipe: str | None = None  # of published weights the one that says how they are tested, where there is one

    @property
    def title(self) -> str:
        """One line on what it is."""
        file = "" if self.name == self.checkpoint.name else f" from {self.checkpoint.name}"
        suffix = f" of {self.set}" if self.set else ""
        tested = f"; tested by the recipe {self.recipe}" if self.recipe else ""
        return f"{self.name}{file} ({self.layout} layout): {len(self.classes)} classes{suffix}{tested}"


class SeveralSets(UsageError):
    """A model that answers for several data sets, none of which was chosen."""

    def __init__(self, path: Path, sets: Mapping[str, int]):
        super().__init__(f"{path} answers for several data sets; give set=NAME: {', '.join(sets)}")
        self.sets = dict(sets)  # how many classes each has

    def of(self, data: str, classes: int) -> str | None:
        """The set that a data set is: the one of its name, else the only one of as many classes. Published weights call
        their sets otherwise than we do.
        """
        alike = [name for name, count in self.sets.items() if count == classes]
        return data if data in self.sets else alike[0] if len(alike) == 1 else None


def each(options: TestOptions, views: tuple[int, int] | None = None) -> list[Trained]:
    """The model that the options name, of several data sets once for each, if none is chosen. Raises: UsageError."""
    try:
        return [load_trained(options, views)]
    except SeveralSets as several:
        return [load_trained(replace(options, set=name), views) for name in several.sets]


def load_trained(options: TestOptions, views: tuple[int, int] | None = None) -> Trained:
    """The model that the options name, on its device, in eval mode.

    Args:
        views: (clips, crops); None for those of the recipe or job, 4 x 1 where there is none.

    Raises: UsageError, which names the option and the way out.
    """
    path = Path(options.checkpoint).expanduser()
    if reason := unavailable(options.device, options.dtype, options.kernel):
        raise UsageError(reason)
    if warning := provenance.crowded(threads=options.threads, workers=getattr(options, "workers", None)):
        print(warning, file=sys.stderr)
    if options.threads:
        torch.set_num_threads(options.threads)
    job = job_beside(path)
    recipe = load_recipe(options.recipe, options.recipe_source or "paper") if options.recipe else job and job.recipe
    try:
        tensors, metadata = files.read(path)
        name, of_authors = options.model or (recipe.model if recipe else None), None
        if recipe is None and "config" not in metadata:
            if name is None and not options.model_changes:
                name, of_authors = recognised(options, path, tensors)
            elif name in backbones.names():
                of_authors = tested_by(options, name, tensors)
            recipe = of_authors
        model, name, layout = _model(options, path, tensors, metadata, name, recipe, job)
    except (backbones.CheckpointError, OSError) as error:
        raise UsageError(str(error)) from None
    model, set_name = _chosen_set(options, path, model)
    if recipe and set_name:
        data = getattr(options, "data", None)
        recipe = recipe.of_set(name_of(data) if of_authors and data else set_name)
    clip = model.clip
    if clip.h != clip.w and options.size is None:
        raise UsageError(f"the model takes clips of {clip.h} x {clip.w} pixels, crops are square; give size=...")
    names = class_names(Path(options.classes).expanduser(), model.num_classes) if options.classes else None
    if names is None:
        names = names_beside(job.folder, set_name, model.num_classes) if job else names_in_config(path, model)
    try:
        order = job.order if job else "ordered"
        settings = protocol(options, recipe, frames=clip.t, size=clip.h, views=views, order=order)
    except ValueError as error:  # the settings check themselves
        raise UsageError(str(error)) from None
    return Trained(
        model=model.to(options.device).eval(),
        name=name,
        checkpoint=path,
        layout=layout,
        classes=tuple(names or map(str, range(model.num_classes))),
        named=names is not None,
        protocol=settings,
        set=set_name,
        recipe=of_authors.name if of_authors else None,
        **(_trained_on(job, set_name) if job else {}),
    )


def _chosen_set(options: TestOptions, path: Path, model: Backbone) -> tuple[Backbone, str | None]:
    """The model as one of the chosen data set, where it has several. Raises: UsageError."""
    sets = sets_of(model)
    if not sets:
        if options.set:
            raise UsageError(f"set={options.set}: {path} has one classifier, for one data set; leave set out")
        return model, None
    if options.set is None and len(sets) > 1:
        raise SeveralSets(path, sets)
    name = options.set or next(iter(sets))
    if name not in sets:
        raise UsageError(f"{path}: unknown set {name!r}; {nearest(name, sets)}")
    return answering(model, name), name


def _trained_on(job: Job, set_name: str | None) -> dict[str, Any]:
    """Data, root and options of a job, of several data sets those of one."""
    if isinstance(job.data, str) or set_name is None:
        return {key: getattr(job, key) for key in ("data", "root", "data_options")}
    source = next((source for source in job.chosen_data if source.name == set_name), None)
    return {"data": source.data, "root": source.root, "data_options": source.options} if source else {}


def job_beside(checkpoint: Path) -> Job | None:
    """The job of the training run that wrote a checkpoint, where it was one."""
    for folder in list(checkpoint.absolute().parents)[:ABOVE]:
        path = folder / JOB
        if path.is_file():
            try:
                return Job.from_dict(json.loads(path.read_text(encoding="utf-8"))["job"], folder)
            except (OSError, ValueError, KeyError, TypeError) as error:
                logging.getLogger(__name__).warning("%s is not used: it cannot be read (%s)", path, error)
                return None
    return None


def names_beside(folder: Path, set_name: str | None, count: int) -> list[str] | None:
    """The class names that the predictions of a finished training run hold."""
    try:
        file = Path(FILE)
        names = Predictions.load(folder / (f"{file.stem}-{set_name}{file.suffix}" if set_name else FILE)).classes
    except (FileNotFoundError, PredictionsError):
        return None
    return names if len(names) == count else None


def names_in_config(checkpoint: Path, model: Backbone) -> list[str] | None:
    """The class names in the `config.json` that transformers keeps beside weights; None where it has numbers alone."""
    try:
        listed = json.loads((checkpoint.parent / "config.json").read_text(encoding="utf-8"))["id2label"]
        names = [str(listed[str(number)]) for number in range(model.num_classes)]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None if len(listed) != len(names) or names[0] == "LABEL_0" else names


def recognised(options: TestOptions, path: Path, tensors: Mapping[str, Tensor]) -> tuple[str, Recipe | None]:
    """The model whose tensors a published file has, and the recipe by which it is tested, where one is known.

    Of several models with the same tensors the one that has a recipe for the data set. Raises: UsageError.
    """
    clip = {"clip.t": options.frames, "clip.h": options.size, "clip.w": options.size}
    sizes = {key: value for key, value in clip.items() if value}
    misfits: dict[str, int] = {}
    fitting: dict[str, Recipe | None] = {}
    configs: list[backbones.Config] = []  # of those that fit: models that differ in the clip alone may be one by now
    for name, own in candidates(options.recipe_source or RELEASED):
        changes = (own.model_changes if own else {}) | sizes
        try:
            config = backbones.config(name).changed(changes)
            count = files.misfits(config, tensors)
        except (ValueError, KeyError):  # the model cannot have this size
            continue
        if count is not None:
            misfits[name] = min(count, misfits.get(name, count))
        if count == 0 and name not in fitting and config not in configs:
            fitting[name] = own or tested_by(options, name, tensors)
            configs.append(config)
    known = {name: recipe for name, recipe in fitting.items() if recipe} or fitting
    if len(known) == 1:
        return next(iter(known.items()))
    if known:
        raise UsageError(f"{path} has the tensors of {' and of '.join(known)}; give model=NAME")
    closest = min(misfits, key=misfits.__getitem__, default=None)
    nearest_model = f" (nearest: {closest}, but for {misfits[closest]} tensors)" if closest else ""
    raise UsageError(
        f"{path} does not say of which model it is, and no published one has just its tensors{nearest_model}; give "
        f"model={closest or 'dualformer_tiny'}, or another name, with frames=..., size=... or model.FIELD=... where it "
        "was trained with others, or recipe=NAME"
    )


def candidates(recipe_source: Source) -> Iterator[tuple[str, Recipe | None]]:
    """Names of models of which weights are published, some with the recipe that changes the model."""
    released = [name for name in backbones.names() if not backbones.origin(name).weights.startswith("none")]
    yield from ((name, None) for name in released)
    for recipe in (load_recipe(name, recipe_source) for name in recipe_names()):
        if recipe.model in released and recipe.model_changes:
            yield recipe.model, recipe


def tested_by(options: TestOptions, name: str, tensors: Mapping[str, Tensor]) -> Recipe | None:
    """The recipe of a model's published weights, on the data set that the options name or the classes tell."""
    try:
        classes = files.classes_in(files.translate(tensors, backbones.config(name).family).tensors)
    except ValueError:  # names of no layout, which whoever loads them says
        return None
    return published(name, getattr(options, "data", None), classes, options.recipe_source or RELEASED)


def _model(
    options: TestOptions,
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    name: str | None,
    recipe: Recipe | None,
    job: Job | None,
) -> tuple[Backbone, str, str]:
    """The model, its name, and the layout of the file. Raises: UsageError, CheckpointError, OSError."""
    if "config" in metadata:
        backbone = options.backbone or (job and (job.checkpoint or job.folder / BACKBONE))
        model = backbones.from_checkpoint(path, kernel=options.kernel, backbone=backbone)
        _check_same_model(options, path, model)
        if not model.num_classes:
            raise UsageError(NO_CLASSIFIER.format(path))
        return model, options.model or (job and job.model) or path.name, NATIVE_NAME
    if name is None:
        raise UsageError(
            f"{path} does not say of which model it is; give model=NAME, such as model=dualformer_tiny, or recipe=NAME"
        )
    _check_known(name)
    try:
        translated = files.translate(tensors, backbones.config(name).family).tensors
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    classes, several = files.classes_in(translated), sets_in(translated)
    if not classes and not several:
        raise UsageError(NO_CLASSIFIER.format(path))
    changes: dict[str, Any] = dict(recipe.model_changes) if recipe and recipe.model == name else {}
    for key, value in (("clip.t", options.frames), ("clip.h", options.size), ("clip.w", options.size)):
        changes |= {key: value} if value else {}
    try:
        model = backbones.create(name, classes or 1, kernel=options.kernel, changes=changes | options.model_changes)
        if several:
            with_sets(model, **several)
    except (ValueError, KeyError) as error:
        raise UsageError(f"model={name}: {text_of(error)}") from None
    try:
        report = backbones.load_checkpoint(model, path)
    except files.CheckpointError as error:
        raise UsageError(
            f"{error.for_commands()}\n  is it {name}? a model trained with other sizes needs frames=..., size=... or "
            "model.FIELD=..."
        ) from None
    return model, name, report.layout


def _check_known(name: str) -> None:
    if name not in backbones.names():
        raise UsageError(f"unknown model {name!r}; {nearest(name, backbones.names())}")


def _check_same_model(options: TestOptions, path: Path, model: Backbone) -> None:
    """A checkpoint of ours says what it is; what the command line says beside must not contradict it."""
    if options.model_changes:
        raise UsageError(f"{path} holds its own config; leave model.{next(iter(options.model_changes))} out")
    if options.model is None:
        return
    _check_known(options.model)
    named, stored = backbones.config(options.model).to_dict(), model.config.to_dict()
    free = ("clip", "drop_path", "dropout", "activation_checkpointing")  # these are of a training, not of the model
    differs = [key for key in named if key not in free and named[key] != stored[key]]
    if differs:
        key = differs[0]
        raise UsageError(
            f"{path} is not of {options.model}: {key} is {stored[key]} in the file, {named[key]} in {options.model}; "
            "leave model out, the file says what it is"
        )
