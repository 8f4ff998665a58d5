"""Weights from files and into files. Nothing that a file contains is ever executed.

Read: `.safetensors`, and PyTorch's `.pth` with weights-only loading; in our own layout or in the published ones (see
`layouts`). Written: safetensors, with the model's config in the metadata, so that the file alone makes the model again.
Of a model of which only a part learns (`backbones.learning`), that part alone is written, with the digest of the rest:
such a file loads onto the same backbone and onto no other.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import pickle
import re
import uuid
from argparse import Namespace
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import attention_zoo
from backbones.config import Config
from backbones.family import Backbone, create, families, layouts_of, part
from backbones.files import CheckpointError, check_file, is_safetensors
from backbones.layouts import NATIVE_NAME, Layout, Translated, renamed
from backbones.named import read_config
from backbones.sets import OF_A_SET, SetClassifiers, sets_in, with_sets

logger = logging.getLogger(__name__)

FORMAT = 1
ENTRIES = ("state_dict", "model_state", "model")  # where training codes keep the state dict inside a checkpoint
CLASSIFIER = "classifier."
BUILTIN = (list, dict, set, int, float, str, bool, frozenset)  # of plain values
COMPILED = re.compile(r"^(?:_orig_mod\.)+")  # what torch.compile puts before names
PART, BACKBONE = "part", "backbone"  # in the metadata of a trained part: its name, and the digest of the frozen rest
SETS = "sets"  # in the metadata of a model that was trained on several data sets: its classifiers


@dataclass(frozen=True)
class LoadReport:
    """What became of each tensor. `missing` and `mismatched` have our names, `unexpected` and `ignored` the file's;
    `partial` says of missing ones which parts of them the file has. `note` says what the layout's models do otherwise
    than ours with the same weights.
    """

    path: Path
    layout: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]  # (shape in the file, shape in the model)
    ignored: dict[str, str]  # name -> reason
    config_differs: dict[str, tuple[Any, Any]]  # (in the file, in the model); for files of our own layout
    note: str = ""
    partial: dict[str, list[str]] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        shapes = [f"{k} {shape_text(a)} in the file, {shape_text(b)} here" for k, (a, b) in self.mismatched.items()]
        parts = [f"{key}, of which it has {' and '.join(names)}" for key, names in self.partial.items()]
        lines = [
            listed("missing (in the model, not in the file)", self.missing),
            listed("of these in part", parts, "; "),
            listed("unexpected (in the file, not in the model)", self.unexpected),
            listed("of another shape", shapes, "; "),
        ]
        if self.config_differs:
            differences = (f"{k} {a!r} in the file, {b!r} here" for k, (a, b) in self.config_differs.items())
            lines.append(f"  the file is of a model with another config: {'; '.join(differences)}")
        return "\n".join(line for line in lines if line)


def shape_text(shape: tuple[int, ...]) -> str:
    """64x3x2x4x4"""
    return "x".join(map(str, shape)) or "scalar"


def listed(kind: str, names: Iterable[str], separator: str = ", ") -> str:
    """One line with the number of names and all of them, see `compact`; nothing where there are none."""
    names = list(names)
    return f"  {len(names)} {kind}: {separator.join(compact(names))}" if names else ""


def compact(names: Iterable[str]) -> list[str]:
    """Names that differ in a number as one: `column.[0-11].norm1.weight`."""
    parts = [name.split(".") for name in names]
    for place in reversed(range(max(map(len, parts), default=0))):
        alike: dict[tuple[str, ...], list[str]] = {}
        for words in parts:
            number = place < len(words) - 1 and words[place].isdecimal()
            key = (*words[:place], "*", *words[place + 1 :]) if number else tuple(words)
            alike.setdefault(key, []).append(words[place] if number else "")
        parts = [[_range(numbers) if word == "*" else word for word in key] for key, numbers in alike.items()]
    return [".".join(words) for words in parts]


def _range(numbers: list[str]) -> str:
    """3, or [0-3,5]."""
    ordered, runs = sorted(map(int, numbers)), []
    for number in ordered:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    if len(ordered) == 1:
        return numbers[0]
    return "[" + ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) + "]"


def load_checkpoint(model: Backbone, path: str | os.PathLike[str], *, strict: bool = True) -> LoadReport:
    """Copies the weights of a file into the model; tensors take the model's dtype and device.

    Args:
        strict: whether a missing or unexpected tensor, or one of another shape, is an error. If not, what fits is
            loaded and the rest is logged and reported. A file of which nothing fits is an error in any case.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is not a readable checkpoint, or does not fit; or it holds the trained part of a model whose
            backbone is not this one's. The model is then unchanged.
    """
    path = Path(path)
    tensors, metadata = read(path)
    weights = weights_of(model)
    try:
        # What we wrote has our names; those of a trained part alone, such as a classifier, would not tell the layout.
        ours = Translated(Layout(NATIVE_NAME, ""), tensors, {key: key for key in tensors}, {})
        translated = ours if "config" in metadata else translate(tensors, model.config and model.config.family, weights)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    ignored = dict(translated.ignored)
    # A classifier for each set, here or in the file; or one that reads something else.
    several = any(map(OF_A_SET.match, [*weights, *translated.tensors]))
    unused = [key for key in translated.tensors if key.startswith(CLASSIFIER) and key not in weights]
    why = "the model's classifiers are of other data sets" if several else "the model's classifier is of other parts"
    why = why if model.num_classes else "the model has no classifier"
    ignored |= {translated.origin[key]: why for key in unused}
    stored = {key: tensor for key, tensor in translated.tensors.items() if key not in unused}
    stored = {key: _as_video(tensor, weights[key]) if key in weights else tensor for key, tensor in stored.items()}
    if BACKBONE in metadata:
        _check_backbone(path, metadata, {key: tensor for key, tensor in weights.items() if key not in stored})
    mismatched = {
        key: (tuple(tensor.shape), tuple(weights[key].shape))
        for key, tensor in stored.items()
        if key in weights and tensor.shape != weights[key].shape
    }
    fitting = [key for key in weights if key in stored and key not in mismatched]
    report = LoadReport(
        path=path,
        layout=translated.layout.name,
        loaded=tuple(fitting),
        missing=() if BACKBONE in metadata else tuple(key for key in weights if key not in stored),
        unexpected=tuple(translated.origin[key] for key in stored if key not in weights),
        mismatched=mismatched,
        ignored=ignored,
        config_differs=_config_differences(model, metadata),
        note=translated.layout.note,
        partial={key: names for key, names in translated.partial.items() if key in weights},
    )
    if not fitting:
        raise CheckpointError(f"{path} (layout: {report.layout}) has no tensor that fits the model\n{report}")
    if strict and not report.complete:
        raise CheckpointError(
            f"{path} (layout: {report.layout}) does not fit the model\n{report}\n"
            "  make a model with the file's config, or load what fits with strict=False"
        )
    _check_values(path, {key: stored[key] for key in fitting}, weights)
    with torch.no_grad():
        for key in fitting:
            weights[key].copy_(stored[key])
    if str(report):
        logger.warning("%s (layout: %s): %d tensors loaded\n%s", path, report.layout, len(fitting), report)
    if report.note:
        logger.info("%s (layout: %s): %s", path, report.layout, report.note)
    for name, reason in ignored.items():
        logger.debug("%s: %s ignored: %s", path, name, reason)
    return report


def _check_values(path: Path, stored: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """That what is copied is what the model computes with. Raises: CheckpointError."""
    for key, tensor in stored.items():
        if not weights[key].is_floating_point():
            continue
        if tensor.is_meta or tensor.layout != torch.strided:
            raise CheckpointError(f"{path}: {key} holds no plain numbers ({tensor.device}, {tensor.layout})")
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(f"{path}: {key} is of {kind}, as in a quantised model; save it in float32 first")
        if not torch.isfinite(tensor.float()).all():
            raise CheckpointError(
                f"{path}: {key} holds numbers that are not finite: its training diverged, or a format was too narrow"
            )


def _check_backbone(path: Path, metadata: Mapping[str, str], rest: Mapping[str, Tensor]) -> None:
    """That what a file does not hold is what it was trained on."""
    actual, expected = digest(rest), metadata[BACKBONE]
    if actual != expected:
        raise CheckpointError(
            f"{path} holds only what was trained of a model ({metadata[PART]}). It needs the backbone with the digest "
            f"{expected}, this one's is {actual}; first load the weights that the training started from (backbone=FILE)"
        )


def digest(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of tensors: of their names, number formats, shapes and bytes, in the order of the names."""
    hasher = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        hasher.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return hasher.hexdigest()


