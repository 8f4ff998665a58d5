"""Trainings side by side on one machine: one worker process per device, or per core of a CPU.

A worker loads the libraries and decodes the data once and then trains job after job. One that dies takes down the job
that it had and no other. When the parent asks for a stop, or is gone, a worker saves a checkpoint and ends.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from rich.console import Console

from harness.cost.process import environment
from harness.processes import deaf
from harness.training.job import Job, Stopped
from harness.training.loop import train as train_job
from records import provenance

LOCK, OUTPUT, JOB_LOG = ".running.lock", "output.txt", "log.jsonl"
NO_TEACHER = "the row that would label its tokens is not trained"
MOST_BESIDE = 8
STOP_SECONDS = 60.0  # to write a checkpoint in
POLL_SECONDS = 0.5


@dataclass
class Slot:
    """One worker and what it is doing."""

    environment: dict[str, str]
    process: Any = None
    connection: Connection | None = None
    alive: Connection | None = None  # closed to ask for a stop
    task: Any = None


@dataclass(frozen=True)
class Done:
    """What became of a task; `failure` is None where it is trained."""

    task: Any
    failure: str | None


def slots(device: str, jobs: int | None, threads: int = 1, beside: int = 1) -> list[Slot]:
    """Some for each visible GPU, or one for each physical core; `jobs` is the number of slots where it is given,
    `threads` what each may use of a CPU, `beside` how many trainings share a GPU.
    """
    if device == "cpu":
        return [Slot({"OMP_NUM_THREADS": str(threads)}) for _ in range(jobs or provenance.default_threads())]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    cards = visible.split(",") if visible else [str(n) for n in range(torch.cuda.device_count())]
    if ":" in device:
        cards = [cards[int(device.partition(":")[2])]]
    return [Slot({"CUDA_VISIBLE_DEVICES": cards[n % len(cards)]}) for n in range(jobs or beside * len(cards))]


def beside(data: str) -> int:
    """How many trainings share a GPU: the models that a built-in data set can train leave a large one nearly idle."""
    return max(1, min(MOST_BESIDE, provenance.usable_cores() // 2)) if data.startswith("motion") else 1


def run(tasks: list[Any], free: list[Slot], tick: Callable[[list[Any]], None]) -> Iterator[Done]:
    """Trains tasks (`harness.accuracy.plan.Task`) on some slots; yields each as it ends.

    `tick` is called about twice a second with the tasks in work. Closing the generator, or an exception in the caller,
    asks all workers to save and stop.
    """
    waiting, busy = list(tasks), []
    free = free[: len(tasks)]
    everything = list(free)
    try:
        while waiting or busy:
            while free and (chosen := following(waiting)) is not None:
                slot = free.pop()
                _give(slot, *chosen, len(everything))
                busy.append(slot)
            if not busy:  # what is left waits for something that failed
                yield from (Done(task, NO_TEACHER) for task in waiting)
                return
            tick([slot.task for slot in busy])
            ready = multiprocessing.connection.wait([slot.connection for slot in busy], timeout=POLL_SECONDS)
            for slot in [slot for slot in busy if slot.connection in ready]:
                busy.remove(slot)
                free.append(slot)
                yield Done(slot.task, _answer(slot))
    finally:
        _stop(everything)


def following(waiting: list[Any]) -> tuple[Any, Any] | None:
    """Takes the first task that can run now out of those that wait; returns it with its job."""
    for task in waiting:
        job = task.ready()
        if job is not None:
            waiting.remove(task)
            return task, job
    return None


def _give(slot: Slot, task: Any, job: Any, beside: int) -> None:
    """Hands a job to a slot, which is one of `beside` that share the memory."""
    if slot.process is None or not slot.process.is_alive():
        _start(slot)
    slot.task = task
    slot.connection.send((json.dumps(job.to_dict()), str(job.folder), beside))


def _start(slot: Slot) -> None:
    context = multiprocessing.get_context("spawn")
    slot.connection, theirs = context.Pipe()
    watched, slot.alive = context.Pipe(duplex=False)
    slot.process = context.Process(target=_work, args=(theirs, watched, slot.environment), daemon=False)
    with deaf(), environment(slot.environment):  # what OpenMP reads when it is loaded
        slot.process.start()
    theirs.close()
    watched.close()


def _answer(slot: Slot) -> str | None:
    """The worker's answer: None, or why its job failed."""
    try:
        return slot.connection.recv()
    except (EOFError, ConnectionResetError):
        slot.process.join()
        code = slot.process.exitcode
        slot.connection.close()
        if code == -signal.SIGKILL:
            return "the training process was killed (signal 9), most likely because memory ran out"
        ended = f"signal {-code}" if code < 0 else f"exit status {code}"
        output = f"training/{slot.task.job.folder.name}/{OUTPUT}"  # a record holds no path of this machine
        return f"the training process ended by {ended}; {output} has its output"


def _stop(everything: list[Slot]) -> None:
    started = [slot for slot in everything if slot.process is not None]
    for slot in started:
        slot.alive.close()
        slot.connection.close()
    end = time.monotonic() + STOP_SECONDS
    for slot in started:
        slot.process.join(max(0.1, end - time.monotonic()))
        if slot.process.is_alive():
            slot.process.kill()
            slot.process.join()


# in the worker


def _work(connection: Connection, alive: Connection, environment: dict[str, str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    os.environ.update(environment)
    stop = threading.Event()
    threading.Thread(target=_watch, args=(alive, stop), daemon=True).start()
    decoded: dict[str, Any] = {}  # of the jobs before, so that each data set is decoded once
    while True:
        try:
            raw, folder, beside = connection.recv()
        except (EOFError, OSError):
            return
        answer = train(json.loads(raw), Path(folder), stop.is_set, decoded, beside)
        if stop.is_set():
            return
        with contextlib.suppress(BrokenPipeError):
            connection.send(answer)


def _watch(alive: Connection, stop: threading.Event) -> None:
    """Wait for the parent to close its end, which it also does by dying."""
    with contextlib.suppress(EOFError, OSError):
        alive.recv()
    stop.set()
    time.sleep(STOP_SECONDS)
    os._exit(1)


def train(
    raw: dict[str, Any],
    folder: Path,
    stop: Callable[[], bool],
    decoded: dict[str, Any] | None = None,
    beside: int = 1,
) -> str | None:
    """Trains one job in this process, with its output in a file beside it. Returns why it failed, or None.

    Of two processes that are asked for the same job one waits for the other and takes its result. `beside`: how many
    trainings share the memory of this machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK), (folder / OUTPUT).open("a", encoding="utf-8") as output:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            try:
                train_job(Job.from_dict(raw, folder), Console(file=output, width=120), stop, decoded, beside)
                return None
            except Stopped as error:
                return str(error)
            except Exception as error:
                traceback.print_exc(file=output)
                text = " ".join(str(error).split())
                return (
                    text[:400]
                    if type(error).__module__.startswith("harness")
                    else f"{type(error).__name__}: {text[:300]}"
                )
