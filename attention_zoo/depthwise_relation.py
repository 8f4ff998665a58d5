"""UniFormer's local relation: a depthwise convolution in attention's place; the cheap contrast."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attention_zoo.grid import Grid
from attention_zoo.kernels import AUTO
from attention_zoo.scheme import register


@register("depthwise_relation")
class DepthwiseRelation(nn.Module):
    """Source: Li et al., UniFormer, arXiv:2201.09450, Sec. 3.2; code: Sense-X/UniFormer@52a0415e (Apache-2.0).

    A linear map, a depthwise convolution over `size` tokens with zeros beyond the border, a linear map; no heads. The
    released blocks put BatchNorm before it; the norm belongs to the block. With a kernel that is one at its centre it
    is a linear map of each token. There is no softmax, so every kernel of attention computes the same.
    """

    example = dict(size=3)
    growth = {"frames": (1, 1), "size": (1, 1)}

    def __init__(self, dim: int, num_heads: int, grid: Grid, *, size: int = 5, kernel: str = AUTO):
        super().__init__()
        if size < 1 or size % 2 == 0:
            raise ValueError(f"size {size} has no centre; allowed: odd numbers of tokens, such as 5")
        self.dim, self.num_heads, self.grid, self.kernel, self.size = dim, num_heads, grid, kernel, size
        self.value, self.proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.relation = nn.Conv3d(dim, dim, size, padding=size // 2, groups=dim)

    def forward(self, x: Float[Tensor, "b t h w d"]) -> Float[Tensor, "b t h w d"]:
        y = self.relation(rearrange(self.value(x), "b t h w d -> b d t h w"))
        return self.proj(rearrange(y, "b d t h w -> b t h w d"))

    def macs(self) -> int:
        """Two linear maps, and the whole kernel at every token: counters count what lies beyond the border too."""
        n, d = self.grid.tokens, self.dim
        return 2 * n * d * d + n * d * self.size**3

    def reach(self) -> Bool[Tensor, "n n"]:
        """Tokens within half of `size` along each axis."""
        places = torch.cartesian_prod(*(torch.arange(n) for n in self.grid)).view(-1, 3)
        return ((places[:, None] - places).abs() <= self.size // 2).all(-1)
