"""One run of one ablation: measure what the records lack, write each record as soon as it is known.

A run may be killed at any point: whole records stay, and the next run goes on from them. Two runs at once merge into
the same records under a lock and never time at the same moment. Timings are taken in rounds that visit every case
(records/visits.py); what is finished is replaced by finished measurements only.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from rich.console import Console

from harness import video
from harness.cost import metrics
from harness.cost.measure import measure
from harness.cost.process import TIME_LIMIT
from harness.deadline import Deadline
from harness.progress import Progress
from harness.spec.case import Ablation, Case, Clip, Entry, case_id
from harness.spec.effort import effort_for
from records import provenance
from records import visits as rounds
from records.record import Measurement, Record, RecordError, canonical, read_record, write_manifest, write_record
from records.visits import QUICK_ROUNDS, ROUNDS
from reports.console import human, is_shown

TIMING_LOCK = ".timing.lock"
RECORD_LOCK = ".records.lock"
ABANDONED = 3600  # seconds after which a part of a file is no other run's any more


@dataclass(frozen=True)
class Outcome:
    """What a run left: its folder, the failures that another try may mend, and what a training adds its results to."""

    folder: Path
    failures: list[str]
    store: Store
    shared: dict[str, Any]


def folder_of(out: Path, ablation: str, quick: bool) -> Path:
    return out / "quick" / ablation if quick else out / ablation


def decode_clips(entries: list[Entry], out: Path, scratch: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Decode each distinct clip of some cases once; returns its file of frames and its provenance under `clip_key`.

    Raises: VideoError naming the file.
    """
    decoded = {}
    for clip in {clip_key(entry.case.clip): entry.case.clip for entry in entries}.values():
        key = clip_key(clip)
        one = video.decode(clip.path or video.sample_clip(out), clip.frames, clip.stride, clip.size)
        handle, name = tempfile.mkstemp(dir=scratch, suffix=".npy")
        with open(handle, "wb") as file:
            np.save(file, one.frames)
        source = one.source if clip.path else "sample"
        facts = {"source": source, "sha256": one.digest, "decoder": one.decoder, "frames_in_file": one.frames_in_file}
        decoded[key] = (Path(name), facts)
    return decoded


def clip_key(clip: Clip) -> str:
    return f"{clip.frames} {clip.stride} {clip.size} {clip.path}"


