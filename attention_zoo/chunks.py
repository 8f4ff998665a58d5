"""Eager work on a CPU in chunks that stay in its cache.

A large tensor costs an eager program on a CPU more than the arithmetic on it: it goes to memory and comes back for the
next operator, and where the C library maps it afresh (above 32 MiB glibc always does) the system first clears its
pages. What lies between the operators of a branch (queries, keys and values; scores; the hidden layer of an MLP) is
several times as large as the tokens. Done for some of the tokens or sequences at a time, it is overwritten while it is
still in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

BYTES = 4 * 2**20  # what a chunk holds between operators; 2 to 8 MiB are equally fast, 1 and 16 are slower


def observed() -> bool:
    """Whether more than eager PyTorch looks at the operators.

    A compiler fuses by itself; tracers, counters and function transforms should see PyTorch's own operators, once each.
    A dispatch mode that says that it `only_watches` sees what runs without it.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or not all(getattr(mode, "only_watches", False) for mode in _get_current_dispatch_mode_stack())
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def eager(x: Tensor) -> bool:
    """Whether nothing but eager PyTorch on a CPU is at work."""
    return x.device.type == "cpu" and not observed()


def inference(x: Tensor) -> bool:
    """Whether a branch may run in chunks that keep nothing: eagerly on a CPU, without gradients."""
    return not torch.is_grad_enabled() and eager(x)


def watched(module: nn.Module) -> bool:
    """Whether somebody has put hooks on a module, which must then be called as a whole."""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return any(hooks)


def autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The inputs of a function with a backward pass of its own, as autocast would have them.

    It reaches the forward pass of such a function, but not the backward pass.
    """
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device) or tensors[0].dtype == torch.float64:
        return tensors
    narrow = torch.get_autocast_dtype(device)
    return tuple(None if tensor is None else tensor.to(narrow) for tensor in tensors)


def length(x: Tensor, count: int, numbers: int, weights: int = 0) -> int:
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
