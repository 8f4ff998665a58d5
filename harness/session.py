"""One call of the command line, as plain values: check what the machine allows, measure, report, say where all is."""

from __future__ import annotations

import hashlib
import shlex
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from harness import scratch
from harness.accuracy.setup import Setup, check
from harness.call import Call
from harness.cost import metrics
from harness.datasets import understood
from harness.spec import budget, case
from harness.spec.budget import Training
from harness.spec.case import Ablation, Entry, Settings
from harness.spec.options import CHANGES
from harness.spec.reader import UsageError
from harness.video import VideoError, check_file, file_digest
from records import provenance
from records.record import MANIFEST, read_record, slug, write_bytes
from records.terminal import json_line

if TYPE_CHECKING:
    from harness.sweep import Run

COMMAND = "python -m harness.run"
WORDS = {"path": "clip", "frames": "clip.frames", "size": "clip.size", "stride": "clip.stride"}
LONGEST_NAME = 48  # of a folder named after settings


def run(call: Call) -> int:
    """Measure what a call asks for, train the rows where accuracy is wanted, and write the reports.

    Returns the exit status: 0 done, 1 a case failed, 130 interrupted. Raises: UsageError, before any work.
    """
    whole = call.metrics is None
    setups = {ablation.name: setup(ablation, call.settings, call.training, whole) for ablation in call.ablations}
    _check_writable(call.out)
    call, usual = settled(call)
    cases = [cases_of(ablation, call, usual) for ablation in call.ablations]
    import harness.sweep as sweep  # torch from here on: what is wrong so far is refused at once
    from harness.accuracy import power

    settings, training = call.settings, call.training
    names = {ablation.name: metrics_of(ablation, call.metrics) for ablation in call.ablations}
    timed = any(metrics.get(name).timed for of_ablation in names.values() for name in of_ablation)
    if timed or any(setups.values()):
        sweep.check_machine(settings)
    jobs = None if (settings.device or "cpu").startswith("cuda") or training.cluster else training.jobs
    if warning := provenance.crowded(threads=settings.threads, jobs=jobs):
        call.log.print(warning, markup=False, soft_wrap=True)
    queue = sweep.queue(training, settings, call.out)
    runs = []
    for ablation, (entries, chosen, words, folder) in zip(call.ablations, cases, strict=True):
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


def settled(call: Call) -> tuple[Call, Settings]:
    """The call with what its settings leave open, and the settings of one that sets nothing. Raises: UsageError."""
    settings = call.settings
    threads = 1 if settings.quick else provenance.default_threads()
    settings = replace(settings, digest=_digest(settings.path), threads=settings.threads or threads)
    return replace(call, settings=settings), Settings(quick=settings.quick, threads=threads)


def cases_of(ablation: Ablation, call: Call, usual: Settings) -> tuple[list[Entry], list[Entry], list[str], Path]:
    """All cases of an ablation, those that are measured, what sets this call apart in words, and where records lie."""
    entries = case.resolve(ablation, call.settings)
    chosen = [entry for entry in entries if ablation.chosen is None or entry.row.row in ablation.chosen]
    words = [*setting(ablation, entries, call.settings, usual), *ablation.added] if call.apart else []
    folder = folder_of(call.out, ablation.name, call.quick) / folder_name(words, call.settings)
    return entries, chosen, words, folder


def folder_of(out: Path, ablation: str, quick: bool) -> Path:
    return out / "quick" / ablation if quick else out / ablation


def setting(ablation: Ablation, entries: list[Entry], settings: Settings, usual: Settings) -> list[str]:
    """The settings, as words of the command line, without which the cases would be others than the `usual` ones."""
    identifiers, reduced, words = [case.case_id(entry.case) for entry in entries], settings, []
    for name in (f.name for f in fields(Settings) if f.name not in ("quick", "digest")):
        value, default = getattr(settings, name), getattr(usual, name)
        if value == default:
            continue
        without = replace(reduced, **{name: default}, **({"digest": None} if name == "path" else {}))
        if _cases(ablation, without) == identifiers:
            reduced = without
        elif name == "model":
            words += [f"model.{field}={value[field]}".replace(" ", "") for field in value]
        else:
            words.append(f"{WORDS.get(name, name)}={Path(value).name if name == 'path' else str(value).lower()}")
    return words


def _cases(ablation: Ablation, settings: Settings) -> list[str] | None:
    try:
        return [case.case_id(entry.case) for entry in case.resolve(ablation, settings)]
    except UsageError:  # these settings go together only
        return None


def folder_name(words: list[str], settings: Settings) -> str:
    """A folder for settings, told from every other: by its words, and where they say too little by a digest."""
    name = slug(" ".join(words)) if words else ""
    if settings.digest or settings.model or len(name) > LONGEST_NAME:
        digest = hashlib.sha256(" ".join([*words, settings.digest or ""]).encode()).hexdigest()[:6]
        name = f"{name[:LONGEST_NAME].rstrip('-')}-{digest}" if words else ""
    return name


def setup(ablation: Ablation, settings: Settings, training: Training, whole: bool) -> Setup | None:
    """How the rows of an ablation are trained; None for not at all.

    Where the command line names no budget, an ablation that is measured as a `whole` follows its own.
    """
    name = training.accuracy or (ablation.accuracy if whole else None) or budget.OFF
    if name == budget.OFF:
        unsaid = Training(training.accuracy)
        named = [f.name for f in fields(training) if getattr(training, f.name) != getattr(unsaid, f.name)]
        if named:
            word = named[0].replace(CHANGES, ".FIELD")
            raise UsageError(f"{word} is for accuracy, which is off here; add accuracy=quick, or leave it out")
        return None
    made = Setup(
        budget.load(name),
        replace(training, data_changes=understood(training.data or budget.load(name).data, training.data_changes)),
        device=settings.device or "cpu",
        dtype=settings.dtype,
        kernel=settings.kernel or "auto",
        threads=max(1, provenance.default_threads() // (training.jobs or provenance.default_threads())),
        quick=settings.quick,
    )
    check(made)
    return made


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
    import reports.build  # brings scipy, which takes as long to load as a wrong command may take in all
    import reports.explore
    from reports.console import results

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


def metrics_of(ablation: Ablation, chosen: list[str] | None) -> list[str]:
    """The metrics of a run in the registry's order; parameters bring those that learn, where a row freezes the rest."""
    names = ablation.metrics if chosen is None else chosen
    parts = {*ablation.vary.get("trainable", []), *(row.trainable for row in ablation.rows)} - {None, "all"}
    names = [*names, "trainable_params"] if parts and "params" in names else names
    return [name for name in metrics.names() if name in names]


def _digest(clip: str | None) -> str | None:
    """What names a given file by its content: another of the same name is another case. Raises: UsageError."""
    if clip is None:
        return None
    try:
        check_file(clip)
        return file_digest(clip)
    except (VideoError, OSError) as error:
        raise UsageError(str(error)) from error


def _check_writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        why = error.strerror or type(error).__name__
        hint = "choose a folder that you may write, out=FOLDER"
        raise UsageError(f"out={out}: cannot write there ({why}); {hint}") from error
