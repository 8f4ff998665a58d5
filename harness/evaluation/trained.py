"""A trained model as the command lines take it: a checkpoint, what it was trained for, and how it is to be tested."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import backbones
from attention_zoo.registry import nearest
from backbones import checkpoint as files
from backbones.family import Backbone
from backbones.layouts import NATIVE_NAME
from backbones.sets import answering, sets_in, sets_of, with_sets
from harness.datasets.several import chosen
from harness.evaluation.predictions import FILE, Predictions, PredictionsError
from harness.evaluation.protocol import Protocol, TestOptions, protocol
from harness.spec.reader import UsageError
from harness.spec.recipe import Recipe
from harness.spec.recipe import load as load_recipe

JOB, BACKBONE = "job.json", "backbone.safetensors"
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

    @property
    def title(self) -> str:
        """One line on what it is."""
        file = "" if self.name == self.checkpoint.name else f" from {self.checkpoint.name}"
        of = f" of {self.set}" if self.set else ""
        return f"{self.name}{file} ({self.layout} layout): {len(self.classes)} classes{of}"


class SeveralSets(UsageError):
    """A model that answers for several data sets, none of which was chosen."""

    def __init__(self, path: Path, sets: Collection[str]):
        super().__init__(f"{path} answers for several data sets; give set=NAME: {', '.join(sets)}")
        self.sets = tuple(sets)


def each(given: TestOptions, views: tuple[int, int] | None = None) -> list[Trained]:
    """The model that the options name, of several data sets once for each, if none is chosen. Raises: UsageError."""
    try:
        return [load_trained(given, views)]
    except SeveralSets as several:
        return [load_trained(replace(given, set=name), views) for name in several.sets]


def load_trained(given: TestOptions, views: tuple[int, int] | None = None) -> Trained:
    """The model that the options name, on its device, in eval mode.

    Args:
        views: (clips, crops); None for those of the recipe or job, 4 x 1 where there is none.

    Raises: UsageError, which names the option and the way out.
    """
    path = Path(given.checkpoint).expanduser()
    check_device(given.device)
    if given.threads:
        torch.set_num_threads(given.threads)
    job = job_beside(path)
    try:
        recipe = load_recipe(given.recipe, given.recipe_source) if given.recipe else job["recipe"] if job else None
    except UsageError as error:
        raise UsageError(str(error)) from None
    try:
        model, name, layout = _model(given, path, recipe, job)
    except (backbones.CheckpointError, OSError) as error:
        raise UsageError(str(error)) from None
    model, of_set = _of_set(given, path, model)
    recipe = recipe.of_set(of_set) if recipe and of_set else recipe
    clip = model.clip
    if clip.h != clip.w and given.size is None:
        raise UsageError(f"the model takes clips of {clip.h} x {clip.w} pixels, crops are square; give size=...")
    names = class_names(Path(given.classes).expanduser(), model.num_classes) if given.classes else None
    if names is None and job:
        names = _names_beside(job["folder"], of_set, model.num_classes)
    try:
        order = job["order"] if job else "ordered"
        shown = protocol(given, recipe, frames=clip.t, size=clip.h, views=views, order=order)
    except ValueError as error:  # the settings check themselves
        raise UsageError(str(error)) from None
    return Trained(
        model=model.to(given.device).eval(),
        name=name,
        checkpoint=path,
        layout=layout,
        classes=tuple(names or map(str, range(model.num_classes))),
        named=names is not None,
        protocol=shown,
        set=of_set,
        **(_trained_on(job, of_set) if job else {}),
    )


def _of_set(given: TestOptions, path: Path, model: Backbone) -> tuple[Backbone, str | None]:
    """The model as one of the chosen data set, where it has several. Raises: UsageError."""
    sets = sets_of(model)
    if not sets:
        if given.set:
            raise UsageError(f"set={given.set}: {path} has one classifier, for one data set; leave set out")
        return model, None
    if given.set is None and len(sets) > 1:
        raise SeveralSets(path, sets)
    name = given.set or next(iter(sets))
    if name not in sets:
        raise UsageError(f"{path}: unknown set {name!r}; {nearest(name, sets)}")
    return answering(model, name), name


def _trained_on(job: dict[str, Any], of_set: str | None) -> dict[str, Any]:
    """Data, root and options of a job, of several data sets those of one."""
    if isinstance(job["data"], str) or of_set is None:
        return {key: job[key] for key in ("data", "root", "data_options")}
    known = {one.name: one for one in chosen(job["data"], job["root"], job["data_options"])}
    one = known.get(of_set)
    return {"data": one.data, "root": one.root, "data_options": one.options} if one else {}


def check_device(device: str) -> None:
    """Raises: UsageError, for a device that is none or is not here."""
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not (kind == "cuda" and number.isdecimal())):
        raise UsageError(f"unknown device {device!r}; {nearest(device, ('cpu', 'cuda', 'cuda:N'))}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"device={device}: torch {torch.__version__} sees no CUDA device; use device=cpu or a CUDA build of torch"
        )
    if number and int(number) >= torch.cuda.device_count():
        raise UsageError(f"device={device}: there are {torch.cuda.device_count()} CUDA devices, numbered from 0")


def class_names(path: Path, count: int | None = None) -> list[str]:
    """Names of classes from a text file with one a line, or a JSON file: a list, or a mapping of names to numbers.

    Raises: UsageError, when there is no such file, or not `count` names in it.
    """
    if not path.is_file():
        what = "a folder, not a file" if path.is_dir() else "no such file"
        raise UsageError(f"classes={path}: {what}; give a text file with the name of one class a line, or leave it out")
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = _names_of_json(json.loads(text)) if path.suffix == ".json" else text.splitlines()
    except (UnicodeDecodeError, json.JSONDecodeError, ValueError, TypeError) as error:
        raise UsageError(f"classes={path}: not a list of names ({error}); give one name a line") from None
    names = [name.strip() for name in names if name.strip()]
    if count is not None and len(names) != count:
        raise UsageError(
            f"classes={path} has {len(names)} names, the checkpoint answers for {count} classes; "
            "give the list that it was trained with, or leave classes out to see numbers"
        )
    return names


def _names_of_json(content: Any) -> list[str]:
    if isinstance(content, dict):
        numbers = {int(number): str(name) for name, number in content.items()}
        if sorted(numbers) != list(range(len(content))):
            raise ValueError("its numbers are not 0, 1, 2, ...")
        return [numbers[number] for number in range(len(content))]
    if not isinstance(content, list):
        raise ValueError("neither a list nor a mapping of names to numbers")
    return [str(name) for name in content]


def job_beside(checkpoint: Path) -> dict[str, Any] | None:
    """What the training run that wrote a checkpoint left beside it, where it was one: recipe, data, order, folder."""
    for folder in list(checkpoint.absolute().parents)[:ABOVE]:
        path = folder / JOB
        if path.is_file():
            try:
                raw = json.loads(path.read_text(encoding="utf-8"))
                raw = raw.get("job", raw)
                return {
                    "recipe": Recipe.from_dict(raw["recipe"]),
                    "model": raw.get("model"),
                    "data": raw.get("data"),
                    "root": raw.get("root"),
                    "data_options": raw.get("data_options") or {},
                    "order": raw.get("order", "ordered"),
                    "backbone": raw.get("checkpoint") or folder / BACKBONE,
                    "folder": folder,
                }
            except (OSError, ValueError, KeyError, AttributeError) as error:
                logging.getLogger(__name__).warning("%s is not used: it cannot be read (%s)", path, error)
                return None
    return None


def _names_beside(folder: Path, of_set: str | None, count: int) -> list[str] | None:
    """The class names that the predictions of a finished training run hold."""
    try:
        file = Path(FILE)
        names = Predictions.load(folder / (f"{file.stem}-{of_set}{file.suffix}" if of_set else FILE)).classes
    except (FileNotFoundError, PredictionsError):
        return None
    return names if len(names) == count else None


def _model(
    given: TestOptions, path: Path, recipe: Recipe | None, job: dict[str, Any] | None
) -> tuple[Backbone, str, str]:
    """The model, its name, and the layout of the file. Raises: UsageError, CheckpointError, OSError."""
    tensors, metadata = files.read(path)
    if "config" in metadata:
        backbone = given.backbone or (job or {}).get("backbone")
        model = backbones.from_checkpoint(path, kernel=given.kernel, backbone=backbone)
        _check_same_model(given, path, model)
        return _answering(model, path), given.model or (job or {}).get("model") or path.name, NATIVE_NAME
    name = given.model or (recipe.model if recipe else None)
    if name is None:
        raise UsageError(
            f"{path} does not say of which model it is; give model=NAME, such as model=dualformer_tiny, or recipe=NAME"
        )
    if name not in backbones.names():
        raise UsageError(f"unknown model {name!r}; {nearest(name, backbones.names())}")
    try:
        known = files.translate(tensors, backbones.config(name).family).tensors
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    weight, several = known.get("classifier.weight"), sets_in(known)
    if weight is None and not several:
        raise UsageError(f"{path} has no classifier: a backbone alone, whose answers would be random; train it first")
    changes: dict[str, Any] = dict(recipe.model_changes) if recipe and recipe.model == name else {}
    for key, value in (("clip.t", given.frames), ("clip.h", given.size), ("clip.w", given.size)):
        changes |= {key: value} if value else {}
    try:
        count = 1 if weight is None else weight.shape[0]
        model = backbones.create(name, count, kernel=given.kernel, changes=changes | given.model_changes)
        if several:
            with_sets(model, **several)
    except (ValueError, KeyError) as error:
        raise UsageError(f"model={name}: {error.args[0] if error.args else error}") from None
    try:
        report = backbones.load_checkpoint(model, path)
    except files.CheckpointError as error:
        found = "\n".join(line for line in str(error).splitlines() if "strict=False" not in line)  # a hint for programs
        raise UsageError(
            f"{found}\n  is it {name}? a model trained with other sizes needs frames=..., size=... or model.FIELD=..."
        ) from None
    return model, name, report.layout


def _answering(model: Backbone, path: Path) -> Backbone:
    if not model.num_classes:
        raise UsageError(f"{path} has no classifier: a backbone alone, whose answers would be random; train it first")
    return model


def _check_same_model(given: TestOptions, path: Path, model: Backbone) -> None:
    """A checkpoint of ours says what it is; what the command line says beside must not contradict it."""
    if given.model_changes:
        raise UsageError(f"{path} holds its own config; leave model.{next(iter(given.model_changes))} out")
    if given.model is None:
        return
    if given.model not in backbones.names():
        raise UsageError(f"unknown model {given.model!r}; {nearest(given.model, backbones.names())}")
    here, there = backbones.config(given.model).to_dict(), model.config.to_dict()
    free = ("clip", "drop_path", "dropout", "activation_checkpointing")  # these are of a training, not of the model
    differs = [key for key in here if key not in free and here[key] != there[key]]
    if differs:
        key = differs[0]
        raise UsageError(
            f"{path} is not of {given.model}: {key} is {there[key]} in the file, {here[key]} in {given.model}; "
            "leave model out, the file says what it is"
        )
