"""What is measured: an ablation is a question with its rows, a case one fully resolved point of it.

An ablation's file lists rows as data; `resolve` turns them into cases under the settings of one run (device, clip,
quick mode). Nothing here imports torch at start-up, so that the list of ablations and every error about them come at
once.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from attention_zoo.registry import nearest
from harness.spec.reader import UsageError
from records import record

if TYPE_CHECKING:
    from backbones.config import Config

FOLDER = Path(__file__).parents[1] / "conf" / "ablation"
DTYPES = ("float32", "bfloat16", "float16")
ALLOCATORS = ("default", "keep")
PUBLISHED_ROWS = ("listed", "all")
CASE_AXES = ("batch_size", "device", "dtype", "kernel", "compile", "seed", "num_classes", "model", "allocator")
CLIP_AXES = ("frames", "stride", "size")
QUICK_FRAMES, QUICK_SIZE = 8, 64


@dataclass
class Clip:
    """The input of a case: `frames` frames, every `stride`-th of the video, `size` x `size` pixels.

    `path` is None for the built-in sample. `digest` identifies the pixels of a file that was given.
    """

    frames: int = 32
    stride: int = 2
    size: int = 224
    path: str | None = None
    digest: str | None = None


@dataclass
class Case:
    """One fully resolved point of an ablation; a value, changed only with `dataclasses.replace`.

    `allocator` "keep" has the C library of a CPU keep all that is freed, instead of mapping large tensors afresh.
    """

    row: str
    model: str
    config: dict[str, Any]
    num_classes: int = 400
    clip: Clip = field(default_factory=Clip)
    batch_size: int = 1
    device: str = "cpu"
    dtype: str = "float32"
    kernel: str = "auto"
    compile: bool = False
    seed: int = 0
    threads: int | None = None
    allocator: str = "default"

    def to_dict(self) -> dict[str, Any]:
        """What a record keeps and what the case's name is made of; a video is named without its folder."""
        raw = asdict(self)
        raw["clip"]["path"] = Path(self.clip.path).name if self.clip.path else None
        if self.allocator == "default":  # younger than the first records
            del raw["allocator"]
        return raw

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Case:
        return cls(**{**raw, "clip": Clip(**raw["clip"])})


def case_id(case: Case) -> str:
    return record.case_id(case.row, case.to_dict())


@dataclass
class Row:
    """One row of an ablation's file. `published` names the row of the paper's table that it stands for.

    `baseline` is the row that this one is set against where the ablation names none for all. `recipe` is how its model
    was trained for the published accuracy, and `training` what else differs when it is trained: fields of
    `harness.training.job.Job`, or dotted ones of its recipe, such as `recipe.mixing.smoothing`.
    """

    row: str
    published: str | None = None
    model: str | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    clip: dict[str, Any] = field(default_factory=dict)
    num_classes: int | None = None
    explanation: str | None = None
    fit: bool = False
    note: str | None = None
    recipe: str | None = None
    training: dict[str, Any] = field(default_factory=dict)
    baseline: str | None = None


@dataclass
class Ablation:
    """A question: rows that differ from each other in stated things only, and the axes that multiply them.

    An axis is a dotted path into the case, or `clip`, whose values are several of the clip's entries at once. `in_all`
    says whether `ablation=all`, the tables of costs, takes it. `baseline` names the row that others are set against, at
    the same point of the axes; or, as in `kernel=reference`, the value of an axis, which each row is set against.
    `accuracy` is the budget with which the rows are trained where the command line names neither budget nor metrics;
    `recipe` that of the published accuracies.
    """

    name: str
    question: str
    rows: list[Row]
    model: str | None = None
    table: str | None = None
    published_rows: str = "listed"
    vary: dict[str, list[Any]] = field(default_factory=dict)
    metrics: list[str] = field(default_factory=lambda: ["params", "macs", "latency", "throughput", "peak_memory"])
    figures: list[str] = field(default_factory=list)
    size_note: str | None = None
    in_all: bool = True
    baseline: str | None = None
    accuracy: str | None = None
    recipe: str | None = None


