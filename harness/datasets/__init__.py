"""Data sets: lists of labelled videos, each read from the files that its owners distribute. One file each; a file added
here is found by the command line, the tests and the help.

A data set is a list (`DataSet`), not a loader: paths under a root, labels and class names. Nothing is downloaded or
decoded, and torch is not imported. What is listed stays listed: a video that is missing on the disk remains an item, so
that an evaluation can report its coverage instead of shrinking its denominator.
`python -m harness.datasets` says what there is and which files each needs; `check NAME root=...` walks one before a
long run.
"""

from __future__ import annotations

import hashlib
import inspect
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import unquote

import yaml

from attention_zoo.registry import Registry, nearest

Split = Literal["train", "val", "test"]
SPLITS = get_args(Split)
SPLIT_FOLDERS = {"train": ("train", "training"), "val": ("val", "validation", "valid"), "test": ("test", "testing")}


class DataError(ValueError):
    """A data set that cannot be listed; the message names the file (and line) and the way out."""


@dataclass(frozen=True)
class Item:
    """One labelled video: a file, a part of a file, or a folder of pictures.

    `path` is relative to the root of the data set (absolute only where its list names files outside of the root).
    `start` and `end` are seconds and cut a file down to the labelled part. `frames` is the number of pictures where
    `path` is a folder of them (`harness.datasets.frames.read_frames` reads those); None for a video file.
    """

    path: str
    label: int
    start: float | None = None
    end: float | None = None
    frames: int | None = None

    @property
    def name(self) -> str:
        return readable(self.path)


def readable(text: str) -> str:
    """Text that can be written: bytes of a file's name that are no UTF-8 are shown as numbers, such as \\xc4."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class DataSet:
    """The videos of one split, in the order of its list.

    `sided`: left and right matter, so clips are not flipped. `mirror` then says which class a flipped clip of a class
    would belong to, where that is known; a recipe that says `augmentation.mirror` flips clips of these classes and
    exchanges their labels. `source` says who distributes it.
    """

    name: str
    split: str
    root: Path
    items: tuple[Item, ...]
    classes: tuple[str, ...]
    sided: bool = False
    mirror: dict[int, int] | None = None
    source: str = ""

    def __len__(self) -> int:
        return len(self.items)

    def path(self, item: Item) -> Path:
        """Where the file or folder of an item lies on this machine.

        A letter with an accent is one sign in most lists, two in names that come from macOS; a space may be %20.
        """
        place = self.root / item.path
        if (item.path.isascii() and "%" not in item.path) or place.exists():
            return place
        others = [unicodedata.normalize(form, item.path) for form in ("NFC", "NFD")] + [unquote(item.path)]
        return next((self.root / other for other in others if (self.root / other).exists()), place)

    @property
    def digest(self) -> str:
        """sha256 over the list: paths under the root, labels, cuts and class names. The same wherever the files lie."""
        total = hashlib.sha256()
        for name in self.classes:
            total.update(f"{name}\n".encode())
        total.update(b"\n")
        for item in self.items:
            cut = "" if item.start is None and item.end is None else f"\t{item.start}\t{item.end}"
            pictures = "" if item.frames is None else f"\t{item.frames}"
            total.update(f"{item.path}\t{item.label}{cut}{pictures}\n".encode("utf-8", "surrogateescape"))
        return total.hexdigest()


def untaught(training: DataSet, tested: DataSet) -> list[str]:
    """What the labels of two splits come to that their owner may not have meant, a line each."""
    labels, asked = ({item.label for item in split.items} for split in (training, tested))
    empty = [label for label in range(len(training.classes)) if label not in labels]
    notes = []
    if empty == [0]:
        notes.append(
            "no training video has the label 0: labels count from 0; those that begin at 1 make a class too many"
        )
    elif empty:
        notes.append(
            f"{len(empty)} of {len(training.classes)} classes have no training video: {_some(training, empty)}"
        )
    if strangers := sorted(asked - labels):
        notes.append(f"{len(strangers)} of the classes that are tested have none: {_some(training, strangers)}")
    return [f"warning: {training.name}: {note}" for note in notes]


def _some(dataset: DataSet, labels: list[int]) -> str:
    names = [dataset.classes[label] for label in labels if label < len(dataset.classes)]
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


@dataclass(frozen=True)
class Source:
    """How one registered data set is listed: `load(split, root, **options)`, and the files that this needs."""

    name: str
    load: Callable[..., DataSet]
    needs: str

    @property
    def what(self) -> str:
        """The first sentence of the loader's docstring."""
        return (inspect.getdoc(self.load) or "").split("\n\n")[0].replace("\n", " ")

    @property
    def options(self) -> dict[str, Any]:
        """Names and defaults of what may be given beside split and root."""
        parameters = inspect.signature(self.load).parameters
        return {name: p.default for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}

    @property
    def needs_root(self) -> bool:
        return inspect.signature(self.load).parameters["root"].default is inspect.Parameter.empty


