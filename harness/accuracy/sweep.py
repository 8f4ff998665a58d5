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
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from harness.accuracy import plan, pool
from harness.accuracy.plan import Setup, Task
from harness.deadline import Deadline, OutOfTime
from harness.progress import duration
from harness.spec.case import Ablation, Entry, case_id
from harness.spec.reader import UsageError
from harness.training.job import Job, Result
from records import provenance
from records.record import Measurement, Quantity, Visit

SAY_EVERY_SECONDS = 30.0
PREDICTIONS = "predictions.npz"


def classes_of(setup: Setup) -> int:
    """How many classes the data set has; a built-in one is rendered on first use. Raises: UsageError."""
    from harness import datasets

    try:
        tested = "test" if setup.data_name in plan.BUILT_IN else "val"
        splits = [
            datasets.load(setup.data_name, split, setup.asked.root, **setup.asked.data_options)
            for split in ("train", tested)
        ]
    except datasets.DataError as error:
        raise UsageError(f"accuracy={setup.budget.name}: {error}") from error
    for split in splits:
        if not len(split):
            raise UsageError(f"accuracy={setup.budget.name}: {setup.data_name} lists no videos in {split.split}")
    return len(splits[0].classes)


def sweep(
    ablation: Ablation,
    entries: list[Entry],
    setup: Setup,
    classes: int,
    store: Any,
    out: Path,
    *,
    shared: dict[str, Any],
    launcher: Any = None,
    force: bool = False,
    deadline: Deadline | None = None,
    console: Console | None = None,
) -> list[str]:
    """Train what is missing; returns what failed. `store` is the records' `harness.sweep.Store`.

    `launcher` is a function with the signature of `pool.run` without its slots; None: this machine's devices. At the
    `deadline` what is in work is saved and stopped; the next run goes on with it.
    """
    console = console or Console(quiet=True)
    found = plan.tasks(ablation, entries, setup, classes, out)
    by_folder = defaultdict(list)
    for task in found:
        by_folder[task.job.folder].append(task)
    if force:
        for folder in by_folder:
            _forget(folder)
    missing = [task for task in plan.distinct(found) if task.result() is None]
    console.print(_opening(ablation, setup, found, missing), highlight=False, soft_wrap=True)
    gather(found, setup, store, shared, {})
    if not missing:
        return []
    progress, failures = _Progress(console, missing), {}
    slots = functools.partial(pool.slots, setup.device, setup.asked.jobs, setup.threads)
    run = launcher or (lambda tasks, tick: pool.run(tasks, slots(), tick))

    def tick(in_work: list[Task]) -> None:
        progress.tick(in_work)
        if deadline is not None and deadline.passed:
            raise OutOfTime

    with progress.shown(), contextlib.suppress(OutOfTime):
        for done in run(missing, tick):
            for task in by_folder[done.task.job.folder]:
                if done.failure:
                    failures[case_id(task.entry.case), task.seed] = done.failure
            progress.done(done.task, done.failure)
            same = {case_id(task.entry.case) for task in by_folder[done.task.job.folder]}
            gather([task for task in found if case_id(task.entry.case) in same], setup, store, shared, failures)
    if deadline is not None and progress.finished < len(missing):
        left = len(missing) - progress.finished
        deadline.left_out.append(f"{left} of {len(missing)} trainings of {ablation.name}")
    return [
        f"{task.label}: {failures[key]}" for task in found if (key := (case_id(task.entry.case), task.seed)) in failures
    ]


def gather(
    found: list[Task],
    setup: Setup,
    store: Any,
    shared: dict[str, Any],
    failures: dict[tuple[str, int], str],
) -> None:
    """Write what is trained into the records: one measurement per row, with one sample per seed."""
    rows: dict[str, list[Task]] = defaultdict(list)
    for task in found:
        rows[case_id(task.entry.case)].append(task)
    for identifier, of_row in rows.items():
        results = {task.seed: result for task in of_row if (result := task.result()) is not None}
        why = {task.seed: failures[identifier, task.seed] for task in of_row if (identifier, task.seed) in failures}
        if not results and not why:
            continue
        measurement = _measurement(setup, of_row, results, why)
        there = store.read(of_row[0].entry)
        old = there.get(measurement.name) if there else None
        if old is not None and old.samples == measurement.samples and old.missing == measurement.missing:
            if old.said("job") == measurement.said("job"):
                continue
        store.merge(of_row[0].entry, None, [measurement], {**shared, "clip": None, "time": provenance.now()})


