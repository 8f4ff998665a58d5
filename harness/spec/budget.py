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
from harness.spec import reader
from harness.spec.names import OFF, Dtype, Seeds
from harness.spec.names import Recipe as RecipeName
from harness.spec.reader import STRICT, Count, Flag, Meaning, Number, UsageError, typed

if TYPE_CHECKING:
    from backbones.config import Config
    from harness.spec.recipe import Recipe

FOLDER = Path(__file__).parents[1] / "conf" / "budget"
NOMINAL_FRAMES = 32  # of the published models; a row with half of them gets half of a budget's frames

Factor = Annotated[Number, Field(gt=0, le=1), Meaning("a number above 0 and at most 1")]


@dataclass(frozen=True)
class Training:
    """What one run of the command line says of accuracy.

    Args:
        budget: name of a budget; None: as each ablation, "off": nothing is trained.
        data: name of a data set or a folder, `root`: where its files are; None: as the budget.
        seeds: one training of each row for each of them; None: as the budget; "auto": as many as `difference` takes.
        difference: what "auto" seeds shall tell, in percentage points.
        within: minutes that all trainings of the run may take, for "auto" seeds and "auto" epochs.
        epochs: instead of the recipe's; "auto": as many as make the training curve flat.
        recipe: name of a recipe; None: as the budget or the row.
        jobs: trainings side by side; None: one per device, or per core of a CPU.
        cluster: hands the trainings to a queue, see `harness.accuracy.cluster`.
    """

    budget: str | None = None
    data: str | None = None
    root: str | None = None
    data_options: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] | Literal["auto"] | None = None
    difference: float | None = None
    within: float | None = None
    epochs: float | Literal["auto"] | None = None
    recipe: str | None = None
    recipe_source: str = "paper"
    recipe_changes: dict[str, Any] = field(default_factory=dict)
    jobs: int | None = None
    cluster: str | None = None
    cluster_options: dict[str, Any] = field(default_factory=dict)


@checked.dataclass(frozen=True, config=STRICT)
class Budget:
    """What each row of a table may cost.

    Args:
        recipe: name of a recipe; None: the one that each row's published accuracy was made with.
        data: name of a data set.
        seeds: one training each. Rows of the same seed see the same clips in the same order.
        width: factor on the widths and heads of a model.
        depth: the most blocks of a stage; None for as many as there are.
        stem: of models that have a choice, see `backbones.pyramid`; None for their own.
        preload: decode the data set once, into memory.
        controls: test the weights with frames shuffled and with a single frame too.
        dtype: number format of autocast on a GPU; on a CPU it is float32.
        recorded: of the committed record on its own data, for plans where no record is at hand and for tables of fewer
            seeds: the "spread" over seeds in percentage points, pooled over the rows; the mean "top1" of the default
            row over how many "seeds"; the test "videos"; the "seconds" of a training on one core or GPU.
        meaning: one sentence for the help and the reports.
    """

    name: str
    meaning: str
    data: str
    recipe: RecipeName | None = None
    seeds: Seeds = (0,)
    width: Factor = 1.0
    depth: Count | None = None
    stem: Literal["convolutions"] | None = None
    preload: Flag = False
    controls: Flag = True
    dtype: Dtype = "float32"
    recorded: dict[Literal["spread", "videos", "seconds", "top1", "seeds"], Number] = field(default_factory=dict)


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