def sweep(
    ablation: Ablation,
    entries: list[Entry],
    names: list[str],
    out: Path,
    *,
    clips: dict[str, tuple[Path, dict[str, Any]]],
    quick: bool = False,
    force: bool = False,
    wanted: int | None = None,
    chosen: list[Entry] | None = None,
    time_limit: float = 900,
    deadline: Deadline | None = None,
    console: Console | None = None,
    arguments: list[str] | None = None,
) -> Outcome:
    """Measure the metrics `names` of all `entries`, or of those `chosen` among them; records and manifest go to
    `folder_of(out, ...)`.

    Timed metrics are taken in `wanted` rounds (None: 5, in quick mode 1), each case of a round in a process of its own.
    Counted metrics of all cases come first: they take seconds, and an interrupted run then has a full table of costs.
    Once a `deadline` has passed nothing more is begun.
    """
    console = console or Console(quiet=True)
    wanted = wanted or (QUICK_ROUNDS if quick else ROUNDS)
    folder = folder_of(out, ablation.name, quick)
    folder.mkdir(parents=True, exist_ok=True)
    _clear_parts(folder)
    _write_manifest(ablation, entries, names, folder, quick, arguments)
    shared = provenance.collect()
    store = Store(ablation, folder, console, shared)
    work = _plan(store, entries if chosen is None else chosen, names, wanted, force)
    steps = {kind: sum(1 for step in work if step.kind == kind) for kind in ("count", "time")}
    if names:
        console.print(_opening(ablation, entries if chosen is None else chosen, work), highlight=False)
    progress = Progress(console, steps, {"count": 2.0, "time": 6.0 if quick else 4.0 + 20.0 / wanted})
    failures: list[str] = []
    failed: set[tuple[str, str]] = set()
    unfit = {} if force else _unfit_before(store, entries, names)
    for number, step in enumerate(work):
        if deadline is not None and deadline.passed:
            deadline.left_out.append(f"{len(work) - number} of {len(work)} steps of {ablation.name}")
            break
        case, entry = step.entry.case, step.entry
        clip, facts = clips.get(clip_key(case.clip), (None, None))
        names = [name for name in step.names if (case_id(case), name) not in failed]
        with progress.step(step.kind, step.label(names)) as say:
            if not names:
                say("left out: an earlier round says why")
                continue
            effort = effort_for(case.device, quick)
            spared = {name: too_large for name in names if (too_large := _too_large(unfit, case, name))}
            tried = [name for name in names if name not in spared]

            def take(names: list[str], case=case, clip=clip, effort=effort) -> list[Measurement]:
                measured = []
                for some, rounds_of_it in _by_rounds(names, wanted):
                    part = effort.split(rounds_of_it)
                    measured += measure(case, some, clip, effort=part, time_limit=time_limit, deadline=deadline)
                return measured

            if step.kind == "time":
                measured = _one_at_a_time(out, store, step, tried, force, take) if tried else []
            else:
                measured = take(tried)
            cut = {one.name for one in measured if TIME_LIMIT in (one.missing or "")} if _overrun(deadline) else set()
            measured = [one for one in measured if one.name not in cut]
            if cut:  # not a result: the next run has more time
                deadline.left_out.append(f"{ablation.name}: {step.label(names)}")
            for name in tried:
                _note_unfit(unfit, case, name, measured)
            measured += itertools.chain.from_iterable(spared.values())
            if measured:
                store.merge(entry, step.round, measured, {**shared, "clip": facts, "time": provenance.now()})
            say(_result(measured) if measured or not cut else "left out: it would have taken too long")
        failures += [f"{case.row} · {m.name}: {m.missing}" for m in measured if m.missing and m.retry]
        failures += [f"{case.row} · {m.name}: {m.missing or m.value}" for m in measured if m.details.get("wrong")]
        absent = {m.name for m in measured if m.missing}
        failed |= {(case_id(case), name) for name in names if absent & set(metrics.get(name).measures)}
    return Outcome(folder, failures, store, shared)


def _overrun(deadline: Deadline | None) -> bool:
    return deadline is not None and deadline.overrun


Unfit = dict[tuple[str, str], list[tuple[Clip, Measurement]]]
"""The clips that did not fit into memory or time, by metric and by all of the case but its clip."""


def _unfit_before(store: Store, entries: list[Entry], names: list[str]) -> Unfit:
    """What the records of earlier runs on this machine say, where no other try is to be made."""
    unfit: Unfit = {}
    for entry in entries:
        record, machine = store.read(entry), provenance.machine(entry.case.device)
        there = [m for m in record.measurements.values() if machine in m.said("machine")] if record else []
        for name in names:
            _note_unfit(unfit, entry.case, name, [m for m in there if not m.retry])
    return unfit


def _note_unfit(unfit: Unfit, case: Case, name: str, measured: list[Measurement]) -> None:
    """Remember the clip of a case if it was too large for all that a metric measures."""
    of_it = [one for one in measured if one.name in metrics.get(name).measures]
    if of_it and all((m.missing or "").startswith("out of memory") or TIME_LIMIT in (m.missing or "") for m in of_it):
        unfit.setdefault(_but_for_clip(case, name), []).append((case.clip, of_it[0]))


def _too_large(unfit: Unfit, case: Case, name: str) -> list[Measurement]:
    """What a metric gives without a try where a smaller clip of the same model did not fit; else nothing."""
    clip, known = case.clip, unfit.get(_but_for_clip(case, name), [])
    for small, why in known if metrics.get(name).timed else []:
        if small != clip and small.frames <= clip.frames and small.size <= clip.size:
            into = f"the {TIME_LIMIT}" if why.retry else "memory"
            reason = f"not tried: did not fit into {into} at {small.frames}x{small.size}x{small.size}"
            return metrics.get(name).missing(reason, retry=why.retry, details={"machine": why.details.get("machine")})
    return []


def _but_for_clip(case: Case, name: str) -> tuple[str, str]:
    same = replace(case, row="", clip=Clip(), config={key: v for key, v in case.config.items() if key != "clip"})
    return name, canonical(same.to_dict())


