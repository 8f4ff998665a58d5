"""An item of a data set, opened: a video file, a part of one, or a folder of pictures, all read the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harness.clips.decoding import Video, VideoError, open_video
from harness.datasets import DataError, DataSet, Item
from harness.datasets.frames import read_frames

PICTURES = "pictures"  # what stands for a decoder where an item is a folder of them


class LoadingError(RuntimeError):
    """Clips cannot be loaded, and not because of one file; the message says what to do."""


class Opened(NamedTuple):
    """An item to read from: its number of frames, frames per second, a function that reads some of them as uint8
    "n h w 3", and one that says what has decoded them."""

    total: int
    fps: float | None
    read: Callable[[Sequence[int]], np.ndarray]
    decoder: Callable[[], str]


@contextmanager
def opened(dataset: DataSet, item: Item) -> Iterator[Opened]:
    """Raises: VideoError naming the file."""
    if item.frames is not None:
        yield Opened(item.frames, None, partial(_pictures, dataset.path(item)), lambda: PICTURES)
        return
    with open_video(dataset.path(item)) as video:
        first, count = _cut(item, video)
        yield Opened(
            count,
            video.facts.fps,
            lambda indices: video.read([first + index for index in indices]),
            lambda: video.facts.decoder,  # when it is asked for: decord may fail on the frames
        )


def _pictures(folder: Path, indices: Sequence[int]) -> np.ndarray:
    try:
        return read_frames(folder, list(indices))
    except DataError as error:
        raise VideoError(str(error)) from error


def _cut(item: Item, video: Video) -> tuple[int, int]:
    """The first frame and the number of frames of the part between `start` and `end` seconds: those that are shown for
    the larger part of their time within it, or the one frame in which it lies as a whole."""
    if item.start is None and item.end is None:
        return 0, len(video)
    fps, times = video.facts.fps, video.seconds
    if times is None and not fps:
        raise VideoError(
            f"{video.path}: only a part of it is listed (in seconds), but the file states neither times nor frame rate"
        )
    times = np.arange(len(video)) / fps if times is None else times
    until = np.append(times[1:], times[-1] + (1 / fps if fps else 0))
    start, end = item.start or 0.0, until[-1] if item.end is None else item.end
    first, last = np.searchsorted((times + until) / 2, (start, end)).tolist()
    if last <= first and 0 <= start < min(end, until[-1]):
        first = int(np.searchsorted(times, start, side="right")) - 1
        last = first + 1
    if last <= first:
        raise VideoError(
            f"{video.path}: the listed part, {item.start} to {item.end} s, holds none of its {len(video)} frames, "
            f"which end at {until[-1]:.2f} s"
        )
    return first, last - first
