"""A suite: the steps that one run on a machine should record, in the order of their importance, within a time.

A suite is a file of conf/suite/; each step is an ablation with settings. It is run as
`python -m harness.run suite=NAME`. Records and reports go to results/<device>/, which is meant to be committed. A run
that ends early has left out the steps at the end; the next one goes on there.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from rich.console import Console

from attention_zoo.registry import nearest
from harness import session
from harness.cost import metrics
from harness.deadline import Deadline
from harness.session import COMMAND, Training
from harness.spec import budget, case
from harness.spec.case import Ablation, Entry, Settings
from harness.spec.reader import UsageError
from records import provenance
from records.record import RecordError

FOLDER = Path(__file__).parent / "conf" / "suite"
QUICK_BATCH = 2
SETTINGS = ("frames", "size", "batch_size", "dtype", "kernel", "compile", "seed")
SUITE_OPTIONS = (
    "suite", "steps", "device", "quick", "force", "out", "time_limit", "threads",
    "accuracy", "data", "root", "seeds", "recipe", "recipe_source", "jobs",
)  # fmt: skip
"""What the command line may give beside a suite; the rest is what its steps say."""


@dataclass(frozen=True)
class Step:
    """An ablation with settings.

    Args:
        step: its name, and that of its folder where `folder` names none.
        seconds: the most that it may take.
        needs: it is not begun with less time left, in seconds.
        rows, vary, baseline, question, metrics, figures: what differs from the ablation's own.
        settings: of all its cases, such as `dtype`.
        accuracy: the budget of training.
    """

    step: str
    seconds: float
    ablation: str
    needs: float = 5.0
    folder: str | None = None
    question: str | None = None
    rows: list[str] | None = None
    vary: dict[str, list[Any]] | None = None
    baseline: str | None = None
    metrics: list[str] | None = None
    figures: list[str] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    rounds: int = 1
    accuracy: str | None = None

    def composed(self, quick: bool = False) -> Ablation:
        """The ablation as this step has it; in quick mode its first row. Raises: UsageError."""
        whole = case.load(self.ablation)
        by_name = {row.row: row for row in whole.rows}
        for name in self.rows or []:
            if name not in by_name:
                raise UsageError(f"step {self.step}: {self.ablation} has no row {name!r}; {nearest(name, by_name)}")
        rows = [by_name[name] for name in self.rows or by_name][: 1 if quick else None]
        own = {name: getattr(self, name) for name in ("question", "vary", "metrics", "figures")}
        if quick and "batch_size" in (self.vary or {}):
            own["vary"] = {**self.vary, "batch_size": sorted({min(n, QUICK_BATCH) for n in self.vary["batch_size"]})}
        baseline = self.baseline or whole.baseline
        if baseline in by_name and baseline not in [row.row for row in rows]:
            baseline = None
        return replace(
            whole,
            **{name: value for name, value in own.items() if value is not None},
            name=self.folder or self.step,
            rows=rows,
            baseline=baseline,
        )

    def entries(self, settings: Settings) -> list[Entry]:
        """Its cases. Raises: UsageError."""
        return case.resolve(self.composed(settings.quick), self.applied(settings))

    def applied(self, settings: Settings) -> Settings:
        """The settings of a run with those of this step."""
        own = replace(settings, **self.settings)
        if settings.quick and own.batch_size is not None:
            own.batch_size = min(own.batch_size, QUICK_BATCH)
        if settings.quick and settings.device == "cpu":
            own.dtype = None  # most CPUs take far longer for 16-bit numbers
        return own


@dataclass(frozen=True)
class Suite:
    """Steps in the order of their importance; `minutes` is when the last measurement is begun."""

    name: str
    question: str
    steps: tuple[Step, ...]
    device: str = "cpu"
    minutes: float = 7.0
    time_limit: float = 120.0

    def chosen(self, names: list[str] | None) -> list[Step]:
        """The named steps in the suite's order; all, where none are named. Raises: UsageError."""
        known = [step.step for step in self.steps]
        for name in names or []:
            if name not in known:
                raise UsageError(f"suite {self.name}: unknown step {name!r}; {nearest(str(name), known)}")
        return [step for step in self.steps if not names or step.step in names]

    @staticmethod
    def shown(step: Step) -> dict[str, Any]:
        """What a step says, as its file would."""
        return {name: value for name, value in vars(step).items() if value not in (None, {})}


