"""Scratch folders: they go with the run that made them, and with the next one where that was killed."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

PREFIX, LOCK = "attention-zoo-", "in-use.lock"
SETTLED = 60  # seconds after which whoever made a folder holds its lock


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """An empty folder in the system's folder for such, for as long as the block runs."""
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as name:
        with FileLock(Path(name, LOCK)):  # the system lets go of it however this process ends
            yield Path(name)


def clear_abandoned() -> None:
    """Remove the folders of runs that were killed: those whose lock nobody holds."""
    for lock in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{LOCK}"):
        # Another user's, or gone meanwhile; one that another process is just removing.
        with contextlib.suppress(OSError, Timeout):
            if time.time() - lock.stat().st_mtime > SETTLED:
                with FileLock(lock, timeout=0):
                    shutil.rmtree(lock.parent, ignore_errors=True)
