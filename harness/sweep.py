"""One ablation in one run: count, time and train what its records lack, and write each record as soon as it is known.

A run may be killed at any point: whole records stay, and the next run goes on from them. Two runs at once merge into
the same records under a lock and never time at the same moment. Timings are taken in rounds that visit every case
(records/visits.py).
"""

from __future__ import annotations

import itertools
import shlex
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

import backbones
from attention_zoo import growth_of
from harness import video
from harness.accuracy import cluster
from harness.accuracy.sweep import Trainings
from harness.call import Call
from harness.cost import metrics
from harness.cost.build import unavailable
from harness.cost.measure import measure
from harness.cost.process import TIME_LIMIT
from harness.progress import Progress
from harness.spec.budget import Training
from harness.spec.case import Ablation, Case, Clip, Entry, Settings, case_id
from harness.spec.effort import effort_for
from harness.spec.reader import UsageError
from harness.store import Store, clear_parts
from records import falling, provenance, visits
from records.record import Measurement, Record, canonical, write_manifest
from reports.console import human, is_shown
from reports.text import counted

TIMING_LOCK = ".timing.lock"
TRAINED_QUICKLY = 25.0  # seconds of quick mode that are kept for a few steps of training
RETAKES = 3  # of visits that were disturbed and were so again: the machine is then taken to stay busy


@dataclass(frozen=True)
class Step:
    """One case to be counted, or visited in one round of timing."""

    kind: str
    entry: Entry
    names: list[str]
    round: tuple[int, int] | None = None  # its number and how many are wanted

    def label(self, names: list[str]) -> str:
        number, total = self.round or (1, 1)
        suffix = f" · round {number} of {total}" if total > 1 else ""
        return f"{self.entry.case.row} · {', '.join(names or self.names)}{suffix}"


Unfit = dict[tuple[str, str], list[tuple[Clip, Measurement]]]
"""The clips that did not fit into memory or time, by metric and by all of the case but its clip."""


