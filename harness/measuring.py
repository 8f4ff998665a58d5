"""A checked call of the command line carried out: measure, train, report, say where all is."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

import reports.build
import reports.explore
from harness import scratch, sweep
from harness.accuracy import power
from harness.call import Call
from harness.cost import metrics
from harness.session import COMMAND, Checked, checked, metrics_of
from harness.spec import case
from harness.spec.reader import UsageError
from harness.sweep import Run
from harness.video import VideoError
from records import provenance
from records.record import MANIFEST, read_record, write_bytes
from records.terminal import json_line
from reports.console import results


def command(request: Checked) -> int:
    """Carry out one call of the command line, and say what quick mode has left out. Returns the exit status."""
    call, status = request.call, carry_out(request)
    for omission in call.deadline.left_out:
        way_on = "the same command goes on there, rows=[...] tries some alone"
        call.log.print(f"the time of quick mode is over: {omission} are left out; {way_on}", markup=False)
    return status


def run(call: Call) -> int:
    """Check and carry out. Returns the exit status. Raises: UsageError, before any work."""
    return carry_out(checked(call))


def carry_out(request: Checked) -> int:
    """Measure what a call asks for, train the rows where accuracy is wanted, and write the reports.

    Returns the exit status: 0 done, 1 a case failed, 130 interrupted. Raises: UsageError, before any work.
    """
    call, setups = request.call, request.setups
    settings, training = call.settings, call.training
    names = {ablation.name: metrics_of(ablation, call.metrics) for ablation in call.ablations}
    timed = any(metrics.get(name).timed for of_ablation in names.values() for name in of_ablation)
    if timed or any(setups.values()):
        sweep.check_machine(settings)
    queue = sweep.queue(training, settings, call.out)
    runs = []
    for ablation, (entries, chosen, words, folder) in zip(call.ablations, request.cases, strict=True):
        remake = list(call.remake or _remake(ablation.name, call.arguments))
        above = folder.parent if words else None
        runs.append(
            sweep.Run(
                ablation, entries, chosen, names[ablation.name], folder, call, remake, ", ".join(words), above
            )
        )  # fmt: skip
    for run in runs:  # after all checks: it may render a data set
        wanted_setup = setups[run.ablation.name]
        if wanted_setup is not None:
            anew = call.force and training.accuracy is not None
            slots = training.jobs or provenance.default_threads()
            of_run, told = power.settled(wanted_setup, run.chosen, run.store.read, slots)
            call.log.print(f"{run.ablation.name}: {told}", markup=False, highlight=False, soft_wrap=True)
            run.trainings = sweep.Trainings.of(run.ablation, run.chosen, of_run, call.out, queue, anew)
        if run.ablation.table_file is not None:  # beside the records, where reports find it
            write_bytes(run.ablation.table_file.read_bytes(), run.folder / run.ablation.table_file.name)
    failures, interrupted = [], False
    scratch.clear_abandoned()
    with scratch.folder() as folder, _terminate_like_interrupt():
        try:
            clips = {}
            if timed or settings.path:
                clips = sweep.decode_clips([entry for run in runs for entry in run.chosen], call.out, folder)
            for run in runs:
                run.go(clips)
        except KeyboardInterrupt:
            interrupted = True
            call.log.print("interrupted; what is measured is kept")
        except VideoError as error:
            raise UsageError(str(error)) from error
        except OSError as error:
            failures.append(f"{error}; what is measured is kept")
    failures = [failure for run in runs for failure in run.failures] + failures
    failures += _report([run for run in runs if (run.folder / MANIFEST).exists()], call.console)
    status = 130 if interrupted else int(bool(failures))
    _tell_the_way_on(call, failures, timed, bool(status))
    if call.as_json:
        json_line(
            {"status": status, "failed": failures, "ablations": {run.ablation.name: _for_programs(run) for run in runs}}
        )
    return status


def _tell_the_way_on(call: Call, failures: list[str], timed: bool, unfinished: bool) -> None:
    """What failed, and the commands that lead further; none of a part of a longer run, which tells its own."""
    if timed and call.remake is None and not (call.settings.device or "cpu").startswith("cuda"):
        name = call.ablations[0].name if len(call.ablations) == 1 else "all"
        command = f"{COMMAND} ablation={name} device=cuda dtype=bfloat16 batch_size=8"
        call.console.print(f"at full size on a machine with a GPU: {command}", markup=False, soft_wrap=True)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    if unfinished and call.remake is None:
        again = shlex.join(word for word in call.arguments if not word.startswith("force="))
        call.console.print(f"to go on from here: {COMMAND} {again}", markup=False, soft_wrap=True)


def _for_programs(run: Run) -> dict[str, Any]:
    """One ablation for a program: where its report is, and the value of every measurement by row, in its own unit."""
    paths = {entry.row.row: run.folder / f"{case.case_id(entry.case)}.json" for entry in run.entries}
    records = {row: read_record(path) for row, path in paths.items() if path.is_file()}
    rows = {
        row: {name: measured.value for name, measured in record.measurements.items() if measured.samples}
        for row, record in records.items()
    }
    return {"folder": str(run.folder), "report": str(run.folder / "report.md"), "rows": rows}


def _remake(ablation: str, arguments: Sequence[str]) -> list[str]:
    """The words that make one ablation's records again, without folders of this machine."""
    words = [f"ablation={ablation}"]
    for word in arguments:
        key, _, value = word.partition("=")
        if key in ("clip", "clip.path"):
            words.append(f"clip={Path(value).name}")
        elif key == "root" or (key == "data" and len(Path(value).parts) > 1):
            words.append(f"{key}={Path(value).name}")
        elif key not in ("ablation", "force", "out", "time_limit", "jobs") and key.partition(".")[0] != "cluster":
            words.append(word)
    return words


def _report(runs: list[Run], console: Console) -> list[str]:
    """Write the reports, show the results in short, say where everything is. Returns what could not be written: a
    table that cannot be made costs no other its report.
    """
    failures = []

    def attempt(failure: str, work: Any) -> None:
        try:
            work()
        except Exception as error:  # whatever is wrong with one table
            text = error.args[0] if isinstance(error, KeyError) and error.args else error
            failures.append(f"{failure}: {type(error).__name__}: {text}")

    def show(run: Run) -> None:
        files = reports.build.build(run.folder)
        console.print(results(run.folder, [case.case_id(entry.case) for entry in run.entries]))
        for file in files:
            console.print(f"  {file}", markup=False, soft_wrap=True)

    for run in runs:
        attempt(f"no report of {run.ablation.name}", lambda run=run: show(run))
        if reports.build.table.tell_unusable([run.folder]):
            failures.append(f"{run.ablation.name}: a record of a row that was not measured now cannot be used")

    def make(build: Any, folder: Path) -> None:
        console.print(f"  {build(folder)}", markup=False, soft_wrap=True)

    indexes = list(dict.fromkeys((run.above or run.folder).parent for run in runs))
    for folder in indexes:
        attempt("no list of the reports", lambda folder=folder: make(reports.build.build_index, folder))
    if find_spec("plotly") is None:  # as on a machine without registries; the page can be made anywhere else
        console.print("  no page to explore: the package plotly, which draws it, is not installed")
        return failures
    for folder in dict.fromkeys(map(reports.explore.top, indexes)):
        attempt("no page to explore", lambda folder=folder: make(reports.explore.build, folder))
    return failures


@contextmanager
def _terminate_like_interrupt():
    """Let a polite kill end like Ctrl-C: with the report of what there is."""
    if threading.current_thread() is not threading.main_thread():  # only the main one may set handlers
        yield
        return

    def interrupt(*_: Any):
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
