"""How rows are trained, as it is asked for: what can be wrong with it is found here, before torch is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.datasets import DataError
from harness.datasets.several import chosen
from harness.spec.budget import Budget, Training
from harness.spec.reader import UsageError, text_of
from harness.spec.recipe import load
from records.record import slug

QUICK_STEPS = 3  # of a training in quick mode: whether it works, not what is learnt
HALVES = ("motion_short", "motion_long", "motion_small_short", "motion_small_long")
BUILT_IN = ("motion_small", "motion", "motion_large", *HALVES)


@dataclass(frozen=True)
class Setup:
    """How the rows of one ablation are trained: what was asked for within a budget, and what computes it."""

    budget: Budget
    training: Training = Training()
    ablation: str = ""
    device: str = "cpu"
    dtype: str | None = None
    kernel: str = "auto"
    threads: int = 1
    minutes: float | None = None  # of one training that goes on until its curve is flat
    quick: bool = False  # a few steps of one seed, for nothing but whether it works

    @property
    def data_name(self) -> str:
        return self.training.data or self.budget.data

    @property
    def recorded(self) -> dict[str, float]:
        """What the budget's file records, where it is of these trainings: nothing for other data, epochs or recipes."""
        asked = self.training
        other = asked.recipe or asked.recipe_changes or asked.epochs is not None or asked.initial or self.quick
        return {} if other or self.data_name != self.budget.data else dict(self.budget.recorded)

    @property
    def measurement(self) -> str:
        """The name under which a record holds the accuracy: data sets, budgets and starts never share one."""
        parts = [f"top1_{self.budget.name}"]
        parts += [] if self.data_name == self.budget.data else [data_slug(self.data_name)]
        parts += ["warm"] if self.training.initial else []
        return "_".join(parts)


def data_slug(data: str | list[str]) -> str:
    """A data set, or several, as a part of a name: a folder stands without where it lies."""
    names = [data] if isinstance(data, str) else data
    return "-".join(slug(Path(name).name).replace("-", "_") for name in names)


def check(setup: Setup) -> None:
    """What can be wrong before any data is looked at. Raises: UsageError."""
    training = setup.training
    if training.initial is not None and not Path(training.initial).expanduser().exists():
        raise UsageError(f"initial={training.initial}: no such file or folder")
    if training.cluster is None and training.cluster_changes:
        raise UsageError("cluster.FIELD needs cluster=slurm")
    try:
        for source in chosen(setup.data_name, training.root, training.data_changes) if training.data else ():
            source.check()
    except (DataError, KeyError) as error:
        raise UsageError(text_of(error)) from error
    if training.recipe is not None or training.recipe_changes:
        name = training.recipe or setup.budget.recipe or "quick"
        load(name, training.recipe_source).changed(training.recipe_changes)
