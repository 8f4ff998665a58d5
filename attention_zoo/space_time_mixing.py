"""Space-time mixing: attention inside frames over keys and values that hold channels of the frames before and after."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attention_zoo import gathered
from attention_zoo.factorised_dot_product import over_space
from attention_zoo.grid import Grid
from attention_zoo.kernels import AUTO
from attention_zoo.scheme import register
from attention_zoo.windows import grid_of

SHARE = 8  # one channel of so many comes from the next frame, and as many from the one before


@register("space_time_mixing")
class SpaceTimeMixingAttention(nn.Module):
    """Source: Bulat et al., X-ViT, arXiv:2106.05968, Sec. 3.2; code: 1adrianb/video-transformers@82ca1766 (Apache-2.0).

    Of keys and values (all heads side by side) the first eighth of the channels is that of the next frame, the second
    that of the one before, zeros beyond the ends; queries are left alone. `segment` frames mix among themselves alone:
    the released configuration has 8 while it feeds 16; null, as in the paper, mixes all.
    """

    example = dict(segment=3)
    growth = {"frames": (1, 1), "size": (2, 2)}

    def __init__(self, dim: int, num_heads: int, grid: Grid, *, segment: int | None = None, kernel: str = AUTO):
        super().__init__()
        if segment is not None and segment < 1:
            raise ValueError(f"segment {segment} must be a number of frames, 1 or more, or null for all")
        self.dim, self.num_heads, self.grid, self.kernel, self.segment = dim, num_heads, grid, kernel, segment
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b t h w d"]) -> Float[Tensor, "b t h w d"]:
        t = grid_of(x).t
        q, k, v = gathered.projected(x, self.qkv, self.num_heads)
        k, v = self._mixed(k, t), self._mixed(v, t)
        return self.proj(over_space(q, k, v, t, kernel=self.kernel).flatten(2)).view(x.shape)

    def _mixed(self, x: Float[Tensor, "b n m c"], t: int) -> Float[Tensor, "b n m c"]:
        count = self.dim // SHARE
        frames = x.flatten(2).unflatten(1, (t, -1))
        segment = torch.arange(t, device=x.device) // (self.segment or t)
        inside = (segment[1:] == segment[:-1])[:, None, None]
        end = torch.zeros_like(frames[:, :1, :, :count])
        after = torch.cat([frames[:, 1:, :, :count] * inside, end], 1)
        before = torch.cat([end, frames[:, :-1, :, count : 2 * count] * inside], 1)
        return torch.cat([after, before, frames[..., 2 * count :]], -1).view(x.shape)

    def macs(self) -> int:
        """Four projections; scores and weighted sum inside each frame."""
        (_, h, w), n, d = self.grid, self.grid.tokens, self.dim
        return 4 * n * d * d + 2 * n * h * w * d

    def reach(self) -> Bool[Tensor, "n n"]:
        """All places of a frame and of its neighbours in the segment."""
        frame = torch.arange(self.grid.t).repeat_interleave(self.grid.h * self.grid.w)
        segment = frame // (self.segment or self.grid.t)
        near = (frame[:, None] - frame).abs() <= (1 if self.dim >= SHARE else 0)
        return near & (segment[:, None] == segment)
