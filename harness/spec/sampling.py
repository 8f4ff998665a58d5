"""Which frames of a video a clip is made of: drawn anew each epoch in training, the same every time in testing.

Three rules, named by `Sampling.kind`, each that of published work. Frames count from 0. Plain arithmetic: nothing here
knows about files, and the generator that is handed in is the only randomness.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from pydantic.dataclasses import dataclass

from harness.spec.reader import STRICT, Count

Kind = Literal["dense", "uniform", "linspace"]
Order = Literal["ordered", "shuffled", "single"]
ORDERS = get_args(Order)
LINSPACE_FPS = 30  # the rate that `stride` refers to under `linspace`


@dataclass(frozen=True, config=STRICT)
class Sampling:
    """How the frames of a clip are chosen. Raises: ValueError, for a kind or a number that there is not.

    `dense`: `frames` frames, every `stride`-th, from a span of frames x stride (DualFormer, Video Swin).
    `uniform`: one frame of each of `frames` equal segments of the whole video; `stride` plays no part (Video Swin on
    Something-Something).
    `linspace`: `frames` frames at even distances over frames x stride frames at 30 fps, scaled to the video's own rate
    (TimeSformer).
    """

    frames: Count = 32
    stride: Count = 2
    kind: Kind = "dense"


def training_indices(
    total: int, sampling: Sampling, random: np.random.Generator, fps: float | None = None
) -> list[int]:
    """Frame numbers of one training clip of a video with `total` frames.

    `dense`: the start is uniform over 0 ... total - frames x stride, 0 where the video is not longer than that; frames
    past the end wrap around. `uniform`: one frame drawn between each two boundaries, both included.
    `linspace`: a real start, uniform over the same range; `fps` is the video's rate (30 where it is not known).
    """
    _check(total)
    if sampling.kind == "uniform":
        edges = _boundaries(total, sampling.frames)
        return [int(random.integers(low, high, endpoint=True)) for low, high in zip(edges, edges[1:], strict=False)]
    if sampling.kind == "linspace":
        span = _linspace_span(sampling, fps)
        return _linspace(total, sampling.frames, float(random.uniform(0, max(total - span, 0.0))), span)
    spare = total - sampling.frames * sampling.stride
    return _strided(total, sampling, int(random.integers(0, spare, endpoint=True)) if spare > 0 else 0)


def test_indices(
    total: int,
    sampling: Sampling,
    clips: int,
    fps: float | None = None,  # noqa: PT028 (no test: testing is what it is for)
) -> list[list[int]]:
    """Frame numbers of each of the `clips` temporal views of a video with `total` frames.

    `dense`: with the gap g = (total - frames x stride + 1) / clips, view i starts at floor(i g + g / 2), so that one
    view stands in the middle; all start at 0 where the video is shorter than a clip. `uniform`: the one published view
    takes the middle of each segment; more views (ours) divide each segment evenly. `linspace`: view i starts at
    i / clips of the spare length, so that one view starts at frame 0.
    """
    _check(total)
    if clips < 1:
        raise ValueError(f"clips is {clips}; allowed: 1 or more")
    if sampling.kind == "uniform":
        edges = _boundaries(total, sampling.frames)
        parts = list(zip(edges, edges[1:], strict=False))
        return [[low + (high - low) * (i + 1) // (clips + 1) for low, high in parts] for i in range(clips)]
    if sampling.kind == "linspace":
        span = _linspace_span(sampling, fps)
        return [_linspace(total, sampling.frames, i * max(total - span, 0.0) / clips, span) for i in range(clips)]
    room = max(total - sampling.frames * sampling.stride + 1, 0)
    return [_strided(total, sampling, (2 * i + 1) * room // (2 * clips)) for i in range(clips)]  # exact: no rounding


test_indices.__test__ = False  # where a test module imports it by name, pytest is not to collect it


def reordered(indices: Sequence[int], order: str, random: np.random.Generator) -> list[int]:
    """The same clip with its order of frames kept, shuffled, or replaced by its middle frame (`single`).

    The controls that show whether a model uses motion: `shuffled` draws one permutation of the clip's places, `single`
    repeats the one frame. Only `shuffled` draws from `random`.
    """
    if order not in ORDERS:
        raise ValueError(f"unknown order {order!r}; allowed: {', '.join(ORDERS)}")
    if order == "shuffled":
        return [indices[place] for place in random.permutation(len(indices))]
    return [indices[len(indices) // 2]] * len(indices) if order == "single" else list(indices)


def _check(total: int) -> None:
    if total < 1:
        raise ValueError(f"a video with {total} frames has no clip")


def _strided(total: int, sampling: Sampling, start: int) -> list[int]:
    return [(start + sampling.stride * i) % total for i in range(sampling.frames)]


def _boundaries(total: int, frames: int) -> list[int]:
    """The frames + 1 boundaries of segments of (total - 1) / frames frames each, rounded (halves to even)."""
    return [int(edge) for edge in np.round((total - 1) / frames * np.arange(frames + 1))]


def _linspace_span(sampling: Sampling, fps: float | None) -> float:
    return sampling.frames * sampling.stride * (fps or LINSPACE_FPS) / LINSPACE_FPS


def _linspace(total: int, frames: int, start: float, span: float) -> list[int]:
    """From `start` to the last frame of the span, floored. A short video shows its last frame again."""
    places = np.linspace(start, start + span - 1, frames)
    return [int(place) for place in np.clip(places, 0, total - 1)]
