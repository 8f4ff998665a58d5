"""Plain lists: `train.csv` and `val.csv` of one's own, and the annotation lists of mmaction2 and SlowFast.

All name a path under the root and a label from 0 on each line. Class names come from `classes.txt` (or
`classes=FILE`); without it classes are called by their numbers, counted over the lists of all splits that are there.
Such a list does not say whether left and right matter, so clips are not flipped unless `sided=false` says that they may
be: a wrong flip harms without a sign.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from harness.datasets import SPLITS, DataError, DataSet, Item, register
from harness.datasets.files import (
    ENDS,
    LABELS,
    PATHS,
    STARTS,
    bad,
    column,
    find,
    find_class_names,
    is_heading,
    label_of,
    labelled_lines,
    lines,
    numbered,
    rows,
    spelled,
    under,
)
from harness.datasets.frames import is_video

FOLDERS = ("", "annotations", "lists", "data_list")
NUMBER = re.compile(r"[-+]?[\d.]+")
CUTS = (("start", STARTS), ("end", ENDS))
FRAMES = ("start_frame", "end_frame", "frame_start", "frame_end", "first_frame", "last_frame")
HERE = "whoever made the data set"


class Listed(NamedTuple):
    """What one list says: its videos; their labels, where these are names and not numbers; and the names of labels that
    are numbers, where a column has them."""

    items: list[Item]
    words: set[str]
    names: dict[int, str]


@register("csv", needs="train.csv, val.csv (test.csv) with lines `path,label`; classes.txt with one class name a line")
def csv(
    split: str, root: Path, *, annotations: str | None = None, classes: str | None = None, sided: bool = True
) -> DataSet:
    """Lists of one's own: `path,label` on each line of train.csv and val.csv.

    Labels are numbers from 0, or class names. A header `path,label,start,end` may add seconds that cut a file, and one
    such as `path,label,class_name` the names of numbers; other columns need a header too and are not read.
    """
    return _listed("csv", split, root, ("{split}.csv",), _read_csv, annotations, classes, sided, HERE)


@register(
    "mmaction",
    needs="<data>_{train,val}_list_videos.txt or _list_rawframes.txt, or {train,val}_list.txt, {train,val}.txt: lines "
    "`path label`, or `folder frames label` for folders of pictures",
)
def mmaction(
    split: str, root: Path, *, annotations: str | None = None, classes: str | None = None, videos: str = "",
    sided: bool = True,
) -> DataSet:  # fmt: skip
    """Annotation lists of mmaction2: `path label` for videos, `folder frames label` for folders of pictures.

    Source: https://github.com/open-mmlab/mmaction2, VideoDataset and RawframeDataset. `videos` is its `data_prefix`.
    """
    names = (
        "*{split}_list_videos.txt",
        "*{split}_list_rawframes.txt",
        "*{split}_list.txt",
        "*{split}*videos.txt",
        "{split}.txt",
    )
    source = "https://github.com/open-mmlab/mmaction2 (tools/data)"
    return _listed("mmaction", split, root, names, _read_mmaction, annotations, classes, sided, source, videos)


@register("slowfast", needs="train.csv, val.csv, test.csv with lines `path label`, parted by a space or a comma")
def slowfast(
    split: str, root: Path, *, annotations: str | None = None, classes: str | None = None, videos: str = "",
    sided: bool = True,
) -> DataSet:  # fmt: skip
    """Annotation lists of SlowFast, TimeSformer and their kin: `path label`, parted by a space or a comma.

    Source: https://github.com/facebookresearch/SlowFast, slowfast/datasets/DATASET.md. `videos` is its `PATH_PREFIX`.
    """
    source = "https://github.com/facebookresearch/SlowFast (slowfast/datasets/DATASET.md)"
    return _listed(
        "slowfast", split, root, ("{split}.csv",), _read_slowfast, annotations, classes, sided, source, videos
    )


def _listed(
    name: str,
    split: str,
    root: Path,
    patterns: Sequence[str],
    read: Callable[[Path, tuple[str, ...] | None], Listed],
    annotations: str | None,
    classes: str | None,
    sided: bool,
    source: str,
    videos: str = "",
) -> DataSet:
    path = _find(root, patterns, split, annotations)
    if path is None:
        tried = [pattern.format(split=split) for pattern in patterns]
        path = find(root, tried, f"{name} {split}", source, annotations, FOLDERS, split)  # says what was looked for
    named = find_class_names(root, path, ("classes.txt", "label_map.txt"), classes)
    if named is None:  # every split must number the classes alike; a list to be tested alone may have no labels
        beside = [_find(root, patterns, sibling, annotations) for sibling in SPLITS if sibling != "test"]
        named = _names({place: read(place, None) for place in [*filter(None, beside)] or [path]})
    placed = tuple(_under(item, root, videos) for item in read(path, named).items)
    return DataSet(name, split, root, placed, named, sided=sided, source=path.name)


def _names(lists: dict[Path, Listed]) -> tuple[str, ...]:
    """The names of the classes of some lists. Raises: DataError, where these contradict each other."""
    worded = [path for path, listed in lists.items() if listed.words]
    numeric = [path for path, listed in lists.items() if listed.items and not listed.words]
    if worded and numeric:
        raise DataError(
            f"{worded[0]} labels with names, {numeric[0]} with numbers; label both alike, or name the classes in "
            "classes.txt in the order of their numbers"
        )
    if worded:
        return tuple(sorted(set().union(*(listed.words for listed in lists.values()))))
    names: dict[int, str] = {}
    for path, listed in lists.items():
        for label, name in listed.names.items():
            others = [other for other, taken in names.items() if (other == label) != (taken == name)]
            if others:
                raise DataError(
                    f"{path}: names label {label} {name!r}; another list has {others[0]} {names[others[0]]!r}"
                )
            names[label] = name
    unnamed = numbered(item.label for listed in lists.values() for item in listed.items)
    return tuple(names.get(label, text) for label, text in enumerate(unnamed))


def _under(item: Item, root: Path, videos: str) -> Item:
    path = item.path if not videos else (Path(videos) / item.path).as_posix()
    return Item(under(root, path), item.label, item.start, item.end, item.frames)


def _find(root: Path, patterns: Sequence[str], split: str, annotations: str | None) -> Path | None:
    """The list of a split; None where there is none. Raises: DataError, where more than one fits."""
    folders = [root / folder for folder in FOLDERS]
    if annotations is not None:
        named = annotations.replace("{split}", split)
        for place in (Path(named).expanduser(), root / named):
            if place.is_dir():
                folders = [place]
                break
            if place.is_file() and "{split}" in annotations:
                return place
        else:
            return None
    for pattern in patterns:
        for folder in folders:
            fitting = sorted(
                path
                for path in folder.glob(pattern.format(split=split))
                if path.is_file() and not path.name.startswith(".")
            )
            if len(fitting) > 1:
                matching = ", ".join(path.name for path in fitting[:4])
                raise DataError(
                    f"{folder} holds more than one list for {split} ({matching}); say which with annotations=FILE, "
                    "with {split} where its name says train or val"
                )
            if fitting:
                return fitting[0]
    return None


def _read_csv(path: Path, classes: tuple[str, ...] | None) -> Listed:
    listed = rows(path)
    if listed and all(len(row) == 1 for _, row in listed):  # parted by spaces, as in other lists
        return _read_slowfast(path, classes)
    columns = _columns(path, listed)
    width = columns.pop("width")
    path_column, label_column = columns["path"], columns["label"]
    words_at = [len(row) == width and not NUMBER.fullmatch(row[label_column]) for _, row in listed]
    if len(listed) > 1 and words_at[0] and not any(words_at[1:]):
        raise bad(
            path, *listed[0], "labelled with a number, as all lines below it are; a header must name the columns path "
            "and label",
        )  # fmt: skip
    films = [len(row) == width and is_video(row[path_column]) for _, row in listed]
    if len(listed) > 1 and not films[0] and all(films[1:]) and "/" not in listed[0][1][path_column]:
        raise bad(path, *listed[0], "a video, as all lines below it are; a header must name the columns path and label")
    if listed and not any(films) and all(len(row) == width and is_video(row[label_column]) for _, row in listed):
        raise bad(path, *listed[0], "`path,label`: the path comes first; a header label,path says that it does not")
    # The first line decides then, so that a slip in another one is not taken for a class name.
    by_name = bool(listed) and words_at[0]
    if by_name and classes is None and not all(words_at):
        number, row = next(line for line, is_word in zip(listed, words_at, strict=True) if not is_word)
        if len(row) == width:
            expected = "labelled with a class name, as the first line is; if it is one, name all in classes.txt"
            raise bad(path, number, row, expected)
    labels = {name: label for label, name in enumerate(classes or ())}
    items, words, names = [], set(), set()
    for number, row in listed:
        if len(row) != width or not row[path_column] or not row[label_column]:
            raise bad(
                path, number, row, f"`{','.join(columns)}`" + ("" if width > 2 else " (more columns need a header)")
            )
        if is_heading(row):
            raise bad(path, number, row, "a video, but a heading, as where two lists are joined; leave that line out")
        text = spelled(row[label_column])
        if not by_name:
            label = label_of(text, classes, path, number, row)
        elif classes is None:
            label = 0  # until the names of all splits are known
            words.add(text)
        elif text in labels:
            label = labels[text]
        else:
            raise bad(path, number, row, f"labelled with one of the {len(classes)} class names")
        if "name" in columns:
            names.add((label, spelled(row[columns["name"]])))
        start, end = (_seconds(row, columns, name, path, number) for name in ("start", "end"))
        if start is not None and end is not None and end <= start:
            raise bad(path, number, row, "cut so that its end comes after its start")
        items.append(Item(row[path_column], label, start, end))
    one_each = len(names) == len(dict(names)) == len({name for _, name in names})  # else they are of groups of classes
    return Listed(items, words, dict(names) if one_each else {})


def _columns(path: Path, listed: list[tuple[int, list[str]]]) -> dict[str, int]:
    """Where path, label, the label's name and the seconds of a cut stand, and how many columns there are.

    A heading is taken off the list. Of several columns with labels the first of numbers is taken; one of words beside
    it names them.
    """
    if not listed:
        return {"path": 0, "label": 1, "width": 2}
    place, first = listed[0]
    heads = {column(field): number for number, field in reversed(list(enumerate(first)))}
    if not is_heading(first):
        if "label" in heads and not any(map(is_video, first)):
            kinetics = "; this list is of Kinetics: data=kinetics400 (600, 700) root=FOLDER" * ("youtube_id" in heads)
            raise bad(path, place, first, f"a header with a column of paths ({', '.join(PATHS[:4])}, ...){kinetics}")
        return {"path": 0, "label": 1, "width": 2}
    del listed[0]
    cut_by_frames = next((head for head in FRAMES if head in heads), None)
    if cut_by_frames:
        raise bad(
            path, place, first, f"a header that is read: {cut_by_frames} is none, a cut is start and end in seconds"
        )
    labels = [heads[word] for word in LABELS if word in heads]
    whole = [row for _, row in listed if len(row) == len(first)]
    numbers = [number for number in labels if all(NUMBER.fullmatch(row[number]) for row in whole)]
    columns = {"path": next(heads[word] for word in PATHS if word in heads), "label": (numbers or labels)[0]}
    words = [number for number in labels if not any(NUMBER.fullmatch(row[number]) for row in whole)]
    for name, places in (("name", words if numbers else []), *((name, _among(heads, kinds)) for name, kinds in CUTS)):
        columns |= {name: places[0]} if places else {}
    return columns | {"width": len(first)}


def _among(heads: dict[str, int], kinds: Sequence[str]) -> list[int]:
    return [heads[kind] for kind in kinds if kind in heads]


def _seconds(row: list[str], columns: dict[str, int], name: str, path: Path, number: int) -> float | None:
    text = row[columns[name]] if name in columns else ""
    if not text:
        return None
    try:
        seconds = 0.0
        for part in text.split(":"):  # also hours and minutes, as 00:01:02.5
            seconds = 60 * seconds + float(part.replace(",", "."))  # as tables in many languages write them
    except ValueError:
        raise bad(path, number, row, f"cut at a number of seconds ({name} {text!r})") from None
    if not 0 <= seconds < float("inf"):
        raise bad(path, number, row, f"cut at a number of seconds from 0 ({name} {text!r})")
    return seconds


def _read_mmaction(path: Path, classes: tuple[str, ...] | None) -> Listed:
    """Where a line reads as `folder frames label`, which no name of a video begins, all lines must."""
    listed = [(number, line, line.rsplit(None, 2)) for number, line in lines(path)]
    pictures = any(map(_is_pictures, (parts for *_, parts in listed)))
    if not pictures:
        return _plain(path, classes)
    items = []
    for number, line, parts in listed:
        if _is_pictures(parts):
            items.append(Item(parts[0], label_of(parts[2], classes, path, number, line), frames=int(parts[1])))
        else:
            raise bad(path, number, line, "`folder frames label` (several labels and offsets are not supported)")
    return Listed(items, set(), {})


def _is_pictures(parts: list[str]) -> bool:
    """Of `folder frames label`; a folder's name may hold dots and spaces, but ends in no number of its own."""
    if len(parts) != 3 or is_video(parts[0]) or re.search(r"\s\d+$", parts[0]):
        return False
    return parts[1].isascii() and parts[1].isdigit()


def _read_slowfast(path: Path, classes: tuple[str, ...] | None) -> Listed:
    _, first = next(lines(path), (0, ""))
    if first.startswith("original_vid"):
        raise DataError(
            f"{path}: a frame list of SlowFast (Something-Something V2) holds no labels; use the data set "
            "something_something_v2 with its json files, or an mmaction list of folders of pictures"
        )
    return _plain(path, classes)


def _plain(path: Path, classes: tuple[str, ...] | None) -> Listed:
    items = [
        Item(video, label_of(label, classes, path, number, line)) for number, line, video, label in labelled_lines(path)
    ]
    return Listed(items, set(), {})
