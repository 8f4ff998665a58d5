"""Linear maps by oneDNN: eagerly, without gradients, on a CPU with AVX-512, where PyTorch goes to MKL.

On one thread of an EPYC with AVX-512, in shapes of DualFormer-T, oneDNN reaches 99 to 109 GFLOP/s in float32 where MKL
reaches 91 to 101, and applies GELU to what it has not written yet: linear map and GELU together take a tenth less time.
On a processor with AVX2 alone it is no faster. The operator is the one that PyTorch's compiler calls; it is not in the
documentation. Weights that were laid out before would save 1 to 3 % of a call, and cost as much as they save.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from attention_zoo import dispatch
from attention_zoo.cpu import narrow


@functools.cache
def faster(dtype: torch.dtype) -> bool:
    """Whether oneDNN is there and multiplies this format faster than what PyTorch takes by itself."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.float32:
        return torch.backends.cpu.get_cpu_capability() == "AVX512"
    return dtype == torch.bfloat16 and narrow.multiplies()


def linear(layer: nn.Module, x: Tensor, approximate: str | None = None) -> Callable[[Tensor], Tensor]:
    """A linear map for one part of `x` after the other, without gradients; with GELU after it ("none", "tanh").

    A layer that somebody has put in, or has hooks on, is called as it is.
    """
    (like,) = dispatch.autocast(x)
    plain = type(layer) is nn.Linear and not dispatch.watched(layer)
    if not (plain and like.numel() and faster(like.dtype) and like.dtype == dispatch.autocast(layer.weight)[0].dtype):
        return layer if approximate is None else lambda part: gelu(layer(part), approximate=approximate)
    weight, bias = dispatch.autocast(layer.weight, layer.bias)
    then = ("none", [], "") if approximate is None else ("gelu", [], approximate)
    return lambda part: torch.ops.mkldnn._linear_pointwise(*dispatch.autocast(part), weight, bias, *then)
