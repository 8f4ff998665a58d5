"""Runs a model on every view of every test video, at most a few views at a time, and goes on where it was stopped.

Views of several videos may share a forward pass, and those of one video may be split over several: in eval mode clips
of a batch never mix, so the predictions do not depend on it beyond rounding.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.clips.transforms import normalised
from harness.datasets import DataSet
from harness.evaluation.predictions import Predictions, PredictionsError, View
from harness.progress import duration
from harness.spec.clip import Augmentation
from harness.spec.sampling import Sampling

if TYPE_CHECKING:
    from harness.clips.loading import Decoded
    from harness.spec.recipe import Testing

RUN = "run"  # the entry of the facts that does not decide whether two evaluations are the same
DECODERS = "decoders"  # in it: how many of the videos each decoder has read
SAY_EVERY_SECONDS = 10.0
NOT_FINITE = "the model's scores are not finite"

Say = Callable[[str], None]


def predict(
    model: nn.Module,
    dataset: DataSet,
    sampling: Sampling,
    testing: Testing,
    augmentation: Augmentation,
    *,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    batch_size: int = 4,
    workers: int = 0,
    order: str = "ordered",
    seed: int = 0,
    preloaded: Decoded | None = None,
    say: Say | None = None,
    keep: Path | None = None,
    save_every_seconds: float = 60.0,
    facts: dict[str, Any] | None = None,
) -> Predictions:
    """What the model says about each view of each video of a data set.

    Args:
        testing: how many clips and crops, and their size; without a size that of `augmentation`, which also gives mean
            and deviation.
        dtype: "float32", or the number format of autocast. Probabilities are computed in float32.
        batch_size: views in one forward pass.
        order: "ordered", or a control: "shuffled", "single"; `seed` then draws.
        say: takes a line of text about the progress, now and then.
        keep: a file that takes what is predicted so far, every `save_every_seconds` and at the end. If it is there
            already, this goes on from it.
        facts: what else is known of the model or the data, stored with the predictions.

    Raises:
        PredictionsError: `keep` holds another evaluation, or no video has finite scores.
        OSError: `keep` cannot be written.
    """
    from harness.clips.loading import TestClips

    size = testing.size or augmentation.size
    clips = TestClips(dataset, sampling, testing, size, order=order, seed=seed, preloaded=preloaded)
    known = {
        "data": dataset.name,
        "split": dataset.split,
        "data_digest": dataset.digest,
        "weights_digest": weights_digest(model),
        "sampling": asdict(sampling),
        "testing": asdict(testing) | {"size": size},
        "mean": list(augmentation.mean),
        "std": list(augmentation.std),
        "order": order,
        "seed": seed if order != "ordered" else None,
        "dtype": dtype,
    }
    return predicted(
        model,
        clips,
        names=video_names(dataset),
        labels=[item.label for item in dataset.items],
        classes=dataset.classes,
        views=clips.views,
        mean=augmentation.mean,
        std=augmentation.std,
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        workers=workers,
        say=say,
        keep=keep,
        save_every_seconds=save_every_seconds,
        facts=known | (facts or {}),
    )


def predicted(
    model: nn.Module,
    clips: Iterable[dict[str, Any]],
    *,
    names: Sequence[str],
    labels: Sequence[int],
    classes: Sequence[str],
    views: Sequence[View],
    mean: Sequence[float],
    std: Sequence[float],
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    batch_size: int = 4,
    workers: int = 0,
    say: Say | None = None,
    keep: Path | None = None,
    save_every_seconds: float = 60.0,
    facts: dict[str, Any] | None = None,
) -> Predictions:
    """The same for anything that gives {"views": uint8 "v 3 t h w" or why there are none, "label", "index"}; a
    "decoder" may say what has read it.

    A data set (with a length and items) is read by `workers` processes, and only where something is left to predict;
    whatever else can be iterated over is read here, from its beginning.
    """
    device = torch.device(device)
    result = Predictions(
        scores=np.full((len(names), len(views), len(classes)), np.nan, np.float32),
        labels=np.array(labels, np.int64),
        names=list(names),
        views=list(views),
        classes=list(classes),
        facts=json.loads(json.dumps(facts or {})),
    )
    before = _resume(result, keep, say)
    seconds, decoders = float(before.get("seconds", 0.0)), Counter(before.get(DECODERS, {}))
    read_by: dict[int, str] = {}
    pending = set(result.pending.tolist())
    start = saved = told = time.monotonic()
    fresh = scored = right = 0  # of the videos that this call has predicted

    def finished(complete: bool) -> None:
        elapsed = seconds + time.monotonic() - start
        result.facts[RUN] = {"device": device.type, "batch_size": batch_size, "seconds": round(elapsed, 3)}
        result.facts[RUN][DECODERS] = dict(sorted(decoders.items()))
        if keep is not None:
            result.save(keep)
        if complete and not result.decoded.any() and NOT_FINITE in result.failures.values():
            raise PredictionsError(
                f"{NOT_FINITE}, for any video: the weights have diverged, or {dtype} is too narrow for them"
            )

    def samples() -> Iterator[dict[str, Any]]:
        for sample in _samples(clips, pending, workers, device):
            if sample.get("decoder"):
                read_by[int(sample["index"])] = sample["decoder"]
            yield sample

    was_training = model.training
    model.eval()
    try:
        for index, probabilities in _answers(model, samples(), len(views), mean, std, device, dtype, batch_size):
            if isinstance(probabilities, str):
                result.failures[result.names[index]] = probabilities
            elif probabilities.shape[1] != len(classes):
                raise PredictionsError(
                    f"the model gives {probabilities.shape[1]} scores, but there are {len(classes)} classes; "
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
            now = time.monotonic()
            if keep is not None and now - saved > save_every_seconds:
                finished(complete=False)
                saved = time.monotonic()
            if say is not None and pending and now - told > SAY_EVERY_SECONDS:
                left = duration((now - start) / fresh * len(pending))
                share = f", top-1 of these {100 * right / scored:.1f} %" if scored else ""
                say(f"{len(names) - len(pending)}/{len(names)} videos{share}, about {left} left")
                told = now
    except KeyboardInterrupt:
        finished(complete=False)
        raise
    finally:
        model.train(was_training)
    if pending:
        raise PredictionsError(f"{len(pending)} of {len(names)} videos were not given, such as number {min(pending)}")
    finished(complete=True)
    return result


def video_names(dataset: DataSet) -> list[str]:
    """A name for each item: its path, and the part that is cut out; of items that are alike the later are numbered."""
    names, seen = [], {}
    for item in dataset.items:
        cut = "" if item.start is None and item.end is None else f"@{item.start or 0:g}-{item.end or 'end'}"
        name = f"{item.path}{cut}"
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return names


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
    for what, there, here in (
        *((name, getattr(stored, name), getattr(result, name)) for name in ("views", "names", "classes")),
        *((key, same.get(key), result.facts.get(key)) for key in [*result.facts, *same]),
        ("labels", stored.labels.tolist(), result.labels.tolist()),
    ):
        if there != here:
            raise PredictionsError(
                f"{keep} holds the predictions of another evaluation: {what} is {_short(there)} there and "
                f"{_short(here)} here; write to another place, or remove the file"
            )
    done = len(stored.names) - len(stored.pending)
    result.scores, result.failures = stored.scores, stored.failures
    if say is not None and done:
        say(f"{done} of {len(stored.names)} videos are predicted already")
    return stored.facts.get(RUN, {})


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _samples(clips: Any, pending: set[int], workers: int, device: torch.device) -> Iterator[dict[str, Any]]:
    if hasattr(clips, "__getitem__") and hasattr(clips, "__len__"):
        from harness.clips.loading import loader

        order = np.random.default_rng(0).permutation(len(clips)).tolist()  # lists are sorted by class; progress is not
        batches = [[index] for index in order if index in pending]
        yield from loader(clips, batches, _only, workers=workers, pin=device.type == "cuda")
    else:
        yield from (sample for sample in clips if sample["index"] in pending)


def _only(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Collates a batch of one video, whose views are a batch already."""
    (sample,) = samples
    return sample