def parted(model: Backbone) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of the part that learns, which a checkpoint holds, and the frozen ones, on the CPU."""
    learnt = part(model, model.learns)
    tensors = {COMPILED.sub("", key): value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    trained = {key: value for key, value in tensors.items() if learnt.search(key)}
    return trained, {key: value for key, value in tensors.items() if key not in trained}


def translate(state: Mapping[str, Tensor], family: str | None = None, expected: Collection[str] = ()) -> Translated:
    """A state dict under our names, found in any known layout: where several have such names the one that fits most of
    the `expected` ones, else those of one family first. Raises: ValueError.
    """
    return renamed(state, layouts_of(family), expected)


def misfits(config: Config, tensors: Mapping[str, Tensor]) -> int | None:
    """How many tensors of a file a model of that config lacks, has beside or has in another shape: 0 where the file is
    of such a model, with any number of classes. None: no layout of the family has such names.
    """
    family = families.get(config.family)
    outlines = {key: tensor.to("meta") for key, tensor in tensors.items()}
    try:
        translated = renamed(outlines, family.layouts).tensors
        several = sets_in(translated)
        with torch.device("meta"):
            model = create(config, classes_in(translated) or 1)
            weights = (with_sets(model, **several) if several else model).state_dict()
        translated = renamed(outlines, family.layouts, weights).tensors
    except ValueError:
        return None
    alike = [
        key
        for key in weights
        if key in translated and _as_video(translated[key], weights[key]).shape == weights[key].shape
    ]
    return len(weights.keys() | translated.keys()) - len(alike)


def classes_in(tensors: Mapping[str, Tensor]) -> int:
    """How many classes the classifier in a translated file answers for, by its last map: 0 where there is none, or one
    for each of several data sets (`backbones.sets.sets_in`).
    """
    maps = [key for key in tensors if key.startswith(CLASSIFIER) and key.endswith("weight")]
    return 0 if not maps or sets_in(tensors) else tensors[max(maps)].shape[0]


def _as_video(tensor: Tensor, target: Tensor) -> Tensor:
    """A 2-D convolution as the 3-D one of a single frame; anything else as it is."""
    return tensor[:, :, None] if tensor.ndim == 4 and target.ndim == 5 and target.shape[2] == 1 else tensor


def weights_of(model: Backbone) -> dict[str, Tensor]:
    """The tensors of the model itself, to be written into."""
    weights = model.state_dict()
    if any(tensor.is_meta for tensor in weights.values()):
        raise ValueError("the model is on the meta device and holds no weights; create it on a real device first")
    return weights


def _config_differences(model: Backbone, metadata: Mapping[str, str]) -> dict[str, tuple[Any, Any]]:
    if model.config is None or "config" not in metadata:
        return {}
    try:
        stored = json.loads(metadata["config"])
    except json.JSONDecodeError:
        return {"config": ("unreadable", "see model.config")}
    actual = model.config.to_dict()
    return {key: (stored.get(key), actual.get(key)) for key in actual | stored if stored.get(key) != actual.get(key)}


def save_checkpoint(model: Backbone, path: str | os.PathLike[str]) -> Path:
    """Writes weights, config and number of classes as safetensors; whole or not at all.

    Where only a part of the model learns, the weights of that part, and the digest of the others.

    Raises:
        ValueError: the name does not end in .safetensors, or the model was not made by `create` and has no config.
        OSError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} must end in .safetensors, the one format that is written")
    if model.config is None:
        raise ValueError("the model has no config to write with its weights; make it with backbones.create")
    metadata = {
        "format": f"attention-zoo/{FORMAT}",
        "config": json.dumps(model.config.to_dict(), sort_keys=True),
        "num_classes": str(model.num_classes),
    }
    if isinstance(model.classifier, SetClassifiers):
        metadata |= {SETS: model.classifier.metadata()}
    tensors, frozen = parted(model)
    if frozen:
        metadata |= {PART: model.learns, BACKBONE: digest(frozen)}
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
        rights = temporary.stat().st_mode  # what the umask gives a new file; safetensors makes one for its owner alone
        save_file(tensors, temporary, metadata)
        temporary.chmod(rights)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{path} cannot be written: {error}; choose a folder that is writable and not full") from error
    finally:
        with contextlib.suppress(OSError):  # it is gone where all went well
            temporary.unlink()
    return path


