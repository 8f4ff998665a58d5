"""What a run leaves behind: one JSON file per measured case, and one manifest per ablation that says which cases
make its table.

The harness writes these files and the reports read them; nothing else passes between the two. A record is written
in one step (a temporary file in the same folder, then a rename), so a run killed at any point leaves whole records
or none, and two runs at once do not harm each other.
"""

import hashlib
import json
import math
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import median
from typing import Any, BinaryIO

from records import schema1

SCHEMA = 2
MANIFEST = "ablation.json"
BETTER = ("lower", "higher", "none")
KINDS = {
    "counted": "a number that is the same each time: it has neither rounds nor an interval",
    "timed": "a duration or a rate of a program that runs; rounds differ",
    "sized": "memory, or what fits into it; rounds differ a little",
    "shared": "a part of a whole that was taken apart, read beside the other parts",
    "probed": "answers of a tiny model that was trained on one small question: one visit for each seed",
    "scored": "answers of a trained model held against the right ones: one visit for each seed",
}


class RecordError(ValueError):
    """A record or manifest that cannot be used; the message names the file."""


@dataclass(frozen=True)
class Quantity:
    """What can be measured, and all that reports, comparison and resume need to know to show and judge it.

    `kind` is one of `KINDS`, `title` what a reader calls it, `better` where a good value lies: "none" marks a number
    that only explains others, which stands in records and CSV but has no column in a report.
    """

    name: str
    kind: str
    title: str
    unit: str
    better: str = "none"

    def __post_init__(self):
        for key, value, allowed in (("kind", self.kind, KINDS), ("better", self.better, BETTER)):
            if value not in allowed:
                raise ValueError(f"measurement {self.name}: {key} is {value!r}; allowed: {', '.join(allowed)}")

    def of(self, samples: Iterable[int | float], details: dict[str, Any] | None = None) -> "Measurement":
        """The measurement that one visit gives."""
        return Measurement(**vars(self), visits=(Visit(tuple(samples)),), details=details or {})

    def absent(self, reason: str, *, retry: bool = False, details: dict[str, Any] | None = None) -> "Measurement":
        """The measurement that is missing for a reason; `retry` says whether another try may mend it."""
        return Measurement(**vars(self), missing=reason, retry=retry, details=details or {})


@dataclass(frozen=True)
class Visit:
    """The samples that one process took of one case, in a round of a run; `details` are what only this visit has.

    Only visits of one run and round were made in turn with those of other cases. A visit of a score is one seed, and
    its details name it.
    """

    samples: tuple[int | float, ...]
    round: int = 1
    run: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "samples", tuple(self.samples))


@dataclass(frozen=True)
class Measurement(Quantity):
    """Visits with samples of one quantity, or the reason there are none.

    `missing` is that reason. `retry` says whether the next run should try again (a crash, a time limit) or take the
    absence as the result (out of memory, unsupported on this machine). Exact integers stay integers; `details` holds
    what explains the samples and all visits share. `failed_rounds` says why a wanted round has no visit.
    """

    visits: tuple[Visit, ...] = ()
    missing: str | None = None
    retry: bool = False
    rounds_wanted: int = 1
    failed_rounds: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        super().__post_init__()
        visits = tuple(visit if isinstance(visit, Visit) else Visit(**visit) for visit in self.visits)
        object.__setattr__(self, "visits", visits)
        for sample in self.samples:
            if isinstance(sample, bool) or not isinstance(sample, int | float) or not math.isfinite(sample):
                raise ValueError(
                    f"measurement {self.name}: sample {sample!r} is not a finite number; use missing='the reason'"
                )
        if bool(self.samples) == (self.missing is not None):
            raise ValueError(
                f"measurement {self.name}: give either samples or the reason they are missing, not both or neither"
            )
        if self.missing is not None and not self.missing.strip():
            raise ValueError(f"measurement {self.name}: the reason that it is missing is empty")

    @property
    def samples(self) -> tuple[int | float, ...]:
        """All samples, visit by visit."""
        return tuple(sample for visit in self.visits for sample in visit.samples)

    @property
    def value(self) -> int | float:
        """The only sample as it was measured, or the median of several."""
        return self.samples[0] if len(self.samples) == 1 else self.median

    @property
    def median(self) -> int | float:
        if not self.samples:
            raise ValueError(f"measurement {self.name} has no samples: {self.missing}")
        return median(self.samples)

    @property
    def ran(self) -> bool:
        """Whether the number depends on the machine and its day: the model, or a part of it, ran to be measured."""
        return self.kind in ("timed", "sized", "shared")

    def of_visits(self, key: str) -> list[Any]:
        """A detail as each visit says it, or all alike."""
        return [visit.details.get(key, self.details.get(key)) for visit in self.visits]

    def said(self, key: str) -> list[Any]:
        """The values that a detail takes, each once: one where all visits agree, none where none says."""
        values = self.of_visits(key) or [self.details.get(key)]
        return [value for place, value in enumerate(values) if value is not None and value not in values[:place]]


@dataclass(frozen=True)
class Record:
    """One measured case: what was asked (`case`), what came out, and where and with what (`provenance`)."""

    case_id: str
    ablation: str
    row: str
    case: dict[str, Any]
    measurements: dict[str, Measurement]
    provenance: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    def get(self, name: str) -> Measurement | None:
        """The measurement called `name`, or None where it was not asked for."""
        return self.measurements.get(name)


