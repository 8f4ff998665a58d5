"""What a model is, as a value: everything that decides its function and its cost, nothing about where it runs.

A config is checked when it is made, so a wrong name or size fails before any model is built. It goes to JSON and back
(`to_dict`, `from_dict`) and is varied with dotted paths (`changed`), which is how the rows of an ablation are written.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, no_type_check

import attention_zoo
from attention_zoo import Grid, UnknownName
from attention_zoo.registry import nearest

Downsampling = Literal["conv", "merge"]
Position = Literal["peg", "relative", "none"]
RELATIVE_BIAS = "relative_bias"  # the option by which a scheme takes a relative position bias


@no_type_check  # it checks its values itself and takes lists where it keeps tuples
@dataclass(frozen=True)
class ModelConfig:
    """A pyramid and the attention scheme of each of its blocks.

    Args:
        attention: the schemes that `stages` may name: `{"G": {"scheme": "global_pyramid", "scales": [[8, 7, 7]]}}`.
            A registered scheme with its default options needs no entry.
        stages: for each stage a pattern of names, repeated over its blocks: `("L", "G")` alternates.
        widths, num_heads, depths: one number for each stage; depths count single blocks.
        clip: the nominal input: frames, height and width in pixels. Sizes of parameters may follow from it.
        mlp_ratio: hidden width of the MLP over the width of the stage.
        patch: frames and pixels that become one token of the first stage.
        temporal_pooling: how many time steps each further stage joins. Space is halved in each.
        downsampling: between stages, "conv" is DualFormer's patch embedding, "merge" Video Swin's patch merging.
        position: "peg" is DualFormer's conditional position encoding after the first block of each stage; "relative" a
            relative position bias in every scheme that has this option; "none" adds nothing to what the schemes do.
        position_kernel: size of the convolution of "peg".
        drop_path: stochastic depth of the last block, growing linearly from 0 in the first.
        dropout: before the classifier.
        activation_checkpointing: in training, compute the blocks again in the backward pass instead of keeping their
            activations.

    Raises:
        ValueError: a value is impossible.
        UnknownName: a scheme or a name in `stages` is unknown; the nearest is given.
    """

    attention: dict[str, dict[str, Any]]
    stages: tuple[tuple[str, ...], ...]
    widths: tuple[int, ...]
    num_heads: tuple[int, ...]
    depths: tuple[int, ...]
    clip: Grid = Grid(32, 224, 224)
    in_channels: int = 3
    mlp_ratio: float = 4.0
    patch: Grid = Grid(2, 4, 4)
    temporal_pooling: tuple[int, ...] = (1, 1, 1)
    downsampling: Downsampling = "conv"
    position: Position = "peg"
    position_kernel: Grid = Grid(3, 3, 3)
    drop_path: float = 0.1
    dropout: float = 0.5
    activation_checkpointing: bool = False

    def __post_init__(self):
        for name in ("clip", "patch", "position_kernel"):
            self._set(name, Grid.of(getattr(self, name), name))
        if not all(n % 2 for n in self.position_kernel):
            raise ValueError(f"position_kernel {tuple(self.position_kernel)} must be odd along every axis: (3, 3, 3)")
        for name in ("widths", "num_heads", "depths"):
            self._set(name, _positive_integers(name, getattr(self, name)))
        self._set("temporal_pooling", _positive_integers("temporal_pooling", self.temporal_pooling, empty=True))
        self._set("in_channels", *_positive_integers("in_channels", (self.in_channels,)))
        self._set("mlp_ratio", _number("mlp_ratio", self.mlp_ratio, zero=False))
        for name in ("drop_path", "dropout"):
            self._set(name, _number(name, getattr(self, name), zero=True, below=1.0))
        _choice("downsampling", self.downsampling, get_args(Downsampling))
        _choice("position", self.position, get_args(Position))
        if not isinstance(self.activation_checkpointing, bool):
            raise ValueError(f"activation_checkpointing {self.activation_checkpointing!r} is not true or false")
        self._set("attention", _attention(self.attention))
        self._set("stages", _patterns(self.stages, self.attention))
        self._check_lengths()
        for stage, (width, heads) in enumerate(zip(self.widths, self.num_heads, strict=True)):
            try:
                attention_zoo.check_heads(width, heads)
            except ValueError as error:
                raise ValueError(f"stage {stage}: {error}") from None
        if self.position == "relative":
            self._check_relative()

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_lengths(self) -> None:
        count = len(self.widths)
        for name in ("num_heads", "depths", "stages"):
            if len(getattr(self, name)) != count:
                raise ValueError(
                    f"{name} {getattr(self, name)} has {len(getattr(self, name))} entries, but widths {self.widths} "
                    f"makes {count} stages; give one for each stage"
                )
        if len(self.temporal_pooling) != count - 1:
            raise ValueError(
                f"temporal_pooling {self.temporal_pooling} has {len(self.temporal_pooling)} entries, expected "
                f"{count - 1}: one for each stage after the first"
            )

    def _check_relative(self) -> None:
        used = {name: self._entry(name) for pattern in self.stages for name in pattern}
        schemes = {scheme for scheme, _ in used.values()}
        if not any(RELATIVE_BIAS in attention_zoo.options_of(scheme) for scheme in schemes):
            able = [n for n in attention_zoo.schemes.names() if RELATIVE_BIAS in attention_zoo.options_of(n)]
            raise ValueError(
                f"position 'relative' needs a scheme with the option {RELATIVE_BIAS}; this model uses "
                f"{', '.join(sorted(schemes))}; schemes that have it: {', '.join(able)}"
            )
        for name, (_, options) in used.items():
            if options.get(RELATIVE_BIAS) is False:
                raise ValueError(
                    f"position 'relative' contradicts attention.{name}.{RELATIVE_BIAS} = False; remove one of the two"
                )

    def _entry(self, name: str) -> tuple[str, dict[str, Any]]:
        options = dict(self.attention.get(name, {"scheme": name}))
        return options.pop("scheme"), options

    def attention_at(self, stage: int, block: int) -> tuple[str, dict[str, Any]]:
        """The scheme of a block and its options."""
        pattern = self.stages[stage]
        scheme, options = self._entry(pattern[block % len(pattern)])
        if self.position == "relative" and RELATIVE_BIAS in attention_zoo.options_of(scheme):
            options[RELATIVE_BIAS] = True
        return scheme, options

    def to_dict(self) -> dict[str, Any]:
        """JSON values only; `from_dict` makes an equal config of them."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Raises UnknownName (a KeyError) for a key that no config has, ValueError for missing ones."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for key in values:
            if key not in fields:
                raise UnknownName(f"a model config has no key {key!r}; {nearest(str(key), fields)}")
        absent = [n for n, field in fields.items() if n not in values and field.default is dataclasses.MISSING]
        if absent:
            raise ValueError(f"the model config lacks {', '.join(absent)}")
        return cls(**values)

    def changed(self, changes: Mapping[str, Any]) -> ModelConfig:
        """A copy in which the values at dotted paths are others.

        `{"position": "none", "attention.G.scales": [[8, 7, 7]], "stages.3": ["L"], "clip.t": 16}`; a new entry of
        `attention` must be used in `stages`.

        Raises:
            UnknownName: a path leads nowhere; the nearest key is given.
        """
        state = self.to_dict()
        for path, value in changes.items():
            _assign(state, path, _plain(value))
        for path in changes:
            _check_attention_path(state, path)
        new = ModelConfig.from_dict(state)
        used = {name for pattern in new.stages for name in pattern}
        for name in new.attention.keys() - self.attention.keys() - used:
            raise UnknownName(
                f"attention.{name} is new, but no stage uses {name!r}; {nearest(name, self.attention)}, "
                "or name it in stages"
            )
        return new