@dataclass(frozen=True)
class Step:
    """One case to be counted, or visited in one round of timing."""

    kind: str
    entry: Entry
    names: list[str]
    round: tuple[int, int] | None = None  # its number and how many are wanted

    def label(self, names: list[str]) -> str:
        number, wanted = self.round or (1, 1)
        which = f" · round {number} of {wanted}" if wanted > 1 else ""
        return f"{self.entry.case.row} · {', '.join(names or self.names)}{which}"


def _plan(store: Store, entries: list[Entry], names: list[str], wanted: int, force: bool) -> list[Step]:
    """The steps to do: counted metrics of all cases, then the rounds of the timed ones."""
    counted = [name for name in names if not metrics.get(name).timed]
    timed = [name for name in names if metrics.get(name).timed]
    work = []
    for entry in entries:
        record = store.read(entry, say=True)
        lacking = counted if force else [name for name in counted if not _counted(record, name)]
        if lacking:
            work.append(Step("count", entry, lacking))
    missing: dict[tuple[str, str], set[int]] = {}
    for entry in entries:
        for name in timed:
            of_this = 1 if metrics.get(name).once else wanted
            missing[case_id(entry.case), name] = (
                store.repeat(entry, name, of_this) if force else store.left(entry, name, of_this)
            )
    for number in range(1, wanted + 1):
        for entry in rounds.order(entries, number):
            lacking = [name for name in timed if number in missing[case_id(entry.case), name]]
            if lacking:
                work.append(Step("time", entry, lacking, (number, wanted)))
    return work


def _by_rounds(names: list[str], wanted: int) -> list[tuple[list[str], int]]:
    """Metrics with the number of rounds that share their effort: 1 in processes that only the first round has."""
    split = {metrics.get(name).process for name in names if not metrics.get(name).once}
    parts = [name for name in names if metrics.get(name).process in split]
    whole = [name for name in names if name not in parts]
    return [(some, n) for some, n in ((parts, wanted), (whole, 1)) if some]


def _counted(record: Record | None, name: str) -> bool:
    """Whether a record settles a counted metric."""
    there = [record.get(measurement) if record else None for measurement in metrics.get(name).measures]
    return not any(m is None or (m.missing and m.retry) for m in there)


def _opening(ablation: Ablation, entries: list[Entry], work: list[Step]) -> str:
    there = "" if work else "; every measurement is there already (force=true repeats them)"
    return f"{ablation.name}: {len(entries)} cases, {len(work)} steps to do{there}"


def _write_manifest(
    ablation: Ablation, entries: list[Entry], names: list[str], folder: Path, quick: bool, arguments: list[str] | None
) -> None:
    """Say which cases make the table, and which metrics: those asked for now and those in the records already."""
    held = {name for entry in entries if (record := _read(folder, entry)) for name in record.measurements}
    shown = [name for name in metrics.names() if name in names or held & set(metrics.get(name).measures)]
    manifest = {
        "name": ablation.name,
        "question": ablation.question,
        "table": ablation.table,
        "published_rows": ablation.published_rows,
        "metrics": shown,
        "arguments": arguments or [f"ablation={ablation.name}"],
        "rows": [entry.manifest() for entry in entries],
        "figures": ablation.figures,
        "size_note": "quick mode: small clips, few samples; not the sizes of the papers"
        if quick
        else ablation.size_note,
    }
    write_manifest(manifest, folder)


def _read(folder: Path, entry: Entry, console: Console | None = None) -> Record | None:
    """The record of a case, if there is a whole one; a damaged one is told of and measured again."""
    path = folder / f"{case_id(entry.case)}.json"
    if not path.exists():
        return None
    try:
        return read_record(path)
    except RecordError as error:
        if console:
            console.print(f"{error}\n    the case is measured again", markup=False, highlight=False, soft_wrap=True)
        return None


