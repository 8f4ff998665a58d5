"""Self-attention inside each frame: no information passes between frames. The control for every temporal claim."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attention_zoo.grid import Grid
from attention_zoo.kernels import AUTO
from attention_zoo.scheme import register
from attention_zoo.sequence import self_attention, self_attention_macs


@register("space_only")
class SpaceOnlyAttention(nn.Module):
    """Source: Bertasius et al., TimeSformer, arXiv:2102.05095, Sec. 3, "space attention"."""

    example = {}
    growth = {"frames": (1, 1), "size": (2, 2)}

    def __init__(self, dim: int, num_heads: int, grid: Grid, *, kernel: str = AUTO):
        super().__init__()
        self.dim, self.num_heads, self.grid, self.kernel = dim, num_heads, grid, kernel
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b t h w d"]) -> Float[Tensor, "b t h w d"]:
        frames = rearrange(x, "b t h w d -> (b t) (h w) d")
        y = self_attention(frames, self.qkv, self.proj, self.num_heads, kernel=self.kernel)
        return y.view(x.shape)

    def macs(self) -> int:
        return self_attention_macs(self.grid.t, self.grid.h * self.grid.w, self.dim)

    def reach(self) -> Bool[Tensor, "n n"]:
        frame = torch.arange(self.grid.t).repeat_interleave(self.grid.h * self.grid.w)
        return frame[:, None] == frame