def slug(text: str) -> str:
    """Letters and digits of `text` joined by single hyphens, fit for a file name on any system."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60].rstrip("-") or "row"


def canonical(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces; equal values give equal texts."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def case_id(row: str, case: dict[str, Any]) -> str:
    """The name of a case's record: readable from its row, unique by the digest of everything that defines it."""
    return f"{slug(row)}-{hashlib.sha256(canonical(case).encode()).hexdigest()[:12]}"


def write_record(record: Record, folder: str | Path) -> Path:
    """Write `<folder>/<case_id>.json` in one step and return its path."""
    return write_json(asdict(record), Path(folder) / f"{record.case_id}.json")


def write_manifest(manifest: dict[str, Any], folder: str | Path) -> Path:
    """Write `<folder>/ablation.json` in one step and return its path."""
    return write_json({"schema": SCHEMA, **manifest}, Path(folder) / MANIFEST)


def write_json(value: Any, path: Path) -> Path:
    """Write JSON to `path` so that a reader sees the old file or the whole new one, never a part."""
    return write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", path)


def write_text(text: str, path: Path) -> Path:
    return write_bytes(text.encode(), path)


def write_bytes(content: bytes, path: Path) -> Path:
    with written_whole(path) as stream:
        stream.write(content)
    return path


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Atomic write: a temporary file in the same folder, flushed to disk, then renamed over `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")  # with the rights that the umask gives
    try:
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_record(path: str | Path) -> Record:
    """Read one record.

    Raises: RecordError naming the file, when it is not there, not JSON, not a record, or of a newer schema.
    """
    path = Path(path)
    raw = _read_object(path, "record")
    try:
        if raw["schema"] == 1:
            raw = schema1.upgraded(raw)
        measurements = {
            name: Measurement(**_checked(Measurement, measurement, f"measurement {name}"))
            for name, measurement in raw.pop("measurements").items()
        }
        _agree(measurements.get("macs"))
        return Record(measurements=measurements, **_checked(Record, raw, "record"))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise RecordError(f"{path} is not a whole record: {error}; delete it and run the case again") from error


def read_records(folder: str | Path) -> list[Record]:
    """All records of a folder in the order of their file names. Raises: RecordError at the first unusable one."""
    return [read_record(path) for path in record_paths(folder)]


def record_paths(folder: str | Path) -> list[Path]:
    """The record files of a folder; the manifest and temporary files are not among them."""
    return sorted(p for p in Path(folder).glob("*.json") if p.name != MANIFEST and not p.name.startswith("."))


def ablation_folders(outputs: str | Path) -> list[Path]:
    """The folders of ablations in a folder of such; below the one of an ablation lie those of its other settings."""
    outputs = Path(outputs)
    plain = [path.parent for path in outputs.glob(f"*/{MANIFEST}")]
    return sorted(
        [*plain, *(path.parent for path in outputs.glob(f"*/*/{MANIFEST}") if outputs_of(path.parent) == outputs)]
    )


def outputs_of(folder: str | Path) -> Path:
    """The folder in which an ablation's folder lies, or that of which it holds another setting."""
    folder = Path(folder)
    try:
        return folder.parent.parent if read_manifest(folder).get("setting") else folder.parent
    except RecordError:  # told by whoever reads the table
        return folder.parent


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of an ablation's folder. Raises: RecordError naming the file and the command that writes one."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise RecordError(f"no {MANIFEST} in {folder}; `python -m harness.run ablation={Path(folder).name}` writes one")
    manifest = _read_object(path, "manifest")
    lacking = [key for key in ("name", "question", "rows") if key not in manifest]
    if lacking:
        raise RecordError(f"{path} lacks {', '.join(lacking)}; delete it and run the ablation again")
    for row in manifest["rows"]:
        if not isinstance(row, dict) or "row" not in row:
            raise RecordError(f"{path} has a row without a name: {row!r}; delete it and run the ablation again")
    return manifest


def _read_object(path: Path, kind: str) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecordError(f"{path} does not exist") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RecordError(f"{path} cannot be read as a {kind}: {error}; delete it and run the case again") from error
    if not isinstance(raw, dict):
        raise RecordError(f"{path} is not a {kind}: expected a JSON object, found {type(raw).__name__}")
    schema = raw.get("schema")
    if not isinstance(schema, int) or schema < 1:
        raise RecordError(f"{path} is not a {kind}: its schema number is {schema!r}; expected {SCHEMA}")
    if schema > SCHEMA:
        raise RecordError(
            f"{path} has schema {schema}, this version reads up to {SCHEMA}; update the project to read it"
        )
    return raw


def _agree(macs: Measurement | None) -> None:
    """Raises: ValueError where a count is not what its own closed form says, of which one was changed afterwards."""
    closed = macs.details.get("closed_form") if macs is not None and macs.samples else None
    if closed is not None and closed != macs.value:
        raise ValueError(f"macs are {macs.value:,}, their closed form says {closed:,}")


def _checked(kind: type, raw: dict[str, Any], place: str) -> dict[str, Any]:
    unknown = sorted(set(raw) - {f.name for f in fields(kind)})
    if unknown:
        raise ValueError(f"{place} has unknown entries {', '.join(unknown)}")
    return raw
