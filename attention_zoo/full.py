"""Joint space-time self-attention: every token attends to every token; cost quadratic in the number of tokens."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from attention_zoo.grid import Grid
from attention_zoo.kernels import AUTO
from attention_zoo.projected import Projected
from attention_zoo.scheme import Mixed, register
from attention_zoo.sequence import self_attention, self_attention_macs


@register("full")
class FullAttention(Projected):
    """Source: Vaswani et al., arXiv:1706.03762, Sec. 3.2; over space and time: arXiv:2102.05095, "joint".

    Args:
        qkv_bias: whether the maps to queries, keys and values have one.
    """

    example = {}
    takes_prefix = True
    growth = {"frames": (2, 2), "size": (2, 2)}

    def __init__(self, dim: int, num_heads: int, grid: Grid, *, qkv_bias: bool = True, kernel: str = AUTO):
        super().__init__(dim, num_heads, grid, kernel, qkv_bias=qkv_bias)

    def forward(self, x: Float[Tensor, "b t h w d"], prefix: Float[Tensor, "b p d"] | None = None) -> Mixed:
        tokens = rearrange(x, "b t h w d -> b (t h w) d")
        if prefix is not None:
            tokens = torch.cat([prefix, tokens], dim=1)
        y = self_attention(tokens, self.qkv, self.proj, self.num_heads, kernel=self.kernel)
        if prefix is None:
            return y.view(x.shape)
        first = prefix.shape[1]
        return y[:, first:].unflatten(1, x.shape[1:4]), y[:, :first]

    def macs(self, prefix: int = 0) -> int:
        return self_attention_macs(1, self.grid.tokens + prefix, self.dim)
