"""What a model is, as a value: everything that decides its function and its cost, nothing about where it runs.

A config is checked when it is made, so a wrong name or size fails before any model is built. It goes to JSON and back
(`to_dict`, `from_dict`) and is varied with dotted paths (`changed`), which is how the rows of an ablation are written.
Each family has its own, a frozen dataclass that inherits `Config`; the types of its fields are what is checked.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self, Union, get_args, get_origin

import attention_zoo
from attention_zoo import Grid, Registry, UnknownName, declared
from attention_zoo.registry import nearest
from attention_zoo.values import boolean, choice, integer, number, whole

LEAST_WIDTH = 8  # of a shrunk model
FIRST_FAMILY = "pyramid"  # the family of files and records that name none: they are older than the second one
# Fields that older files and records lack: written only where they are not as by default.
ADDED = ("mlp_rank", "stem", "drop_layers", "drop_frames", "st_adapter")

Activation = Literal["gelu", "gelu_tanh", "relu", "quick_gelu"]  # of MLPs, see `mlp.ACTIVATIONS`

# Types of fields, beside `Grid`, bool, `Literal`, int (positive), tuple[int, ...] (positive, not empty) and None.
Ratio = Annotated[float, "above 0"]
Rate = Annotated[float, "at least 0 and below 1"]
Whole = Annotated[int, "at least 0"]
Steps = Annotated[tuple[int, ...], "may be empty"]


class Config(ABC):
    """What the configs of all families share: fields that are JSON values once tuples and grids are lists.

    Two fields are read by everybody, so each family has them: `clip`, frames, height and width of the nominal input,
    and `attention`, the schemes that its blocks may name: `{"G": {"scheme": "global_pyramid", "scales": [[8, 7, 7]]}}`.
    A registered scheme with its default options needs no entry.
    """

    family: ClassVar[str]
    # Parts that may be trained while the rest is frozen, each a pattern of names of tensors. Checkpoints then hold that
    # part alone.
    tunable: ClassVar[Mapping[str, str]] = {"classifier": r"^classifier\."}
    clip: Grid
    in_channels: int
    attention: dict[str, dict[str, Any]]

    def __post_init__(self):
        """Each value as the type of its field asks, with tuples and grids for lists. Raises: ValueError."""
        for name, kind in _types(type(self)).items():
            self._set(name, attention_entries(self.attention) if name == "attention" else self._typed(name, kind))

    def _typed(self, name: str, kind: Any) -> Any:
        value = getattr(self, name)
        if get_origin(kind) in (Union, types.UnionType):  # `X | None`
            if value is None:
                return None
            kind = get_args(kind)[0]
        if get_origin(kind) is Literal:
            return choice(name, value, get_args(kind))
        return CHECKS[kind](name, value) if kind in CHECKS else value

    @abstractmethod
    def used(self) -> Collection[str]:
        """The names that its blocks attend with: entries of `attention`, or registered schemes."""

    @abstractmethod
    def shrunk(self, width: float, depth: int | None, clip: Sequence[int]) -> Self:
        """Narrower by the factor `width`, at most `depth` blocks (a stage), for another clip; for cheap training."""

    @abstractmethod
    def sizes(self) -> dict[str, Any]:
        """`blocks`, `widths` and `tokens` (of the form [t, h, w]), each a list with one entry for each stage."""

    def describe(self) -> dict[str, Any]:
        """What a report says of it, in JSON values: family, `sizes`, and of each scheme its `growth`."""
        growth = {scheme: plain(attention_zoo.growth_of(scheme)) for scheme in self.schemes()}
        return {"family": self.family, "growth": growth} | self.sizes()

    def schemes(self) -> tuple[str, ...]:
        """The attention schemes of its blocks."""
        return tuple(dict.fromkeys(self.entry(name)[0] for name in self.used()))

    def entry(self, name: str) -> tuple[str, dict[str, Any]]:
        """The scheme that an attention name stands for, and its options."""
        options = dict(self.attention.get(name, {"scheme": name}))
        return options.pop("scheme"), options

    def to_dict(self) -> dict[str, Any]:
        """JSON values only; `backbones.read_config` makes an equal config of them."""
        values = {
            field.name: plain(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.name not in ADDED or getattr(self, field.name) != field.default
        }
        return values if self.family == FIRST_FAMILY else {"family": self.family} | values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Raises UnknownName (a KeyError) for a key that no config of this family has, ValueError for missing ones."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        values = {key: value for key, value in values.items() if key != "family"}
        for key in values:
            if key not in fields:
                raise UnknownName(f"a model config has no key {key!r}; {nearest(str(key), fields)}")
        absent = [n for n, field in fields.items() if n not in values and _required(field)]
        if absent:
            raise ValueError(f"the model config lacks {', '.join(absent)}")
        return cls(**values)

    def changed(self, changes: Mapping[str, Any]) -> Self:
        """A copy in which the values at dotted paths are others.

        `{"position": "none", "attention.G.scales": [[8, 7, 7]], "stages.3": ["L"], "clip.t": 16}`; a new entry of
        `attention` must be used by a block.

        Raises:
            UnknownName: a path leads nowhere; the nearest key is given.
        """
        state = {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        grids = {field.name for field in dataclasses.fields(self) if isinstance(getattr(self, field.name), Grid)}
        for path, value in changes.items():
            _assign(state, path, plain(value), grids)
        for path in changes:
            _check_attention_path(state, path)
        new = self.from_dict(state)
        for name in new.attention.keys() - self.attention.keys() - set(new.used()):
            raise UnknownName(
                f"attention.{name} is new, but no block uses {name!r}; {nearest(name, self.attention)}, "
                "or name it there"
            )
        return new

    def _set(self, name: str, value: Any) -> None:
        """For `__post_init__`: the checked value in place of what was given."""
        object.__setattr__(self, name, value)


@dataclass(frozen=True)
class Configs:
    """What is known of a family without its modules: the class of its configs, and its named models, looked up at each
    call: {name: function that makes the config}.
    """

    config: type[Config]
    models: Callable[[], Mapping[str, Callable[[], Config]]]


configs: Registry[Configs] = Registry("model family", "backbones.configs")


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def narrower(width: int, heads: int, factor: float) -> tuple[int, int]:
    """A width that is a multiple of 8, and the number of heads nearest below what is wanted that divides it."""
    width, most = max(LEAST_WIDTH, round(width * factor / 8) * 8), max(1, round(heads * factor))
    return width, next(heads for heads in range(most, 0, -1) if width % heads == 0)


def narrowed(config: Any, factor: float) -> dict[str, int]:
    """What changes in a config of one width for all blocks, or of the first stage, for a narrower model."""
    if factor == 1:
        return {}
    return dict(zip(("width", "num_heads"), narrower(config.width, config.num_heads, factor), strict=True))


def plain(value: Any) -> Any:
    """The same value of JSON's types."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(entry) for entry in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise ValueError(f"{value!r} of type {type(value).__name__} cannot be written as JSON; use numbers, text and lists")


