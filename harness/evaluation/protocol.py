"""How a trained model is tested: how clips are made of videos, and what computes the answers. Imports no torch.

What a command line leaves open is settled by the recipe that it names; else by the job that a training run left beside
its checkpoints; else by the model's own clip and the defaults.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import backbones
from backbones.files import CheckpointError, check_file
from harness.clips.decoding import VideoError
from harness.clips.decoding import check_file as check_video
from harness.datasets import DataError, DataSet
from harness.datasets import load as load_data
from harness.datasets.files import class_names as names_in
from harness.spec.clip import Augmentation
from harness.spec.names import Device, Dtype, Kernel
from harness.spec.names import Recipe as RecipeName
from harness.spec.options import option
from harness.spec.reader import Count, Flag, Meaning, Number, UsageError, text_of, typed
from harness.spec.recipe import Recipe, Source, Testing
from harness.spec.recipe import load as load_recipe
from harness.spec.sampling import Kind, Sampling

Three = Annotated[tuple[Number, Number, Number], Meaning("three numbers, as in [104,117,128]")]
OUT = Path("outputs/evaluation")
WITHOUT = "a model without trained weights answers at random"


@dataclass(frozen=True, kw_only=True)
class TestOptions:
    """What all command lines that test a checkpoint have in common."""

    __test__ = False  # not a test, whatever pytest thinks of its name

    checkpoint: str = option(meaning=f"file of trained weights, ours or a published one; {WITHOUT}")
    backbone: str | None = option(None, "weights that the training of a part alone started from; by default its run's")
    model: str | None = option(None, "name of the model; may be left out for checkpoints written here")
    model_changes: dict[str, Any] = option({}, "a field of the model of a published checkpoint, as model.position=none")
    set: str | None = option(None, "of a model that was trained on several data sets the one to answer for; none: each")
    recipe: RecipeName | None = option(
        None, "how it was trained, by name: frames, stride, size, views, mean and deviation"
    )
    recipe_source: Source | None = option(
        None,
        "whose values, where paper and released code differ; by default the paper's, of published weights the code's",
    )
    frames: Count | None = option(None, "frames of a clip")
    stride: Count | None = option(None, "every how many frames")
    sampling: Kind | None = option(None, "how frames are chosen")
    size: Count | None = option(None, "side of a crop in pixels")
    resize: Count | None = option(None, "short side of the frames that crops are cut from")
    mean: Three | None = option(None, "of red, green and blue (0-255), as in mean=[123.675,116.28,103.53]")
    std: Three | None = option(None, "the same for the deviation")
    classes: str | None = option(None, "file with the names of the classes, one a line in the order of the labels")
    device: Device = option("cpu", "where to run")
    dtype: Dtype = option("float32", "number format of autocast")
    kernel: Kernel = option("auto", "what computes the attention")
    threads: Count | None = option(None, "threads of the CPU")
    json: Flag = option(False, "end with one line of JSON on the standard output, for programs")
    batch_size: Count = option(4, "views in one forward pass")


@dataclass(frozen=True)
class Protocol:
    """How videos are shown to a model, and what computes its answers. Probabilities are float32."""

    sampling: Sampling
    testing: Testing  # how many clips and crops, and their size
    augmentation: Augmentation  # gives mean and deviation, and the size where `testing` does not
    order: str = "ordered"  # or a control: "shuffled", "single";
    seed: int = 0  # this then draws
    device: str = "cpu"  # a name of torch's
    dtype: str = "float32"  # or the number format of autocast
    batch_size: int = 4  # views in one forward pass
    workers: int = 0  # processes that load clips; 0 for this one

    @property
    def size(self) -> int:
        """Side of a crop in pixels."""
        return self.testing.size or self.augmentation.size

    def facts(self) -> dict[str, Any]:
        """All that the predictions depend on, beyond rounding."""
        return {
            "sampling": asdict(self.sampling),
            "testing": asdict(self.testing) | {"size": self.size},
            "mean": list(self.augmentation.mean),
            "std": list(self.augmentation.std),
            **({"antialias": True} if self.augmentation.antialias else {}),
            "order": self.order,
            "seed": self.seed if self.order != "ordered" else None,
            "dtype": self.dtype,
        }

    def __str__(self) -> str:
        """One line on how clips are made."""
        s, t = self.sampling, self.testing
        frames = f"{s.frames} frame{'s' * (s.frames > 1)}"
        step = f", every {_ordinal(s.stride)}" if s.kind == "dense" and min(s.stride, s.frames) > 1 else ""
        kind = "" if s.kind == "dense" else f" ({s.kind})"
        views = f"{t.clips} clip{'s' * (t.clips > 1)} x {t.crops} crop{'s' * (t.crops > 1)}"
        return f"{views} of {frames}{step}{kind}, {self.size} x {self.size} pixels of short side {t.resize}"


def class_names(path: Path, count: int | None = None) -> list[str]:
    """Names of classes, as data sets read them (`harness.datasets.files`).

    Raises: UsageError, when there is no such file, or not `count` names in it.
    """
    if not path.is_file():
        why = "a folder, not a file" if path.is_dir() else "no such file"
        raise UsageError(f"classes={path}: {why}; give a text file with the name of one class a line, or leave it out")
    try:
        names = list(names_in(path))
    except DataError as error:
        raise UsageError(f"classes={error}") from None
    if count is not None and len(names) != count:
        raise UsageError(
            f"classes={path} has {len(names)} names, the checkpoint answers for {count} classes; "
            "give the list that it was trained with, or leave classes out to see numbers"
        )
    return names


def checked(options: TestOptions, views: str | None) -> tuple[Path, tuple[int, int] | None]:
    """The file of weights and the (clips, crops) that options name, all else of them looked at as far as can be before
    torch is loaded. Raises: UsageError.
    """
    path, counts = Path(options.checkpoint).expanduser(), parsed_views(views)
    recipe = load_recipe(options.recipe, options.recipe_source or "paper") if options.recipe else None
    try:
        check_file(path)
        if options.model is not None:
            backbones.config(options.model).changed(options.model_changes)
    except (CheckpointError, OSError, KeyError, ValueError) as error:
        raise UsageError(text_of(error)) from None
    if options.classes:
        class_names(Path(options.classes).expanduser())
    if recipe or options.size:  # else the size is the model's, which its file says
        protocol(options, recipe, frames=1, size=options.size or 0, views=counts, order="ordered")
    return path, counts


def parsed_views(text: str | None) -> tuple[int, int] | None:
    """(clips, crops) of "4x1". Raises: UsageError."""
    if text is None:
        return None
    numbers = text.lower().split("x")
    if len(numbers) != 2 or not all(number.isdecimal() and int(number) > 0 for number in numbers):
        raise UsageError(f"views={text} is not CLIPSxCROPS; write views=4x1 for 4 clips of one crop, 4x3 for three")
    return int(numbers[0]), int(numbers[1])


def protocol(
    options: TestOptions, recipe: Recipe | None, *, frames: int, size: int, views: tuple[int, int] | None, order: str
) -> Protocol:
    """What the options, else the recipe, else the model's own clip say. Raises: UsageError."""
    sampling = recipe.sampling if recipe else Sampling(frames=frames)
    testing = recipe.testing if recipe else Testing(resize=size)
    augmentation = recipe.augmentation if recipe else Augmentation(size=size)
    sampling = replace(
        sampling,
        frames=options.frames or sampling.frames,
        stride=options.stride or sampling.stride,
        kind=options.sampling or sampling.kind,
    )
    usual = testing.size or augmentation.size
    side = options.size or usual
    clips, crops = views or (testing.clips, testing.crops)
    resize = options.resize or round(testing.resize * side / usual)  # the crop keeps its share of the frame
    testing = typed(Testing, dict(clips=clips, crops=crops, size=side, resize=resize), "testing")
    augmentation = replace(augmentation, mean=options.mean or augmentation.mean, std=options.std or augmentation.std)
    return Protocol(
        sampling, testing, augmentation, order,
        device=options.device, dtype=options.dtype, batch_size=options.batch_size,
    )  # fmt: skip


def _ordinal(number: int) -> str:
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def checked_clip(text: str) -> Path:
    """The path of a video file. Raises: UsageError, before anything slow is done."""
    path = Path(text).expanduser()
    try:
        check_video(path)
    except VideoError as error:
        raise UsageError(named(path, error)) from None
    return path


def named(path: Path, error: object) -> str:
    """The error of a decoder, which names the path in one way or another, as one of the option `clip`."""
    text = str(error).removeprefix("clip=")
    for spelling in (path.absolute(), path):
        text = text.removeprefix(f"{spelling}: ")
    return f"clip={path}: {text}"


def listed(options: Any, name: str, root: str | None, more: dict[str, Any]) -> DataSet:
    """The data set that options name. Raises: UsageError."""
    try:
        return load_data(name, options.split, root, **more)
    except DataError as error:
        raise UsageError(str(error)) from None
