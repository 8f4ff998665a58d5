"""One run of one ablation: measure what the records lack, write each record as soon as it is known.

A run may be killed at any point: whole records stay, and the next run goes on from them. Two runs at once merge into
the same records under a lock and never time at the same moment.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from rich.console import Console

from harness import metrics, provenance, video
from harness.case import Ablation, Clip, Entry, case_id
from harness.measure import effort_for, measure
from harness.progress import Progress, human
from reports.record import Measurement, Record, RecordError, read_record, write_manifest, write_record

TIMING_LOCK = ".timing.lock"
RECORD_LOCK = ".records.lock"


@dataclass(frozen=True)
class Outcome:
    """What a run left: its folder and the failures that another try may mend."""

    folder: Path
    failures: list[str]


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
    time_limit: float = 900,
    console: Console | None = None,
    arguments: list[str] | None = None,
) -> Outcome:
    """Measure the metrics `names` of all `entries`; records and manifest go to `folder_of(out, ...)`.

    Counted metrics of all cases come first: they take seconds, and an interrupted run then has a full table of costs.
    """
    console = console or Console(quiet=True)
    folder = folder_of(out, ablation.name, quick)
    folder.mkdir(parents=True, exist_ok=True)
    _write_manifest(ablation, entries, names, folder, quick, arguments)
    shared = provenance.collect()
    kinds = {
        "count": [name for name in names if not metrics.get(name).timed],
        "time": [name for name in names if metrics.get(name).timed],
    }
    work = []
    for kind, of_kind in kinds.items():
        for entry in entries:
            lacking = of_kind if force else _lacking(_read(folder, entry, console), of_kind, entry)
            if lacking:
                work.append((kind, entry, lacking))
    steps = {kind: sum(1 for item in work if item[0] == kind) for kind in kinds}
    console.print(_opening(ablation, entries, work), highlight=False)
    progress = Progress(console, steps, {"count": 2.0, "time": 6.0 if quick else 25.0})
    failures = []
    for kind, entry, lacking in work:
        case = entry.case
        clip, facts = clips.get(clip_key(case.clip), (None, None))
        with progress.step(kind, f"{case.row} · {', '.join(lacking)}") as say:

            def take(names: list[str], case=case, clip=clip) -> list[Measurement]:
                return measure(case, names, clip, effort=effort_for(case.device, quick), time_limit=time_limit)

            if kind == "time":
                measured = _one_at_a_time(out, folder, entry, lacking, force, take, console)
            else:
                measured = take(lacking)
            _merge(folder, ablation, entry, measured, {**shared, "clip": facts, "time": provenance.now()})
            say(_result(measured))
        failures += [f"{case.row} · {m.name}: {m.missing}" for m in measured if m.missing and m.retry]
    return Outcome(folder, failures)


def _opening(ablation: Ablation, entries: list[Entry], work: list) -> str:
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


def _lacking(record: Record | None, names: list[str], entry: Entry) -> list[str]:
    """The metrics that a record does not settle: absent, worth another try, or timed on another machine or torch."""
    if record is None:
        return names
    machine = provenance.machine(entry.case.device)

    def settled(name: str) -> bool:
        metric = metrics.get(name)
        there = [record.get(measurement) for measurement in metric.measures]
        if any(m is None or (m.missing and m.retry) for m in there):
            return False
        return not metric.timed or all(m.details.get("machine") == machine for m in there)

    return [name for name in names if not settled(name)]


def _one_at_a_time(
    out: Path,
    folder: Path,
    entry: Entry,
    names: list[str],
    force: bool,
    take: Callable[[list[str]], list[Measurement]],
    console: Console,
) -> list[Measurement]:
    """Time under the lock of the output folder. What another run measured meanwhile is not measured again."""
    lock = FileLock(out / TIMING_LOCK)
    try:
        lock.acquire(timeout=0.5)
        waited = False
    except Timeout:
        console.print("    another run is timing in this output folder; waiting for it", highlight=False)
        lock.acquire()
        waited = True
    try:
        record = _read(folder, entry) if waited and not force else None
        still = _lacking(record, names, entry)
        there = (
            [record.measurements[m] for name in names if name not in still for m in metrics.get(name).measures]
            if record
            else []
        )
        return there + (take(still) if still else [])
    finally:
        lock.release()


def _merge(folder: Path, ablation: Ablation, entry: Entry, measured: list[Measurement], source: dict[str, Any]) -> None:
    """Add measurements to the record of a case as it is now, so that a run beside this one loses nothing."""
    identifier = case_id(entry.case)
    case = entry.case
    source |= {name: getattr(case, name) for name in ("device", "dtype", "kernel", "seed", "threads")}
    stamp = {"commit": source["commit"], "dirty": source["dirty"], "measured": source.pop("time")}
    with FileLock(folder / RECORD_LOCK):
        old = _read(folder, entry)
        if source["clip"] is None:  # nothing of this run looked at the clip
            source["clip"] = old.provenance.get("clip") if old else None
        measurements = dict(old.measurements) if old else {}
        for one in measured:
            measurements[one.name] = Measurement(**{**vars(one), "details": {**stamp, **one.details}})
        write_record(Record(identifier, ablation.name, case.row, case.to_dict(), measurements, source), folder)


def _result(measured: list[Measurement]) -> str:
    shown = []
    for one in measured:
        if one.missing:
            shown.append(f"{one.name} — {one.missing}")
        elif one.name in ("params", "macs", "latency", "peak_memory", "throughput"):
            shown.append(f"{one.name.replace('_', ' ')} {human(one)}")
    return ", ".join(dict.fromkeys(shown))
