"""A depthwise convolution whose stride is its kernel, in the way that is fastest where the tokens are.

Where a CPU needs gradients it has a form of its own; on a GPU what is faster there. In a compiled graph and for
gradients of gradients PyTorch's own is used.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from attention_zoo import cpu, dispatch
from attention_zoo.cpu.pooled import blocks_of, by_blocks, convolved
from attention_zoo.fastest import fastest

_TRITON = find_spec("triton") is not None


def pooled(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Weighted sums of blocks, channel by channel.

    Args:
        x: (b, d, t, h, w), in whole blocks.
        weight: (d, 1, block t, block h, block w).

    Returns:
        (b, d, blocks over t, over h, over w).
    """
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad) and cpu.eager(x):
        return by_blocks(*dispatch.autocast(x, weight, bias))
    ways = {"convolution": convolved, "sums": _summed}
    if x.device.type == "cuda" and _TRITON:
        ways["triton"] = _on_triton
    return fastest("pooling", ways, x, weight, bias)


def _on_triton(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    from attention_zoo._pooling_triton import block_sums  # Triton is not on every machine

    return block_sums(x.permute(0, 2, 3, 4, 1), weight, bias).permute(0, 4, 1, 2, 3)


def _summed(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    tokens, taps = blocks_of(x.permute(0, 2, 3, 4, 1), weight.shape[2:]), weight[:, 0].permute(1, 2, 3, 0)
    y = (tokens * taps[:, None, :, None]).sum((2, 4, 6))
    return (y if bias is None else y + bias).permute(0, 4, 1, 2, 3)