registry: Registry[Source] = Registry("data set", __name__, group="attention_zoo.data_sets")
names, get = registry.names, registry.get


def register(name: str, *, needs: str = ""):
    """Decorator that adds a data set: a function `(split, root, *, option=default, ...) -> DataSet`.

    A data set that needs no root gives `root` a default. `needs` says in words which files must lie under the root.
    A taken name is an error.
    """

    def add(load: Callable[..., DataSet]) -> Callable[..., DataSet]:
        registry.register(name)(Source(name, load, needs))
        return load

    return add


def load(name: str, split: str, root: str | Path | None = None, **options: Any) -> DataSet:
    """The list of one split. `name` is a registered name, or a folder with class folders or with train.csv and val.csv.

    Raises: DataError naming what was looked for, where, and the way out.
    """
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}; {nearest(split, SPLITS)}")
    name, root, options = checked(name, root, options)
    dataset = get(name).load(split, root, **options)
    if not dataset.items:
        raise DataError(f"{name} {split} in {dataset.root}: lists no videos")
    return dataset


def checked(name: str, root: str | Path | None, options: Mapping[str, Any]) -> tuple[str, Path | None, dict[str, Any]]:
    """Registered name, root and options, of which nothing is listed yet. Raises: DataError."""
    name, root = resolve(name, root)
    source = get(name)
    unknown = [option for option in options if option not in source.options]
    if unknown:
        raise DataError(f"data set {name} has no option {unknown[0]!r}; {nearest(unknown[0], list(source.options))}")
    options = understood(name, options)
    for option, value in options.items():
        default = source.options[option]
        allowed = (str, type(None)) if default is None else (type(default),)
        if type(value) not in allowed:
            kinds = {str: "a text", bool: "true or false", int: "a whole number", float: "a number", type(None): "none"}
            raise DataError(
                f"{option}={value!r} is not {' or '.join(kinds.get(kind, kind.__name__) for kind in allowed)}"
            )
    return name, root, options


def understood(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options in which text, as command lines give it, became what the data set has in its place.

    Where it has a text, or none, the text stays as it is, whatever a grammar would make of it. What does not fit is
    left for `load`, which says so.
    """
    try:
        known = get(name if name in names() else resolve(name)[0]).options
    except DataError:
        known = {}
    return {key: _understood(value, known[key]) if key in known else value for key, value in options.items()}


def _understood(value: Any, default: Any) -> Any:
    if not isinstance(value, str) or isinstance(default, str):
        return value
    if default is None:
        return None if value.lower() in ("none", "null") else value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def resolve(name: str, root: str | Path | None = None) -> tuple[str, Path | None]:
    """The registered name and the root that `name` and `root` mean; a folder given as name is looked into.

    Raises: DataError.
    """
    if name in names():
        if root is None:
            if get(name).needs_root:
                raise DataError(f"data set {name} needs its files: give root=FOLDER; needed there: {get(name).needs}")
            return name, None
        root = Path(root).expanduser()
        if get(name).needs_root and not root.is_dir():
            reason = "a file, not a folder" if root.exists() else "no such folder"
            raise DataError(f"root={root}: {reason}; give the folder that holds {name}: {get(name).needs}")
        return name, root
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if "/" in name or name.startswith((".", "~")):
            raise DataError(f"{name}: neither a folder nor the name of a data set; names: {', '.join(names())}")
        raise DataError(f"unknown data set {name!r}, and no such folder here; {nearest(name, names(), 0.7)}")
    if root is not None:
        raise DataError(f"data={name} is a folder already, so root={root} is one too many; give one of them")
    return _kind_of(folder), folder


def _kind_of(folder: Path) -> str:
    if (folder / "train.csv").is_file() or (folder / "val.csv").is_file():
        return "csv"
    words = {word for names in SPLIT_FOLDERS.values() for word in names}
    splits = [entry for entry in folder.iterdir() if entry.name.lower() in words and entry.is_dir()]
    if any(entry.is_dir() and not entry.name.startswith(".") for split in splits for entry in split.iterdir()):
        return "folder"
    raise DataError(
        f"{folder}: no data set found in this folder; looked for train.csv or val.csv (lines `path,label`), and for "
        f"class folders in train/ and val/; for another layout give its name and root=: {', '.join(names())}"
    )