def from_checkpoint(
    path: str | os.PathLike[str],
    *,
    kernel: str = attention_zoo.kernels.AUTO,
    backbone: str | os.PathLike[str] | None = None,
) -> Backbone:
    """The model that `save_checkpoint` wrote, from its file alone.

    Args:
        backbone: the weights that its training started from, where the file holds the trained part alone.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it holds no config of ours, or is damaged; or its backbone is lacking, or another.
    """
    path = Path(path)
    _, metadata = read(path)
    if "config" not in metadata:
        raise CheckpointError(
            f"{path} holds no model config; only files of save_checkpoint do. "
            "Make the model with backbones.create and load the file with load_checkpoint"
        )
    try:
        config, num_classes = read_config(json.loads(metadata["config"])), int(metadata["num_classes"])
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: the model config in its metadata is damaged: {error}") from error
    model = create(config, num_classes, kernel=kernel)
    if SETS in metadata:
        with_sets(model, **json.loads(metadata[SETS]))
    if BACKBONE in metadata:
        if backbone is None:
            raise CheckpointError(
                f"{path} holds only what was trained of a model ({metadata[PART]}). It needs the backbone with the "
                f"digest {metadata[BACKBONE]}; give the weights that the training started from as backbone=FILE"
            )
        load_checkpoint(model, backbone, strict=False)
    load_checkpoint(model, path)
    return model


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state dict of a file, as named there, and its metadata (empty for `.pth`)."""
    check_file(path)
    if is_safetensors(path):  # whatever its name ends in
        return _read_safetensors(path)
    return _state_dict(path, _read_pickle(path)), {}


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file ({error}): cut off or damaged; copy or download it again"
        ) from error
    version = metadata.get("format", "")
    if version.startswith("attention-zoo/") and version != f"attention-zoo/{FORMAT}":
        raise CheckpointError(
            f"{path} has the format {version}, this version reads attention-zoo/{FORMAT}; update attention-zoo"
        )
    return tensors, metadata


def _read_pickle(path: Path) -> Any:
    try:
        # Of an open file, so that PyTorch cannot go by its name.
        with torch.serialization.safe_globals([*_numbers(), *_settings()]), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code:
            raise CheckpointError(
                f"{path} contains more than tensors and numbers: reading it would run {code[1]}. Refused. Ask "
                "its source for a file with the state dict alone (.safetensors, or .pth with nothing else in it)"
            ) from None
        raise _damaged(path, error) from error
    except Exception as error:  # a damaged file makes the reader fail in many ways
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> CheckpointError:
    first = (str(error).splitlines() or [""])[0]
    if "weights" in first.lower():  # PyTorch's advice to run whatever the file says
        first = "not a file of weights"
    return CheckpointError(
        f"{path} is not a readable PyTorch checkpoint ({type(error).__name__}: {first}): cut off, damaged or another "
        "kind of file; copy or download it again"
    )


def _numbers() -> list[Any]:
    """NumPy's numbers, which mmcv keeps beside the weights (a best score), and its arrays, as states of random numbers
    and weights of other programs are; making them runs no code of the file."""
    makers = {"scalar": np.float64(0).__reduce__()[0], "_reconstruct": np.zeros(1).__reduce__()[0]}
    kinds = {type(np.dtype(kind)) for kind in "f8 f4 f2 i8 i4 i2 i1 u8 u4 u2 u1 b1 U1".split()}
    named = [(maker, f"numpy.{core}.multiarray.{name}") for name, maker in makers.items() for core in ("core", "_core")]
    return [np.dtype, np.ndarray, *kinds, *named]


def _settings() -> list[Any]:
    """What trainers keep their arguments and places in beside the weights; making these runs no code of the file."""
    builtin = [(kind, f"{module}.{kind.__name__}") for kind in BUILTIN for module in ("builtins", "__builtin__")]
    places = [
        (pure, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")  # the second: of Python 3.13
        for pure, names in ((PurePosixPath, ("PosixPath", "PurePosixPath")), (PureWindowsPath, ("WindowsPath",)))
        for name in names
    ]
    return [Namespace, SimpleNamespace, datetime, (_plain_dict, "collections.defaultdict"), *builtin, *places]


def _plain_dict(_factory: Any = None, *_entries: Any) -> dict[Any, Any]:
    """What a defaultdict is read as, which PyTorch's reader would not fill."""
    return {}


