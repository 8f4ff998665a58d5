"""Trains the model of a job and evaluates it; goes on by itself where an earlier start of the same job stopped.

Nothing random is carried from step to step: the order of the clips, their augmentation and the dropout of a micro-batch
follow from the seed and their numbers. So a run that was killed ends with the weights of one that was not, and two
processes with one micro-batch each compute what one does with two. (BatchNorm normalises within a micro-batch in both
cases. Only its running statistics differ: two processes average theirs, one process takes the micro-batches in turn.)
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from attention_zoo import kernels
from backbones.config import ModelConfig
from backbones.models import create
from backbones.pyramid import Pyramid
from harness import datasets, provenance
from harness.build import unavailable
from harness.case import Case
from harness.clips.loading import (
    Decoded,
    Keys,
    LoadingError,
    TrainingClips,
    preload,
    training_batches,
)
from harness.clips.mixing import mixed
from harness.clips.rand_augment import INSTALL as RANDAUGMENT_NEEDS
from harness.clips.transforms import erased, normalised
from harness.datasets import DataSet
from harness.evaluation.predictions import Predictions
from harness.evaluation.scores import scores as score
from harness.evaluation.views import DECODERS, RUN
from harness.progress import duration
from harness.training import distributed, state, token_labels
from harness.training.distributed import Group
from harness.training.initial import initialise, scale_to_inputs
from harness.training.job import Job, Result, Stopped, TrainingError, digest, first_difference
from harness.training.optimizer import lr_factor, optimizer, set_lr
from harness.training.recipe import Testing
from harness.training.state import storing
from harness.training.testing import tested
from harness.training.told import board, line
from harness.video import file_digest
from reports.record import write_json, write_text

logger = logging.getLogger(__name__)

JOB, LOG, RESULT, PREDICTIONS = "job.json", "log.jsonl", "result.json", "predictions"
DROPOUT, MIXING = 11, 12  # what a random stream is for, beside those of `clips.loading`
LINES_PER_EPOCH = 20
EPOCH_SAVE_SECONDS = 5.0  # the end of an epoch is no reason to write when the last checkpoint is newer than this
WATCHED = 20  # steps whose mean loss is compared with that of guessing
DIVERGED = 4.0  # times the loss of guessing
FIRST_CLIPS = 100  # after which more than half must have been decoded


class Stop:
    """Whether a run was asked to stop. While nothing could be saved (`at_once`), a signal interrupts instead."""

    def __init__(self):
        self.requested, self.at_once = False, True

    def __call__(self) -> bool:
        return self.requested

    def _signalled(self, _number: int, _frame: Any) -> None:
        if self.at_once or self.requested:
            raise KeyboardInterrupt
        self.requested = True


@contextlib.contextmanager
def stopping() -> Iterator[Stop]:
    """Ctrl-C and SIGTERM ask for a stop after the current step; a second one does not wait for it."""
    stop, before = Stop(), {}
    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, stop._signalled)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Kept(NamedTuple):
    """Decoded frames, and what they are of: digest and root of the data set, short side, whether memory is shared."""

    of: tuple[str, Path, int | None, bool]
    frames: Decoded


@dataclass
class Counters:
    """What a run has counted so far; part of each checkpoint, so that a run that goes on counts on."""

    step: int = 0
    replaced: int = 0
    drawn: int = 0
    training_seconds: float = 0.0
    waiting_seconds: float = 0.0
    evaluating_seconds: float = 0.0
    clips: int = 0
    seconds: float = 0.0  # of all starts, up to the last checkpoint
    pending: list[list[float]] = field(default_factory=list)  # loss and share of right answers since the last line
    recent: list[float] = field(default_factory=list)  # losses of the last `WATCHED` steps
    history: list[dict[str, Any]] = field(default_factory=list)
    best: int | None = None  # the step of the best evaluation
    loss: float = math.nan  # of the last line

    @property
    def best_top1(self) -> float:
        return max((entry["top1"] for entry in self.history), default=-1.0)


def train(
    job: Job,
    console: Console | None = None,
    stop: Callable[[], bool] | None = None,
    decoded: dict[str, Kept] | None = None,
) -> Result:
    """Trains, evaluates and stores the result in the job's folder; a finished job returns its stored result.

    Args:
        console: takes the progress; None for silence.
        stop: asked after each step; when it says True, a checkpoint is written and the run ends with `Stopped`.
        decoded: keeps what `preload` decodes, the last set of each split: hand the same dict to the next job of this
            process, and it decodes nothing that is there already.

    Raises:
        TrainingError: the run cannot start (its folder holds another job, the data are too few, ...), go on (the loss
            is not finite) or be stored (the disk is full).
        DataError, CheckpointError, KernelUnavailable: of the data set, the initial weights, the kernel.
    """
    console = console or Console(quiet=True)
    finished = stored_result(job)
    if finished is not None:
        return finished
    _check_device(job)
    threads = torch.get_num_threads()
    try:
        if job.threads:
            torch.set_num_threads(job.threads)
        with distributed.group(job) as group, torch.random.fork_rng(_cuda_devices(group)):
            console = console if group.first else Console(quiet=True)
            return _Run(job, group, console, stop, {} if decoded is None else decoded).result()
    finally:
        torch.set_num_threads(threads)


def _cuda_devices(group: Group) -> list[torch.device]:
    return [group.device] if group.device.type == "cuda" else []


def stored_result(job: Job) -> Result | None:
    """The result that the job's folder holds, if it is finished, with the controls that the job asks for.

    Raises: TrainingError, where the folder is of another job; it names the first field that differs.
    """
    folder = job.folder
    if not _begun(folder):
        return None
    _check_same(job, job.identity(), _read(folder / JOB)["identity"])
    if not (folder / RESULT).exists():
        return None
    result = Result.from_dict(_read(folder / RESULT))
    return result if result.controls or not job.controls else None


def _begun(folder: Path) -> bool:
    """Whether there is something to go on from; a start that failed before its first checkpoint leaves nothing."""
    return (folder / JOB).exists() and (bool(state.steps(folder)) or (folder / RESULT).exists())


def _check_same(job: Job, here: dict[str, Any], there: dict[str, Any]) -> None:
    differs = first_difference(here, there)
    if differs is not None:
        name, ours, theirs = differs
        raise TrainingError(
            f"{job.folder} holds another run: its {name} is {_short(theirs)}, this one's is {_short(ours)}; "
            "give another out=, or remove that folder to begin anew"
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise TrainingError(f"{path} cannot be read ({error}); remove its folder to begin anew") from error


class _Run:
    """One start of a job in one process: data, model, optimizer and counters, and what is done with them in turn."""

    def __init__(
        self,
        job: Job,
        group: Group,
        console: Console,
        stop: Callable[[], bool] | None,
        decoded: dict[str, Kept],
    ):
        self.job, self.group, self.console, self.stop, self.decoded = job, group, console, stop, decoded
        self.started = time.monotonic()
        self.device, self.recipe = group.device, job.recipe
        self.data = {
            split: datasets.load(job.data, split, job.root, **job.data_options) for split in ("train", job.test_split)
        }
        self._check_data()
        self.training, self.testing = self.data["train"], self.data[job.test_split]
        self.micro, self.parts = _parts(job, group, len(self.training))
        optimisation = self.recipe.optimisation
        self.per_epoch = len(self.training) // optimisation.batch_size
        self.steps = max(1, round(optimisation.epochs * self.per_epoch))
        self.last = min(self.steps, job.max_steps or self.steps)
        self.every = job.log_every or max(1, self.per_epoch // LINES_PER_EPOCH)
        self._store_job()
        self.counters = Counters()
        self.model = self._model()
        self.trained, self.annotator = self._token_labelled()
        saved = self._resume()
        self.forward = self._wrapped()
        self.optimizer = optimizer(self.trained, optimisation)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=job.dtype == "float16")
        if saved is not None:
            state.load_optimizer_state(self.trained, self.optimizer, saved["optimizer"])
            self.scaler.load_state_dict(saved["scaler"])
        self.forgotten = set()  # files told of

    # What a start needs

    def _check_data(self) -> None:
        for split, dataset in self.data.items():
            if not len(dataset):
                raise TrainingError(f"{self.job.data}, {split}: no videos are listed; look at the list")
            if len(dataset.classes) != self.job.classes:
                raise TrainingError(
                    f"{self.job.data}, {split}: {len(dataset.classes)} classes, but the job says {self.job.classes}"
                )

    def _store_job(self) -> None:
        """job.json, or a check that it is this job's: with data and initial weights of the same content."""
        job, content = self.job, {"micro_batch": self.micro}  # of None: what it comes to
        content |= {f"data.{split}": dataset.digest for split, dataset in self.data.items()}
        labels = self.recipe.token_labels
        for name, path in (("checkpoint", job.checkpoint), ("teacher", labels and labels.checkpoint)):
            if path is not None and Path(path).is_file():
                content[name] = file_digest(path)
        if self.group.first:
            path = job.folder / JOB
            if _begun(job.folder):
                _check_same(job, content, _read(path)["content"])
            else:
                stored = {"identity": job.identity(), "content": content, "job": job.to_dict()}
                with storing(job.folder):
                    write_json(stored, path)
        self.content = content

    def _model(self) -> Pyramid:
        """The model with its initial weights, the same in every process."""
        job = self.job
        kernel = kernels.resolve(job.kernel, self.device, getattr(torch, job.dtype), backward=True)
        torch.manual_seed(job.seed)
        model = create(ModelConfig.from_dict(job.config), job.classes, kernel=kernel)
        if self.recipe.linear_maps == "fan_in":
            scale_to_inputs(model)
        if job.checkpoint is not None:
            for note in initialise(model, job.checkpoint, job.inflate):
                self.console.print(escape(note), soft_wrap=True)
        if job.activation_checkpointing:
            model.activation_checkpointing = True
        self.kernel = kernel
        return model

    def _token_labelled(self) -> tuple[nn.Module, token_labels.Annotator | None]:
        """What is trained: the model, or the student around it; then with its teacher."""
        settings, job = self.recipe.token_labels, self.job
        if settings is None:
            return self.model, None
        if settings.checkpoint is None:
            raise TrainingError(
                f"recipe {self.recipe.name} needs a trained teacher ({settings.teacher}); "
                "give its weights as recipe.token_labels.checkpoint=FILE"
            )
        teacher = token_labels.annotator(settings.checkpoint, job.classes, settings.teacher, tuple(self.model.clip))
        return token_labels.TokenLabelled(self.model, settings), teacher.to(self.device)

    def _resume(self) -> dict[str, Any] | None:
        """Weights and counters of the newest good checkpoint; log.jsonl is cut back to its step."""
        folder = self.job.folder
        found = self.group.agreed(state.newest(folder) if self.group.first else None)
        if found is not None:
            saved = state.load(found, self.model)
            counters = dict(saved["counters"])
            if not self.group.first:  # what the processes have counted together is the first one's now
                counters |= {"replaced": 0}
            self.counters = Counters(**counters)
            if self.trained is not self.model:
                self.trained.position_head.load_state_dict(saved["position_head"])
            if self.counters.step < self.last:
                self.console.print(escape(f"going on from {found.name}"), soft_wrap=True)
        else:
            saved = None
        if self.group.first:
            _cut_log(folder / LOG, self.counters.step)
        self.trained.to(self.device)
        return saved

    def _wrapped(self) -> nn.Module:
        blocks = [block for stage in self.model.stages for block in stage.blocks]
        module = distributed.wrapped(self.trained, self.group, blocks)
        self.module = module
        return torch.compile(module) if self.job.compile else module

    def _preloaded(self, dataset: DataSet, resize: Any) -> Decoded | None:
        if not self.job.preload:
            return None
        short_side, shared = resize if isinstance(resize, int) else None, self.job.workers > 0
        of = (dataset.digest, dataset.root, short_side, shared)
        kept = self.decoded.get(dataset.split)
        if kept is None or kept.of != of:
            self.decoded.pop(dataset.split, None)  # two sets at once may be more than the memory takes
            with line(self.console) as say:
                told = partial(_told_of_decoding, say, dataset.split)
                kept = Kept(
                    of,
                    preload(
                        dataset, short_side, self.job.threads or 0, shared=shared, processes=self.group.beside, say=told
                    ),
                )
            self.decoded[dataset.split] = kept
        return kept.frames

    # What a start does

    def result(self) -> Result:
        """Trains what is left, evaluates, stores the result."""
        job, counters = self.job, self.counters
        if counters.step < self.last:
            self._train()
        predictions = self._evaluated(self.recipe.testing, job.order, PREDICTIONS)
        controls = {}
        if job.controls:
            for order in ("shuffled", "single"):
                controls[order] = self._evaluated(self.recipe.testing, order, f"{PREDICTIONS}-{order}")
        result = None
        if self.group.first:
            result = self._stored(predictions, controls)
        return self.group.agreed(result)

    def _batches(self) -> Iterator[dict[str, Any]]:
        """The micro-batches of this process that are left."""
        job, recipe, group = self.job, self.recipe, self.group
        preloaded = self._preloaded(self.training, recipe.augmentation.resize)
        clips = TrainingClips(
            self.training, recipe.sampling, recipe.augmentation, seed=job.seed, order=job.order, preloaded=preloaded
        )
        keys = Keys(
            len(self.training),
            recipe.optimisation.batch_size,
            self.micro,
            job.seed,
            self.counters.step,
            self.last,
            group.rank,
            group.world,
        )
        return training_batches(clips, keys, workers=job.workers, pin=self.device.type == "cuda")

    def _train(self) -> None:
        """All steps that are left. Raises: Stopped, TrainingError."""
        job, counters, batches = self.job, self.counters, self._batches()
        evaluate = max(1, round(job.evaluate_every * self.per_epoch)) if job.evaluate_every else None
        self.module.train()
        begun = saved = time.monotonic()
        first = counters.step
        logged = job if self.group.first else replace(job, tensorboard=False)
        with self._saving_when_stopped(), line(self.console) as say, board(logged) as logs:
            while counters.step < self.last:
                self._step(batches)
                step = counters.step
                if step % self.every == 0 or step == self.last:
                    self._log(logs)
                    if step < self.last:
                        say(self._told((time.monotonic() - begun) / (step - first)))
                elif self.device.type == "cpu" and self.group.world == 1:
                    self._watch()
                if evaluate and step % evaluate == 0 and step < self.last:
                    self._evaluate_now()
                    logs.add("top1_val", counters.history[-1]["top1"], step)
                age = time.monotonic() - saved
                stop, due = self.group.any(
                    self.stop is not None and self.stop(),
                    age > job.save_every_seconds or (step % self.per_epoch == 0 and age > EPOCH_SAVE_SECONDS),
                )
                if stop or due or step == self.last:
                    path, saved = self._save(), time.monotonic()
                if stop and step < self.last:
                    raise Stopped(f"stopped after step {step} of {self.last}; the same command goes on from {path}")
        self.console.print(escape(self._told(0.0)), soft_wrap=True)

    @contextlib.contextmanager
    def _saving_when_stopped(self) -> Iterator[None]:
        """A signal waits for the end of the step: something can be saved."""
        if not isinstance(self.stop, Stop):
            yield
            return
        self.stop.at_once = False
        try:
            yield
        finally:
            self.stop.at_once = True

    def _step(self, batches: Iterator[dict[str, Any]]) -> None:
        """One step of the optimizer: the micro-batches of this process, then the update."""
        counters, group, optimisation = self.counters, self.group, self.recipe.optimisation
        begun, sums = time.monotonic(), torch.zeros(2, device=self.device)
        try:
            for number in range(self.parts):
                waiting = time.monotonic()
                batch = self._next(batches)
                counters.waiting_seconds += time.monotonic() - waiting
                with distributed.accumulating(self.module, group, number == self.parts - 1):
                    sums += self._learn(batch, number * group.world + group.rank)
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"{self.device} has too little memory for {self.micro} clips at once ({str(error).splitlines()[0]}); "
                f"give micro_batch={max(1, self.micro // 2)}, or activation_checkpointing=true"
            ) from error
        if optimisation.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.trained.parameters(), optimisation.clip_norm)
        set_lr(self.optimizer, lr_factor(counters.step, self.per_epoch, optimisation))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        counters.step += 1
        counters.clips += optimisation.batch_size
        sums /= self.parts * torch.tensor([1, self.micro], device=self.device)
        counters.pending.append(sums if self.device.type != "cpu" else sums.tolist())
        counters.training_seconds += time.monotonic() - begun

    def _learn(self, batch: dict[str, Any], number: int) -> Tensor:
        """Adds the gradients of one micro-batch, the `number`-th of its step. Returns its loss and right answers."""
        recipe, device, augmentation = self.recipe, self.device, self.recipe.augmentation
        chance = (self.job.seed, self.counters.step, number)
        torch.manual_seed(_seed(DROPOUT, *chance))
        random = torch.Generator().manual_seed(_seed(MIXING, *chance))
        labels = batch["label"].to(device, non_blocking=True)
        clips = normalised(batch["clip"].to(device, non_blocking=True), augmentation.mean, augmentation.std)
        if augmentation.erasing:
            clips = erased(clips, augmentation.erasing, random)
        clips, targets = mixed(clips, labels, self.job.classes, recipe.mixing, random)
        narrow = self.job.dtype != "float32"
        with torch.autocast(device.type, getattr(torch, self.job.dtype), enabled=narrow):
            teacher = self.annotator and self.annotator(clips)
            answers = self.forward(clips)
        if self.annotator:
            loss = token_labels.loss(answers, targets, teacher, recipe.token_labels)
            answers = answers[0]
        else:
            loss = cross_entropy(answers.float(), targets)
        self.scaler.scale(loss / self.parts).backward()
        with torch.no_grad():
            return torch.stack((loss.detach().float(), (answers.argmax(-1) == labels).sum().float()))

    def _next(self, batches: Iterator[dict[str, Any]]) -> dict[str, Any]:
        """The next micro-batch, with what could not be decoded counted and told of."""
        counters = self.counters
        try:
            batch = next(batches)
        except LoadingError as error:  # from another process it comes with that process' traceback
            raise TrainingError(str(error).strip().splitlines()[-1].rpartition("LoadingError: ")[2]) from error
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise TrainingError(
                f"a process that loads clips has died ({str(error).splitlines()[0]}): most often the memory, or the "
                "shared memory /dev/shm, was full; give fewer workers= or preload=false"
            ) from error
        counters.replaced += int(batch["replaced"].sum())
        for index in set(batch["failed"]) - self.forgotten:
            self.forgotten.add(index)
            path = self.training.items[index].path
            logger.warning("%s cannot be decoded; another clip takes its place, here and in later epochs", path)
        if counters.drawn < FIRST_CLIPS <= counters.drawn + len(batch["label"]) and counters.replaced > FIRST_CLIPS / 2:
            names = ", ".join(sorted(self.training.items[index].path for index in self.forgotten)[:5])
            raise TrainingError(
                f"{counters.replaced} of the first {counters.drawn + len(batch['label'])} training clips cannot be "
                f"decoded, such as {names}; look at all files with "
                f"python -m harness.datasets check {self.job.data} root={self.job.root or self.training.root}"
            )
        counters.drawn += len(batch["label"])
        return batch

    # What is looked at in between

    def _flush(self) -> list[tuple[float, float]]:
        """Loss and share of right answers of each step since the last line, over all processes."""
        counters, group = self.counters, self.group
        if not counters.pending:
            return []
        local = torch.stack([torch.as_tensor(entry, dtype=torch.float64).cpu() for entry in counters.pending])
        counters.pending = local.tolist()
        return [(loss, right) for loss, right in group.mean(local).tolist()]

    def _watch(self) -> list[tuple[float, float]]:
        """Raises: TrainingError, where the loss of a step is not finite, or has grown far above that of guessing."""
        found, counters = self._flush(), self.counters
        first = counters.step - len(found)
        guessing = max(1.0, math.log(self.job.classes))
        for number, (loss, _) in enumerate(found):
            step = first + number + 1
            if not math.isfinite(loss):
                raise TrainingError(self._lost(f"the loss of step {step} is {loss}", step))
        recent = [*counters.recent, *(loss for loss, _ in found)][-WATCHED:]
        if len(recent) == WATCHED and statistics.fmean(recent) > DIVERGED * guessing:
            mean = statistics.fmean(recent)
            what = f"the loss diverges: {mean:.3g} over the last {WATCHED} steps, where guessing has {guessing:.3g}"
            raise TrainingError(self._lost(what, counters.step))
        return found

    def _lost(self, what: str, step: int) -> str:
        optimisation = self.recipe.optimisation
        rate = optimisation.lr * lr_factor(step - 1, self.per_epoch, optimisation)
        last = state.last_good(self.job.folder)
        kept = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
        return (
            f"{what} (step {step} of {self.last}, learning rate {rate:.3g}, dtype {self.job.dtype}); {kept}. Try a "
            "lower recipe.optimisation.lr and backbone_lr, a longer warm-up, recipe.optimisation.clip_norm=1, or "
            "float32, in another out="
        )

    def _log(self, logs: Any) -> None:
        """One line of log.jsonl; the steps since the last one are done with."""
        counters, optimisation, job = self.counters, self.recipe.optimisation, self.job
        found = self._watch()
        counters.recent = [*counters.recent, *(loss for loss, _ in found)][-WATCHED:]
        counters.pending = []
        mixing = self.recipe.mixing.mixup or self.recipe.mixing.cutmix
        counters.loss = statistics.fmean(loss for loss, _ in found)
        seconds = max(counters.training_seconds, 1e-9)
        self.line = {
            "step": counters.step,
            "epoch": round(counters.step / self.per_epoch, 4),
            "loss": counters.loss,
            "lr": optimisation.lr * lr_factor(counters.step - 1, self.per_epoch, optimisation),
            "top1": None if mixing else 100 * statistics.fmean(right for _, right in found),
            "clips_per_second": round(counters.clips / seconds, 3),
            "data_wait": round(counters.waiting_seconds / seconds, 4),
        }
        if self.group.first:
            with storing(job.folder), (job.folder / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.line) + "\n")
            for name in ("loss", "lr", "top1", "clips_per_second"):
                if self.line[name] is not None:
                    logs.add(name, self.line[name], counters.step)

    def _told(self, seconds_per_step: float) -> str:
        last, left = self.line, (self.last - self.counters.step) * seconds_per_step
        accuracy = "" if last["top1"] is None else f", top-1 {last['top1']:.1f} %"
        return (
            f"epoch {last['epoch']:.2f}/{self.recipe.optimisation.epochs:g}, step {last['step']}/{self.last}: "
            f"loss {last['loss']:.3f}{accuracy}, lr {last['lr']:.2g}, {last['clips_per_second']:.1f} clips/s, "
            f"{100 * last['data_wait']:.0f} % waiting for data" + (f", about {duration(left)} left" if left else "")
        )

    def _save(self) -> Path:
        """A checkpoint of this moment. Raises: TrainingError, where the loss is not finite or the disk is full."""
        found = self._watch()
        job, group, counters = self.job, self.group, self.counters
        distributed.average_statistics(self.model, group)
        whole = distributed.plain(self.model, group, self.kernel)
        values = {
            "optimizer": state.optimizer_state(self.trained, self.optimizer),
            "scaler": self.scaler.state_dict(),
            "counters": asdict(counters)
            | {
                "pending": [list(entry) for entry in found],
                "replaced": sum(group.gathered(counters.replaced)),
                "seconds": self._seconds(),
            },
        }
        if self.trained is not self.model:
            head = self.trained.position_head.state_dict()
            values["position_head"] = {name: distributed.whole(tensor).cpu() for name, tensor in head.items()}
        path, failure = None, None
        if group.first:
            try:
                path = state.save(job.folder, counters.step, whole, values, best=counters.best)
            except TrainingError as error:
                failure = error
        path, told = group.agreed((path, failure and str(failure)))
        if told:
            raise TrainingError(told) from failure
        return path

    def _seconds(self) -> float:
        """What all starts of the run have taken; `counters.seconds` is of those before this one."""
        return self.counters.seconds + time.monotonic() - self.started

    # Evaluation

    def _evaluate_now(self) -> None:
        """One view per video, as the published training codes validate."""
        counters, step = self.counters, self.counters.step
        predictions = self._evaluated(replace(self.recipe.testing, clips=1, crops=1), self.job.order, None)
        top1 = self.group.agreed(score(predictions).top1.value if self.group.first else None)
        better = top1 > counters.best_top1
        counters.history.append({"step": step, "epoch": round(step / self.per_epoch, 4), "top1": top1})
        if better:
            counters.best = step
            self._save()
        self.module.train()

    def _evaluated(self, testing: Testing, order: str, name: str | None) -> Predictions | None:
        """Predictions of the test videos by the model as it is; the first process has those of all."""
        begun, group = time.monotonic(), self.group
        preloaded = self._preloaded(self.testing, testing.resize)
        distributed.average_statistics(self.model, group)
        model = distributed.plain(self.model, group, self.kernel)
        keep = self.job.folder / f"{name}.npz" if name else None
        batch = max(testing.clips * testing.crops, min(self.micro, 64))
        with line(self.console) as say:
            found = tested(
                model, self.testing, testing, self.job, group, order=order, batch_size=batch, preloaded=preloaded,
                say=say, keep=keep, step=self.counters.step,
            )  # fmt: skip
        self.counters.evaluating_seconds += time.monotonic() - begun
        return found

    def _stored(self, predictions: Predictions, controls: dict[str, Predictions]) -> Result:
        job, counters = self.job, self.counters
        found = score(predictions)
        train_seconds, test_seconds = counters.training_seconds, counters.evaluating_seconds
        result = Result(
            scores=found.to_dict(),
            controls={order: score(of_one).to_dict() for order, of_one in controls.items()},
            steps=counters.step,
            epochs=counters.step / self.per_epoch,
            loss=counters.loss,
            parameters=sum(p.numel() for p in self.model.parameters()),
            seconds={
                "train": round(train_seconds, 3),
                "evaluate": round(test_seconds, 3),
                "total": round(self._seconds(), 3),
            },
            clips_per_second=counters.clips / max(train_seconds, 1e-9),
            data_wait=counters.waiting_seconds / max(train_seconds, 1e-9),
            replaced=counters.replaced,
            coverage=found.coverage,
            job=job.digest,
            recipe=digest(job.recipe.to_dict()),
            data={"train": self.content["data.train"], "test": self.content[f"data.{job.test_split}"]},
            checkpoint=f"{state.FOLDER}/{state.name_of(counters.step)}/{state.WEIGHTS}",
            provenance={
                **provenance.collect(),
                **provenance.of_torch(str(self.device)),
                "machine": provenance.machine(str(self.device)),
                "kernel": self.kernel,
                "processes": self.group.world,
                "strategy": job.strategy,
                "micro_batch": self.micro,
                "workers": job.workers,
                DECODERS: predictions.facts.get(RUN, {}).get(DECODERS, {}),  # of the test videos
            },
            history=counters.history,
        )
        with storing(job.folder):
            write_json(result.to_dict(), job.folder / RESULT)
        return result


def _check_device(job: Job) -> None:
    """Raises: TrainingError, where device, number format or kernel are not to be had here."""
    case = Case(job.model, job.model, job.config, device=job.device, dtype=job.dtype, kernel=job.kernel)
    reason = unavailable(case)
    if reason is None and job.strategy == "fsdp" and job.dtype == "float16":
        reason = "float16 with strategy=fsdp: the gradients' scaler does not see all of them; use bfloat16 or float32"
    if reason is None and job.recipe.augmentation.rand_augment and find_spec("kornia") is None:
        reason = RANDAUGMENT_NEEDS
    if reason is not None:
        raise TrainingError(reason)


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


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(2, np.uint32).astype(np.uint64) @ [1, 2**31])


def _told_of_decoding(say: Callable[[str], None], split: str, done: int, count: int) -> None:
    say(f"decoding {split} {done}/{count}")


def _cut_log(path: Path, step: int) -> None:
    """Leaves the lines up to a step: those after it are written again. A line that was cut off by a kill goes, too."""
    if not path.exists():
        return
    kept = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(text)["step"] <= step:
                kept.append(text)
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    with storing(path.parent):
        write_text("".join(f"{text}\n" for text in kept), path)