def names() -> list[str]:
    """The shipped suites."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@cache
def load(name: str) -> Suite:
    """A suite by name, every entry checked. Raises: UsageError with the nearest name."""
    if name not in names():
        raise UsageError(f"unknown suite {name!r}; {nearest(name, names())}")
    return from_dict(yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8")), name)


def from_dict(raw: dict[str, Any], name: str) -> Suite:
    """Raises: UsageError naming the step and what is allowed."""
    where = f"suite {name}"
    steps = tuple(
        _step(_checked(one, Step, f"{where}, step {one.get('step', number)!r}"), where)
        for number, one in enumerate(raw.get("steps") or [], start=1)
    )
    if not steps:
        raise UsageError(f"{where}: it has no steps")
    twice = [step.step for step in steps if [one.step for one in steps].count(step.step) > 1]
    if twice:
        raise UsageError(f"{where}: two steps are called {twice[0]!r}; give each its own name")
    return Suite(**{**_checked(raw, Suite, where), "steps": steps, "name": name})


def _checked(raw: dict[str, Any], kind: type, where: str) -> dict[str, Any]:
    hints = get_type_hints(kind)
    for key, value in raw.items():
        if key not in hints:
            raise UsageError(f"{where}: unknown entry {key!r}; {nearest(str(key), hints)}")
        allowed = tuple(getattr(one, "__origin__", one) for one in get_args(hints[key]) or (hints[key],))
        allowed = {tuple: (list,), dict: (dict,), list: (list,)}.get(getattr(hints[key], "__origin__", None), allowed)
        if not isinstance(value, (*allowed, int) if float in allowed else allowed):
            raise UsageError(f"{where}: {key} is {value!r}; expected {' or '.join(one.__name__ for one in allowed)}")
    missing = [
        f.name for f in fields(kind) if f.name in ("step", "seconds", "ablation", "question") and f.name not in raw
    ]
    if missing and (kind is Suite or missing != ["question"]):
        raise UsageError(f"{where}: {missing[0]} is missing")
    return raw


def _step(raw: dict[str, Any], where: str) -> Step:
    step = Step(**raw)
    where = f"{where}, step {step.step!r}"
    named = {
        "ablation": ([step.ablation], case.names()),
        "metrics": (step.metrics or [], metrics.names()),
        "settings": (list(step.settings), SETTINGS),
        "accuracy": ([step.accuracy] if step.accuracy else [], budget.names()),
    }
    for entry, (given, allowed) in named.items():
        for name in given:
            if name not in allowed:
                raise UsageError(f"{where}: unknown {entry} {name!r}; {nearest(str(name), allowed)}")
    return step


def run(
    suite: Suite,
    steps: list[Step],
    settings: Settings,
    training: Training,
    out: Path | None,
    *,
    force: bool = False,
    time_limit: float | None = None,
    console: Console | None = None,
    progress: Console | None = None,
    arguments: list[str] | None = None,
) -> int:
    """Run the steps; `settings` hold the device and quick mode. `out` None: results/<device>, quick: outputs.

    Results go to the `console`, what is being done to `progress` (None: to the console too).

    Returns the exit status: 0 done or out of time, 1 something failed, 130 interrupted. Raises: UsageError.
    """
    console = console or Console(quiet=True)
    progress = progress or console
    settings = replace(settings, device=settings.device or suite.device)
    _check_device(suite, settings)
    out = out or (Path("outputs") if settings.quick else Path("results", provenance.device_slug(settings.device)))
    begun, deadline = time.monotonic(), Deadline.after(60 * suite.minutes)
    progress.print(f"suite {suite.name}: {len(steps)} steps, {suite.minutes:g} minutes at most, records in {out}")
    statuses = []
    for number, step in enumerate(steps, start=1):
        progress.print(f"\n[{number}/{len(steps)}] {step.step}: {_meaning(step)}", markup=False)
        why = _left_out(step, deadline, settings, training)
        if why:
            progress.print(f"left out: {why}", markup=False)
            deadline.left_out.append(f"{step.step}: {why}")
            continue
        own = Deadline(min(deadline.at, time.monotonic() + step.seconds))
        statuses.append(_measure(suite, step, settings, training, out, own, force, time_limit, console, progress))
        deadline.left_out += [f"{step.step}: {what}" for what in own.left_out]
        if statuses[-1] == 130:
            break
    _cost_page(out / "quick" if settings.quick else out, console)
    return _finish(suite, statuses, deadline.left_out, time.monotonic() - begun, arguments or [], console)


def _meaning(step: Step) -> str:
    return f"{step.composed().question}" + (f" accuracy={step.accuracy}" if step.accuracy else "")


def _left_out(step: Step, deadline: Deadline, settings: Settings, training: Training) -> str | None:
    """Why a step is not begun, or None."""
    if deadline.left < step.needs:
        return f"{max(0, deadline.left):.0f} s are left, and it needs {step.needs:g} s"
    if step.accuracy and training.budget == budget.OFF:
        return "accuracy=off"
    if step.accuracy and settings.quick and training.budget is None:
        return "nothing is trained in quick mode; accuracy=quick tries that too"
    return None


def _measure(
    suite: Suite,
    step: Step,
    settings: Settings,
    training: Training,
    out: Path,
    deadline: Deadline,
    force: bool,
    time_limit: float | None,
    console: Console,
    progress: Console,
) -> int:
    """One step."""
    accuracy = (
        replace(training, budget=training.budget or step.accuracy) if step.accuracy else Training(budget=budget.OFF)
    )
    ablation = step.composed(settings.quick)
    remake = [
        f"suite={suite.name}",
        f"steps=[{step.step}]",
        *([f"device={settings.device}"] if settings.device != suite.device else []),
    ]
    return session.run(
        [ablation],
        step.applied(settings),
        list(ablation.metrics),
        out,
        training=accuracy,
        force=force,
        rounds=step.rounds,
        apart=False,  # a step is its settings
        time_limit=time_limit or suite.time_limit,
        deadline=deadline,
        console=console,
        progress=progress,
        remake=[*remake, *(["quick=true"] if settings.quick else [])],
    )


def _check_device(suite: Suite, settings: Settings) -> None:
    from harness.cost.build import unavailable  # loads torch

    reason = unavailable(settings.device)
    if reason:
        smallest = f"{COMMAND} suite={suite.name} device=cpu quick=true"
        raise UsageError(f"{reason}; `{smallest}` tries whether all steps work")


def _cost_page(folder: Path, console: Console) -> None:
    from reports import cost_page  # loads scipy

    try:
        console.print(f"  {cost_page.build(folder)}", markup=False, soft_wrap=True)
    except RecordError as error:
        console.print(f"no page of costs: {error}", markup=False, soft_wrap=True)


def _finish(
    suite: Suite, statuses: list[int], left_out: list[str], seconds: float, arguments: list[str], console: Console
) -> int:
    console.print(f"\nsuite {suite.name}: {len(statuses)} steps in {seconds / 60:.1f} minutes")
    for what in left_out:
        console.print(f"  left out: {what}", markup=False, soft_wrap=True)
    again = " ".join(word for word in arguments if not word.startswith("force="))
    if 130 in statuses or left_out:
        console.print(f"to go on from here: {COMMAND} {again}", markup=False, soft_wrap=True)
    return 130 if 130 in statuses else int(any(statuses))
