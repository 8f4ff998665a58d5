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
from typing import Any, Literal

from harness.spec import options
from harness.spec.options import option
from harness.spec.reader import Count, Flag


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


def work(options: Options) -> int:
    path = Path(options.checkpoint).expanduser()

    from harness.evaluation import projections, trained  # torch: a slip above is told at once

    def class_names(name: str, count: int) -> list[str]:
        if name in options.classes:
            return trained.class_names(Path(str(options.classes[name])).expanduser(), count)
        return (job and trained.names_beside(job.folder, name, count)) or [f"class {n}" for n in range(count)]

    job = trained.job_beside(path)
    for key, weight in projections.projections(path).items():
        sources, targets = map(class_names, key, reversed(weight.shape))
        print(f"{key[0]} to {key[1]}")
        for pair in projections.related(weight, options.top, options.by, options.unique_sources):
            print(f"{pair.weight:9.3f}  {sources[pair.source]}  ->  {targets[pair.target]}")
    return 0


def main(argv: list[str] | None = None) -> int:
    return options.run(COMMAND, work, argv)


if __name__ == "__main__":
    sys.exit(main())
