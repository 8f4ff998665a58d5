"""One process per measured case: started, watched, ended, whatever happens in it.

A process of its own, so that a case sees no memory, thread pool or cache of the case before it, and so that its death
is a row of the table and not the end of the run. On Linux the processes are forked from one that has done nothing but
import the libraries (multiprocessing's fork server): a case then starts in milliseconds instead of seconds, from the
same fresh state as every other. The server is itself started anew, not forked from this process, and is
single-threaded and without a CUDA context. Elsewhere each case gets a new interpreter.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import connection, forkserver
from pathlib import Path
from typing import Any

from harness import scratch
from harness.processes import deaf
from records import provenance

TIME_LIMIT = "time limit"  # in what `run` says of a process that took too long
SERVER_GONE = 255  # what multiprocessing gives as the exit status where the server died before it could tell one
PR_SET_PDEATHSIG = 1  # of Linux's prctl
SOCKET_PATH = 107  # bytes at most, of Linux; multiprocessing takes the last 32 ("/pymp-12345678/listener-12345678")
CONTEXT = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")

_starting = threading.Lock()


def run(work: Callable[..., Iterable[Any]], arguments: tuple, time_limit: float) -> tuple[list[Any], str | None]:
    """What `work(*arguments)`, a generator of some module, yields in a process of its own within `time_limit` seconds.

    Returns what it yielded before it ended, and why it ended early, None where it did not. Nothing that the process
    started goes on after it.
    """
    answers: list[Any] = []
    with scratch.folder() as folder:
        log = folder / "log.txt"
        reader, writer = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_become, args=(writer, log, work, arguments))
        try:
            _start(process)
            writer.close()
            status = _listen(process, reader, answers, time.monotonic() + time_limit)
        except (ConnectionError, EOFError):  # the server was killed before or while it was asked
            status = SERVER_GONE
        except OSError as error:  # no file, socket or process is to be had
            return answers, f"no measuring process could be started: {provenance.without_folders(str(error))}"
        finally:  # Ctrl-C above all: nothing may go on measuring
            if process.pid is not None:
                _end_group(process)
            reader.close()
            writer.close()
        return answers, _failure(status, time_limit, log)


def _start(process: Any) -> None:
    """Start a process that loads nothing of the command line and finds this checkout's code."""
    path = os.pathsep.join(filter(None, [str(provenance.ROOT), os.environ.get("PYTHONPATH")]))
    # numpy's own threads would make a fork unsafe, and nothing that is measured uses them
    with _starting, _short_folder(), environment({"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}):
        CONTEXT.set_forkserver_preload(["harness.cost.child"])
        # A child would otherwise run the file of the command line again, half a second for every case.
        main, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
        forked = CONTEXT.get_start_method() == "forkserver"
        try:
            with deaf():
                forkserver.ensure_running() if forked else process.start()
            if forked:  # it waits for what the server loads, and hears Ctrl-C meanwhile
                process.start()
        finally:
            sys.modules["__main__"] = main


@contextlib.contextmanager
def _short_folder() -> Iterator[None]:
    """Lets the server's socket lie where its path is short enough, however deep the system's temporary folder is."""
    before = tempfile.tempdir
    if sys.platform == "linux" and len(os.fsencode(tempfile.gettempdir())) > SOCKET_PATH - 32:
        tempfile.tempdir = next(
            (folder for folder in ("/tmp", "/var/tmp", "/dev/shm") if os.access(folder, os.W_OK)), before
        )
    try:
        yield
    finally:
        tempfile.tempdir = before


def _listen(process: Any, reader: Any, answers: list[Any], end: float) -> int | None:
    """Collect what a process sends until it ends. Returns its exit status, None if it has not ended by then."""
    ready = connection.wait([reader, process.sentinel], max(0.0, end - time.monotonic()))
    while reader in ready:
        try:
            answers.append(reader.recv())
        except (EOFError, OSError):  # all is said, or it died in the middle of it
            break
        ready = connection.wait([reader, process.sentinel], max(0.0, end - time.monotonic()))
    process.join(max(0.0, end - time.monotonic()))
    return process.exitcode


def _failure(status: int | None, time_limit: float, log: Path) -> str | None:
    """What became of a process, in words; without folders, since records hold no path of this machine."""
    if status == 0:
        return None
    if status is None:
        return f"stopped at the {TIME_LIMIT} of {time_limit:g} s; raise time_limit"
    if status == SERVER_GONE:
        reason = "the process that forks the measuring ones was ended, most likely because memory ran out"
    elif status == -signal.SIGKILL:
        reason = "the measuring process was killed (signal 9), most likely because memory ran out"
    elif status < 0:
        reason = f"the measuring process was ended by signal {-status} ({signal.Signals(-status).name})"
    else:
        reason = f"the measuring process failed (exit status {status})"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []  # none: it ended before it began
    words = [provenance.without_folders(line.strip()) for line in lines if line.strip()]
    return f"{reason}; its last words: {words[-1][:300]}" if words else reason


def _end_group(process: Any) -> None:
    """End a process and what it started, such as compiler workers."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(OSError):
        process.kill()  # where it had no group of its own yet
    process.join()


@contextlib.contextmanager
def environment(changes: dict[str, str]) -> Iterator[None]:
    """Variables that a process started meanwhile inherits."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# in the measuring process


def _become(writer: Any, log: Path, work: Callable[..., Iterable[Any]], arguments: tuple) -> None:
    """Leave the group and the streams of the run, work, and end without the clean-up of what libraries started."""
    if hasattr(os, "setsid"):
        os.setsid()
    _tie_to_parent()
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    except FileNotFoundError:  # the run was interrupted while the server loaded, and waits for nothing
        raise SystemExit(1) from None
    os.dup2(file, 1)
    os.dup2(file, 2)
    for answer in work(*arguments):
        writer.send(answer)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _tie_to_parent() -> None:
    """On Linux: be the first to go when memory runs out, and end with the server, which ends with the run."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if not multiprocessing.parent_process().is_alive():  # it went before this one was tied to it
        raise SystemExit(1)
