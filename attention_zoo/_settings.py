"""What is said to `draw`, `speedup` and `gallery`: a scheme, settings as name=value, and the scheme's own options, all
read before torch is loaded; and how a command ends that prints.
"""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from attention_zoo import declared
from attention_zoo.grid import Grid, check_heads

BLOCKS = ((16, 16), (64, 64), (128, 128))  # queries and keys of a tile; what is asked where no block is said


def end_quietly() -> None:
    """This process ends without a traceback on Ctrl-C, or when a reader has had enough, and prints any letter."""
    for name in ("SIGINT", "SIGPIPE"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    sys.stdout.reconfigure(errors="replace")


class Settings:
    """What a command says; each setting is taken once, and what is left are options of the scheme.

    Raises: ValueError, here and in every method, for a word that is not of the form name=value or has no such meaning.
    """

    def __init__(self, command: str, arguments: Sequence[str], example: str):
        name, *settings = arguments or [""]
        if not name or "=" in name or name.startswith("-") or any("=" not in setting for setting in settings):
            raise ValueError(
                f"{' '.join([command, *arguments])}: say {command} NAME, then settings such as {example}, and the "
                "scheme's own options"
            )
        self.name, self.example = name, example
        self.left = dict(setting.split("=", 1) for setting in settings)

    def whole(self, key: str, default: int) -> int:
        return self._number(self.left.pop(key, str(default)), key)

    def numbers(self, key: str, default: str) -> list[int]:
        """Of a word such as 8x14x14 or 3,7,7."""
        return [self._number(text, key) for text in re.split("[x,]", self.left.pop(key, default))]

    def grid(self, key: str, default: str) -> Grid:
        return Grid.of(self.numbers(key, default), key)

    def place(self, key: str, grid: Grid) -> list[int]:
        """A token of the grid; the middle one if none is said."""
        at = self.numbers(key, ",".join(str(n // 2) for n in grid))
        if len(at) != 3 or any(not 0 <= i < n for i, n in zip(at, grid, strict=True)):
            raise ValueError(
                f"{key} {at} is no place of grid {tuple(grid)}; allowed: {tuple(n - 1 for n in grid)} at most"
            )
        return at

    def path(self, out: str | None, ending: str) -> Path:
        """The file to write, tried before the work; its folder is made."""
        path = Path(f"{self.name}{ending}" if out is None else out)
        if path.suffix != ending:
            raise ValueError(f"out={path} must end in {ending}")
        if path.is_dir():
            raise ValueError(f"out={path} is a folder; name the file in it")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"out={path}: cannot make its folder ({error.strerror}); choose another place") from error
        return path

    def options(self) -> dict[str, Any]:
        """All that is left, as JSON has it or as it stands: window=[8,7,7], keep=0.25, rule=paper.

        Raises: UnknownName.
        """
        options = {option: _value(text) for option, text in self.left.items()}
        declared.check(self.name, options)
        return options

    def _number(self, text: str, key: str) -> int:
        if not re.fullmatch(r"\d+", text):
            raise ValueError(f"{key}: {text!r} is not a number; say {self.example}")
        return int(text)


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


class Drawing(NamedTuple):
    """What `draw` is asked for."""

    name: str
    grid: Grid
    seed: int
    out: Path
    query: list[int]
    clip: str | None
    options: dict[str, Any]


class Counting(NamedTuple):
    """What `speedup` is asked for."""

    name: str
    grid: Grid
    seed: int
    dim: int
    heads: int
    blocks: Sequence[tuple[int, ...]]
    box: Grid
    options: dict[str, Any]


class Showing(NamedTuple):
    """What `gallery` is asked for."""

    folder: Path
    grid: Grid
    query: list[int]


def drawing(arguments: Sequence[str]) -> Drawing:
    """Raises: ValueError, UnknownName, as do the next."""
    settings = Settings("draw", arguments, "grid=8x14x14 query=3,7,7 seed=0 clip=FILE.npy out=FILE.png")
    grid, seed = settings.grid("grid", "8x14x14"), settings.whole("seed", 0)
    query, clip, out = settings.place("query", grid), settings.left.pop("clip", None), settings.left.pop("out", None)
    options = settings.options()
    return Drawing(settings.name, grid, seed, settings.path(out, ".png"), query, clip, options)


def counting(arguments: Sequence[str]) -> Counting:
    settings = Settings("speedup", arguments, "grid=16x56x56 block=64x64 order=4x4x4 dim=96 heads=3 seed=0")
    grid, seed, dim = settings.grid("grid", "8x14x14"), settings.whole("seed", 0), settings.whole("dim", 96)
    heads = settings.whole("heads", max(1, dim // 32))
    check_heads(dim, heads)
    blocks = [settings.numbers("block", "")] if "block" in settings.left else BLOCKS
    blocks = [tuple(block) * 2 if len(block) == 1 else tuple(block) for block in blocks]
    if any(len(block) != 2 or min(block) < 1 for block in blocks):
        raise ValueError(f"block {blocks[0]} is not a number of queries and one of keys; say block=128x64 or block=64")
    box = settings.grid("order", "4x4x4")
    return Counting(settings.name, grid, seed, dim, heads, blocks, box, settings.options())


def showing(arguments: Sequence[str]) -> Showing:
    if words := [word for word in arguments if "=" not in word]:
        raise ValueError(f"gallery {' '.join(words)}: it shows all schemes; say gallery out=docs, or draw NAME for one")
    settings = Settings("gallery", ["all", *arguments], "out=docs grid=4x8x8 query=2,3,4")
    folder = Path(settings.left.pop("out", "docs"))
    grid = settings.grid("grid", "4x8x8")
    query = settings.place("query", grid)
    if settings.left:
        raise ValueError(f"gallery has no {', '.join(settings.left)}; allowed: {settings.example}")
    if not folder.is_dir():
        raise ValueError(f"out {folder} is no folder: make it, or say another one with out=FOLDER")
    return Showing(folder, grid, query)
