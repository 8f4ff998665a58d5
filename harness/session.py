"""One call of the command line, as plain values: check what the machine allows, measure, report, say where all is."""

from __future__ import annotations

import shlex
import signal
import sys
import tempfile
import threading
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from attention_zoo.registry import nearest
from harness import scratch
from harness.cost import metrics
from harness.deadline import Deadline
from harness.spec import case
from harness.spec.budget import Training
from harness.spec.case import Ablation, Entry, Settings
from harness.spec.reader import UsageError

if TYPE_CHECKING:
    from harness.accuracy.plan import Setup

COMMAND = "python -m harness.run"


def run(
    ablations: list[Ablation],
    settings: Settings,
    names: list[str] | None,
    out: Path,
    *,
    training: Training | None = None,
    force: bool = False,
    rounds: int | None = None,
    rows: list[str] | None = None,
    time_limit: float = 900,
    deadline: Deadline | None = None,
    console: Console | None = None,
    arguments: list[str] | None = None,
    remake: list[str] | None = None,
) -> int:
    """Measure the metrics `names` (None: each ablation's own), train the rows where accuracy is wanted, and write the
    reports.

    `arguments` are the words of the command line: with them the run says how to go on and how to make a report again;
    `remake` are the words for the latter where they are others. Nothing is begun once a `deadline` has passed.
    Returns the exit status: 0 done, 1 a case failed, 130 interrupted.

    Raises: UsageError, before any work.
    """
    console = console or Console(quiet=True)
    arguments = arguments or []
    wanted = {ablation.name: _metrics(ablation, names) for ablation in ablations}
    timed = any(metrics.get(name).timed for of_one in wanted.values() for name in of_one)
    training = training or Training()
    setups = {ablation.name: _setup(ablation, settings, training, names is None) for ablation in ablations}
    _check_writable(out)
    settings = replace(settings, digest=_digest(settings.path))

    from harness import sweep  # torch from here on
    from harness.video import VideoError
    from records import provenance

    threads = settings.threads or (1 if settings.quick else provenance.default_threads())
    settings = replace(settings, threads=threads)
    if timed or any(setups.values()):
        _check_machine(settings)
    launcher = _launcher(training, settings, out)
    entries = {ablation.name: case.resolve(ablation, settings) for ablation in ablations}
    chosen = {ablation.name: _chosen(ablation, entries[ablation.name], rows) for ablation in ablations}
    classes = _classes(setups.values())  # after all checks: it may render a data set
    folders, failures, interrupted = [], [], False
    scratch.clear_abandoned()
    with scratch.folder() as folder, _terminate_like_interrupt():
        try:
            clips = {}
            if timed or settings.path:
                everything = [entry for of_one in chosen.values() for entry in of_one]
                clips = sweep.decode_clips(everything, out, folder)
            for ablation in ablations:
                folders.append(sweep.folder_of(out, ablation.name, settings.quick))
                outcome = sweep.sweep(
                    ablation,
                    entries[ablation.name],
                    wanted[ablation.name],
                    out,
                    clips=clips,
                    quick=settings.quick,
                    force=force,
                    wanted=rounds,
                    chosen=chosen[ablation.name],
                    time_limit=time_limit,
                    deadline=deadline,
                    console=console,
                    arguments=remake or _remake(ablation.name, arguments),
                )
                failures += outcome.failures
                setup = setups[ablation.name]
                if setup is not None:
                    from harness.accuracy.sweep import sweep as train_rows

                    failures += train_rows(
                        ablation,
                        chosen[ablation.name],
                        setup,
                        classes,
                        outcome.store,
                        out,
                        shared=outcome.shared,
                        launcher=launcher,
                        force=force and training.budget is not None,
                        deadline=deadline,
                        console=console,
                    )
        except KeyboardInterrupt:
            interrupted = True
            console.print("interrupted; what is measured is kept")
        except VideoError as error:
            raise UsageError(str(error)) from error
        except OSError as error:
            failures.append(f"{error}; what is measured is kept")
    _finish(folders, entries, settings, timed and remake is None, console)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    if (interrupted or failures) and remake is None:
        again = shlex.join(word for word in arguments if not word.startswith("force="))
        console.print(f"to go on from here: {COMMAND} {again}", markup=False, soft_wrap=True)
    if interrupted:
        return 130
    return 1 if failures else 0


