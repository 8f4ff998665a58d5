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

from harness.datasets import SPLITS, DataError, DataSet, Item, register
from harness.datasets.files import bad, find, find_class_names, label_of, lines, numbered, path_and_label, rows, under
from harness.datasets.frames import is_video

FOLDERS = ("", "annotations", "lists", "data_list")
NUMBER = re.compile(r"[-+]?[\d.]+")
PATH_WORDS = ("path", "file", "video", "filename", "file_name", "clip")  # of a header
LABEL_WORDS = ("label", "class", "category")
HERE = "whoever made the data set"


@register("csv", needs="train.csv, val.csv (test.csv) with lines `path,label`; classes.txt with one class name a line")
def csv(
    split: str, root: Path, *, annotations: str | None = None, classes: str | None = None, sided: bool = True
) -> DataSet:
    """Lists of one's own: `path,label` on each line of train.csv and val.csv.

    Labels are numbers from 0, or class names. A header `path,label,start,end` may add seconds that cut a file; other
    columns need a header too and are not read.
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
    read: Callable[[Path, tuple[str, ...] | None], tuple[list[Item], set[str]]],
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
    items, words = read(path, named)
    if named is None:  # every split must number the classes alike
        every = {path: (items, words)}
        for sibling in SPLITS:
            if (beside := _find(root, patterns, sibling, annotations)) is not None and beside not in every:
                every[beside] = read(beside, None)
        if any(texts for _, texts in every.values()):
            named = tuple(sorted(set().union(*(texts for _, texts in every.values()))))
            items, _ = read(path, named)
        else:
            named = numbered(item.label for listed, _ in every.values() for item in listed)
    placed = tuple(_under(item, root, videos) for item in items)
    return DataSet(name, split, root, placed, named, sided=sided, source=path.name)


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


def _read_csv(path: Path, classes: tuple[str, ...] | None) -> tuple[list[Item], set[str]]:
    """Items, and the labels as text where they are class names and not numbers."""
    listed = list(rows(path))
    columns: dict[str, int] = {"path": 0, "label": 1}
    head = {field.lower(): column for column, field in enumerate(listed[0][1])} if listed else {}
    paths, labels = ([head[word] for word in words if word in head] for words in (PATH_WORDS, LABEL_WORDS))
    width = 2
    if labels and (paths or "label" in head):
        columns, width = head | {"path": paths[0] if paths else 0, "label": labels[0]}, len(head)
        listed.pop(0)
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
    # The first line decides then, so that a slip in another one is not taken for a class name.
    by_name = bool(listed) and words_at[0]
    if by_name and classes is None and not all(words_at):
        number, row = next(line for line, is_word in zip(listed, words_at, strict=True) if not is_word)
        if len(row) == width:
            expected = "labelled with a class name, as the first line is; if it is one, name all in classes.txt"
            raise bad(path, number, row, expected)
    names = {name: label for label, name in enumerate(classes or ())}
    items, words = [], set()
    for number, row in listed:
        if len(row) != width or not row[columns["path"]]:
            raise bad(
                path, number, row, f"`{','.join(columns)}`" + ("" if width > 2 else " (more columns need a header)")
            )
        text = row[columns["label"]]
        if not by_name:
            label = label_of(text, classes, path, number, row)
        elif classes is None:
            label = 0  # until the names of all splits are known
            words.add(text)
        elif text in names:
            label = names[text]
        else:
            raise bad(path, number, row, f"labelled with one of the {len(classes)} class names")
        start, end = (_seconds(row, columns, name, path, number) for name in ("start", "end"))
        if start is not None and end is not None and end <= start:
            raise bad(path, number, row, "cut so that its end comes after its start")
        items.append(Item(row[columns["path"]], label, start, end))
    return items, words


def _seconds(row: list[str], columns: dict[str, int], name: str, path: Path, number: int) -> float | None:
    text = row[columns[name]] if name in columns else ""
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        raise bad(path, number, row, f"cut at a number of seconds ({name} {text!r})") from None
    if not 0 <= seconds < float("inf"):
        raise bad(path, number, row, f"cut at a number of seconds from 0 ({name} {text!r})")
    return seconds


def _read_mmaction(path: Path, classes: tuple[str, ...] | None) -> tuple[list[Item], set[str]]:
    """Where a line reads as `folder frames label`, which no name of a video begins, all lines must."""
    listed = [(number, line, line.rsplit(None, 2)) for number, line in lines(path)]
    pictures = any(map(_is_pictures, (parts for *_, parts in listed)))
    items = []
    for number, line, parts in listed:
        if not pictures:
            video, label = path_and_label(line, path, number)
            items.append(Item(video, label_of(label, classes, path, number, line)))
        elif _is_pictures(parts):
            items.append(Item(parts[0], label_of(parts[2], classes, path, number, line), frames=int(parts[1])))
        else:
            raise bad(path, number, line, "`folder frames label` (several labels and offsets are not supported)")
    return items, set()


def _is_pictures(parts: list[str]) -> bool:
    """Of `folder frames label`; a folder's name may hold dots and spaces, but ends in no number of its own."""
    if len(parts) != 3 or is_video(parts[0]) or re.search(r"\s\d+$", parts[0]):
        return False
    return parts[1].isascii() and parts[1].isdigit()


def _read_slowfast(path: Path, classes: tuple[str, ...] | None) -> tuple[list[Item], set[str]]:
    items: list[Item] = []
    for number, line in lines(path):
        if not items and line.startswith("original_vid"):
            raise DataError(
                f"{path}: a frame list of SlowFast (Something-Something V2) holds no labels; use the data set "
                "something_something_v2 with its json files, or an mmaction list of folders of pictures"
            )
        video, label = path_and_label(line, path, number)
        items.append(Item(video, label_of(label, classes, path, number, line)))
    return items, set()
