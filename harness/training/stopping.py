"""A polite end: Ctrl-C and SIGTERM ask a run to stop where it can be gone on with."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any


class Stop:
    """Whether a run was asked to stop. While nothing could be saved (`at_once`), a signal interrupts instead."""

    def __init__(self):
        self.requested, self.at_once = False, True

    def __call__(self) -> bool:
        return self.requested

    def _signalled(self, _number: int, _frame: Any) -> None:
        if self.at_once or self.requested:
            raise KeyboardInterrupt
        self.requested = True


@contextlib.contextmanager
def stopping() -> Iterator[Stop]:
    """Ctrl-C and SIGTERM ask for a stop after the current step; a second one does not wait for it."""
    stop, before = Stop(), {}
    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, stop._signalled)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def between_steps(stop: Callable[[], bool] | None) -> Iterator[None]:
    """A signal waits for the end of the step: something can be saved."""
    if not isinstance(stop, Stop):
        yield
        return
    stop.at_once = False
    try:
        yield
    finally:
        stop.at_once = True
