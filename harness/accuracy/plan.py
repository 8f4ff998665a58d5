"""From the rows of an ablation to trainings: one job for each row and seed, each in a folder named by what it trains.

Rows of two tables that train the same model on the same data with the same seed share one folder, so the default row of
the DualFormer tables is trained once for all of them. So do rows that a budget shrinks to the same network: at small
sizes two pyramids may pool alike.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import backbones
from harness.accuracy.setup import BUILT_IN, QUICK_STEPS, Setup, data_slug
from harness.clips.decoding import file_digest
from harness.datasets import DataError
from harness.datasets.several import chosen
from harness.spec.budget import NOMINAL_FRAMES, shrunk
from harness.spec.case import Ablation, Entry
from harness.spec.names import AUTO
from harness.spec.reader import UsageError, text_of
from harness.spec.recipe import Recipe
from harness.spec.recipe import load as load_recipe
from harness.training.folder import JOB, RESULT
from harness.training.job import Job, Result, TrainingError
from records.record import slug

TEACHER = "teacher"  # in a row's `training`: the row above it whose model labels the tokens
SET = "set"  # of a row that is trained on several data sets: the one whose accuracy is the row's
SMALL_MACS = 10**9  # of a model that is compared with another by running both


@dataclass(frozen=True)
class Task:
    """One training that an ablation needs: of which case and seed it is, and the job."""

    ablation: Ablation
    entry: Entry
    seed: int
    job: Job
    teacher: Task | None = None
    same_as: str | None = None  # the row trained before it that is the same network at the size of the budget

    def ready(self) -> Job | None:
        """The job as it can run now; None while its teacher is not trained."""
        if self.teacher is None:
            return self.job
        result = self.teacher.result()
        if result is None:
            return None
        file = weights(self.teacher.job.folder, result.checkpoint)
        recipe = self.job.recipe.changed({"token_labels.checkpoint": str(file)})
        return replace(self.job, recipe=recipe)

    def result(self) -> Result | None:
        """The stored result of the job, if it is finished and of this job. Raises: TrainingError."""
        path = self.job.folder / RESULT
        if not path.exists():
            return None
        try:
            result = Result(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise TrainingError(f"{path} cannot be read ({error}); remove {self.job.folder} to train again") from error
        return result if result.job == self.job.digest else None

    @property
    def scored_set(self) -> str | None:
        return self.entry.row.training.get(SET)

    def predictions(self) -> Path:
        """The file of those that the row's accuracy is of."""
        return self.job.folder / f"predictions{f'-{self.scored_set}' if self.scored_set else ''}.npz"

    def scores(self, result: Result) -> dict[str, Any]:
        """Of the row's data set."""
        return result.sets[self.scored_set] if self.scored_set else result.scores

    @property
    def label(self) -> str:
        return f"{self.entry.case.row} · seed {self.seed}"


def weights(folder: Path, checkpoint: str) -> Path:
    """The file of the final weights of a run."""
    path = folder / checkpoint
    return path / "model.safetensors" if path.is_dir() else path


