"""What a model said about every view of every video, in one file, so that no figure needs the model again.

Softmax probabilities are kept for each view. The score of a video is their mean (DualFormer, Video Swin: views are
averaged after the softmax), and may be the mean of any of its views: accuracy against clips and crops comes from one
run. A video that could not be decoded keeps its row, filled with NaN, and its reason; a row of NaN without a reason is
one that an unfinished evaluation has still to fill.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from records.record import written_whole

FORMAT = 1
FILE = "predictions.npz"
RUN = "run"  # the entry of the facts that does not decide whether two evaluations are the same
DECODERS = "decoders"  # in it: how many of the videos each decoder has read
ARRAYS = ("scores", "labels", "views")
FILES = "files"  # an array that earlier versions did not write
TEXTS = ("names", "classes", "failures", "facts")

View = tuple[int, int]  # number of the clip, number of the crop


class PredictionsError(ValueError):
    """Predictions that contradict themselves, or a file that holds none; the message names the file or the field."""


@dataclass
class Predictions:
    """Probabilities of every view of every video of one split, and what they came from.

    Raises: PredictionsError, where the fields do not fit each other.
    """

    scores: np.ndarray  # float32 "n v k": softmax of each view; rows of failed videos are NaN
    labels: np.ndarray  # int64 "n"
    names: list[str]  # of the videos, no two alike
    views: list[View]
    classes: list[str]
    failures: dict[str, str] = field(default_factory=dict)  # name of a video -> why it has no scores
    facts: dict[str, Any] = field(default_factory=dict)  # digests of data and weights, sampling, ...; JSON values
    files: np.ndarray | None = None  # int64 "n 2": size and time of change of each video's file, 0 where there is none

    def __post_init__(self):
        self.scores = np.asarray(self.scores, np.float32)
        self.labels = np.asarray(self.labels, np.int64)
        self.views = [(int(clip), int(crop)) for clip, crop in self.views]
        if self.scores.ndim != 3:
            raise PredictionsError(f"scores have the shape {self.scores.shape}; expected videos x views x classes")
        for kind, count, axis in (
            ("labels", len(self.labels), 0),
            ("names", len(self.names), 0),
            ("views", len(self.views), 1),
            ("classes", len(self.classes), 2),
        ):
            if count != self.scores.shape[axis]:
                raise PredictionsError(f"{count} {kind} do not fit scores of the shape {self.scores.shape}")
        for kind, values in (("name", self.names), ("view", self.views)):
            if len(set(values)) != len(values):
                twice = next(value for value in values if values.count(value) > 1)
                raise PredictionsError(f"the {kind} {twice!r} is given twice; every {kind} has one row")
        wrong = self.labels[(self.labels < 0) | (self.labels >= len(self.classes))]
        if len(wrong):
            raise PredictionsError(f"label {wrong[0]} is outside of the {len(self.classes)} classes (0 is the first)")
        strangers = sorted(self.failures.keys() - set(self.names))
        if strangers:
            raise PredictionsError(f"failures name {strangers[0]!r}, which is none of the videos")

    @classmethod
    def empty(
        cls, names: Sequence[str], labels: Sequence[int], views: Sequence[View], classes: Sequence[str],
        facts: dict[str, Any] | None = None,
    ) -> Predictions:  # fmt: skip
        """Rows that have still to be filled."""
        scores = np.full((len(names), len(views), len(classes)), np.nan, np.float32)
        facts = json.loads(json.dumps(facts or {}))
        return cls(scores, np.array(labels, np.int64), list(names), list(views), list(classes), facts=facts)

    @property
    def decoded(self) -> np.ndarray:
        """bool "n": which videos have scores."""
        return ~np.isnan(self.scores).any(axis=(1, 2))

    @property
    def pending(self) -> np.ndarray:
        """Numbers of the videos that have neither scores nor a reason for having none."""
        failed = np.array([name in self.failures for name in self.names], bool)
        return np.flatnonzero(~self.decoded & ~failed)

    def none_decoded(self) -> str | None:
        """Why there is nothing to score: no video could be decoded, which is no accuracy of 0; None where some were."""
        if not self.failures or len(self.failures) < len(self.names):
            return None
        reason = next(iter(self.failures.values()))
        return (
            f"none of the {len(self.names)} videos can be decoded; the first: {reason}. Is the disk mounted, the root "
            "right? The same command tries them again"
        )

    def changed_since(self, earlier: Predictions) -> np.ndarray:
        """bool "n": which files are others by now, as far as both know. One that is not there now is not."""
        if self.files is None or earlier.files is None:
            return np.zeros(len(self.names), bool)
        return self.files.any(axis=1) & (self.files != earlier.files).any(axis=1)

    def averaged(self, views: Sequence[View] | None = None) -> np.ndarray:
        """float64 "n k": the mean of these views, of all where none are named.

        Raises: PredictionsError, for a view that was not predicted.
        """
        chosen = self.positions(views)
        total = np.zeros((len(self.labels), len(self.classes)))
        for position in chosen:  # one at a time: of many views, all at once would be gigabytes
            total += self.scores[:, position]
        return total / len(chosen)

    def positions(self, views: Sequence[View] | None = None) -> list[int]:
        """Where these views stand along the second axis of the scores."""
        if views is None:
            return list(range(len(self.views)))
        if not views:
            raise PredictionsError("no views are named; leave views out to take all")
        place_of = {view: position for position, view in enumerate(self.views)}
        for view in views:
            if tuple(view) not in place_of:
                raise PredictionsError(f"view {tuple(view)} was not predicted; there are {self.layout}")
        return [place_of[tuple(view)] for view in views]

    @property
    def is_grid(self) -> bool:
        """Whether every clip has every crop."""
        return len({clip for clip, _ in self.views}) * len({crop for _, crop in self.views}) == len(self.views)

    @property
    def layout(self) -> str:
        """'4 clips x 3 crops', where the views are a full grid; else their list."""
        if self.is_grid:
            return f"{len({clip for clip, _ in self.views})} clips x {len({crop for _, crop in self.views})} crops"
        return ", ".join(map(str, self.views))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes an .npz of plain arrays and text; whole or not at all.

        Raises: OSError naming the file.
        """
        path = Path(path)
        texts = json.dumps({"format": FORMAT} | {name: getattr(self, name) for name in TEXTS}, allow_nan=False)
        arrays = {name: np.asarray(getattr(self, name)) for name in ARRAYS}
        arrays |= {} if self.files is None else {FILES: self.files}
        try:
            with written_whole(path) as file:
                np.savez(file, texts=np.frombuffer(texts.encode(), np.uint8), **arrays)
        except OSError as error:
            raise OSError(
                f"{path} cannot be written: {error}; choose a folder that is writable and not full"
            ) from error
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Predictions:
        """Raises: FileNotFoundError; PredictionsError, when the file is damaged or something else."""
        path = Path(path)
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in (*ARRAYS, FILES) if name in file or name != FILES}
                texts = json.loads(file["texts"].tobytes())
            version = texts.get("format")
            if version == FORMAT:
                return cls(**arrays, **{name: texts[name] for name in TEXTS})
        except FileNotFoundError:
            raise FileNotFoundError(f"there are no predictions {path}; check the path") from None
        except (OSError, ValueError, KeyError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise PredictionsError(
                f"{path} holds no predictions that can be read ({reason}): damaged, or another kind of file; "
                "evaluate again"
            ) from error
        raise PredictionsError(f"{path} has the format {version}, this version reads {FORMAT}; update attention-zoo")
