"""What can be said of changes to a model without loading torch, so that a wrong name is refused at once.

Configs and schemes are written in files of the rooms below, which import torch. What they declare is read off their
syntax; the config itself checks the rest when a case is made.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from attention_zoo.registry import UnknownName, declared, declared_options, nearest

Words = frozenset[str]


def check(changes: Mapping[str, Any], axes: Mapping[str, Sequence[Any]] | None = None) -> None:
    """Dotted paths into a model's config with their values; of `axes` with several, of which each is set in turn.

    Raises: UnknownName (a KeyError) for a field, a name of attention, a scheme or an option that no model has, or a
    word that a field never is.
    """
    points = [*changes.items(), *((path, value) for path, values in (axes or {}).items() for value in values)]
    foreign = bool(entry_points(group="attention_zoo.families"))  # whose models may have any field
    for path, value in points if not foreign else ():
        _check_field(path, value)
    _check_attention(list(_inside_attention(points)), foreign)


def _check_field(path: str, value: Any) -> None:
    name, _, inside = path.partition(".")
    if name not in model_fields():
        raise UnknownName(f"no key {name!r} in a model config (path {path!r}); {nearest(name, model_fields())}")
    words = model_fields()[name]
    if words and not inside and isinstance(value, str) and value not in words:
        raise UnknownName(f"unknown {name} {value!r}; {nearest(value, words)}")


def _inside_attention(points: list[tuple[str, Any]]) -> Iterator[tuple[str, str, str, Any]]:
    """Path, name of attention, option and value, for all that is set inside of `attention`, however much at once."""
    for path, value in points:
        field, *keys = path.split(".")
        for key in reversed(keys):
            value = {key: value}
        for name, entry in value.items() if field == "attention" and isinstance(value, Mapping) else ():
            for option, setting in entry.items() if isinstance(entry, Mapping) else ():
                yield path, str(name), str(option), setting


def _check_attention(options: list[tuple[str, str, str, Any]], foreign: bool) -> None:
    known = attention_names() | {scheme: frozenset([scheme]) for scheme in declared("schemes")} if options else {}
    chosen: dict[str, set[str]] = {}  # schemes of a name that the changes themselves say
    for path, name, option, value in options:
        if option == "scheme":
            if value not in declared("schemes"):
                hint = nearest(str(value), declared("schemes"))
                raise UnknownName(f"unknown attention scheme {value!r} (path {path!r}); {hint}")
            chosen.setdefault(name, set()).add(value)
    for path, name, option, _ in options:
        if name not in chosen and name not in known and not foreign:
            raise UnknownName(f"no key {name!r} in 'attention' (path {path!r}); {nearest(name, known)}")
        schemes = chosen.get(name) or known.get(name) or declared("schemes")
        by_scheme = [declared_options(scheme) for scheme in schemes]
        if option == "scheme" or None in by_scheme:  # of another package, whose files are not read here
            continue
        allowed = {option for options in by_scheme for option in options}
        if option not in allowed:
            owner = f"{next(iter(schemes))} has" if len(schemes) == 1 else "none of the schemes it may be has"
            raise UnknownName(f"attention.{name}: {owner} no option {option!r}; {nearest(option, allowed)}")


@cache
def _trees() -> dict[str, ast.Module]:
    """The files of the room of models, by the names of their modules."""
    (folder,) = find_spec("backbones").submodule_search_locations
    return {f"backbones.{path.stem}": ast.parse(path.read_bytes()) for path in sorted(Path(folder).glob("*.py"))}


@cache
def model_fields() -> dict[str, Words]:
    """The fields of all our model configs, each with the words that it may be; none where it may be anything else."""
    classes = {node.name: node for tree in _trees().values() for node in tree.body if isinstance(node, ast.ClassDef)}

    def is_config(name: str) -> bool:
        bases = (ast.unparse(base).rpartition(".")[2] for base in classes[name].bases) if name in classes else ()
        return name == "Config" or any(is_config(base) for base in bases)

    kinds: dict[str, list[Words]] = {}
    for module, tree in _trees().items():
        literals = _literals(module)
        for node in tree.body:
            for line in node.body if isinstance(node, ast.ClassDef) and is_config(node.name) else ():
                if isinstance(line, ast.AnnAssign) and "ClassVar" not in ast.unparse(line.annotation):
                    words = literals.get(ast.unparse(line.annotation), frozenset())
                    kinds.setdefault(ast.unparse(line.target), []).append(words)
    return {name: _joined(words) for name, words in kinds.items()}


@cache
def _literals(module: str) -> dict[str, Words]:
    """The kinds of a few words each that a file of models defines, or takes from another one."""
    kinds: dict[str, Words] = {}
    for node in _trees()[module].body:
        if isinstance(node, ast.ImportFrom) and node.module in _trees():
            theirs = _literals(node.module)
            kinds |= {alias.asname or alias.name: theirs[alias.name] for alias in node.names if alias.name in theirs}
        elif isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("Literal["):
            kinds[ast.unparse(node.targets[0])] = frozenset(ast.literal_eval(node.value.slice))
    return kinds


@cache
def attention_names() -> dict[str, Words]:
    """The names that our models give to attention, each with its schemes; none where only the models know them."""
    schemes: dict[str, list[Words]] = {}
    for tree in _trees().values():
        for node in ast.walk(tree):
            for name, entry in _pairs(node) if isinstance(node, ast.Dict) else ():
                scheme = _scheme(entry)
                if scheme is not None:
                    schemes.setdefault(name, []).append(scheme)
    return {name: _joined(words) for name, words in schemes.items()}


def _joined(words: list[Words]) -> Words:
    """All of them; none where one of them may be anything."""
    return frozenset().union(*words) if all(words) else frozenset()


def _pairs(node: ast.Dict) -> list[tuple[str, ast.expr]]:
    return [(k.value, value) for k, value in zip(node.keys, node.values, strict=True) if isinstance(k, ast.Constant)]


def _scheme(entry: ast.expr) -> Words | None:
    """The scheme of an entry of attention in its source, none where it is computed; None for what is no such entry."""
    if isinstance(entry, ast.Dict):
        scheme = dict(_pairs(entry)).get("scheme")
    elif isinstance(entry, ast.Call) and ast.unparse(entry.func) == "dict":
        inherited = entry.args[0] if entry.args else None  # dict(shared, shift="half")
        scheme = {keyword.arg: keyword.value for keyword in entry.keywords}.get("scheme", inherited)
    else:
        return None
    if scheme is None:
        return None
    return frozenset([scheme.value]) if isinstance(scheme, ast.Constant) else frozenset()
