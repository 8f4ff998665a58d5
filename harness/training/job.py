"""One training run as a value: what is trained, on what, how, and where its files go; and what comes out of it.

A job is stored beside its checkpoints. A run that finds the same job there goes on with it; `same_run` says which
fields make it the same: those that the weights depend on, not the ones that say how fast or where it runs.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import backbones
from harness.datasets import Split
from harness.datasets.several import Chosen, chosen
from harness.spec.names import Device, Dtype, Kernel
from harness.spec.options import option
from harness.spec.reader import Count, Flag, FromZero, Positive, Whole
from harness.spec.recipe import ManySets, Recipe
from harness.spec.sampling import Order
from records.learning import trouble

Strategy = Literal["auto", "single", "ddp", "fsdp"]
# What may change between two starts of one run: its weights do not depend on these, beyond the rounding of sums.
# (Data and initial weights are told apart by their content, see `harness.training.folder`.)
FREE = (
    "folder", "root", "workers", "threads", "preload", "save_every_seconds", "log_every", "tensorboard", "controls",
    "strategy", "activation_checkpointing", "evaluate_every", "checkpoint", "minutes",
)  # fmt: skip
WORDS = (  # of a recipe
    "source", "recipe_source", "model", "model_changes", "data", "initial", "notes", "differs", "assumed",
)  # fmt: skip
YOUNGER = {  # choices that the first runs did not have: their digests are without them
    "recipe.augmentation.mirror": False, "recipe.augmentation.antialias": False, "recipe.optimisation.muon": 0.0,
    "recipe.many_sets": None, "trainable": "all", "until_flat": False, "sets": {},
}  # fmt: skip


class TrainingError(RuntimeError):
    """A run that cannot start, go on or be stored; the message says what to do."""


class Stopped(TrainingError):
    """A run that was asked to stop, and has written a checkpoint to go on from."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a command line may say of a run and the run then keeps."""

    model: str = option(meaning="name of a model; python -m backbones lists them")
    data: str | list[str] = option(
        meaning="name of a data set (python -m harness.datasets lists them), or a folder of videos; [a,b]: both at once"
    )
    root: str | list[str] | None = option(None, "where the files of a named data set are; of several one each")
    seed: Whole = option(0, "of weights, order of clips, augmentation and dropout")
    device: Device = option("cpu", "under torchrun, cuda is one device for each process")
    dtype: Dtype = option("float32", "other than float32: number format of autocast")
    kernel: Kernel = option("auto", "what computes attention")
    compile: Flag = option(False, "compile the model by torch.compile")
    threads: Count | None = option(None, "threads of PyTorch on the CPU; none: one per physical core")
    workers: Whole = option(
        0, "processes that load clips; 0: this one, between steps; it waits without a limit for a disk that is silent"
    )
    micro_batch: Count | None = option(None, "clips of one forward pass; the rest of a batch is accumulated")
    preload: Flag = option(False, "decode every clip once, into memory; for small data sets")
    order: Order = option("ordered", "a control: train and test on shuffled or single frames")
    controls: Flag = option(False, "test the final weights on shuffled and on single frames, too")
    checkpoint: str | None = option(None, "initial weights")
    trainable: str = option(
        "all", "the part that learns, the rest is frozen: all, classifier, or one of the model's own"
    )
    inflate: Flag = option(False, "the initial weights are of an image model")
    activation_checkpointing: Flag = option(False, "recompute activations in the backward pass: less memory")
    evaluate_every: Positive | None = option(None, "epochs between evaluations; none: at the end only")
    until_flat: Flag = option(
        False, "go on, each time for as many epochs as before and with the schedule anew, until the curve is flat"
    )
    minutes: Positive | None = option(None, "with until_flat: nothing is begun that would end later; none: no limit")
    max_steps: Count | None = option(None, "end after so many steps of the recipe's schedule")
    save_every_seconds: FromZero = option(300.0, "longest time between checkpoints")
    log_every: Count | None = option(None, "steps per line of log.jsonl; none: about 20 lines per epoch")
    tensorboard: Flag = option(False, "also write logs for TensorBoard, in the folder of the run")
    test_split: Split = option("val", "what is tested on")


