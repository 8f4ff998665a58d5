"""How often a checkpoint is right: `python -m harness.evaluate checkpoint=FILE data=NAME root=FOLDER`.

Every video of a split is shown in several views, whose probabilities are averaged. What comes out: top-1, top-5 and
mean class accuracy with 95 % intervals, coverage (videos that could not be decoded are misses, and are named), a table
of classes, a picture of which class is taken for which, and the predictions for all views, from which accuracy for
fewer views follows without the model. A stopped evaluation goes on where it was when the same command is given again.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from harness.datasets import Split
from harness.evaluation import protocol
from harness.evaluation.protocol import TestOptions
from harness.spec import options
from harness.spec.options import Work, option
from harness.spec.reader import FromZero, Whole
from harness.spec.sampling import Order


@dataclass(frozen=True, kw_only=True)
class Options(TestOptions):
    data: str | None = option(None, "name of a data set or a folder of clips; for our checkpoints what they trained on")
    root: str | None = option(None, "folder of the data set")
    split: Split = option("val", "which part")
    data_changes: dict[str, Any] = option({}, "an option of the data set, as python -m harness.datasets lists them")
    views: str | None = option(None, "clips x crops, as in views=4x1; for trained models as in their recipe, else 4x1")
    order: Order | None = option(None, "order of frames: a control, or as trained")
    workers: Whole = option(0, "processes that decode; 0: this one; it waits without a limit for a disk that is silent")
    out: str | None = option(None, f"folder for predictions and scores; a new one in {protocol.OUT} if left out")
    save_every_seconds: FromZero = option(60.0, "how often unfinished predictions are written")


COMMAND = options.Command(
    "python -m harness.evaluate",
    "Accuracy of a checkpoint on a data set: top-1, top-5 and mean class with 95 % intervals, classes, coverage.",
    Options,
    (
        ("checkpoint=outputs/train/RUN/checkpoints/step-0001200/model.safetensors", "as it was trained"),
        (
            "checkpoint=swin_tiny_patch244_window877_kinetics400_1k.pth data=kinetics400 root=k400 device=cuda",
            "a published one: which model it is and how it is tested follow from its tensors and the data set",
        ),
        ("checkpoint=model.safetensors data=clips views=10x3", "a folder with val.csv; many views, to compare fewer"),
    ),
)


def main(argv: list[str] | None = None) -> int:
    return options.run(COMMAND, checked, argv)


def checked(options: Options) -> Work:
    _, views = protocol.checked(options, options.views)
    dataset = protocol.listed(options, options.data, options.root, options.data_changes) if options.data else None
    return Work("harness.evaluation.tested:evaluate", (options, views, dataset))


if __name__ == "__main__":
    sys.exit(main())
