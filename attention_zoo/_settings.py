"""What is said to `draw`, `speedup` and `gallery`: a scheme, settings as name=value, and the scheme's own options; and
how a command ends that prints.
"""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attention_zoo.grid import Grid


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

    def path(self, ending: str) -> Path:
        """The file to write, tried before the work; its folder is made."""
        path = Path(self.left.pop("out", f"{self.name}{ending}"))
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
        """All that is left, as JSON has it or as it stands: window=[8,7,7], keep=0.25, rule=paper."""
        return {option: _value(text) for option, text in self.left.items()}

    def _number(self, text: str, key: str) -> int:
        if not re.fullmatch(r"\d+", text):
            raise ValueError(f"{key}: {text!r} is not a number; say {self.example}")
        return int(text)


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