@dataclass(frozen=True, kw_only=True)
class Job(Settings):
    """A training run, of which `Settings` explain most. Weights and optimizer stay in float32, whatever `dtype` is."""

    config: dict[str, Any]  # what is built of `model`, the name that people know it by (the config's `to_dict`)
    recipe: Recipe  # how it is trained and tested
    classes: int  # as many as the data set has; of several, all together
    folder: Path  # receives job.json, log.jsonl, checkpoints/, predictions.npz and result.json
    strategy: str = "single"
    data_options: dict[str, Any] = field(default_factory=dict)  # further options of the data set
    sets: dict[str, int] = field(default_factory=dict)  # of several data sets: their names and numbers of classes

    @property
    def many_sets(self) -> ManySets:
        """How several data sets are trained on."""
        return self.recipe.many_sets or ManySets()

    @property
    def chosen_data(self) -> tuple[Chosen, ...]:
        """Raises: DataError."""
        return chosen(self.data, self.root, self.data_options)

    def to_dict(self) -> dict[str, Any]:
        """JSON values only. `folder` is left out: a run folder may be moved."""
        raw = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("folder", "recipe")}
        return {**json.loads(json.dumps(raw)), "recipe": json.loads(json.dumps(self.recipe.to_dict()))}

    @classmethod
    def from_dict(cls, raw: dict[str, Any], folder: str | Path) -> Job:
        return cls(**{**raw, "recipe": Recipe.from_dict(raw["recipe"]), "folder": Path(folder)})

    def identity(self) -> dict[str, Any]:
        """What the weights depend on, as JSON values, nested values at dotted paths."""
        raw = {key: value for key, value in self.to_dict().items() if key not in FREE}
        raw["recipe"] = {key: value for key, value in raw["recipe"].items() if key not in WORDS}
        raw["recipe"]["many_sets"] = asdict(self.many_sets) if self.sets else None
        data = Path(self.data).name if isinstance(self.data, str) else [Path(word).name for word in self.data]
        flat = _flat(raw | {"device": self.device.partition(":")[0], "data": data})
        flat.pop("recipe.token_labels.checkpoint", None)
        return {key: value for key, value in flat.items() if YOUNGER.get(key, ...) != value}

    @property
    def digest(self) -> str:
        """Names the run: equal jobs have equal digests, wherever their folders are."""
        return digest(self.identity())


@dataclass(frozen=True)
class Result:
    """What a finished run leaves in result.json.

    `scores` is `Scores.to_dict()` of the final evaluation; of several data sets, each video is answered among the
    classes of its own. `controls` the same of the same weights with the frames "shuffled" and with a "single" frame
    repeated. `training` holds the "curve" of the training (percentages of its clips answered right before they were
    learnt from, in ten parts of as many steps), how many "clips" the last part had, and "chance", what always answering
    the commonest class gives. `seconds`: "train", "evaluate", "total" (over all starts of the run).
    """

    scores: dict[str, Any]
    controls: dict[str, dict[str, Any]]
    steps: int
    epochs: float
    loss: float  # the mean of the last logged steps
    parameters: int
    seconds: dict[str, float]
    clips_per_second: float
    data_wait: float  # share of the training time in which the next batch was waited for
    replaced: int  # training clips that could not be decoded and were replaced by others
    coverage: float  # share of the test videos that were decoded
    job: str  # digest
    recipe: str  # digest
    data: dict[str, str]  # digests of "train" and "test"
    checkpoint: str  # the final weights, relative to the run's folder
    provenance: dict[str, Any]
    history: list[dict[str, Any]] = field(default_factory=list)  # evaluations during training
    trained: int | None = None  # parameters that learn, where some are frozen
    sets: dict[str, dict[str, Any]] = field(default_factory=dict)  # of several data sets the scores of each
    training: dict[str, Any] = field(default_factory=dict)  # empty in results of before it was kept

    @property
    def trouble(self) -> str | None:
        """What is the matter with the training, in words; None where it learnt, or nothing is known."""
        kept = self.training
        return trouble(kept["curve"], kept["clips"], kept["chance"]) if kept else None

    @property
    def top1(self) -> float:
        """Percent."""
        return self.scores["top1"]["value"]


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def model_config(model: str, recipe: Recipe, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """The config of a named model, for the clips of a recipe and with its stochastic depth and dropout.

    `changes`, dotted paths and their values, have the last word.

    Raises: UnknownName, ValueError: there is no such model, or a change is impossible.
    """
    size = recipe.augmentation.size
    values = {"clip": [recipe.sampling.frames, size, size], "drop_path": recipe.drop_path, "dropout": recipe.dropout}
    values = {name: value for name, value in values.items() if value is not None}
    return backbones.config(model).changed(values | (changes or {})).to_dict()


def _flat(raw: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in raw.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
