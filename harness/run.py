"""The command line: `python -m harness.run ablation=pyramid_scales`.

Every argument and every file that it names is typed and checked before torch is loaded, so that a slip costs less than
a second and one clear line. What goes on from here are plain values.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from harness import session
from harness.call import TIME_LIMIT, Call
from harness.deadline import Deadline
from harness.progress import console_of_errors
from harness.session import COMMAND
from harness.spec import budget, case, machines, names, options
from harness.spec import suite as suites
from harness.spec.budget import Training
from harness.spec.case import Ablation, Settings
from harness.spec.options import Work, option
from harness.spec.reader import Count, Flag, Positive, UsageError, Whole
from records import provenance, terminal
from records.visits import QUICK_ROUNDS, ROUNDS

SUITE_OPTIONS = (
    "suite", "steps", "device", "quick", "force", "out", "time_limit", "threads", "plan", "json",
    *(f.name for f in fields(Training)),
)  # fmt: skip
"""What the command line may give beside a suite; the rest is what its steps say."""


@dataclass(frozen=True)
class Measuring:
    """What is measured, and how. A list where one value is usual makes an axis of the rows."""

    ablation: case.Name | list[case.Name] | None = option(
        None, "the questions to answer: names from the list below, all, or a .yaml"
    )
    suite: names.Suite | None = option(None, "instead: all that a machine's record needs, into results/<device>/")
    steps: list[str] | None = option(None, "only these steps of the suite")
    plan: Flag = option(False, "say what would be measured, how long it takes and what it needs; measure nothing")
    metrics: list[names.Metric] | None = option(None, "what to measure; none: as the ablation")
    rows: list[str | Count] | None = option(None, "only these rows, by name or number; plan=true shows both")
    machine: names.Machine | None = option(
        None, "sets device, dtype, batch_size and time_limit where they are left open; values below"
    )
    device: names.Device | list[names.Device] | None = option(None, "where to measure; none: cpu")
    dtype: names.Dtype | list[names.Dtype] | None = option(None, "format of weights and clip; none: float32")
    batch_size: Count | list[Count] | None = option(None, "clips per forward pass; none: 1")
    kernel: names.Kernel | list[names.Kernel] | None = option(None, "what computes attention; none: auto")
    compile: Flag | list[Flag] | None = option(None, "measure the model under torch.compile; none: false")
    allocator: case.Allocator | list[case.Allocator] | None = option(
        None, "of a CPU's memory; keep: what is freed is kept instead of mapped afresh; none: default"
    )
    forms: case.Forms | list[case.Forms] | None = option(
        None, "on a CPU; pytorch: its own operators on all tokens at once, without this project's forms; none: own"
    )
    graph: Flag | list[Flag] | None = option(None, "on CUDA: replay the forward pass as a CUDA graph; none: false")
    mixed: Flag | list[Flag] | None = option(
        None, "training steps: weights in float32, autocast to dtype, as training does; none: all in dtype"
    )
    seed: Whole | list[Whole] | None = option(None, "of the random weights; none: 0")
    threads: Count | None = option(None, "CPU threads; none: one per physical core, 1 in quick mode")
    path: str | None = option(
        None, "video file to measure on; none: a small one the project renders", written=("clip", "clip.path")
    )
    frames: Count | list[Count] | None = option(
        None, "frames of the clip; published costs are then not compared", written=("clip.frames",)
    )
    size: Count | list[Count] | None = option(None, "height and width in pixels, likewise", written=("clip.size",))
    stride: Count | list[Count] | None = option(None, "every how many frames, likewise", written=("clip.stride",))
    vary: dict[str, Any] = option({}, "an axis more: a list of values for any dotted path, as vary.position=[peg,none]")
    model_changes: dict[str, Any] = option({}, "changes every row's model, as model.attention.L.window=[4,7,7]")
    quick: Flag = option(
        False, "small clips, few samples, a few steps of one training; every row and value once, in two minutes"
    )
    force: Flag = option(False, "measure again what is there")
    rounds: Count | None = option(
        None, f"visits to every case among which its timing is split; none: {ROUNDS}, {QUICK_ROUNDS} in quick mode"
    )
    time_limit: Positive | None = option(None, f"seconds for one visit to a case; none: {TIME_LIMIT:g}")


@dataclass(frozen=True)
class Options(Training, Measuring):
    """What may stand on the command line."""

    json: Flag = option(False, "end with one line of JSON on the standard output, for programs")
    out: str = option("outputs", "folder of records and reports, made if it is not there")


def _suggestion(word: str) -> str | None:
    return f"ablation={word}" if word in [*case.names(), case.ALL] or word.endswith(case.SUFFIXES) else None


def listing() -> str:
    """Every ablation with the question it answers and how to run it."""
    lines = [
        "Ablations: each answers one question with one table.",
        "",
        *_questions(),
        "",
        "Run one, for instance:",
        "",
    ]
    lines += [*options.examples(PROGRAM, slice(0, 5)), "", f"`{COMMAND} --help` explains all options."]
    return "\n".join(terminal.folded(lines, f"  {COMMAND} "))


def _questions() -> list[str]:
    return [f"  {name:24} {question}" for name, question in case.questions().items()]


def _more() -> list[str]:
    """The end of the help."""
    return [
        "",
        "budgets of accuracy",
        *(f"  {name:24} {budget.load(name).meaning}" for name in budget.names()),
        "",
        "machines: what each sets where the command line, or an axis of the rows, does not",
        *(f"  {name:24} {machine}" for name, machine in machines.MACHINES.items()),
        "",
        "ablations",
        *_questions(),
        "",
        "exit status: 0 everything is measured (out of memory is a result), 1 a case failed, 2 the command is wrong,",
        "130 interrupted",
    ]


QUICK_SECONDS, QUICK_GRACE = 90.0, 25.0  # of an ablation in quick mode, and what is in work at its end may take more
PROGRAM = options.Command(
    COMMAND,
    "Measures what attention schemes for video cost, all else equal. One ablation is one question: its rows\n"
    "differ in stated things only, and each is counted exactly, timed on this machine, trained within a budget,\n"
    "and set beside the number that its paper prints.\n\n"
    "Records go to <out>/<ablation>/, one file per case, with report.md, table.csv and plots beside them. What is\n"
    "there is not measured again: a run that was stopped goes on where it was. Without an ablation, the questions\n"
    "are listed.",
    Options,
    (
        ("ablation=pyramid_scales quick=true", "a minute on a laptop: small clips, every step"),
        ("ablation=pyramid_scales", "minutes on a CPU: full-size clips, exact costs, latency and memory"),
        ("ablation=pyramid_scales plan=true", "what that would measure, and how long it would take"),
        ("ablation=pyramid_scales device=cuda dtype=bfloat16 batch_size=8", "at full size on a GPU"),
        ("ablation=all metrics=[params,macs]", "every cost table, about a minute"),
        ("ablation=pyramid_scales clip=holiday.mp4", "on a video of yours"),
        ("ablation=mine.yaml", "a question of yours, with its published table beside it"),
        ("ablation=[dtypes,kernels] 'rows=[local + global,divided]'", "some rows of several tables"),
        ("ablation=attention_schemes dtype=[float32,bfloat16] batch_size=[1,8]", "with two axes more"),
        ("ablation=pyramid_scales metrics=[latency] force=true", "measure one metric again"),
        ("ablation=position_encoding accuracy=quick metrics=[]", "accuracy alone, on the built-in data set"),
        (
            "ablation=position_encoding accuracy=quick metrics=[] seeds=auto difference=3 within=60",
            "with as many seeds as tell 3 points apart, in an hour at most",
        ),
        (
            "ablation=attention_schemes accuracy=small rows=[full,divided] data=clips",
            "on clips of yours: clips/train.csv, clips/val.csv",
        ),
        ("suite=gpu", "what a GPU should record, in under 8 minutes on a large one; twice goes on"),
        ("ablation=pyramid_scales accuracy=proxy device=cuda cluster=slurm", "on a cluster, a job a row"),
        ("ablation=position_encoding model.drop_path=0 clip.frames=16", "with a field of models and clip changed"),
    ),
    without=listing,
    more=_more,
    word=_suggestion,
)


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 0 done, 1 a case failed, 2 a wrong command, 130 interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    return options.run(PROGRAM, lambda request: _checked(request, argv), argv)


def _checked(request: Options, argv: list[str]) -> Work:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else terminal.columns())
    if request.metrics == [] and request.accuracy in (None, names.OFF):
        raise UsageError(f"metrics is an empty list and accuracy is off; allowed: {', '.join(names.metrics())}")
    if request.suite is not None:
        return _suite(request, argv, console)
    if request.steps is not None:
        raise UsageError("steps are those of a suite; add suite=gpu, or leave them out")
    request = on_machine(request)
    ablations, settings = chosen(request)
    call = asked(request, ablations, settings, Path(request.out), argv, console)
    if request.quick and request.rows is None:  # rows that are named are all tried
        call = replace(
            call,
            deadline=Deadline.after(QUICK_SECONDS * sum(ablation.quick_times for ablation in ablations), QUICK_GRACE),
        )
    if request.plan:
        return Work("harness.plan:show", (session.checked(call, writes=False),))
    return Work("harness.measuring:command", (session.checked(call),))


def on_machine(request: Options) -> Options:
    """The command with what its machine sets: options that are left open, and no axis of the ablations' rows."""
    if request.machine is None:
        return request
    named = request.ablation if isinstance(request.ablation, list) else [request.ablation or case.ALL]
    loaded = [case.load(name) for name in (case.names_in_all() if named == [case.ALL] else named)]
    varied = {axis.removeprefix("clip.") for ablation in loaded for axis in ablation.vary | request.vary}
    open_names = [f.name for f in fields(machines.Machine) if getattr(request, f.name) is None]
    machine = machines.MACHINES[request.machine]
    return replace(request, **{name: getattr(machine, name) for name in open_names if name not in varied})


