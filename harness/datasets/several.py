"""What `data=` and `root=` name: one data set, or a list of several that one model is trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attention_zoo.registry import nearest
from harness.datasets import DataError, DataSet, checked, load, understood

RESERVED = dir(dict) + ["train", "eval", "forward", "type", "half", "float", "double", "to"]  # of modules by name


@dataclass(frozen=True)
class Chosen:
    """One of the data sets of a run; `name` is the last part of its path."""

    name: str
    data: str
    root: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """What can be wrong before anything is listed. Raises: DataError."""
        checked(self.data, self.root, self.options)

    def load(self, split: str) -> DataSet:
        """Raises: DataError."""
        return load(self.data, split, self.root, **self.options)


def chosen(
    data: str | Sequence[str], root: str | Sequence[str] | None = None, options: Mapping[str, Any] | None = None
) -> tuple[Chosen, ...]:
    """The data sets that the words of a command name, in their order.

    Of several, `root` is a list too, of one folder for each ("none" for a set that needs none), and an option begins
    with the name of its set: {"ucf101.split_number": 2}.

    Raises: DataError, where names are alike, roots are too few, or an option is of no set.
    """
    options = dict(options or {})
    if isinstance(data, str):
        if isinstance(root, list | tuple):
            raise DataError(f"root={_listed(root)} names several folders, data={data} one data set; give one root")
        return (Chosen(name_of(data), data, root, understood(data, options)),)
    if not data:
        raise DataError("data=[] names no data set; give one or more, as in data=[kinetics400,ssv2]")
    names = [name_of(word) for word in data]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"data={_listed(data)}: two sets are called {twice!r}; give folders of other names")
    if isinstance(root, str) or (root is not None and len(root) != len(data)):
        raise DataError(
            f"root={_listed([root] if isinstance(root, str) else root)} for {len(data)} data sets; give one folder for "
            "each of data=, none for those that need none, as in root=[/data/k400,none]"
        )
    roots = [None if folder in (None, "none", "null") else folder for folder in root or [None] * len(data)]
    own: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in options.items():
        name, dot, option = key.partition(".")
        if not dot or name not in own:
            raise DataError(
                f"data.{key}: of several data sets an option begins with the name of its set, as in "
                f"data.{names[0]}.OPTION; {nearest(name, names)}"
            )
        own[name][option] = value
    return tuple(Chosen(n, word, r, understood(word, own[n])) for n, word, r in zip(names, data, roots, strict=True))


def name_of(data: str) -> str:
    """A name that may also be that of a part of a model."""
    name = Path(data).expanduser().name.replace(".", "_")
    return f"set_{name}" if name in RESERVED else name


def digest(sets: Sequence[DataSet]) -> str:
    """Of the lists of a split: that of a single one, or one over all."""
    if len(sets) == 1:
        return sets[0].digest
    return hashlib.sha256("\n".join(dataset.digest for dataset in sets).encode()).hexdigest()


def _listed(words: Sequence[str | None]) -> str:
    return f"[{','.join(map(str, words))}]"
