"""Families of models: what one is, where they are found, and `create`, which builds a model of any of them.

How a family is added is in `docs/adding.md`. Families of ours have their configs and named models in
`backbones/configs/<name>.py`, so that a wrong value is told before torch is loaded.
"""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

import attention_zoo
from attention_zoo import Grid, Tokens, UnknownName
from attention_zoo.empty import of_any_batch
from attention_zoo.registry import nearest
from backbones.config import Config
from backbones.layouts import Layout
from backbones.named import config, families
from backbones.residual import Block

REQUIRED = ("clip", "in_channels", "num_classes", "classifier")  # of what is built


class Backbone(nn.Module, ABC):
    """What every model is: from clips to class scores, to be counted, timed, trained and tested. The contract only.

    A subclass that lacks a method of it cannot be built: Python names what is missing.
    """

    config: Config | None = None  # set by `create`; written into checkpoints
    clip: Grid  # nominal frames, height and width
    in_channels: int
    num_classes: int
    norm: nn.Module  # the final one
    classifier: nn.Module | None  # its parameters are named `classifier.*`; None where num_classes is 0
    activation_checkpointing: bool = False  # may be switched at any time; it acts in training only
    tunable: Mapping[str, str]  # as its config says; `create` sets it
    learns: str = "all"  # what `learning` has chosen of these

    def train(self, mode: bool = True) -> Backbone:
        """As ever, except that BatchNorm that does not learn keeps its running statistics: they are frozen, too."""
        super().train(mode)
        learnt = part(self, self.learns)
        for name, module in self.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and not learnt.search(f"{name}.weight"):
                module.eval()
        return self

    @of_any_batch
    def forward(self, clip: Tensor) -> Tensor:
        """Class scores "b k" of clips (b, channels, frames, height, width); without a classifier, pooled features.

        Raises: ValueError, for what is no such clip (see `parts.channels_last`). (Hence the plain annotation: the
        message is better than a checker's.)
        """
        return self.scores(self.tokens(clip))

    @abstractmethod
    def tokens(self, clip: Tensor) -> Tokens:
        """The tokens of the last block, before the final norm. `norm` of its map is what token labels are about."""

    @abstractmethod
    def scores(self, tokens: Tokens) -> Tensor:
        """What `forward` says of these tokens: normed, pooled, with dropout in training, classified."""

    @abstractmethod
    def blocks(self) -> dict[str, Block]:
        """All blocks by their names in the model, from the first to the last."""

    @abstractmethod
    def macs(self, classifier: bool = True) -> int:
        """Multiply-adds of one nominal clip in closed form: linear maps, convolutions, attention; padding included."""

    # A model all of whose schemes have `step` may take a clip frame by frame: folded over the frames, from the state
    # None, it gives what `forward` gives.
    # def step(self, frame: "b channels h w", state) -> (scores so far, state)


@dataclass(frozen=True)
class Origin:
    """Where models come from: paper, code and its licence, and what weights the authors published where."""

    paper: str = "this project"
    code: str = "this project"
    licence: str = "Apache-2.0"
    weights: str = "none"


@dataclass(frozen=True)
class Family:
    """What the registry knows of a family.

    Args:
        config: the class of its configs.
        build: (config, num_classes, kernel) -> the model, freshly initialised on the current default device.
        models: its named models, looked up at each call: {name: function that makes the config}.
        layouts: the names that its checkpoints may have, its own first.
        origins: of the models whose names begin so.
        from_image: (model, name of a tensor, tensors of an image model) -> what becomes of that tensor, and its values,
            a kind of `inflation.InflationReport`; None for the rule of the convolutional pyramids.
        of_image: (model, tensors of an image model) -> the same under this model's names, where they differ; before it.
    """

    name: str
    config: type[Config]
    build: Callable[[Any, int, str], Backbone]
    models: Callable[[], Mapping[str, Callable[[], Config]]]
    layouts: tuple[Layout, ...] = ()
    origins: Mapping[str, Origin] = field(default_factory=dict)
    from_image: Callable[[Any, str, Mapping[str, Tensor]], tuple[str, Tensor | None]] | None = None
    of_image: Callable[[Any, Mapping[str, Tensor]], dict[str, Tensor]] | None = None

    def __post_init__(self):
        """Raises: ValueError, for a config that could not be used, before anybody asks for a model of the family."""
        known = {*dir(self.config), *(field.name for field in dataclasses.fields(self.config))}
        lacking = [name for name in ("attention", "clip", "in_channels") if name not in known]
        if lacking := lacking + sorted(getattr(self.config, "__abstractmethods__", ())):
            raise ValueError(
                f"family {self.name!r}: {self.config.__name__} lacks {', '.join(lacking)}; "
                "backbones.config.Config says what they are"
            )
        if getattr(self.config, "family", None) != self.name:
            raise ValueError(f"family {self.name!r}: set family = {self.name!r} in {self.config.__name__}")


