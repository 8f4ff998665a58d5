"""FlexAttention: compiled by PyTorch from the score function; the bias is read inside the kernel, never expanded."""

from __future__ import annotations

import functools
import shutil

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from attention_zoo.kernels import Kernel, add

NEEDS = "a C++ compiler on CPU (forward only), Triton and CUDA on a GPU"


@functools.cache
def _compiled():
    # Static shapes: a dynamic kernel is compiled once but runs slower, and a model has few distinct shapes.
    return torch.compile(flex_attention, dynamic=False)


def flex(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:
        return _compiled()(q, k, v)
    one_batch, one_head = bias.shape[0] == 1, bias.shape[1] == 1

    def add_bias(score: Tensor, b: Tensor, m: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + bias[0 if one_batch else b, 0 if one_head else m, i, j]

    return _compiled()(q, k, v, score_mod=add_bias)


@functools.cache
def _compiler() -> str | None:
    return next((path for path in map(shutil.which, ("c++", "g++", "clang++")) if path), None)


def _missing(device: torch.device, dtype: torch.dtype, backward: bool) -> str | None:
    if device.type == "cpu" and backward:
        return "FlexAttention has no backward pass on CPU (it needs CUDA); run it under torch.no_grad()"
    if device.type == "cpu" and _compiler() is None:
        return "FlexAttention on CPU is compiled at run time and found no C++ compiler (c++, g++ or clang++)"
    if device.type not in ("cpu", "cuda"):
        return f"FlexAttention has no implementation for device type {device.type!r}"
    if dtype == torch.float64:
        return "FlexAttention is compiled for float32, bfloat16 and float16, not float64"
    return None


add(Kernel("flex", flex, needs=NEEDS, missing=_missing))
