"""What schemes and kernels are called, and what a scheme takes, read off their files: to import these loads torch, and
command lines and the configs of models answer before that.

Where schemes are loaded already they are asked themselves, as one that a program registers stands in no file; one of
another package is loaded for it.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

from attention_zoo.grid import Grid
from attention_zoo.registry import UnknownName, nearest, texts, written
from attention_zoo.values import boolean, choice, integer, number

HOMES = {"schemes": ("attention_zoo.scheme", "schemes"), "kernels": ("attention_zoo.kernels", "registry")}
CHOICES = r"^(\w+) = Literal\[(.*?)\]"
NONE, SEVERAL = " | None", " | Sequence["  # in annotations: an option that may be left out; one word, or a list of them
CHECKS = {"bool": boolean, "int": integer, "float": partial(number, zero=True)}
GROUP = "attention_zoo.schemes"  # of the entry points by which other packages have schemes


def names(kind: str) -> tuple[str, ...]:
    """The names of all "schemes" or "kernels"."""
    if (registry := _loaded(kind)) is not None:  # it may hold more than is written
        return registry.names()
    return _written(kind)


@cache
def _written(kind: str) -> tuple[str, ...]:
    if kind == "schemes":
        return written("attention_zoo", GROUP)
    return written("attention_zoo.kernels", None, r'^add\(Kernel\("(\w+)"')


def options_of(scheme: str) -> Mapping[str, Any]:
    """The options of a scheme with their defaults, as `attention_zoo.options_of`. Raises: UnknownName."""
    return _facts(scheme)[0]


def check(scheme: str, options: Mapping[str, Any], where: str = "") -> None:
    """Values of options against what the scheme's file says of them: the words that are allowed, or the annotation.
    What else a scheme asks of them, it says itself where it is built. Errors begin with `where`.

    Raises: UnknownName, ValueError.
    """
    options_of(scheme)
    ours = _read(scheme)
    for option, value in options.items():
        check_option(scheme, option, where)
        if ours is not None and option in ours[2]:
            _check_kind(where + option, value, *ours[2][option])


def check_option(scheme: str, option: str, where: str = "", error: type[Exception] = ValueError) -> None:
    """Raises: UnknownName for the scheme, `error` for the option."""
    if option not in (allowed := options_of(scheme)):
        raise error(f"{where}{scheme} has no option {option!r}; {nearest(option, allowed)}")


def _check_kind(where: str, value: Any, kind: str, words: tuple[str, ...]) -> None:
    if words:
        for word in value if SEVERAL in kind and isinstance(value, list | tuple) else [value]:
            choice(where, word, words)
        return
    if kind.endswith(NONE) and value is None:
        return
    kind = kind.removesuffix(NONE)
    if kind in ("Sequence[int]", "tuple[int, int, int]"):
        Grid.of(value, where)
    elif kind.startswith("Sequence[Sequence[int]") and isinstance(value, list):
        for size in value:
            if not isinstance(size, str):
                Grid.of(size, where)
    elif kind in CHECKS:
        CHECKS[kind](where, value)


def has(scheme: str, member: str) -> bool:
    """Whether a scheme has a method, or a class attribute that is true. Raises: UnknownName."""
    return _facts(scheme)[1](member)


def _facts(scheme: str) -> tuple[Mapping[str, Any], Callable[[str], bool]]:
    if scheme not in names("schemes"):
        raise UnknownName(f"unknown attention scheme {scheme!r}; {nearest(str(scheme), names('schemes'))}")
    ours = None if _loaded("schemes") is not None else _read(scheme)
    if ours is not None:
        return ours[0], ours[1].__contains__
    home = importlib.import_module(HOMES["schemes"][0])
    return home.options_of(scheme), partial(_is_true, home.schemes.get(scheme))


def _is_true(scheme: type, member: str) -> bool:
    return bool(getattr(scheme, member, False))


def _loaded(kind: str) -> Any:
    """The registry, or None where its module is not imported, or only in part yet."""
    module, attribute = HOMES[kind]
    return getattr(sys.modules.get(module), attribute, None)


@cache
def _read(scheme: str) -> tuple[dict[str, Any], frozenset[str], dict[str, tuple[str, tuple[str, ...]]]] | None:
    """Of a scheme of this package: options with defaults, true members, and for each option its annotation and the
    words that this allows, if any. None for a scheme of another package.
    """
    for text in texts("attention_zoo"):
        tree = ast.parse(text) if f'@register("{scheme}")' in text else ast.Module([], [])
        constants = {ast.unparse(n.targets[0]): n.value for n in tree.body if isinstance(n, ast.Assign)}
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and f"register('{scheme}')" in map(ast.unparse, node.decorator_list):
                return _options(node, constants), frozenset(_members(node)), _kinds(node, _words(text))
    return None


def _start(scheme: ast.ClassDef) -> ast.arguments:
    (start,) = (part for part in scheme.body if isinstance(part, ast.FunctionDef) and part.name == "__init__")
    return start.args


def _options(scheme: ast.ClassDef, constants: dict[str, ast.expr]) -> dict[str, Any]:
    start, options = _start(scheme), {}
    for argument, default in zip(start.kwonlyargs, start.kw_defaults, strict=True):
        if argument.arg != "kernel":
            written_out = constants.get(ast.unparse(default), default) if default is not None else None
            options[argument.arg] = inspect.Parameter.empty if default is None else ast.literal_eval(written_out)
    return options


def _words(text: str) -> dict[str, tuple[str, ...]]:
    """The words of each `Name = Literal["a", "b"]` of a file, and of those in other files that it may import."""
    pairs = [pair for other in [*texts("attention_zoo"), text] for pair in re.findall(CHOICES, other, re.M | re.S)]
    return {name: tuple(re.findall(r'"([^"]+)"', words)) for name, words in pairs}


def _kinds(scheme: ast.ClassDef, words: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, tuple[str, ...]]]:
    written_out = {a.arg: ast.unparse(a.annotation) for a in _start(scheme).kwonlyargs if a.annotation is not None}
    return {option: (kind, words.get(kind.partition(SEVERAL)[0], ())) for option, kind in written_out.items()}


def _members(scheme: ast.ClassDef) -> list[str]:
    methods = [part.name for part in scheme.body if isinstance(part, ast.FunctionDef)]
    values = [part for part in scheme.body if isinstance(part, ast.Assign) and ast.unparse(part.value) != "False"]
    return methods + [ast.unparse(value.targets[0]) for value in values]
