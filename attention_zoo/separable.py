"""Separable attention: values are mixed over time, then over space, with the same queries and keys."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attention_zoo import gathered
from attention_zoo.factorised_dot_product import over_space, over_time
from attention_zoo.grid import Grid
from attention_zoo.kernels import AUTO
from attention_zoo.scheme import register
from attention_zoo.windows import grid_of


@register("separable")
class SeparableAttention(nn.Module):
    """Source: Zhang et al., VidTr, arXiv:2104.11746, Sec. 3.2; code: amazon-science/gluonmm@29d63b3a (Apache-2.0),
    without class token and without the compact form, which drops frames.

    y = proj(A_s A_t v): A_t is softmax attention over the times of a place, A_s over the places of a frame, both from
    one q and k. With one frame it is `space_only`; on a single place attention over time.
    """

    example = {}
    growth = {"frames": (1, 2), "size": (1, 2)}

    def __init__(self, dim: int, num_heads: int, grid: Grid, *, kernel: str = AUTO):
        super().__init__()
        self.dim, self.num_heads, self.grid, self.kernel = dim, num_heads, grid, kernel
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b t h w d"]) -> Float[Tensor, "b t h w d"]:
        t = grid_of(x).t
        q, k, v = gathered.projected(x, self.qkv, self.num_heads)
        y = over_space(q, k, over_time(q, k, v, t, kernel=self.kernel), t, kernel=self.kernel)
        return self.proj(y.flatten(2)).view(x.shape)

    def macs(self) -> int:
        """Four projections; scores and weighted sum over times, then over places."""
        (t, h, w), n, d = self.grid, self.grid.tokens, self.dim
        return 4 * n * d * d + 2 * n * (t + h * w) * d

    def reach(self) -> Bool[Tensor, "n n"]:
        """Everything, in two steps."""
        return torch.ones(self.grid.tokens, self.grid.tokens, dtype=torch.bool)
