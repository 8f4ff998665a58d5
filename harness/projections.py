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

from backbones.files import CheckpointError, check_file
from harness.spec import options
from harness.spec.options import Work, option
from harness.spec.reader import Count, Flag, UsageError


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


def checked(options: Options) -> Work:
    path = Path(options.checkpoint).expanduser()
    try:
        check_file(path)
    except (CheckpointError, OSError) as error:
        raise UsageError(str(error)) from None
    return Work("harness.evaluation.projections:tell", (options, path))


def main(argv: list[str] | None = None) -> int:
    return options.run(COMMAND, checked, argv)


if __name__ == "__main__":
    sys.exit(main())
