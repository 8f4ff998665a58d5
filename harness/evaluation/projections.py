"""What a training on several data sets learnt of their classes: a matrix for each pair (MultiTrain, Table 4)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import backbones
from backbones.checkpoint import read
from harness.evaluation.protocol import class_names
from harness.evaluation.trained import job_beside, names_beside
from harness.spec.reader import UsageError
from harness.training.many_sets import RELEASED
from harness.training.state import STATE


@dataclass(frozen=True)
class Related:
    """Two classes, by number, and the weight from one to the other."""

    source: int
    target: int
    weight: float


def related(weight: Tensor, top: int, by: str = "signed", unique_sources: bool = False) -> list[Related]:
    """The largest entries of a projection (target classes, source classes), the largest first."""
    size = weight.abs() if by == "absolute" else weight
    if unique_sources:
        best, targets = size.max(0)
        sources = best.argsort(descending=True, stable=True)[:top].tolist()
        pairs = [(int(targets[source]), source) for source in sources]
    else:
        places = size.flatten().argsort(descending=True, stable=True)[:top].tolist()
        pairs = [divmod(place, weight.shape[1]) for place in places]
    return [Related(source, target, float(weight[target, source])) for target, source in pairs]


def projections(path: Path) -> dict[tuple[str, str], Tensor]:
    """The matrices by (from, to), of a checkpoint's folder or of a released file. Raises: UsageError."""
    beside = path.with_name(STATE)
    try:
        if path.suffix == ".safetensors" and beside.is_file():
            tensors = torch.load(beside, map_location="cpu", weights_only=True)["heads"]
        else:
            tensors = {RELEASED.rename(key): tensor for key, tensor in read(path)[0].items()}
    except (backbones.CheckpointError, OSError) as error:
        raise UsageError(str(error)) from None
    heads = {key.split(".")[1]: t for key, t in tensors.items() if key.startswith("projections.")}
    if not heads:
        raise UsageError(f"{path} has no projections: it was not trained on several data sets, or is without {STATE}")
    names = _sets(heads)
    return {(a, b): heads[f"{a}_{b}"] for a in names for b in names if f"{a}_{b}" in heads}


def _sets(heads: dict[str, Tensor]) -> list[str]:
    """Names of sets, of which each pair is joined by an underscore, as may stand in a name itself."""
    starts = {key[:place] for key in heads for place in range(len(key)) if key[place] == "_"}
    ends = {key[place + 1 :] for key in heads for place in range(len(key)) if key[place] == "_"}
    names = sorted(starts & ends)
    return [n for n in names if all(f"{n}_{o}" in heads or o == n or f"{o}_{n}" not in heads for o in names)]


def tell(options: Any, path: Path) -> int:
    """Prints what the options of `harness.projections` ask for. Returns the exit status. Raises: UsageError."""

    def names_of(name: str, count: int) -> list[str]:
        if name in options.classes:
            return class_names(Path(str(options.classes[name])).expanduser(), count)
        return (job and names_beside(job.folder, name, count)) or [f"class {n}" for n in range(count)]

    job = job_beside(path)
    for key, weight in projections(path).items():
        sources, targets = map(names_of, key, reversed(weight.shape))
        print(f"{key[0]} to {key[1]}")
        for pair in related(weight, options.top, options.by, options.unique_sources):
            print(f"{pair.weight:9.3f}  {sources[pair.source]}  ->  {targets[pair.target]}")
    return 0
