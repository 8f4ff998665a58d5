"""Names that files and command lines say, as kinds: each is looked up in the registry of its room when it is said.

The rooms above are asked by name and late, so that nothing here imports upward, and torch is loaded for none of them.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator

from attention_zoo.registry import UnknownName, declared, nearest
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
        hint = nearest("cuda" if name == "gpu" else name, ("cpu", "cuda", "cuda:N"))
        raise ValueError(f"unknown device {name!r}; {hint}")
    return name


def _different(values: tuple) -> tuple:
    if not values or len(set(values)) != len(values):
        raise ValueError(f"{list(values)} are not different whole numbers: one is given twice, or none at all")
    return values


@lru_cache
def model_fields() -> frozenset[str]:
    """The fields of all our model configs, read off the lines that declare them: importing them would load torch."""
    (folder,) = find_spec("backbones").submodule_search_locations
    trees = (ast.parse(path.read_bytes()) for path in Path(folder).glob("*.py"))
    classes = {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}

    def is_config(name: str) -> bool:
        bases = (ast.unparse(base).rpartition(".")[2] for base in classes[name].bases) if name in classes else ()
        return name == "Config" or any(is_config(base) for base in bases)

    return frozenset(
        ast.unparse(line.target)
        for name, node in classes.items()
        if is_config(name)
        for line in node.body
        if isinstance(line, ast.AnnAssign) and "ClassVar" not in ast.unparse(line.annotation)
    )


def check_model_changes(changes: Mapping[str, Any]) -> None:
    """What can be said without torch of dotted paths into a model's config; the config itself checks the rest.

    Raises: UnknownName (a KeyError) for a field that no config has, or a scheme that is not registered.
    """
    for path, value in changes.items():
        first, last = path.split(".")[0], path.split(".")[-1]
        if first not in model_fields() and not entry_points(group="attention_zoo.families"):
            raise UnknownName(f"no key {first!r} in a model config (path {path!r}); {nearest(first, model_fields())}")
        if first == "attention" and last == "scheme" and value not in declared("schemes"):
            raise UnknownName(
                f"unknown attention scheme {value!r} (path {path!r}); {nearest(value, declared('schemes'))}"
            )


def metrics() -> list[str]:
    return room("harness.cost.metrics").names()


Cluster = Literal["slurm", "local"]
Device = Annotated[str, AfterValidator(_device), Meaning("cpu, cuda, cuda:N")]
Kernel = one_of("kernel", lambda: [AUTO, *declared("kernels")])
Metric = one_of("metric", metrics)
Figure = one_of("figure", _names_in("records.figures"))
Recipe = one_of("recipe", _names_in("harness.spec.recipe"), "a name in harness/conf/recipe")
Budget = one_of("budget", _names_in("harness.spec.budget", OFF))
Machine = one_of("machine", _names_in("harness.spec.machines"))
Suite = one_of("suite", _names_in("harness.spec.suite"))
Seeds = Annotated[tuple[Whole, ...], AfterValidator(_different), Meaning("a list of whole numbers from 0, as [0,1,2]")]
SeedsOrAuto = Seeds | Literal["auto"]
