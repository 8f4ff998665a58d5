"""Train what the rows of an ablation lack and put the accuracies into their records, each as soon as it is known.

The results lie in the run folders (`<out>/training/...`) and the records are filled from them, so nothing that was
trained is lost or trained again: not after a kill, and not when another table asks for the same row.
"""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

import backbones
from harness import datasets
from harness.accuracy import plan, pool
from harness.accuracy.plan import Setup, Task
from harness.clips.decoding import file_digest
from harness.deadline import Deadline, OutOfTime
from harness.evaluation.predictions import Predictions
from harness.evaluation.scores import by_views
from harness.progress import duration, line
from harness.spec.case import Ablation, Entry, case_id
from harness.spec.names import AUTO
from harness.spec.reader import UsageError
from harness.store import Store
from harness.training.job import Job, Result
from records import provenance
from records.learning import QUICK_MODE
from records.record import Measurement, Quantity, Visit

SAY_EVERY_SECONDS = 30.0


def splits_of(setup: Setup) -> list[datasets.DataSet]:
    """What is trained on and tested on; a built-in data set is rendered on first use. Raises: UsageError."""
    try:
        tested = "test" if setup.data_name in plan.BUILT_IN else "val"
        splits = [
            datasets.load(setup.data_name, split, setup.training.root, **setup.training.data_changes)
            for split in ("train", tested)
        ]
    except datasets.DataError as error:
        raise UsageError(f"accuracy={setup.budget.name}: {error}") from error
    for split in splits:
        if not len(split):
            raise UsageError(f"accuracy={setup.budget.name}: {setup.data_name} lists no videos in {split.split}")
    return splits


@dataclass
class Trainings:
    """The trainings that the rows of one ablation need. `run` hands tasks to a queue in place of this machine's
    devices: a function with the signature of `pool.run` without its slots. `anew`: begin all of them again.
    """

    ablation: Ablation
    setup: Setup
    tasks: list[Task]
    run: Callable[..., Iterator[pool.Done]] | None = None
    anew: bool = False
    notes: tuple[str, ...] = ()  # of the data, to be told once

    @classmethod
    def of(cls, ablation: Ablation, entries: list[Entry], setup: Setup, out: Path, run: Any, anew: bool) -> Trainings:
        """Those of some cases. Raises: UsageError, for a row that cannot be trained so, or for data without videos."""
        splits = splits_of(setup)
        tasks = plan.tasks(ablation, entries, setup, len(splits[0].classes), out)
        return cls(ablation, setup, tasks, run, anew, tuple(datasets.untaught(*splits)))

    def go(self, store: Store, console: Console, deadline: Deadline) -> list[str]:
        """Train what is missing; returns what failed.

        At the `deadline` what is in work is saved and stopped; the next run goes on with it.
        """
        by_folder = defaultdict(list)
        for task in self.tasks:
            by_folder[task.job.folder].append(task)
        if self.anew:
            for folder in by_folder:
                _forget(folder)
        missing = [task for task in plan.distinct(self.tasks) if task.result() is None]
        for note in self.notes:
            console.print(escape(note), highlight=False, soft_wrap=True)
        console.print(self._opening(missing), highlight=False, soft_wrap=True)
        self.gather(store, self.tasks, {})
        if not missing:
            return []
        beside = pool.beside(self.setup.data_name)
        slots = functools.partial(pool.slots, self.setup.device, self.setup.training.jobs, self.setup.threads, beside)
        run = self.run or (lambda tasks, tick: pool.run(tasks, slots(), tick))
        failures: dict[tuple[str, int], str] = {}
        finished, begun = 0, time.monotonic()
        with line(console, SAY_EVERY_SECONDS) as say, contextlib.suppress(OutOfTime):

            def tick(in_work: list[Task]) -> None:
                say(_state(in_work, finished, len(missing), time.monotonic() - begun))
                if deadline.passed:
                    raise OutOfTime

            for done in run(missing, tick):
                finished += 1
                alike = by_folder[done.task.job.folder]
                if done.failure:
                    failure = provenance.without_folders(done.failure)
                    failures |= {(case_id(task.entry.case), task.seed): failure for task in alike}
                text = escape(f"[{finished}/{len(missing)}] {done.task.label}: {_outcome(done)}")
                console.print(text, soft_wrap=True, highlight=False)
                cases = {case_id(task.entry.case) for task in alike}
                self.gather(store, [task for task in self.tasks if case_id(task.entry.case) in cases], failures)
        if finished < len(missing):
            untrained = len(missing) - finished
            deadline.left_out.append(f"{untrained} of {len(missing)} trainings of {self.ablation.name}")
        return [
            f"{task.label}: {failures[key]}"
            for task in self.tasks
            if (key := (case_id(task.entry.case), task.seed)) in failures
        ]

    def gather(self, store: Store, tasks: list[Task], failures: dict[tuple[str, int], str]) -> None:
        """Write what is trained into the records: one measurement per row, with one visit per seed."""
        rows: dict[str, list[Task]] = defaultdict(list)
        for task in tasks:
            rows[case_id(task.entry.case)].append(task)
        for identifier, row_tasks in rows.items():
            results = {task.seed: result for task in row_tasks if (result := task.result()) is not None}
            why = {
                task.seed: failures[identifier, task.seed] for task in row_tasks if (identifier, task.seed) in failures
            }
            if not results and not why:
                continue
            measurement = _measurement(self.setup, row_tasks, results, why)
            record = store.read(row_tasks[0].entry)
            old = record.get(measurement.name) if record else None
            if old is not None and old.samples == measurement.samples and old.missing == measurement.missing:
                if old.said("job") == measurement.said("job"):
                    continue
            store.merge(row_tasks[0].entry, [measurement])

    def _opening(self, missing: list[Task]) -> str:
        job, folders = self.tasks[0].job, len(plan.distinct(self.tasks))
        progress = f"{folders - len(missing)} of {folders} trainings are there; " if len(missing) < folders else ""
        seeds = ", ".join(map(str, sorted({task.seed for task in self.tasks})))
        length = f"{job.max_steps} steps" if job.max_steps else f"{job.recipe.optimisation.epochs:g} epochs"
        return (
            f"{self.ablation.name}: accuracy={self.setup.budget.name} on {self.setup.data_name}: {progress}"
            f"{len(missing)} to train ({job.recipe.sampling.frames} frames x {job.recipe.augmentation.size} px, "
            f"{length}{' and on until flat' if job.until_flat else ''}, seeds {seeds})"
        )


