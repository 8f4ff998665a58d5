"""`key=value` arguments of every command line, typed and explained by one dataclass each.

A field of the dataclass is an option; its type says what may be given, `option` adds what it means. Every slip is one
`UsageError` that names the argument, what is allowed and the nearest name.
"""

from __future__ import annotations

import pkgutil
import shlex
import sys
import textwrap
import types
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from attention_zoo.registry import nearest
from harness.spec import reader
from harness.spec.reader import UsageError, described, kinds_of, plain, typed
from records import terminal

CHANGES = "_changes"
DATA = "data_changes"
NONE = ("none", "null")


def option(default: Any = MISSING, meaning: str = "", *, written: tuple[str, ...] = ()) -> Any:
    """A field of an options dataclass. Without a default it must be given; `written` is its name where it has dots."""
    metadata = {"meaning": meaning, "written": written}
    if default is MISSING:
        return field(metadata=metadata)
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Command:
    """One command line."""

    name: str  # as typed
    purpose: str
    options: type  # a dataclass
    examples: tuple[tuple[str, str], ...] = ()  # arguments to copy, and what they do
    without: Callable[[], str] | None = None  # what is printed where nothing is given; None: that is a slip
    more: Callable[[], list[str]] = list  # paragraphs at the end of the help
    word: Callable[[str], str | None] = lambda word: None  # the argument that a word without `=` was meant to be


@dataclass(frozen=True)
class Work:
    """What a command does once it is checked: a function, named "module:function" as an entry point is, and what it is
    given. Its module is loaded when it is called, and torch with it: this is the one door of all commands.
    """

    function: str
    arguments: tuple[Any, ...] = ()

    def __call__(self) -> int:
        return pkgutil.resolve_name(self.function)(*self.arguments)


def run(command: Command, check: Callable[[Any], Callable[[], int]], argv: list[str] | None) -> int:
    """Parse, check, work. Returns the exit status: that of the work, 2 for a wrong command, 130 when interrupted.

    A `UsageError` of `check` or of the work reads like one of the parser.
    """
    return terminal.until_closed(lambda: _run(command, check, sys.argv[1:] if argv is None else argv))


def _run(command: Command, check: Callable[[Any], Callable[[], int]], argv: list[str]) -> int:
    try:
        if any(argument in ("-h", "--help") for argument in argv):
            print(help_text(command))
            return 0
        if not argv and command.without is not None:
            print(command.without())
            return 0
        return check(parse(command, argv))()
    except UsageError as error:
        print(f"error: {error}\n`{command.name} --help` explains the options.", file=sys.stderr)
        if "json=true" in argv and any(f.name == "json" for f in fields(command.options)):
            terminal.json_line({"status": 2, "error": str(error)})
        return 2


def parse(command: Command, argv: list[str]) -> Any:
    """The options that the arguments give.

    An option that is a dict takes dotted arguments. One called `model_changes` takes `model.drop_path=0`, so that
    `model` itself can be a name.

    Raises: UsageError.
    """
    kinds = kinds_of(command.options)
    by_name = {name: f for f in fields(command.options) if not _is_dict(kinds[f.name]) for name in written(f)}
    open_to = {_prefix(f.name): f.name for f in fields(command.options) if _is_dict(kinds[f.name])}
    chosen: dict[str, Any] = {}
    for argument in argv:
        key, raw = _split(argument, command, by_name, open_to)
        head, _, rest = key.partition(".")
        inner = chosen if key in by_name else chosen.setdefault(open_to[head], {})
        name = by_name[key].name if key in by_name else rest
        if name in inner:
            raise UsageError(f"{key} is given twice; give it once")
        if key in by_name:
            inner[name] = _value_of(key, raw, kinds[name])
        else:  # an option of a data set is taken as it stands: the set itself knows what kinds its options are of
            inner[name] = raw if open_to[head] == DATA else reader.value(raw, argument)
    for f in fields(command.options):
        if f.name not in chosen and f.default is MISSING and f.default_factory is MISSING:
            raise UsageError(f"{f.name} is missing; give {f.name}=...: {f.metadata['meaning']}")
    return command.options(**chosen)


def written(option: Any) -> tuple[str, ...]:
    """How an option may be written; the help shows the first."""
    return option.metadata.get("written") or (option.name,)


