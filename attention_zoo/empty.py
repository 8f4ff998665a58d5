"""Batches without a clip, as the last one of a filtered loader: sizes of parts, of windows or of chunks, cannot be told
from a number of elements that is zero.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

CLIPS = 2  # of zeros, that go along: BatchNorm in training refuses a single value


def of_any_batch(forward: Callable) -> Callable:
    """The `forward` of a module, for batches without a clip too: shape, format and gradients, which are zero."""

    @functools.wraps(forward)
    def checked(module: nn.Module, *inputs, **named):
        if not _without_clips(inputs):
            return forward(module, *inputs, **named)
        padded = (torch.cat([x, x.new_zeros(CLIPS, *x.shape[1:])]) if isinstance(x, Tensor) else x for x in inputs)
        with frozen_statistics(module):
            y = forward(module, *padded, **named)
        return y[:0] if isinstance(y, Tensor) else tuple(part[:0] for part in y)

    return checked


def _without_clips(inputs: tuple) -> bool:
    """Not asked while a tracer records, which would warn of the question."""
    maps = not torch.jit.is_tracing() and bool(inputs) and isinstance(inputs[0], Tensor) and inputs[0].ndim == 5
    return maps and inputs[0].shape[0] == 0


@contextlib.contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """No batch norm updates its running statistics; what it computes stays the same.

    Not by `track_running_stats`: a checkpoint demands that both runs save the same number of tensors.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    before = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, batches in before:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(batches)
