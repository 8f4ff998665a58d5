"""Clips for training and testing: data sets in, uint8 tensors out, the same whatever number of processes loads them.

The order of the clips and everything random about one clip follow from (seed, epoch, index) alone. So a run that goes
on after a stop, or on two devices instead of one, sees what it would have seen.
"""

from __future__ import annotations

import itertools
import math
import os
import shlex
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from harness.clips.decoding import VideoError
from harness.clips.reading import LoadingError, opened
from harness.clips.transforms import augmented, test_view, with_short_side
from harness.datasets import DataSet, Item, readable
from harness.processes import deaf
from harness.spec.clip import Augmentation
from harness.spec.recipe import Testing
from harness.spec.sampling import Sampling, reordered, test_indices, training_indices
from records import provenance

TRIES = 10  # other clips that are tried in place of one that cannot be decoded
ORDER, CLIP, CONTROL = 1, 2, 3  # what a random stream is for: no two purposes share one
SHARE_OF_MEMORY = 0.8  # of what is available, that clips may take
BLOCK_BYTES = 256 * 2**20
WAIT_SECONDS = 900.0  # for a batch of another process: a read that hangs would never end
AT_ONCE = 32  # videos that are decoded between two looks at the memory
CONTEXT = "forkserver" if "forkserver" in torch.multiprocessing.get_all_start_methods() else "spawn"


def numpy_random(*numbers: int) -> np.random.Generator:
    """A stream of random numbers of its own for each tuple of whole numbers (0 or more)."""
    return np.random.default_rng(np.random.SeedSequence(numbers))


