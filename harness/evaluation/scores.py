"""Accuracy from predictions: top-1, top-5 and mean class accuracy with intervals, per class, and against views.

A video that could not be decoded is a miss: it stays in every denominator, and `coverage` (decoded / listed) says how
many there are. Intervals say how far the figure of this one model would move with other videos of the same kind; how
far it moves with the seed of training only several trainings can say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from harness.evaluation.predictions import Predictions, PredictionsError, View
from records.intervals import Interval
from records.means import share_interval

RESAMPLES = 2000
SEED = 0


@dataclass(frozen=True)
class ClassScore:
    """One row of the per-class table. `confused_with` is the class that its videos were most often taken for."""

    index: int
    name: str
    videos: int
    decoded: int
    right: int
    top1: Interval | None  # None: the split lists no video of it
    top5: Interval | None
    confused_with: str | None
    confused: int


@dataclass(frozen=True)
class Scores:
    """All figures of one set of predictions, in percent. `confusion[label][answer]` counts decoded videos."""

    videos: int
    decoded: int
    coverage: float  # decoded / listed, 0 to 1
    top1: Interval
    top5: Interval
    mean_class: Interval  # mean over the classes that the split lists
    per_class: list[ClassScore]
    confusion: np.ndarray  # int64 "k k"
    views: list[View]

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return asdict(self) | {
            "classes": [row.name for row in self.per_class],
            "confusion": self.confusion.tolist(),
            "views": [list(view) for view in self.views],
        }


def scores(predictions: Predictions, views: Sequence[View] | None = None) -> Scores:
    """The figures of all views together, or of the named ones.

    Raises: PredictionsError, where there are no videos, some are not predicted yet, or a view was not predicted.
    """
    if not len(predictions.labels):
        raise PredictionsError("there are no videos to score; the split lists none")
    if len(predictions.pending):
        raise PredictionsError(f"{len(predictions.pending)} of {len(predictions.labels)} videos are not predicted yet")
    labels, classes = predictions.labels, len(predictions.classes)
    chosen = [predictions.views[position] for position in predictions.positions(views)]
    decoded, averaged = predictions.decoded, predictions.averaged(chosen)
    rank = ranks(averaged, labels)
    first, fifth = decoded & (rank < 1), decoded & (rank < 5)
    listed = np.bincount(labels, minlength=classes)
    right, near = np.bincount(labels[first], minlength=classes), np.bincount(labels[fifth], minlength=classes)
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (labels[decoded], averaged[decoded].argmax(axis=1)), 1)
    total = len(labels)
    return Scores(
        videos=total,
        decoded=int(decoded.sum()),
        coverage=float(decoded.mean()),
        top1=wilson(int(first.sum()), total),
        top5=wilson(int(fifth.sum()), total),
        mean_class=mean_class(right, listed),
        per_class=_per_class(predictions.classes, listed, right, near, confusion),
        confusion=confusion,
        views=chosen,
    )


def ranks(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes stand before the right one, 0 where it is first. Of equal classes the lower number is first."""
    true_score = probabilities[np.arange(len(labels)), labels][:, None]
    lower = np.arange(probabilities.shape[1]) < labels[:, None]
    return ((probabilities > true_score) | ((probabilities == true_score) & lower)).sum(axis=1)


def wilson(right: int, total: int) -> Interval:
    """A share in percent with Wilson's score interval (Wilson, JASA 22, 1927; no continuity correction).

    Unlike the usual interval it stays within 0 and 100 and has a width at both ends.
    """
    if not 0 <= right <= total or total < 1:
        raise ValueError(f"{right} right of {total} is no share")
    return share_interval(right / total, total).percent