def chosen(request: Options) -> tuple[list[Ablation], Settings]:
    """The ablations with the axes that the command adds and the rows that it names, and the settings of all cases.

    Raises: UsageError.
    """
    ablation_names = request.ablation if isinstance(request.ablation, list) else [request.ablation]
    if ablation_names == [case.ALL]:
        ablation_names = case.names_in_all()
    if request.ablation is None or not ablation_names:
        raise UsageError(f"no ablation is named; add ablation=NAME; allowed: {', '.join([*case.names(), case.ALL])}")
    if len(set(ablation_names)) != len(ablation_names):
        raise UsageError(f"ablation=[{','.join(ablation_names)}]: one is named twice")
    if case.ALL in ablation_names:
        raise UsageError(f"ablation=[{','.join(ablation_names)}]: all stands alone; write ablation=all, or names")
    if request.rows == []:
        raise UsageError("rows is an empty list; name some, as in rows=[1,3], or leave it out for all")
    overrides = {f.name: value for f in fields(Settings) if (value := getattr(request, f.name, None)) is not None}
    axes = {
        (f"clip.{name}" if name in case.CLIP_AXES else name): value
        for name, value in overrides.items()
        if isinstance(value, list)
    }
    axes |= {path: value if isinstance(value, list) else [value] for path, value in request.vary.items()}
    case.axes(axes)
    ablations = [case.load(name) for name in ablation_names]
    ablations = [ablation.varied(axes) for ablation in ablations] if axes else ablations
    if request.rows:
        case.choose(ablations, request.rows)
        ablations = [ablation for ablation in ablations if ablation.chosen]
    single = {name: value for name, value in overrides.items() if not isinstance(value, list)}
    settings = Settings(**single, model=request.model_changes)
    return ablations, settings


