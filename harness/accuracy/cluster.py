"""Trainings handed to a queue through submitit, one job of the queue for each: `cluster=slurm`.

The number of a submitted job is kept in its run folder, so that a second call of the same command waits for what is
queued instead of queueing it again. Ctrl-C leaves the queue as it is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness.accuracy import pool
from harness.accuracy.pool import Done
from harness.packages import late
from harness.spec.reader import UsageError
from records.record import write_json

SUBMITTED = "submitted.json"
POLL_SECONDS = 2.0
DEFAULTS = {"timeout_min": 24 * 60, "cpus_per_task": 8, "nodes": 1, "tasks_per_node": 1}


def launcher(name: str, parameters: dict[str, Any], out: Path, device: str) -> Callable[..., Iterator[Done]]:
    """A function like `pool.run` that hands the tasks to a queue.

    `parameters` go to submitit's `update_parameters` as they are: timeout_min, slurm_partition, gpus_per_node, ...

    Raises: UsageError, for an unknown parameter, or where submitit is not installed or Slurm is not there.
    """
    try:
        submitit = late("submitit")
    except ImportError as error:
        raise UsageError("cluster needs submitit: pip install 'attention-zoo[cluster]'") from error
    folder = out / "training" / "queue"
    chosen = DEFAULTS | ({"gpus_per_node": 1} if device.startswith("cuda") else {}) | parameters
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=name)
        executor.update_parameters(**chosen)
    except (RuntimeError, NameError, TypeError, AssertionError, ValueError) as error:
        raise UsageError(f"cluster={name}: {' '.join(str(error).split())[:300]}") from error

    def run(tasks: list[Any], tick: Callable[[list[Any]], None]) -> Iterator[Done]:
        waiting, queued = list(tasks), []
        while waiting or queued:
            while (following := pool.following(waiting)) is not None:
                queued.append((following[0], _submitted(executor, following[1], folder, name)))
            if not queued:
                yield from (Done(task, pool.NO_TEACHER) for task in waiting)
                return
            tick([task for task, job in queued if job.state == "RUNNING"])
            for task, job in [pair for pair in queued if pair[1].done()]:
                queued.remove((task, job))
                (task.job.folder / SUBMITTED).unlink(missing_ok=True)
                yield Done(task, _failure(job))
            if queued:
                time.sleep(POLL_SECONDS)

    return run


def _submitted(executor: Any, run: Any, folder: Path, cluster: str) -> Any:
    """The queue's job for a training: the one that is queued already, or a new one."""
    submitit = late("submitit")  # `launcher` has found it
    note = run.folder / SUBMITTED
    if note.exists():
        entry = json.loads(note.read_text(encoding="utf-8"))
        if entry["cluster"] == cluster and Path(entry["folder"]).exists():
            kind = submitit.SlurmJob if cluster == "slurm" else submitit.LocalJob
            job = kind(Path(entry["folder"]), entry["job_id"])
            if job.state in ("PENDING", "RUNNING", "REQUEUED"):
                return job
    job = executor.submit(pool.train, run.to_dict(), run.folder, _never)
    write_json({"cluster": cluster, "folder": str(folder.absolute()), "job_id": job.job_id}, note)
    return job


def _never() -> bool:
    return False


def _failure(job: Any) -> str | None:
    try:
        return job.result()
    except Exception as error:  # whatever the queue did to it, as submitit reports it
        lines = [line for line in str(error).splitlines() if line.strip()]
        last = lines[-1] if lines else type(error).__name__
        return f"job {job.job_id} of the queue ended as {job.state}: {last[:300]}"
