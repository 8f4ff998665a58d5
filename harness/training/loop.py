"""Trains the model of a job and evaluates it; goes on by itself where an earlier start of the same job stopped.

Nothing random is carried from step to step: the order of the clips, their augmentation and the dropout of a micro-batch
follow from the seed and their numbers. So a run that was killed ends with the weights of one that was not, and two
processes with one micro-batch each compute what one does with two. (BatchNorm normalises within a micro-batch in both
cases. Only its running statistics differ: two processes average theirs, one process takes the micro-batches in turn.)

`start` makes what a run begins with, `feed` its micro-batches, `step` learns from them by an `objective`, `journal`
watches, logs and sums up, `state` and `folder` are its files and `testing` predicts. Here is their order.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from attention_zoo import kernels
from backbones import CheckpointError
from backbones.sets import answering
from harness import precision
from harness.clips.loading import Decoded, LoadingError
from harness.datasets import DataError, DataSet, untaught
from harness.evaluation.predictions import Predictions, PredictionsError
from harness.evaluation.scores import scores as score
from harness.progress import line
from harness.training import distributed, feed, state
from harness.training.distributed import Group
from harness.training.feed import Kept
from harness.training.folder import PREDICTIONS, RESULT, cut_log, held, store_job, stored_result
from harness.training.job import Job, Result, Stopped, TrainingError
from harness.training.journal import Counters, Journal, board
from harness.training.start import check_device, check_views, data_sets, new_model, objective, schedule, unreached
from harness.training.state import storing
from harness.training.step import Learner
from harness.training.stopping import between_steps
from harness.training.testing import tested, together
from records.record import write_json

# What `train` raises for a reason that the user can mend.
ERRORS = (
    TrainingError, LoadingError, DataError, CheckpointError, PredictionsError, kernels.KernelUnavailable, OSError,
)  # fmt: skip
EPOCH_SAVE_SECONDS = 5.0  # the end of an epoch is no reason to write when the last checkpoint is newer than this


def train(
    job: Job,
    console: Console | None = None,
    stop: Callable[[], bool] | None = None,
    decoded: dict[str, Kept] | None = None,
    beside: int = 1,
) -> Result:
    """Trains, evaluates and stores the result in the job's folder; a finished job returns its stored result.

    Args:
        console: takes the progress; None for silence.
        stop: asked after each step; when it says True, a checkpoint is written and the run ends with `Stopped`.
        decoded: keeps what `preload` decodes, the last set of each split: hand the same dict to the next job of this
            process, and it decodes nothing that is there already.
        beside: how many trainings run on this machine side by side, this one among them. They share its memory.

    Raises:
        TrainingError: the run cannot start (its folder holds another job, the data are too few, ...), go on (the loss
            is not finite) or be stored (the disk is full).
        LoadingError: what `preload` decodes is more than the memory takes.
        DataError, CheckpointError, KernelUnavailable: of the data set, the initial weights, the kernel.
    """
    console = console or Console(quiet=True)
    finished = stored_result(job)
    if finished is not None:
        return finished
    check_device(job)
    check_views(job)
    threads = torch.get_num_threads()
    try:
        if job.threads:
            torch.set_num_threads(job.threads)
        with precision.exact(), distributed.group(job) as group:
            console = console if group.first else Console(quiet=True)
            devices = [group.device] if group.device.type == "cuda" else []
            with held(job.folder, group), torch.random.fork_rng(devices):
                return _Run(job, group, console, stop, {} if decoded is None else decoded, beside).result()
    finally:
        torch.set_num_threads(threads)


class _Run:
    """One start of a job in one process: its parts, and what is done with them in turn."""

    def __init__(
        self,
        job: Job,
        group: Group,
        console: Console,
        stop: Callable[[], bool] | None,
        decoded: dict[str, Kept],
        beside: int,
    ):
        self.job, self.group, self.console, self.stop = job, group, console, stop
        self.decoded, self.beside = decoded, beside
        self.started = time.monotonic()
        data = data_sets(job)
        self.training, self.testing = data["train"], data[job.test_split]
        self.schedule = schedule(job, group, feed.keys(self.training, job, 1, first=0, last=0).count)
        notes = unreached(job.recipe.optimisation, self.schedule)
        for training, testing in zip(self.training, self.testing, strict=True):
            notes += untaught(training, testing)
        for note in notes if group.first else ():
            self.console.print(escape(note), soft_wrap=True)
        self.content = store_job(job, data, self.schedule.micro, group)
        self.kernel = kernels.resolve(job.kernel, group.device, getattr(torch, job.dtype), backward=True)
        self.model = new_model(job, self.kernel, console)
        self.trained, aim = objective(job, self.model, group.device)
        self.counters, saved = self._resume()
        self.learner = Learner(job, self.schedule, group, self.counters, self.model, self.trained, aim)
        if saved is not None:
            self.learner.load(saved)
        self.journal = Journal(job, self.schedule, group, self.counters)

    def result(self) -> Result:
        """Trains what is left, evaluates, stores the result."""
        job, counters = self.job, self.counters
        if counters.step < self.schedule.last:
            self._train()
        while job.until_flat and self.group.agreed(self.journal.goes_on() if self.group.first else None):
            self.schedule.ends.append(2 * self.schedule.last)
            self._train()
        predictions = self._evaluated(job.order, PREDICTIONS)
        controls = {}
        if job.controls:
            for order in ("shuffled", "single"):
                controls[order] = self._evaluated(order, f"{PREDICTIONS}-{order}")
        result = None
        if self.group.first:
            result = self.journal.outcome(
                together(predictions), {order: together(by_set) for order, by_set in controls.items()},
                predictions if job.sets else {}, content=self.content,
                labels=[[item.label for item in dataset.items] for dataset in self.training], kernel=self.kernel,
                model=self.model, seconds=self._seconds(),
            )  # fmt: skip
            with storing(job.folder):
                write_json(asdict(result), job.folder / RESULT)
        return self.group.agreed(result)

    def _train(self) -> None:
        """All steps that are left. Raises: Stopped, TrainingError."""
        job, counters, group, journal = self.job, self.counters, self.group, self.journal
        per_epoch, last = self.schedule.per_epoch, self.schedule.last
        preloaded = self._preloaded(self.training, job.recipe.augmentation.resize)
        batches = feed.batches(self.training, preloaded, job, self.schedule, group, counters)
        evaluate = max(1, round(job.evaluate_every * per_epoch)) if job.evaluate_every else None
        self.learner.module.train()
        begun = saved = time.monotonic()
        first = counters.step
        logged = job if group.first else replace(job, tensorboard=False)
        with between_steps(self.stop), line(self.console) as say, board(logged) as add:
            while counters.step < last:
                self.learner.step(batches)
                step = counters.step
                if step % self.schedule.every == 0 or step == last:
                    journal.log(add)
                    if step < last:
                        say(journal.in_words((time.monotonic() - begun) / (step - first)))
                elif group.device.type == "cpu" and group.world == 1:
                    journal.watch()
                if evaluate and step % evaluate == 0 and step < last:
                    self._evaluate_now()
                    add("top1_val", counters.history[-1]["top1"], step)
                age = time.monotonic() - saved
                stop, due = group.any(
                    self.stop is not None and self.stop(),
                    age > job.save_every_seconds or (step % per_epoch == 0 and age > EPOCH_SAVE_SECONDS),
                )
                if stop or due or step == last:
                    path, saved = self._save(), time.monotonic()
                if stop and step < last:
                    raise Stopped(f"stopped after step {step} of {last}; the same command goes on from {path}")
        self.console.print(escape(journal.in_words(0.0)), soft_wrap=True)

    def _preloaded(self, sets: list[DataSet], resize: Any) -> list[Decoded | None]:
        processes = self.group.beside * self.beside
        try:
            return feed.frames(sets, resize, self.job, processes, self.decoded, self.console)
        except LoadingError as error:
            if self.beside == 1:
                raise
            raise LoadingError(f"{error}, or run fewer than {self.beside} trainings side by side (jobs=)") from error

    # Checkpoints

    def _resume(self) -> tuple[Counters, dict[str, Any] | None]:
        """Weights and counters of the newest good checkpoint; log.jsonl is cut back to its step."""
        folder, counters, saved = self.job.folder, Counters(), None
        newest = self.group.agreed(state.newest(folder) if self.group.first else None)
        if newest is not None:
            saved = state.load(newest, self.model)
            try:
                counters = Counters(**saved["counters"])
            except TypeError as error:
                reason = str(error).partition("() ")[2]
                raise TrainingError(
                    f"{newest} is of another version of this project ({reason}); go on with it"
                ) from error
            self.schedule.ends.extend([2 ** (n + 1) * self.schedule.last for n in range(len(counters.courses))])
            if not self.group.first:  # what the processes have counted together is the first one's now
                counters.replaced = 0
            state.load_heads(self.trained, self.model, saved["heads"])
            if counters.step < self.schedule.last:
                self.console.print(escape(f"going on from {newest.name}"), soft_wrap=True)
        if self.group.first:
            cut_log(folder, counters.step)
        self.trained.to(self.group.device)
        return counters, saved

    def _save(self) -> Path:
        """A checkpoint of this moment. Raises: TrainingError, where the loss is not finite or the disk is full."""
        pending = self.journal.watch()
        job, group, counters = self.job, self.group, self.counters
        distributed.average_statistics(self.model, group)
        whole = distributed.plain(self.model, group, self.kernel)
        values = self.learner.state()
        values["counters"] = asdict(counters) | {
            "pending": [list(entry) for entry in pending],
            "replaced": sum(group.gathered(counters.replaced)),
            "seconds": self._seconds(),
        }
        values["heads"] = state.heads(self.trained, self.model)
        path, failure = None, None
        if group.first:
            try:
                path = state.save(job.folder, counters.step, whole, values, best=counters.best)
            except TrainingError as error:
                failure = error
        path, message = group.agreed((path, failure and str(failure)))
        if message:
            raise TrainingError(message) from failure
        return path

    def _seconds(self) -> float:
        """What all starts of the run have taken; `counters.seconds` is of those before this one."""
        return self.counters.seconds + time.monotonic() - self.started

    # Evaluation

    def _evaluate_now(self) -> None:
        """One view per video, as the published training codes validate."""
        counters, step = self.counters, self.counters.step
        predictions = self._evaluated(self.job.order, None)
        whole = together(predictions) if self.group.first else None
        top1 = self.group.agreed(whole and score(whole).top1.value)
        better = top1 > counters.best_top1
        counters.history.append({"step": step, "epoch": round(step / self.schedule.per_epoch, 4), "top1": top1})
        if better:
            counters.best = step
            self._save()
        self.learner.module.train()

    def _evaluated(self, order: str, name: str | None) -> dict[str, Predictions]:
        """Predictions of the test videos by the model as it is, for each data set; the first process has those of all.

        Those without a name are of one view of each video and are not stored.
        """
        begun, group, job = time.monotonic(), self.group, self.job
        preloaded = self._preloaded(self.testing, job.recipe.testing.resize)
        distributed.average_statistics(self.model, group)
        model = distributed.plain(self.model, group, self.kernel)
        names, predictions = list(job.sets) or [""], {}
        for set_name, dataset, frames in zip(names, self.testing, preloaded, strict=True):
            testing = job.recipe.of_set(set_name).testing if name else replace(job.recipe.testing, clips=1, crops=1)
            keep = job.folder / f"{'-'.join(filter(None, (name, set_name)))}.npz" if name else None
            batch = max(testing.clips * testing.crops, min(self.schedule.micro, 64))
            with line(self.console) as say:
                predictions[set_name] = tested(
                    answering(model, set_name) if set_name else model, dataset, job.recipe.of_set(set_name), testing,
                    job, group, order=order, batch_size=batch, preloaded=frames, say=say, keep=keep,
                    step=self.counters.step,
                )  # fmt: skip
            if reason := group.agreed(predictions[set_name].none_decoded() if group.first else None):
                raise TrainingError(f"{dataset.name} {dataset.split}: {reason}; {state.last_good_in_words(job.folder)}")
        self.counters.evaluating_seconds += time.monotonic() - begun
        return predictions
