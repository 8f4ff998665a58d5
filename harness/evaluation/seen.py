"""What a trained model sees in a video, and what it looks at, as pictures and films."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attention_zoo.registry import nearest
from harness.clips.decoding import VideoError
from harness.evaluation import attention, pictures, trained, views
from harness.evaluation import gradcam as cam
from harness.evaluation.overlay import OverlayOptions
from harness.evaluation.protocol import named
from harness.spec.reader import UsageError
from records.terminal import json_line

if TYPE_CHECKING:
    from harness.gradcam import Options


def gradcam(options: Options, path: Path, png: Path, view_counts: tuple[int, int]) -> int:
    """Where a class is seen. Returns the exit status. Raises: UsageError."""
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


def attention_map(options: OverlayOptions, path: Path, png: Path) -> int:
    """What a class token looks at. Returns the exit status. Raises: UsageError."""
    loaded = trained.load_trained(options, (1, 1))
    try:
        pixels = views.views_of(path, loaded.protocol)
    except VideoError as error:
        raise UsageError(named(path, error)) from None
    try:
        looks = attention.looks(loaded.model, views.normalised_for(pixels, loaded.protocol))
    except ValueError as error:
        raise UsageError(str(error)) from None
    block = list(loaded.model.blocks())[-1]
    print(f"{path.name}: {looks[0].reader} in {block} of {loaded.name}; {loaded.protocol}")
    frames = pixels[0].permute(1, 2, 3, 0).numpy()
    files = []
    for look in looks:
        where = png.with_name(f"{png.stem}-{look.path}.png") if look.path else png
        title = f"attention of {look.reader} · {block}" + (f" · {look.path}" if look.path else "")
        drawn, heat = frames[list(look.frames)], look.heat.cpu().numpy()
        files += pictures.write(where, drawn, heat, title, options, "attention", look.frames)
    if options.json:
        json_line({"status": 0, "clip": str(path), "model": loaded.name, "block": block, "files": files})
    return 0


def class_number(target: str | None, loaded: trained.Trained) -> int | None:
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
