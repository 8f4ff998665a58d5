"""What the readers of annotation files share: finding a file, reading it with line numbers, finding the videos.

Every error names the file and the line. Nothing here decodes.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from harness.datasets import DataError, Item
from harness.datasets.frames import are_frames, count_frames, stem, videos, visible

# What the heads of columns are called, the most telling first; see `column`.
PATHS = (
    "path", "video_path", "file_path", "filepath", "clip_path", "file", "filename", "file_name", "video", "video_name",
    "clip", "clip_name", "vid_name", "name", "video_id", "clip_id", "vid", "id",
)  # fmt: skip
LABELS = (
    "label", "label_id", "class_id", "class_index", "category_id", "target", "class", "category", "action", "activity",
    "class_name", "label_name", "category_name", "tag",
)  # fmt: skip
STARTS = ("start", "time_start", "start_time", "t_start", "start_sec", "start_seconds", "start_timestamp", "begin")
ENDS = ("end", "time_end", "end_time", "t_end", "end_sec", "end_seconds", "end_timestamp", "stop")
CLASSES = (*LABELS, "labels", "classes", "name", "names", "class_names")  # over a column of names
DELIMITERS = (",", ";", "\t")
NUMBERED = re.compile(r"(?P<number>\d+)(?P<gap>\s*[,;:\t]\s*|[.)]\s+|\s+)(?P<name>.+)")  # of a class
BEHIND = re.compile(r"(?P<name>.+?)(?P<gap>\s*[,;]\s*|\t)(?P<number>\d+)")
PROTOCOL = re.compile(r"\w+\s*\{")  # how the items of a label map of TensorFlow begin
ANNOTATION_FOLDERS = ("", "annotations", "annotation", "labels", "splits")
# A path that holds what parts it from its label, and one that is parted by a sign.
QUOTED = re.compile(r'"((?:[^"]|"")+)"\s*[,;\s]\s*"?([^\s"]+)"?')
PARTED = re.compile(r"(.+?)\s*[,;]\s*(\d+)")
LARGEST_LABEL = 999_999  # every number up to the largest label is a class
DEEPEST = 6  # folders below the root in which videos are looked for


def find(
    root: Path,
    candidates: Sequence[str],
    dataset: str,
    source: str,
    annotations: str | None = None,
    folders: Sequence[str] = ANNOTATION_FOLDERS,
    split: str | None = None,
) -> Path:
    """The first of `candidates` (file names) in the root or one of its usual folders for annotations.

    `annotations` is what the caller's option said: a folder to look in instead, absolute or under the root, or (where
    `split` is given) a file whose name holds `{split}`, so that one option cannot mean one list for every split.
    Raises: DataError saying what was looked for, where, and who distributes it.
    """
    if annotations is not None:
        if split is not None and "{split}" in annotations:
            return _place(annotations.replace("{split}", split), root, Path.is_file, "file")
        place = _place(annotations, root, Path.exists, "file or folder")
        if not place.is_dir():
            hint = "" if split is None else " or write {split} in the name, where it says train or val"
            raise DataError(f"annotations={annotations}: one file cannot list every split; give its folder{hint}")
        root, folders = place, ("",)
    for folder in folders:
        for name in candidates:
            if (root / folder / name).is_file():
                return root / folder / name
    where = ", ".join(str(root / folder) for folder in folders[:3])
    choices = " or ".join(candidates[:2]) + (f" (or {', '.join(candidates[2:])})" if candidates[2:] else "")
    raise DataError(
        f"{dataset}: no {choices} in {where}{' or alike' if len(folders) > 3 else ''}; get it from {source}, or say "
        "where it lies: annotations="
        + ("FOLDER" if split is None else "FOLDER or FILE, with {split} for train, val or test")
    )


def _place(annotations: str, root: Path, exists: Callable[[Path], bool], kind: str) -> Path:
    for place in (Path(annotations).expanduser(), root / annotations):
        if exists(place):
            return place
    raise DataError(f"annotations={annotations}: no such {kind}, neither here nor in {root}")


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a text file, stripped; empty ones are left out. Raises: DataError."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):  # splitlines cuts at characters of names, too
        if line.strip():
            yield number, line.strip()


def rows(path: Path, delimiters: Sequence[str] = DELIMITERS) -> list[tuple[int, list[str]]]:
    """Numbered rows of a csv file, fields stripped; empty rows are left out. Raises: DataError.

    They are parted by the first of `delimiters` that parts all of them into equally many fields, else by the first.
    """
    text = read_text(path)
    for delimiter in delimiters:
        widths = {len(row) for _, row in _rows(path, text, delimiter)} if delimiter in text else set()
        if len(widths) == 1 and widths != {1}:
            return list(_rows(path, text, delimiter))
    return list(_rows(path, text, delimiters[0]))


def _rows(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    try:
        for row in reader:
            fields = [field.strip() for field in row]
            if any(fields):
                yield reader.line_num, fields
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not csv: {error}") from error


def column(text: str) -> str:
    """The head of a column as this module's lists have it: `Video Path` is `video_path`."""
    return re.sub(r"[\s-]+", "_", text.strip().strip('"').lower())


