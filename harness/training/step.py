"""One step of training: what is trained, its optimizer, and what a batch does to them.

The dropout and the mixing of a micro-batch follow from the seed, the step and its number in it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backbones.family import Backbone
from harness.clips.mixing import mixed
from harness.clips.transforms import erased, normalised
from harness.training import distributed, state
from harness.training.distributed import Group
from harness.training.job import Job, TrainingError
from harness.training.journal import Counters
from harness.training.objective import Batch, Objective
from harness.training.optimizer import optimizer, set_lr
from harness.training.start import Schedule, autocast

DROPOUT, MIXING = 11, 12  # what a random stream is for, beside those of `clips.loading`


class Learner:
    """What a step changes: `trained` (the model, or what wraps it), its optimizer and the gradients' scaler.

    `module` is what the processes share.
    """

    def __init__(
        self,
        job: Job,
        schedule: Schedule,
        group: Group,
        counters: Counters,
        model: Backbone,
        trained: nn.Module,
        objective: Objective,
    ):
        self.job, self.schedule, self.group, self.counters = job, schedule, group, counters
        self.trained, self.objective, self.device = trained, objective, group.device
        self.module = distributed.wrapped(trained, group, list(model.blocks().values()))
        self.forward = autocast(job, group.device)(torch.compile(self.module) if job.compile else self.module)
        self.optimizer = optimizer(trained, job.recipe.optimisation)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=job.dtype == "float16")

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it beside the weights. Every process must call it."""
        return {
            "optimizer": state.optimizer_state(self.trained, self.optimizer),
            "scaler": self.scaler.state_dict(),
        }

    def load(self, saved: dict[str, Any]) -> None:
        """Goes on with what `state` returned."""
        state.load_optimizer_state(self.trained, self.optimizer, saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])

    def step(self, batches: Iterator[dict[str, Any]]) -> None:
        """One step of the optimizer: the micro-batches of this process, then the update.

        Raises: TrainingError, where a micro-batch is too large for the device.
        """
        counters, group, optimisation = self.counters, self.group, self.job.recipe.optimisation
        micro, parts = self.schedule.micro, self.schedule.parts
        begun, sums = time.monotonic(), torch.zeros(2, device=self.device)
        try:
            for number in range(parts):
                waiting = time.monotonic()
                batch = next(batches)
                counters.waiting_seconds += time.monotonic() - waiting
                with distributed.accumulating(self.module, group, number == parts - 1):
                    sums += self._learn(batch, number * group.world + group.rank)
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"{self.device} has too little memory for {micro} clips at once ({str(error).splitlines()[0]}); "
                f"give micro_batch={max(1, micro // 2)}, or activation_checkpointing=true"
            ) from error
        if optimisation.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.trained.parameters(), optimisation.clip_norm)
        set_lr(self.optimizer, self.schedule.rate(counters.step, optimisation))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        counters.step += 1
        counters.clips += optimisation.batch_size
        sums /= parts * torch.tensor([1, micro], device=self.device)
        counters.pending.append(sums if self.device.type != "cpu" else sums.tolist())
        counters.training_seconds += time.monotonic() - begun

    def _learn(self, batch: dict[str, Any], number: int) -> Tensor:
        """Adds the gradients of one micro-batch, the `number`-th of its step. Returns its loss and right answers."""
        job, recipe, device = self.job, self.job.recipe, self.device
        augmentation = recipe.augmentation
        chance = (job.seed, self.counters.step, number)
        torch.manual_seed(_seed(DROPOUT, *chance))
        random = torch.Generator().manual_seed(_seed(MIXING, *chance))
        labels = batch["label"].to(device, non_blocking=True)
        clips = normalised(batch["clip"].to(device, non_blocking=True), augmentation.mean, augmentation.std)
        if augmentation.erasing:
            clips = erased(clips, augmentation.erasing, random)
        clips, targets = mixed(clips, labels, job.classes, recipe.mixing, random)
        loss, right = self.objective(self.forward, Batch(clips, targets, labels))
        self.scaler.scale(loss / self.schedule.parts).backward()
        return torch.stack((loss.detach().float(), right.float()))


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(2, np.uint32).astype(np.uint64) @ [1, 2**31])