def _setup(ablation: Ablation, settings: Settings, training: Training, whole: bool) -> Setup | None:
    """How the rows of an ablation are trained; None for not at all.

    Where the command line names no budget, an ablation that is measured as a `whole` follows its own; in quick mode,
    which tries whether everything works, it is trained only where that is asked for.
    """
    from harness.accuracy.plan import Setup, check
    from harness.spec.budget import OFF, load
    from records import provenance

    name = training.budget or (ablation.accuracy if whole and not settings.quick else None) or OFF
    if name == OFF:
        unsaid = Training(budget=training.budget)
        named = [f.name for f in fields(training) if getattr(training, f.name) != getattr(unsaid, f.name)]
        if named:
            raise UsageError(f"{named[0]} is for accuracy, which is off here; add accuracy=quick, or leave it out")
        return None
    setup = Setup(
        load(name),
        training,
        device=settings.device or "cpu",
        dtype=settings.dtype,
        kernel=settings.kernel or "auto",
        threads=max(1, provenance.default_threads() // (training.jobs or provenance.default_threads())),
    )
    check(setup)
    return setup


def _chosen(ablation: Ablation, entries: list[Entry], rows: list[str] | None) -> list[Entry]:
    """The cases of the named rows; of all, where none are named. Raises: UsageError with the nearest name."""
    if rows is None:
        return entries
    known = [row.row for row in ablation.rows]
    for name in rows:
        if name not in known:
            raise UsageError(f"ablation {ablation.name}: no row is called {name!r}; {nearest(name, known)}")
    return [entry for entry in entries if entry.row.row in rows]


def _classes(setups: Iterable[Setup | None]) -> int:
    """How many classes the data set of a run has. A built-in one is rendered here, before anything is timed."""
    wanted = next((setup for setup in setups if setup is not None), None)
    if wanted is None:
        return 0
    from harness.accuracy.sweep import classes_of

    return classes_of(wanted)


def _launcher(training: Training, settings: Settings, out: Path):
    if training.launcher is None:
        if training.launcher_parameters:
            raise UsageError("hydra.launcher.FIELD needs hydra/launcher=submitit_slurm")
        return None
    from harness.accuracy.cluster import launcher

    return launcher(training.launcher, training.launcher_parameters, out, settings.device or "cpu")


def _remake(ablation: str, arguments: list[str]) -> list[str]:
    """The words that make one ablation's records again, without folders of this machine."""
    words = [f"ablation={ablation}"]
    for word in arguments:
        key, _, value = word.partition("=")
        if key in ("clip", "clip.path"):
            words.append(f"clip={Path(value).name}")
        elif key == "root" or (key == "data" and len(Path(value).parts) > 1):
            words.append(f"{key}={Path(value).name}")
        elif key not in ("ablation", "force", "out", "time_limit", "jobs") and not key.startswith("hydra"):
            words.append(word)
    return words


def _finish(
    folders: list[Path], entries: dict[str, list[Entry]], settings: Settings, timed: bool, console: Console
) -> None:
    """Write the reports, show the results in short, say where everything is."""
    import reports.build
    from harness.spec.case import case_id
    from reports.console import results

    folders = [folder for folder in folders if (folder / "ablation.json").exists()]
    for folder in folders:
        files = reports.build.build(folder)
        console.print(results(folder, (case_id(entry.case) for entry in entries[folder.name])))
        for file in files:
            console.print(f"  {file}", markup=False, soft_wrap=True)
    if not folders:
        return
    console.print(f"  {reports.build.build_index(folders[0].parent)}", markup=False, soft_wrap=True)
    if timed and not (settings.device or "cpu").startswith("cuda"):
        name = folders[0].name if len(folders) == 1 else "all"
        command = f"{COMMAND} ablation={name} device=cuda dtype=bfloat16 batch_size=8"
        console.print(f"at full size on a machine with a GPU: {command}", markup=False, soft_wrap=True)


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


def _metrics(ablation: Ablation, chosen: list[str] | None) -> list[str]:
    """The metrics of a run in the registry's order, each checked."""
    names = ablation.metrics if chosen is None else chosen
    for name in names:
        if name not in metrics.names():
            hint = nearest(str(name), metrics.names())
            raise UsageError(f"ablation {ablation.name}: unknown metric {name!r}; {hint}")
    return [name for name in metrics.names() if name in names]


def _digest(clip: str | None) -> str | None:
    """What names a given file by its content: another of the same name is another case. Raises: UsageError."""
    if clip is None:
        return None
    from harness.video import VideoError, check_file, file_digest

    try:
        check_file(clip)
        return file_digest(clip)
    except (VideoError, OSError) as error:
        raise UsageError(str(error)) from error


def _check_machine(settings: Settings) -> None:
    """Refuse a device, dtype or kernel that cannot run here. Counting needs none of them."""
    from harness.cost.build import unavailable

    reason = unavailable(settings.device or "cpu", settings.dtype or "float32", settings.kernel or "auto")
    if reason is not None:
        raise UsageError(reason)


def _check_writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        why = error.strerror or type(error).__name__
        hint = "choose a folder that you may write, out=FOLDER"
        raise UsageError(f"out={out}: cannot write there ({why}); {hint}") from error