def mean_class(right: np.ndarray, listed: np.ndarray) -> Interval:
    """Mean over classes of the share of each that is right; percentile bootstrap over videos.

    A resample of videos matters only through the number of right and wrong ones of each class, so these are drawn at
    once, from the multinomial distribution that they have. A class that a resample lacks is left out of its mean. Where
    every video is right, or none, a bootstrap has no width.
    """
    present = listed > 0
    cells = np.concatenate([right[present], (listed - right)[present]])
    total = int(cells.sum())
    drawn = np.random.default_rng(SEED).multinomial(total, cells / total, size=RESAMPLES)
    good, bad = np.split(drawn, 2, axis=1)
    count = good + bad
    share = np.divide(good, count, out=np.full(good.shape, np.nan), where=count > 0)
    low, high = np.percentile(np.nanmean(share, axis=1), [2.5, 97.5])
    value = float((right[present] / listed[present]).mean())
    return Interval(value, min(value, float(low)), max(value, float(high))).percent


def _per_class(
    names: Sequence[str], listed: np.ndarray, right: np.ndarray, near: np.ndarray, confusion: np.ndarray
) -> list[ClassScore]:
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    rows = []
    for index, name in enumerate(names):
        total, rival = int(listed[index]), int(wrong[index].argmax())
        confused = int(wrong[index, rival])
        rows.append(
            ClassScore(
                index=index,
                name=name,
                videos=total,
                decoded=int(confusion[index].sum()),
                right=int(right[index]),
                top1=wilson(int(right[index]), total) if total else None,
                top5=wilson(int(near[index]), total) if total else None,
                confused_with=names[rival] if confused else None,
                confused=confused,
            )
        )
    return rows


def by_views(predictions: Predictions) -> list[dict[str, Any]]:
    """Top-1 against the number of clips and crops, for every number up to those that were predicted.

    Fewer clips than there are stand evenly spread among them, as those of a test with fewer clips do; one crop is the
    middle one. `macs_factor` is the number of views: the cost of a test in costs of one view.
    """
    decoded = predictions.decoded
    rows = []
    for crops in crop_counts(len({crop for _, crop in predictions.views})):
        for clips in range(1, 1 + len({clip for clip, _ in predictions.views})):
            averaged = predictions.averaged(spread(predictions, clips, crops))
            right = decoded & (ranks(averaged, predictions.labels) < 1)
            top1 = wilson(int(right.sum()), len(right))
            rows.append(
                {"clips": clips, "crops": crops, "macs_factor": clips * crops}
                | {"top1": top1.value, "low": top1.low, "high": top1.high}
            )
    return rows


def spread(predictions: Predictions, clips: int, crops: int) -> list[View]:
    """The views of a test with so many clips and crops, taken from those that were predicted.

    Raises: PredictionsError, where there are not so many, or the views are no full grid.
    """
    in_time, in_space = (sorted({view[axis] for view in predictions.views}) for axis in (0, 1))
    if not predictions.is_grid:
        raise PredictionsError(f"the predicted views are no grid of clips and crops: {predictions.layout}")
    if not (1 <= clips <= len(in_time) and crops in crop_counts(len(in_space))):
        allowed = " or ".join(map(str, crop_counts(len(in_space))))
        raise PredictionsError(
            f"{clips} clips x {crops} crops cannot be taken from {predictions.layout}; "
            f"allowed: 1 to {len(in_time)} clips, {allowed} crops"
        )
    # Clip i of n stands at (i + 1/2) / n of the video. Of two that are as near to the wanted place, the earlier.
    count = len(in_time)
    nearest = [in_time[math.ceil((i + 0.5) * count / clips - 1)] for i in range(clips)]
    chosen = in_space if crops == len(in_space) else [in_space[middle_crop(len(in_space))]]
    return [(clip, crop) for clip in nearest for crop in chosen]


def crop_counts(crops: int) -> list[int]:
    """How many crops a test may have whose crops are among these: the one in the middle, if there is one, or all."""
    return sorted({crops} | ({1} if crops % 2 else set()))


def middle_crop(crops: int) -> int:
    """The number of the middle one of an odd number of crops. Three are left, right, middle, as published; other
    numbers go from one side to the other."""
    return 2 if crops == 3 else crops // 2
