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

from harness import measuring
from harness.call import Call
from harness.cost.build import unavailable
from harness.deadline import Deadline
from harness.session import COMMAND, folder_of
from harness.spec import budget
from harness.spec.budget import Training
from harness.spec.case import Settings
from harness.spec.reader import UsageError
from harness.spec.suite import Step, Suite
from records.record import RecordError
from records.terminal import json_line
from reports import cost_page


def run(suite: Suite, steps: list[Step], call: Call) -> int:
    """Run the steps; the settings of the call hold the device and quick mode.

    A row that an earlier step measured under another name is not measured again: the steps are one run.

    Returns the exit status: 0 done or out of time, 1 something failed, 130 interrupted. Raises: UsageError.
    """
    call = replace(call, settings=replace(call.settings, device=call.settings.device or suite.device))
    _check_device(suite, call.settings)
    begun, deadline = time.monotonic(), Deadline.after(60 * suite.minutes)
    call.log.print(f"suite {suite.name}: {len(steps)} steps, {suite.minutes:g} minutes at most, records in {call.out}")
    call, statuses = replace(call, part_of=secrets.token_hex(6)), []
    for number, step in enumerate(steps, start=1):
        meaning = step.composed().question + (f" accuracy={step.accuracy}" if step.accuracy else "")
        call.log.print(f"\n[{number}/{len(steps)}] {step.step}: {meaning}", markup=False)
        why = _left_out(step, deadline, call)
        if why:
            call.log.print(f"left out: {why}", markup=False)
            deadline.left_out.append(f"{step.step}: {why}")
            continue
        of_step = _call_of(suite, step, call, Deadline(min(deadline.at, time.monotonic() + step.seconds)))
        statuses.append(measuring.run(of_step))
        measured = folder_of(call.out, step.folder or step.step, call.quick)
        call = replace(call, earlier=(*call.earlier, measured))
        deadline.left_out += [f"{step.step}: {omission}" for omission in of_step.deadline.left_out]
        if statuses[-1] == 130:
            break
    _cost_page(call.out / "quick" if call.quick else call.out, call.console)
    status = _finish(suite, statuses, deadline.left_out, time.monotonic() - begun, call)
    if call.as_json:
        json_line({"status": status, "out": str(call.out), "left_out": deadline.left_out})
    return status


def _left_out(step: Step, deadline: Deadline, call: Call) -> str | None:
    """Why a step is not begun, or None."""
    if deadline.left < step.needs:
        return f"{max(0, deadline.left):.0f} s are left, and it needs {step.needs:g} s"
    if step.accuracy and call.training.accuracy == budget.OFF:
        return "accuracy=off"
    if step.accuracy and call.quick and call.training.accuracy is None:
        return "a suite trains nothing in quick mode; accuracy=quick tries that too"
    return None


def _call_of(suite: Suite, step: Step, call: Call, deadline: Deadline) -> Call:
    """What a step asks for as a call of its own."""
    training, device = Training(accuracy=budget.OFF), call.settings.device
    if step.accuracy:
        training = replace(call.training, accuracy=call.training.accuracy or step.accuracy)
    ablation = step.composed(call.quick)
    others = [f"device={device}"] if device != suite.device else []
    return replace(
        call,
        ablations=[ablation],
        settings=step.applied(call.settings),
        metrics=list(ablation.metrics),
        training=training,
        rounds=step.rounds,
        apart=False,  # a step is its settings
        # Of the suite's own device: where the steps are only tried out, a compiler may take longer.
        time_limit=call.time_limit or (suite.time_limit if device == suite.device else None),
        deadline=deadline,
        remake=(f"suite={suite.name}", f"steps=[{step.step}]", *others, *(["quick=true"] if call.quick else [])),
        as_json=False,
    )


def _check_device(suite: Suite, settings: Settings) -> None:
    reason = unavailable(settings.device)
    if reason:
        smallest = f"{COMMAND} suite={suite.name} device=cpu quick=true"
        raise UsageError(f"{reason}; `{smallest}` tries whether all steps work")


def _cost_page(folder: Path, console: Console) -> None:
    try:
        console.print(f"  {cost_page.build(folder)}", markup=False, soft_wrap=True)
    except RecordError as error:
        console.print(f"no page of costs: {error}", markup=False, soft_wrap=True)


def _finish(suite: Suite, statuses: list[int], left_out: list[str], seconds: float, call: Call) -> int:
    console = call.console
    console.print(f"\nsuite {suite.name}: {len(statuses)} steps in {seconds / 60:.1f} minutes")
    for omission in left_out:
        console.print(f"  left out: {omission}", markup=False, soft_wrap=True)
    again = shlex.join(word for word in call.arguments if not word.startswith("force="))
    if 130 in statuses or left_out:
        console.print(f"to go on from here: {COMMAND} {again}", markup=False, soft_wrap=True)
    return 130 if 130 in statuses else int(any(statuses))
