"""What a checkpoint looks at: `python -m harness.attention_map model=NAME checkpoint=FILE clip=video.mp4`.

Draws the attention of the class token in the last block over the frames, of each path where a model has several
(DualPath: the frames and the mosaics); where there is no class token, the mean of all tokens. A PNG of some frames and
a film, as `harness.gradcam`, which says where a class is seen instead.
"""

from __future__ import annotations

import sys

from harness.clips.decoding import VideoError
from harness.evaluation.overlay import OverlayOptions
from harness.predict import checked_clip, named
from harness.spec import options
from harness.spec.reader import UsageError
from records.terminal import json_line

COMMAND = options.Command(
    "python -m harness.attention_map",
    "Pictures of what the class token of a trained model attends to in its last block; without one, the average of "
    "all tokens.",
    OverlayOptions,
    (
        ("checkpoint=model.safetensors clip=video.mp4", "of a checkpoint written here"),
        (
            "model=timesformer_base checkpoint=TimeSformer_divST.pth clip=video.mp4 recipe=timesformer_k400",
            "of a published one",
        ),
    ),
)


def main(argv: list[str] | None = None) -> int:
    return options.run(COMMAND, attention_map, argv)


def attention_map(options: OverlayOptions) -> int:
    """Returns the exit status. Raises: UsageError."""
    path = checked_clip(options.clip)
    png = options.png("attention_map", path)

    # torch and matplotlib: a slip above is told at once
    from harness.evaluation import attention, pictures, trained, views

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


if __name__ == "__main__":
    sys.exit(main())
