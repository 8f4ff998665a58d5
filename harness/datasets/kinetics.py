"""Kinetics-400, -600 and -700: ten-second clips of videos from YouTube, one action each.

Source: the lists and files that the CVDF distributes, https://github.com/cvdfoundation/kinetics-dataset:
`annotations/{train,val,test}.csv` (Kinetics-600: also `.txt`) with the columns `label,youtube_id,time_start,time_end,
split` (and `is_cc` in some), and files named `<youtube_id>_<time_start, six digits>_<time_end, six digits>.mp4`, flat
in `train/`, `val/` and `test/` as they are unpacked, or in class folders as `arrange_by_classes.py` and mmaction2
arrange them. Where the replacements for damaged videos are unpacked under the root (`replacement_for_corrupted_k400/`),
they are taken.

Labels count the class names in the order of the alphabet, as published checkpoints do. A plain list of lines
`path label` is read too.
"""

from __future__ import annotations

import re
from pathlib import Path

from harness.datasets import DataError, DataSet, Item, register
from harness.datasets.files import (
    Found,
    bad,
    find,
    find_class_names,
    label_of,
    labelled_lines,
    numbered,
    rows,
    spelled,
    under,
)

SOURCE = "https://github.com/cvdfoundation/kinetics-dataset"
NEEDS = (
    "train.csv, val.csv (in the root or annotations/; columns label,youtube_id,time_start,time_end,split) and the "
    "videos <youtube_id>_<start>_<end>.mp4, flat or in class folders; or lists of lines `path label`"
)
RENAMED = {"start_time": "time_start", "end_time": "time_end"}  # columns of some lists
SECONDS = re.compile(r"\d+(\.\d+)?")
REPLACEMENT = "replacement_for_corrupted_k400"


def candidates(count: int, split: str) -> list[str]:
    """File names under which the list of a split is known: CVDF's, DeepMind's, mmaction2's."""
    alias = {"val": "validate"}.get(split, split)
    tables = [f"{split}.csv", f"kinetics_{split}.csv", f"kinetics{count}_{split}.csv", f"kinetics-{count}_{split}.csv"]
    plain = [f"kinetics{count}_{split}_list_videos.txt", f"{split}_list.txt", f"{split}.list"]
    # the .csv of Kinetics-600 at the CVDF are incomplete, its .txt are not
    texts = [f"{split}.txt", f"kinetics_{count}_{split}.txt"]
    return (texts + tables if count == 600 else tables + texts) + ([f"{alias}.csv"] if alias != split else []) + plain


def register_kinetics(count: int, what: str) -> None:
    """Add the data set of so many classes; `what` it holds is said in the list of data sets."""
    name = f"kinetics{count}"

    def kinetics(
        split: str, root: Path, *, annotations: str | None = None, videos: str | None = None,
        classes: str | None = None, subset: bool = False,
    ) -> DataSet:  # fmt: skip
        path = find(root, candidates(count, split), f"{name} {split}", SOURCE, annotations, split=split)
        named = find_class_names(root, path, ("classes.txt", f"label_map_k{count}.txt", "label_map.txt"), classes)
        if _is_official(path):
            listed = _official(path)
            names = named or _names(path, listed, count, subset)
            items = _located(listed, names, path, root, videos, split)
        else:
            items, names = _plain(path, root, named), named or numbered([count - 1])
            largest = max((item.label for item in items), default=0)
            if largest >= len(names):
                raise DataError(f"{path}: its largest label is {largest}, but {name} has {len(names)}")
        return DataSet(name, split, root, tuple(items), names, source=SOURCE)

    kinetics.__doc__ = f"Kinetics-{count}{what}"
    register(name, needs=NEEDS)(kinetics)


def _is_official(path: Path) -> bool:
    """Whether any line of the list has the columns of the owners; a path may hold commas, too."""
    listed = [row for _, row in rows(path)]
    if not listed:
        raise DataError(f"{path}: the list is empty")
    head = any("youtube_id" in field.lower() for field in listed[0])
    return head or any(len(row) > 3 and all(map(SECONDS.fullmatch, row[2:4])) for row in listed)