def asked(
    request: Options, ablations: list[Ablation], settings: Settings, out: Path, argv: list[str], console: Console
) -> Call:
    """The command as a value, with what it says of accuracy."""
    return Call(
        ablations,
        settings,
        request.metrics,
        out,
        Training(**{f.name: getattr(request, f.name) for f in fields(Training)}),
        force=request.force,
        rounds=request.rounds,
        time_limit=request.time_limit,
        console=console,
        progress=console_of_errors(console),
        arguments=tuple(argv),
        as_json=request.json,
    )


def _suite(request: Options, argv: list[str], console: Console) -> Work:
    """A suite instead of an ablation."""
    plain = Options()
    for f in fields(Options):
        if f.name not in SUITE_OPTIONS and getattr(request, f.name) != getattr(plain, f.name):
            name = options.written(f)[0].removesuffix(options.CHANGES)
            allowed = [option for option in SUITE_OPTIONS if not option.endswith(options.CHANGES)]
            raise UsageError(f"{name} does not go with a suite, whose steps set it; allowed: {', '.join(allowed)}")
    if isinstance(request.device, list):
        raise UsageError("device is one for a whole suite")
    whole = suites.load(request.suite)
    steps = whole.chosen(request.steps)
    settings = Settings(device=request.device, quick=request.quick, threads=request.threads)
    given_out = any(word.startswith("out=") for word in argv)
    out = Path(request.out) if given_out else folder(whole, settings)
    call = asked(request, [], settings, out, argv, console)
    return Work("harness.plan:show_suite" if request.plan else "harness.suite:run", (whole, steps, call))


def folder(suite: suites.Suite, settings: Settings) -> Path:
    """Where records go unless a command says otherwise."""
    if settings.quick:
        return Path("outputs")
    return Path("results", provenance.device_slug(settings.device or suite.device))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
