"""Real appearance: square cuts of the photographs inside of the scikit-image wheel.

Each photograph belongs to one split, for objects and for backgrounds alike, so nothing that a network learns about how
things look in training is seen again in a test. Cutting and shrinking is done on whole numbers: the same pixels on
every machine.
"""

from __future__ import annotations

import hashlib
import math
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from harness.datasets import DataError

# All of them photographs (or scans) with structure everywhere; drawings, masks and the second picture of a stereo pair
# are left out, and so are the faces of `lfw_subset`.
PHOTOGRAPHS = {
    "train": (
        "astronaut.png", "brick.png", "camera.png", "coffee.png", "coins.png", "gravel.png", "hubble_deep_field.jpg",
        "ihc.png", "moon.png", "page.png",
    ),
    "val": ("cell.png", "grass.png", "retina.jpg"),
    "test": ("chelsea.png", "motorcycle_left.png", "rocket.jpg", "text.png"),
}  # fmt: skip
SHORT_SIDE = 400  # pixels kept of the short side of a larger photograph; no cut needs more
FLAT = 14.0  # standard deviation (0-255) below which a cut shows too little; another one is tried
FLAT_TRIES = 6


def folder() -> Path:
    """Where scikit-image keeps its pictures. Raises: DataError."""
    spec = find_spec("skimage")  # finds without importing: no cost
    if spec is None or not spec.submodule_search_locations:
        raise DataError("the photographs of data set motion come with scikit-image; run `pip install scikit-image`")
    return Path(spec.submodule_search_locations[0]) / "data"


@cache
def photograph(name: str) -> np.ndarray:
    """One photograph, uint8 `h w 3`, its short side at most SHORT_SIDE. Raises: DataError naming the file."""
    path = folder() / name
    try:
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB"))
    except OSError as error:
        raise DataError(
            f"{path}: a photograph of data set motion that cannot be read ({error}); "
            "reinstall it with `pip install --force-reinstall --no-deps scikit-image`"
        ) from error
    short = min(pixels.shape[:2])
    if short > SHORT_SIDE:
        height, width = (round(side * SHORT_SIDE / short) for side in pixels.shape[:2])
        pixels = shrunk(pixels, height, width)
    pixels.setflags(write=False)
    return pixels


@cache
def digest(split: str) -> str:
    """sha256 of the pixels of a split's photographs."""
    total = hashlib.sha256()
    for name in PHOTOGRAPHS[split]:
        pixels = photograph(name)
        total.update(f"{name} {pixels.shape}\n".encode() + pixels.tobytes())
    return total.hexdigest()


def shrunk(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 `h w 3` shrunk to `height width 3`: each new pixel is the mean of the box of old ones that it covers."""
    rows = np.arange(height) * pixels.shape[0] // height
    columns = np.arange(width) * pixels.shape[1] // width
    sums = np.add.reduceat(np.add.reduceat(pixels.astype(np.int64), rows, axis=0), columns, axis=1)
    counts = np.diff(rows, append=pixels.shape[0])[:, None] * np.diff(columns, append=pixels.shape[1])[None, :]
    return ((sums + counts[..., None] // 2) // counts[..., None]).astype(np.uint8)


def stretched(pixels: np.ndarray, size: int) -> np.ndarray:
    """uint8 `s s 3` enlarged to `size size 3`: colours run evenly from the middle of one old pixel to the next."""
    side = len(pixels)
    # Twice `size` times the place of a new pixel between the old ones, so that all of it is whole numbers.
    place = np.clip((2 * np.arange(size) + 1) * side - size, 0, 2 * size * (side - 1))
    first = np.minimum(place // (2 * size), max(side - 2, 0))
    part, last = place - 2 * size * first, np.minimum(first + 1, side - 1)
    values = pixels.astype(np.int64)
    rows = values[first] * (2 * size - part)[:, None, None] + values[last] * part[:, None, None]
    enlarged = rows[:, first] * (2 * size - part)[:, None] + rows[:, last] * part[:, None]
    return ((enlarged + 2 * size * size) // (4 * size * size)).astype(np.uint8)


def cut(
    random: np.random.Generator,
    name: str,
    size: int,
    share: tuple[float, float],
    level: tuple[float, float],
    deviation: float,
    quarters: bool = False,
) -> np.ndarray:
    """A square cut of a photograph, uint8 `size size 3`; its place, share of the short side and colours are drawn.

    The cut gets the given standard deviation and a mean colour drawn around a drawn grey of `level`, so that no
    photograph gives itself away by its brightness. `quarters`: also turned by a drawn multiple of 90 degrees.
    """
    pixels, best = photograph(name), None
    for _ in range(FLAT_TRIES):
        side = max(size, int(uniform(random, *share) * min(pixels.shape[:2])))
        side = min(side, *pixels.shape[:2])
        top, left = (int(random.random() * (length - side + 1)) for length in pixels.shape[:2])
        square = pixels[top : top + side, left : left + side]
        square = shrunk(square.repeat(-(-size // side), 0).repeat(-(-size // side), 1), size, size)
        spread = _deviation(square)
        if best is None or spread > best[0]:
            best = spread, square
        if spread >= FLAT:
            break
    spread, square = best
    if random.random() < 0.5:
        square = square[:, ::-1]
    if quarters:
        square = np.rot90(square, int(random.random() * 4))
    square = square[..., chosen(random, ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)))]
    grey = uniform(random, *level)
    colour = np.array([grey + uniform(random, -30, 30) for _ in range(3)])
    gain = min(deviation / max(spread, 1), 4.0)
    mean = square.sum(dtype=np.int64) / square.size
    return np.clip(np.floor((square - mean) * gain + colour + 0.5), 0, 255).astype(np.uint8)


def _deviation(pixels: np.ndarray) -> float:
    """Standard deviation over pixels and channels, from whole sums: the same on every machine."""
    values = pixels.astype(np.int64)
    return math.sqrt(max(0, int((values * values).sum()) * values.size - int(values.sum()) ** 2)) / values.size


def uniform(random: np.random.Generator, low: float, high: float) -> float:
    """One number between the two. Only `Generator.random` is used here: its stream is the plainest that there is."""
    return low + (high - low) * random.random()


def chosen(random: np.random.Generator, options):
    """One of a sequence, all equally likely."""
    return options[int(random.random() * len(options))]
