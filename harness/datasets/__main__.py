"""`python -m harness.datasets`: the data sets and what each needs; `check NAME root=...` walks one of them, and
`show NAME` draws a picture of it.
"""

from __future__ import annotations

import os
import signal
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from harness import datasets
from harness.clips.reading import LoadingError
from harness.datasets import check as checking
from harness.datasets.sheet import contact_sheet
from harness.progress import line
from harness.spec.options import Command, option, run
from harness.spec.reader import Count, Flag, Meaning, UsageError, Whole
from records.record import write_json
from records.terminal import columns, until_closed

PROGRAM = "python -m harness.datasets"
TOLD_EVERY = 30.0  # seconds between two lines where they cannot be overwritten


@dataclass(frozen=True)
class Check:
    """Options of `check`."""

    root: str | None = option(None, "the folder that holds the data set")
    split: Literal["all"] | datasets.Split = option("all", "which split to walk")
    workers: Whole = option(2, "processes that open files; 0: this one alone")
    whole: Flag = option(False, "decode every frame instead of the first, middle and last")
    show: Whole = option(10, "how many problems of a split to print")
    out: str | None = option(None, "write everything that was found to this JSON file")
    frames: Count = option(32, "frames of a clip, for the estimate")
    stride: Count = option(2, "stride of a clip, for the estimate")
    clips: Whole = option(12, "clips to decode for the estimate of an epoch; 0: no estimate")
    loading: Whole = option(0, "clips to load as training does, by 0, 1, 2, ... up to workers= processes; 0: none")


CHECK = Command(
    f"{PROGRAM} check",
    "Walks a data set, whose name (or folder) stands first: missing, empty, truncated and undecodable files, "
    "class balance, leaks between the splits, "
    "lengths, and how long decoding an epoch takes. Options of the data set itself (see the list) may be given too. "
    "Exit status: 0 no problems, 1 problems, 2 a wrong command, 130 interrupted (what was found so far is printed).",
    Check,
    (
        ("kinetics400 root=/data/k400 workers=8 out=k400.json", "every file of all splits that are there"),
        ("hmdb51 root=/data/hmdb fold=2 split=val whole=true", "every frame of one split"),
        ("/data/gestures", "a folder with train.csv and val.csv, or with class folders in train/ and val/"),
        ("/data/gestures workers=4 loading=100", "and a table of how many clips a second training would get"),
    ),
)


@dataclass(frozen=True)
class Show:
    """Options of `show`."""

    root: str | None = option(None, "the folder that holds the data set")
    split: datasets.Split = option("train", "which split to show")
    out: str = option("sheet.png", "the PNG file to write")
    frames: Count = option(8, "frames of each clip, evenly spaced from its first to its last")
    height: Annotated[Whole, Field(ge=8), Meaning("a whole number from 8")] = option(96, "height of a frame in pixels")
    classes: Count = option(24, "the most classes to show")


SHOW = Command(
    f"{PROGRAM} show",
    "Draws a contact sheet of a data set, whose name (or folder) stands first: frames of one clip of each class. "
    "Options of the data set itself (see the list) may be given too.",
    Show,
    (
        ("motion_small out=sheet.png", "the built-in data set; rendered first where it is not there yet"),
        ("kinetics400 root=/data/k400 split=val classes=40", "40 evenly spaced classes"),
    ),
)
COMMANDS = {"check": CHECK, "show": SHOW}


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv == ["list"]:
        print(overview())
        return 0
    if argv[0] in ("-h", "--help"):
        usage = "".join(f"\n       {entry.name} NAME [option=value ...]" for entry in COMMANDS.values())
        purposes = "\n\n".join(textwrap.fill(entry.purpose, min(100, columns())) for entry in COMMANDS.values())
        print(f"usage: {PROGRAM}   lists the data sets{usage}\n\n{purposes}")
        return 0
    if argv[0] not in COMMANDS:
        print(
            f"error: unknown command {argv[0]!r}; allowed: list, {', '.join(COMMANDS)}\n"
            f"`{PROGRAM} --help` explains them.",
            file=sys.stderr,
        )
        return 2
    command = COMMANDS[argv[0]]
    if len(argv) > 1 and argv[1] in ("-h", "--help"):
        return run(command, lambda options: 0, ["--help"])
    if len(argv) < 2 or ("=" in argv[1] and not Path(argv[1]).exists()):
        print(
            f"error: name the data set first: {command.name} NAME; names: {', '.join(datasets.names())}, or a folder",
            file=sys.stderr,
        )
        return 2
    name, rest = argv[1], argv[2:]
    data_options, mine = _parted(name, rest, command.options)
    action = check if command is CHECK else show
    return run(command, lambda options: partial(action, name, data_options, options), mine)