def _split(argument: str, command: Command, by_name: dict[str, Any], open_to: dict[str, str]) -> tuple[str, str]:
    """Key and value of an argument whose key is known."""
    key, equals, raw = argument.partition("=")
    head, dot, rest = key.partition(".")
    if equals and (key in by_name or (dot and rest and head in open_to)):
        return key, raw
    bare = key.lstrip("-+~").replace("-", "_")
    names = [*by_name, *(f"{group}.FIELD" for group in open_to)]
    if argument.startswith("-"):
        value = raw or ("true" if bare in by_name and by_name[bare].default is False else "VALUE")
        way_out = f"write {bare}={value}" if bare in by_name else "the only flag is --help"
        raise UsageError(f"unknown flag {argument!r}; options are written key=value: {way_out}; {nearest(bare, names)}")
    if argument.startswith(("+", "~")):
        raise UsageError(f"{argument!r}: options are neither added nor removed; write {bare}={raw}")
    if not equals:
        flag = bare in by_name and by_name[bare].default is False
        suggestion = f"{bare}=true" if flag else command.word(argument)
        hint = f"did you mean {suggestion}?" if suggestion else nearest(bare, names)
        raise UsageError(f"unknown option {argument!r}; options are written key=value; {hint}")
    if key in open_to:
        raise UsageError(f"{argument!r}: name the field, as in {key}.FIELD=VALUE")
    raise UsageError(f"unknown option {key!r}; options are written key=value; {nearest(bare, names)}")


def _value_of(key: str, raw: str, kind: Any) -> Any:
    """The value of an option. Text is taken as it stands, so that names and paths need no quotes of their own."""
    argument = f"{key}={raw}"
    members = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    listed = next((member for member in members if _is_list(member)), None)
    single = [member for member in members if member is not listed and member is not type(None)]
    if not raw:
        raise UsageError(f"{key} is empty; give a value, {described(kind)}, or leave it out")
    if raw.lower() in NONE and type(None) in members:
        return None
    text = all(_is_text(member) for member in single or get_args(listed)[:1])
    bare = text and raw[0] not in "\"'" and not (listed and raw[0] == "[")
    home = raw == "~" or raw.startswith("~/")  # behind `out=` some shells leave it as it is
    value = (str(Path(raw).expanduser()) if home else raw) if bare else reader.value(raw, argument)
    if listed and (isinstance(value, list) or not single):
        kind, value = listed, value if isinstance(value, list) else [value]
    elif len(single) == 1:
        kind = single[0]
    try:
        return typed(kind, value, argument)
    except UsageError:
        if listed and "," in raw and raw[0] != "[":
            raise UsageError(f"{argument!r} holds several values; write a list in brackets: {key}=[a,b]") from None
        raise


def _prefix(name: str) -> str:
    """What stands before the dot in the arguments of an option that is a dict."""
    return name.removesuffix(CHANGES)


def _is_dict(kind: Any) -> bool:
    return kind is dict or get_origin(kind) is dict


def _is_list(kind: Any) -> bool:
    return plain(kind) is list or get_origin(plain(kind)) in (list, tuple)


def _is_text(kind: Any) -> bool:
    kind = plain(kind)
    return kind is str or (get_origin(kind) is Literal and all(isinstance(word, str) for word in get_args(kind)))


def help_text(command: Command) -> str:
    lines = [f"usage: {command.name} [option=value ...]", "", command.purpose.strip()]
    if command.examples:
        lines += ["", "examples", *examples(command)]
    lines += ["", "options (default)"]
    for f in fields(command.options):
        kind, (name, *others) = kinds_of(command.options)[f.name], written(f)
        if _is_dict(kind):
            lines += _row(f"{_prefix(f.name)}.FIELD=VALUE", f.metadata.get("meaning", ""))
            continue
        required = f.default is MISSING and f.default_factory is MISSING
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        allowed = "" if kind in (str, str | None) else f"; {described(kind)}"
        also = f"; also {', '.join(others)}" if others else ""
        default_text = "must be given" if required else _text(default)
        lines += _row(f"{name} ({default_text})", f"{f.metadata.get('meaning', '')}{allowed}{also}")
    return "\n".join(terminal.folded([*lines, *command.more()], f"  {command.name} "))


def _row(left: str, right: str) -> list[str]:
    columns = terminal.columns()
    indent = " " * (29 if columns >= 80 else 4)
    return textwrap.wrap(f"  {left:<26} {right}", columns, subsequent_indent=indent, break_on_hyphens=False)


def examples(command: Command, chosen: slice = slice(None)) -> list[str]:
    """Examples as they are typed, each with what it does; in quotes where a shell would read them otherwise."""
    return [
        line
        for arguments, meaning in command.examples[chosen]
        for line in (f"  {command.name} {shlex.join(shlex.split(arguments))}", f"      {meaning}")
    ]


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return str(value).replace("'", "").replace(", ", ",") if isinstance(value, list) else str(value)
