"""One process per measured case: started, watched, ended, whatever happens in it.

On Linux the processes are forked from one that has done nothing but import the libraries: a case then starts in
milliseconds instead of seconds, from the same fresh state as every other. That one is itself started anew, not forked
from this process, and is single-threaded and without a CUDA context. Elsewhere each case gets a new interpreter.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from records import provenance

TIME_LIMIT = "time limit"  # in what `run` says of a process that took too long

_turn = threading.Lock()
_forker: subprocess.Popen | None = None


def run(request: Path, answer: Path, log: Path, time_limit: float) -> str | None:
    """Let `harness.cost.child` answer `request`, with its output in `log`. Returns what became of it if it failed."""
    status = _forked(request, answer, log, time_limit) if can_fork() else _spawned(request, answer, log, time_limit)
    if status is None:
        return f"stopped at the {TIME_LIMIT} of {time_limit:g} s; raise time_limit"
    if status == -signal.SIGKILL:
        return "the measuring process was killed (signal 9), most likely because memory ran out"
    if status < 0:
        return f"the measuring process was ended by signal {-status} ({signal.Signals(-status).name})"
    return f"the measuring process failed (exit status {status})" if status else None


def can_fork() -> bool:
    """Whether this system can fork and wait for a process and a pipe at once."""
    if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:  # an old kernel, or a sandbox
        return False
    return True


def _spawned(request: Path, answer: Path, log: Path, time_limit: float) -> int | None:
    """In a new interpreter. Returns its exit status, None at the time limit."""
    with log.open("wb") as stream:
        process = _start([str(request), str(answer)], stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
        try:
            return process.wait(timeout=time_limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            end_group(process.pid)
            process.wait()


def _forked(request: Path, answer: Path, log: Path, time_limit: float) -> int | None:
    """In a fork of the process that is kept for it. Returns its exit status, None at the time limit."""
    global _forker
    with _turn:
        if _forker is not None and _forker.poll() is not None:
            stop()
        if _forker is None:
            _forker = _start(["--forks"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            job = {"request": str(request), "answer": str(answer), "log": str(log)}
            with contextlib.suppress(BrokenPipeError):  # it has just been killed: then it does not answer either
                _forker.stdin.write(json.dumps(job).encode() + b"\n")
                _forker.stdin.flush()
            if not select.select([_forker.stdout], [], [], time_limit)[0]:
                stop()
                return None
            reply = _forker.stdout.readline()
        except BaseException:  # Ctrl-C above all: nothing may go on measuring
            stop()
            raise
        if not reply:
            status = _forker.wait()
            stop()
            return status or 1
        return int(reply)


@atexit.register
def stop() -> None:
    """End the process that forks and what it is measuring: it does so when its input closes."""
    global _forker
    if _forker is None:
        return
    with contextlib.suppress(OSError):
        _forker.stdin.close()
    try:
        _forker.wait(timeout=10)
    except subprocess.TimeoutExpired:
        _forker.kill()
        _forker.wait()
    _forker.stdout.close()
    _forker = None


def _start(arguments: list[str], **streams) -> subprocess.Popen:
    path = os.pathsep.join(filter(None, [str(provenance.ROOT), os.environ.get("PYTHONPATH")]))
    # numpy's own threads would make a fork unsafe, and nothing that is measured uses them
    environment = {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "harness.cost.child", str(os.getpid()), *arguments]
    return subprocess.Popen(command, env=environment, start_new_session=True, **streams)


def end_group(leader: int) -> None:
    """End a process and what it started, such as compiler workers."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(leader, signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)


def serve_forks(measure) -> None:
    """The other end: fork a process for each job that comes in, tell its exit status, end it when the input closes."""
    for line in iter(sys.stdin.buffer.readline, b""):
        job = json.loads(line)
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            _become(job, measure, parent)
        descriptor = os.pidfd_open(child)
        try:
            ready = select.select([sys.stdin, descriptor], [], [])[0]
        finally:
            os.close(descriptor)
        if sys.stdin in ready:  # whoever asked has given up or is gone
            while True:
                end_group(child)
                if os.waitpid(child, os.WNOHANG)[0]:
                    return
                time.sleep(0.01)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)  # what it may have left running
        print(status, flush=True)


def _become(job: dict[str, str], measure, parent: int) -> None:
    """In the fork: leave the parent's group and streams, measure, end without the parent's clean-up."""
    status = 1
    try:
        os.setsid()
        null, log = os.open(os.devnull, os.O_RDONLY), os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        measure(job["request"], job["answer"], parent)
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
        print("" if isinstance(error.code, int) else error, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
