"""The definition, written out: scores, softmax, weighted sum, on any device and dtype. Every other kernel must agree.

It is also the kernel that costs are counted on: operation counters read fused attention as zero on some devices.
"""

from __future__ import annotations

from torch import Tensor

from attention_zoo.kernels import Kernel, add


def reference(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    return scores.softmax(-1) @ v


add(Kernel("reference", reference, needs="nothing"))
