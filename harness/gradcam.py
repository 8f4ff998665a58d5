"""Where in a video a checkpoint sees a class: `python -m harness.gradcam model=NAME checkpoint=FILE clip=video.mp4`.

Writes frames over heat as a PNG, and the clip under its heat as a GIF or MP4; as the published figure (DualFormer,
Fig. 6), see `evaluation.gradcam`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attention_zoo.registry import nearest
from harness.clips.decoding import VideoError
from harness.evaluation.overlay import OverlayOptions
from harness.evaluation.protocol import parsed_views
from harness.predict import checked_clip, named
from harness.spec import options
from harness.spec.options import option
from harness.spec.reader import UsageError
from records.terminal import json_line

if TYPE_CHECKING:
    from harness.evaluation.trained import Trained


@dataclass(frozen=True, kw_only=True)
class Options(OverlayOptions):
    target: str | None = option(None, "name or number of the class that is looked for; the most probable if left out")
    block: str | None = option(None, "whose output is looked at, as in block=stages.3.blocks.3; the last if left out")
    views: str = option("1x1", "clips x crops; each has its own pictures, the class is theirs together")


COMMAND = options.Command(
    "python -m harness.gradcam",
    "Pictures of where and when a trained model sees a class (Grad-CAM).",
    Options,
    (
        ("checkpoint=model.safetensors clip=video.mp4", "of the most probable class"),
        ("checkpoint=model.safetensors clip=video.mp4 target=waving block=stages.2.blocks.9", "of another, earlier"),
    ),
)


def main(argv: list[str] | None = None) -> int:
    return options.run(COMMAND, gradcam, argv)


def gradcam(options: Options) -> int:
    """Returns the exit status. Raises: UsageError."""
    path = checked_clip(options.clip)
    png = options.png("gradcam", path)
    view_counts = parsed_views(options.views)

    # torch and matplotlib: a slip above is told at once
    from harness.evaluation import gradcam as cam
    from harness.evaluation import pictures, trained, views

    loaded = trained.load_trained(options, view_counts)
    target = class_number(options.target, loaded)
    try:
        pixels = views.views_of(path, loaded.protocol)
    except VideoError as error:
        raise UsageError(named(path, error)) from None
    clips = views.normalised_for(pixels, loaded.protocol)
    try:
        maps = cam.heat_maps(loaded.model, clips, target=target, block=options.block, batch_size=options.batch_size)
    except ValueError as error:
        raise UsageError(str(error)) from None
    name = loaded.classes[maps.target] if loaded.named else f"class {maps.target}"
    share = f"{100 * maps.probabilities[maps.target].item():.1f} %"
    print(f"{path.name}: {name}, {share}; {maps.block} of {loaded.name}; {loaded.protocol}")
    files = []
    for number, (view, heat) in enumerate(zip(pixels, maps.heat.cpu().numpy(), strict=True)):
        where = png if len(pixels) == 1 else png.with_name(f"{png.stem}-{number + 1}.png")
        frames = view.permute(1, 2, 3, 0).numpy()
        files += pictures.write(where, frames, heat, f"{name}, {share} · {maps.block}", options)
    if options.json:
        json_line({"status": 0, "clip": str(path), "model": loaded.name, "class": name, "files": files})
    return 0


def class_number(target: str | None, loaded: Trained) -> int | None:
    """The number of a class that is given by name or number. Raises: UsageError."""
    if target is None:
        return None
    if loaded.named and target in loaded.classes:
        return loaded.classes.index(target)
    if target.isdecimal() and int(target) < len(loaded.classes):
        return int(target)
    if loaded.named and not target.isdecimal():
        raise UsageError(f"unknown class {target!r}; {nearest(target, loaded.classes)}")
    hint = "" if loaded.named else "; names need classes=FILE"
    raise UsageError(f"target={target} is none of the {len(loaded.classes)} classes, numbered from 0{hint}")


if __name__ == "__main__":
    sys.exit(main())
