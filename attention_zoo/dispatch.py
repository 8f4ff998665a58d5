"""Who stands between a program and PyTorch's operators: compilers, tracers, counters, hooks, autocast."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode_stack


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


def watched(module: nn.Module) -> bool:
    """Whether somebody has put hooks on a module, which must then be called as a whole."""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return any(hooks)


@contextlib.contextmanager
def unwatched() -> Iterator[None]:
    """Tensors made here are kept: no counter should see them made by the first of many passes, nor may they be those
    of inference mode, which no training step could use. Fakes are of one trace: there nothing is kept. A tracer, whose
    second run finds what the first one kept, sees constants both times.
    """
    hidden = _disable_current_modes() if detect_fake_mode() is None else contextlib.nullcontext()
    tracing = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)
    try:
        with torch.inference_mode(False), hidden:
            yield
    finally:
        torch._C._set_tracing_state(tracing)


def autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The inputs of a function with a backward pass of its own, as autocast would have them.

    It reaches the forward pass of such a function, but not the backward pass.
    """
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device) or tensors[0].dtype == torch.float64:
        return tensors
    narrow = torch.get_autocast_dtype(device)
    return tuple(None if tensor is None else tensor.to(narrow) for tensor in tensors)
