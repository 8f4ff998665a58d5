"""What a run has counted so far, the lines of its log, the watch over its loss, and its result.

TensorBoard's logs stand beside the log where these are asked for.
"""

from __future__ import annotations

import contextlib
import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from backbones import Backbone
from harness.cost.facts import of_torch
from harness.evaluation.predictions import DECODERS, RUN, Predictions
from harness.evaluation.scores import scores as score
from harness.packages import late
from harness.progress import duration
from harness.training import start, state
from harness.training.distributed import Group
from harness.training.folder import LOG
from harness.training.job import Job, Result, TrainingError, digest
from harness.training.start import Schedule
from harness.training.state import storing
from records import provenance

WATCHED = 20  # steps whose mean loss is compared with that of guessing
DIVERGED = 4.0  # times the loss of guessing
LEARNT, FLAT = 99.0, 2.0  # percent of the clips right at the end of a course; percentage points that one more adds
TENTHS = 10  # parts of a training whose shares of right answers are kept


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
    right: list[list[float]] = field(default_factory=list)  # of each tenth of the steps: sum of shares right, steps
    courses: list[dict[str, Any]] = field(default_factory=list)  # those that ended without the training: end, top1

    @property
    def best_top1(self) -> float:
        return max((entry["top1"] for entry in self.history), default=-1.0)


Scalar = Callable[[str, float, int], None]
"""Takes name, value and step of what TensorBoard is to show."""


@contextlib.contextmanager
def board(job: Job) -> Iterator[Scalar]:
    """TensorBoard's writer of scalars where the job asks for one, else nothing."""
    if not job.tensorboard:
        yield lambda name, value, step: None
        return
    try:
        tensorboard = late("torch.utils.tensorboard")
    except ImportError as error:
        raise TrainingError(
            "tensorboard=true needs the package tensorboard: pip install attention-zoo[tensorboard], or leave it out"
        ) from error
    with tensorboard.SummaryWriter(str(job.folder / "tensorboard")) as writer:
        yield writer.add_scalar


