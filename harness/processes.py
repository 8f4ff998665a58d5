"""Processes beside a run, which leave Ctrl-C to it; and the standard library's pool of them, of which none outlives the
run that started it, however that ends.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process


@contextmanager
def pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that share no thread with this one. At the end of the block, what has not begun is dropped."""
    executor = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_begin)
    try:
        yield executor
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


@contextmanager
def deaf() -> Iterator[None]:
    """Ctrl-C reaches all processes of a terminal, but is this one's to answer: one that is started meanwhile does not
    hear it, not even while it loads its libraries.
    """
    if threading.current_thread() is not threading.main_thread():  # only there may signals be set
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the one that collects answers it
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A worker waits on a pipe whose other end it holds too, so a parent that was killed does not wake it.
    parent_process().join()
    os._exit(1)
