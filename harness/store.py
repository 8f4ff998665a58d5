"""The records of one folder as one run sees and changes them.

Records are read again before each change and written under a lock, so that a run beside this one loses nothing. What is
finished is replaced by finished measurements only.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console

from harness.cost import metrics
from harness.spec.case import Entry, case_id, program
from records import provenance, visits
from records.record import Measurement, Record, RecordError, read_record, record_paths, write_record

RECORD_LOCK = ".records.lock"
OF_MODEL = ("params", "macs")  # counts that tell one model from another
ABANDONED = 3600  # seconds after which a part of a file is no other run's any more


class Store:
    """The records in `folder`; of a case that has none there, the one in the folder `above` is gone on from.

    `source` is the provenance of the run. `anew` holds the rounds of measurements that are begun again although a
    finished one is there: by force, or because that one is of another machine. They enter the record once they are
    finished too.
    """

    def __init__(
        self, ablation: str, folder: Path, console: Console, source: dict[str, Any], above: Path | None = None
    ):
        self.ablation, self.folder, self.above, self.console, self.source = ablation, folder, above, console, source
        self.anew: dict[tuple[str, str], Measurement | None] = {}
        every = [metrics.get(name) for name in metrics.names()]
        self.once = {measurement for metric in every if metric.once for measurement in metric.measures}

    def read(self, entry: Entry, say: bool = False) -> Record | None:
        """The record of a case, if there is a whole one; a damaged one is told of and measured again."""
        for folder in filter(None, (self.folder, self.above)):
            path = folder / f"{case_id(entry.case)}.json"
            if not path.exists():
                continue
            try:
                return read_record(path)
            except RecordError as error:
                if say:
                    text = f"{error}\n    the case is measured again"
                    self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        return None

    def share(self, entry: Entry, names: list[str], folders: Iterable[Path]) -> None:
        """Begin the record of a case with what the same run measured of the same program for other tables."""
        if self.read(entry) is not None:
            return
        required = {measurement for name in names for measurement in metrics.get(name).measures}
        shared: dict[str, Measurement] = {}
        source: dict[str, Any] = {}
        for path in (path for folder in folders for path in record_paths(folder)):
            with contextlib.suppress(RecordError):  # its own run tells of it
                theirs = read_record(path)
                same = program(theirs.case) == program(entry.case.to_dict())
                for name in required - shared.keys() if same else ():
                    measured = theirs.get(name)
                    if measured and not measured.missing and {v.run for v in measured.visits} == {self.source["run"]}:
                        shared[name] = replace(measured, details={"step": path.parent.name, **measured.details})
                        source = theirs.provenance
        if shared:
            case = entry.case
            write_record(Record(case_id(case), self.ablation, case.row, case.to_dict(), shared, source), self.folder)

    def counted(self, entry: Entry, name: str) -> bool:
        """Whether the record of a case settles a counted metric.

        A count of the model that other code took is taken again: it is cheap, and tells whether the rest of the record
        is of the model that this code makes.
        """
        record = self.read(entry)
        measurements = [record.get(measurement) if record else None for measurement in metrics.get(name).measures]
        if any(m is None or (m.missing and m.retry) for m in measurements):
            return False
        ours = (self.source["commit"], self.source["dirty"])
        of_model = [m for m in measurements if m.name in OF_MODEL]
        return all((m.details.get("commit"), m.details.get("dirty")) == ours for m in of_model)

    def news(self, entry: Entry, measured: list[Measurement]) -> list[Measurement]:
        """What the record of a case does not hold already, of some counts."""
        record = self.read(entry)
        old = {m.name: record.get(m.name) if record else None for m in measured}
        return [
            m
            for m in measured
            if old[m.name] is None or not old[m.name].samples or (m.samples and m.samples != old[m.name].samples)
        ]

    def left(self, entry: Entry, name: str, rounds: int) -> set[int]:
        """The rounds of a timed metric that the record lacks; all of them where it holds nothing to go on from."""
        machine, record = provenance.machine(entry.case.device), self.read(entry)
        lacking: set[int] = set()
        for measurement in metrics.get(name).measures:
            key = (case_id(entry.case), measurement)
            earlier = self.anew[key] if key in self.anew else record.get(measurement) if record else None
            if earlier is not None and machine not in earlier.said("machine"):
                lacking |= self.repeat(entry, name, rounds)
            elif earlier is not None and earlier.said(visits.OUTDATED):
                lacking |= self.repeat(entry, name, rounds)
            elif earlier is not None and earlier.samples and not visits.continues(earlier, machine, self.source):
                lacking |= self.repeat(entry, name, rounds) if visits.left(earlier, rounds) else set()
            else:
                lacking |= visits.left(earlier, rounds)
        return lacking

    def repeat(self, entry: Entry, name: str, rounds: int) -> set[int]:
        """Begin a timed metric again."""
        self.anew |= {(case_id(entry.case), measurement): None for measurement in metrics.get(name).measures}
        return set(range(1, rounds + 1))

    def merge(
        self,
        entry: Entry,
        measured: list[Measurement],
        *,
        round: tuple[int, int] | None = None,
        clip: dict[str, Any] | None = None,
    ) -> None:
        """Add measurements to the record of a case as it is now.

        `round` is the number of a round and how many are wanted, None for what has none; `clip` says what video was
        looked at.
        """
        identifier, case = case_id(entry.case), entry.case
        source = {**self.source, **{name: getattr(case, name) for name in ("device", "dtype", "kernel", "seed")}}
        source |= {"threads": case.threads, "clip": clip}
        with FileLock(self.folder / RECORD_LOCK):
            old = self.read(entry)
            if clip is None:  # nothing of this run looked at it
                source["clip"] = old.provenance.get("clip") if old else None
            measurements = dict(old.measurements) if old else {}
            if why := _changed(measurements, measured):
                for name, earlier in measurements.items():
                    if earlier.samples and earlier.kind != "counted":
                        measurements[name] = visits.outdated(earlier, why)
            for measurement in measured:
                stamped = visits.stamped(measurement, source, provenance.now())
                if round is None:
                    measurements[stamped.name] = stamped
                else:
                    self._join(identifier, measurements, stamped, *round)
            write_record(Record(identifier, self.ablation, case.row, case.to_dict(), measurements, source), self.folder)

    def _join(
        self, identifier: str, measurements: dict[str, Measurement], new: Measurement, number: int, rounds: int
    ) -> None:
        key, old = (identifier, new.name), measurements.get(new.name)
        rounds = 1 if new.name in self.once else rounds
        if key not in self.anew:
            if number not in visits.taken(old):  # else a run beside this one was faster
                measurements[new.name] = visits.joined(old, new, number, rounds)
            return
        fresh = visits.joined(self.anew[key], new, number, rounds)
        if visits.complete(fresh) or not visits.complete(old):
            measurements[new.name] = fresh
            del self.anew[key]
        else:
            self.anew[key] = fresh


def _changed(old: dict[str, Measurement], new: list[Measurement]) -> str:
    """How counts of a model differ from those that its record holds, in words; nothing where they do not."""
    changes = [
        f"{m.title} were {old[m.name].value:,} and are {m.value:,}"
        for m in new
        if m.name in OF_MODEL and m.samples and m.name in old and old[m.name].samples
        if m.value != old[m.name].value
    ]
    return f"of an earlier model, whose {' and '.join(changes)}" if changes else ""


def clear_parts(folder: Path) -> None:
    """Remove what runs that were killed while they wrote left beside the records."""
    for part in folder.glob(".*.part"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - part.stat().st_mtime > ABANDONED:
                part.unlink()
