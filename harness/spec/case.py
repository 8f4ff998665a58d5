"""What is measured: an ablation is a question with its rows, a case one fully resolved point of it.

An ablation's file lists rows as data; `resolve` turns them into cases under the settings of one run (device, clip,
quick mode). Nothing here imports torch, so that the list of ablations and every error about them come at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator

import backbones
from attention_zoo import declared
from attention_zoo.registry import nearest
from backbones import Config
from backbones.files import CheckpointError, check_file
from harness.spec import names as terms
from harness.spec import reader
from harness.spec.reader import STRICT, Count, Flag, Meaning, UsageError, Whole, text_of, typed
from records import record

FOLDER = Path(__file__).parents[1] / "conf" / "ablation"
SUFFIXES = (".yaml", ".yml")
EVERY_SCHEME = "every_scheme"
ALL = "all"
Allocator = Literal["default", "keep"]
Forms = Literal["own", "pytorch"]
ClipAxis = Literal["frames", "stride", "size"]
CLIP_AXES = get_args(ClipAxis)
ClipChange = dict[ClipAxis, Count]
AXES: dict[str, Any] = {
    "batch_size": Count, "device": terms.Device, "dtype": terms.Dtype, "kernel": terms.Kernel, "compile": Flag,
    "graph": Flag, "mixed": Flag, "seed": Whole, "num_classes": Count, "model": str, "clip": ClipChange,
    "allocator": Allocator, "forms": Forms, "trainable": str, **{f"clip.{n}": Count for n in CLIP_AXES},
}  # fmt: skip
"""The axes of a case with the kind of their values; any other axis is a dotted path into the row's model."""
CASE_AXES = tuple(axis for axis in AXES if not axis.startswith("clip"))
QUICK_FRAMES, QUICK_SIZE = 8, 64


@dataclass
class Clip:
    """The input of a case: `frames` frames, every `stride`-th of the video, `size` x `size` pixels."""

    frames: int = 32
    stride: int = 2
    size: int = 224
    path: str | None = None  # None for the built-in sample
    digest: str | None = None  # identifies the pixels of a file that was given


@dataclass
class Case:
    """One fully resolved point of an ablation; a value, changed only with `dataclasses.replace`."""

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
    allocator: str = "default"  # "keep": a CPU's C library keeps all that is freed, no large tensor is mapped afresh
    forms: str = "own"  # "pytorch": without this project's forms of eager PyTorch for a CPU (`attention_zoo.cpu`)
    trainable: str = "all"  # the part of the model that learns in a step of training, see `backbones.learning`
    graph: bool = False  # a forward pass is replayed as a CUDA graph, without the host that launches it
    mixed: bool = False  # train as training does: weights in float32, autocast to `dtype`; else all in that format

    def to_dict(self) -> dict[str, Any]:
        """What a record keeps and what the case's name is made of; a video is named without its folder."""
        raw = asdict(self)
        raw["clip"]["path"] = Path(self.clip.path).name if self.clip.path else None
        # These are younger than the first records, whose names stay.
        younger = {"allocator": "default", "forms": "own", "trainable": "all", "graph": False, "mixed": False}
        return {name: value for name, value in raw.items() if younger.get(name, ...) != value}

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Case:
        return cls(**{**raw, "clip": Clip(**raw["clip"])})


def case_id(case: Case) -> str:
    return record.case_id(case.row, case.to_dict())


def program(case: dict[str, Any]) -> str:
    """Equal for cases, as a record holds them, that run the same: they differ in what they are called alone."""
    return record.canonical({**case, "row": "", "model": ""})


