"""Training on several data sets at once: one backbone, a classifier for each set, projections between their classes.

Label spaces stay apart. A clip is of one set and answers to the classifier of that set, and to the projections of that
set's classes from the scores of the others; so the sets teach each other without anybody having matched their classes.
A second loss keeps the features from repeating each other.

Source: Liang et al., Multi-dataset Training of Transformers for Robust Action Recognition (MultiTrain),
arXiv:2209.12362, its supplement, and JunweiLiang/MultiTrain at commit 16723114. Projections and expander serve training
only. How sets are told apart in a batch: the classes of all sets stand in one list, set after set
(`backbones.sets.Spans`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from backbones.family import Backbone
from backbones.layouts import Layout
from backbones.sets import SetClassifiers, Spans, TwoMaps, initialise
from harness.spec.recipe import ManySets
from harness.training.objective import Batch


class Answers(NamedTuple):
    """Scores of each set's classifier, of each projection (from, to), and the expanded features."""

    scores: dict[str, Float[Tensor, "b _k"]]
    projected: dict[tuple[str, str], Float[Tensor, "b _k"]]
    expanded: Float[Tensor, "b d"]


class ManySetsModel(nn.Module):
    """A backbone with a classifier for each set (`backbones.sets`), and beside it what serves training only.

    Raises: ValueError, where the names of sets leave open which projection is whose.
    """

    def __init__(self, student: Backbone, settings: ManySets):
        super().__init__()
        classifier = student.classifier
        assert isinstance(classifier, SetClassifiers)
        classes, dim = classifier.classes, classifier.dim
        classifier.shows_features = True
        self.student, self.spans = student, Spans.made(classes)
        pairs = [(a, b) for a in classes for b in classes if a != b and settings.projections]
        self.projected = {pair: "_".join(pair) for pair in pairs}
        if len(set(self.projected.values())) < len(pairs):
            raise ValueError(f"the names of the sets {', '.join(classes)} make two pairs of one name; rename one")
        self.projections = nn.ModuleDict(
            {key: nn.Linear(classes[a], classes[b], bias=False) for (a, b), key in self.projected.items()}
        )
        self.expander = TwoMaps(dim, settings.expander, dim) if settings.informative else None
        initialise(self.projections)
        if self.expander is not None:
            initialise(self.expander)

    def forward(self, clip: Tensor) -> Answers | Float[Tensor, "b k"]:
        """In training all answers; in evaluation the scores of all sets side by side, as their classes are listed."""
        output = self.student(clip)
        if not self.training:
            return output
        scores = {name: output[:, first:end] for name, (first, end) in self.spans.ranges.items()}
        features = output[:, self.student.num_classes :]
        projected = {pair: self.projections[key](scores[pair[0]]) for pair, key in self.projected.items()}
        return Answers(scores, projected, features if self.expander is None else self.expander(features))


class ManySetsObjective:
    """The objective: both losses, added. What is trained must be a `ManySetsModel` with the same spans."""

    def __init__(self, spans: Spans, settings: ManySets):
        self.spans, self.settings = spans, settings

    def __call__(self, model: Callable[[Tensor], Any], batch: Batch) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
        answers = model(batch.clips)
        loss = classification(answers, batch.targets, batch.labels, self.spans, self.settings)
        if self.settings.informative:
            loss = loss + self.settings.informative * informative(gathered(answers.expanded), self.settings)
        return loss, self._right(answers, batch.labels)

    def _right(self, answers: Answers, labels: Int[Tensor, " b"]) -> Int[Tensor, ""]:
        """Answers are chosen among the classes of the clip's own set."""
        total = torch.zeros((), dtype=torch.int64, device=labels.device)
        for name, scores in answers.scores.items():
            mask = self.spans.mask(name, labels)
            total += ((scores.detach().argmax(1) + self.spans.ranges[name][0] == labels) & mask).sum()
        return total


def classification(
    answers: Answers,
    targets: Float[Tensor, "b k"],
    labels: Int[Tensor, " b"],
    spans: Spans,
    settings: ManySets,
) -> Float[Tensor, ""]:
    """Of each clip the cross-entropy of its set's classifier, and the mean of that of the projections onto its set.

    Averaged over the whole batch, so that a set weighs by its share of it, times its weight. `targets` are shares of
    the classes of all sets; a clip's own are read. Where clips of two sets were mixed, those of its own set do not add
    up to one, as in the released code.
    """
    total = targets.new_zeros((), dtype=_wide(answers.expanded))
    for name, scores in answers.scores.items():
        first, end = spans.ranges[name]
        set_targets = targets[:, first:end].to(total.dtype)
        losses = cross_entropy(scores.to(total.dtype), set_targets, reduction="none")
        others = [projected for (_, destination), projected in answers.projected.items() if destination == name]
        for projected in others:
            part = cross_entropy(projected.to(total.dtype), set_targets, reduction="none")
            losses = losses + settings.projection_weight / len(others) * part
        weight = settings.of(name).weight
        total = total + weight * (losses * spans.mask(name, labels)).sum()
    return total / len(labels)


def informative(z: Float[Tensor, "n d"], settings: ManySets) -> Float[Tensor, ""]:
    """Each feature shall vary over the batch, no two alike: variance and covariance terms of VICReg, without its third.

    std_weight mean_j max(0, 1 - sqrt(var_j + 1e-4)) + cov_weight sum_{j != k} cov_jk^2 / d. Of one clip it is 0: there
    is no variance.
    """
    if len(z) < 2:
        return z.sum() * 0
    z = z.to(_wide(z))
    z = z - z.mean(0)
    varied = (1 - (z.var(0) + 1e-4).sqrt()).clamp_min(0).mean()
    covariance = z.mT @ z / (len(z) - 1)
    off_diagonal = covariance.square().sum() - covariance.diagonal().square().sum()
    return settings.std_weight * varied + settings.cov_weight * off_diagonal / z.shape[1]


def gathered(z: Float[Tensor, "b d"]) -> Float[Tensor, "n d"]:
    """The features of all processes; gradients flow through this one's alone, as in the released code."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return z
    parts = [torch.empty_like(z) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, z.detach().contiguous())
    parts[dist.get_rank()] = z
    return torch.cat(parts)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


RELEASED = Layout(  # the names of the released code beside the model's, which `backbones.multiscale` knows
    "MultiTrain",
    r"^head\.cross_dataset_heads\.",
    renames=((r"^head\.cross_dataset_heads\.", "projections."),),
)