def _tuples(value: Any) -> Any:
    """Lists as tuples, so that equal configs compare equal."""
    if isinstance(value, Mapping):
        return {key: _tuples(entry) for key, entry in value.items()}
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list | tuple) else value


@functools.cache
def _types(config: type[Config]) -> dict[str, Any]:
    hints: dict[str, Any] = {}
    for base in reversed(config.__mro__):  # by hand: `no_type_check` hides them from typing.get_type_hints
        hints |= inspect.get_annotations(base, eval_str=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(config)}


def positive_integers(name: str, values: Any, *, empty: bool = False) -> tuple[int, ...]:
    """A tuple of them, the empty one where that is allowed."""
    ok = isinstance(values, Sequence) and not isinstance(values, str) and (empty or len(values) > 0)
    if not ok or not all(whole(value) and value > 0 for value in values):
        raise ValueError(f"{name} {values!r} is not a list of positive integers, such as [2, 2, 10, 4]")
    return tuple(values)


CHECKS = {
    Grid: lambda name, value: Grid.of(value, name),
    bool: boolean,
    int: integer,
    Whole: functools.partial(integer, least=0),
    Ratio: functools.partial(number, zero=False),
    Rate: functools.partial(number, zero=True, below=1.0),
    tuple[int, ...]: positive_integers,
    Steps: functools.partial(positive_integers, empty=True),
}


