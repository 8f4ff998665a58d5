"""How eager PyTorch works on a CPU here: in chunks that stay in its cache, with backward passes that are fast there.

A large tensor costs an eager program on a CPU more than the arithmetic on it: it goes to memory and comes back for the
next operator, and where the C library maps it afresh (above 32 MiB glibc always does) the system first clears its
pages. What lies between the operators of a branch (queries, keys and values; scores; the hidden layer of an MLP) is
several times as large as the tokens. Done for some of the tokens or sequences at a time, it is overwritten while it is
still in the cache.

`eager` and `inference` are the one door to all of it, in this room and in the schemes and models that have a form of
their own for a CPU; `off()` shuts it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from attention_zoo.dispatch import observed

BYTES = 4 * 2**20  # what a chunk holds between operators; 2 to 8 MiB are equally fast, 1 and 16 are slower
_open = True


def eager(x: Tensor) -> bool:
    """Whether nothing but eager PyTorch on a CPU is at work."""
    return _open and x.device.type == "cpu" and not observed()


def inference(x: Tensor) -> bool:
    """Whether a branch may run in chunks that keep nothing: eagerly on a CPU, without gradients."""
    return not torch.is_grad_enabled() and eager(x)


@contextlib.contextmanager
def off() -> Iterator[None]:
    """PyTorch's own operators on all the tokens at once meanwhile: to compare results, or to time what they save.

    It holds for the process, not for the thread. A backward pass is that of its forward pass.
    """
    global _open
    before, _open = _open, False
    try:
        yield
    finally:
        _open = before


def chunk_length(x: Tensor, count: int, numbers: int, weights: int = 0) -> int:
    """How many of `count` tokens (or sequences) make a chunk; the chunks are about equally long.

    Each has so many `numbers` between the operators. A chunk holds twice the `weights` of the linear maps on it at
    least, for all of them are read and laid out anew for each chunk.
    """
    whole = max(BYTES / x.element_size(), 2 * weights) / numbers
    return max(1, math.ceil(count / max(1, round(count / whole))))


def joined(parts: Iterable[Tensor], like: Tensor, dim: int = 0) -> Tensor:
    """The parts along `dim`, each taken when it is needed; together they are as long as `like` there.

    Unlike `torch.cat`, which would hold all parts and then all of them again.
    """
    whole, start = None, 0
    for part in parts:
        if part.shape[dim] == like.shape[dim]:
            return part
        if whole is None:  # only now is its number format known: autocast may have changed it
            whole = part.new_empty(*(like.shape[dim] if i == dim else n for i, n in enumerate(part.shape)))
        whole.narrow(dim, start, part.shape[dim]).copy_(part)
        start += part.shape[dim]
    return whole
