"""Attention of queries over chunks of keys that each has chosen for itself, for inference on a CPU."""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attention_zoo.blocks import Blocks


def by_chunk(
    q: Float[Tensor, "b n m c"],
    keys: Float[Tensor, "b m chunks slots c"],
    values: Float[Tensor, "b m chunks slots c"],
    key_blocks: Blocks,
    chosen: Bool[Tensor, "b m n chunks"],
) -> Float[Tensor, "b n m c"]:
    """Each query over its chunks, chunk after chunk with all queries that chose it.

    No chunk is gathered for each query. A query's parts are joined by the logarithms of their sums of exponentials.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    result = torch.zeros_like(q, dtype=wide)
    logarithms = q.new_full(q.shape[:3], -torch.inf, dtype=wide)
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # of PyTorch's operators the one that gives both
    for b, head, number in itertools.product(*(range(chosen.shape[axis]) for axis in (0, 1, 3))):
        rows = chosen[b, head, :, number].nonzero()[:, 0]
        if len(rows):
            size = int(key_blocks.sizes[number])
            part = (x[b, head, number, :size][None, None] for x in (keys, values))
            y, logarithm = fused(q[b, rows, head][None, None], *part)
            before, new = logarithms[b, rows, head], logarithm.flatten().to(wide)
            joint = torch.logaddexp(before, new)
            kept, added = (before - joint).exp()[:, None], (new - joint).exp()[:, None]
            result[b, rows, head] = result[b, rows, head] * kept + y[0, 0] * added
            logarithms[b, rows, head] = joint
    return result.to(q.dtype)
