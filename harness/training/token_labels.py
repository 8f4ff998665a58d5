"""Token labelling: a trained teacher gives every position of the student's last map a soft label of its own.

Sources: DualFormer, arXiv:2112.04674, which follows Jiang et al., All Tokens Matter, arXiv:2104.10858, and its released
code. The released code has traps, which this module is built to exclude:

- Its teacher is a submodule, so that the training loop's `train()` switches the teacher's dropout on and lets its
  BatchNorm statistics drift. Ours is no submodule and is put into evaluation mode before each use.
- As a submodule, the teacher is saved with the student and needed in testing. Ours is neither.
- Its teacher's weights are loaded leniently, so that a checkpoint with another top entry leaves a random teacher
  without a word. Ours must fit completely.
- Time steps of a longer teacher map are averaged half a clip apart (`reconciled`).
- Teacher scores that are not among the largest are set to 0 before the softmax, not removed: with low scores that is a
  lot of weight for them. The paper gives no formula, so this is kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from einops import reduce
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import backbones
from backbones import Backbone, Config
from harness.spec.recipe import TokenLabels
from harness.training.objective import Batch, right


class TokenLabelled(nn.Module):
    """A student: a model and, for training only, a head that classifies every position of its normed last map.

    In training, `forward` gives (scores of the clip "b k", scores of the positions "b t h w k"); in evaluation the
    scores of the clip alone. The trained model is `student`; it is what gets saved and shared.

    The head is that of the released code: linear d-2d, dropout, ReLU, linear 2d-4d, dropout, ReLU, linear 4d-classes,
    initialised as PyTorch does. Raises: ValueError for a student without classifier.
    """

    def __init__(self, student: Backbone, settings: TokenLabels):
        super().__init__()
        if not student.num_classes:
            raise ValueError("the student has no classifier; make it with num_classes of 1 or more")
        self.student = student
        dim, rate = student.config.describe()["widths"][-1], settings.dropout
        self.position_head = nn.Sequential(
            nn.Linear(dim, 2 * dim),
            nn.Dropout(rate),
            nn.ReLU(),
            nn.Linear(2 * dim, 4 * dim),
            nn.Dropout(rate),
            nn.ReLU(),
            nn.Linear(4 * dim, student.num_classes),
        )

    def forward(self, clip: Tensor) -> Tensor | tuple[Float[Tensor, "b k"], Float[Tensor, "b t h w k"]]:
        if not self.training:
            return self.student(clip)
        tokens = self.student.tokens(clip)
        return self.student.scores(tokens), self.position_head(self.student.norm(tokens.map))


class Annotator:
    """A frozen teacher: clips in, the scores of its classifier at every position of its normed last map out.

    Not a module, on purpose: nothing that is done to the student (train, save, optimise, wrap) reaches it.
    """

    def __init__(self, teacher: Backbone):
        """Raises: ValueError for a teacher without a classifier of single tokens."""
        if not teacher.num_classes:
            raise ValueError("the teacher has no classifier, which is what labels the positions; take a trained one")
        if not isinstance(teacher.classifier, nn.Linear):
            raise ValueError(
                f"the classifier of a {teacher.config.family} model reads more than one token, so it labels no "
                "positions; take a teacher of another family"
            )
        self._teacher = teacher.requires_grad_(False).eval()

    @property
    def num_classes(self) -> int:
        return self._teacher.num_classes

    def to(self, *args, **kwargs) -> Annotator:
        """Moves the teacher, as `nn.Module.to` does."""
        self._teacher.to(*args, **kwargs)
        return self

    @torch.no_grad()  # not inference_mode: the loss keeps the labels for its backward pass
    def __call__(self, clip: Tensor) -> Float[Tensor, "b t h w k"]:
        self._teacher.eval()  # whoever else holds it may have called train()
        assert self._teacher.classifier is not None
        return self._teacher.classifier(self._teacher.norm(self._teacher.tokens(clip).map))


class TokenLabelling:
    """The objective: `loss` below. What is trained must be a `TokenLabelled`."""

    def __init__(self, teacher: Annotator, settings: TokenLabels, autocast: torch.autocast):
        self.teacher, self.settings, self.autocast = teacher, settings, autocast

    def __call__(self, model: Callable[[Tensor], Any], batch: Batch) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
        with self.autocast:
            teacher = self.teacher(batch.clips)
        answers = model(batch.clips)
        return loss(answers, batch.targets, teacher, self.settings), right(answers[0], batch.labels)


def annotator(
    checkpoint: str | os.PathLike[str],
    num_classes: int,
    model: str | Config | None = None,
    clip: tuple[int, int, int] | None = None,
) -> Annotator:
    """The teacher of a file: of one of ours by the file alone, of a published one as `model`.

    Args:
        num_classes: of the student.
        model: a name of `backbones`, or a config.
        clip: frames, height and width of the clips, where they differ from the model's; for published files.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: not every tensor of the teacher is in the file, or it is of other classes.
    """
    try:
        teacher = backbones.from_checkpoint(checkpoint)
    except backbones.CheckpointError as error:
        if model is None or "holds no model config" not in str(error):
            raise
        teacher = backbones.create(model, num_classes, changes={"clip": list(clip)} if clip else None)
        backbones.load_checkpoint(teacher, checkpoint, strict=True)
    if teacher.num_classes != num_classes:
        raise backbones.CheckpointError(
            f"the teacher in {checkpoint} knows {teacher.num_classes} classes, the student {num_classes}; "
            "take a teacher that was trained on the same data"
        )
    return Annotator(teacher)


def reconciled(
    teacher: Float[Tensor, "b t h w k"], shape: tuple[int, int, int], grouping: str
) -> Float[Tensor, "b s h w k"]:
    """The teacher's map with as many time steps as the student's, by averaging.

    With a ratio r of their lengths, "neighbours" averages r steps in a row. "strided" is what the released code does:
    it averages steps i, i + T/r, i + 2T/r, ... of T, which are far apart in the clip.

    Raises: ValueError if the maps differ in height or width, or the student's length does not divide the teacher's.
    """
    teacher_shape, (frames, *size) = tuple(teacher.shape[1:4]), shape
    if teacher_shape[1:] != tuple(size) or teacher_shape[0] % frames:
        raise ValueError(
            f"the teacher's map {teacher_shape} does not match the student's {tuple(shape)}: height and width must be "
            f"equal, and {frames} time steps must divide {teacher_shape[0]}; give both models clips of one size"
        )
    if teacher_shape[0] == frames:
        return teacher
    pattern = {"strided": "b (r s) h w k -> b s h w k", "neighbours": "b (s r) h w k -> b s h w k"}[grouping]
    return reduce(teacher, pattern, "mean", s=frames)


def targets(teacher: Float[Tensor, "*positions k"], top_k: int) -> Float[Tensor, "*positions k"]:
    """Soft labels: the softmax over all classes, after scores below the `top_k`-th largest are set to 0.

    The other classes keep the weight of a score of 0, they are not removed. With fewer classes than `top_k` nothing is
    set to 0.
    """
    smallest = teacher.topk(min(top_k, teacher.shape[-1]), dim=-1).values[..., -1:]
    return teacher.where(teacher >= smallest, 0).softmax(dim=-1)


def loss(
    outputs: tuple[Float[Tensor, "b k"], Float[Tensor, "b t h w k"]],
    label: Int[Tensor, " b"] | Float[Tensor, "b k"],
    teacher: Float[Tensor, "b s h w k"],
    settings: TokenLabels,
) -> Float[Tensor, ""]:
    """Cross-entropy of the clip's scores with its label, and of every position's with the teacher's soft label.

    weight * the first + (1 - weight) * the mean of the second over clips and positions. In float32 at least. `label`:
    class numbers, or shares of the classes (mixup, smoothing).
    """
    pooled, positions, teacher = (x if x.dtype == torch.float64 else x.float() for x in (*outputs, teacher))
    if label.is_floating_point():
        label = label.to(pooled.dtype)
    soft = targets(reconciled(teacher, tuple(positions.shape[1:4]), settings.grouping), settings.top_k)
    token_loss = -(soft * positions.log_softmax(dim=-1)).sum(dim=-1).mean()
    return settings.weight * cross_entropy(pooled, label) + (1 - settings.weight) * token_loss