def origin(name: str) -> Origin:
    """Where a named model comes from: the entry of its family whose name it begins with, the longest if several."""
    origins = families.get(config(name).family).origins
    begun = sorted((start for start in origins if name.startswith(start)), key=len)
    return origins[begun[-1]] if begun else Origin()


def learning(model: Backbone, name: str) -> Backbone:
    """Freezes all parameters but those of one part, "all" for none, and returns the model.

    Raises: UnknownName (a KeyError), with the nearest part that this model has.
    """
    pattern = part(model, name)
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(bool(pattern.search(key)))
    model.learns = name
    return model.train(model.training)


def part(model: Backbone, name: str) -> re.Pattern[str]:
    """What the names of the tensors of one part have in common. Raises: UnknownName."""
    if name != "all" and name not in model.tunable:
        raise UnknownName(f"unknown part {name!r} to train; {nearest(name, ['all', *model.tunable])}")
    return re.compile("" if name == "all" else model.tunable[name])


def create(
    model: str | Config,
    num_classes: int = 400,
    *,
    kernel: str = attention_zoo.kernels.AUTO,
    changes: Mapping[str, Any] | None = None,
) -> Backbone:
    """Builds a model by name or from a config, freshly initialised on the current default device.

    Args:
        num_classes: 0 for a model without classifier, which returns pooled features.
        kernel: what computes the attention, see `attention_zoo.kernels`; results do not depend on it.
        changes: dotted paths into the config and their values, see `Config.changed`.
    """
    chosen = config(model) if isinstance(model, str) else model
    chosen = chosen.changed(changes) if changes else chosen
    built = families.get(chosen.family).build(chosen, num_classes, kernel)
    if lacking := [name for name in REQUIRED if not hasattr(built, name)]:
        raise ValueError(
            f"family {chosen.family!r}: {type(built).__name__} lacks {', '.join(lacking)}; set them in its __init__, "
            "see backbones.family.Backbone"
        )
    built.config, built.tunable = chosen, chosen.tunable
    return built


def layouts_of(first: str | None = None) -> tuple[Layout, ...]:
    """The checkpoint layouts of all families, those of the family `first` before the others."""
    ordered = sorted(families.names(), key=lambda name: name != first)
    return tuple(layout for name in ordered for layout in families.get(name).layouts)


def kinds(model: Backbone) -> dict[str, str]:
    """What parts of a model are, by their names in it: from the residuals of its blocks, and attributes `kind`.

    A part inside of a part belongs to the outer one where it says nothing itself.

    Raises: ValueError, where a parameter lies in no part that says what it is.
    """
    by_part = {} if model.classifier is None else {id(model.classifier): "classifier"}
    for block in model.blocks().values():
        for residual in block.residuals():
            by_part |= {id(part): kind for kind, parts in residual.parts().items() for part in parts}
    kind_of: dict[str, str] = {}
    for name, module in model.named_modules():
        stated = getattr(module, "kind", "norm" if isinstance(module, nn.LayerNorm) else None)
        if id(module) in by_part:
            kind_of[name] = by_part[id(module)]
        elif stated and not _inside(name, kind_of):
            kind_of[name] = stated
    for name, _ in model.named_parameters():
        if not _inside(name, kind_of):
            raise ValueError(f"parameter {name} belongs to no residual and to no part with an attribute kind")
    return kind_of


def _inside(name: str, parts: Mapping[str, str]) -> bool:
    return any(name.startswith(f"{part}.") for part in parts)
