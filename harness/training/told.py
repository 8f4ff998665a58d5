"""What a training run says while it works: a line of progress, and TensorBoard's logs where these are asked for."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from harness.training.job import Job, TrainingError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SAY_EVERY_SECONDS = 10.0


class Line:
    """Shows a line of progress: one that is overwritten on a terminal, a new one elsewhere."""

    def __init__(self, console: Console, status: Any):
        self.console, self.status, self.live, self.last = console, status, status is not None, -math.inf

    def __call__(self, text: str) -> None:
        if self.status is not None:
            self.status.update(escape(text))
        elif time.monotonic() - self.last > SAY_EVERY_SECONDS:
            self.last = time.monotonic()
            self.console.print(escape(text), soft_wrap=True)


@contextlib.contextmanager
def line(console: Console) -> Iterator[Line]:
    if console.is_terminal and not console.quiet:
        with console.status("") as status:
            yield Line(console, status)
    else:
        yield Line(console, None)


class Board:
    """TensorBoard's writer, or nothing."""

    def __init__(self, writer: SummaryWriter | None):
        self.writer = writer

    def add(self, name: str, value: float, step: int) -> None:
        if self.writer is not None:
            self.writer.add_scalar(name, value, step)


@contextlib.contextmanager
def board(job: Job) -> Iterator[Board]:
    if not job.tensorboard:
        yield Board(None)
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TrainingError(
            "tensorboard=true needs the package tensorboard: pip install attention-zoo[tensorboard], or leave it out"
        ) from error
    writer = SummaryWriter(str(job.folder / "tensorboard"))
    try:
        yield Board(writer)
    finally:
        writer.close()