def attention_entries(entries: Any) -> dict[str, dict[str, Any]]:
    """The schemes that blocks may name, with known options."""
    if not isinstance(entries, Mapping):
        raise ValueError(f"attention {entries!r} is not a mapping of names to schemes: {{L: {{scheme: local_window}}}}")
    checked = {}
    for name, entry in plain(entries).items():
        if "." in name:
            raise ValueError(f"attention name {name!r} contains a dot, which dotted paths need")
        if not isinstance(entry, Mapping) or isinstance(entry.get("scheme", []), list | dict):
            raise ValueError(
                f"attention.{name} {entry!r} is not a mapping with the key 'scheme'; "
                f"schemes: {', '.join(declared.names('schemes'))}"
            )
        options = {option: value for option, value in entry.items() if option != "scheme"}
        declared.check(entry["scheme"], options, f"attention.{name}: ")
        checked[name] = _tuples(dict(entry))
    return checked


def patterns(field: str, stages: Any, attention: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    """For each entry of a field (a stage, a block) names of attention, all of them known."""
    if not isinstance(stages, Sequence) or isinstance(stages, str):
        raise ValueError(f"{field} {stages!r} is not a list of patterns, one for each stage: [[L, G], [L, G]]")
    for pattern in stages:
        if not isinstance(pattern, Sequence) or isinstance(pattern, str) or not pattern:
            raise ValueError(f"{pattern!r} in {field} is not a list of attention names, such as [L, G]")
        for name in pattern:
            if not isinstance(name, str) or (name not in attention and name not in declared.names("schemes")):
                allowed = {*attention, *declared.names("schemes")}
                raise UnknownName(f"unknown attention {name!r} in {field}; {nearest(str(name), allowed)}")
    return _tuples(list(stages))


def _assign(state: dict[str, Any], path: str, value: Any, grids: Collection[str]) -> None:
    """Sets the value at a dotted path inside nested mappings and lists."""
    *parents, last = path.split(".")
    node, walked, schemes = state, "", declared.names("schemes")
    for depth, key in enumerate(parents):
        if walked == "attention" and key not in node and key in schemes:
            node[key] = {"scheme": key}  # a scheme that was used by its own name gets an entry
        if depth == 2 and parents[0] == "attention" and key not in node and node.get("scheme") in schemes:
            default = declared.options_of(node["scheme"]).get(key, inspect.Parameter.empty)
            if default is not inspect.Parameter.empty:
                node[key] = plain(default)
        node = node[_key(node, key, path, walked, grids)]
        walked = f"{walked}.{key}" if walked else key
    # An entry of `attention` and an option of a scheme may be new; whether they mean something is checked at the end.
    new = parents == ["attention"] or (len(parents) == 2 and parents[0] == "attention")
    node[last if new else _key(node, last, path, walked, grids)] = value


def _key(node: Any, key: str, path: str, walked: str, grids: Collection[str]) -> str | int:
    if isinstance(node, dict):
        allowed = {name: name for name in node}
    elif isinstance(node, list):
        allowed = {str(i): i for i in range(len(node))}
        if walked in grids:
            allowed.update({axis: i for i, axis in enumerate("thw")})
    else:
        raise UnknownName(f"the path {path!r} goes on after {walked!r}, which is the single value {node!r}")
    if key not in allowed:
        where = f"in {walked!r}" if walked else "in a model config"
        raise UnknownName(f"no key {key!r} {where} (path {path!r}); {nearest(key, allowed)}")
    return allowed[key]


def _check_attention_path(state: dict[str, Any], path: str) -> None:
    """A path to an option must name one of the scheme that the entry has after all changes."""
    parts = path.split(".")
    entry = state["attention"].get(parts[1]) if len(parts) >= 3 and parts[0] == "attention" else None
    if isinstance(entry, dict) and isinstance(entry.get("scheme"), str) and parts[2] != "scheme":
        declared.check_option(entry["scheme"], parts[2], f"attention.{parts[1]}: ", UnknownName)
