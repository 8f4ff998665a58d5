"""Command line of training: `python -m harness.train model=dualformer_tiny data=FOLDER recipe=quick out=FOLDER`."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.spec import options
from harness.spec.case import DTYPES
from harness.spec.options import option
from harness.spec.reader import UsageError
from harness.spec.sampling import ORDERS
from harness.training.job import STRATEGIES


@dataclass(frozen=True)
class Options:
    model: str = option(
        meaning="name of a model; python -m attention_zoo lists the schemes, an unknown name the models"
    )
    data: str = option(meaning="name of a data set (python -m harness.datasets lists them), or a folder of videos")
    out: str = option(meaning="folder of the run; if it holds this run already, the run goes on")
    recipe: str = option("quick", "how to train and test: a name in harness/conf/recipe")
    recipe_source: str = option(
        "paper", "whose values, where paper and released code differ", choices=("paper", "code")
    )
    root: str | None = option(None, "where the files of a named data set are")
    seed: int = option(0, "of weights, order of clips, augmentation and dropout", least=0)
    device: str = option("cpu", "cpu, cuda or cuda:1; under torchrun, cuda is one device for each process")
    dtype: str = option("float32", "other than float32: number format of autocast", choices=DTYPES)
    kernel: str = option("auto", "what computes attention: auto or a name of attention_zoo.kernels")
    compile: bool = option(False, "compile the model by torch.compile")
    threads: int | None = option(None, "threads of PyTorch on the CPU; none: one per physical core", least=1)
    workers: int = option(0, "processes that load clips; 0: clips are loaded between steps", least=0)
    micro_batch: int | None = option(None, "clips of one forward pass; the rest of a batch is accumulated", least=1)
    preload: bool = option(False, "decode every clip once, into memory; for small data sets")
    order: str = option("ordered", "a control: train and test on shuffled or single frames", choices=ORDERS)
    controls: bool = option(False, "test the final weights on shuffled and on single frames, too")
    checkpoint: str | None = option(None, "initial weights")
    inflate: bool = option(False, "the initial weights are of an image model")
    activation_checkpointing: bool = option(False, "recompute activations in the backward pass: less memory")
    strategy: str = option("auto", "auto: ddp under torchrun, else single", choices=("auto", *STRATEGIES))
    evaluate_every: float | None = option(None, "epochs between evaluations; none: at the end only")
    max_steps: int | None = option(None, "end after so many steps of the recipe's schedule", least=1)
    save_every_seconds: float = option(300.0, "longest time between checkpoints", least=0)
    log_every: int | None = option(None, "steps per line of log.jsonl; none: about 20 lines per epoch", least=1)
    tensorboard: bool = option(False, "also write logs for TensorBoard, in the folder of the run")
    test_split: str = option("val", "what is tested on", choices=("val", "test", "train"))
    model_changes: dict = option({}, "a value of the model's config, such as model.depths=[1,1,2,1]")
    recipe_changes: dict = option({}, "a value of the recipe, such as recipe.optimisation.epochs=8")
    data_changes: dict = option({}, "an option of the data set, as python -m harness.datasets lists them")


COMMAND = options.Command(
    "python -m harness.train",
    "Train a model on a data set and evaluate it. Writes log.jsonl, checkpoints/, predictions.npz and result.json to\n"
    "out=. The same command again goes on where it was stopped, at any moment and with the same result; a finished\n"
    "run is only printed. On several devices: torchrun --nproc-per-node N -m harness.train ...",
    Options,
    (
        (
            "model=pyramid_tiny_local_window data=clips recipe=quick out=outputs/run",
            "a folder with train.csv and val.csv",
        ),
        (
            "model=dualformer_tiny data=kinetics400 root=/data/k400 recipe=dualformer_tiny_k400 device=cuda "
            "dtype=bfloat16 workers=12 out=outputs/k400",
            "the published recipe",
        ),
    ),
)


def job(given: Options) -> Any:
    """The job that the options mean. Imports torch. Raises: UsageError."""
    from harness import datasets
    from harness.spec import recipe
    from harness.training.job import Job, model_config
    from records import provenance

    try:
        chosen = recipe.load(given.recipe, given.recipe_source).changed(given.recipe_changes)
        config = model_config(given.model, chosen, given.model_changes)
        classes = len(datasets.load(given.data, "train", given.root, **given.data_changes).classes)
    except (KeyError, ValueError, TypeError) as error:
        raise UsageError(str(error.args[0]) if error.args else str(error)) from error
    strategy = given.strategy
    if strategy == "auto":
        strategy = "ddp" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else "single"
    return Job(
        model=given.model,
        config=config,
        recipe=chosen,
        data=given.data,
        root=given.root,
        classes=classes,
        folder=Path(given.out),
        strategy=strategy,
        threads=given.threads or (None if given.device != "cpu" else provenance.default_threads()),
        data_options=given.data_changes,
        **{name: getattr(given, name) for name in SAME},
    )


SAME = (
    "seed", "device", "dtype", "kernel", "compile", "workers", "micro_batch", "preload", "order", "controls",
    "checkpoint", "inflate", "activation_checkpointing", "evaluate_every", "max_steps", "save_every_seconds",
    "log_every", "tensorboard", "test_split",
)  # fmt: skip


def work(given: Options) -> int:
    chosen = job(given)
    from rich.console import Console

    from attention_zoo.kernels import KernelUnavailable
    from backbones import CheckpointError
    from harness.clips.loading import LoadingError
    from harness.datasets import DataError
    from harness.evaluation.predictions import PredictionsError
    from harness.training import loop
    from harness.training.job import Stopped, TrainingError
    from harness.training.stopping import stopping

    console = Console(stderr=True)
    try:
        with stopping() as stop:
            result = loop.train(chosen, console, stop)
    except Stopped as stopped:
        if int(os.environ.get("RANK", "0")) == 0:
            print(stopped, file=sys.stderr)
        return 130
    except (
        TrainingError, LoadingError, DataError, CheckpointError, PredictionsError, KernelUnavailable, OSError,
    ) as error:  # fmt: skip
        print(f"error: {error}", file=sys.stderr)
        return 1
    if int(os.environ.get("RANK", "0")) == 0:
        print("\n".join(told(result, chosen.folder)))
    return 0


def told(result: Any, folder: Path) -> list[str]:
    """The result as a person reads it."""

    def figure(scores: dict[str, Any], name: str) -> str:
        value = scores[name]
        return f"{value['value']:.2f} % [{value['low']:.2f}, {value['high']:.2f}]"

    scores = result.scores
    lines = [
        f"top-1 {figure(scores, 'top1')}, top-5 {figure(scores, 'top5')}, mean class {figure(scores, 'mean_class')}; "
        f"{scores['decoded']} of {scores['videos']} videos decoded"
    ]
    lines += [f"control, {order} frames: top-1 {figure(of_one, 'top1')}" for order, of_one in result.controls.items()]
    seconds = result.seconds
    lines.append(
        f"{result.steps} steps in {seconds['train']:.0f} s ({result.clips_per_second:.1f} clips/s, "
        f"{100 * result.data_wait:.0f} % waiting for data), evaluation {seconds['evaluate']:.0f} s; "
        f"{result.parameters / 1e6:.3f} M parameters, {result.replaced} clip{'s' * (result.replaced != 1)} replaced"
    )
    return [*lines, f"{folder}: result.json, {result.checkpoint}"]


def main(argv: list[str] | None = None) -> int:
    return options.run(COMMAND, work, argv)


if __name__ == "__main__":
    sys.exit(main())