@dataclass
class Settings:
    """What one run sets for every case; None leaves what the row, the ablation or the model says."""

    frames: int | None = None
    stride: int | None = None
    size: int | None = None
    path: str | None = None
    digest: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    batch_size: int | None = None
    device: str | None = None
    dtype: str | None = None
    kernel: str | None = None
    compile: bool | None = None
    seed: int | None = None
    threads: int | None = None
    quick: bool = False


@dataclass
class Entry:
    """A case with its row; `comparable` is True, or why its counts may not stand beside the published ones."""

    case: Case
    row: Row
    comparable: bool | str
    baseline: str | None = None

    def manifest(self) -> dict[str, Any]:
        row = self.row
        return {
            "row": self.case.row,
            "case_id": case_id(self.case),
            "published": row.published,
            "explanation": row.explanation,
            "fit": row.fit,
            "note": row.note,
            "comparable": self.comparable,
            "baseline": self.baseline,
        }


def names() -> list[str]:
    """The shipped ablations, alphabetically."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def names_in_all() -> list[str]:
    """The ablations that `ablation=all` runs: those whose rows are models or settings, not ways to measure one."""
    return [name for name in names() if load(name).in_all]


def load(name: str) -> Ablation:
    """A shipped ablation by name. Raises: UsageError with the nearest name."""
    if name not in names():
        raise UsageError(f"unknown ablation {name!r}; {nearest(name, [*names(), 'all'])}")
    try:
        raw = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UsageError(f"ablation {name}: the file is not YAML: {error}") from error
    return from_dict(raw, name)


def from_dict(raw: Any, name: str) -> Ablation:
    """An ablation from the content of its file, every entry checked. Raises: UsageError naming ablation and row."""
    if not isinstance(raw, dict):
        raise UsageError(f"ablation {name}: expected entries such as question and rows, found {type(raw).__name__}")
    where = f"ablation {name}"
    raw = _checked(raw, Ablation, where)
    if raw.get("name", name) != name:
        raise UsageError(f"{where}: its entry name is {raw['name']!r}; it must be the file's name")
    rows = raw.get("rows")
    if not isinstance(rows, list) or not rows:
        raise UsageError(f"{where}: rows is {rows!r}; expected a list of at least one row")
    if not raw.get("question"):
        raise UsageError(f"{where}: states no question")
    parsed = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or not isinstance(row.get("row"), str):
            raise UsageError(f"{where}, row {number}: needs a name, `row: ...`")
        parsed.append(Row(**_checked(row, Row, f"{where}, row {row['row']!r}")))
    seen: set[str] = set()
    for row in parsed:
        if row.row in seen:
            raise UsageError(f"{where}: two rows are called {row.row!r}; give each its own name")
        seen.add(row.row)
        if row.model is None and raw.get("model") is None:
            raise UsageError(f"{where}, row {row.row!r}: names no model, and the ablation names none for all rows")
        unknown = sorted(set(row.clip) - set(CLIP_AXES))
        if unknown:
            hint = nearest(unknown[0], CLIP_AXES)
            raise UsageError(f"{where}, row {row.row!r}: unknown entry clip.{unknown[0]}; {hint}")
    for row in parsed:
        if row.baseline is not None and row.baseline not in seen:
            hint = nearest(row.baseline, seen)
            raise UsageError(f"{where}, row {row.row!r}: its baseline is no row here: {row.baseline!r}; {hint}")
    points = {_point(axis, value) for axis, values in (raw.get("vary") or {}).items() for value in _listed(values)}
    if raw.get("baseline") is not None and raw["baseline"] not in seen | points:
        raise UsageError(
            f"{where}: its baseline is no row of it: {raw['baseline']!r}; {nearest(raw['baseline'], seen | points)}"
        )
    if raw.get("published_rows", "listed") not in PUBLISHED_ROWS:
        raise UsageError(f"{where}: published_rows is {raw['published_rows']!r}; allowed: {', '.join(PUBLISHED_ROWS)}")
    for axis, values in (raw.get("vary") or {}).items():
        if not isinstance(values, list) or not values:
            raise UsageError(f"{where}: vary.{axis} is {values!r}; expected a list of values")
        for value in values if axis == "clip" else []:
            unknown = sorted(set(value) - set(CLIP_AXES)) if isinstance(value, dict) else [value]
            if unknown or not value:
                raise UsageError(f"{where}: vary.clip has {value!r}; expected entries of {', '.join(CLIP_AXES)}")
    return Ablation(**{**raw, "name": name, "rows": parsed})


_TYPES = {
    "name": str, "question": str, "rows": list, "model": str, "table": str, "published_rows": str, "vary": dict,
    "metrics": list, "figures": list, "size_note": str, "row": str, "published": str, "changes": dict, "clip": dict,
    "num_classes": int, "explanation": str, "fit": bool, "note": str, "in_all": bool, "baseline": str,
    "accuracy": str, "recipe": str, "training": dict,
}  # fmt: skip


def _checked(raw: dict[str, Any], kind: type, where: str) -> dict[str, Any]:
    """`raw` without empty entries; unknown entries and wrong types are errors."""
    known = [f.name for f in fields(kind)]
    for key, value in raw.items():
        if key not in known:
            raise UsageError(f"{where}: unknown entry {key!r}; {nearest(str(key), known)}")
        if value is not None and not isinstance(value, _TYPES[key]):
            raise UsageError(f"{where}: {key} is {value!r}; expected {_TYPES[key].__name__}")
    return {key: value for key, value in raw.items() if value is not None}


def resolve(ablation: Ablation, settings: Settings) -> list[Entry]:
    """All cases of an ablation under the settings of a run, in the order of its rows.

    An axis that the settings fix has one value. In quick mode an axis keeps its first and its last value, and one of
    clips has the small clips that are run, so that no row is named after another clip.

    Raises: UsageError naming the row, for a model, change or clip that cannot be.
    """
    axes = {}
    for axis, values in ablation.vary.items():
        fixed = (
            getattr(settings, axis.removeprefix("clip."), None) if axis in _case_axes() and axis != "model" else None
        )
        axes[axis] = [fixed] if fixed is not None else _left_open(values, settings) if axis == "clip" else values
        if settings.quick and len(axes[axis]) > 2:
            axes[axis] = [axes[axis][0], axes[axis][-1]]
        if settings.quick and fixed is None:
            small = [_quick(axis, value) for value in axes[axis]]
            axes[axis] = [value for number, value in enumerate(small) if value not in small[:number]]
    entries = []
    for row in ablation.rows:
        for point in itertools.product(*axes.values()):
            chosen = dict(zip(axes, point, strict=True))
            entries.append(_entry(ablation, row, chosen, settings))
    return entries


def _left_open(clips: list[dict[str, int]], settings: Settings) -> list[dict[str, int]]:
    """The values of the axis `clip` without what the settings fix, each once."""
    left = [{name: n for name, n in clip.items() if getattr(settings, name) is None} for clip in clips]
    return [clip for number, clip in enumerate(left) if clip not in left[:number]]


def _quick(axis: str, value: Any) -> Any:
    """A value of an axis as quick mode has it: clips are small, all else is as it is."""
    if axis == "clip":
        return {name: _quick(f"clip.{name}", n) for name, n in value.items()}
    if axis == "clip.frames" and isinstance(value, int):
        return max(min(value, 2), value * QUICK_FRAMES // 32)
    if axis == "clip.size" and isinstance(value, int):
        return max(32, value * QUICK_SIZE // 224 // 32 * 32)
    return value


def _case_axes() -> tuple[str, ...]:
    return (*CASE_AXES, "clip", *(f"clip.{name}" for name in CLIP_AXES))


def _entry(ablation: Ablation, row: Row, chosen: dict[str, Any], settings: Settings) -> Entry:
    name = row.row + _points(chosen)
    where = f"ablation {ablation.name}, row {name!r}"
    model = chosen.get("model") or row.model or ablation.model
    changes = row.changes | {axis: value for axis, value in chosen.items() if axis not in _case_axes()} | settings.model
    try:
        clip = _clip(row, chosen, settings, _named_config(model).clip)
        config = _named_config(model).changed({**changes, "clip": [clip.frames, clip.size, clip.size]})
    except (KeyError, ValueError, TypeError) as error:
        raise UsageError(f"{where}: {_message(error)}") from error
    case = Case(row=name, model=model, config=config.to_dict(), num_classes=row.num_classes or 400, clip=clip)
    for axis in CASE_AXES:
        value = (
            chosen.get(axis) if getattr(settings, axis, None) is None or axis == "model" else getattr(settings, axis)
        )
        if value is not None and axis != "model":
            case = replace(case, **{axis: value})
    _check(case, where)
    threads = None if case.device.startswith("cuda") else settings.threads
    return Entry(
        replace(case, threads=threads),
        row,
        _comparable(row, chosen, settings),
        _baseline(ablation, row, chosen, settings),
    )


def _baseline(ablation: Ablation, row: Row, chosen: dict[str, Any], settings: Settings) -> str | None:
    """The name of the case that this one is set against."""
    named = ablation.baseline or row.baseline
    if named is None or any(other.row == named for other in ablation.rows):
        return None if named is None else named + _points(chosen)
    points = ((axis, value) for axis, values in ablation.vary.items() for value in values)
    axis, fixed = next(point for point in points if _point(*point) == ablation.baseline)
    return row.row + _points({**chosen, axis: _quick(axis, fixed) if settings.quick else fixed})


def _check(case: Case, where: str) -> None:
    """Names that an axis may hold, which no configuration checks."""
    from attention_zoo import kernels

    allowed = {"dtype": DTYPES, "kernel": (kernels.AUTO, *kernels.names()), "device": ("cpu", "cuda")}
    allowed |= {"allocator": ALLOCATORS}
    for axis, names in allowed.items():
        value = getattr(case, axis)
        if str(value).partition(":")[0] not in names:
            raise UsageError(f"{where}: unknown {axis} {value!r}; {nearest(str(value), names)}")


def _clip(row: Row, chosen: dict[str, Any], settings: Settings, nominal) -> Clip:
    """The clip of a case: the model's own, then the row's, the axis', the run's. Images stay single frames."""
    clip = Clip(frames=nominal.t, size=nominal.h)
    clip = replace(clip, **row.clip)
    if settings.quick:
        clip = replace(clip, **_quick("clip", {"frames": clip.frames, "size": clip.size}))
    clip = replace(clip, **{n: chosen[f"clip.{n}"] for n in CLIP_AXES if f"clip.{n}" in chosen})
    clip = replace(clip, **chosen.get("clip", {}))
    given = {n: getattr(settings, n) for n in CLIP_AXES if getattr(settings, n) is not None}
    if nominal.t == 1:
        given.pop("frames", None)
    clip = replace(clip, path=settings.path, digest=settings.digest, **given)
    for n in CLIP_AXES:
        if isinstance(getattr(clip, n), bool) or not isinstance(getattr(clip, n), int) or getattr(clip, n) < 1:
            raise ValueError(f"clip.{n} is {getattr(clip, n)!r}; allowed: a whole number from 1")
    return clip


def _comparable(row: Row, chosen: dict[str, Any], settings: Settings) -> bool | str:
    """True, or why the counts of this case may not stand beside the published ones."""
    if settings.quick:
        return "quick mode: a small clip"
    given = [f"clip.{n}={getattr(settings, n)}" for n in CLIP_AXES if getattr(settings, n) is not None]
    given += [f"model.{path}={_text(value)}" for path, value in settings.model.items()]
    axes = [
        _point(axis, value)
        for axis, value in chosen.items()
        if axis.startswith("clip") or axis not in CASE_AXES
        if value != {}
    ]
    if given:
        return f"{', '.join(given)} set on the command line"
    if axes:
        return f"{', '.join(axes)} is an axis of this ablation, not of the published row"
    return True


@lru_cache
def _named_config(model: str) -> Config:
    import backbones

    return backbones.config(model)


def _listed(values: Any) -> list[Any]:
    return values if isinstance(values, list) else []


def _points(chosen: dict[str, Any]) -> str:
    """A point of all axes, as it stands in the name of a case."""
    return "".join(f" · {_point(axis, value)}" for axis, value in chosen.items() if value != {})


def _point(axis: str, value: Any) -> str:
    """One value of an axis, as it stands in the name of a case."""
    if axis == "clip" and isinstance(value, dict):
        return ", ".join(f"clip.{name}={n}" for name, n in value.items())
    return f"{axis}={_text(value)}"


def _text(value: Any) -> str:
    return str(value).replace(" ", "").replace("'", "")


def _message(error: Exception) -> str:
    """The text of an error; a KeyError prints its key quoted, which is for programs."""
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
