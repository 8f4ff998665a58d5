"""What a run says while it works: what runs now, how far it is, and about how long the rest takes.

On a terminal one live line and one lasting line per step; elsewhere plain lines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape


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
        running = f"{head} … about {duration(self.seconds_left())} left"
        results: list[str] = []
        start = time.monotonic()
        if self.console.is_terminal:
            with self.console.status(escape(running)):
                yield results.append
            self.console.print(escape(f"{head}: {'; '.join(results)}"))
        else:
            self.console.print(escape(running), soft_wrap=True)
            yield results.append
            self.console.print(escape(f"    {'; '.join(results)}"), soft_wrap=True)
        self.spent[kind].append(time.monotonic() - start)
        self.left[kind] -= 1


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