def _state_dict(path: Path, loaded: Any) -> dict[str, Tensor]:
    """The weights in what a file holds: all of it, or one of its entries, whatever that is called."""
    entries = loaded if isinstance(loaded, Mapping) else {}
    if _is_state(entries):
        return _tensors(entries)
    states = {name: value for name, value in entries.items() if _is_state(value)} or {
        f"{outer}.{name}": value
        for outer, inner in entries.items()
        if isinstance(inner, Mapping)
        for name, value in inner.items()
        if _is_state(value)
    }
    usual = [name for entry in ENTRIES for name in states if str(name).rpartition(".")[2] == entry]
    if not usual and len(states) != 1:
        contents = f"its entries are {', '.join(map(str, list(entries)[:8]))}" if entries else type(loaded).__name__
        several = f"more than one state dict, {' and '.join(map(str, states))}" if states else "no state dict"
        raise CheckpointError(f"{path} holds {several} ({contents}); save the state dict of the model alone")
    taken, *_ = [*usual, *states]
    if others := [name for name in states if name != taken]:
        logger.warning("%s: the weights under %s are taken, not those under %s", path, taken, " or ".join(others))
    return _tensors(states[taken])


def _is_state(value: Any) -> bool:
    """Whether names have tensors; where some are weights by their names, counts and states may stand beside them."""
    if not isinstance(value, Mapping) or not value or not all(isinstance(key, str) for key in value):
        return False
    arrays = [key for key, tensor in value.items() if isinstance(tensor, Tensor | np.ndarray)]
    return len(arrays) == len(value) or any(key.endswith(".weight") for key in arrays)


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    tensors = {key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for key, value in state.items()}
    return {key: value for key, value in tensors.items() if isinstance(value, Tensor)}
