"""Class folders: `train/<class>/<video>`, `val/<class>/<video>`; the layout that ImageFolder made common.

Classes are the folders of all splits in the order of the alphabet, so that every split numbers them alike. A folder of
numbered pictures counts as one video. Whether left and right matter is not known, so clips are not flipped unless
`sided=false` says that they may be: a wrong flip harms without a sign.
"""

from __future__ import annotations

from pathlib import Path

from harness.datasets import DataError, DataSet, Item, register
from harness.datasets.frames import VIDEOS, are_frames, count_frames, videos, visible

SPLIT_FOLDERS = {"train": ("train", "training"), "val": ("val", "validation", "valid"), "test": ("test", "testing")}


@register("folder", needs="class folders with videos in train/ and val/ (test/ for split=test)")
def folder(split: str, root: Path, *, sided: bool = True) -> DataSet:
    """Any folder of class folders: `train/<class>/<video>` and `val/<class>/<video>`."""
    places = {name: place for name in SPLIT_FOLDERS if (place := _place(root, name)) is not None}
    if split not in places:
        looked = " or ".join(SPLIT_FOLDERS[split])
        raise DataError(
            f"{root}: no folder {looked} with class folders for the split {split}; there: {', '.join(places) or 'none'}"
        )
    classes = sorted({entry.name for place in places.values() for entry in visible(place) if entry.is_dir()})
    items: list[Item] = []
    for label, name in enumerate(classes):
        if (places[split] / name).is_dir():
            items += _videos(root, places[split] / name, label)
    if not items:
        raise DataError(f"{places[split]}: its class folders hold no videos; known endings: {', '.join(VIDEOS)}")
    return DataSet("folder", split, root, tuple(items), tuple(classes), sided=sided, source=str(root.name))


def _place(root: Path, split: str) -> Path | None:
    for name in SPLIT_FOLDERS[split]:
        place = root / name
        if place.is_dir() and any(entry.is_dir() for entry in visible(place)):
            return place
    return None


def _videos(root: Path, place: Path, label: int, above: tuple[Path, ...] = ()) -> list[Item]:
    """The videos of a folder and of those in it; a link back to a folder `above` is not followed."""
    real = place.resolve()
    if real in above:
        return []
    entries, items = visible(place), []
    films = set(videos(entry.name for entry in entries if not entry.is_dir()))
    for entry in entries:
        path = Path(entry.path).relative_to(root).as_posix()
        if entry.name in films:
            items.append(Item(path, label))
        elif entry.is_dir() and are_frames(inside.name for inside in visible(entry.path) if not inside.is_dir()):
            items.append(Item(path, label, frames=count_frames(entry.path)))
        elif entry.is_dir():
            items += _videos(root, Path(entry.path), label, (*above, real))
    return items
