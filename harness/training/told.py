"""TensorBoard's logs, where these are asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from harness.training.job import Job, TrainingError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


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
