"""Runs a model on every view of every test video, at most a few views at a time, and goes on where it was stopped.

Views of several videos may share a forward pass, and those of one video may be split over several: in eval mode clips
of a batch never mix, so the predictions do not depend on it beyond rounding.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness import precision
from harness.clips.decoding import VideoError
from harness.clips.loading import Decoded, TestClips, loaded, shared
from harness.clips.reading import opened
from harness.clips.transforms import normalised, test_view
from harness.datasets import DataSet, Item
from harness.evaluation.predictions import DECODERS, RUN, Predictions, PredictionsError
from harness.evaluation.protocol import Protocol
from harness.progress import duration

FRAMES_AT_ONCE = 32  # of a video that is streamed
NOT_FINITE = "the model's scores are not finite"

Say = Callable[[str], None]


def predict(
    model: nn.Module,
    dataset: DataSet,
    protocol: Protocol,
    *,
    preloaded: Decoded | None = None,
    say: Say | None = None,
    keep: Path | None = None,
    save_every_seconds: float = 60.0,
    facts: dict[str, Any] | None = None,
) -> Predictions:
    """What the model says about each view of each video of a data set.

    Args:
        say: takes a line of text about the progress after each video.
        keep: a file that takes what is predicted so far, every `save_every_seconds` and at the end. If it is there
            already, this goes on from it.
        facts: what else is known of the model or the data, stored with the predictions.

    Raises:
        PredictionsError: `keep` holds another evaluation, or no video has finite scores.
        OSError: `keep` cannot be written.
    """
    clips = TestClips(
        dataset, protocol.sampling, protocol.testing, protocol.size,
        order=protocol.order, seed=protocol.seed, antialias=protocol.augmentation.antialias, preloaded=preloaded,
    )  # fmt: skip
    known_facts = {
        "data": dataset.name,
        "split": dataset.split,
        "data_digest": dataset.digest,
        "weights_digest": weights_digest(model),
        **protocol.facts(),
        **(facts or {}),
    }
    labels = [item.label for item in dataset.items]
    empty = Predictions.empty(video_names(dataset), labels, clips.views, dataset.classes, known_facts)
    empty.files = np.array([_mark(dataset.path(item)) for item in dataset.items], np.int64).reshape(-1, 2)
    return predicted(model, clips, empty, protocol, say=say, keep=keep, save_every_seconds=save_every_seconds)


def predicted(
    model: nn.Module,
    clips: Iterable[dict[str, Any]],
    result: Predictions,
    protocol: Protocol,
    *,
    say: Say | None = None,
    keep: Path | None = None,
    save_every_seconds: float = 60.0,
) -> Predictions:
    """Fills empty predictions from anything that gives {"views": uint8 "v 3 t h w" or why there are none, "index"}; a
    "decoder" may say what has read it.

    A data set (with a length and items) is read by worker processes, and only where something is left to predict;
    whatever else can be iterated over is read here, from its beginning.
    """
    before = _resume(result, keep, say)
    seconds, decoders = float(before.get("seconds", 0.0)), Counter(before.get(DECODERS, {}))
    read_by: dict[int, str] = {}
    total, pending = len(result.names), set(result.pending.tolist())
    start = saved = time.monotonic()
    fresh = scored = right = 0  # of the videos that this call has predicted

    def store() -> None:
        elapsed = round(seconds + time.monotonic() - start, 3)
        device = torch.device(protocol.device).type
        result.facts[RUN] = {"device": device, "batch_size": protocol.batch_size, "seconds": elapsed}
        result.facts[RUN][DECODERS] = dict(sorted(decoders.items()))
        if keep is not None:
            result.save(keep)

    def samples() -> Iterator[dict[str, Any]]:
        for sample in _samples(clips, pending, protocol):
            if sample.get("decoder"):
                read_by[int(sample["index"])] = sample["decoder"]
            yield sample

    was_training = model.training
    model.eval()
    try:
        for index, probabilities in _answers(model, samples(), len(result.views), protocol):
            if isinstance(probabilities, str):
                result.failures[result.names[index]] = probabilities
            elif probabilities.shape[1] != len(result.classes):
                raise PredictionsError(
                    f"the model gives {probabilities.shape[1]} scores, but there are {len(result.classes)} classes; "
                    "it was made for another data set"
                )
            elif not np.isfinite(probabilities).all():
                result.failures[result.names[index]] = NOT_FINITE
            else:
                result.scores[index] = probabilities
                scored += 1
                right += int(probabilities.mean(axis=0).argmax() == result.labels[index])
            if index in read_by:
                decoders[read_by.pop(index)] += 1
            pending.discard(index)
            fresh += 1
            if keep is not None and time.monotonic() - saved > save_every_seconds:
                store()
                saved = time.monotonic()
            if say is not None and pending:
                remaining = duration((time.monotonic() - start) / fresh * len(pending))
                share = f", top-1 of these {100 * right / scored:.1f} %" if scored else ""
                say(f"{total - len(pending)}/{total} videos{share}, about {remaining} left")
    except KeyboardInterrupt:
        store()
        raise
    finally:
        model.train(was_training)
    if pending:
        raise PredictionsError(f"{len(pending)} of {total} videos were not given, such as number {min(pending)}")
    store()
    if not result.decoded.any() and NOT_FINITE in result.failures.values():
        raise PredictionsError(
            f"{NOT_FINITE}, for any video: the weights have diverged, or {protocol.dtype} is too narrow for them"
        )
    return result


def views_of(path: Path, protocol: Protocol) -> Tensor:
    """The views of one video file, uint8 "v 3 t h w". Raises: VideoError."""
    alone = DataSet("clip", "test", path.absolute().parent, (Item(path.name, 0),), ("0",))
    views = TestClips(
        alone, protocol.sampling, protocol.testing, protocol.size,
        order=protocol.order, antialias=protocol.augmentation.antialias,
    )[0]["views"]  # fmt: skip
    if isinstance(views, str):
        raise VideoError(views)
    return views


def streamed(model: nn.Module, path: Path, protocol: Protocol) -> Iterator[tuple[int, float | None, np.ndarray]]:
    """What a model that has `stream` says as a video plays, from its beginning to its end, every `stride`-th frame.

    Yields the number of each frame, frames per second and the probabilities "k" after it. Few frames are held at once.

    Raises: VideoError.
    """
    stream, testing = model.stream(), protocol.testing
    with opened(DataSet("clip", "test", path.absolute().parent, (), ("0",)), Item(path.absolute().name, 0)) as source:
        numbers = range(0, source.total, protocol.sampling.stride)
        for first in range(0, len(numbers), FRAMES_AT_ONCE):
            several = numbers[first : first + FRAMES_AT_ONCE]
            pixels = torch.from_numpy(source.read(list(several)))
            frames = test_view(pixels, protocol.size, testing.resize, 0, 1, protocol.augmentation.antialias)
            for place, number in enumerate(several):
                frame = frames[None, :, place : place + 1]
                yield number, source.fps, probabilities_of(lambda x: stream(x[:, :, 0]), frame, protocol)[0]


def video_names(dataset: DataSet) -> list[str]:
    """A name for each item: its path, and the part that is cut out; of items that are alike the later are numbered."""
    names, counts = [], {}
    for item in dataset.items:
        cut = "" if item.start is None and item.end is None else f"@{item.start or 0:g}-{item.end or 'end'}"
        name = f"{item.name}{cut}"
        counts[name] = counts.get(name, 0) + 1
        names.append(name if counts[name] == 1 else f"{name} ({counts[name]})")
    return names


def _mark(path: Path) -> tuple[int, int]:
    """What tells a file from another one of its name: its size and its time; of a folder those of all in it."""
    try:
        states = [path.stat()]
        if path.is_dir():  # whose own state says nothing of a picture that is rewritten in place
            with os.scandir(path) as entries:
                states += [entry.stat() for entry in entries if entry.is_file()]
    except OSError:
        return 0, 0
    return sum(state.st_size for state in states), max(state.st_mtime_ns for state in states)


def weights_digest(model: nn.Module) -> str:
    """sha256 over names and values of all weights and buffers."""
    total = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def _resume(result: Predictions, keep: Path | None, say: Say | None) -> dict[str, Any]:
    """Takes over what a stopped evaluation has predicted; what is known of its run."""
    if keep is None or not keep.exists():
        return {}
    try:
        stored = Predictions.load(keep)
    except PredictionsError as error:
        if say is not None:
            say(f"{error}; this begins anew")
        return {}
    same = {key: value for key, value in stored.facts.items() if key != RUN}
    for fact, before, now in (
        *((name, getattr(stored, name), getattr(result, name)) for name in ("views", "names", "classes")),
        *((key, same.get(key), result.facts.get(key)) for key in [*result.facts, *same]),
        ("labels", stored.labels.tolist(), result.labels.tolist()),
    ):
        if before != now:
            raise PredictionsError(
                f"{keep} holds the predictions of another evaluation: {fact} is {_short(before)} there and "
                f"{_short(now)} here; write to another place, or remove the file"
            )
    changed = result.changed_since(stored) & stored.decoded
    result.scores = stored.scores  # and not the failures: a file may have been repaired, a disk mounted since
    result.scores[changed] = np.nan
    if result.files is not None and stored.files is not None:
        result.files = np.where(result.files.any(axis=1, keepdims=True), result.files, stored.files)
    done = int(result.decoded.sum())
    if say is not None and (done or changed.any()):
        again = f"; the files of {changed.sum()} have changed since" if changed.any() else ""
        say(f"{done} of {len(stored.names)} videos are predicted already{again}")
    return stored.facts.get(RUN, {})


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _samples(clips: Any, pending: set[int], protocol: Protocol) -> Iterator[dict[str, Any]]:
    if hasattr(clips, "__getitem__") and hasattr(clips, "__len__"):
        order = np.random.default_rng(0).permutation(len(clips)).tolist()  # lists are sorted by class; progress is not
        batches = [[index] for index in order if index in pending]
        pin = torch.device(protocol.device).type == "cuda"
        yield from loaded(clips, batches, _only, workers=protocol.workers, pin=pin)
    else:
        yield from (sample for sample in clips if sample["index"] in pending)


def _only(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Collates a batch of one video, whose views are a batch already."""
    (sample,) = samples
    return shared(sample)


