"""The one reader: what a YAML file or a command line says becomes typed values, or one error before any work.

A dataclass states what may be said; `typed` fills it, and names place, value and nearest valid name where it cannot.
YAML is read as its version 1.2 has it (`off` and `no` are words, `1e-3` is a number), with keys said once.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import AfterValidator, ConfigDict, Field, Strict, TypeAdapter, ValidationError

from attention_zoo.registry import nearest

Value = TypeVar("Value")


class UsageError(ValueError):
    """Something said in a file or on a command line that cannot be; the message names place, value and way out."""


def text_of(error: Exception) -> str:
    """What an error says; a KeyError prints its key quoted, which is for programs."""
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


# Kinds of values. Strict, because true is no number and "8" no count; `Meaning` is what an error and a help call them.


@dataclass(frozen=True)
class Meaning:
    text: str | Callable[[], str]


Flag = Annotated[bool, Strict(), Meaning("true or false")]
Whole = Annotated[int, Strict(), Field(ge=0, lt=2**63), Meaning("a whole number from 0")]
Count = Annotated[int, Strict(), Field(ge=1, lt=2**63), Meaning("a whole number from 1")]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False), Meaning("a number")]
Positive = Annotated[Number, Field(gt=0), Meaning("a number above 0")]
FromZero = Annotated[Number, Field(ge=0), Meaning("a number from 0")]
Share = Annotated[Number, Field(ge=0, le=1), Meaning("a number from 0 to 1")]
Part = Annotated[Number, Field(ge=0, lt=1), Meaning("a number from 0 and below 1")]
STRICT = ConfigDict(extra="forbid")  # of pydantic's dataclasses: an entry that is not known is an error


def one_of(noun: str, names: Callable[[], Collection[str]], meaning: str | None = None) -> Any:
    """The kind of a name among `names()`, looked up when a value is checked: what is registered later counts too."""

    def check(name: str) -> str:
        if name not in names():
            raise ValueError(f"unknown {noun} {name!r}; {nearest(name, names())}")
        return name

    return Annotated[str, AfterValidator(check), Meaning(meaning or (lambda: ", ".join(names())))]


def typed(kind: Any, raw: Any, where: str) -> Any:
    """What was said, as a value of `kind`: a dataclass, or any annotation of one's fields.

    Raises: UsageError, which begins with `where`.
    """
    try:
        return _adapter(kind).validate_python(raw)
    except ValidationError as error:
        wrong = sorted(error.errors(include_url=False), key=lambda e: e["type"] != "unexpected_keyword_argument")
        raise UsageError(_message(kind, raw, wrong[0], where)) from None


@cache
def kinds_of(dataclass: type) -> dict[str, Any]:
    """The kinds of a dataclass's fields, with what is noted about them."""
    return get_type_hints(dataclass, include_extras=True)


@cache
def _adapter(kind: Any) -> TypeAdapter:
    return TypeAdapter(kind)


def _message(kind: Any, raw: Any, error: Any, where: str) -> str:
    """The first thing that is wrong, with its place: file and line, row, entry, value."""
    path, line, keys, listed = [], None, None, False
    for step in error["loc"]:
        if step == "[key]":  # of a mapping whose keys are known
            return f"{where}: unknown entry {'.'.join(path)}; {nearest(path[-1], get_args(keys))}"
        bare, arguments = plain(kind), get_args(plain(kind))
        if isinstance(raw, Section):
            line = raw.lines.get(step, line)
        if is_dataclass(bare) and step in _entries(bare):
            kind, raw = kinds_of(bare)[step], raw.get(step) if isinstance(raw, Mapping) else getattr(raw, step, None)
            path.append(step)
        elif get_origin(bare) is dict and step in raw:
            keys, kind, raw = arguments[0], arguments[1], raw[step]
            path.append(str(step))
        elif get_origin(bare) in (list, tuple) and isinstance(step, int) and step < len(raw):
            kind, raw = arguments[0 if arguments[-1] is Ellipsis or len(arguments) == 1 else step], raw[step]
            listed = not path
            if is_dataclass(plain(kind)):  # of several, each has its own name, which its first entry is
                first = fields(plain(kind))[0].name
                name = raw.get(first, step + 1) if isinstance(raw, Mapping) else step + 1
                where, path = f"{where}, {first} {name!r}", []
        else:  # an unknown entry; or a member of a union, and then the whole value is wrong
            break
    where = where if line is None else where.replace(".yaml", f".yaml, line {line}", 1)
    place = ": ".join(filter(None, (where, ".".join(path))))
    if error["type"] == "value_error":
        return f"{place}: {error['ctx']['error']}"
    if error["type"] == "unexpected_keyword_argument":
        entry = str(error["loc"][-1])
        return f"{place}: unknown entry {entry!r}; {nearest(entry, _entries(plain(kind)))}"
    if error["type"] == "missing" and path and path[-1] == error["loc"][-1]:
        return f"{place} is missing"
    if get_origin(plain(kind)) is Literal:
        hint = nearest(str(raw), map(str, get_args(plain(kind))))
        return f"{place} is {raw!r}; {hint}" if path else f"{place}: unknown; {hint}"
    if listed and not path:
        return f"{place}: {raw!r} is not {described(kind)}"
    return f"{place}{f' is {raw!r},' if path else ' is'} not {described(kind)}"


