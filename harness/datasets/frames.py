"""Videos that are kept as folders of pictures: one picture a frame, in the order of their numbers."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from harness.datasets import DataError

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def picture_names(folder: str | Path) -> list[str]:
    """The pictures of a folder by number (`img_2.jpg` before `img_10.jpg`); optical flow beside them is left out.

    Raises: DataError naming the folder.
    """
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.name.lower().endswith(PICTURES)]
    except OSError as error:
        raise DataError(f"{folder}: no folder of pictures: {error.strerror}") from error
    names = [name for name in names if not name.startswith(("flow_", "x_", "y_"))]
    if not names:
        raise DataError(f"{folder}: holds no pictures ({', '.join(PICTURES)})")
    return sorted(names, key=_order)


def count_frames(folder: str | Path) -> int:
    """How many pictures a folder holds. Raises: DataError naming the folder."""
    return len(picture_names(folder))


def read_frames(folder: str | Path, indices: Sequence[int]) -> np.ndarray:
    """The pictures at `indices` (from 0; repeated and unsorted ones allowed), RGB uint8 "n h w 3".

    Raises: DataError naming the folder or the picture, when one is missing, cannot be decoded or has another size.
    """
    names = picture_names(folder)
    out_of = [index for index in indices if not 0 <= index < len(names)]
    if out_of:
        raise DataError(
            f"{folder}: has {len(names)} pictures, none at index {out_of[0]}; its list promises more frames"
        )
    pictures: dict[int, np.ndarray] = {}
    for index in indices:
        if index in pictures:
            continue
        path = Path(folder) / names[index]
        try:
            with Image.open(path) as picture:
                pictures[index] = np.asarray(picture.convert("RGB"))
        except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:  # what PIL raises for damaged files
            raise DataError(f"{path}: cannot be decoded: {str(error).replace(str(path), 'the file')}") from error
    shapes = {picture.shape for picture in pictures.values()}
    if len(shapes) > 1:
        sizes = " and ".join(sorted(f"{width}x{height}" for height, width, _ in shapes))
        raise DataError(f"{folder}: pictures of different sizes in one video: {sizes}")
    if not pictures:
        raise DataError(f"{folder}: no index was asked for")
    return np.stack([pictures[index] for index in indices])


def _order(name: str) -> tuple[int, str]:
    numbers = re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers else -1, name