@dataclass
class Run:
    """An ablation, what is wanted of it, where its records lie, and what has come of it."""

    ablation: Ablation
    entries: list[Entry]  # all cases, which its manifest lists
    chosen: list[Entry]  # those of them that are measured
    names: list[str]  # of the metrics
    folder: Path  # of its records
    call: Call
    words: list[str]  # of the command that makes the records again
    setting: str = ""  # what sets this run apart from the ablation as it is, in words
    above: Path | None = None  # a folder that may have the record of a case that has none in its own
    trainings: Trainings | None = None
    failures: list[str] = field(default_factory=list)  # what another try may mend, one text each
    unfit: Unfit = field(default_factory=dict)
    retakes: int = RETAKES
    without: set[tuple[str, str]] = field(default_factory=set)  # cases and metrics that an earlier step had no value of

    @cached_property
    def store(self) -> Store:
        source = provenance.collect() | ({"run": self.call.part_of} if self.call.part_of else {})
        return Store(self.ablation.name, self.folder, self.call.log, source, self.above)

    def go(self, clips: dict[str, tuple[Path, dict[str, Any]]]) -> None:
        """Do what is missing, step by step; `clips` are those of `decode_clips`.

        Counted metrics of all cases come first: they take seconds, and an interrupted run then has a full table of
        costs. Then the rounds of the timed ones, each case of a round in a process of its own, then the trainings.
        Once the deadline has passed nothing more is begun.
        """
        call, rounds = self.call, self.call.visits
        self.folder.mkdir(parents=True, exist_ok=True)
        clear_parts(self.folder)
        for entry in self.chosen:
            self.store.share(entry, self.names, call.earlier)
        self._write_manifest()
        work = self._steps()
        if self.names:
            done = "" if work else "; every measurement is there already (force=true repeats them)"
            words = f"{counted(len(self.chosen), 'case')}, {counted(len(work), 'step')} to do"
            call.log.print(f"{self.ablation.name}: {words}{done}", highlight=False)
        if not call.force:
            self._tell_of_older_code()
            self._note_unfit_before()
        counts = {kind: sum(step.kind == kind for step in work) for kind in ("count", "time")}
        progress = Progress(call.log, counts, {"count": 2.0, "time": 6.0 if call.quick else 4.0 + 20.0 / rounds})
        for number, step in enumerate(work):
            if time_is_up(call, trains=self.trainings is not None):
                call.deadline.left_out.append(f"{len(work) - number} of {len(work)} steps of {self.ablation.name}")
                break
            names = [name for name in step.names if (case_id(step.entry.case), name) not in self.without]
            with progress.step(step.kind, step.label(names)) as say:
                say(self._do(step, names, *clips.get(clip_key(step.entry.case.clip), (None, None))))
        self._again_what_falls([step.entry for step in work if step.kind == "time"], clips)
        if self.trainings is not None:
            self.failures += self.trainings.go(self.store, call.log, call.deadline)

    def _tell_of_older_code(self) -> None:
        """Say that rows keep what another commit measured: whether that still holds is the reader's to judge."""
        now, others = self.store.source["commit"], {}
        for entry in self.chosen:
            record = self.store.read(entry)
            measured = [m for m in record.measurements.values() if m.samples and m.ran] if record else []
            if commits := {str(commit)[:10] for m in measured for commit in m.said("commit") if commit != now}:
                others[entry.case.row] = commits
        if others:
            names = ", ".join(sorted(set().union(*others.values())))
            stale = f"python -m reports.stale {shlex.quote(str(self.call.out))}"
            text = (
                f"{len(others)} of {len(self.chosen)} cases keep measurements of other commits ({names}); force=true "
            )
            self.call.log.print(
                f"{text}measures them again, {stale} says what changed since",
                markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip

    def _again_what_falls(self, timed: list[Entry], clips: dict[str, tuple[Path, dict[str, Any]]]) -> None:
        """Time a case again that costs more than one with a larger clip does, if this run timed it; tell what stays."""
        entries = {case_id(entry.case): entry for entry in timed}
        if self.call.quick or not entries:
            return
        suspects = {}
        for small, _, name in self._falling():
            metric_names = [metric for metric in self.names if name in metrics.get(metric).measures]
            if small.case_id in entries and metric_names:
                suspects[small.case_id, metric_names[0]] = self._rounds_of(metric_names[0])
        for (identifier, name), rounds in suspects.items():
            if self.call.deadline.passed:
                break
            entry = entries[identifier]
            say = f"    {name} of {entry.case.row} is above that of a larger clip; it is measured again"
            self.call.log.print(say, highlight=False)
            clip = clips.get(clip_key(entry.case.clip), (None, None))
            for number in sorted(self.store.repeat(entry, name, rounds)):
                self._do(Step("time", entry, [name], (number, rounds)), [name], *clip)
        for pair in self._falling():
            self.call.log.print(f"warning: {falling.warning(*pair)}", markup=False, soft_wrap=True)

    def _falling(self) -> list[tuple[Record, Record, str]]:
        return falling.falling(record for entry in self.chosen if (record := self.store.read(entry)))

    def _steps(self) -> list[Step]:
        """Counted metrics of all cases, then the rounds of the timed ones: what the records lack."""
        counted = [name for name in self.names if not metrics.get(name).timed]
        timed = [name for name in self.names if metrics.get(name).timed]
        steps, missing = [], {}
        for entry in self.chosen:
            self.store.read(entry, say=True)
            lacking = [name for name in counted if self.call.force or not self.store.counted(entry, name)]
            steps += [Step("count", entry, lacking)] if lacking else []
            look = self.store.repeat if self.call.force else self.store.left
            for name in timed:
                missing[case_id(entry.case), name] = look(entry, name, self._rounds_of(name))
        for number in range(1, self.call.visits + 1):
            later = []
            for entry in visits.order(_each_kind_first(self.chosen) if self.call.quick else self.chosen, number):
                lacking = [name for name in timed if number in missing[case_id(entry.case), name]]
                slow = _searches(lacking) if self.call.quick else []
                for names, into in (([n for n in lacking if n not in slow], steps), (slow, later)):
                    into += [Step("time", entry, names, (number, self.call.visits))] if names else []
            steps += later
        return steps

    def _rounds_of(self, name: str) -> int:
        return 1 if metrics.get(name).once else self.call.visits

    def _do(self, step: Step, names: list[str], clip: Path | None, facts: dict[str, Any] | None) -> str:
        """Take one step and write what it gave. Returns it in words."""
        if not names:
            return "left out: an earlier round says why"
        case, deadline = step.entry.case, self.call.deadline
        spared = {name: absent for name in names if (absent := self._too_large(case, name))}
        tried = [name for name in names if name not in spared]
        measured = self._timed(step, tried, clip) if step.kind == "time" else self._measured(case, tried, clip, 1)
        cut = [m.name for m in measured if TIME_LIMIT in (m.missing or "")] if deadline.overrun else []
        measured = [m for m in measured if m.name not in cut]
        if step.kind == "count" and not self.call.force:
            measured = self.store.news(step.entry, measured)
            if not measured:
                return "as recorded"
        if cut:  # not a result: the next run has more time
            deadline.left_out.append(f"{self.ablation.name}: {step.label(names)}")
        for name in tried:
            self._note_unfit(case, name, measured)
        measured += itertools.chain.from_iterable(spared.values())
        if measured:
            self.store.merge(step.entry, measured, round=step.round, clip=facts)
        self.failures += _failures(case.row, measured)
        absent = {m.name for m in measured if m.missing}
        self.without |= {(case_id(case), name) for name in names if absent & set(metrics.get(name).measures)}
        return _in_words(measured) if measured or not cut else "left out: it would have taken too long"

    def _measured(self, case: Case, names: list[str], clip: Path | None, number: int) -> list[Measurement]:
        """Metrics in groups of those that share the effort of several rounds: a process that only the first round has
        gets the whole effort.
        """
        effort, measured = effort_for(case.device, self.call.quick), []
        for group, rounds in by_rounds(names, self.call.visits):
            measured += measure(
                case,
                group,
                clip,
                effort=effort.split(rounds),
                time_limit=self.call.visit_seconds,
                deadline=self.call.deadline,
                round=number,
            )
        return measured

    def _timed(self, step: Step, names: list[str], clip: Path | None) -> list[Measurement]:
        """Time under the lock of the output folder. What another run measured meanwhile is not measured again."""
        if not names:
            return []
        lock = FileLock(self.call.out / TIMING_LOCK)
        try:
            lock.acquire(timeout=0.5)
        except Timeout:
            self.call.log.print("    another run is timing in this output folder; waiting for it", highlight=False)
            lock.acquire()
        try:
            if not self.call.force:
                number, rounds = step.round
                names = [name for name in names if number in self.store.left(step.entry, name, rounds)]
            return self._undisturbed(step.entry.case, names, clip, step.round[0]) if names else []
        finally:
            lock.release()

    def _undisturbed(self, case: Case, names: list[str], clip: Path | None, number: int) -> list[Measurement]:
        """The measurements of one visit; of one that was disturbed those of a second one, if that one was not.

        Not in quick mode, not beyond the deadline, and not on a machine that stays busy.
        """
        measured = self._measured(case, names, clip, number)
        if not any(m.details.get("disturbed") for m in measured) or self.call.quick:
            return measured
        if not self.retakes or self.call.deadline.passed:
            return measured
        self.call.log.print(f"    {_disturbed(measured)}; the visit is taken again", highlight=False)
        again = self._measured(case, names, clip, number)
        if any(m.missing or m.details.get("disturbed") for m in again):
            self.retakes -= 1
            return measured
        return again

    def _note_unfit_before(self) -> None:
        """What the records of earlier runs on this machine say, where no other try is to be made."""
        for entry in self.entries:
            record, machine = self.store.read(entry), provenance.machine(entry.case.device)
            measured = [m for m in record.measurements.values() if machine in m.said("machine")] if record else []
            for name in self.names:
                self._note_unfit(entry.case, name, [m for m in measured if not m.retry])

    def _note_unfit(self, case: Case, name: str, measured: list[Measurement]) -> None:
        """Remember the clip of a case if it was too large for all that a metric measures."""
        relevant = [m for m in measured if m.name in metrics.get(name).measures]
        if relevant and all(
            (m.missing or "").startswith("out of memory") or TIME_LIMIT in (m.missing or "") for m in relevant
        ):
            self.unfit.setdefault(_but_for_clip(case, name), []).append((case.clip, relevant[0]))

    def _too_large(self, case: Case, name: str) -> list[Measurement]:
        """What a metric gives without a try where a smaller clip of the same model did not fit; else nothing."""
        clip, unfit = case.clip, self.unfit.get(_but_for_clip(case, name), [])
        for small, why in unfit if metrics.get(name).timed else []:
            if small != clip and small.frames <= clip.frames and small.size <= clip.size:
                into = f"the {TIME_LIMIT}" if why.retry else "memory"
                reason = f"not tried: did not fit into {into} at {small.frames}x{small.size}x{small.size}"
                details = {"machine": why.details.get("machine")}
                return metrics.get(name).missing(reason, retry=why.retry, details=details)
        return []

    def _write_manifest(self) -> None:
        """Say which cases make the table, and which metrics: those asked for now and those in the records already."""
        names = {name for entry in self.entries if (record := self.store.read(entry)) for name in record.measurements}
        quick = (
            "quick mode, small clips and few samples: that all works, not what is faster; not the sizes of the papers"
        )
        manifest = {
            "name": self.ablation.name,
            "question": self.ablation.question,
            "table": self.ablation.table,
            **({"further": self.ablation.further} if self.ablation.further else {}),
            "published_rows": self.ablation.published_rows,
            "metrics": [n for n in metrics.names() if n in self.names or names & set(metrics.get(n).measures)],
            "arguments": self.words,
            "rows": [entry.manifest() for entry in self.entries],
            "figures": self.ablation.figures,
            "size_note": quick if self.call.quick else self.ablation.size_note,
            "setting": self.setting,
            "growth": _growth(self.entries) if "scaling" in self.ablation.figures else {},
        }
        write_manifest(manifest, self.folder)


def time_is_up(call: Call, trains: bool) -> bool:
    """Whether no further step is begun; quick mode keeps some of its time for a few steps of training."""
    return call.deadline.passed or (call.quick and trains and call.deadline.left <= TRAINED_QUICKLY)


def check_machine(settings: Settings) -> None:
    """Refuse a device, dtype or kernel that cannot run here. Counting needs none of them."""
    reason = unavailable(settings.device or "cpu", settings.dtype or "float32", settings.kernel or "auto")
    if reason is not None:
        raise UsageError(reason)


def queue(training: Training, settings: Settings, out: Path) -> Callable[..., Iterator[Any]] | None:
    """What hands trainings to a queue, None where this machine does them. Raises: UsageError."""
    if training.cluster is None:
        return None
    return cluster.launcher(training.cluster, training.cluster_changes, out, settings.device or "cpu")


def decode_clips(entries: list[Entry], out: Path, scratch: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Decode each distinct clip of some cases once; returns its file of frames and its provenance under `clip_key`.

    Raises: VideoError naming the file.
    """
    decoded = {}
    for key, clip in {clip_key(entry.case.clip): entry.case.clip for entry in entries}.items():
        frames = video.decode(clip.path or video.sample_clip(out), clip.frames, clip.stride, clip.size)
        handle, name = tempfile.mkstemp(dir=scratch, suffix=".npy")
        with open(handle, "wb") as file:
            np.save(file, frames.frames)
        source = frames.source if clip.path else "sample"
        facts = {"source": source, "sha256": frames.digest, "decoder": frames.decoder}
        decoded[key] = (Path(name), facts | {"frames_in_file": frames.frames_in_file})
    return decoded


def clip_key(clip: Clip) -> str:
    return f"{clip.frames} {clip.stride} {clip.size} {clip.path}"


def by_rounds(names: list[str], total: int) -> list[tuple[list[str], int]]:
    """Metrics with the number of rounds that share their effort: 1 in processes that only the first round has."""
    split = {metrics.get(name).process for name in names if not metrics.get(name).once}
    parts = [name for name in names if metrics.get(name).process in split]
    whole = [name for name in names if name not in parts]
    return [(group, rounds) for group, rounds in ((parts, total), (whole, 1)) if group]


def _searches(names: list[str]) -> list[str]:
    """Metrics with a process of their own for one answer, such as the largest batch: after what every case has."""
    often = {metrics.get(name).process for name in names if not metrics.get(name).once}
    return [name for name in names if metrics.get(name).process not in often] if often else []


def _each_kind_first(entries: list[Entry]) -> list[Entry]:
    """In turn a case of each kernel, format, clip and way to run: where time ends, all of these were tried."""
    kinds: dict[str, list[Entry]] = {}
    for entry in entries:
        alike = {k: v for k, v in entry.case.to_dict().items() if k not in ("row", "model", "config")}
        kinds.setdefault(canonical(alike), []).append(entry)
    return [entry for turn in itertools.zip_longest(*kinds.values()) for entry in turn if entry is not None]


def _growth(entries: list[Entry]) -> dict[str, dict[str, tuple[float, float]]]:
    """The exponents in theory of the schemes of some cases, which their figure sets the measured ones against."""
    names = {name for entry in entries for name in backbones.read_config(entry.case.config).schemes()}
    return {name: growth for name in sorted(names) if (growth := growth_of(name))}


def _but_for_clip(case: Case, name: str) -> tuple[str, str]:
    same = replace(case, row="", clip=Clip(), config={key: v for key, v in case.config.items() if key != "clip"})
    return name, canonical(same.to_dict())


def _in_words(measured: list[Measurement]) -> str:
    if not measured:
        return "another run measured it meanwhile"
    disturbed = [_disturbed(measured)] if any(m.details.get("disturbed") for m in measured) else []
    phrases = []
    for m in measured:
        if m.missing:
            phrases.append(f"{m.name} — {m.missing}")
        elif is_shown(m):
            phrases.append(f"{m.title} {human(m)}")
    return ", ".join(dict.fromkeys([*phrases, *disturbed])) or "measured; the report shows it"


def _failures(row: str, measured: list[Measurement]) -> list[str]:
    """What failed in one step, by its reason."""
    failed: dict[Any, list[str]] = {}
    for m in measured:
        if (m.missing and m.retry) or m.details.get("wrong"):
            failed.setdefault(m.missing or m.value, []).append(m.name)
    return [f"{row} · {', '.join(names)}: {reason}" for reason, names in failed.items()]


def _disturbed(measured: list[Measurement]) -> str:
    return f"disturbed: {' and '.join(dict.fromkeys(w for m in measured for w in m.details.get('disturbed', [])))}"
