"""A picture of a data set: a row of frames for each class, from the first to the last of one clip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from harness.clips.reading import opened
from harness.datasets import DataError, DataSet, Item

LABEL_HEIGHT = 14


def contact_sheet(dataset: DataSet, path: str | Path, *, frames: int = 8, height: int = 96, classes: int = 24) -> Path:
    """Write a PNG with `frames` evenly spaced frames of the first readable clip of each class, a class a row.

    Rows are `height` pixels high. Of more than `classes` classes, that many evenly spaced ones are shown.
    Raises: DataError, when no clip can be read.
    """
    present = sorted({item.label for item in dataset.items})
    if len(present) > classes:
        present = [present[i * len(present) // classes] for i in range(classes)]
    rows, failures = [], []
    for label in present:
        for item in [item for item in dataset.items if item.label == label][:3]:
            try:
                rows.append((dataset.classes[label], _frames(dataset, item, frames)))
                break
            except (ValueError, OSError) as error:
                failures.append(str(error))
    if not rows:
        raise DataError(f"{dataset.name}: no clip to show; {failures[0] if failures else 'the list is empty'}")
    strips = []
    for name, pictures in rows:
        width = max(1, round(pictures.shape[2] * height / pictures.shape[1]))
        strip = Image.new("RGB", (len(pictures) * (width + 2), height + LABEL_HEIGHT + 2), "white")
        ImageDraw.Draw(strip).text((2, 1), name, fill="black")
        for place, picture in enumerate(pictures):
            scaled = Image.fromarray(picture).resize((width, height), Image.BILINEAR)
            strip.paste(scaled, (place * (width + 2), LABEL_HEIGHT))
        strips.append(strip)
    sheet = Image.new("RGB", (max(strip.width for strip in strips), sum(strip.height for strip in strips)), "white")
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, "PNG")
    return path


def _frames(dataset: DataSet, item: Item, count: int) -> np.ndarray:
    """Evenly spaced frames of one item, the first and the last among them, uint8 `count h w 3`."""
    with opened(dataset, item) as source:
        return source.read([round(i * (source.total - 1) / max(1, count - 1)) for i in range(count)])
