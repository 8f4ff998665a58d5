"""Command line of training: `python -m harness.train model=dualformer_tiny data=FOLDER recipe=quick out=FOLDER`."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rich.console import Console

from attention_zoo.registry import nearest
from harness.datasets import resolve, several
from harness.spec import options, recipe
from harness.spec.options import option
from harness.spec.reader import Flag, UsageError
from harness.training.job import Job, Result, Settings, Stopped, Strategy, model_config
from harness.training.stopping import stopping
from records import provenance
from records.terminal import json_line


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
            resolve(source.data, source.root)
        config = model_config(options.model, chosen, options.model_changes)
        counts = {source.name: len(source.load("train").classes) for source in sets}
    except (KeyError, ValueError, TypeError) as error:
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


def work(options: Options) -> int:
    chosen = job(options)

    from harness.training import loop  # torch: a wrong command is refused without it

    first = int(os.environ.get("RANK", "0")) == 0
    if first and (warning := provenance.crowded(threads=options.threads, workers=options.workers)):
        print(warning, file=sys.stderr)
    try:
        with stopping() as stop:
            result = loop.train(chosen, Console(stderr=True), stop)
    except Stopped as stopped:
        if first:
            print(stopped, file=sys.stderr)
        return 130
    except loop.ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if first:
        print("\n".join(in_words(result, chosen.folder)))
    if first and options.json:
        json_line({"status": 0, "folder": str(chosen.folder), **asdict(result)})
    return 0


def in_words(result: Result, folder: Path) -> list[str]:
    """The result as a person reads it."""

    def figure(scores: dict[str, Any], name: str) -> str:
        value = scores[name]
        return f"{value['value']:.2f} % [{value['low']:.2f}, {value['high']:.2f}]"

    scores = result.scores
    lines = [
        f"top-1 {figure(scores, 'top1')}, top-5 {figure(scores, 'top5')}, mean class {figure(scores, 'mean_class')}; "
        f"{scores['decoded']} of {scores['videos']} videos decoded"
    ]
    if scores["decoded"] < scores["videos"]:
        lines.append(
            f"what could not be decoded counts as missed; once it can be, remove {folder}/result.json and give the "
            "same command: it alone is tried again"
        )
    lines += [
        f"  {name}: top-1 {figure(set_scores, 'top1')}, {set_scores['videos']} videos"
        for name, set_scores in result.sets.items()
    ]
    lines += [f"control, {order} frames: top-1 {figure(control, 'top1')}" for order, control in result.controls.items()]
    if result.training:
        end = f"at the end of training {result.training['curve'][-1]:.1f} % of its clips were answered right"
        lines.append(f"{result.trouble}: {end}" if result.trouble else end)
    seconds = result.seconds
    part = "" if result.trained is None else f" ({result.trained / 1e6:.3f} M trained)"
    lines.append(
        f"{result.steps} steps in {seconds['train']:.0f} s ({result.clips_per_second:.1f} clips/s, "
        f"{100 * result.data_wait:.0f} % waiting for data), evaluation {seconds['evaluate']:.0f} s; "
        f"{result.parameters / 1e6:.3f} M parameters{part}, "
        f"{result.replaced} clip{'s' * (result.replaced != 1)} replaced"
    )
    return [*lines, f"{folder}: result.json, {result.checkpoint}"]


def main(argv: list[str] | None = None) -> int:
    return options.run(COMMAND, work, argv)


if __name__ == "__main__":
    sys.exit(main())
