"""A picture of a data set: a row of frames for each class, from the first to the last of one clip."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from harness.datasets import DataError, DataSet, Item

LABEL_HEIGHT = 14


def contact_sheet(dataset: DataSet, path: str | Path, *, frames: int = 8, height: int = 96, classes: int = 24) -> Path:
    """Write a PNG with `frames` evenly spaced frames of the first readable clip of each class, a class a row.

    Rows are `height` pixels high. Of more than `classes` classes, that many evenly spaced ones are shown.
    Raises: DataError, when no clip can be read.
    """
    from PIL import Image, ImageDraw

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
        shown = [Image.fromarray(one) for one in pictures]
        shown = [one.resize((max(1, round(one.width * height / one.height)), height), Image.BILINEAR) for one in shown]
        strip = Image.new("RGB", (sum(one.width + 2 for one in shown), height + LABEL_HEIGHT + 2), "white")
        ImageDraw.Draw(strip).text((2, 1), name, fill="black")
        left = 0
        for one in shown:
            strip.paste(one, (left, LABEL_HEIGHT))
            left += one.width + 2
        strips.append(strip)
    sheet = Image.new("RGB", (max(one.width for one in strips), sum(one.height for one in strips)), "white")
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
    from harness.clips.decoding import open_video
    from harness.datasets.frames import read_frames

    if item.frames is not None:
        return read_frames(dataset.path(item), _spread(0, item.frames - 1, count))
    with open_video(dataset.path(item)) as video:
        rate = video.facts.fps or 0
        first = min(len(video) - 1, round((item.start or 0) * rate))
        last = len(video) - 1 if item.end is None or not rate else min(len(video) - 1, round(item.end * rate))
        return video.read(_spread(first, max(first, last), count))


def _spread(first: int, last: int, count: int) -> list[int]:
    return [first + round(i * (last - first) / max(1, count - 1)) for i in range(count)]
