"""Joint space-time self-attention: every token attends to every token; cost quadratic in the number of tokens."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attention_zoo.grid import Grid
from attention_zoo.kernels import AUTO
from attention_zoo.scheme import register
from attention_zoo.sequence import self_attention, self_attention_macs


@register("full")
class FullAttention(nn.Module):
    """Source: Vaswani et al., arXiv:1706.03762, Sec. 3.2; over space and time: arXiv:2102.05095, "joint"."""

    example = {}
    growth = {"frames": (2, 2), "size": (2, 2)}

    def __init__(self, dim: int, num_heads: int, grid: Grid, *, kernel: str = AUTO):
        super().__init__()
        self.dim, self.num_heads, self.grid, self.kernel = dim, num_heads, grid, kernel
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b t h w d"]) -> Float[Tensor, "b t h w d"]:
        tokens = rearrange(x, "b t h w d -> b (t h w) d")
        y = self_attention(tokens, self.qkv, self.proj, self.num_heads, kernel=self.kernel)
        return y.view(x.shape)

    def macs(self) -> int:
        return self_attention_macs(1, self.grid.tokens, self.dim)

    def reach(self) -> Bool[Tensor, "n n"]:
        return torch.ones(self.grid.tokens, self.grid.tokens, dtype=torch.bool)