def _measurement(setup: Setup, of_row: list[Task], results: dict[int, Result], why: dict[int, str]) -> Measurement:
    job = of_row[0].job
    some = [results[task.seed] for task in of_row if task.seed in results]
    details: dict[str, Any] = {
        "budget": setup.budget.name,
        "data": setup.data_name if setup.data_name in plan.BUILT_IN else plan.data_slug(setup.data_name),
        "built_in": setup.data_name in plan.BUILT_IN,
        "wanted_seeds": [task.seed for task in of_row],
        "recipe": job.recipe.name,
        "recipe_source": setup.asked.recipe_source,
        "recipe_digest": some[0].recipe if some else None,
        "epochs": job.recipe.optimisation.epochs,
        "batch_size": job.recipe.optimisation.batch_size,
        "frames": job.recipe.sampling.frames,
        "size": job.recipe.augmentation.size,
        "views": f"{job.recipe.testing.clips}x{job.recipe.testing.crops}",
        "order": job.order,
        "width_factor": setup.budget.width,
        "depth": setup.budget.depth,
        "widths": job.config["widths"],
        "depths": job.config["depths"],
        "classes": job.classes,
        "dtype": job.dtype,
        "device": job.device,
    }
    if of_row[0].same_as is not None:
        details["same_network_as"] = of_row[0].same_as
    what = f"top-1, {setup.budget.name} on {details['data']}"
    quantity = Quantity(setup.measurement, "scored", what, "percent", "higher")
    if why:
        details["failed"] = {str(seed): reason for seed, reason in why.items()}
    if some:
        details |= {
            "data_digest": some[0].data,
            "params": some[0].parameters,
            "videos": some[0].scores["videos"],
            "machine": provenance.machine(setup.device),
            "trained_with": some[0].provenance,
        }
        details["macs"] = _macs(job)
        if job.recipe.testing.clips * job.recipe.testing.crops > 1:
            details["by_views"] = _by_views([task for task in of_row if task.seed in results])
        visits = tuple(_visit(task, results[task.seed]) for task in of_row if task.seed in results)
        return Measurement(**vars(quantity), visits=visits, details=details)
    return quantity.absent("; ".join(dict.fromkeys(why.values())), retry=True, details=details)


def _visit(task: Task, result: Result) -> Visit:
    """What the training of one seed gave."""
    scores = result.scores
    said = {
        "seed": task.seed,
        "job": task.job.digest,
        "coverage": result.coverage,
        "replaced": result.replaced,
        "interval": [scores["top1"]["low"], scores["top1"]["high"]],
        "top5": scores["top5"]["value"],
        "mean_class": scores["mean_class"]["value"],
        "seconds": result.seconds["total"],
        **{order: control["top1"]["value"] for order, control in result.controls.items()},
    }
    return Visit((result.top1,), details=said)


def _macs(job: Job) -> int:
    """Multiply-adds of one view of the model as it was trained, without the classifier."""
    import torch

    import backbones

    with torch.device("meta"):
        return backbones.create(backbones.read_config(job.config), job.classes).macs(classifier=False)


def _by_views(trained: list[Task]) -> list[dict[str, Any]]:
    """Top-1 for fewer clips and crops than were predicted, the mean over the seeds; no model runs for it.

    Intervals are the means of Wilson's over the videos of each seed.
    """
    from harness.evaluation.predictions import Predictions
    from harness.evaluation.scores import by_views

    tables = [by_views(Predictions.load(task.job.folder / PREDICTIONS)) for task in trained]
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


def _opening(ablation: Ablation, setup: Setup, found: list[Task], missing: list[Task]) -> str:
    job, folders = found[0].job, len(plan.distinct(found))
    there = f"{folders - len(missing)} of {folders} trainings are there; " if len(missing) < folders else ""
    return (
        f"{ablation.name}: accuracy={setup.budget.name} on {setup.data_name}: {there}{len(missing)} to train "
        f"({job.recipe.sampling.frames} frames x {job.recipe.augmentation.size} px, "
        f"{job.recipe.optimisation.epochs:g} epochs, seeds {', '.join(map(str, sorted({t.seed for t in found})))})"
    )


class _Progress:
    """One line per finished training; on a terminal a live one for those in work, elsewhere one twice a minute."""

    def __init__(self, console: Console, tasks: list[Task]):
        self.console, self.total, self.finished = console, len(tasks), 0
        self.begun, self.said, self.status = time.monotonic(), time.monotonic(), None

    def shown(self):
        self.status = self.console.status("training …") if self.console.is_terminal else None
        return self.status or _Nothing()

    def tick(self, tasks: list[Task]) -> None:
        now = time.monotonic()
        if self.status is None and now - self.said < SAY_EVERY_SECONDS:
            return
        self.said = now
        parts, texts = 0.0, []
        for task in tasks:
            part, text = _state(task)
            parts += part
            texts.append(f"{task.label}: {text}")
        share = (self.finished + parts) / self.total
        left = f"; about {duration((now - self.begun) * (1 - share) / share)} left" if share > 0.02 else ""
        line = f"[{self.finished}/{self.total} trained{left}] {' | '.join(texts)}"
        if self.status is not None:
            self.status.update(escape(line))
        else:
            self.console.print(escape(line), soft_wrap=True, highlight=False)

    def done(self, task: Task, failure: str | None) -> None:
        self.finished += 1
        result = None if failure else task.result()
        text = failure or (
            f"top-1 {result.top1:.1f} % in {duration(result.seconds['total'])}" if result else "no result was left"
        )
        self.console.print(
            escape(f"[{self.finished}/{self.total}] {task.label}: {text}"), soft_wrap=True, highlight=False
        )


class _Nothing:
    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


def _state(task: Task) -> tuple[float, str]:
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
