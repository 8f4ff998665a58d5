"""How far something is, in one line: overwritten on a terminal, a new line every now and then elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape

SECONDS = 10.0


@contextmanager
def line(
    console: Console | None = None, every: float = SECONDS, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[str], None]]:
    """A function that shows the latest text on a console (that of errors where none is given).

    Args:
        every: seconds between two lines where they cannot be overwritten; the first comes at once.
    """
    console = console or Console(stderr=True)
    if console.is_terminal and not console.quiet:
        with console.status("") as status:
            yield lambda text: status.update(escape(text))
        return
    last = -math.inf

    def say(text: str) -> None:
        nonlocal last
        if (now := clock()) - last >= every:
            last = now
            console.print(escape(text), soft_wrap=True)

    yield say
