"""Models by name, and configs that files and records hold: for families of ours answered without torch.

A family of another package, or of a module that a dotted name says, is imported for it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from attention_zoo.registry import Registry, UnknownName, nearest
from backbones.config import FIRST_FAMILY, Config, Configs, configs

if TYPE_CHECKING:
    from backbones.family import Family

families: Registry[Family] = Registry("model family", "backbones", group="attention_zoo.families")


def names() -> tuple[str, ...]:
    """The models that `create` knows by name."""
    return tuple(_named())


def config(name: str) -> Config:
    """The config of a named model. Raises UnknownName (a KeyError) with the nearest name."""
    _imported(name.rpartition(".")[0])
    by_name = _named()
    if name not in by_name:
        raise UnknownName(f"unknown model {name!r}; {nearest(str(name), by_name)}")
    return by_name[name]()


def read_config(values: Mapping[str, Any]) -> Config:
    """The config that `Config.to_dict` wrote; one that names no family is a pyramid's, which was once the only one.

    Raises: UnknownName (a KeyError) for an unknown family or key, ValueError for a value that is impossible or missing.
    """
    family = values.get("family", FIRST_FAMILY)
    _imported(family)
    return _family(family).config.from_dict(values)


def _named() -> dict[str, Callable[[], Config]]:
    return {name: make for family in _family_names() for name, make in _family(family).models().items()}


def _family_names() -> list[str]:
    return sorted({*configs.names(), *families.declared()})


def _family(name: str) -> Configs | Family:
    return configs.get(name) if name in configs else families.get(name)


def _imported(module: str) -> None:
    """A family whose name is that of a module is registered by it: code of a checkout, which no entry point names."""
    if not module or module in _family_names():
        return
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UnknownName(
            f"unknown model family {module!r}: {error}; run from the checkout that has it, or install its package"
        ) from error
