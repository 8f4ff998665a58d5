"""What a step of training makes smaller. Further ones (see `token_labels`) come by a recipe's own settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy


class Batch(NamedTuple):
    """One micro-batch as the model takes it."""

    clips: Float[Tensor, "b 3 t h w"]
    targets: Float[Tensor, "b k"]  # shares of the classes: after mixing and smoothing
    labels: Int[Tensor, " b"]


class Objective(Protocol):
    """A function of the module that is trained and a micro-batch; with parameters of its own, it wraps the model."""

    def __call__(self, model: Callable[[Tensor], Any], batch: Batch) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
        """The loss, averaged over the clips, and how many of them are answered right."""
        ...


def classification(model: Callable[[Tensor], Tensor], batch: Batch) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """The cross-entropy of the scores of the whole clip, in float32."""
    scores = model(batch.clips)
    return cross_entropy(scores.float(), batch.targets), right(scores, batch.labels)


def right(scores: Float[Tensor, "b k"], labels: Int[Tensor, " b"]) -> Int[Tensor, ""]:
    return (scores.detach().argmax(-1) == labels).sum()