class Journal:
    """Reads the counters of a run: for its log, for a person, and for what is wrong with its loss."""

    def __init__(self, job: Job, schedule: Schedule, group: Group, counters: Counters):
        self.job, self.schedule, self.group, self.counters = job, schedule, group, counters
        self.line: dict[str, Any] = {}  # the last one

    def watch(self) -> list[tuple[float, float]]:
        """Loss and share of right answers of each step since the last line, over all processes.

        Raises: TrainingError, where the loss of a step is not finite, or has grown far above that of guessing.
        """
        recorded, counters = self._pending(), self.counters
        first = counters.step - len(recorded)
        guessing = start.guessing(self.job)
        for number, (loss, _) in enumerate(recorded):
            step = first + number + 1
            if not math.isfinite(loss):
                raise TrainingError(self._lost(f"the loss of step {step} is {loss}", step))
        recent = [*counters.recent, *(loss for loss, _ in recorded)][-WATCHED:]
        if len(recent) == WATCHED and statistics.fmean(recent) > DIVERGED * guessing:
            mean = statistics.fmean(recent)
            problem = f"the loss diverges: {mean:.3g} over the last {WATCHED} steps, where guessing has {guessing:.3g}"
            raise TrainingError(self._lost(problem, counters.step))
        return recorded

    def _pending(self) -> list[tuple[float, float]]:
        counters = self.counters
        if not counters.pending:
            return []
        local = torch.stack([torch.as_tensor(entry, dtype=torch.float64).cpu() for entry in counters.pending])
        counters.pending = local.tolist()
        return [(loss, right) for loss, right in self.group.mean(local).tolist()]

    def _lost(self, problem: str, step: int) -> str:
        return (
            f"{problem} (step {step} of {self.schedule.last}, learning rate {self._rate(step):.3g}, dtype "
            f"{self.job.dtype}); {state.last_good_in_words(self.job.folder)}. Try a lower recipe.optimisation.lr and "
            "backbone_lr, a longer warm-up, recipe.optimisation.clip_norm=1, or float32, in another out="
        )

    def _rate(self, step: int) -> float:
        optimisation = self.job.recipe.optimisation
        return optimisation.lr * self.schedule.rate(step - 1, optimisation)

    def log(self, add: Scalar) -> None:
        """One line of log.jsonl; the steps since the last one are done with."""
        counters, job, mixing = self.counters, self.job, self.job.recipe.mixing
        recorded = self.watch()
        counters.recent = [*counters.recent, *(loss for loss, _ in recorded)][-WATCHED:]
        counters.pending = []
        self._count_right(counters.step - len(recorded), [right for _, right in recorded])
        counters.loss = statistics.fmean(loss for loss, _ in recorded)
        seconds = max(counters.training_seconds, 1e-9)
        mixed = mixing.mixup or mixing.cutmix
        self.line = {
            "step": counters.step,
            "epoch": round(counters.step / self.schedule.per_epoch, 4),
            "loss": counters.loss,
            "lr": self._rate(counters.step),
            "top1": None if mixed else 100 * statistics.fmean(right for _, right in recorded),
            "clips_per_second": round(counters.clips / seconds, 3),
            "data_wait": round(counters.waiting_seconds / seconds, 4),
        }
        if self.group.first:
            with storing(job.folder), (job.folder / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.line) + "\n")
            for name in ("loss", "lr", "top1", "clips_per_second"):
                if self.line[name] is not None:
                    add(name, self.line[name], counters.step)

    def _count_right(self, first: int, shares: list[float]) -> None:
        """Adds the shares of right answers of the steps from `first` on (from 0) to their tenths of the course."""
        tenths = self.counters.right
        tenths += [[0.0, 0] for _ in range(TENTHS - len(tenths))]
        for step, share in enumerate(shares, first):
            done, length = self.schedule.place(step)
            of_tenth = tenths[done * TENTHS // length]
            of_tenth[0] += share
            of_tenth[1] += 1

    def goes_on(self) -> bool:
        """At the end of a course: whether another one, of as many steps as all so far, is worth it and fits.

        It is while the share of right answers at the end still rose by more than chance makes of the course before, or
        is far from its top; and where the training has no more than half of its minutes behind it.
        """
        counters, job = self.counters, self.job
        share, steps = [of_part for of_part in counters.right if of_part[1]][-1]
        end, noise = 100 * share / steps, 200 * (2 * 0.25 / (steps * job.recipe.optimisation.batch_size)) ** 0.5
        before = counters.courses[-1]["top1"] if counters.courses else 0.0
        if end >= LEARNT or (counters.courses and end - before < max(FLAT, noise)):
            return False
        spent = counters.training_seconds + counters.evaluating_seconds
        if job.minutes is not None and 2 * spent > 60 * job.minutes:
            return False
        counters.courses.append({"end": counters.step, "top1": round(end, 2)})
        counters.right = []
        return True

    def in_words(self, seconds_per_step: float) -> str:
        """The last line as a person reads it."""
        last, remaining = self.line, (self.schedule.last - self.counters.step) * seconds_per_step
        accuracy = "" if last["top1"] is None else f", top-1 {last['top1']:.1f} %"
        epochs = self.schedule.last / self.schedule.per_epoch
        return (
            f"epoch {last['epoch']:.2f}/{epochs:.4g}, step {last['step']}/{self.schedule.last}: "
            f"loss {last['loss']:.3f}{accuracy}, lr {last['lr']:.2g}, {last['clips_per_second']:.1f} clips/s, "
            f"{100 * last['data_wait']:.0f} % waiting for data"
            + (f", about {duration(remaining)} left" if remaining else "")
        )

    def outcome(
        self,
        predictions: Predictions,
        controls: dict[str, Predictions],
        sets: dict[str, Predictions],
        *,
        content: dict[str, Any],
        labels: list[list[int]],
        kernel: str,
        model: Backbone,
        seconds: float,
    ) -> Result:
        """What result.json holds. `sets`: predictions of each of several data sets, of which `predictions` are all.

        `content`: digests of the data, by split; `labels`: of what is trained on, by data set; `seconds`: of all starts
        of the run.
        """
        job, schedule, group, counters = self.job, self.schedule, self.group, self.counters
        scores, device = score(predictions), str(group.device)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        train_seconds, test_seconds = counters.training_seconds, counters.evaluating_seconds
        return Result(
            scores=scores.to_dict(),
            controls={order: score(control).to_dict() for order, control in controls.items()},
            steps=counters.step,
            epochs=counters.step / schedule.per_epoch,
            loss=counters.loss,
            parameters=sum(p.numel() for p in model.parameters()),
            trained=trained if model.learns != "all" else None,
            seconds={"train": round(train_seconds, 3), "evaluate": round(test_seconds, 3), "total": round(seconds, 3)},
            clips_per_second=counters.clips / max(train_seconds, 1e-9),
            data_wait=counters.waiting_seconds / max(train_seconds, 1e-9),
            replaced=counters.replaced,
            coverage=scores.coverage,
            job=job.digest,
            recipe=digest(job.recipe.to_dict()),
            data={"train": content["data.train"], "test": content[f"data.{job.test_split}"]},
            checkpoint=f"{state.FOLDER}/{state.name_of(counters.step)}/{state.WEIGHTS}",
            provenance={
                **provenance.collect(),
                **of_torch(device),
                "machine": provenance.machine(device),
                "kernel": kernel,
                "processes": group.world,
                "strategy": job.strategy,
                "micro_batch": schedule.micro,
                "workers": job.workers,
                DECODERS: predictions.facts.get(RUN, {}).get(DECODERS, {}),  # of the test videos
            },
            history=counters.history,
            sets={name: score(set_predictions).to_dict() for name, set_predictions in sets.items()},
            training=_learning(job, counters, labels),
        )


def _learning(job: Job, counters: Counters, labels: list[list[int]]) -> dict[str, Any]:
    """What `Result.training` says."""
    tenths = [(share, steps) for share, steps in counters.right if steps]  # a run of few steps has fewer parts
    commonest = sum(max(Counter(of_set).values()) for of_set in labels) / sum(map(len, labels))
    return {
        "curve": [round(100 * share / steps, 2) for share, steps in tenths],
        "clips": tenths[-1][1] * job.recipe.optimisation.batch_size,
        "chance": round(100 * max(commonest, 1 / job.classes), 3),
        **({"courses": counters.courses} if job.until_flat else {}),
    }
