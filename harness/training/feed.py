"""What feeds the steps: frames that are kept in memory, and micro-batches of which broken clips are counted."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from harness.clips.loading import Decoded, Keys, TrainingClips, loaded, preload
from harness.clips.several import SetClips, SetKeys, seed_of
from harness.datasets import DataSet
from harness.progress import line
from harness.training.distributed import Group
from harness.training.job import Job, TrainingError
from harness.training.journal import Counters
from harness.training.start import Schedule

logger = logging.getLogger(__name__)

FIRST_CLIPS = 100  # after which more than half must have been decoded


class Kept(NamedTuple):
    """Decoded frames, and what they are of: digest and root of the data set, short side, whether they were smoothed,
    whether memory is shared."""

    source: tuple[str, Path, int | None, bool, bool]
    frames: Decoded


def frames(
    sets: list[DataSet], resize: Any, job: Job, processes: int, kept: dict[str, Kept], console: Console
) -> list[Decoded | None]:
    """All frames of the data sets of a split, where the job wants them in memory; they stay in `kept`, the last ones of
    each split.

    `processes` of this machine do the same at the same time, each with frames of its own.

    Raises: LoadingError, where memory does not suffice for all of them.
    """
    if not job.preload:
        return [None] * len(sets)
    short_side, shared = resize if isinstance(resize, int) else None, job.workers > 0
    smooth = job.recipe.augmentation.antialias
    split = sets[0].split
    sources = {
        f"{split} {number}" if number else split: (dataset.digest, dataset.root, short_side, smooth, shared)
        for number, dataset in enumerate(sets)
    }
    for key in [key for key in kept if key.split()[0] == split and kept[key].source != sources.get(key)]:
        del kept[key]  # two sets at once may be more than the memory takes
    for dataset, (key, source) in zip(sets, sources.items(), strict=True):
        if key not in kept:
            with line(console) as say:
                decoded = preload(
                    dataset, short_side, job.threads or 0,
                    antialias=smooth, shared=shared, processes=processes, say=say,
                )  # fmt: skip
            kept[key] = Kept(source, decoded)
    return [kept[key].frames for key in sources]


def keys(sets: list[DataSet], job: Job, micro: int, **places: int) -> Keys:
    """The order in which the clips of a job's training sets are taken; `places` as in `Keys`."""
    settings, sizes = job.many_sets, tuple(map(len, sets))
    common = dict(batch=job.recipe.optimisation.batch_size, micro=micro, seed=job.seed, **places)
    if not job.sets:
        return Keys(count=sizes[0], **common)
    copies = tuple(settings.of(name).copies for name in job.sets)
    count = sum(size * times for size, times in zip(sizes, copies, strict=True))
    return SetKeys(count=count, sizes=sizes, copies=copies, balanced=settings.draw == "balanced", **common)


def batches(
    sets: list[DataSet],
    preloaded: list[Decoded | None],
    job: Job,
    schedule: Schedule,
    group: Group,
    counters: Counters,
) -> Iterator[dict[str, Any]]:
    """The micro-batches of this process that are left; what could not be decoded is counted and told of.

    Raises: TrainingError, while they are taken, where clips cannot be loaded.
    """
    parts = []
    for number, (dataset, frames) in enumerate(zip(sets, preloaded, strict=True)):
        recipe = job.recipe.of_set(list(job.sets)[number]) if job.sets else job.recipe
        seed = seed_of(job.seed, number) if job.sets else job.seed
        parts.append(
            TrainingClips(dataset, recipe.sampling, recipe.augmentation, seed=seed, order=job.order, preloaded=frames)
        )
    clips = SetClips(parts) if job.sets else parts[0]
    order = keys(sets, job, schedule.micro, first=counters.step, last=schedule.last, rank=group.rank, world=group.world)
    taken = loaded(clips, order, workers=job.workers, pin=group.device.type == "cuda")
    return _counted(taken, clips.path, job, counters)


def _counted(
    batches: Iterator[dict[str, Any]], path: Callable[[int], str], job: Job, counters: Counters
) -> Iterator[dict[str, Any]]:
    failed: set[int] = set()  # files told of
    for batch in batches:
        counters.replaced += int(batch["replaced"].sum())
        for index in set(batch["failed"]) - failed:
            failed.add(index)
            logger.warning("%s cannot be decoded; another clip takes its place, here and in later epochs", path(index))
        drawn = counters.drawn + len(batch["label"])
        if counters.drawn < FIRST_CLIPS <= drawn and counters.replaced > FIRST_CLIPS / 2:
            names = ", ".join(sorted(map(path, failed))[:5])
            data, root = (job.data, job.root) if isinstance(job.data, str) else ("NAME", "FOLDER")
            words = shlex.join([data, *([f"root={root}"] if root else [])])
            raise TrainingError(
                f"{counters.replaced} of the first {drawn} training clips cannot be decoded, such as {names}; look at "
                f"all files with python -m harness.datasets check {words}"
            )
        counters.drawn = drawn
        yield batch
