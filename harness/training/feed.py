"""What feeds the steps: frames that are kept in memory, and micro-batches of which broken clips are counted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from harness.clips.loading import Decoded, Keys, TrainingClips, preload, training_batches
from harness.datasets import DataSet
from harness.progress import line
from harness.training.distributed import Group
from harness.training.job import Job, TrainingError
from harness.training.journal import Counters
from harness.training.start import Schedule

logger = logging.getLogger(__name__)

FIRST_CLIPS = 100  # after which more than half must have been decoded


class Kept(NamedTuple):
    """Decoded frames, and what they are of: digest and root of the data set, short side, whether memory is shared."""

    of: tuple[str, Path, int | None, bool]
    frames: Decoded


def frames(
    dataset: DataSet, resize: Any, job: Job, processes: int, kept: dict[str, Kept], console: Console
) -> Decoded | None:
    """All frames of a data set, where the job wants them in memory; they stay in `kept`, the last set of each split.

    `processes` of this machine do the same at the same time, each with frames of its own.

    Raises: LoadingError, where memory does not suffice for all of them.
    """
    if not job.preload:
        return None
    short_side, shared = resize if isinstance(resize, int) else None, job.workers > 0
    of = (dataset.digest, dataset.root, short_side, shared)
    there = kept.get(dataset.split)
    if there is None or there.of != of:
        kept.pop(dataset.split, None)  # two sets at once may be more than the memory takes
        with line(console) as say:
            told = partial(_told_of_decoding, say, dataset.split)
            decoded = preload(dataset, short_side, job.threads or 0, shared=shared, processes=processes, say=told)
        kept[dataset.split] = there = Kept(of, decoded)
    return there.frames


def _told_of_decoding(say: Callable[[str], None], split: str, done: int, count: int) -> None:
    say(f"decoding {split} {done}/{count}")


def batches(
    dataset: DataSet, preloaded: Decoded | None, job: Job, schedule: Schedule, group: Group, counters: Counters
) -> Iterator[dict[str, Any]]:
    """The micro-batches of this process that are left; what could not be decoded is counted and told of.

    Raises: TrainingError, while they are taken, where clips cannot be loaded.
    """
    recipe = job.recipe
    clips = TrainingClips(
        dataset, recipe.sampling, recipe.augmentation, seed=job.seed, order=job.order, preloaded=preloaded
    )
    keys = Keys(
        len(dataset),
        recipe.optimisation.batch_size,
        schedule.micro,
        job.seed,
        counters.step,
        schedule.last,
        group.rank,
        group.world,
    )
    loaded = training_batches(clips, keys, workers=job.workers, pin=group.device.type == "cuda")
    return _counted(loaded, dataset, job, counters)


def _counted(
    loaded: Iterator[dict[str, Any]], dataset: DataSet, job: Job, counters: Counters
) -> Iterator[dict[str, Any]]:
    failed: set[int] = set()  # files told of
    for batch in loaded:
        counters.replaced += int(batch["replaced"].sum())
        for index in set(batch["failed"]) - failed:
            failed.add(index)
            path = dataset.items[index].path
            logger.warning("%s cannot be decoded; another clip takes its place, here and in later epochs", path)
        drawn = counters.drawn + len(batch["label"])
        if counters.drawn < FIRST_CLIPS <= drawn and counters.replaced > FIRST_CLIPS / 2:
            names = ", ".join(sorted(dataset.items[index].path for index in failed)[:5])
            raise TrainingError(
                f"{counters.replaced} of the first {drawn} training clips cannot be decoded, such as {names}; look at "
                f"all files with python -m harness.datasets check {job.data} root={job.root or dataset.root}"
            )
        counters.drawn = drawn
        yield batch
