"""The command line: `python -m harness.run ablation=pyramid_scales`.

Hydra stands at this door and nowhere behind it: it composes conf/ and types the options, and what goes on from here are
plain values. Every argument is checked before Hydra or torch is loaded for work, so that a slip costs a second and one
clear line.
"""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from attention_zoo.registry import nearest
from harness import session, suite
from harness.cost import metrics
from harness.progress import console_of_errors
from harness.session import COMMAND
from harness.spec import budget, case
from harness.spec.case import Settings
from harness.spec.options import until_closed
from harness.spec.reader import UsageError

ALL = "all"
DEVICE = re.compile(r"cpu|cuda(:\d+)?")


def option(default: Any, meaning: str, allowed: str) -> Any:
    metadata = {"meaning": meaning, "allowed": allowed}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ClipOptions:
    path: str | None = option(
        None, "video file to measure on", "a path; none: a small video the project renders itself"
    )
    frames: int | None = option(
        None, "frames of the clip; published costs are then not compared", "1 and up; none: as the row"
    )
    size: int | None = option(None, "height and width in pixels, likewise", "1 and up; none: as the row")
    stride: int | None = option(None, "every how many frames of the video, likewise", "1 and up; none: as the row")


@dataclass
class Options:
    """What may stand on the command line, with types and defaults; the help is made from it."""

    ablation: Any = option(None, "the question to answer", "a name from the list below, or all")
    suite: str | None = option(
        None, "instead: all that a machine's record needs, within minutes, into results/<device>/", "{suites}"
    )
    steps: list[str] | None = option(None, "only these steps of the suite", "[NAME,...]; none: all")
    metrics: list[str] | None = option(
        None, "what to measure, such as [params,macs]", "{metrics}; none: as the ablation"
    )
    device: str = option("cpu", "where to measure", "cpu, cuda, cuda:N")
    dtype: str = option("float32", "number format of weights and clip", ", ".join(case.DTYPES))
    batch_size: int = option(1, "clips per forward pass", "1 and up")
    kernel: str = option("auto", "what computes attention", "auto and what `python -m attention_zoo` lists")
    compile: bool = option(False, "measure the model under torch.compile", "true, false")
    threads: int | None = option(None, "CPU threads", "1 and up; none: one per physical core, 1 in quick mode")
    seed: int = option(0, "of the random weights", "0 and up")
    clip: ClipOptions = option(ClipOptions, "", "")
    model: dict[str, Any] = option(dict, "changes a field of every row's model", "model.FIELD=VALUE, dotted")
    quick: bool = option(False, "small clips, few samples: does everything work?", "true, false")
    force: bool = option(False, "measure again what is there", "true, false")
    rounds: int | None = option(
        None, "visits to every case, in turn, among which its timing is split", "1 and up; none: 3, 1 in quick mode"
    )
    time_limit: float = option(900.0, "seconds for one visit to a case", "above 0")
    accuracy: str | None = option(
        None, "train every row too, within a budget", "{budgets}; none: as the ablation, where no metrics are named"
    )
    data: str | None = option(
        None, "data set to train on", "a name of `python -m harness.datasets` or a folder; none: as the budget"
    )
    root: str | None = option(None, "where the files of the data set are", "a folder")
    seeds: list[int] | None = option(None, "one training of every row for each", "[0,1,...]; none: as the budget")
    recipe: str | None = option(
        None, "how to train; recipe.FIELD=VALUE changes a field of it", "a file of conf/recipe; none: as the budget"
    )
    recipe_source: str = option("paper", "whose values, where a paper and its code differ", "paper, code")
    jobs: int | None = option(None, "trainings side by side", "1 and up; none: one per GPU, or per core of a CPU")
    rows: list[str] | None = option(None, "only these rows of the ablation", "[NAME,...]; none: all")
    out: str = option("outputs", "folder of records and reports", "a folder, made if it is not there")


OPTIONS = {f.name: f for f in fields(Options) if f.name not in ("clip", "model")}
CLIP = {f"clip.{f.name}": f for f in fields(ClipOptions)}
LAUNCHER = "hydra/launcher"
OPEN = ("model", "recipe", "data", "hydra.launcher")  # groups whose fields are checked by what they belong to
# Taken as they stand: file names may hold what Hydra's grammar reads otherwise.
PATHS = ("clip", "clip.path", "out", "data", "root")

