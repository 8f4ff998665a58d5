"""A classifier for each of several data sets on one backbone: label spaces stay apart.

The classes of all sets stand in one list, set after set. In evaluation a model gives the scores of all of them, side by
side; `answering` makes of it a model of one set. Checkpoints hold all classifiers and say in their metadata what they
are, so that the file alone makes the model again.

Source: MultiTrain, arXiv:2209.12362, and JunweiLiang/MultiTrain at commit 16723114, whose heads these are.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu

from backbones.family import Backbone

OF_A_SET = re.compile(r"^classifier\.[^.]+\.fc[12]\.")  # the tensors of one


class Spans(NamedTuple):
    """Where the classes of each set stand in the list of all: name -> (first, behind the last)."""

    ranges: dict[str, tuple[int, int]]

    @classmethod
    def made(cls, classes: Mapping[str, int]) -> Spans:
        spans, first = {}, 0
        for name, count in classes.items():
            spans[name] = (first, first + count)
            first += count
        return cls(spans)

    def mask(self, name: str, labels: Int[Tensor, " b"]) -> Tensor:
        """Which clips are of a set."""
        first, end = self.ranges[name]
        return (labels >= first) & (labels < end)


class TwoMaps(nn.Module):
    """Linear, GELU, linear; with dropout behind both, as the released heads have it: scores are dropped, too."""

    def __init__(self, dim: int, hidden: int, out_dim: int, dropout: float = 0.0):
        super().__init__()
        self.fc1, self.fc2, self.dropout = nn.Linear(dim, hidden), nn.Linear(hidden, out_dim), nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "b *n d"]) -> Float[Tensor, "b *n _d"]:
        return self.dropout(self.fc2(self.dropout(gelu(self.fc1(x)))))


class SetClassifiers(nn.ModuleDict):
    """The scores of all sets side by side. With `shows_features`, in training, the features stand behind them, which
    the losses of training on several sets need as well.

    Args:
        dim: of the features.
        classes: how many each set has, in the order of the list of all classes.
        hidden: width between the two linear maps.
    """

    def __init__(self, dim: int, classes: Mapping[str, int], hidden: int, dropout: float):
        super().__init__({name: TwoMaps(dim, hidden, count, dropout) for name, count in classes.items()})
        self.classes, self.dim, self.hidden, self.rate = dict(classes), dim, hidden, dropout
        self.shows_features = False
        initialise(self)

    def forward(self, x: Float[Tensor, "b *n d"]) -> Float[Tensor, "b *n _k"]:
        behind = [x] if self.shows_features and self.training else []
        return torch.cat([*(classifier(x) for classifier in self.values()), *behind], -1)

    def metadata(self) -> str:
        """What a checkpoint has to say of it."""
        return json.dumps({"classes": self.classes, "hidden": self.hidden, "dropout": self.rate})


def initialise(module: nn.Module) -> None:
    """Weights of linear maps truncated normal, biases 0: as all heads of the released code begin."""
    for linear in (m for m in module.modules() if isinstance(m, nn.Linear)):
        nn.init.trunc_normal_(linear.weight, std=0.02)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)


def with_sets(model: Backbone, classes: Mapping[str, int], hidden: int, dropout: float) -> Backbone:
    """The model with a classifier for each set in place of its own, which says how wide the features are.

    Raises: ValueError, where it has none.
    """
    linears = [] if model.classifier is None else [m for m in model.classifier.modules() if isinstance(m, nn.Linear)]
    if not linears:
        raise ValueError("the model has no classifier to put those of several sets in place of; make it with classes")
    model.classifier = SetClassifiers(linears[0].in_features, classes, hidden, dropout).to(linears[0].weight.device)
    model.num_classes = sum(classes.values())
    model.dropout = nn.Identity()  # before the classifier; these have their own, and other losses read the features
    return model


def sets_of(model: nn.Module) -> dict[str, int]:
    """How many classes each set of a model has; empty for a model of one classifier."""
    classifier = getattr(model, "classifier", None)
    return dict(classifier.classes) if isinstance(classifier, SetClassifiers) else {}


def sets_in(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What `with_sets` needs for the tensors of a file; empty where they are of one classifier."""
    names = [match[1] for key in tensors if (match := re.match(r"^classifier\.([^.]+)\.fc2\.weight$", key))]
    if not names:
        return {}
    classes = {name: tensors[f"classifier.{name}.fc2.weight"].shape[0] for name in names}
    return {"classes": classes, "hidden": tensors[f"classifier.{names[0]}.fc1.weight"].shape[0], "dropout": 0.5}


def as_in(model: Backbone, original: Backbone) -> Backbone:
    """The model with classifiers as the original has them, where it has several."""
    classifier = original.classifier
    if not isinstance(classifier, SetClassifiers):
        return model
    return with_sets(model, classifier.classes, classifier.hidden, classifier.rate)


def answering(model: Backbone, name: str) -> Backbone:
    """The same weights as a model of one of its sets."""
    alone = copy.copy(model)
    alone._modules = dict(model._modules)  # so that another classifier here leaves the original its own
    assert isinstance(model.classifier, SetClassifiers)
    alone.classifier, alone.num_classes = model.classifier[name], model.classifier.classes[name]
    return alone
