"""The test of a training run: predictions of its test videos, which its processes share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from backbones.family import Backbone
from backbones.sets import Spans
from harness.clips.loading import Decoded
from harness.datasets import DataSet
from harness.evaluation.predictions import DECODERS, RUN, Predictions, PredictionsError
from harness.evaluation.protocol import Protocol
from harness.evaluation.views import predict, video_names, weights_digest
from harness.spec.recipe import Recipe, Testing
from harness.training.distributed import Group
from harness.training.job import Job
from harness.training.state import storing


def tested(
    model: Backbone,
    dataset: DataSet,
    recipe: Recipe,
    testing: Testing,
    job: Job,
    group: Group,
    *,
    order: str,
    batch_size: int,
    preloaded: Decoded | None,
    say: Callable[[str], None],
    keep: Path | None,
    step: int,
) -> Predictions | None:
    """The predictions of all test videos in the first process, None in the others; stored in the file `keep`.

    One process alone goes on with what `keep` holds, if it is of the same weights.
    """
    alone = group.world == 1
    mine = dataset
    if not alone:
        mine = replace(dataset, items=dataset.items[group.rank :: group.world])
        preloaded = preloaded and preloaded.part(slice(group.rank, None, group.world))
    elif keep is not None and not _continues(keep, model):
        keep.unlink()
    protocol = Protocol(
        recipe.sampling, testing, recipe.augmentation, order,
        device=str(group.device), dtype=job.dtype, batch_size=batch_size, workers=job.workers,
    )  # fmt: skip
    facts = {"model": job.model, "step": step, "job": job.digest}
    keep_here = keep if alone else None
    predictions = predict(model, mine, protocol, preloaded=preloaded, say=say, keep=keep_here, facts=facts)
    if alone:
        return predictions
    parts = group.gathered(predictions)
    if not group.first:
        return None
    predictions = _merged(parts, dataset)
    if keep is not None:
        with storing(job.folder):
            predictions.save(keep)
    return predictions


def together(by_set: dict[str, Predictions]) -> Predictions:
    """Predictions of several data sets as those of one: their classes in one list, a video answered among its own
    set's; as one view, the mean of those that each set is tested with."""
    if len(by_set) == 1:
        return next(iter(by_set.values()))
    sets = list(by_set.items())
    spans = Spans.made({name: len(predictions.classes) for name, predictions in sets})
    videos, classes = sum(len(p.names) for p in by_set.values()), sum(len(p.classes) for p in by_set.values())
    scores = np.zeros((videos, 1, classes))
    place, labels, failures, decoders = 0, [], {}, Counter()
    for name, predictions in sets:
        first, end = spans.ranges[name]
        scores[place : place + len(predictions.names), 0, first:end] = predictions.averaged()
        place += len(predictions.names)
        labels += [first + label for label in predictions.labels]
        failures |= {f"{name}/{video}": why for video, why in predictions.failures.items()}
        decoders += Counter(predictions.facts.get(RUN, {}).get(DECODERS, {}))
    return Predictions(
        scores,
        np.array(labels, np.int64),
        [f"{name}/{video}" for name, predictions in sets for video in predictions.names],
        [(0, 0)],
        [f"{name}/{class_name}" for name, predictions in sets for class_name in predictions.classes],
        failures,
        {RUN: {DECODERS: dict(sorted(decoders.items()))}},
    )


def _continues(path: Path, model: Backbone) -> bool:
    """Whether predictions, if there are any, are of these weights: on another machine a run may end with others."""
    try:
        return not path.exists() or Predictions.load(path).facts.get("weights_digest") == weights_digest(model)
    except PredictionsError:
        return False


def _merged(parts: list[Predictions], dataset: DataSet) -> Predictions:
    """The predictions of all processes, of which process r of w had the videos r, r + w, ..."""
    world, names = len(parts), video_names(dataset)
    first = parts[0]
    all_scores = np.full((len(names), *first.scores.shape[1:]), np.nan, np.float32)
    failures = {}
    for rank, part in enumerate(parts):
        all_scores[rank::world] = part.scores
        failures |= {names[rank + world * part.names.index(name)]: why for name, why in part.failures.items()}
    labels = np.array([item.label for item in dataset.items], np.int64)
    decoders = sum((Counter(part.facts[RUN][DECODERS]) for part in parts), Counter())
    facts = first.facts | {
        "data_digest": dataset.digest,
        RUN: first.facts[RUN] | {DECODERS: dict(sorted(decoders.items()))},
    }
    return Predictions(all_scores, labels, names, first.views, first.classes, failures, facts)
