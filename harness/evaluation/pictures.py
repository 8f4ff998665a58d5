"""Heat maps as pictures: frames above their heat in one PNG, and the clip under its heat as a film."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from PIL import Image

from harness.evaluation.overlay import OverlayOptions
from harness.motion.encoding import encode
from harness.spec.reader import UsageError


def coloured(frames: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """uint8 frames `t h w 3`, half themselves and half the heat `t h w` (0 to 1) in the colours of viridis."""
    colours = colormaps["viridis"](heat)[..., :3] * 255
    return (0.5 * frames + 0.5 * colours).round().astype(np.uint8)


def write(
    png: Path,
    frames: np.ndarray,
    heat: np.ndarray,
    title: str,
    options: OverlayOptions,
    what: str = "heat",
    numbers: Sequence[int] | None = None,
) -> list[str]:
    """Some frames "t h w 3", spread over the clip, above the same frames under their heat "t h w" (0 to 1), and a film
    of all that are under it. Returns the paths of both.

    `numbers` are those of the frames in the clip, where they are not all of it. Raises: UsageError.
    """
    film, under = png.with_suffix(f".{options.movie}"), coloured(frames, heat)
    chosen = spread(len(frames), options.frames_shown)
    height, width = frames.shape[1:3]
    inch = 1.5
    figure = Figure(figsize=(inch * len(chosen) + 0.9, 2 * inch * height / width + 0.75), dpi=150, layout="constrained")
    axes = figure.subplots(2, len(chosen), squeeze=False)
    for column, index in enumerate(chosen):
        for row, pictures in enumerate((frames, under)):
            axes[row, column].imshow(pictures[index])
            axes[row, column].set_axis_off()
        axes[0, column].set_title(f"frame {(index if numbers is None else numbers[index]) + 1}", fontsize=8)
        axes[1, column].set_title(f"peak {heat[index].max():.2f}", fontsize=8)
    bar = figure.colorbar(ScalarMappable(cmap="viridis"), ax=axes[1, :], fraction=0.03, pad=0.01, ticks=[0, 1])
    bar.set_label(what, fontsize=8)
    bar.ax.tick_params(labelsize=8)
    figure.suptitle(title.replace("$", r"\$"), fontsize=9, wrap=True)
    try:
        png.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(png, metadata={"Software": None})
        write_film(film, under, options.rate)
    except OSError as error:
        raise UsageError(f"{png} cannot be written: {error}") from error
    print(f"written {png} and {film}" + ("" if heat.any() else f" (the {what} is the same everywhere)"))
    return [str(png), str(film)]


def spread(total: int, count: int) -> list[int]:
    """`count` numbers below `total`, evenly spread; all of them where there are not more."""
    count = min(total, count)
    return [int((i + 0.5) * total / count) for i in range(count)]


def write_film(path: Path, pictures: np.ndarray, rate: int) -> None:
    """uint8 pictures "t h w 3" as a GIF that repeats, or an MP4."""
    if path.suffix == ".gif":
        first, *rest = (Image.fromarray(picture) for picture in pictures)
        first.save(path, save_all=True, append_images=rest, duration=round(1000 / rate), loop=0)
    else:
        height, width = (n - n % 2 for n in pictures.shape[1:3])  # the pixel format needs even sides
        encode(pictures[:, :height, :width], path, rate)