ALIASES = {"gpu": "cuda", "fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "half": "float16"}  # for hints only

EXAMPLES = (
    ("ablation=pyramid_scales quick=true", "a minute on a laptop: small clips, every step"),
    ("ablation=pyramid_scales", "minutes on a CPU: full-size clips, exact costs, latency and memory"),
    ("ablation=pyramid_scales device=cuda dtype=bfloat16 batch_size=8", "at full size on a GPU"),
    ("ablation=pyramid_scales clip=holiday.mp4", "on a video of yours"),
    ("ablation=all metrics=[params,macs]", "every cost table, about a minute"),
    ("ablation=pyramid_scales metrics=[latency] force=true", "measure one metric again"),
    ("ablation=position_encoding accuracy=quick metrics=[]", "accuracy alone, on the built-in data set"),
    (
        "ablation=attention_schemes accuracy=small 'rows=[full,divided]' data=clips",
        "on clips of yours: clips/train.csv, clips/val.csv",
    ),
    ("suite=gpu", "what a GPU should record, in under 8 minutes on a large one; twice goes on"),
    ("ablation=pyramid_scales accuracy=proxy device=cuda hydra/launcher=submitit_slurm", "on a cluster, a job a row"),
    ("ablation=position_encoding model.drop_path=0 clip.frames=16", "with a field of the models and the clip changed"),
)


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 0 done, 1 a case failed, 2 a wrong command, 130 interrupted."""
    return until_closed(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: list[str]) -> int:
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=120)
    try:
        if any(argument in ("-h", "--help") for argument in argv):
            print(help_text())
            return 0
        show = "--cfg" in argv
        overrides, given = check_arguments([a for a in argv if not (show and a in ("--cfg", "job"))])
        if "suite" in given:
            return _suite(given, argv, console, show)
        if "steps" in given:
            raise UsageError("steps are those of a suite; add suite=gpu, or leave them out")
        if "ablation" not in given and not show:
            if given:
                raise UsageError(f"no ablation is named; add ablation=NAME; allowed: {', '.join([*case.names(), ALL])}")
            print(listing())
            return 0
        chosen = case.names_in_all() if given.get("ablation") == ALL else [given.get("ablation")]
        configs = [compose_config(name, overrides) for name in chosen]
        if show:
            print("---\n".join(OmegaConf.to_yaml(config) for config in configs), end="")
            return 0
        return _session(configs, given, argv, console)
    except UsageError as error:
        return _refuse(str(error))


def _refuse(message: str) -> int:
    print(f"error: {message}\n`{COMMAND} --help` explains the options.", file=sys.stderr)
    return 2


def _session(configs: list, given: dict[str, Any], argv: list[str], console: Console) -> int:
    """From Hydra's objects to plain values, and on."""
    options = configs[0]
    raw = [OmegaConf.to_container(config.ablation, resolve=True) for config in configs]
    ablations = [case.from_dict(one, one["name"]) for one in raw]
    chosen = {
        name: options[name]
        for name in ("batch_size", "device", "dtype", "kernel", "compile", "seed", "threads", "quick")
        if name in given  # only what was given overrides rows and axes
    }
    clip = {key.removeprefix("clip."): value for key, value in given.items() if key.startswith("clip.")}
    settings = Settings(**chosen, **clip, model=given.get("model", {}))
    return session.run(
        ablations,
        settings,
        list(options.metrics) if options.metrics is not None else None,
        Path(options.out),
        training=_training(given),
        force=options.force,
        rounds=options.rounds,
        rows=list(options.rows) if options.rows else None,
        time_limit=options.time_limit,
        console=console,
        progress=console_of_errors(console),
        arguments=argv,
    )


def _training(given: dict[str, Any]) -> session.Training:
    return session.Training(
        budget=given.get("accuracy"),
        launcher=given.get(LAUNCHER),
        launcher_parameters=given.get("hydra.launcher.", {}),
        recipe_changes=given.get("recipe.", {}),
        data_options=given.get("data.", {}),
        **{name: given[name] for name in ("data", "root", "recipe", "recipe_source", "jobs") if name in given},
        **({"seeds": tuple(given["seeds"])} if given.get("seeds") else {}),
    )


def _suite(given: dict[str, Any], argv: list[str], console: Console, show: bool) -> int:
    """A suite instead of an ablation."""
    for key in given:
        if key not in (*suite.SUITE_OPTIONS, LAUNCHER) and not key.endswith("."):
            raise UsageError(
                f"{key} does not go with a suite, whose steps set it; allowed: {', '.join(suite.SUITE_OPTIONS)}"
            )
    chosen = suite.load(given["suite"])
    steps = chosen.chosen(given.get("steps"))
    if show:
        print(OmegaConf.to_yaml(OmegaConf.create([chosen.shown(step) for step in steps])), end="")
        return 0
    settings = Settings(**{name: given[name] for name in ("device", "quick", "threads") if name in given})
    return suite.run(
        chosen,
        steps,
        settings,
        _training(given),
        Path(given["out"]) if "out" in given else None,
        force=given.get("force", False),
        time_limit=given.get("time_limit"),
        console=console,
        progress=console_of_errors(console),
        arguments=argv,
    )


# what is on the command line


def check_arguments(argv: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Check every argument; returns them in Hydra's grammar, and their values by key.

    Raises: UsageError naming the argument, what is allowed and the nearest valid name.
    """
    overrides, given, model, free = [], {}, {}, {}
    for argument in argv:
        key, raw = _split(argument)
        if ("clip.path" if key == "clip" else key) in given or key in model or key in free:
            raise UsageError(f"{key} is given twice; give it once")
        if key in PATHS:
            if not raw:
                raise UsageError(f"{key} is empty; give a path or leave it out")
            key = "clip.path" if key == "clip" else key
            given[key] = raw
            overrides.append(f"{key}={_quoted(raw)}")
            continue
        value = _value(argument, key)
        if key.startswith("model."):
            model[key] = value
            continue
        if key.startswith(tuple(f"{group}." for group in OPEN)):
            free[key] = value
            continue
        if key == LAUNCHER:
            given[key] = str(value)
            continue
        value = _checked(key, value)
        given[key] = value
        if key not in ("ablation", "recipe", "suite"):  # folders of conf/, which Hydra would look into
            overrides.append(f"{key}={_grammar(value)}")
    if model:
        changes = ",".join(f"{key.removeprefix('model.')}:{_grammar(value)}" for key, value in model.items())
        overrides.append("++model={" + changes + "}")
        given["model"] = {key.removeprefix("model."): value for key, value in model.items()}
    for group in OPEN[1:]:
        fields_of_it = {k.removeprefix(f"{group}."): v for k, v in free.items() if k.startswith(f"{group}.")}
        if fields_of_it:
            given[f"{group}."] = fields_of_it
    if given.get("metrics") == [] and given.get("accuracy") in (None, "off"):
        raise UsageError(f"metrics is an empty list and accuracy is off; allowed: {', '.join(metrics.names())}")
    return overrides, given


def _split(argument: str) -> tuple[str, str]:
    known = [*OPTIONS, "clip", *CLIP]
    key, equals, raw = argument.partition("=")
    if argument.startswith("-"):
        bare = key.lstrip("-").replace("-", "_")
        value = "true" if bare in OPTIONS and OPTIONS[bare].type in (bool, "bool") else "VALUE"
        way_out = (
            f"write {bare}={raw or value}"
            if bare in known
            else "options are written key=value; flags: --help, --cfg job"
        )
        raise UsageError(f"unknown flag {argument!r}; {way_out}")
    if not equals:
        if argument in [*case.names(), ALL]:
            raise UsageError(f"{argument!r} is not key=value; did you mean ablation={argument}?")
        raise UsageError(f"{argument!r} is not key=value; {nearest(argument, known)}")
    if key.startswith(("+", "~")):
        raise UsageError(f"{argument!r}: options are neither added nor removed; write {key.lstrip('+~')}={raw}")
    if key == "model":
        raise UsageError(f"{argument!r}: name the field, as in model.drop_path=0; the rows choose the models")
    groups = "|".join(map(re.escape, OPEN))
    if key not in known and key != LAUNCHER and not re.fullmatch(rf"({groups})\.[\w.]+", key):
        raise UsageError(f"unknown option {key!r}; {nearest(key, [*known, *(f'{group}.FIELD' for group in OPEN)])}")
    return key, raw


def _value(argument: str, key: str) -> Any:
    try:
        override = OverridesParser.create().parse_override(argument)
        if override.is_sweep_override():
            listed = "write a list in brackets: metrics=[a,b]" if key == "metrics" else "give one value per run"
            raise UsageError(f"{argument!r} holds several values; {listed}")
        value = override.value()
    except HydraException as error:
        raise UsageError(
            f"{argument!r} cannot be read: {str(error).splitlines()[0]}; quote the value: {key}='\"...\"'"
        ) from error
    return _plain(value)


def _plain(value: Any) -> Any:
    """A parsed value without the parser's own types."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    return value if value is None or isinstance(value, bool | int | float) else getattr(value, "text", str(value))


def _grammar(value: Any) -> str:
    """A plain value in Hydra's grammar."""
    if isinstance(value, list):
        return "[" + ",".join(map(_grammar, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_grammar(one)}" for key, one in value.items()) + "}"
    return _quoted(value) if isinstance(value, str) else json.dumps(value)


def _quoted(text: str) -> str:
    return (
        "'"
        + re.sub(r"(\\*)'", lambda found: found.group(1) * 2 + "\\'", re.sub(r"\\+$", lambda f: f.group() * 2, text))
        + "'"
    )


def _checked(key: str, value: Any) -> Any:
    """The value of an option, of its type and within its bounds."""
    kind = str({**OPTIONS, **CLIP}[key].type)
    if value is None:
        if "None" in kind or key == "ablation":
            return None
        raise UsageError(f"{key}=null; {key} needs a value: {OPTIONS[key].metadata['allowed']}")
    if key == "ablation":
        if value not in [*case.names(), ALL]:
            raise UsageError(f"unknown ablation {value!r}; {nearest(str(value), [*case.names(), ALL])}")
    elif key == "metrics":
        value = value if isinstance(value, list) else [value]
        for name in value:
            if name not in metrics.names():
                raise UsageError(f"unknown metric {name!r}; {nearest(str(name), metrics.names())}")
    elif key == "accuracy":
        if value is False:  # YAML's reading of off
            return budget.OFF
        if value not in [budget.OFF, *budget.names()]:
            raise UsageError(f"unknown budget accuracy={value}; {nearest(str(value), [budget.OFF, *budget.names()])}")
    elif key == "seeds":
        value = value if isinstance(value, list) else [value]
        if not value or any(isinstance(one, bool) or not isinstance(one, int) or one < 0 for one in value):
            raise UsageError(f"seeds={_grammar(value)}: not a list of whole numbers from 0, such as [0,1,2]")
        if len(set(value)) != len(value):
            raise UsageError(f"seeds={_grammar(value)}: a seed is given twice")
    elif key == "suite":
        if value not in suite.names():
            raise UsageError(f"unknown suite {value!r}; {nearest(str(value), suite.names())}")
    elif key in ("rows", "steps"):
        value = [str(one) for one in (value if isinstance(value, list) else [value])]
    elif key == "recipe_source":
        if value not in ("paper", "code"):
            raise UsageError(f"unknown recipe_source {value!r}; {nearest(str(value), ('paper', 'code'))}")
    elif key == "recipe":
        from harness.spec import recipe

        if value not in recipe.names():
            raise UsageError(f"unknown recipe {value!r}; {nearest(str(value), recipe.names())}")
    elif key == "device":
        if not isinstance(value, str) or not DEVICE.fullmatch(value):
            raise UsageError(
                f"unknown device {value!r}; {nearest(ALIASES.get(str(value), str(value)), ('cpu', 'cuda', 'cuda:N'))}"
            )
    elif key == "dtype":
        if value not in case.DTYPES:
            raise UsageError(f"unknown dtype {value!r}; {nearest(ALIASES.get(str(value), str(value)), case.DTYPES)}")
    elif key == "kernel":
        _check_kernel(value)
    elif "bool" in kind:
        if not isinstance(value, bool):
            raise UsageError(f"{key}={value} is not true or false")
    elif "int" in kind:
        least = 0 if key == "seed" else 1
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
            raise UsageError(f"{key}={value} is not a whole number from {least}")
    elif "float" in kind and (
        isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf")
    ):
        raise UsageError(f"{key}={value} is not a number above 0")
    return value


def _check_kernel(name: Any) -> None:
    if name == "auto":
        return
    from attention_zoo import kernels

    if name not in kernels.names():
        raise UsageError(f"unknown kernel {name!r}; {nearest(str(name), ['auto', *kernels.names()])}")


def compose_config(name: str | None, overrides: list[str]):
    """The typed configuration of one ablation. Raises: UsageError with the first line of what Hydra says."""
    ConfigStore.instance().store(name="options", node=Options)
    try:
        with initialize_config_module(config_module="harness.conf", version_base="1.3"):
            return compose("config", overrides=[*([f"ablation={name}"] if name else []), *overrides])
    except (HydraException, OmegaConfBaseException, OSError, ValueError) as error:
        raise UsageError(" ".join(str(error).split("\n")[:2])) from error


# what a newcomer reads


def listing() -> str:
    """Every ablation with the question it answers and how to run it."""
    lines = ["Ablations: each answers one question with one table.", ""]
    width = max(map(len, case.names()))
    for name in case.names():
        lines.append(f"  {name:{width}}  {case.load(name).question}")
    lines += ["", "Run one, for instance:", ""]
    lines += _examples(EXAMPLES[:3] + EXAMPLES[4:5])
    lines += ["", f"`{COMMAND} --help` explains all options."]
    return "\n".join(lines)


def help_text() -> str:
    paragraphs = [
        f"usage: {COMMAND} ablation=NAME [option=value ...]",
        f"       {COMMAND} suite=NAME [option=value ...]",
        "",
        "Measures what attention schemes for video cost, all else equal. One ablation is one question: its rows",
        "differ in stated things only, and each is counted exactly, timed on this machine, trained within a budget,",
        "and set beside the number that its paper prints.",
        "",
        "Records go to <out>/<ablation>/, one file per case, with report.md, table.csv and plots beside them. What is",
        "there is not measured again: a run that was stopped goes on where it was. Without an ablation, the questions",
        "are listed.",
        "",
        "examples",
        *_examples(EXAMPLES),
        "",
        "options (default)",
    ]
    for name, one in {**OPTIONS, **CLIP}.items():
        default = (
            "none"
            if one.default is None
            else str(one.default).lower()
            if isinstance(one.default, bool)
            else one.default
        )
        allowed = one.metadata["allowed"].format(
            metrics=", ".join(metrics.names()),
            suites=", ".join(suite.names()),
            budgets=", ".join([budget.OFF, *budget.names()]),
        )
        line = f"  {name} ({default})".ljust(26) + f" {one.metadata['meaning']}; {allowed}"
        paragraphs += textwrap.wrap(line, 120, subsequent_indent=" " * 27, drop_whitespace=True)
    model = next(f for f in fields(Options) if f.name == "model")
    paragraphs += [
        "  clip=PATH".ljust(26) + " short for clip.path=PATH",
        "  model.FIELD=VALUE".ljust(26)
        + f" {model.metadata['meaning']}, as in model.position=none or model.attention.L.window=[4,7,7]",
        "  recipe.FIELD=VALUE".ljust(26) + " changes the recipe, as in recipe.optimisation.epochs=20",
        "  data.OPTION=VALUE".ljust(26) + " an option of the data set, as in data.sided=true",
        "  hydra/launcher=NAME".ljust(26) + " submitit_slurm or submitit_local: hand the trainings to a queue",
        "  hydra.launcher.FIELD=VALUE" + " for the queue, as in hydra.launcher.slurm_partition=gpu",
        "  --cfg job".ljust(26) + " print the resolved configuration and stop",
        "",
        "budgets of accuracy",
        *(f"  {name}".ljust(26) + f" {budget.load(name).meaning}" for name in budget.names()),
        "",
        "ablations",
        *(f"  {name:24} {case.load(name).question}" for name in [*case.names()]),
        "",
        "exit status: 0 everything is measured (out of memory is a result), 1 a case failed, 2 the command is wrong,",
        "130 interrupted",
    ]
    return "\n".join(paragraphs)


def _examples(examples) -> list[str]:
    return [line for arguments, meaning in examples for line in (f"  {COMMAND} {arguments}", f"      {meaning}")]


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