def _measurement(setup: Setup, tasks: list[Task], results: dict[int, Result], why: dict[int, str]) -> Measurement:
    job, scored_set = tasks[0].job, tasks[0].scored_set
    data = scored_set or job.data
    sizes = backbones.read_config(job.config).sizes()
    some = [results[task.seed] for task in tasks if task.seed in results]
    details: dict[str, Any] = {
        "budget": setup.budget.name,
        "data": data if data in plan.BUILT_IN else plan.data_slug(data),
        "built_in": data in plan.BUILT_IN,
        "wanted_seeds": [task.seed for task in tasks],
        "recipe": job.recipe.name,
        "published_recipe": (setup.training.recipe or setup.budget.recipe) is None,  # else a shorter one of ours
        "recipe_source": setup.training.recipe_source,
        "recipe_digest": some[0].recipe if some else None,
        "epochs": AUTO if job.until_flat else job.recipe.optimisation.epochs,
        "batch_size": job.recipe.optimisation.batch_size,
        "frames": job.recipe.sampling.frames,
        "size": job.recipe.augmentation.size,
        "views": f"{job.recipe.testing.clips}x{job.recipe.testing.crops}",
        "order": job.order,
        "width_factor": setup.budget.width,
        "depth": setup.budget.depth,
        "stem": job.config.get("stem", "patch"),
        "widths": sizes["widths"],
        "depths": sizes["blocks"],
        "classes": job.sets[scored_set] if scored_set else job.classes,
        "dtype": job.dtype,
        "device": job.device,
    }
    if job.checkpoint is not None:
        details["initial"] = {"file": Path(job.checkpoint).name, "sha256": file_digest(job.checkpoint)}
    if job.max_steps is not None:
        details["steps"] = job.max_steps
    elif scored_set is None and len(tasks) < setup.recorded.get("seeds", 0):
        details["recorded"] = setup.recorded
    if tasks[0].same_as is not None:
        details["same_network_as"] = tasks[0].same_as
    title = f"top-1, {setup.budget.name} on {details['data']}{', warm start' if job.checkpoint else ''}"
    quantity = Quantity(setup.measurement, "scored", title, "percent", "higher")
    if why:
        details["failed"] = {str(seed): reason for seed, reason in why.items()}
    if some:
        details |= {
            "data_digest": some[0].data if scored_set is None else {"test": _digest_of(tasks, results)},
            "params": some[0].parameters,
            "videos": tasks[0].scores(some[0])["videos"],
            "machine": provenance.machine(setup.device),
            "trained_with": some[0].provenance,
        }
        details["macs"] = _macs(job)
        if job.recipe.testing.clips * job.recipe.testing.crops > 1:
            details["by_views"] = _by_views([task for task in tasks if task.seed in results])
        visits = tuple(_visit(task, results[task.seed]) for task in tasks if task.seed in results)
        return Measurement(**vars(quantity), visits=visits, details=details)
    return quantity.absent("; ".join(dict.fromkeys(why.values())), retry=True, details=details)


