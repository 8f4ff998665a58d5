"""Sparse-linear attention: softmax attention inside chosen blocks, linear attention over everything beside it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import elu

from attention_zoo.block_topk import BlockTopkAttention
from attention_zoo.grid import Grid
from attention_zoo.kernels import AUTO
from attention_zoo.linear import linear_attention, linear_attention_macs
from attention_zoo.registry import nearest
from attention_zoo.scheme import register

FEATURES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: x.softmax(-1),
    "elu": lambda x: elu(x) + 1,
    "relu": torch.relu,
}


@register("sparse_linear")
class SparseLinearAttention(BlockTopkAttention):
    """Source: Zhang et al., SLA, arXiv:2509.24006, Sec. 4; code: hao-ai-lab/FastVideo@2f3d4074 (Apache-2.0).

    y = proj(attention inside the `keep` largest blocks + proj_l(linear attention over all keys)). The choice is
    `block_topk`'s with rule "sla"; `proj_l`, shared by the heads, starts at zero. As in the code, the linear branch
    sees all keys (the paper's sees the blocks between the chosen and the negligible ones). `feature` makes queries and
    keys positive: "softmax" over the channels, "elu" (plus one), "relu".
    """

    example = dict(query_block=16, key_block=8, keep=0.3)
    growth = {"frames": (1, 2), "size": (1, 2)}

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: Grid,
        *,
        keep: float = 0.125,
        query_block: int = 128,
        key_block: int = 64,
        feature: str = "softmax",
        kernel: str = AUTO,
    ):
        blocks_of = dict(query_block=query_block, key_block=key_block, keep=keep)
        super().__init__(dim, num_heads, grid, rule="sla", kernel=kernel, **blocks_of)
        if feature not in FEATURES:
            raise ValueError(f"unknown feature {feature!r}; {nearest(feature, FEATURES)}")
        self.feature = feature
        self.proj_l = nn.Linear(dim // num_heads, dim // num_heads)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.proj_l.weight)
        nn.init.zeros_(self.proj_l.bias)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> Float[Tensor, "b n m c"]:
        sparse = super().attention(q, k, v, grid)
        positive = FEATURES[self.feature]
        q, k, v = (part.transpose(1, 2) for part in (positive(q), positive(k), v))
        return sparse + self.proj_l(linear_attention(q, k, v, 1e-5)).transpose(1, 2)

    def products(self) -> int:
        """Those of the chosen blocks, of linear attention, and of its projection."""
        n, d, m = self.grid.tokens, self.dim, self.num_heads
        return super().products() + linear_attention_macs(n, d, m) + n * d * (d // m)
