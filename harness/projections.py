"""Which classes of two data sets belong together: `python -m harness.projections checkpoint=FILE`.

Reads the projections between the classes of the sets that a model was trained on (MultiTrain, Table 4): for each pair
of sets the classes with the largest weights. The paper does not say how its five were chosen: here they are the largest
entries of the matrix, signed, or `by=absolute`; with `unique_sources=true` each source's best target, the strongest
sources first, as all rows of the paper's table have five sources.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.spec import options
from harness.spec.options import option
from harness.spec.reader import Count, Flag, UsageError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Options:
    checkpoint: str = option(meaning="weights of a training on several data sets, ours or of the released code")
    top: Count = option(5, "pairs of classes for each pair of sets")
    by: Literal["signed", "absolute"] = option("signed", "which weights are large")
    unique_sources: Flag = option(False, "each source class once, with its best target")
    classes: dict[str, Any] = option({}, "file with the class names of a set, one a line, as classes.kinetics400=FILE")


COMMAND = options.Command(
    "python -m harness.projections",
    "The classes of several data sets that a model trained on them takes for related.",
    Options,
    (
        ("checkpoint=outputs/run/checkpoints/step-0001200/model.safetensors", "a training of ours"),
        ("checkpoint=multitrain.pth classes.kinetics=k400.txt unique_sources=true", "a published one"),
    ),
)


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


def work(options: Options) -> int:
    path = Path(options.checkpoint).expanduser()

    from harness.evaluation import trained  # torch: a slip above is told at once

    job = trained.job_beside(path)
    for key, weight in projections(path).items():
        names = [_names(options, job, name, count) for name, count in zip(key, reversed(weight.shape), strict=True)]
        print(f"{key[0]} to {key[1]}")
        for pair in related(weight, options.top, options.by, options.unique_sources):
            print(f"{pair.weight:9.3f}  {names[0][pair.source]}  ->  {names[1][pair.target]}")
    return 0


def projections(path: Path) -> dict[tuple[str, str], Tensor]:
    """The matrices by (from, to), of a checkpoint's folder or of a released file. Raises: UsageError."""
    import torch

    import backbones
    from backbones.checkpoint import read
    from harness.training.many_sets import RELEASED
    from harness.training.state import STATE

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


def _names(options: Options, job: dict[str, Any] | None, name: str, count: int) -> list[str]:
    from harness.evaluation import trained

    if name in options.classes:
        return trained.class_names(Path(str(options.classes[name])).expanduser(), count)
    return (job and trained.names_beside(job["folder"], name, count)) or [f"class {n}" for n in range(count)]


def main(argv: list[str] | None = None) -> int:
    return options.run(COMMAND, work, argv)


if __name__ == "__main__":
    sys.exit(main())
