"""What a checkpoint sees in a video: `python -m harness.predict model=NAME checkpoint=FILE clip=video.mp4`.

Prints the classes with the highest probability, averaged over views. Checkpoints written here say of which model they
are; published ones (DualFormer, Video Swin) need `model=` or `recipe=`. With `stream=true` a recurrent model
answers after every frame, as the video plays.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.clips.decoding import VideoError, check_file
from harness.evaluation.protocol import TestOptions, parsed_views
from harness.spec import options
from harness.spec.options import option
from harness.spec.reader import Count, Flag, UsageError
from records.terminal import json_line

if TYPE_CHECKING:
    from harness.evaluation.trained import Trained


@dataclass(frozen=True, kw_only=True)
class Options(TestOptions):
    clip: str = option(meaning="a video file")
    top: Count = option(5, "how many classes are printed")
    stream: Flag = option(False, "the classes after each frame, as the video plays; for models that look back only")
    views: str | None = option(None, "clips x crops, as in views=4x1; for trained models as in their recipe, else 4x1")


COMMAND = options.Command(
    "python -m harness.predict",
    "The classes that a trained model sees in a video, with probabilities.",
    Options,
    (
        ("checkpoint=model.safetensors clip=video.mp4", "a checkpoint written here"),
        (
            "model=dualformer_tiny checkpoint=dualformer_tiny.pth clip=video.mp4 classes=kinetics400.txt",
            "a published one",
        ),
    ),
)


def main(argv: list[str] | None = None) -> int:
    return options.run(COMMAND, predict, argv)


def predict(options: Options) -> int:
    """Returns the exit status. Raises: UsageError."""
    path, view_counts = checked_clip(options.clip), parsed_views(options.views)

    from harness.evaluation import trained  # torch: a slip above is told at once

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


def _predicted(options: Options, path: Path, loaded: Trained) -> dict:
    """The classes of one model, printed and for programs. Raises: UsageError, VideoError."""
    from harness.evaluation import views  # torch, as above

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


def _streamed(options: Options, path: Path, loaded: Trained) -> int:
    """One line a frame, written at once. Raises: UsageError."""
    from harness.evaluation import views  # torch, as above

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


def checked_clip(text: str) -> Path:
    """The path of a video file. Raises: UsageError, before anything slow is done."""
    path = Path(text).expanduser()
    try:
        check_file(path)
    except VideoError as error:
        raise UsageError(named(path, error)) from None
    return path


def named(path: Path, error: object) -> str:
    """The error of a decoder, which names the path in one way or another, as one of the option `clip`."""
    text = str(error).removeprefix("clip=")
    for spelling in (path.absolute(), path):
        text = text.removeprefix(f"{spelling}: ")
    return f"clip={path}: {text}"


if __name__ == "__main__":
    sys.exit(main())
