"""The folder of a run: the job that it is of, the log and the result. A run goes on with files of its own only.

Data and initial weights are told apart by their content, not by where they lie. (`state` has the checkpoints.)
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from harness.clips.decoding import file_digest
from harness.datasets import DataSet
from harness.datasets.several import digest
from harness.training import state
from harness.training.distributed import Group
from harness.training.job import Job, Result, TrainingError
from harness.training.state import storing
from records.record import write_json, write_text

JOB, LOG, RESULT, PREDICTIONS, LOCK = "job.json", "log.jsonl", "result.json", "predictions", ".lock"
BACKBONE = "backbone.safetensors"  # the weights that a run of a part alone began with, where no file gave them


def stored_result(job: Job) -> Result | None:
    """The result that the job's folder holds, if it is finished, with the controls that the job asks for.

    Raises: TrainingError, where the folder is of another job; it names the first field that differs.
    """
    folder = job.folder
    if not _begun(folder):
        return None
    _check_same(job, job.identity(), _read(folder / JOB).get("identity", {}))
    if not (folder / RESULT).exists():
        return None
    try:
        result = Result(**_read(folder / RESULT))
    except TypeError as error:
        reason = str(error).partition("() ")[2]
        raise TrainingError(
            f"{folder / RESULT} is of another version of this project ({reason}); remove it, and the same command "
            "tests the trained weights again"
        ) from error
    return result if result.controls or not job.controls else None


@contextlib.contextmanager
def held(folder: Path, group: Group) -> Iterator[None]:
    """The folder is this run's alone: two at once would cut each other's log and delete each other's checkpoints.

    Raises: TrainingError, in every process of the run.
    """
    lock, reason = FileLock(folder / LOCK), None
    if group.first:
        try:
            with storing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(NotImplementedError):  # the file system has no locks
                    if not _taken(lock):
                        reason = f"{folder}: another process trains in it; wait for it to end, or give another out="
        except TrainingError as error:
            reason = str(error)
    if reason := group.agreed(reason):
        raise TrainingError(reason)
    try:
        yield
    finally:
        lock.release()


def _taken(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=0)  # the system lets go of it however this process ends
    except Timeout:
        return False
    return True


def store_job(job: Job, data: dict[str, list[DataSet]], micro_batch: int, group: Group) -> dict[str, Any]:
    """job.json, or a check that it is this job's. Returns the content of data and initial weights, as digests."""
    content = {"micro_batch": micro_batch}  # of None: what it comes to
    content |= {f"data.{split}": digest(sets) for split, sets in data.items()}
    labels = job.recipe.token_labels
    for name, path in (("checkpoint", job.checkpoint), ("teacher", labels and labels.checkpoint)):
        if path is not None and Path(path).is_file():
            content[name] = file_digest(path)
    if group.first:
        path = job.folder / JOB
        if _begun(job.folder):
            _check_same(job, content, _read(path).get("content", {}))
        else:
            stored = {"identity": job.identity(), "content": content, "job": job.to_dict()}
            with storing(job.folder):
                write_json(stored, path)
    return content


def cut_log(folder: Path, step: int) -> None:
    """Leaves the lines up to a step: those after it are written again. A line that was cut off by a kill goes, too."""
    path = folder / LOG
    if not path.exists():
        return
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(text)["step"] <= step:
                lines.append(text)
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    with storing(folder):
        write_text("".join(f"{text}\n" for text in lines), path)


def _begun(folder: Path) -> bool:
    """Whether there is something to go on from; a start that failed before its first checkpoint leaves nothing."""
    return (folder / JOB).exists() and (bool(state.steps(folder)) or (folder / RESULT).exists())


def _check_same(job: Job, identity: dict[str, Any], stored: dict[str, Any]) -> None:
    for key in identity | stored:
        if identity.get(key) != stored.get(key):
            raise TrainingError(
                f"{job.folder} holds another run: its {key} is {_short(stored.get(key))}, this one's is "
                f"{_short(identity.get(key))}; give another out=, or remove that folder to begin anew"
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds {type(content).__name__}")
        return content
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path} cannot be read ({error}); remove its folder to begin anew") from error