def _visit(task: Task, result: Result) -> Visit:
    """What the training of one seed gave."""
    scores = task.scores(result)
    details = {
        "seed": task.seed,
        "job": task.job.digest,
        "coverage": scores["coverage"],
        "replaced": result.replaced,
        "interval": [scores["top1"]["low"], scores["top1"]["high"]],
        "top5": scores["top5"]["value"],
        "mean_class": scores["mean_class"]["value"],
        "seconds": result.seconds["total"],
        **{order: control["top1"]["value"] for order, control in result.controls.items()},
    }
    if task.job.until_flat:
        details["epochs_trained"] = result.epochs
    if result.training:
        details |= {"train_curve": result.training["curve"], "train_clips": result.training["clips"]}
        details["chance"] = result.training["chance"]
    return Visit((scores["top1"]["value"],), details=details)


def _digest_of(tasks: list[Task], results: dict[int, Result]) -> str:
    """Of the list of test videos of a row's data set, one of several that were trained on."""
    return next(Predictions.load(task.predictions()).facts["data_digest"] for task in tasks if task.seed in results)


def _macs(job: Job) -> int:
    """Multiply-adds of one view of the model as it was trained, without the classifier."""
    with torch.device("meta"):
        return backbones.create(backbones.read_config(job.config), job.classes).macs(classifier=False)


def _by_views(trained: list[Task]) -> list[dict[str, Any]]:
    """Top-1 for fewer clips and crops than were predicted, the mean over the seeds; no model runs for it.

    Intervals are the means of Wilson's over the videos of each seed.
    """
    tables = [by_views(Predictions.load(task.predictions())) for task in trained]
    return [
        {**rows[0], **{key: sum(row[key] for row in rows) / len(rows) for key in ("top1", "low", "high")}}
        for rows in zip(*tables, strict=True)
    ]


def _forget(folder: Path) -> None:
    """Begin a training again: its files are moved aside under one name, so that the last one can still be looked at."""
    if folder.exists():
        aside = folder.with_name(folder.name + ".before")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)


def _outcome(done: pool.Done) -> str:
    """What became of a training, in words."""
    result = None if done.failure else done.task.result()
    if result is None:
        return done.failure or "no result was left"
    trouble = QUICK_MODE if done.task.job.max_steps else result.trouble
    wrong = f" ({trouble}: train {result.training['curve'][-1]:.0f} %)" if trouble else ""
    return f"top-1 {result.top1:.1f} %{wrong} in {duration(result.seconds['total'])}"


def _state(in_work: list[Task], finished: int, total: int, spent: float) -> str:
    """How far all trainings are, and those in work, in words."""
    parts = [_part(task) for task in in_work]
    share = (finished + sum(part for part, _ in parts)) / total
    remaining = f"; about {duration(spent * (1 - share) / share)} left" if share > 0.02 else ""
    texts = [f"{task.label}: {text}" for task, (_, text) in zip(in_work, parts, strict=True)]
    return f"[{finished}/{total} trained{remaining}] {' | '.join(texts)}"


def _part(task: Task) -> tuple[float, str]:
    """How far a training is, from the last line of its log: share of its steps, and in words."""
    path = task.job.folder / pool.JOB_LOG
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 2000))
            last = json.loads(file.read().splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return 0.0, "starting"
    epochs = task.job.recipe.optimisation.epochs
    return min(1.0, last["epoch"] / epochs), f"epoch {last['epoch']:.1f} of {epochs:g}, loss {last['loss']:.2f}"