def _answers(
    model: nn.Module,
    samples: Iterable[dict[str, Any]],
    views: int,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device,
    dtype: str,
    batch_size: int,
) -> Iterator[tuple[int, np.ndarray | str]]:
    """For each video its number and the probabilities "v k", or why there are none."""
    waiting: list[tuple[int, Tensor]] = []  # (video, one view), to fill the next forward pass
    answered: dict[int, list[np.ndarray]] = {}

    def answers(count: int) -> Iterator[tuple[int, np.ndarray]]:
        part = waiting[:count]
        del waiting[:count]
        clips = torch.stack([clip for _, clip in part]).to(device, non_blocking=True)
        for (index, _), row in zip(part, probabilities_of(model, clips, mean, std, dtype), strict=True):
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
            if len(waiting) == batch_size:
                yield from answers(batch_size)
    if waiting:
        yield from answers(len(waiting))


@torch.no_grad()
def probabilities_of(
    model: nn.Module, clips: Tensor, mean: Sequence[float], std: Sequence[float], dtype: str = "float32"
) -> np.ndarray:
    """float32 "b k": softmax of the scores of uint8 clips "b 3 t h w" that are on the model's device."""
    narrow = dtype != "float32"
    with torch.autocast(clips.device.type, getattr(torch, dtype), enabled=narrow):
        scores = model(normalised(clips, mean, std))
    return scores.float().softmax(dim=-1).cpu().numpy()
