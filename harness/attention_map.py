"""What a checkpoint looks at: `python -m harness.attention_map model=NAME checkpoint=FILE clip=video.mp4`.

Draws the attention of the class token in the last block over the frames, of each path where a model has several
(DualPath: the frames and the mosaics); where there is no class token, the mean of all tokens. A PNG of some frames and
a film, as `harness.gradcam`, which says where a class is seen instead.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.clips.decoding import VideoError
from harness.evaluation.protocol import TestOptions
from harness.gradcam import COLUMNS, RATE
from harness.predict import checked_clip, named
from harness.spec import options
from harness.spec.options import option
from harness.spec.reader import Count, UsageError

OUT = Path("outputs/attention_map")


@dataclass(frozen=True, kw_only=True)
class Options(TestOptions):
    clip: str = option(meaning="a video file")
    frames_shown: Count = option(COLUMNS, "frames in the PNG")
    movie: Literal["gif", "mp4"] = option("gif", "format of the film")
    rate: Count = option(RATE, "frames per second of the film")
    out: str | None = option(None, f"name of the PNG; in {OUT}, with the name of the clip, if left out")


COMMAND = options.Command(
    "python -m harness.attention_map",
    "Pictures of what the class token of a trained model attends to in its last block; without one, the average of "
    "all tokens.",
    Options,
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


def attention_map(options: Options) -> int:
    """Returns the exit status. Raises: UsageError."""
    path = checked_clip(options.clip)
    png = Path(options.out) if options.out else OUT / f"{path.stem}.png"
    if png.suffix != ".png":
        raise UsageError(f"out={png} must end in .png; the film stands beside it")
    if options.dtype != "float32":
        raise UsageError(f"dtype={options.dtype}: attention is computed in float32; leave dtype out")

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
    for look in looks:
        where = png.with_name(f"{png.stem}-{look.path}.png") if look.path else png
        film = where.with_suffix(f".{options.movie}")
        drawn, heat = frames[list(look.frames)], look.heat.cpu().numpy()
        under = pictures.coloured(drawn, heat)
        words = f"attention of {look.reader} · {block}" + (f" · {look.path}" if look.path else "")
        try:
            where.parent.mkdir(parents=True, exist_ok=True)
            pictures.write_strip(where, drawn, heat, under, words, options.frames_shown, "attention", look.frames)
            pictures.write_film(film, under, options.rate)
        except OSError as error:
            raise UsageError(f"{where} cannot be written: {error}") from error
        print(f"written {where} and {film}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
