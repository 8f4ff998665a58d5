"""Checkpoints of a run: whole folders or none, the last good ones always kept, damage noticed before it is used.

`checkpoints/step-0000120/` holds model.safetensors (weights and config, see `backbones.checkpoint`), state.pt
(optimizer and counters; tensors and plain values only, so that reading it runs no code) and checksums.json, which is
written last.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backbones.checkpoint import load_checkpoint, parted, save_checkpoint
from backbones.family import Backbone
from harness.clips.decoding import file_digest
from harness.training import distributed
from harness.training.job import TrainingError

logger = logging.getLogger(__name__)

FOLDER, WEIGHTS, STATE, SUMS = "checkpoints", "model.safetensors", "state.pt", "checksums.json"
NAME = re.compile(r"^step-(\d+)$")
KEPT = 2  # newest checkpoints that are kept, beside the best one
FORMAT = 1


class Damaged(ValueError):
    """A checkpoint folder that cannot be used; the message names it and what is wrong."""


def name_of(step: int) -> str:
    return f"step-{step:07d}"


def steps(folder: Path) -> list[int]:
    """The steps of which there are checkpoints, whether good or not, the newest first."""
    root = folder / FOLDER
    matches = (NAME.match(entry.name) for entry in root.iterdir()) if root.is_dir() else ()
    return sorted((int(match[1]) for match in matches if match), reverse=True)


def save(folder: Path, step: int, model: Backbone, state: Mapping[str, Any], *, best: int | None = None) -> Path:
    """Writes the checkpoint of a step, then deletes those that are no longer needed.

    A step that has a checkpoint already keeps it: the same step of the same run has the same weights.

    Raises: TrainingError, where it cannot be written; what was there before is untouched.
    """
    root = folder / FOLDER
    target = root / name_of(step)
    if not target.exists():
        size = size_of(model, state)
        temporary = root / f".{name_of(step)}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            root.mkdir(parents=True, exist_ok=True)
            _remove_temporary(root)
            temporary.mkdir()
            _write(temporary, model, {**state, "format": FORMAT, "step": step})
            os.replace(temporary, target)
            _sync_folder(root)
        except (OSError, RuntimeError) as error:  # torch.save turns what the file system says into a RuntimeError
            shutil.rmtree(temporary, ignore_errors=True)
            raise TrainingError(_not_written(folder, size, error)) from error
    _delete_old(folder, step, best)
    return target


def size_of(model: Backbone, state: Any) -> int:
    """About how many bytes a checkpoint takes."""
    return sum(t.numel() * t.element_size() for t in [*parted(model)[0].values(), *_tensors(state)]) + 2**16


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for entry in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(entry)


def _write(folder: Path, model: Backbone, state: dict[str, Any]) -> None:
    save_checkpoint(model, folder / WEIGHTS)
    with (folder / STATE).open("wb") as file:
        torch.save(state, file)
    sums = {name: file_digest(folder / name) for name in (WEIGHTS, STATE)}
    (folder / SUMS).write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")
    for name in (WEIGHTS, STATE, SUMS):
        with (folder / name).open("rb+") as file:
            os.fsync(file.fileno())
    _sync_folder(folder)


def _not_written(folder: Path, size: int, error: Exception) -> str:
    free = "an unknown number of"
    with contextlib.suppress(OSError):
        free = f"{shutil.disk_usage(folder).free:,}"
    return (
        f"the checkpoint cannot be written to {folder}: {str(error).splitlines()[0]}. It needs about {size:,} bytes, "
        f"{free} are free; {last_good_in_words(folder)}. Make room, or move the folder and give its new place as "
        "out=; the same command then goes on from there"
    )


def last_good(folder: Path, damaged: Callable[[Path, Damaged], None] = lambda path, error: None) -> Path | None:
    """The newest checkpoint that is whole; `damaged` is told of those above it."""
    for step in steps(folder):
        path = folder / FOLDER / name_of(step)
        try:
            check(path)
            return path
        except Damaged as error:
            damaged(path, error)
    return None


def last_good_in_words(folder: Path) -> str:
    last = last_good(folder)
    return f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"


def check(path: Path) -> None:
    """Raises: Damaged, where a file is missing or is not what was written."""
    try:
        sums = json.loads((path / SUMS).read_text(encoding="utf-8"))
        for name in (WEIGHTS, STATE):
            if sums.get(name) != file_digest(path / name):
                raise Damaged(f"{path / name} is damaged: it is not what was written")
    except FileNotFoundError as error:
        raise Damaged(f"{path} is damaged: it lacks {Path(error.filename).name}") from None
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise Damaged(f"{path} is damaged: {error}") from error


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that is whole. A damaged one is told of and set aside under another name.

    What a killed run was about to write or to delete goes.
    """

    def set_aside(path: Path, error: Damaged) -> None:
        aside = path.with_name(f"{path.name}.damaged-{uuid.uuid4().hex[:4]}")
        logger.warning("%s; set aside as %s, the checkpoint before it is used", error, aside.name)
        with contextlib.suppress(OSError):  # a folder that cannot be renamed is passed over all the same
            os.replace(path, aside)

    _remove_temporary(folder / FOLDER)
    return last_good(folder, set_aside)


