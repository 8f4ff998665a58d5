"""A run of a suite, step by step: `python -m harness.run suite=NAME`.

Records and reports go to results/<device>/, which is meant to be committed. A run that ends early has left out the
steps at the end; the next one goes on there.
"""

from __future__ import annotations

import secrets
import shlex
import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from harness import session
from harness.deadline import Deadline
from harness.session import COMMAND, Training
from harness.spec import budget
from harness.spec.case import Settings
from harness.spec.reader import UsageError
from harness.spec.suite import Step, Suite
from records import provenance
from records.record import RecordError
from records.terminal import json_line


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
    as_json: bool = False,
) -> int:
    """Run the steps; `settings` hold the device and quick mode. `out` None: results/<device>, quick: outputs.

    Results go to the `console`, what is being done to `progress` (None: to the console too). A row that an earlier step
    measured under another name is not measured again: the steps are one run.

    Returns the exit status: 0 done or out of time, 1 something failed, 130 interrupted. Raises: UsageError.
    """
    console = console or Console(quiet=True)
    progress = progress or console
    settings = replace(settings, device=settings.device or suite.device)
    _check_device(suite, settings)
    out = out or (Path("outputs") if settings.quick else Path("results", provenance.device_slug(settings.device)))
    begun, deadline = time.monotonic(), Deadline.after(60 * suite.minutes)
    progress.print(f"suite {suite.name}: {len(steps)} steps, {suite.minutes:g} minutes at most, records in {out}")
    statuses, run, done = [], secrets.token_hex(6), []
    for number, step in enumerate(steps, start=1):
        progress.print(f"\n[{number}/{len(steps)}] {step.step}: {_meaning(step)}", markup=False)
        why = _left_out(step, deadline, settings, training)
        if why:
            progress.print(f"left out: {why}", markup=False)
            deadline.left_out.append(f"{step.step}: {why}")
            continue
        step_deadline = Deadline(min(deadline.at, time.monotonic() + step.seconds))
        part_of = run, list(done)
        statuses.append(
            _measure(suite, step, settings, training, out, step_deadline, force, time_limit, console, progress, part_of)
        )
        done.append(session.folder_of(out, step.folder or step.step, settings.quick))
        deadline.left_out += [f"{step.step}: {omission}" for omission in step_deadline.left_out]
        if statuses[-1] == 130:
            break
    _cost_page(out / "quick" if settings.quick else out, console)
    status = _finish(suite, statuses, deadline.left_out, time.monotonic() - begun, arguments or [], console)
    if as_json:
        json_line({"status": status, "out": str(out), "left_out": deadline.left_out})
    return status


def _meaning(step: Step) -> str:
    return f"{step.composed().question}" + (f" accuracy={step.accuracy}" if step.accuracy else "")


def _left_out(step: Step, deadline: Deadline, settings: Settings, training: Training) -> str | None:
    """Why a step is not begun, or None."""
    if deadline.left < step.needs:
        return f"{max(0, deadline.left):.0f} s are left, and it needs {step.needs:g} s"
    if step.accuracy and training.budget == budget.OFF:
        return "accuracy=off"
    if step.accuracy and settings.quick and training.budget is None:
        return "a suite trains nothing in quick mode; accuracy=quick tries that too"
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
    part_of: tuple[str, list[Path]],
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
        # Of the suite's own device: where the steps are only tried out, a compiler may take longer.
        time_limit=time_limit or (suite.time_limit if settings.device == suite.device else session.TIME_LIMIT),
        deadline=deadline,
        console=console,
        progress=progress,
        remake=[*remake, *(["quick=true"] if settings.quick else [])],
        part_of=part_of,
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
    for omission in left_out:
        console.print(f"  left out: {omission}", markup=False, soft_wrap=True)
    again = shlex.join(word for word in arguments if not word.startswith("force="))
    if 130 in statuses or left_out:
        console.print(f"to go on from here: {COMMAND} {again}", markup=False, soft_wrap=True)
    return 130 if 130 in statuses else int(any(statuses))
