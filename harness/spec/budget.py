"""How much is spent on the accuracy of one row: the recipe, the data, the seeds, and by how much the model shrinks.

A budget is a file of conf/budget/. One budget trains all rows of a table alike, so rows differ in the model alone; a
shrunk model keeps its schemes, its scales and windows and the order of its blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field
from pydantic import dataclasses as checked

from attention_zoo.registry import nearest
from harness.spec import names as terms
from harness.spec import reader
from harness.spec.names import OFF
from harness.spec.options import option
from harness.spec.reader import STRICT, Count, Flag, Meaning, Number, Positive, UsageError, typed
from harness.spec.recipe import Recipe, Source

if TYPE_CHECKING:
    from backbones.config import Config

FOLDER = Path(__file__).parents[1] / "conf" / "budget"
NOMINAL_FRAMES = 32  # of the published models; a row with half of them gets half of a budget's frames

Factor = Annotated[Number, Field(gt=0, le=1), Meaning("a number above 0 and at most 1")]


@dataclass(frozen=True)
class Training:
    """What one run of the command line says of accuracy."""

    accuracy: terms.Budget | None = option(
        None, "train every row too, within a budget; none: as the ablation, where no metrics are named"
    )
    data: str | None = option(
        None, "data set to train on: a name of `python -m harness.datasets` or a folder; none: as the budget"
    )
    root: str | None = option(None, "where the files of the data set are")
    seeds: terms.SeedsOrAuto | None = option(
        None, "one training of every row for each; auto: as many as difference= takes within=; none: as the budget"
    )
    difference: Positive | None = option(None, "percentage points that seeds=auto shall tell; none: 3")
    within: Positive | None = option(
        None, "minutes for all trainings together, with seeds=auto or epochs=auto; none: no limit"
    )
    epochs: Positive | Literal["auto"] | None = option(
        None, "of each training; auto: on and on until its curve is flat, or within= ends; none: as the recipe"
    )
    recipe: terms.Recipe | None = option(None, "how to train; none: as the budget")
    recipe_source: Source = option("paper", "whose values, where a paper and its code differ")
    recipe_changes: dict[str, Any] = option({}, "changes the recipe, as recipe.optimisation.epochs=20")
    data_changes: dict[str, Any] = option({}, "an option of the data set, as data.sided=true")
    initial: str | None = option(
        None,
        "weights that trainings start from: a file for all rows, or the out= of a run that trained the same networks, "
        "on the built-in data for instance; none: random ones",
    )
    jobs: Count | None = option(None, "trainings side by side; none: one per GPU, or per core of a CPU")
    cluster: terms.Cluster | None = option(None, "hand the trainings to a queue, a job each")
    cluster_changes: dict[str, Any] = option({}, "for the queue, as cluster.slurm_partition=gpu")


@checked.dataclass(frozen=True, config=STRICT)
class Budget:
    """What each row of a table may cost.

    `recorded` is of the committed record on its own data, for plans where no record is at hand and for tables of fewer
    seeds: the "spread" over seeds in percentage points, pooled over the rows; the mean "top1" of the default row over
    how many "seeds"; the test "videos"; the "seconds" of a training on one core or GPU. `differences` are of the
    committed records of single tables: how much differences to the baseline vary over seeds, in percentage points.
    """

    name: str
    meaning: str  # one sentence for the help and the reports
    data: str  # name of a data set
    recipe: terms.Recipe | None = None  # None: the one that each row's published accuracy was made with
    seeds: terms.Seeds = (0,)  # one training each; rows of the same seed see the same clips in the same order
    width: Factor = 1.0  # on the widths and heads of a model
    depth: Count | None = None  # the most blocks of a stage; None for as many as there are
    stem: Literal["convolutions"] | None = (
        None  # of models that have a choice, see `backbones.pyramid`; None: their own
    )
    preload: Flag = False  # decode the data set once, into memory
    controls: Flag = True  # test the weights with frames shuffled and with a single frame too
    dtype: terms.Dtype = "float32"  # of autocast on a GPU; on a CPU it is float32
    recorded: dict[Literal["spread", "videos", "seconds", "top1", "seeds"], Number] = field(default_factory=dict)
    differences: dict[str, Number] = field(default_factory=dict)


def names() -> list[str]:
    """All budgets, the cheapest first."""
    order = {"quick": 0, "small": 1, "proxy": 2, "full": 3}
    return sorted((path.stem for path in FOLDER.glob("*.yaml")), key=lambda name: (order.get(name, len(order)), name))


@cache
def load(name: str) -> Budget:
    """Raises: UsageError with the nearest name."""
    if name not in names():
        raise UsageError(f"unknown budget accuracy={name}; {nearest(name, [OFF, *names()])}")
    path = FOLDER / f"{name}.yaml"
    return typed(Budget, reader.with_entry(reader.read(path), "name", name), path.name)


def shrunk(config: Config, budget: Budget, recipe: Recipe) -> Config:
    """A row's model as a budget trains it: narrower and shallower, for the clips, drop path and dropout of a recipe."""
    size = recipe.augmentation.size
    rates = {name: rate for name in ("drop_path", "dropout") if (rate := getattr(recipe, name)) is not None}
    stem = {"stem": budget.stem} if budget.stem and hasattr(config, "stem") else {}
    return config.shrunk(budget.width, budget.depth, (recipe.sampling.frames, size, size)).changed(rates | stem)
