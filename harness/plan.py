"""A dry run, `plan=true`: what a command would measure, for how long and with what; nothing is measured or written.

Times are those of earlier visits where records hold them; else they are guessed from multiply-adds, with the rate
stated. A guess says which of two plans is longer, not when to come back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from rich.console import Console

from harness.accuracy import power
from harness.accuracy.setup import Setup
from harness.call import Call
from harness.cost import errors, metrics
from harness.cost.count import CountError, count
from harness.session import Checked, metrics_of
from harness.spec.case import Case, Entry, Settings, case_id, program
from harness.spec.effort import effort_for
from harness.spec.suite import Step, Suite
from records import provenance, visits
from records.record import Record, RecordError, read_record
from records.terminal import json_line

RATES = {"cpu": 2e10, "cuda": 5e13}  # multiply-adds a second: guesses, of a few cores and of a large GPU in 16 bits
START = 4.0  # seconds until a process has loaded torch and a model
SETTLED = 1.0  # seconds after which a GPU is warm; a CPU may take all of its warm-up
COMPILED, CHECKED = 25.0, 4.5  # seconds to compile a model, and to compare one in miniature with float64
COUNTING = 1.0  # seconds for the counts of one case
STEP = 3  # a training step computes about three forward passes
RECORD_BYTES = 20_000
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Estimate:
    """Of one case: seconds known from records and guessed ones, visits to come, and bytes of memory."""

    known: float
    guessed: float
    visits: int
    macs: int
    memory: int
    measured_memory: bool


def show(request: Checked) -> int:
    """Print the plan of a call. Raises: UsageError for what could not be measured."""
    call = request.call
    settings, console, out = call.settings, call.console, call.out
    known = guessed = trained = size = 0.0
    planned: dict[str, dict[str, dict[str, float]]] = {}
    for ablation, (_, chosen, _, folder) in zip(call.ablations, request.cases, strict=True):
        metric_names = metrics_of(ablation, call.metrics)
        console.print(f"{ablation.name}: {ablation.question}", markup=False, soft_wrap=True)
        what = f"{len(chosen)} case{'s' * (len(chosen) != 1)}; {', '.join(metric_names) or 'no metrics'}"
        console.print(f"  {what}", markup=False, soft_wrap=True)
        numbers = {row.row: number for number, row in enumerate(ablation.rows, start=1)}
        for entry in chosen:
            record, number = _record(folder, entry, console), numbers[entry.row.row]
            try:
                estimate = estimated(entry.case, record, metric_names, call.visits, call.quick)
            # Public code that is not installed, a model that cannot be built so, a scheme that miscounts itself.
            except (NotImplementedError, ValueError, CountError) as error:
                console.print(f"  {number:>3}  {entry.case.row}: not measured: {error}", markup=False, soft_wrap=True)
                continue
            console.print(_line(number, entry, estimate), markup=False, soft_wrap=True)
            known, guessed, size = known + estimate.known, guessed + estimate.guessed, size + RECORD_BYTES
            figures = {"seconds": estimate.known + estimate.guessed, "visits": estimate.visits}
            figures |= {"macs": estimate.macs, "memory": estimate.memory}
            planned.setdefault(ablation.name, {})[entry.case.row] = figures
        if (setup := request.setups[ablation.name]) is not None:
            trained += _show_trainings(setup, chosen, folder, console)
    device = "cuda" if (settings.device or "cpu").startswith("cuda") else "cpu"
    console.print(
        f"about {_minutes(known + guessed + trained)}: {_minutes(known)} by earlier visits, "
        f"{f'{_minutes(trained)} of trainings, ' if trained else ''}{_minutes(guessed)} guessed at "
        f"{RATES[device] / 1e9:g} GMAC/s on {device}; {size / 1e6:.1f} MB of records in {out}; nothing was measured",
        markup=False,
        soft_wrap=True,
    )
    if call.deadline.left < math.inf:
        minutes = math.ceil((call.deadline.left + call.deadline.grace) / 60)
        console.print(f"quick mode ends after about {minutes} minutes, and says what it left out")
    if call.as_json:
        json_line({"status": 0, "seconds": known + guessed + trained, "ablations": planned})
    return 0


def _show_trainings(setup: Setup, chosen: list[Entry], folder: Path, console: Console) -> float:
    """How many trainings, how long they take, and which differences they can tell. Returns the seconds, if known."""
    slots = setup.training.jobs or provenance.default_threads()
    setup, told = power.settled(setup, chosen, lambda entry: _record(folder, entry), slots)
    count = len(chosen) * len(setup.training.seeds)
    seconds = (power.spread(setup, chosen, lambda entry: _record(folder, entry)).seconds or 0.0) * count / slots
    spent = f"about {_minutes(seconds)}" if seconds else "no record says how long"
    text = f"  accuracy={setup.budget.name}: {count} trainings, {spent}\n  {told}"
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    return seconds


def show_suite(suite: Suite, steps: list[Step], call: Call) -> int:
    """Print the steps of a suite, each with the time that it is predicted to take and the most that it gets."""
    settings, console = call.settings, call.console
    console.print(f"suite {suite.name}: {suite.question}", markup=False)
    device = settings.device or suite.device
    planned: dict[str, float] = {}
    done: set[str] = set()
    for step in steps:
        trained = call.training.accuracy or step.accuracy if step.accuracy else None
        work = f"{len(step.entries(replace(settings, device=device)))} cases of {step.ablation}; "
        work += ", ".join([*step.composed().metrics, *([f"accuracy={trained}"] if trained else [])])
        seconds = min(predicted(step, replace(settings, device=device), done), step.seconds)
        planned[step.step] = seconds
        console.print(
            f"  {step.step}: {work}; about {seconds:.0f} s, at most {step.seconds:g} s", markup=False, soft_wrap=True
        )
    total = _minutes(sum(planned.values()))
    console.print(f"about {total}, at most {suite.minutes:g} minutes on {device}; nothing was measured", markup=False)
    if call.as_json:
        json_line({"status": 0, "seconds": sum(planned.values()), "steps": planned})
    return 0


def predicted(step: Step, settings: Settings, known: set[str]) -> float:
    """Seconds of a step where no record is there yet. `known` are rows and comparisons of the steps before it, which it
    shares, and is added to.
    """
    seconds, ablation = 0.0, step.composed(settings.quick)
    for entry in step.entries(settings):
        programs = {name: f"{name} {program(entry.case.to_dict())}" for name in ablation.metrics}
        fresh = [name for name in programs if programs[name] not in known]
        known |= set(programs.values())
        estimate = estimated(entry.case, None, fresh, step.rounds, settings.quick)
        seconds += estimate.guessed
        timed = [metrics.get(name) for name in fresh if metrics.get(name).timed]
        seconds += COMPILED * entry.case.compile * step.rounds * bool(timed)
        for process in {metric.process for metric in timed}:
            new = {f"{name} {errors.key(entry.case)}" for name in errors.needed(entry.case, process)} - known
            known |= new
            seconds += CHECKED * len(new)
    return seconds


def estimated(case: Case, record: Record | None, names: list[str], rounds: int, quick: bool) -> Estimate:
    """What is left to do of a case, and how long it takes."""
    counts = count(case)
    recorded = (lambda name: record.get(name)) if record else (lambda name: None)
    chosen = [metrics.get(name) for name in metrics.names() if name in names]
    known = guessed = 0.0
    if any(recorded(name) is None for metric in chosen if not metric.timed for name in metric.measures):
        guessed += COUNTING
    total = 0
    for group in metrics.by_process(metric for metric in chosen if metric.timed):
        left = [
            {number for name in metric.measures for number in visits.left(recorded(name), 1 if metric.once else rounds)}
            for metric in group
        ]
        lacking = set().union(*left)
        total += len(lacking)
        earlier = [seconds for metric in group for name in metric.measures for seconds in _visits(recorded(name))]
        if earlier:
            known += len(lacking) * max(earlier)
        else:
            own = [
                metric.seconds and len(numbers) * metric.seconds(quick)
                for metric, numbers in zip(group, left, strict=True)
            ]
            guessed += len(lacking) * START + sum(filter(None, own))
            if None in own:
                guessed += len(lacking) * _series(case, counts.macs, group[0].process, rounds, quick)
    peak = recorded("peak_memory")
    memory = int(peak.value) if peak is not None and peak.samples else counts.params * BYTES[case.dtype]
    return Estimate(known, guessed, total, counts.macs, memory, peak is not None and bool(peak.samples))


def _series(case: Case, macs: int, process: str, rounds: int, quick: bool) -> float:
    """Seconds of the series of one visit: warm-up, samples."""
    passes = STEP if process.startswith("training") else 1
    once = passes * macs * case.batch_size / RATES["cuda" if case.device.startswith("cuda") else "cpu"]
    effort = effort_for(case.device, quick).split(rounds)
    sampling = min(max(effort.seconds, effort.samples * once), max(effort.budget, effort.fewest * once))
    warm_up = SETTLED if case.device.startswith("cuda") else effort.warm_up_seconds
    return max(warm_up, once) + sampling


def _visits(measurement) -> list[float]:
    """How long the visits of a measurement took, as far as they say."""
    seconds = []
    for visit in measurement.visits if measurement else ():
        begun, ended = (visit.details.get(key) or measurement.details.get(key) for key in ("started", "measured"))
        if begun and ended:
            seconds.append((datetime.fromisoformat(ended) - datetime.fromisoformat(begun)).total_seconds() + START)
    return seconds


def _record(folder: Path, entry: Entry, console: Console | None = None) -> Record | None:
    """The record of a case; None where there is none, or a damaged one, of which the console is told."""
    path = folder / f"{case_id(entry.case)}.json"
    try:
        return read_record(path) if path.exists() else None
    except RecordError as error:
        if console is not None:
            console.print(f"  {error}", markup=False, soft_wrap=True)
        return None


def _line(number: int, entry: Entry, estimate: Estimate) -> str:
    memory = f"{estimate.memory / 2**20:.0f} MiB" + ("" if estimate.measured_memory else " of weights")
    todo = f"{estimate.visits} visits, {_minutes(estimate.known + estimate.guessed)}"
    if estimate.known + estimate.guessed == 0:
        todo = "all there"
    return f"  {number:>3}  {entry.case.row}: {estimate.macs / 1e9:.3g} GMAC, {memory}; {todo}"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