def _entries(dataclass: type) -> list[str]:
    """What may be said; the other fields are the program's own."""
    return [f.name for f in fields(dataclass) if f.init]


def plain(kind: Any) -> Any:
    """A kind without what is noted about it, and without none where one other is left."""
    while get_origin(kind) is Annotated or get_origin(kind) in (Union, types.UnionType):
        inside = get_args(kind)[:1] if get_origin(kind) is Annotated else set(get_args(kind)) - {type(None)}
        if len(inside) != 1:
            break
        (kind,) = inside
    return kind


def described(kind: Any) -> str:
    """What may stand in place of a value, in words."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        text = [note.text for note in arguments[1:] if isinstance(note, Meaning)] or [described(arguments[0])]
        return text[-1]() if callable(text[-1]) else text[-1]
    if origin is Literal:
        return ", ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(described(argument) for argument in arguments)
    if origin in (list, tuple):
        several = origin is list or arguments[-1] is Ellipsis
        return f"a list, each {described(arguments[0])}" if several else f"a list of {len(arguments)} values"
    if is_dataclass(kind):
        return f"entries such as {', '.join(f.name for f in fields(kind)[:3])}"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "none"}
    return words.get(kind, "entries" if origin is dict else "a value")


# YAML


class Section(dict):
    """A mapping of a file that knows the line of each of its entries."""

    lines: dict[Any, int] = {}


def with_entry(section: Any, key: str, value: Any) -> Any:
    """A mapping with an entry that its file leaves out, such as its name; its lines are known still."""
    if not isinstance(section, Mapping):
        return section
    whole = Section({key: value, **section})
    whole.lines = getattr(section, "lines", {})
    return whole


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Plain values as YAML 1.2 reads them, and mappings that say a key once."""

    yaml_implicit_resolvers: dict = {}

    def mapping(self, node: yaml.MappingNode) -> Section:
        lines: dict[Any, int] = {}
        for key_node, value_node in node.value:
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if not isinstance(key, str | int | float | bool):
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} cannot be a key", key_node.start_mark)
            if key in lines:
                problem = f"{key!r} is said twice, first in line {lines[key]}; say it once"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            if node.flow_style and ":" in str(key) and value_node.start_mark.index == value_node.end_mark.index:
                problem = f"{key!r} has no value; a space stands behind its colon"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            lines[key] = line
        section = Section(self.construct_mapping(node, deep=True))
        section.lines = lines
        return section

    def whole(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        return int(text, 16) if "x" in text else int(text)

    def number(self, node: yaml.ScalarNode) -> float:
        return float(self.construct_scalar(node).lower().replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.mapping)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.whole)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.number)
for _kind, _pattern in {
    "null": "~|null|Null|NULL|",
    "bool": "true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_pattern})$"), None)


def read(path: Path) -> Section:
    """The entries of a YAML file. Raises: UsageError with file and line."""
    try:
        content = value(path.read_text(encoding="utf-8"), path.name)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file; check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, Section):
        raise UsageError(f"{path.name}: expected entries, such as `name: ...`, found {type(content).__name__}")
    return content


def value(text: str, where: str) -> Any:
    """A value in YAML, as files and command lines write it. Raises: UsageError, which begins with `where`."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark and "\n" in text else ""
        raise UsageError(f"{where}{line} cannot be read: {error.problem}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"{where} cannot be read: {str(error).splitlines()[0]}") from error
