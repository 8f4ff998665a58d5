"""A suite: the steps that one run on a machine should record, in the order of their importance, within a time.

A suite is a file of conf/suite/; each step is an ablation with settings.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from attention_zoo.registry import nearest
from harness.spec import case, reader
from harness.spec import names as terms
from harness.spec.case import Ablation, Entry, Settings, Vary
from harness.spec.reader import STRICT, Count, Flag, Meaning, Positive, UsageError, Whole, one_of, typed

FOLDER = Path(__file__).parents[1] / "conf" / "suite"
QUICK_BATCH = 2


@dataclass(frozen=True)
class StepSettings:
    """What a step sets for all of its cases, as `harness.spec.case.Settings`."""

    __pydantic_config__ = STRICT

    frames: Count | None = None
    size: Count | None = None
    batch_size: Count | None = None
    dtype: terms.Dtype | None = None
    kernel: terms.Kernel | None = None
    compile: Flag | None = None
    graph: Flag | None = None
    mixed: Flag | None = None
    seed: Whole | None = None


@dataclass(frozen=True)
class Step:
    """An ablation with settings."""

    __pydantic_config__ = STRICT

    step: str  # its name, and that of its folder where `folder` names none
    seconds: Positive  # the most that it may take
    ablation: one_of("ablation", case.names)
    needs: Positive = 5.0  # seconds; it is not begun with less time left
    folder: str | None = None
    # What differs from the ablation's own.
    question: str | None = None
    rows: list[str] | None = None
    vary: Vary | None = None
    baseline: str | None = None
    metrics: list[terms.Metric] | None = None
    figures: list[terms.Figure] | None = None
    settings: StepSettings = field(default_factory=StepSettings)  # of all its cases, such as `dtype`
    rounds: Count = 1
    accuracy: terms.Budget | None = None  # of training

    def composed(self, quick: bool = False) -> Ablation:
        """The ablation as this step has it; in quick mode its first row. Raises: UsageError."""
        whole = case.load(self.ablation)
        by_name = {row.row: row for row in whole.rows}
        for name in self.rows or []:
            if name not in by_name:
                raise UsageError(f"step {self.step}: {self.ablation} has no row {name!r}; {nearest(name, by_name)}")
        rows = [by_name[name] for name in self.rows or by_name][: 1 if quick else None]
        new = {name: getattr(self, name) for name in ("question", "vary", "metrics", "figures")}
        if quick and "batch_size" in (self.vary or {}):
            new["vary"] = {**self.vary, "batch_size": sorted({min(n, QUICK_BATCH) for n in self.vary["batch_size"]})}
        baseline = self.baseline or whole.baseline
        if baseline in by_name and baseline not in [row.row for row in rows]:
            baseline = None
        return replace(
            whole,
            **{name: value for name, value in new.items() if value is not None},
            name=self.folder or self.step,
            rows=rows,
            baseline=baseline,
        )

    def entries(self, settings: Settings) -> list[Entry]:
        """Its cases. Raises: UsageError."""
        return case.resolve(self.composed(settings.quick), self.applied(settings))

    def applied(self, settings: Settings) -> Settings:
        """The settings of a run with those of this step."""
        merged = replace(settings, **{name: value for name, value in vars(self.settings).items() if value is not None})
        if settings.quick and merged.batch_size is not None:
            merged.batch_size = min(merged.batch_size, QUICK_BATCH)
        if settings.quick and settings.device == "cpu":
            merged.dtype = None  # most CPUs take far longer for 16-bit numbers
        return merged


@dataclass(frozen=True)
class Suite:
    """Steps in the order of their importance; `minutes` is when the last measurement is begun."""

    __pydantic_config__ = STRICT

    name: str
    question: str
    steps: Annotated[tuple[Step, ...], Field(min_length=1), Meaning("a list of at least one step")]
    device: terms.Device = "cpu"
    minutes: Positive = 7.0
    time_limit: Positive = 120.0

    def __post_init__(self):
        names = [step.step for step in self.steps]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"two steps are called {twice[0]!r}; give each its own name")

    def chosen(self, names: list[str] | None) -> list[Step]:
        """The named steps in the suite's order; all, where none are named. Raises: UsageError."""
        step_names = [step.step for step in self.steps]
        for name in names or []:
            if name not in step_names:
                raise UsageError(f"suite {self.name}: unknown step {name!r}; {nearest(str(name), step_names)}")
        return [step for step in self.steps if not names or step.step in names]


def names() -> list[str]:
    """The shipped suites."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@cache
def load(name: str) -> Suite:
    """A suite by name, every entry checked. Raises: UsageError with file, step, value and the nearest name."""
    if name not in names():
        raise UsageError(f"unknown suite {name!r}; {nearest(name, names())}")
    path = FOLDER / f"{name}.yaml"
    return from_dict(reader.read(path), path.name)


def from_dict(raw: Any, file: str) -> Suite:
    """Raises: UsageError naming file, step, value and what is allowed."""
    return typed(Suite, reader.with_entry(raw, "name", Path(file).stem), file)
