"""Command line of training: `python -m harness.train model=dualformer_tiny data=FOLDER recipe=quick out=FOLDER`."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path

import backbones
from attention_zoo.registry import nearest
from backbones.files import check_file
from harness.datasets import several
from harness.spec import options, recipe
from harness.spec.options import Work, option
from harness.spec.reader import Flag, UsageError
from harness.training.job import Job, Settings, Strategy, model_config
from records import provenance


@dataclass(frozen=True, kw_only=True)
class Options(Settings):
    out: str = option(meaning="folder of the run; if it holds this run already, the run goes on")
    recipe: str = option("quick", "how to train and test: a name in harness/conf/recipe")
    recipe_source: recipe.Source = option("paper", "whose values, where paper and released code differ")
    strategy: Strategy = option("auto", "auto: ddp under torchrun, else single")
    model_changes: dict = option({}, "a value of the model's config, such as model.depths=[1,1,2,1]")
    recipe_changes: dict = option({}, "a value of the recipe, such as recipe.optimisation.epochs=8")
    data_changes: dict = option({}, "an option of the data set, as python -m harness.datasets lists them")
    json: Flag = option(False, "end with one line of JSON on the standard output, for programs")


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


def job(options: Options) -> Job:
    """The job that the options mean. Raises: UsageError."""
    try:
        chosen = recipe.load(options.recipe, options.recipe_source).changed(options.recipe_changes)
        sets = several.chosen(options.data, options.root, options.data_changes)
        for source in sets:
            source.check()
        config = model_config(options.model, chosen, options.model_changes)
        if options.trainable not in (parts := ["all", *backbones.read_config(config).tunable]):
            raise UsageError(
                f"trainable: unknown part {options.trainable!r} to train; {nearest(options.trainable, parts)}"
            )
        if options.checkpoint is not None:
            check_file(Path(options.checkpoint).expanduser())
        counts = {source.name: len(source.load("train").classes) for source in sets}
    except (KeyError, ValueError, TypeError, FileNotFoundError) as error:
        raise UsageError(str(error.args[0]) if error.args else str(error)) from error
    check_sets(chosen, options.data, counts)
    strategy = options.strategy
    if strategy == "auto":
        strategy = "ddp" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else "single"
    settings = {field.name: getattr(options, field.name) for field in fields(Settings)}
    threads = options.threads or (None if options.device != "cpu" else provenance.default_threads())
    return Job(
        **settings | {"threads": threads},
        config=config,
        recipe=chosen,
        classes=sum(counts.values()),
        sets={} if isinstance(options.data, str) else counts,
        folder=Path(options.out),
        strategy=strategy,
        data_options=sets[0].options if isinstance(options.data, str) else options.data_changes,
    )


def check_sets(chosen: recipe.Recipe, data: str | list[str], sets: Collection[str]) -> None:
    """Whether a recipe and the data sets that are named fit each other. Raises: UsageError."""
    if isinstance(data, str):
        if chosen.many_sets:
            raise UsageError(
                f"recipe {chosen.name} trains on several data sets, data={data} is one; give data=[{data},...], or "
                "recipe.many_sets=none"
            )
        return
    if chosen.token_labels:
        raise UsageError(f"recipe {chosen.name} has token labels, which are of one data set; give one as data=")
    for name in chosen.many_sets.sets if chosen.many_sets else ():
        if name not in sets:
            raise UsageError(f"recipe.many_sets.sets: {name!r} is no data set of this run; {nearest(name, sets)}")


def checked(options: Options) -> Work:
    return Work("harness.training.command:train", (job(options), options.json))


def main(argv: list[str] | None = None) -> int:
    return options.run(COMMAND, checked, argv)


if __name__ == "__main__":
    sys.exit(main())