def overview() -> str:
    """Every data set with the files that it needs and its options."""
    parts = []
    for name in datasets.names():
        source = datasets.get(name)
        lines = [name, *_wrapped(source.what), *_wrapped(f"needs: {source.needs or 'nothing'}")]
        if source.options:
            defaults = ", ".join(f"{key}={str(value).lower()}" for key, value in source.options.items())
            lines += _wrapped(f"options: {defaults}")
        parts.append("\n".join(lines))
    parts.append(
        "A folder may stand for a name: with train.csv and val.csv it is `csv`, with class folders in train/ and val/\n"
        "it is `folder`.\n"
        f"{CHECK.name} NAME root=FOLDER   walks one before a long run\n"
        f"{SHOW.name} NAME root=FOLDER   draws frames of each class into sheet.png"
    )
    return "\n\n".join(parts)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(
        text, min(100, columns()), initial_indent="    ", subsequent_indent="      ", break_on_hyphens=False
    )


def _parted(name: str, arguments: list[str], options: type) -> tuple[dict[str, Any], list[str]]:
    """The arguments that are options of the data set itself, and the rest."""
    try:
        accepted = datasets.get(name if name in datasets.names() else datasets.resolve(name)[0]).options
    except datasets.DataError:
        accepted = {}  # `check` says what is wrong with the name
    data_options, rest = {}, []
    for argument in arguments:
        key, equals, raw = argument.partition("=")
        key = key.removeprefix("data.")  # as every other command calls them
        if equals and key in accepted and not hasattr(options, key) and key not in data_options:
            data_options[key] = raw
        else:
            rest.append(argument)
    return data_options, rest


def check(name: str, data_options: dict[str, Any], options: Check) -> int:
    """Returns 0 without problems, 1 with some, 130 when interrupted. Raises: UsageError."""
    if options.out:
        _check_writable(Path(options.out))
    walks = [checking.Walk(dataset) for dataset in _splits(name, data_options, options)]
    first, complete, estimate = walks[0], True, None
    rates: list[dict[str, float]] = []
    table: list[str] = []
    with _one_interrupt():
        try:
            for walk in walks:
                with line(every=TOLD_EVERY) as say:
                    checking.walk(walk, options.whole, options.workers, say)
            if options.clips:
                seconds = checking.decoding_seconds(first, options.frames, options.stride, options.clips)
                videos = len(first.dataset.items)
                estimate = checking.estimate(seconds, videos, options.workers, options.frames, options.stride)
            if options.loading:
                rates, table = _loading(first.dataset, options)
        except KeyboardInterrupt:
            complete = False
        result = checking.report(walks, complete, estimate, options.frames, options.stride) | {"loading": rates}
        file = write_json(result, Path(options.out)) if options.out else None
        print(checking.text(result, options.show))
        print(*table, sep="\n", end="\n" if table else "")
        if file:
            print(file)
    if not complete:
        return 130
    return 1 if result["problems"] else 0


def _loading(dataset: datasets.DataSet, options: Check) -> tuple[list[dict[str, float]], list[str]]:
    """Clips a second by processes, and the table of them. Raises: UsageError, where they cannot be loaded."""
    from harness.clips import throughput  # torch

    try:
        with line(every=TOLD_EVERY) as say:
            rates = throughput.loading(dataset, options.frames, options.stride, options.loading, options.workers, say)
    except LoadingError as error:
        raise UsageError(str(error)) from error
    return rates, throughput.lines(rates, len(dataset), options.frames, options.stride)


def show(name: str, data_options: dict[str, Any], options: Show) -> int:
    """Writes the contact sheet and prints its path. Raises: UsageError."""
    _check_writable(Path(options.out))
    try:
        dataset = datasets.load(name, options.split, options.root, **data_options)
        size = {"frames": options.frames, "height": options.height, "classes": options.classes}
        print(contact_sheet(dataset, options.out, **size))
    except datasets.DataError as error:
        raise UsageError(str(error)) from error
    return 0


def _check_writable(out: Path) -> None:
    """Before a long walk, not after it. Raises: UsageError."""
    folder = next((place for place in (out.absolute().parent, *out.absolute().parents) if place.exists()), out)
    if out.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        reason = "a folder; name a file in it" if out.is_dir() else f"{folder} is not a folder that can be written to"
        raise UsageError(f"out={out}: {reason}")


@contextmanager
def _one_interrupt() -> Iterator[None]:
    """The first interrupt ends the walk; impatient ones after it do not end the report of what was found so far."""

    def answer(*_: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, answer)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _splits(name: str, data_options: dict[str, Any], options: Check) -> list[datasets.DataSet]:
    """The chosen splits; of `all`, those that are there, and once a list that serves as two. Raises: UsageError."""
    chosen: list[datasets.DataSet] = []
    failures: dict[str, datasets.DataError] = {}
    for split in datasets.SPLITS if options.split == "all" else (options.split,):
        try:
            dataset = datasets.load(name, split, options.root, **data_options)
        except datasets.DataError as error:
            failures[split] = error
            continue
        if dataset.digest not in {earlier.digest for earlier in chosen}:
            chosen.append(dataset)
    if not chosen:
        raise UsageError(str(next(iter(failures.values()))))
    for split, error in failures.items():
        if split != "test":  # few data sets have one
            print(f"warning: the split {split} is left out: {error}", file=sys.stderr)
    return chosen


if __name__ == "__main__":
    sys.exit(until_closed(main))
