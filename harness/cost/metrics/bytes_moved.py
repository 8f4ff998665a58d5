"""Bytes that the operators of a forward pass read and write, as an exact integer; beside `macs`, their multiply-adds.

Counted from shapes, not timed: every operator reads its inputs from memory and writes its outputs once. What an
operator finds in a cache, because the one before it left it there, is counted all the same, and so is what a compiler
would fuse away: real traffic is smaller. An operator is what the model calls: a linear map with its bias, a norm, a
residual sum. Attention is one operator on every kernel, as fused attention computes it: it reads queries, keys, values
and the bias and writes what was found, never the scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from harness.cost.build import build, example
from harness.cost.metrics import register
from harness.spec.case import Case
from records.record import Measurement, Quantity

BYTES_MOVED = Quantity("bytes_moved", "counted", "bytes moved", "bytes", "lower")
WRITE_ONLY = {"copy_", "fill_", "zero_"}  # in place, and yet nothing of what was there is read


@register("bytes_moved", BYTES_MOVED, order=3)
def bytes_moved(case: Case) -> list[Measurement]:
    """Of one forward pass of the case's batch in its dtype, classifier included; each pass reads the weights once.

    The operators of eager PyTorch, also where the case is compiled.
    """
    dtype = getattr(torch, case.dtype)
    model = build(case, device="meta", kernel="sdpa").to(dtype)
    counted = sum(by_operator(model, example(case).to(dtype)).values())
    details = {"counter": "inputs read and outputs written by each operator on the meta device, attention as one"}
    return [BYTES_MOVED.of([counted], details)]


def by_operator(model: nn.Module, *inputs: Tensor) -> dict[str, int]:
    """Bytes read and written in one forward pass, by the name of the operator; 0 for one that only looks at shapes.

    Inference mode shows the operators that the model calls, before PyTorch takes them apart: with gradients merely
    off, a linear map would be views and a product, and attention on this device its scores and softmax. What follows
    from shapes alone (masks, the order of windows) schemes make once and keep: making it counts 0, reading it counts.
    """
    moved: dict[str, int] = {}
    constants: dict[int, Tensor] = {}  # by storage; held here, so that no later tensor is given the same one

    class Counter(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            outputs = func(*args, **kwargs)
            call = _Call.of(func, args, kwargs, outputs)
            moved.setdefault(call.name, 0)
            if all(_storage(tensor) in constants for tensor in (*call.inputs, *call.overwritten)):
                constants.update((_storage(tensor), tensor) for tensor in call.new)
                return outputs
            for tensor in call.overwritten:
                constants.pop(_storage(tensor), None)
            if "empty" not in call.name:  # memory without content
                moved[call.name] += sum(map(_bytes, (*call.read, *call.new, *call.overwritten)))
            return outputs

    with torch.inference_mode(), Counter():
        model(*inputs)
    return moved


@dataclass(frozen=True)
class _Call:
    """One call of an operator: the tensors given to it, and those that it reads, makes or overwrites.

    A view reads and makes nothing, nor does a question about shapes.
    """

    name: str
    inputs: list[Tensor]
    read: list[Tensor]
    new: list[Tensor]
    overwritten: list[Tensor]

    @classmethod
    def of(cls, func, args: tuple, kwargs: dict, outputs) -> _Call:
        name, arguments = func.overloadpacket.__name__, func._schema.arguments
        values = dict(zip((argument.name for argument in arguments), args, strict=False)) | kwargs
        inputs, read, overwritten = [], [], []
        for argument in arguments:
            tensors = _tensors(values.get(argument.name))
            writes = argument.alias_info is not None and argument.alias_info.is_write
            inputs += [] if writes and argument.is_out else tensors
            read += [] if writes and (argument.is_out or name in WRITE_ONLY) else tensors
            overwritten += tensors if writes else []
        existing = {_storage(tensor) for tensor in (*inputs, *overwritten)}
        new = [tensor for tensor in _tensors(outputs) if _storage(tensor) not in existing]
        for_shape = name.endswith("_like") or name.startswith("new_")  # the input says how large, no more
        if for_shape or not (new or overwritten):
            read = []
        return cls(name, inputs, read, new, overwritten)


def _tensors(value) -> list[Tensor]:
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _tensors(item)]
    return [value] if isinstance(value, torch.Tensor) else []


def _storage(tensor: Tensor) -> int:
    """Equal for tensors that share memory; on the meta device they have no address to compare."""
    return tensor.untyped_storage()._cdata


def _bytes(tensor: Tensor) -> int:
    """What a tensor takes in memory: an expanded axis has one element, and overlapping windows share theirs."""
    axes = [(size, stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    if tensor.numel() == 0:
        return 0
    spanned = 1 + sum((size - 1) * stride for size, stride in axes)
    return min(math.prod(size for size, _ in axes), spanned) * tensor.element_size()