@dataclass(frozen=True)
class Keys:
    """The (epoch, index) keys of the clips of one process: a list for each micro-batch of the steps `first` to `last`.

    The batch of step s is the next `batch` clips of the epoch's permutation, and micro-batch k of it the k-th `micro`
    of these; process r of w has the micro-batches r, r + w, ... So the micro-batches do not depend on how many
    processes share them. What is left of an epoch after its last whole batch is not used.
    """

    count: int
    batch: int
    micro: int
    seed: int
    first: int
    last: int
    rank: int = 0
    world: int = 1

    @property
    def steps_per_epoch(self) -> int:
        return self.count // self.batch

    def __len__(self) -> int:
        return (self.last - self.first) * (self.batch // self.micro // self.world)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for epoch, steps in itertools.groupby(range(self.first, self.last), lambda step: step // self.steps_per_epoch):
            order = self.order(epoch)
            for step in steps:
                start = step % self.steps_per_epoch * self.batch
                for k in range(self.rank, self.batch // self.micro, self.world):
                    yield order[start + k * self.micro : start + (k + 1) * self.micro]

    def order(self, epoch: int) -> list[tuple[int, int]]:
        """The keys of all clips of an epoch, in the order in which they are taken."""
        places = numpy_random(ORDER, self.seed, epoch).permutation(self.count)
        return [(epoch, int(index)) for index in places]


class Place(NamedTuple):
    """Where the frames of one item lie: from `start` of a block on."""

    block: int
    start: int
    shape: tuple[int, ...]
    fps: float | None
    decoder: str


class Decoded:
    """All frames of a data set in memory, as uint8 with the short side of `preload`; a text where an item failed."""

    def __init__(self, blocks: list[Tensor], places: list[Place | str]):
        self.blocks, self.places = blocks, places

    def part(self, indices: slice) -> Decoded:
        """Of some items only; the memory is the same."""
        return Decoded(self.blocks, self.places[indices])

    def __len__(self) -> int:
        return len(self.places)

    def frames(self, index: int) -> tuple[Tensor, float | None]:
        """uint8 "t h w 3", not to be written into, and frames per second.

        Raises: VideoError for an item that could not be decoded.
        """
        place = self.places[index]
        if isinstance(place, str):
            raise VideoError(place)
        size = math.prod(place.shape)
        return self.blocks[place.block][place.start : place.start + size].view(place.shape), place.fps

    def decoder(self, index: int) -> str:
        """What has decoded an item that could be."""
        return self.places[index].decoder


def _read(
    dataset: DataSet, preloaded: Decoded | None, index: int, choose: Callable[[int, float | None], list[list[int]]]
) -> tuple[list[Tensor], str]:
    """The frames that `choose(total, fps)` names, uint8 "t h w 3" for each of its lists, and what has decoded them.

    Raises: VideoError.
    """
    item = dataset.items[index]
    try:
        if preloaded is not None:
            frames, fps = preloaded.frames(index)
            return [frames[torch.tensor(indices)] for indices in choose(len(frames), fps)], preloaded.decoder(index)
        with opened(dataset, item) as source:
            lists = choose(source.total, source.fps)
            distinct = sorted({index for indices in lists for index in indices})
            frames, decoder = torch.from_numpy(source.read(distinct)), source.decoder()
        place = {index: number for number, index in enumerate(distinct)}
        return [frames[torch.tensor([place[index] for index in indices])] for indices in lists], decoder
    except OSError as error:
        raise VideoError(_unreadable(dataset, item, error)) from error


def _unreadable(dataset: DataSet, item: Item, error: OSError) -> str:
    return f"{dataset.path(item)}: {error.strerror or error}; check the file"


class TrainingClips(Dataset):
    """Augmented clips by key (epoch, index); all that is random about one follows from the seed and its key.

    An item is {"clip": uint8 "3 t h w", "label", "index", "replaced": bool, "failed": indices tried in vain}. A clip
    that cannot be decoded is replaced by another one, drawn at random.

    Clips of a `sided` data set are not flipped. With `augmentation.mirror` those are whose class has a partner in the
    data set's `mirror`, and they take its label.
    """

    def __init__(
        self,
        dataset: DataSet,
        sampling: Sampling,
        augmentation: Augmentation,
        *,
        seed: int = 0,
        order: str = "ordered",
        preloaded: Decoded | None = None,
    ):
        self.dataset, self.sampling, self.seed, self.order = dataset, sampling, seed, order
        self.preloaded = preloaded
        # Where left and right matter, only this class knows what class a flipped clip is of, and so flips.
        self.mirror = dataset.mirror if dataset.sided and augmentation.mirror else None
        self.flip = augmentation.flip
        self.augmentation = replace(augmentation, flip=0.0) if dataset.sided else augmentation

    def __len__(self) -> int:
        return len(self.dataset)

    def path(self, index: int) -> str:
        """Of an item, as its data set lists it."""
        return self.dataset.items[index].path

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        failed, reason = [], ""
        for attempt in range(TRIES + 1):
            random = numpy_random(CLIP, self.seed, epoch, index, attempt)
            chosen = int(random.integers(len(self.dataset))) if attempt else index
            try:
                pixels, label = self._clip(chosen, random)
            except VideoError as error:
                failed.append(chosen)
                reason = readable(str(error))
                continue
            return {"clip": pixels, "label": label, "index": chosen, "replaced": bool(failed), "failed": failed}
        raise LoadingError(
            f"{len(failed)} clips drawn in turn cannot be decoded, the last one: {reason}. Look at all files with "
            f"python -m harness.datasets check {self.dataset.name} {shlex.quote(f'root={self.dataset.root}')}"
        )

    def _clip(self, index: int, random: np.random.Generator) -> tuple[Tensor, int]:
        (pixels,), _ = _read(
            self.dataset,
            self.preloaded,
            index,
            lambda total, fps: [reordered(training_indices(total, self.sampling, random, fps), self.order, random)],
        )
        generator = torch.Generator().manual_seed(int(random.integers(2**62)))
        clip, label = augmented(pixels, self.augmentation, generator), self.dataset.items[index].label
        if self.mirror and label in self.mirror and random.random() < self.flip:
            clip, label = clip.flip(-1), self.mirror[label]
        return clip, label


class TestClips(Dataset):
    """The views of each test video: {"views": uint8 "v 3 t h w" or why it cannot be decoded, "decoder": its name or
    None, "label", "index"}.

    Views are ordered by clip, then crop. `size` is the side of a view in pixels.
    """

    __test__ = False  # not a test, whatever pytest thinks of its name

    def __init__(
        self,
        dataset: DataSet,
        sampling: Sampling,
        testing: Testing,
        size: int,
        *,
        order: str = "ordered",
        seed: int = 0,
        antialias: bool = False,
        preloaded: Decoded | None = None,
    ):
        self.dataset, self.sampling, self.testing, self.size = dataset, sampling, testing, size
        self.order, self.seed, self.antialias, self.preloaded = order, seed, antialias, preloaded

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def views(self) -> list[tuple[int, int]]:
        """(clip, crop) of each view."""
        return [(clip, crop) for clip in range(self.testing.clips) for crop in range(self.testing.crops)]

    def __getitem__(self, index: int) -> dict[str, Any]:
        random, testing, decoder = numpy_random(CONTROL, self.seed, index), self.testing, None
        try:
            clips, decoder = _read(
                self.dataset,
                self.preloaded,
                index,
                lambda total, fps: [
                    reordered(indices, self.order, random)
                    for indices in test_indices(total, self.sampling, testing.clips, fps)
                ],
            )
            views: Tensor | str = torch.stack(
                [
                    test_view(pixels, self.size, testing.resize, crop, testing.crops, self.antialias)
                    for pixels in clips
                    for crop in range(testing.crops)
                ]
            )
        except VideoError as error:
            views = readable(str(error))
        return {"views": views, "decoder": decoder, "label": self.dataset.items[index].label, "index": index}


def collated(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """One micro-batch: {"clip": "b 3 t h w", "label": "b", "index": "b", "replaced": "b", "failed": all of them}."""
    batch = {key: default_collate([s[key] for s in samples]) for key in ("clip", "label", "index", "replaced")}
    return {**batch, "failed": [index for s in samples for index in s["failed"]]}


def loaded(
    clips: Dataset, batches: Any, collate: Callable = collated, *, workers: int = 0, pin: bool = False
) -> Iterator[Any]:
    """What a DataLoader gives over lists of keys, in order, such as the micro-batches of one process.

    With workers each batch is loaded as a whole by one of these, which have one thread and leave Ctrl-C to this one.

    Raises: LoadingError in one line, where memory or open files do not suffice for these processes, or none answers.
    """
    loader = DataLoader(
        clips,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=pin,
        multiprocessing_context=_context() if workers else None,
        worker_init_fn=_start_worker if workers else None,
        prefetch_factor=4 if workers else None,
        timeout=WAIT_SECONDS if workers else 0,
    )
    try:
        yield from loader
    except LoadingError as error:  # from another process it comes with that process' traceback
        raise LoadingError(str(error).strip().splitlines()[-1].rpartition("LoadingError: ")[2]) from error
    except (RuntimeError, OSError) as error:
        if not workers:
            raise
        if "timed out" in str(error):
            raise LoadingError(
                f"no clip has come for {WAIT_SECONDS:g} s: most often a disk or a network that does not answer; "
                "see whether the files can be read, then give the same command again"
            ) from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise LoadingError(
            f"a process that loads clips has failed ({reason}): most often the memory, the shared memory /dev/shm or "
            "the number of open files (ulimit -n) is too small; give fewer workers= (0 needs none of these), or "
            "preload=false"
        ) from error


def shared(sample: dict[str, Any]) -> dict[str, Any]:
    """A sample as it is, its tensors where another process can read them.

    In a worker, before they are put into its queue: what fails in the queue's own thread would reach nobody.
    """
    if get_worker_info() is not None:
        for value in sample.values():
            if isinstance(value, Tensor):
                value.share_memory_()
    return sample


def _context() -> Any:
    """Processes that share no thread with this one. The server they are forked from imports once what all need."""
    context = torch.multiprocessing.get_context(CONTEXT)
    if CONTEXT == "forkserver":
        context.set_forkserver_preload(["harness.clips.loading"])
        with deaf():
            forkserver.ensure_running()
    return context


def _start_worker(_number: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def preload(
    dataset: DataSet,
    short_side: int | None = None,
    workers: int = 0,
    *,
    antialias: bool = False,
    shared: bool = False,
    processes: int = 1,
    say: Callable[[str], None] | None = None,
) -> Decoded:
    """Decodes all frames of a data set once, with the short side resized to `short_side` (None: as decoded).

    Clips that are then made of them equal those that are decoded each time, if `short_side` is what the transforms
    resize to. A file that is damaged anywhere counts as a failure as a whole.

    Args:
        workers: threads that decode; 0 for one per core that this process may use.
        antialias: smooth frames that shrink.
        shared: put the frames where worker processes can read them.
        processes: how many processes of this machine do the same, each with frames of its own.
        say: takes a line of text about the progress after each item.

    Raises: LoadingError, where the memory does not suffice.
    """
    count, store = len(dataset), _Store(shared)

    def decode(index: int) -> tuple[int, Tensor | str, float | None, str]:
        item = dataset.items[index]
        try:
            with opened(dataset, item) as source:
                frames = torch.from_numpy(source.read(range(source.total)))
                fps, decoder = source.fps, source.decoder()
        except VideoError as error:
            return index, str(error), None, ""
        except OSError as error:
            return index, _unreadable(dataset, item, error), None, ""
        smaller = frames if short_side is None else with_short_side(frames, short_side, antialias)
        return index, smaller, fps, decoder

    places: list[Any] = [None] * count
    threads = torch.get_num_threads()
    number = workers or provenance.usable_cores()
    try:
        torch.set_num_threads(1)
        # A few, spread over the list, tell whether the rest will fit.
        first = sorted({round(i * (count - 1) / 7) for i in range(8)}) if count > 8 else []
        rest = [index for index in range(count) if index not in set(first)]
        with ThreadPoolExecutor(number) as pool:
            done = 0
            for part in (first, rest):
                for start in range(0, len(part), AT_ONCE):  # not all at once: what is decoded waits in memory
                    for index, frames, fps, decoder in pool.map(decode, part[start : start + AT_ONCE]):
                        places[index] = frames if isinstance(frames, str) else store.add(frames, fps, decoder)
                        done += 1
                        if say:
                            say(f"decoding {dataset.split} {done}/{count}")
                    _check_memory(dataset, store, done, count, processes)
    finally:
        torch.set_num_threads(threads)
    return Decoded(store.blocks, places)


def _check_memory(dataset: DataSet, store: _Store, done: int, count: int, processes: int) -> None:
    remaining = store.used / max(done, 1) * (count - done) * processes
    available = psutil.virtual_memory().available
    where, room = "memory", available * SHARE_OF_MEMORY
    if store.shared and os.path.isdir("/dev/shm"):
        free = shutil.disk_usage("/dev/shm").free
        where, room = ("memory", room) if room < free else ("/dev/shm, the shared memory,", free)
    if remaining > room:
        per_process = f", in each of {processes} processes" if processes > 1 else ""
        raise LoadingError(
            f"preload=true needs about {_gib(store.used * processes + remaining)} for {dataset.name}, {dataset.split} "
            f"({count} videos{per_process}), but {where} has {_gib(room)} left of {_gib(available)}; "
            "give preload=false, or a smaller resize"
        )


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


class _Store:
    """Frames one after the other in few large blocks: a block of shared memory takes one of the few open files."""

    def __init__(self, shared: bool):
        self.shared, self.blocks, self.used, self.filled = shared, [], 0, 0

    def add(self, frames: Tensor, fps: float | None, decoder: str) -> Place:
        size = frames.numel()
        if not self.blocks or self.filled + size > self.blocks[-1].numel():
            block = torch.empty(max(BLOCK_BYTES, size), dtype=torch.uint8)
            self.blocks.append(block.share_memory_() if self.shared else block)
            self.filled = 0
        start, self.filled, self.used = self.filled, self.filled + size, self.used + size
        self.blocks[-1][start : self.filled] = frames.reshape(-1)
        return Place(len(self.blocks) - 1, start, tuple(frames.shape), fps, decoder)