def is_heading(fields: Sequence[str]) -> bool:
    """Whether a line says what the columns are, of a path and of a label among them."""
    heads = set(map(column, fields))
    return bool(heads & set(PATHS)) and bool(heads & set(LABELS)) and len(fields) > 1


def read_json(path: Path, kind: type) -> Any:
    """A JSON file that holds a `kind` (list or dict). Raises: DataError."""
    try:
        value = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON: {error.msg}; fetch the file again") from error
    if not isinstance(value, kind):
        names = {list: "a list", dict: "an object"}
        raise DataError(f"{path}: holds {names.get(type(value), type(value).__name__)}, not {names[kind]}")
    return value


def read_text(path: Path) -> str:
    """Raises: DataError, when the file is missing, unreadable or not text."""
    try:
        # The mark that some programs begin a file with stands within it where files were joined.
        return path.read_text(encoding="utf-8-sig").replace("\n\ufeff", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8 (byte {error.start} is none); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def bad(path: Path, number: int, line: str | Sequence[str], expected: str) -> DataError:
    """The error about one malformed line."""
    text = line if isinstance(line, str) else ",".join(line)
    return DataError(f"{path}, line {number}: {text[:80]!r} is not {expected}")


def whole_number(text: str, path: Path, number: int, line: str | Sequence[str], expected: str) -> int:
    """A count or label from 0. Raises: DataError."""
    if not (text.isascii() and text.isdigit()):
        raise bad(path, number, line, expected)
    return int(text)


def class_names(path: Path) -> tuple[str, ...]:
    """The names of a text file with one a line, or of a JSON or YAML file: a list, or names with their numbers.

    Lines may hold a number as well, from 0 or 1: `1 ApplyEyeMakeup`, `0,abseiling` or `abseiling,0`, with or without a
    header. Raises: DataError.
    """
    if path.suffix.lower() in (".json", ".yaml", ".yml"):
        return _structured_names(path)
    listed = list(lines(path))
    if not listed:
        raise DataError(f"{path}: names no class; one name a line")
    listed = _without_numbers(path, listed)
    quoted = all(len(name) > 2 and name[0] == name[-1] == '"' for _, name in listed)
    names = [spelled(name[1:-1] if quoted else name) for _, name in listed]
    earlier: set[str] = set()
    for name, (number, line) in zip(names, listed, strict=True):
        if name in earlier:
            raise bad(path, number, line, "new: this class is named a second time")
        earlier.add(name)
    return tuple(names)


def _without_numbers(path: Path, listed: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Lines without the numbers that say their order, and without a header, where all lines are read alike."""
    if column(listed[0][1]) in CLASSES:
        raise bad(path, *listed[0], "the name of a class, but a heading; leave that line out")
    if PROTOCOL.fullmatch(listed[0][1]):
        raise bad(path, *listed[0], "the name of a class, but of a label map; write one name a line")
    for form, headed in itertools.product((NUMBERED, BEHIND), (False, True)):
        body = listed[headed:]
        pairs = [form.fullmatch(line) for _, line in body]
        parted = all(pair and set(pair["gap"]) & set(",;:\t") for pair in pairs)
        if not pairs or not all(pairs) or (headed and not parted):
            continue
        numbers = [int(pair["number"]) for pair in pairs]
        if sorted(numbers) in (list(range(len(body))), list(range(1, len(body) + 1))):
            named = [(place, pair["name"].strip().strip('"')) for (place, _), pair in zip(body, pairs, strict=True)]
            return [line for _, line in sorted(zip(numbers, named, strict=True))]
        if parted:
            raise bad(path, *body[0], "numbered as it should be: from 0 or 1, each number once")
    return listed


def _structured_names(path: Path) -> tuple[str, ...]:
    """Of JSON or YAML: a list of names, names with their numbers, numbers with their names, or a file that has one of
    these where Hugging Face (`id2label`) or YOLO (`names`) keep it."""
    try:
        text = read_text(path)
        as_json = path.suffix.lower() == ".json"
        content = json.loads(text, object_pairs_hook=_once) if as_json else yaml.load(text, yaml.BaseLoader)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON: {error.msg}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    if isinstance(content, dict):
        content = next((content[key] for key in ("id2label", "label2id", "names") if key in content), content)
    if isinstance(content, dict):
        pairs = list(content.items())
        pairs = pairs if all(_is_number(number) for _, number in pairs) else [(name, key) for key, name in pairs]
    elif isinstance(content, list):
        pairs = [(name, number) for number, name in enumerate(content)]
    else:
        pairs = [(content, None)]
    if not all(isinstance(name, str) and name and _is_number(number) for name, number in pairs):
        raise DataError(f"{path}: neither a list of names nor names with the numbers 0, 1, 2, ...")
    names = [spelled(name.strip('"')) for name, _ in sorted(pairs, key=lambda pair: int(pair[1]))]
    numbers = sorted(int(number) for _, number in pairs)
    if numbers not in (list(range(len(pairs))), list(range(1, len(pairs) + 1))):
        raise DataError(f"{path}: neither a list of names nor names with the numbers 0, 1, 2, ...")
    if not names or len(set(names)) != len(names):
        raise DataError(f"{path}: names no class, or one twice")
    return tuple(names)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises: ValueError, where it has a key twice."""
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"{key!r} is in it twice")
        content[key] = value
    return content


def _is_number(value: Any) -> bool:
    return type(value) is int or (isinstance(value, str) and value.isascii() and value.isdigit())


def spelled(text: str) -> str:
    """One spelling of a name: a letter with an accent is one sign in most texts, and two in those of macOS."""
    return unicodedata.normalize("NFC", text)


def find_class_names(
    root: Path, beside: Path, candidates: Sequence[str], classes: str | None
) -> tuple[str, ...] | None:
    """The class names of `classes=`, else of the first of `candidates` beside the list or in the root; None without."""
    if classes is not None:
        for place in (Path(classes).expanduser(), root / classes):
            if place.is_file():
                return class_names(place)
        raise DataError(f"classes={classes}: no such file, neither here nor in {root}")
    for folder in (beside.parent, root):
        for name in candidates:
            if (folder / name).is_file():
                return class_names(folder / name)
    return None


def label_of(text: str, classes: Sequence[str] | None, path: Path, number: int, line: str | Sequence[str]) -> int:
    """The label that a list gives as a number. Raises: DataError, when it is none or there are fewer classes."""
    label = whole_number(text, path, number, line, "a line that ends in a label, a whole number from 0")
    if label > LARGEST_LABEL:
        raise bad(
            path, number, line, f"labelled with a class: {label} is above {LARGEST_LABEL}, as an id of a video is"
        )
    if classes is not None and label >= len(classes):
        raise bad(
            path,
            number,
            line,
            f"within the {len(classes)} classes that are named; the largest label is {len(classes) - 1}",
        )
    return label


def labelled_lines(path: Path) -> Iterator[tuple[int, str, str, str]]:
    """(number, line, path, label) of each line of a plain list; a heading is none. Raises: DataError."""
    for place, (number, line) in enumerate(lines(path)):
        if not place and is_heading(re.split(r"[,;\s]+", line)):
            continue
        yield number, line, *path_and_label(line, path, number)


def path_and_label(line: str, path: Path, number: int) -> tuple[str, str]:
    """The two parts of a line `path label` or `path,label`; the path may hold spaces. Raises: DataError."""
    quoted = QUOTED.fullmatch(line)
    if quoted:
        return quoted[1].replace('""', '"'), quoted[2]
    parted = PARTED.fullmatch(line)
    parts = [part.strip() for part in (parted.groups() if parted else line.rsplit(None, 1))]
    if len(parts) != 2 or not parts[0]:
        raise bad(path, number, line, "`path label` or `path,label`")
    if re.search(r"[\s,;]\d+$", parts[0]):
        raise bad(path, number, line, "`path label` with one label (several labels and further numbers are not read)")
    return parts[0], parts[1]


def numbered(labels: Iterable[int]) -> tuple[str, ...]:
    """Names for classes that nobody named: their numbers."""
    return tuple(str(label) for label in range(max(labels, default=-1) + 1))


def under(root: Path, path: str) -> str:
    """A listed path relative to the root where it lies in it, so that lists do not depend on the machine."""
    if "\\" in path and not (root / path).exists():  # as Windows writes paths
        path = path.replace("\\", "/")
    if not os.path.isabs(path):
        return Path(path).as_posix()
    try:
        return Path(path).relative_to(root.absolute()).as_posix()
    except ValueError:
        return path


class Found:
    """The video files and folders of pictures below a root, by their names without extension.

    Where a name occurs more than once, the path with most of `near` (parts of a path, the most telling first) is taken,
    then the shortest.
    """

    def __init__(self, root: Path, inside: str | None = None):
        start = root / inside if inside else root
        if not start.is_dir():
            raise DataError(f"videos={inside}: no such folder in {root}")
        self.files: dict[str, list[str]] = {}
        self.folders: dict[str, list[str]] = {}
        self._walk(start, "" if start == root else f"{Path(os.path.relpath(start, root)).as_posix()}/", 0)

    def _walk(self, folder: Path | str, prefix: str, depth: int) -> None:
        try:
            entries = visible(folder)
        except OSError as error:
            raise DataError(f"{folder}: cannot be read: {error.strerror}") from error
        files = [entry.name for entry in entries if not entry.is_dir()]
        for name in videos(files):
            self.files.setdefault(spelled(stem(name)), []).append(f"{prefix}{name}")
        if prefix and are_frames(files):
            path = prefix.rstrip("/")
            self.folders.setdefault(spelled(stem(path.rpartition("/")[2])), []).append(path)
        for entry in entries if depth < DEEPEST else ():
            if entry.is_dir():
                self._walk(entry.path, f"{prefix}{entry.name}/", depth + 1)

    def __bool__(self) -> bool:
        return bool(self.files or self.folders)

    def file(self, stem: str, near: Sequence[str] = ()) -> str | None:
        return _nearest(self.files.get(spelled(stem)), near)

    def folder(self, name: str, near: Sequence[str] = ()) -> str | None:
        return _nearest(self.folders.get(spelled(name)), near)


def located(files: Found, root: Path, name: str, label: int, expected: str, near: Sequence[str] = ()) -> Item:
    """The item of a video that is a file or, where there is none, a folder of pictures; a missing one stands where its
    owners have it."""
    path = files.file(name, near)
    if path is None and (pictures := files.folder(name, near)) is not None:
        return Item(pictures, label, frames=count_frames(root / pictures))
    return Item(path or expected, label)


def _nearest(paths: list[str] | None, near: Sequence[str]) -> str | None:
    if not paths:
        return None
    if len(paths) == 1:
        return paths[0]
    parts = {path: spelled(path).split("/") for path in paths}
    return min(paths, key=lambda path: ([part not in parts[path] for part in near], len(parts[path]), path))