def load(path: Path, model: Backbone) -> dict[str, Any]:
    """Fills the model from a checkpoint and returns the rest of its state.

    Raises: Damaged, CheckpointError, TrainingError.
    """
    file = path / STATE
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise Damaged(f"{file} is damaged: {(str(error).splitlines() or [''])[0]}") from error
    if state.get("format") != FORMAT:
        raise TrainingError(f"{file} has the format {state.get('format')}, this version reads {FORMAT}")
    load_checkpoint(model, path / WEIGHTS)
    return state


def heads(trained: nn.Module, model: nn.Module) -> dict[str, Tensor]:
    """What is trained beside the model, as full tensors on the CPU. Every process of a run must call it."""
    return {name: distributed.whole(tensor.detach()).cpu() for name, tensor in _beside(trained, model).items()}


def load_heads(trained: nn.Module, model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Fills what is trained beside the model from what `heads` returned."""
    assert saved.keys() == _beside(trained, model).keys()
    trained.load_state_dict(dict(saved), strict=False)


def _beside(trained: nn.Module, model: nn.Module) -> dict[str, Tensor]:
    shared = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    return {name: t for name, t in trained.state_dict(keep_vars=True).items() if id(t) not in shared}


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """What the optimizer keeps of each parameter, by the parameter's name and as full tensors on the CPU.

    By name, and not by number as in `Optimizer.state_dict`, so that the groups may be in any order and the weights
    spread over any number of devices. Every process of a run must call it.
    """
    states = {}
    for name, parameter in model.named_parameters():
        entries = {
            key: distributed.whole(value.detach()).cpu().clone() if isinstance(value, Tensor) else value
            for key, value in optimizer.state.get(parameter, {}).items()
        }
        if entries:
            states[name] = entries
    return states


def load_optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, saved: Mapping[str, Mapping[str, Any]]
) -> None:
    """Gives the optimizer the state that `optimizer_state` returned."""
    for name, parameter in model.named_parameters():
        if name in saved:
            optimizer.state[parameter] = {
                key: _placed(value, parameter) if isinstance(value, Tensor) else value
                for key, value in saved[name].items()
            }


def _placed(value: Tensor, parameter: Tensor) -> Tensor:
    """Moments lie where their parameter does; the number of steps is a single number on its device."""
    return distributed.like(value, parameter) if value.ndim else value.to(parameter.device)


def _delete_old(folder: Path, newest: int, best: int | None) -> None:
    kept = [step for step in steps(folder) if step <= newest][:KEPT]
    for step in steps(folder):
        if step not in kept and step != best:
            path = folder / FOLDER / name_of(step)
            doomed = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
            with contextlib.suppress(OSError):  # it is deleted at the next chance
                os.replace(path, doomed)  # at once and as a whole: a half-deleted folder would look damaged
                shutil.rmtree(doomed, ignore_errors=True)


def _remove_temporary(root: Path) -> None:
    for entry in root.glob(".step-*.tmp"):
        shutil.rmtree(entry, ignore_errors=True)


def _sync_folder(path: Path) -> None:
    """The names in a folder are on the disk, too."""
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def storing(folder: Path) -> Iterator[None]:
    """A file that cannot be written is an error that names the folder and what is kept."""
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"{folder} cannot be written to: {error}; {last_good_in_words(folder)}. Make room, then give the same "
            "command again"
        ) from error