def _answers(
    model: nn.Module, samples: Iterable[dict[str, Any]], views: int, protocol: Protocol
) -> Iterator[tuple[int, np.ndarray | str]]:
    """For each video its number and the probabilities "v k", or why there are none."""
    waiting: list[tuple[int, Tensor]] = []  # (video, one view), to fill the next forward pass
    answered: dict[int, list[np.ndarray]] = {}

    def answers(count: int) -> Iterator[tuple[int, np.ndarray]]:
        part = waiting[:count]
        del waiting[:count]
        clips = torch.stack([clip for _, clip in part])
        for (index, _), row in zip(part, probabilities_of(model, clips, protocol), strict=True):
            answered[index].append(row)
            if len(answered[index]) == views:
                yield index, np.stack(answered.pop(index))

    for sample in samples:
        index, clips = int(sample["index"]), sample["views"]
        if isinstance(clips, str):
            yield index, clips
            continue
        if len(clips) != views:
            raise PredictionsError(f"video {index} has {len(clips)} views, expected {views}")
        answered[index] = []
        for clip in clips:
            waiting.append((index, clip))
            if len(waiting) == protocol.batch_size:
                yield from answers(protocol.batch_size)
    if waiting:
        yield from answers(len(waiting))


def normalised_for(clips: Tensor, protocol: Protocol) -> Tensor:
    """uint8 clips as the model takes them, float32 on the protocol's device."""
    clips = clips.to(protocol.device, non_blocking=True)
    return normalised(clips, protocol.augmentation.mean, protocol.augmentation.std)


@torch.no_grad()
def probabilities_of(model: nn.Module, clips: Tensor, protocol: Protocol) -> np.ndarray:
    """float32 "b k": softmax of the scores of uint8 clips "b 3 t h w", computed on the protocol's device."""
    clips = normalised_for(clips, protocol)
    narrow = protocol.dtype != "float32"
    with precision.exact(), torch.autocast(clips.device.type, getattr(torch, protocol.dtype), enabled=narrow):
        scores = model(clips)
    return scores.float().softmax(dim=-1).cpu().numpy()
