"""Names that files and command lines say, as kinds: each is looked up in the registry of its room when it is said.

The rooms above are asked by name and late, so that nothing here imports upward, and torch is loaded for none of them.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from types import ModuleType
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator

from attention_zoo import declared
from attention_zoo.registry import nearest
from harness.spec.reader import Meaning, Whole, one_of

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES = get_args(Dtype)
OFF = "off"
AUTO = "auto"


def room(module: str) -> ModuleType:
    """A module above this room, imported when something that only it knows is to be checked."""
    return importlib.import_module(module)


def _names_in(module: str, *more: str) -> Callable[[], list[str]]:
    return lambda: [*more, *room(module).names()]


def _device(name: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"unknown device {name!r}; {nearest(name, ('cpu', 'cuda', 'cuda:N'))}")
    return name


def _different(values: tuple) -> tuple:
    if not values or len(set(values)) != len(values):
        raise ValueError(f"{list(values)} are not different whole numbers: one is given twice, or none at all")
    return values


def metrics() -> tuple[str, ...]:
    return room("harness.cost.metrics").declared()


Cluster = Literal["slurm", "local"]
Device = Annotated[str, AfterValidator(_device), Meaning("cpu, cuda, cuda:N")]
Kernel = one_of("kernel", lambda: [AUTO, *declared.names("kernels")])
Metric = one_of("metric", metrics)
Figure = one_of("figure", _names_in("records.figures"))
Recipe = one_of("recipe", _names_in("harness.spec.recipe"), "a name in harness/conf/recipe")
Budget = one_of("budget", _names_in("harness.spec.budget", OFF))
Machine = one_of("machine", _names_in("harness.spec.machines"))
Suite = one_of("suite", _names_in("harness.spec.suite"))
Seeds = Annotated[tuple[Whole, ...], AfterValidator(_different), Meaning("a list of whole numbers from 0, as [0,1,2]")]
SeedsOrAuto = Seeds | Literal["auto"]
