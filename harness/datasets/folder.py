"""Class folders: `train/<class>/<video>`, `val/<class>/<video>`; the layout that ImageFolder made common.

Classes are the folders of train and val in the order of the alphabet, or of numbers where all are numbers, so that
every split numbers them alike. A folder of numbered pictures counts as one video. Whether left and right matter is not
known, so clips are not flipped unless `sided=false` says that they may be: a wrong flip harms without a sign.
"""

from __future__ import annotations

from pathlib import Path

from harness.datasets import SPLIT_FOLDERS, DataError, DataSet, Item, register
from harness.datasets.files import spelled
from harness.datasets.frames import VIDEOS, are_frames, count_frames, videos, visible


@register("folder", needs="class folders with videos in train/ and val/ (test/ for split=test)")
def folder(split: str, root: Path, *, sided: bool = True) -> DataSet:
    """Any folder of class folders: `train/<class>/<video>` and `val/<class>/<video>`."""
    places = split_folders(root)
    if split not in places:
        looked = " or ".join(SPLIT_FOLDERS[split])
        raise DataError(
            f"{root}: no folder {looked} with class folders for the split {split}; there: {', '.join(places) or 'none'}"
        )
    # What is to be tested alone may have no classes, and so adds none.
    learnt = [place for name, place in places.items() if name != "test"] or [places[split]]
    classes = _ordered({name for place in learnt for name in _classes(place)})
    folders = _classes(places[split])
    if strangers := sorted(folders.keys() - set(classes)):
        place = folders[strangers[0]][0]
        raise DataError(f"{place}: is no class of train or val, which have {', '.join(classes[:5])}, ...")
    items = [
        item
        for label, name in enumerate(classes)
        for place in folders.get(name, ())
        for item in _videos(root, place, label)
    ]
    if not items:
        raise DataError(f"{places[split]}: its class folders hold no videos; known endings: {', '.join(VIDEOS)}")
    return DataSet("folder", split, root, tuple(items), tuple(classes), sided=sided, source=str(root.name))


def split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split that has one with folders in it."""
    folders = {entry.name.lower(): Path(entry.path) for entry in visible(root) if entry.is_dir()}
    return {
        split: places[0]
        for split, names in SPLIT_FOLDERS.items()
        if (places := [folders[name] for name in names if name in folders and _classes(folders[name])])
    }


def _classes(place: Path) -> dict[str, list[Path]]:
    """The folders of each class; two where its name is written in two ways."""
    folders: dict[str, list[Path]] = {}
    for entry in visible(place):
        if entry.is_dir():
            folders.setdefault(spelled(entry.name), []).append(Path(entry.path))
    return folders


def _ordered(names: set[str]) -> list[str]:
    numbers = all(name.isascii() and name.isdigit() for name in names)
    return sorted(names, key=lambda name: (int(name) if numbers else 0, name))


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
        elif entry.is_dir():
            below = _videos(root, Path(entry.path), label, (*above, real))
            items += [Item(path, label, frames=count)] if (count := _frames(entry.path, below)) else below
    return items


def _frames(folder: str, below: list[Item]) -> int:
    """How many pictures a video of pictures has; 0 for a folder with videos in it, or of them, and a cover beside."""
    files = [entry.name for entry in visible(folder) if not entry.is_dir()]
    if not are_frames(files) or any(item.frames is None for item in below):
        return 0
    count = count_frames(folder)
    return 0 if below and count == 1 else count
