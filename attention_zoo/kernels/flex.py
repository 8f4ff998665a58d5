"""FlexAttention: compiled by PyTorch from the score function; the bias is read inside the kernel, never expanded."""

from __future__ import annotations

import functools
import inspect
import shutil

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from attention_zoo.kernels import Kernel, add

NEEDS = "a C++ compiler on CPU (forward only), Triton and CUDA on a GPU"


SHAPES = 256  # how many a process may compile; PyTorch's limit of 8 is fewer than one model needs
APART = {"isolate_recompiles": True} if "isolate_recompiles" in inspect.signature(torch.compile).parameters else {}


@functools.lru_cache(SHAPES)
def _compiled(*_key):
    """A function for inputs of one kind: with one for all, each call would try the guards of every kind before it.

    A PyTorch that cannot keep them apart tries the guards all the same.
    """
    # Static shapes: a dynamic kernel is compiled once but runs slower, and a model has few distinct shapes.
    return torch.compile(flex_attention, dynamic=False, **APART)


def _call(*tensors: Tensor, score_mod=None, bias: Tensor | None = None) -> Tensor:
    if torch.compiler.is_compiling():  # inside of a compiled model
        return flex_attention(*tensors, score_mod=score_mod)
    inputs = [*tensors, bias] if bias is not None else tensors
    compiled = _compiled(*((x.shape, x.dtype, x.device) for x in inputs))
    # Beyond the limit PyTorch goes on without compiling, with the full matrix of scores in memory.
    with torch._dynamo.config.patch(recompile_limit=SHAPES):
        return compiled(*tensors, score_mod=score_mod)


def flex(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:
        return _call(q, k, v)
    one_batch, one_head = bias.shape[0] == 1, bias.shape[1] == 1

    def add_bias(score: Tensor, b: Tensor, m: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + bias[0 if one_batch else b, 0 if one_head else m, i, j]

    return _call(q, k, v, score_mod=add_bias, bias=bias)


@functools.cache
def _find_compiler() -> str | None:
    return next((path for path in map(shutil.which, ("c++", "g++", "clang++")) if path), None)


@torch.compiler.assume_constant_result
def _compiler() -> str | None:
    return _find_compiler()


def _missing(device: torch.device, dtype: torch.dtype, backward: bool) -> str | None:
    if device.type == "cpu" and backward:
        return "FlexAttention has no backward pass on CPU (it needs CUDA); run it under torch.no_grad()"
    if device.type == "cpu" and _compiler() is None:
        return "FlexAttention on CPU is compiled at run time and found no C++ compiler (c++, g++ or clang++)"
    if device.type == "cpu" and " " in torch.__file__:
        return f"PyTorch cannot link what it compiles for the CPU where its own path holds a space: {torch.__file__}"
    if device.type not in ("cpu", "cuda"):
        return f"FlexAttention has no implementation for device type {device.type!r}"
    if dtype == torch.float64:
        return "FlexAttention is compiled for float32, bfloat16 and float16, not float64"
    return None


add(Kernel("flex", flex, needs=NEEDS, missing=_missing))
