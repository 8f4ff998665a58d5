"""`key=value` arguments of the smaller command lines, typed and explained by one dataclass each.

A field of the dataclass is an option; its type says what may be given, `option` adds what it means. Every slip is one
`UsageError` that names the argument, what is allowed and the nearest name. (`harness.run` composes its options with
Hydra; these need no files.)
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, get_args, get_type_hints

import yaml

from attention_zoo.registry import nearest
from harness.spec.reader import UsageError

CHANGES = "_changes"


def option(
    default: Any = MISSING, meaning: str = "", *, choices: tuple[str, ...] | None = None, least: float | None = None
) -> Any:
    """A field of an options dataclass. Without a default it must be given; `least` is the smallest number allowed."""
    metadata = {"meaning": meaning, "choices": choices, "least": least}
    if default is MISSING:
        return field(metadata=metadata)
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Command:
    """One command line: its name as typed, what it does, its options and a few lines to copy."""

    name: str
    purpose: str
    options: type
    examples: tuple[tuple[str, str], ...] = ()


def run(command: Command, work: Callable[[Any], int], argv: list[str] | None) -> int:
    """Parse, then work. Returns the exit status: that of `work`, 2 for a wrong command, 130 when interrupted.

    A `UsageError` of `work` reads like one of the parser. Modules that are slow to import belong inside `work`.
    """
    return until_closed(lambda: _run(command, work, argv))


def until_closed(work: Callable[[], int]) -> int:
    """Work that prints; 141, as of a program ended by a broken pipe, where the reader has had enough (`| head`)."""
    try:
        status = work()
        sys.stdout.flush()  # here, not when the interpreter ends, where nothing could be caught
        return status
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still held has a place to go
        return 141


def _run(command: Command, work: Callable[[Any], int], argv: list[str] | None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if any(argument in ("-h", "--help") for argument in argv):
        print(help_text(command))
        return 0
    try:
        return work(parse(command, argv))
    except UsageError as error:
        print(f"error: {error}\n`{command.name} --help` explains the options.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def parse(command: Command, argv: list[str]) -> Any:
    """The options that the arguments give.

    An option that is a dict takes dotted arguments. One called `model_changes` takes `model.drop_path=0`, so that
    `model` itself can be a name.

    Raises: UsageError.
    """
    known, kinds = {f.name: f for f in fields(command.options)}, get_type_hints(command.options)
    nested = {_prefix(name): name for name in known if _is_dict(kinds[name])}
    chosen: dict[str, Any] = {}
    for argument in argv:
        key, equals, raw = argument.partition("=")
        head, dot, rest = key.partition(".")
        if not equals or (key not in known and not (dot and rest and head in nested)):
            hint = nearest(key.lstrip("-").replace("-", "_"), [*known, *(f"{name}.FIELD" for name in nested)])
            raise UsageError(f"unknown option {argument!r}; options are written key=value; {hint}")
        if dot and head in nested:
            inner = chosen.setdefault(nested[head], {})
            if rest in inner:
                raise UsageError(f"{key} is given twice; give it once")
            inner[rest] = _yaml(argument, raw)
            continue
        if key in chosen:
            raise UsageError(f"{key} is given twice; give it once")
        chosen[key] = _value(argument, raw, known[key], kinds[key])
    for name, f in known.items():
        if name not in chosen and f.default is MISSING and f.default_factory is MISSING:
            raise UsageError(f"{name} is missing; give {name}=...: {f.metadata.get('meaning', '')}")
    return command.options(**chosen)


def _prefix(name: str) -> str:
    """What stands before the dot in the arguments of an option that is a dict."""
    return name.removesuffix(CHANGES)


def _is_dict(kind: Any) -> bool:
    return kind is dict or getattr(kind, "__origin__", None) is dict


def _yaml(argument: str, raw: str) -> Any:
    try:
        return yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise UsageError(f"{argument!r} cannot be read: {str(error).splitlines()[0]}") from error


def _value(argument: str, raw: str, option: Any, kind: Any) -> Any:
    kinds = get_args(kind) or (kind,)
    if raw.lower() in ("none", "null") and type(None) in kinds:
        return None
    listed = any(one is list or getattr(one, "__origin__", None) is list for one in (kind, *kinds))
    if str in kinds and not listed:
        value = raw
    else:
        value = _yaml(argument, raw)
        value = float(value) if float in kinds and isinstance(value, int) and not isinstance(value, bool) else value
        if float in kinds and isinstance(value, str):  # YAML reads 1e-3 as text
            value = _number(argument, value)
    if _is_dict(kind):
        raise UsageError(f"{argument!r}: name the field, as in {_prefix(option.name)}.FIELD=VALUE")
    if listed:
        value = value if isinstance(value, list) else [value]
    else:
        plain = tuple(one for one in kinds if isinstance(one, type))
        if not isinstance(value, plain) or (isinstance(value, bool) and bool not in plain):
            names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "none"}
            raise UsageError(f"{argument} is not {' or '.join(names[one] for one in plain)}")
    choices, least = option.metadata.get("choices"), option.metadata.get("least")
    for one in value if isinstance(value, list) else [value]:
        if choices and one not in choices:
            raise UsageError(f"unknown {option.name} {one!r}; {nearest(str(one), choices)}")
        if least is not None and (one != one or one < least):
            raise UsageError(f"{argument} is below {least:g}, the least that is allowed")
    return value


def _number(argument: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{argument} is not a number") from None


def help_text(command: Command) -> str:
    lines = [f"usage: {command.name} [option=value ...]", "", command.purpose.strip(), "", "options"]
    kinds = get_type_hints(command.options)
    for f in fields(command.options):
        needed = f.default is MISSING and f.default_factory is MISSING
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        shown = (
            f"{_prefix(f.name)}.FIELD=VALUE"
            if _is_dict(kinds[f.name])
            else f"{f.name}={'...' if needed else _text(default)}"
        )
        allowed = f" ({', '.join(f.metadata['choices'])})" if f.metadata.get("choices") else ""
        lines.append(f"  {shown:<28} {f.metadata.get('meaning', '')}{allowed}{'; must be given' if needed else ''}")
    if command.examples:
        lines += ["", "examples"]
        for arguments, meaning in command.examples:
            lines += [f"  {command.name} {arguments}", f"      {meaning}"]
    return "\n".join(lines)


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return str(value).replace("'", "").replace(", ", ",") if isinstance(value, list) else str(value)
