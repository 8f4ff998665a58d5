"""The classes that a trained model sees in a video, told to a person and to programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.clips.decoding import VideoError
from harness.evaluation import trained, views
from harness.evaluation.protocol import named
from harness.spec.reader import UsageError
from records.terminal import json_line

if TYPE_CHECKING:
    from harness.predict import Options


def predict(options: Options, path: Path, view_counts: tuple[int, int] | None) -> int:
    """Returns the exit status. Raises: UsageError."""
    several = trained.each(options, view_counts)
    if options.stream:
        if len(several) > 1:
            raise trained.SeveralSets(several[0].checkpoint, {loaded.set: len(loaded.classes) for loaded in several})
        return _streamed(options, path, several[0])
    try:
        seen = [_predicted(options, path, loaded) for loaded in several]
    except VideoError as error:
        raise UsageError(named(path, error)) from None
    if options.json:
        json_line({"status": 0, "clip": str(path), "models": seen})
    return 0


def _predicted(options: Options, path: Path, loaded: trained.Trained) -> dict:
    """The classes of one model, printed and for programs. Raises: UsageError, VideoError."""
    clips = views.views_of(path, loaded.protocol)
    parts = clips.split(options.batch_size)
    rows = [views.probabilities_of(loaded.model, part, loaded.protocol) for part in parts]
    probabilities = np.concatenate(rows).mean(axis=0, dtype=np.float64)
    if not np.isfinite(probabilities).all():
        raise UsageError(
            f"{loaded.checkpoint}: the scores are not finite; the weights have diverged, or dtype={options.dtype} is "
            "too narrow for them: try dtype=float32"
        )
    print(loaded.title)
    print(f"{path.name}: {loaded.protocol}")
    if not loaded.named:
        print("classes have no names; classes=FILE gives them, one a line")
    best = np.argsort(-probabilities, kind="stable")[: options.top]
    labels = {index: loaded.classes[index] if loaded.named else f"class {index}" for index in best}
    width = max(map(len, labels.values()))
    for place, index in enumerate(best, 1):
        print(f"{place:>3}  {labels[index]:<{width}}  {100 * probabilities[index]:5.1f} %")
    classes = [{"label": int(k), "class": labels[k], "probability": float(probabilities[k])} for k in best]
    return {"model": loaded.name, "classes": classes}


def _streamed(options: Options, path: Path, loaded: trained.Trained) -> int:
    """One line a frame, written at once. Raises: UsageError."""
    if not hasattr(loaded.model, "stream"):
        raise UsageError(f"stream=true: {loaded.name} looks at whole clips; models of the family recurrent do not")
    print(loaded.title)
    seen: list[dict] = []
    try:
        for number, fps, probabilities in views.streamed(loaded.model, path, loaded.protocol):
            best = np.argsort(-probabilities, kind="stable")[: options.top]
            names = (loaded.classes[index] if loaded.named else f"class {index}" for index in best)
            seen.append(
                {"frame": number, "classes": [{"label": int(k), "probability": float(probabilities[k])} for k in best]}
            )
            answer = ", ".join(f"{name} {100 * probabilities[k]:.1f} %" for name, k in zip(names, best, strict=True))
            print(f"{number / fps:8.2f} s  {answer}" if fps else f"frame {number:5}  {answer}", flush=True)
    except VideoError as error:
        raise UsageError(named(path, error)) from None
    if options.json:
        json_line({"status": 0, "clip": str(path), "model": loaded.name, "frames": seen})
    return 0
