"""How a command ends that prints: quietly, whatever becomes of its terminal."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

WIDEST = 120


def columns() -> int:
    """How many letters a line of plain text may have: those of the terminal or of COLUMNS, and 120 at most."""
    return max(20, min(WIDEST, shutil.get_terminal_size((WIDEST, 0)).columns))


def folded(lines: Iterable[str], but_for: str = "\n") -> list[str]:
    """Lines of text no longer than the terminal is wide, what goes on set in; those that begin with `but_for`, such as
    commands to copy, stay whole."""
    parts: list[str] = []
    for line in "\n".join(lines).split("\n"):
        indent = " " * (len(line) - len(line.lstrip()) + 4)
        whole = line.startswith(but_for) or len(line) <= columns()
        parts += [line] if whole else textwrap.wrap(line, columns(), subsequent_indent=indent, break_on_hyphens=False)
    return parts


def json_line(value: Any) -> None:
    """What a program reads of a command: one line, the last of what is printed; a number that is none is null."""
    sys.stdout.flush()
    print(json.dumps(_finite(value), ensure_ascii=False), flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def until_closed(work: Callable[[], int]) -> int:
    """Work that prints. Returns its exit status; 130 where it was interrupted; 141, as of a program ended by a broken
    pipe, where the reader has had enough (`| head`). A terminal that lacks a letter shows a question mark for it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        status = work()
        sys.stdout.flush()  # here, not when the interpreter ends, where nothing could be caught
        return status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still held has a place to go
        return 141
