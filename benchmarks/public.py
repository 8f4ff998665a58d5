"""The family `public`: a model of ours by its configuration, computed by the code of somebody else.

A module of `benchmarks` registers a `Peer`, and for each model that both have there is one here, named after both:
`benchmarks.public.torchvision_swin3d_t` beside `video_swin_tiny`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import backbones
from attention_zoo import Grid, Registry, Tokens
from backbones.config import Config
from backbones.family import Backbone, Family, families


@dataclass(frozen=True)
class Peer:
    """An implementation of somebody else.

    Args:
        ours: our model of the same function, by its name here.
        make: (our config, num_classes) -> their module, from clips (b, 3, t, h, w) to class scores. Raises: `Absent`.
        renamed: their weights by our names; a name that is not known stays, and fits no model of ours.
        classifier: the name of their last linear map.
        fitted: what our config has to be for their code to take its clip; most take any.
    """

    ours: Mapping[str, str]
    make: Callable[[Config, int], nn.Module]
    renamed: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
    classifier: str
    fitted: Callable[[Config], Config] = lambda config: config


class Absent(NotImplementedError):
    """The package is not installed or does not load; the message says the remedy."""


NAME = "benchmarks.public"  # a dotted name is imported where it is asked for: no registry finds a checkout's code
peers: Registry[Peer] = Registry("public implementation", "benchmarks")


@dataclass(frozen=True)
class PublicConfig(Config):
    """Of a model of ours, and who computes it."""

    family = NAME

    peer: str
    ours: dict[str, Any]
    attention: dict[str, dict[str, Any]] = field(default_factory=dict)  # none of our schemes

    @property
    def of(self) -> Config:
        """The config of our model."""
        return backbones.read_config(self.ours)

    @property
    def clip(self) -> Grid:
        return self.of.clip

    @property
    def in_channels(self) -> int:
        return self.of.in_channels

    def used(self) -> tuple[str, ...]:
        return ()

    def changed(self, changes: Mapping[str, Any]) -> PublicConfig:
        return self._with(self.of.changed(changes))

    def shrunk(self, width: float, depth: int | None, clip: Sequence[int]) -> PublicConfig:
        return self._with(self.of.shrunk(width, depth, clip))

    def sizes(self) -> dict[str, Any]:
        return self.of.sizes()

    def describe(self) -> dict[str, Any]:
        return self.of.describe()

    def _with(self, config: Config) -> PublicConfig:
        return PublicConfig(self.peer, peers.get(self.peer).fitted(config).to_dict())


class Public(Backbone):
    """Their module as one of our models. It shows neither blocks nor tokens."""

    def __init__(self, config: PublicConfig, num_classes: int):
        super().__init__()
        self.peer, self.of = peers.get(config.peer), config.of
        self.clip, self.in_channels, self.num_classes = config.clip, config.in_channels, num_classes
        self.activation_checkpointing = False
        self.theirs = self.peer.make(self.of, num_classes)

    @property
    def classifier(self) -> nn.Module:
        return self.theirs.get_submodule(self.peer.classifier)

    def forward(self, clip: Tensor) -> Tensor:
        return self.theirs(clip)

    def tokens(self, clip: Tensor) -> Tokens:
        raise ValueError(f"{type(self.theirs).__name__} shows no tokens; take our model of it, {self.of.family}")

    def scores(self, tokens: Tokens) -> Tensor:
        raise ValueError(f"{type(self.theirs).__name__} takes clips, no tokens; take our model of it, {self.of.family}")

    def counterpart(self) -> Backbone:
        """Our model with these weights, on the reference kernel: what this one has to equal."""
        first = next(self.parameters())
        with torch.random.fork_rng(devices=[]):
            ours = backbones.create(self.of, self.num_classes, kernel="reference").to(first)
        ours.load_state_dict(self.peer.renamed(self.theirs.state_dict()))
        return ours.train(self.training)

    def blocks(self) -> dict[str, Any]:
        return {}

    def macs(self, classifier: bool = True) -> int:
        """Those of our model: the counter must find as many in theirs."""
        with torch.device("meta"):
            return backbones.create(self.of, self.num_classes).macs(classifier)


def models() -> dict[str, Callable[[], PublicConfig]]:
    """Those of all peers, such as `benchmarks.public.torchvision_swin3d_t`."""
    return {
        f"{NAME}.{theirs}": partial(_named, name, ours)
        for name in peers.names()
        for theirs, ours in peers.get(name).ours.items()
    }


def _named(peer: str, ours: str) -> PublicConfig:
    changes = {"drop_path": 0.0, "dropout": 0.0}  # both random, and left out of theirs
    return PublicConfig(peer, peers.get(peer).fitted(backbones.config(ours).changed(changes)).to_dict())


families.register(NAME)(Family(NAME, PublicConfig, lambda config, classes, kernel: Public(config, classes), models))
