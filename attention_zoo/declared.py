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

from attention_zoo.registry import UnknownName, nearest, texts, written

HOMES = {"schemes": ("attention_zoo.scheme", "schemes"), "kernels": ("attention_zoo.kernels", "registry")}
CHOICES = r"^(\w+) = Literal\[(.*?)\]"
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


def kinds_of(scheme: str) -> Mapping[str, str | tuple[str, ...]]:
    """What options of a scheme of this package may be: the words that are allowed, or else the annotation as written.
    Raises: UnknownName.
    """
    _facts(scheme)
    ours = _read(scheme)
    return {} if ours is None else ours[2]


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
def _read(scheme: str) -> tuple[dict[str, Any], frozenset[str], dict[str, str | tuple[str, ...]]] | None:
    """Options with defaults, true members and kinds of options of a scheme of this package; None for one of another
    package.
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
    return {name: tuple(re.findall(r'"(\w+)"', words)) for name, words in pairs}


def _kinds(scheme: ast.ClassDef, words: dict[str, tuple[str, ...]]) -> dict[str, str | tuple[str, ...]]:
    written_out = {a.arg: ast.unparse(a.annotation) for a in _start(scheme).kwonlyargs if a.annotation is not None}
    return {option: words.get(kind, kind) for option, kind in written_out.items()}


def _members(scheme: ast.ClassDef) -> list[str]:
    methods = [part.name for part in scheme.body if isinstance(part, ast.FunctionDef)]
    values = [part for part in scheme.body if isinstance(part, ast.Assign) and ast.unparse(part.value) != "False"]
    return methods + [ast.unparse(value.targets[0]) for value in values]