class Store:
    """The records of one ablation as one run sees and changes them.

    `anew` holds the rounds of measurements that are begun again although a finished one is there: by force, or because
    that one is of another machine. They enter the record once they are finished too.
    """

    def __init__(self, ablation: Ablation, folder: Path, console: Console, source: dict[str, Any]):
        self.ablation, self.folder, self.console, self.source = ablation, folder, console, source
        self.anew: dict[tuple[str, str], Measurement | None] = {}
        every = [metrics.get(name) for name in metrics.names()]
        self.once = {measurement for metric in every if metric.once for measurement in metric.measures}

    def read(self, entry: Entry, say: bool = False) -> Record | None:
        return _read(self.folder, entry, self.console if say else None)

    def left(self, entry: Entry, name: str, wanted: int) -> set[int]:
        """The rounds of a timed metric that the record lacks; all of them where it holds nothing to go on from."""
        machine, record = provenance.machine(entry.case.device), self.read(entry)
        lacking: set[int] = set()
        for measurement in metrics.get(name).measures:
            key = (case_id(entry.case), measurement)
            there = self.anew[key] if key in self.anew else record.get(measurement) if record else None
            if there is not None and machine not in there.said("machine"):
                lacking |= self.repeat(entry, name, wanted)
            elif there is not None and there.samples and not rounds.continues(there, machine, self.source):
                lacking |= self.repeat(entry, name, wanted) if rounds.left(there, wanted) else set()
            else:
                lacking |= rounds.left(there, wanted)
        return lacking

    def repeat(self, entry: Entry, name: str, wanted: int) -> set[int]:
        """Begin a timed metric again."""
        self.anew |= {(case_id(entry.case), measurement): None for measurement in metrics.get(name).measures}
        return set(range(1, wanted + 1))

    def merge(
        self, entry: Entry, number: tuple[int, int] | None, measured: list[Measurement], source: dict[str, Any]
    ) -> None:
        """Add measurements to the record of a case as it is now, so that a run beside this one loses nothing."""
        identifier, case = case_id(entry.case), entry.case
        source |= {name: getattr(case, name) for name in ("device", "dtype", "kernel", "seed", "threads")}
        moment = source.pop("time")
        with FileLock(self.folder / RECORD_LOCK):
            old = self.read(entry)
            if source["clip"] is None:  # nothing of this run looked at the clip
                source["clip"] = old.provenance.get("clip") if old else None
            measurements = dict(old.measurements) if old else {}
            for one in measured:
                one = rounds.stamped(one, source, moment)
                if number is None:
                    measurements[one.name] = one
                else:
                    self._join(identifier, measurements, one, *number)
            write_record(
                Record(identifier, self.ablation.name, case.row, case.to_dict(), measurements, source), self.folder
            )

    def _join(self, identifier: str, measurements: dict[str, Measurement], one: Measurement, number: int, wanted: int):
        key, there = (identifier, one.name), measurements.get(one.name)
        wanted = 1 if one.name in self.once else wanted
        if key not in self.anew:
            if number not in rounds.taken(there):  # else a run beside this one was faster
                measurements[one.name] = rounds.joined(there, one, number, wanted)
            return
        fresh = rounds.joined(self.anew[key], one, number, wanted)
        if rounds.complete(fresh) or not rounds.complete(there):
            measurements[one.name] = fresh
            del self.anew[key]
        else:
            self.anew[key] = fresh


def _clear_parts(folder: Path) -> None:
    """Remove what runs that were killed while they wrote left beside the records."""
    for part in folder.glob(".*.part"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - part.stat().st_mtime > ABANDONED:
                part.unlink()


def _one_at_a_time(
    out: Path, store: Store, step: Step, names: list[str], force: bool, take: Callable[[list[str]], list[Measurement]]
) -> list[Measurement]:
    """Time under the lock of the output folder. What another run measured meanwhile is not measured again."""
    lock = FileLock(out / TIMING_LOCK)
    number, wanted = step.round
    try:
        lock.acquire(timeout=0.5)
    except Timeout:
        store.console.print("    another run is timing in this output folder; waiting for it", highlight=False)
        lock.acquire()
    try:
        still = names if force else [name for name in names if number in store.left(step.entry, name, wanted)]
        return take(still) if still else []
    finally:
        lock.release()


def _result(measured: list[Measurement]) -> str:
    if not measured:
        return "another run measured it meanwhile"
    shown = []
    for one in measured:
        if one.missing:
            shown.append(f"{one.name} — {one.missing}")
        elif is_shown(one):
            shown.append(f"{one.title} {human(one)}")
    return ", ".join(dict.fromkeys(shown))