def initial(source: str, job: Job) -> Path:
    """The weights that a training starts from: the file itself, or those of the same network in a folder of trainings,
    of the lowest seed, so that all seeds start alike. Raises: ValueError, where there are none.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    finished = []
    for file in path.glob(f"training/*/{RESULT}"):
        try:
            made = Job.from_dict(json.loads((file.parent / JOB).read_text(encoding="utf-8"))["job"], file.parent)
            checkpoint = json.loads(file.read_text(encoding="utf-8"))["checkpoint"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"initial={source}: {file.parent} cannot be read ({error})") from None
        finished.append((made.seed, file.parent.name, made.config, weights(file.parent, checkpoint)))
    for _, _, config, file in sorted(finished, key=lambda entry: entry[:2]):
        if config == job.config or same_network(config, job.config, job.classes):
            return file
    raise ValueError(
        f"initial={source}: it holds no finished training of this network; the same command with data=motion_small "
        f"(or other data) and out={source} makes one for each row"
    )


def tasks(ablation: Ablation, entries: list[Entry], setup: Setup, classes: int, out: Path) -> list[Task]:
    """All trainings of an ablation, seed by seed, so that an interrupted run leaves whole rows of comparisons.

    Raises: UsageError naming the row whose model or recipe cannot be trained so.
    """
    planned: list[Task] = []
    seeds = setup.training.seeds or setup.budget.seeds
    assert seeds != AUTO  # `power.settled` has made numbers of it
    for seed in seeds:
        by_row: dict[str, Task] = {}
        # The baseline first: tables have it in common, so it is the one that rows of the same network share.
        for entry in sorted(entries, key=lambda entry: entry.case.row != entry.baseline):
            name = entry.row.training.get(TEACHER)
            if name is not None and name not in by_row:
                raise UsageError(
                    f"ablation {ablation.name}, row {entry.case.row!r}: its teacher {name!r} is no row above it; "
                    f"rows above: {', '.join(by_row) or 'none'}"
                )
            task = Task(ablation, entry, seed, job(ablation, entry, setup, classes, seed, out), by_row.get(name))
            twin = _twin(task, by_row.values())
            if twin is not None:
                task = replace(task, job=twin.job, same_as=twin.same_as or twin.entry.case.row)
            if task.teacher is not None:
                folder = task.job.folder.with_name(f"{task.job.folder.name}-of-{task.teacher.job.digest[:8]}")
                task = replace(task, job=replace(task.job, folder=folder))
            by_row[entry.row.row] = task
            planned.append(task)
    return planned


def _twin(task: Task, above: Iterable[Task]) -> Task | None:
    """The first of the trainings before that differs from this one by nothing but the words of its configuration."""
    for candidate in above:
        if (
            candidate.teacher is task.teacher is None
            and replace(candidate.job, config=task.job.config, folder=task.job.folder) == task.job
        ):
            config = candidate.job.config
            if config == task.job.config or same_network(config, task.job.config, task.job.classes):
                return candidate
    return None


def same_network(first: dict[str, Any], second: dict[str, Any], classes: int) -> bool:
    """Whether two configurations of small models compute the same: equal to the bit on one random clip, in inference
    and in training, with the same large random weights in float64. Large models are not tried."""
    try:
        return _same_network(json.dumps(first, sort_keys=True), json.dumps(second, sort_keys=True), classes)
    except Exception:  # one of them does not run: its own training says why, and the other's goes on
        return False


@functools.lru_cache(maxsize=256)
def _same_network(first: str, second: str, classes: int) -> bool:
    configs = [backbones.read_config(json.loads(text)) for text in (first, second)]
    if configs[0].clip != configs[1].clip:
        return False
    with torch.device("meta"):
        sketches = [backbones.create(config, classes) for config in configs]
    shapes = [{name: value.shape for name, value in sketch.state_dict().items()} for sketch in sketches]
    if shapes[0] != shapes[1] or max(sketch.macs() for sketch in sketches) > SMALL_MACS:
        return False
    outputs = []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for config in configs:
            torch.manual_seed(0)
            model = backbones.create(config, classes).double()
            for parameter in model.parameters():
                parameter.normal_(std=max(1, parameter[0].numel()) ** -0.5)
            clip = torch.randn(2, 3, *config.clip, dtype=torch.float64)
            outputs.append([model.train(mode)(clip) for mode in (True, False)])
    return all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


def job(ablation: Ablation, entry: Entry, setup: Setup, classes: int, seed: int, out: Path) -> Job:
    """The training of one row with one seed. Raises: UsageError naming the row."""
    row, where = entry.row, f"ablation {ablation.name}, row {entry.case.row!r}, accuracy={setup.budget.name}"
    try:
        recipe = _recipe(ablation, entry, setup)
        config = shrunk(backbones.read_config(entry.case.config), setup.budget, recipe)
    except (KeyError, ValueError) as error:
        raise UsageError(f"{where}: {text_of(error)}") from error
    cuda = setup.device.startswith("cuda")
    row_settings = {
        key: value for key, value in row.training.items() if key not in (TEACHER, SET) and "recipe." not in key
    }
    data_settings = _own_data(row_settings, setup, where) if "data" in row_settings else {}
    data = data_settings.get("data", setup.data_name)
    built_in = all(name in BUILT_IN for name in ([data] if isinstance(data, str) else data))
    settings = dict(
        data=data,
        root=setup.training.root,
        classes=classes,
        preload=setup.budget.preload and not setup.quick,  # a few steps need a few of its clips
        controls=setup.budget.controls and not setup.quick and SET not in row.training,  # they are of all sets together
        data_options=setup.training.data_changes,
        test_split="test" if built_in else "val",
        until_flat=setup.training.epochs == AUTO and not setup.quick,
        max_steps=QUICK_STEPS if setup.quick else None,
        minutes=setup.minutes,
    )
    job = Job(
        model=entry.case.model,
        config=config.to_dict(),
        recipe=recipe,
        folder=out,
        seed=seed,
        device="cuda" if cuda else "cpu",
        dtype=setup.dtype or (setup.budget.dtype if cuda else "float32"),
        kernel=setup.kernel,
        threads=None if cuda else setup.threads,
        **settings | data_settings | row_settings,
    )
    name = f"{slug(job.model)}-{setup.budget.name}-{data_slug(job.data)}-seed{seed}-{job.digest}"
    if setup.training.initial is not None:
        try:
            job = replace(job, checkpoint=str(initial(setup.training.initial, job)))
        except ValueError as error:
            raise UsageError(f"{where}: {error}") from None
        name = f"{name}-from-{file_digest(job.checkpoint)[:8]}"  # a job's digest is without what it starts from
    return replace(job, folder=out / "training" / name)


def _own_data(row_settings: dict[str, Any], setup: Setup, where: str) -> dict[str, Any]:
    """Classes and sets of a row that names its data itself. Raises: UsageError."""
    if setup.training.data is not None:
        raise UsageError(f"{where}: the rows name their data sets, so data={setup.training.data} is one too many")
    try:
        sets = {
            source.name: len(source.load("train").classes)
            for source in chosen(row_settings["data"], row_settings.get("root"))
        }
    except DataError as error:
        raise UsageError(f"{where}: {error}") from error
    several = {} if isinstance(row_settings["data"], str) else sets
    return {
        "data": row_settings["data"],
        "root": None,
        "data_options": {},
        "classes": sum(sets.values()),
        "sets": several,
    }


def _recipe(ablation: Ablation, entry: Entry, setup: Setup) -> Recipe:
    """The recipe of a row. Frames follow the row's own clip: a row of 16 frames gets half of what one of 32 gets."""
    row, budget, training = entry.row, setup.budget, setup.training
    name = training.recipe or budget.recipe or row.recipe or ablation.recipe
    if name is None:
        raise UsageError(
            "no recipe is known for this row; name one, as in recipe=dualformer_tiny_k400, or take accuracy=quick"
        )
    recipe = load_recipe(name, training.recipe_source)
    changes: dict[str, Any] = {}
    frames = row.clip.get("frames")
    if frames is not None and budget.recipe is not None:
        changes["sampling.frames"] = max(2, recipe.sampling.frames * frames // NOMINAL_FRAMES)
    elif frames is not None:
        changes |= {"sampling.frames": frames, "sampling.stride": row.clip.get("stride", recipe.sampling.stride)}
    changes |= {k.removeprefix("recipe."): v for k, v in row.training.items() if k.startswith("recipe.")}
    if TEACHER in row.training and recipe.token_labels is None:
        changes["token_labels.teacher"] = row.training[TEACHER]
    if training.epochs not in (None, AUTO):
        changes["optimisation.epochs"] = training.epochs
    return recipe.changed(changes | training.recipe_changes)


def distinct(tasks: list[Task]) -> list[Task]:
    """The first task of each run folder: what has to be trained."""
    by_folder: dict[Path, Task] = {}
    for task in tasks:
        by_folder.setdefault(task.job.folder, task)
    return list(by_folder.values())