def _official(path: Path) -> list[tuple[int, str, str]]:
    """(line, label, file name without extension) of each row. Raises: DataError."""
    head: dict[str, int] = {"label": 0, "youtube_id": 1, "time_start": 2, "time_end": 3}
    listed = []
    for index, (number, row) in enumerate(rows(path)):
        if index == 0 and "youtube_id" in (field.lower() for field in row):
            columns = {field.lower(): column for column, field in enumerate(row)}
            head = {RENAMED.get(key, key): column for key, column in columns.items()}
            if "label" not in head:
                raise DataError(f"{path}: has no column `label`: this split was published without; use val")
            missing = [key for key in ("time_start", "time_end") if key not in head]
            if missing:
                raise bad(path, number, row, f"a header with the column {missing[0]}")
            continue
        expected = "label,youtube_id,time_start,time_end"
        if len(row) <= max(head[key] for key in ("label", "youtube_id", "time_start", "time_end")):
            raise bad(path, number, row, expected)
        label, clip = spelled(row[head["label"]].replace('"', "")), row[head["youtube_id"]]
        try:
            start, end = (int(float(row[head[key]])) for key in ("time_start", "time_end"))
        except ValueError:
            raise bad(path, number, row, f"{expected} with times in seconds") from None
        if not label or not re.fullmatch(r"[\w-]+", clip):
            raise bad(path, number, row, f"{expected}: label or youtube_id is empty or odd")
        listed.append((number, label, f"{clip}_{start:06d}_{end:06d}"))
    if not listed:
        raise DataError(f"{path}: lists no videos")
    return listed


def _names(path: Path, listed: list[tuple[int, str, str]], count: int, subset: bool) -> tuple[str, ...]:
    """All class names in the order of the alphabet; of a part of the data set, those of all lists beside this one."""
    names = {label for _, label, _ in listed}
    for split in ("train", "val") if len(names) != count else ():
        beside = [path.parent / name for name in candidates(count, split)]
        sibling = next((place for place in beside if place.is_file() and place != path), None)
        if sibling is not None and _is_official(sibling):
            names |= {label for _, label, _ in _official(sibling)}
    if len(names) != count and not subset:
        raise DataError(
            f"{path}: names {len(names)} classes, kinetics{count} has {count}, so labels would not be those of "
            f"published checkpoints; give classes=FILE (all {count} names, one a line) or, to number these alone, "
            "subset=true"
        )
    return tuple(sorted(names))


def _located(
    listed: list[tuple[int, str, str]], names: tuple[str, ...], path: Path, root: Path, videos: str | None, split: str
) -> list[Item]:
    files = Found(root, videos)
    labels = {name: label for label, name in enumerate(names)}
    alike = {name.replace(" ", "_"): label for name, label in labels.items()}
    folders = {"val": ("val", "validate", "validation"), "train": ("train",), "test": ("test",)}[split]
    items = []
    for number, name, stem in listed:
        label = labels.get(name, alike.get(name.replace(" ", "_")))
        if label is None:
            raise bad(path, number, name, f"one of the {len(names)} class names")
        near = (REPLACEMENT, *folders, name, name.replace(" ", "_"))
        items.append(Item(files.file(stem, near) or f"{videos or split}/{stem}.mp4", label))
    return items


def _plain(path: Path, root: Path, classes: tuple[str, ...] | None) -> list[Item]:
    items = []
    for number, line, video, label in labelled_lines(path):
        items.append(Item(under(root, video), label_of(label, classes, path, number, line)))
    return items


register_kinetics(400, ": 400 human actions, about 240 000 training and 20 000 validation clips of ten seconds.")
register_kinetics(600, ": 600 human actions, about 390 000 training and 30 000 validation clips of ten seconds.")
register_kinetics(700, " (2017 or 2020): 700 human actions, about 540 000 training and 35 000 validation clips.")
