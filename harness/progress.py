"""What a run says while it works: what runs now, how far it is, and about how long the rest takes.

On a terminal one live line and one lasting line per step; elsewhere plain lines, a new one every now and then. All of
it goes to the stream of errors, so that what a command prints is its result.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape

from records import terminal

SECONDS = 10.0


def console_of_errors(out: Console | None = None) -> Console:
    """Where progress is said beside a console of results: nowhere beside a quiet one."""
    quiet = out is not None and out.quiet
    return Console(stderr=True, highlight=False, quiet=quiet, width=None if sys.stderr.isatty() else terminal.columns())


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


class Progress:
    """Counts steps of several kinds; the time left comes from the mean of the steps of the same kind that are done."""

    def __init__(self, console: Console, steps: dict[str, int], guesses: dict[str, float]):
        self.console, self.left, self.guesses = console, dict(steps), guesses
        self.total, self.done = sum(steps.values()), 0
        self.spent: dict[str, list[float]] = {kind: [] for kind in steps}

    def seconds_left(self) -> float:
        means = {kind: sum(spent) / len(spent) if spent else self.guesses[kind] for kind, spent in self.spent.items()}
        return sum(count * means[kind] for kind, count in self.left.items())

    @contextmanager
    def step(self, kind: str, label: str) -> Iterator[Callable[[str], None]]:
        """Run one step; call what is yielded with its result."""
        self.done += 1
        head = f"[{self.done}/{self.total}] {label}"
        results: list[str] = []
        start = time.monotonic()
        with line(self.console) as say:
            say(f"{head} … about {duration(self.seconds_left())} left")
            yield results.append
        result = "; ".join(results)
        self.console.print(escape(f"{head}: {result}" if self.console.is_terminal else f"    {result}"), soft_wrap=True)
        self.spent[kind].append(time.monotonic() - start)
        self.left[kind] -= 1


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