def _plain(value: Any) -> Any:
    """The same value of JSON's types."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise ValueError(f"{value!r} of type {type(value).__name__} cannot be written as JSON; use numbers, text and lists")


def _tuples(value: Any) -> Any:
    """Lists as tuples, so that equal configs compare equal."""
    if isinstance(value, Mapping):
        return {key: _tuples(entry) for key, entry in value.items()}
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list | tuple) else value


def _positive_integers(name: str, values: Any, *, empty: bool = False) -> tuple[int, ...]:
    ok = isinstance(values, Sequence) and not isinstance(values, str) and (empty or len(values) > 0)
    if not ok or not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values):
        raise ValueError(f"{name} {values!r} is not a list of positive integers, such as [2, 2, 10, 4]")
    return tuple(values)


def _number(name: str, value: Any, *, zero: bool, below: float = math.inf) -> float:
    """A number above zero, or zero itself where that is allowed."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (0 <= value < below) or (value == 0 and not zero):
        limit = "" if below == math.inf else f" and below {below:g}"
        raise ValueError(f"{name} {value!r} is not a number {'at least' if zero else 'above'} 0{limit}")
    return float(value)


def _choice(name: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"unknown {name} {value!r}; {nearest(str(value), allowed)}")


def _attention(entries: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(entries, Mapping):
        raise ValueError(f"attention {entries!r} is not a mapping of names to schemes: {{L: {{scheme: local_window}}}}")
    checked = {}
    for name, entry in _plain(entries).items():
        if "." in name:
            raise ValueError(f"attention name {name!r} contains a dot, which dotted paths need")
        if not isinstance(entry, Mapping) or not isinstance(entry.get("scheme"), str):
            raise ValueError(
                f"attention.{name} {entry!r} is not a mapping with the key 'scheme'; "
                f"schemes: {', '.join(attention_zoo.schemes.names())}"
            )
        attention_zoo.schemes.get(entry["scheme"])
        for option in entry.keys() - {"scheme"}:
            _check_option(name, entry["scheme"], option, ValueError)
        checked[name] = _tuples(dict(entry))
    return checked


def _check_option(name: str, scheme: str, option: str, error: type[Exception]) -> None:
    allowed = attention_zoo.options_of(scheme)
    if option not in allowed:
        raise error(f"attention.{name}: {scheme} has no option {option!r}; {nearest(option, allowed)}")


def _patterns(stages: Any, attention: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    if not isinstance(stages, Sequence) or isinstance(stages, str):
        raise ValueError(f"stages {stages!r} is not a list of patterns, one for each stage: [[L, G], [L, G]]")
    for pattern in stages:
        if not isinstance(pattern, Sequence) or isinstance(pattern, str) or not pattern:
            raise ValueError(f"{pattern!r} in stages is not a list of attention names, such as [L, G]")
        for name in pattern:
            if not isinstance(name, str) or (name not in attention and name not in attention_zoo.schemes):
                allowed = {*attention, *attention_zoo.schemes.names()}
                raise UnknownName(f"unknown attention {name!r} in stages; {nearest(str(name), allowed)}")
    return _tuples(list(stages))


def _assign(state: dict[str, Any], path: str, value: Any) -> None:
    """Sets the value at a dotted path inside nested mappings and lists."""
    *parents, last = path.split(".")
    here, walked = state, ""
    for depth, key in enumerate(parents):
        if walked == "attention" and key not in here and key in attention_zoo.schemes:
            here[key] = {"scheme": key}  # a scheme that was used by its own name gets an entry
        if depth == 2 and parents[0] == "attention" and key not in here and here.get("scheme") in attention_zoo.schemes:
            default = attention_zoo.options_of(here["scheme"]).get(key, inspect.Parameter.empty)
            if default is not inspect.Parameter.empty:
                here[key] = _plain(default)
        here = here[_key(here, key, path, walked)]
        walked = f"{walked}.{key}" if walked else key
    # An entry of `attention` and an option of a scheme may be new; whether they mean something is checked at the end.
    new = parents == ["attention"] or (len(parents) == 2 and parents[0] == "attention")
    here[last if new else _key(here, last, path, walked)] = value


def _key(here: Any, key: str, path: str, walked: str) -> str | int:
    if isinstance(here, dict):
        allowed = {name: name for name in here}
    elif isinstance(here, list):
        allowed = {str(i): i for i in range(len(here))}
        if walked in ("clip", "patch", "position_kernel"):
            allowed.update({axis: i for i, axis in enumerate("thw")})
    else:
        raise UnknownName(f"the path {path!r} goes on after {walked!r}, which is the single value {here!r}")
    if key not in allowed:
        where = f"in {walked!r}" if walked else "in a model config"
        raise UnknownName(f"no key {key!r} {where} (path {path!r}); {nearest(key, allowed)}")
    return allowed[key]


def _check_attention_path(state: dict[str, Any], path: str) -> None:
    """A path to an option must name one of the scheme that the entry has after all changes."""
    parts = path.split(".")
    entry = state["attention"].get(parts[1]) if len(parts) >= 3 and parts[0] == "attention" else None
    if isinstance(entry, dict) and isinstance(entry.get("scheme"), str) and parts[2] != "scheme":
        _check_option(parts[1], entry["scheme"], parts[2], UnknownName)