def axes(vary: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Axes with their values, each of its kind. Raises: UsageError."""
    for axis, values in vary.items():
        if not values or values == [{}]:
            raise UsageError(f"vary.{axis} has no values")
        if twice := [value for number, value in enumerate(values) if value in values[:number]]:
            raise UsageError(f"axis {axis} has {_text(twice[0])} twice; give each value once")
        if axis in AXES:
            typed(list[AXES[axis]], values, f"vary.{axis}")
    return vary


def _rows(rows: Any) -> Any:
    """`rows: every_scheme` is short for these two; a list may hold the first among others."""
    if rows == EVERY_SCHEME:
        return [{"row": EVERY_SCHEME}, {"row": "local + global", "model": "dualformer_tiny"}]
    return rows


Vary = Annotated[dict[str, list[Any]], AfterValidator(axes)]


@dataclass
class Row:
    """One row of an ablation's file.

    A row called `every_scheme` stands for one of each registered attention scheme that has no row of its own: the model
    `pyramid_tiny_<scheme>`, changed as that row says.
    """

    __pydantic_config__ = STRICT

    row: str
    published: str | None = None  # the row of the paper's table that it stands for
    model: str | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    clip: ClipChange = field(default_factory=dict)
    num_classes: Count | None = None
    trainable: str | None = None  # the part of its model that learns, where no axis says it
    explanation: str | None = None
    fit: Flag = False
    note: str | None = None
    recipe: terms.Recipe | None = None  # how its model was trained for the published accuracy
    # What else differs when it is trained: fields of `harness.training.job.Job`, or dotted ones of its recipe, such as
    # `recipe.mixing.smoothing`. Of several data sets (`data: [a, b]`), `set` names the one whose accuracy is the row's.
    training: dict[str, Any] = field(default_factory=dict)
    baseline: str | None = None  # the row that this one is set against where the ablation names none for all
    cells: dict[str, dict[str, Any]] = field(default_factory=dict)  # how further printed columns come about
    # Values of dotted paths of this row's model alone, such as `attention.neighborhood.window`, each of which is a
    # case; an axis of the ablation would ask them of every row.
    dial: Vary = field(default_factory=dict)


@dataclass
class Ablation:
    """A question: rows that differ from each other in stated things only, and the axes that multiply them.

    An axis is a dotted path into the case, or `clip`, whose values are several of the clip's entries at once.
    `baseline` names the row that others are set against, at the same point of the axes; or, as in `kernel=reference`,
    the value of an axis, which each row is set against. `further` are published tables on the same question that print
    nothing which could be counted or measured here: a report shows them as they are.
    """

    __pydantic_config__ = STRICT

    name: str
    question: str
    rows: Annotated[list[Row], BeforeValidator(_rows), Meaning("a list of rows, or every_scheme")]
    model: str | None = None
    table: str | None = None
    further: list[str] = field(default_factory=list)
    published_rows: Literal["listed", "all"] = "listed"
    vary: Vary = field(default_factory=dict)
    metrics: list[terms.Metric] = field(
        default_factory=lambda: ["params", "macs", "latency", "throughput", "peak_memory"]
    )
    figures: list[terms.Figure] = field(default_factory=list)
    size_note: str | None = None
    quick_times: Count = 1  # the usual time of quick mode that this one takes
    in_all: Flag = True  # whether `ablation=all`, the tables of costs, takes it
    baseline: str | None = None
    accuracy: terms.Budget | None = None  # of the rows' training, where a command names neither budget nor metrics
    recipe: terms.Recipe | None = None  # of the published accuracies
    # What a command adds; no entries of a file.
    chosen: list[str] | None = field(default=None, init=False)  # the rows to measure; None: all
    added: list[str] = field(default_factory=list, init=False)  # axes of the command, as its words
    table_file: Path | None = field(default=None, init=False, compare=False)  # of a table that is not one of ours

    def varied(self, axes: dict[str, list[Any]]) -> Ablation:
        """With more axes, or other values of its own. A baseline that is no value any more is none."""
        vary = self.vary | axes
        points = {_point(axis, value) for axis, values in vary.items() for value in values}
        gone = self.baseline is not None and self.baseline not in {row.row for row in self.rows} | points
        changed = replace(self, vary=vary, baseline=None if gone else self.baseline)
        changed.chosen, changed.table_file = self.chosen, self.table_file
        changed.added = [f"{axis}=[{','.join(map(_text, values))}]" for axis, values in axes.items()]
        return changed


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
    graph: bool | None = None
    mixed: bool | None = None
    allocator: Allocator | None = None
    forms: Forms | None = None
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
            **({"cells": row.cells} if row.cells else {}),
            **({"dial": row.row} if row.dial else {}),
        }


def names() -> list[str]:
    """The shipped ablations, alphabetically."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def questions() -> dict[str, str]:
    """What each shipped ablation asks."""
    return {name: reader.read(FOLDER / f"{name}.yaml")["question"] for name in names()}


def names_in_all() -> list[str]:
    """The ablations that `ablation=all` runs: those whose rows are models or settings, not ways to measure one."""
    return [name for name in names() if reader.read(FOLDER / f"{name}.yaml").get("in_all", True)]


def _name(name: str) -> str:
    if not name.endswith(SUFFIXES) and name not in [*names(), ALL]:
        raise UsageError(f"unknown ablation {name!r}; {nearest(name, [*names(), ALL])}, or the path of a .yaml")
    return name


Name = Annotated[str, AfterValidator(_name), Meaning("a name from the list below, all, or the path of a .yaml")]


def load(name: str) -> Ablation:
    """A shipped ablation by name, or one of yours by the path of its file. Raises: UsageError with the nearest name."""
    if not _name(name).endswith(SUFFIXES):
        return from_dict(reader.read(FOLDER / f"{name}.yaml"), f"{name}.yaml", FOLDER)
    path = Path(name).expanduser()
    if path.stem in names() and path.resolve().parent != FOLDER.resolve():
        raise UsageError(f"{path}: an ablation of this package is called {path.stem!r}; give yours another name")
    return from_dict(reader.read(path), path.name, path.parent)


def from_dict(raw: Any, file: str, folder: Path | None = None) -> Ablation:
    """An ablation from the content of its file, every entry checked. Raises: UsageError naming file, row and entry.

    A published table is one of ours, or `<table>.yaml` in `folder`, where the file lies.
    """
    ablation: Ablation = typed(Ablation, raw, file)
    if ablation.name != Path(file).stem:
        raise UsageError(f"{file}: its entry name is {ablation.name!r}; it must be the file's name")
    if not ablation.rows:
        raise UsageError(f"{file}: rows is []; expected a list of at least one row")
    ablation.rows = _expanded(ablation.rows)
    rows = [row.row for row in ablation.rows]
    for row in ablation.rows:
        where = f"{file}, row {row.row!r}"
        if rows.count(row.row) > 1:
            raise UsageError(f"{file}: two rows are called {row.row!r}; give each its own name")
        if row.model is None and ablation.model is None:
            raise UsageError(f"{where}: names no model, and the ablation names none for all rows")
        if row.baseline is not None and row.baseline not in rows:
            hint = nearest(row.baseline, rows)
            raise UsageError(f"{where}: its baseline is no row here: {row.baseline!r}; {hint}")
        if row.training:
            _check_training(row, ablation, where)
    points = {_point(axis, value) for axis, values in ablation.vary.items() for value in values}
    if ablation.baseline is not None and ablation.baseline not in {*rows, *points}:
        hint = nearest(ablation.baseline, {*rows, *points})
        raise UsageError(f"{file}: its baseline is no row of it: {ablation.baseline!r}; {hint}")
    _check_published(ablation, file, folder)
    return ablation


def _expanded(rows: list[Row]) -> list[Row]:
    """Rows with those of every scheme in their place."""
    schemes = [scheme for scheme in declared.names("schemes") if scheme not in {row.row for row in rows}]
    expanded: list[Row] = []
    for row in rows:
        every = [replace(row, row=scheme, model=f"pyramid_tiny_{scheme}") for scheme in schemes]
        expanded += every if row.row == EVERY_SCHEME else [row]
    return expanded


def _check_training(row: Row, ablation: Ablation, where: str) -> None:
    """What a row says of its training: fields of a run, its teacher, and dotted ones of its recipe."""
    recipes, kinds = terms.room("harness.spec.recipe"), reader.kinds_of(terms.room("harness.training.job").Settings)
    for key, value in row.training.items():
        if key.startswith("recipe."):
            recipe = recipes.load(row.recipe or ablation.recipe or "quick")
            try:
                recipe.changed({key.removeprefix("recipe."): value})
            except UsageError as error:
                raise UsageError(f"{where}: training.{key}: {error}") from None
        elif key == "set":
            names = [Path(word).name for word in row.training.get("data", [])]
            if isinstance(row.training.get("data", ""), str) or value not in names:
                hint = nearest(str(value), names) if names else "give data: [a, b] beside it"
                raise UsageError(f"{where}: training.set: {value!r} is none of the row's data sets; {hint}")
        elif key != "teacher":
            if key not in kinds:
                raise UsageError(f"{where}: unknown entry training.{key}; {nearest(key, [*kinds, 'teacher', 'set'])}")
            typed(kinds[key], value, f"{where}: training.{key}={value}")
            if key == "checkpoint" and value is not None:
                try:
                    check_file(Path(value).expanduser())
                except (FileNotFoundError, CheckpointError) as error:
                    raise UsageError(f"{where}: training.checkpoint: {error}") from None


def _check_published(ablation: Ablation, file: str, folder: Path | None) -> None:
    """That the published table is there, with the rows that are named."""
    tables, table = terms.room("reports.paper_table"), ablation.table
    for name in ablation.further:
        if name not in tables.names():
            raise UsageError(f"{file}: further: unknown table {name!r}; {nearest(name, tables.names())}")
    if table is None:
        named = [row.row for row in ablation.rows if row.published is not None]
        if named:
            raise UsageError(f"{file}, row {named[0]!r}: published is said, but the ablation names no table")
        return
    beside = folder / f"{table}.yaml" if folder not in (None, FOLDER) else None
    if table not in tables.names() and not (beside and beside.is_file()):
        place = "" if beside is None else f", or a file {beside}"
        raise UsageError(f"{file}: unknown table {table!r}; {nearest(table, tables.names())}{place}")
    if beside and beside.is_file():
        ablation.table_file = beside
    try:
        paper = tables.read(ablation.table_file or tables.FOLDER / f"{table}.yaml")
    except tables.PaperTableError as error:
        raise UsageError(f"{file}: {error}") from error
    printed = [row.name for row in paper.rows]
    for row in ablation.rows:
        for column, spec in row.cells.items():
            where = f"{file}, row {row.row!r}: cells.{column}"
            columns = [*paper.units, *paper.rows[0].settings]
            if column not in columns:
                raise UsageError(f"{where} is no column of {table}; {nearest(column, columns)}")
            try:
                terms.room("reports.cells").check(spec, [sibling.row for sibling in ablation.rows])
            except ValueError as error:
                raise UsageError(f"{where}: {error}") from None
        if row.published is not None and row.published not in printed:
            hint = nearest(row.published, printed)
            raise UsageError(f"{file}, row {row.row!r}: published is {row.published!r}, no row of {table}; {hint}")


def choose(ablations: list[Ablation], words: list[str | int]) -> None:
    """Note the rows that a command names, by name or by number, where the first is 1. One that none has is an error."""
    unknown = set(words)
    for ablation in ablations:
        rows = [row.row for row in ablation.rows]
        by_word = {**dict(enumerate(rows, start=1)), **{row: row for row in rows}}
        ablation.chosen = [by_word[word] for word in words if word in by_word]
        unknown -= set(by_word)
    for word in [word for word in words if word in unknown]:
        rows = [row.row for ablation in ablations for row in ablation.rows]
        several = "ablation" if len(ablations) > 1 else f"ablation {ablations[0].name}"
        hint = f"rows 1 to {len(rows)}" if isinstance(word, int) else nearest(word, rows)
        if isinstance(word, str) and all(part.isdecimal() or part in rows for part in word.split(",")):
            hint = f"several stand in brackets: rows=[{word}]"
        raise UsageError(f"{several}: no row is called {word!r}; {hint}")


def resolve(ablation: Ablation, settings: Settings) -> list[Entry]:
    """All cases of an ablation under the settings of a run, in the order of its rows.

    An axis that the settings fix has one value. Quick mode tries each row and each value once: of all rows, or
    of those that a command names, the baseline, else the last (of schemes local + global), at every value of each axis,
    the others at the first. There an axis of clips has the small
    clips that are run, so that no row is named after another clip.

    Raises: UsageError naming the row, for a model, change or clip that cannot be.
    """
    axes = {}
    for axis, values in ablation.vary.items():
        fixed = getattr(settings, axis.removeprefix("clip."), None) if axis in AXES and axis != "model" else None
        if axis == "clip":  # without what the settings fix
            free = [{name: n for name, n in clip.items() if getattr(settings, name) is None} for clip in values]
            values = _distinct(free)
        axes[axis] = values if fixed is None else [fixed]
        if settings.quick and fixed is None:
            axes[axis] = _distinct([_quick(axis, value) for value in axes[axis]])
    entries = []
    every = list(itertools.product(*axes.values()))
    few = [point for point in every if sum(a != b for a, b in zip(point, every[0], strict=True)) < 2]
    tried = ablation.chosen or [row.row for row in ablation.rows]
    varied = ablation.baseline if ablation.baseline in tried else tried[-1]
    for row in ablation.rows:
        for point in every if not settings.quick else few if row.row == varied else every[:1]:
            for turned in itertools.product(*(_ends(values, settings) for values in row.dial.values())):
                chosen, dial = dict(zip(axes, point, strict=True)), dict(zip(row.dial, turned, strict=True))
                entries.append(_entry(ablation, row, chosen, dial, settings))
    rows = {entry.case.row for entry in entries}  # quick mode may have a row at a value where its baseline is not
    return [replace(entry, baseline=entry.baseline if entry.baseline in rows else None) for entry in entries]


def _ends(values: list[Any], settings: Settings) -> list[Any]:
    """The values of an axis or a dial; in quick mode the first and the last."""
    return [values[0], values[-1]] if settings.quick and len(values) > 2 else values


def _distinct(values: list[Any]) -> list[Any]:
    return [value for number, value in enumerate(values) if value not in values[:number]]


def _quick(axis: str, value: Any) -> Any:
    """A value of an axis as quick mode has it: clips are small, all else is as it is."""
    if axis == "clip":
        return {name: _quick(f"clip.{name}", n) for name, n in value.items()}
    if axis == "clip.frames" and isinstance(value, int):
        return max(min(value, 2), value * QUICK_FRAMES // 32)
    if axis == "clip.size" and isinstance(value, int):
        return max(32, value * QUICK_SIZE // 224 // 32 * 32)
    return value


def _entry(ablation: Ablation, row: Row, chosen: dict[str, Any], dial: dict[str, Any], settings: Settings) -> Entry:
    # A dial is of one row: its last word says enough.
    name = row.row + _points({path.rpartition(".")[2]: value for path, value in dial.items()}) + _points(chosen)
    where = f"ablation {ablation.name}, row {name!r}"
    model = chosen.get("model") or row.model or ablation.model
    axes = {axis: value for axis, value in chosen.items() if axis not in AXES}
    changes = row.changes | dial | axes | settings.model
    try:
        clip = _clip(row, chosen, settings, _named_config(model))
        _check_axes(axes, _named_config(model))
        config = _named_config(model).changed({**changes, "clip": [clip.frames, clip.size, clip.size]})
    except (KeyError, ValueError, TypeError) as error:
        raise UsageError(f"{where}: {text_of(error)}") from error
    case = Case(row=name, model=model, config=config.to_dict(), num_classes=row.num_classes or 400, clip=clip)
    points = {axis: chosen[axis] for axis in CASE_AXES if axis in chosen}
    points |= {axis: value for axis in CASE_AXES if (value := getattr(settings, axis, None)) is not None}
    case = replace(case, **{"trainable": row.trainable or case.trainable} | points | {"model": model})
    if (part := case.trainable) not in (parts := ["all", *config.tunable]):
        raise UsageError(f"{where}: trainable: unknown part {part!r} to train; {nearest(part, parts)}")
    case = replace(case, threads=None if case.device.startswith("cuda") else settings.threads)
    return Entry(case, row, _comparable(chosen, settings), _baseline(ablation, row, chosen, settings))


def _check_axes(axes: Collection[str], config: Any) -> None:
    """That each begins with a field of the model; the clip's own are axes of a case. Raises: UsageError."""
    fields_of_model = {f.name for f in fields(config)} - {"clip"}
    for axis in axes:
        if axis.partition(".")[0] not in fields_of_model:
            raise UsageError(f"unknown axis {axis!r}; {nearest(axis, [*AXES, *fields_of_model])}")


def _baseline(ablation: Ablation, row: Row, chosen: dict[str, Any], settings: Settings) -> str | None:
    """The name of the case that this one is set against."""
    named = ablation.baseline or row.baseline
    if named is None or any(sibling.row == named for sibling in ablation.rows):
        return None if named is None else named + _points(chosen)
    points = ((axis, value) for axis, values in ablation.vary.items() for value in values)
    axis, fixed = next(point for point in points if _point(*point) == ablation.baseline)
    return row.row + _points({**chosen, axis: _quick(axis, fixed) if settings.quick else fixed})


def _clip(row: Row, chosen: dict[str, Any], settings: Settings, config: Config) -> Clip:
    """The clip of a case: the model's own, then the row's, the axis', the run's. Images stay single frames."""
    nominal = config.clip
    clip = {"frames": nominal.t, "size": nominal.h} | row.clip
    if settings.quick:
        small = _quick("clip", clip)
        fitting = config.shrunk(1, None, (small["frames"], small["size"], small["size"])).clip
        clip |= {"frames": fitting.t, "size": fitting.h}
    clip |= {n: chosen[f"clip.{n}"] for n in CLIP_AXES if f"clip.{n}" in chosen} | chosen.get("clip", {})
    overrides = {n: getattr(settings, n) for n in CLIP_AXES if getattr(settings, n) is not None}
    if nominal.t == 1:
        overrides.pop("frames", None)
    return Clip(path=settings.path, digest=settings.digest, **clip | overrides)


def _comparable(chosen: dict[str, Any], settings: Settings) -> bool | str:
    """True, or why the counts of this case may not stand beside the published ones."""
    if settings.quick:
        return "quick mode: a small clip"
    overrides = [f"clip.{n}={getattr(settings, n)}" for n in CLIP_AXES if getattr(settings, n) is not None]
    overrides += [f"model.{path}={_text(value)}" for path, value in settings.model.items()]
    further = {axis: value for axis, value in chosen.items() if axis not in CASE_AXES and value != {}}
    axes = [_point(axis, value) for axis, value in further.items()]
    if overrides:
        return f"{', '.join(overrides)} set on the command line"
    if axes:
        return f"{', '.join(axes)} is an axis of this ablation, not of the published row"
    return True


@lru_cache
def _named_config(model: str) -> Config:
    return backbones.config(model)


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
