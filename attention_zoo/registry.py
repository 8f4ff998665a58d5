"""Names for things that can be added without editing what is there: schemes, kernels, families, metrics, data sets.

A registry finds its entries in two places: the modules of one package of ours, imported once on first use, and the
entry points that other installed packages declare for its group.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeVar

Entry = TypeVar("Entry")


MEANT = {
    "flops": "macs", "gflops": "macs", "gmacs": "macs", "time": "latency", "speed": "latency", "ms": "latency",
    "fps": "throughput", "memory": "peak_memory", "parameters": "params",
    "flash": "sdpa", "flash_attention": "sdpa", "math": "reference", "eager": "reference",
    "half": "float16", "fp16": "float16", "bf16": "bfloat16", "fp32": "float32", "gpu": "cuda",
    "kinetics": "kinetics400", "k400": "kinetics400", "k600": "kinetics600", "k700": "kinetics700",
    "ssv2": "something_something_v2", "sthv2": "something_something_v2",
}  # fmt: skip
"""What is called something else here than elsewhere, or is one of several that are spelled nearly alike."""


def nearest(name: str, allowed: Iterable[str], cutoff: float = 0.5) -> str:
    """The end of an error message about an unknown name: the nearest valid one, then all of them.

    `cutoff`: how alike they must be, from 0 to 1.
    """
    allowed = sorted(allowed)
    intended = [word for word in (MEANT.get(name.lower()),) if word in allowed]
    close = intended or difflib.get_close_matches(name, allowed, n=1, cutoff=cutoff)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}allowed: {', '.join(allowed) or 'none'}"


class UnknownName(KeyError):
    """A name that no registry entry has. Printed as its message, not as a quoted key."""

    def __str__(self) -> str:
        return self.args[0]


class Registry(Generic[Entry]):
    """Entries by name; `package` is searched for modules that register, `group` for entry points of other packages.

    `prepared` makes of what is registered what is kept.
    """

    def __init__(
        self,
        kind: str,
        package: str,
        group: str | None = None,
        prepared: Callable[[Entry], Entry] = lambda entry: entry,
    ):
        self.kind, self.package, self.group, self.prepared = kind, package, group, prepared
        self._entries: dict[str, Entry] = {}
        self._discovered = False

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """Decorator. A second entry under a taken name is an error, so that nobody replaces a scheme unnoticed."""

        def add(entry: Entry) -> Entry:
            present = self._entries.get(name)
            if present is not None and _origin(present) != _origin(entry):
                raise ValueError(
                    f"{self.kind} {name!r} is registered already, by {_origin(present)}; choose another name"
                )
            self._entries[name] = self.prepared(entry)
            return self._entries[name]

        return add

    def get(self, name: str) -> Entry:
        """Raises UnknownName (a KeyError) with the nearest valid name."""
        if name not in self._entries:
            self._discover()
        if name not in self._entries:
            raise UnknownName(f"unknown {self.kind} {name!r}; {nearest(str(name), self._entries)}")
        return self._entries[name]

    def names(self) -> tuple[str, ...]:
        self._discover()
        return tuple(sorted(self._entries))

    def declared(self) -> tuple[str, ...]:
        """The names without importing what is not imported yet: command lines answer before torch is loaded."""
        return self.names() if self._discovered else tuple(sorted({*self._entries, *written(self.package, self.group)}))

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True  # set first: the modules imported below ask this registry themselves
        try:
            self._import_all()
        except BaseException:
            self._discovered = False
            raise

    def _import_all(self) -> None:
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            if not module.ispkg and not module.name.startswith("_"):
                importlib.import_module(f"{self.package}.{module.name}")
        for point in entry_points(group=self.group) if self.group else ():
            try:
                entry = point.load()
                if not isinstance(entry, ModuleType):
                    self.register(point.name)(entry)
                elif point.name not in self._entries:
                    raise ImportError(f"{point.value!r} registers no {self.kind} of that name")
            except Exception as error:
                source = point.dist.name if point.dist else point.value
                raise ImportError(
                    f"{self.kind} {point.name!r} of the installed package {source!r} cannot be used: {error}; "
                    "repair or uninstall that package"
                ) from error


def _origin(entry: object) -> str:
    """Where an entry was written; of one that holds a function, as a kernel does, where that was."""
    functions = (getattr(entry, name, None) for name in ("run", "load", "build"))
    entry = next((function for function in functions if callable(function)), entry)
    return f"{getattr(entry, '__module__', '?')}.{getattr(entry, '__qualname__', entry)}"


def written(package: str, group: str | None, line: str = r'^@register\(\s*"(\w+)"') -> tuple[str, ...]:
    """The names of a registry, read off the lines that register them; those of other packages, off entry points."""
    ours = {name for text in texts(package) for name in re.findall(line, text, re.MULTILINE)}
    return tuple(sorted(ours | {point.name for point in (entry_points(group=group) if group else ())}))


def texts(package: str) -> list[str]:
    """The files of a package, which is not imported."""
    folders = find_spec(package).submodule_search_locations
    return [path.read_text(encoding="utf-8") for folder in folders for path in sorted(Path(folder).glob("*.py"))]
