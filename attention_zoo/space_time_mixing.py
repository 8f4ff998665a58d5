"""Space-time mixing: attention inside frames over keys and values that hold channels of the frames before and after."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attention_zoo.factorised_dot_product import over_space
from attention_zoo.grid import Grid
from attention_zoo.kernels import AUTO
from attention_zoo.projected import Projected, projected
from attention_zoo.scheme import Mixed, register
from attention_zoo.sequence import self_attention_macs

SHARE = 8  # one channel of so many comes from the next frame, and as many from the one before


@register("space_time_mixing")
class SpaceTimeMixingAttention(Projected):
    """Source: Bulat et al., X-ViT, arXiv:2106.05968, Sec. 3.2; code: 1adrianb/video-transformers@82ca1766 (Apache-2.0).

    Of keys and values (all heads side by side) the first eighth of the channels is that of the next frame, the second
    that of the one before, zeros beyond the ends; queries are left alone. `segment` frames mix among themselves alone:
    the released configuration has 8 while it feeds 16; null, as in the paper, mixes all. Each frame has its share of
    class tokens, those of the first frame first, which mix as its places do.
    """

    example = dict(segment=3)
    takes_prefix = True
    growth = {"frames": (1, 1), "size": (2, 2)}

    def __init__(self, dim: int, num_heads: int, grid: Grid, *, segment: int | None = None, kernel: str = AUTO):
        super().__init__(dim, num_heads, grid, kernel)
        if segment is not None and segment < 1:
            raise ValueError(f"segment {segment} must be a number of frames, 1 or more, or null for all")
        self.segment = segment

    def forward(self, x: Float[Tensor, "b t h w d"], prefix: Float[Tensor, "b p d"] | None = None) -> Mixed:
        t, frames = x.shape[1], x.flatten(2, 3)
        if prefix is not None:
            frames = torch.cat([prefix.unflatten(1, (t, -1)), frames], 2)
        q, k, v = projected(frames[:, :, None], self.qkv, self.num_heads)
        k, v = self._mixed(k, t), self._mixed(v, t)
        y = self.proj(over_space(q, k, v, t, kernel=self.kernel).flatten(2)).view(frames.shape)
        if prefix is None:
            return y.view(x.shape)
        first = prefix.shape[1] // t
        return y[:, :, first:].unflatten(2, x.shape[2:4]), y[:, :, :first].flatten(1, 2)

    def _mixed(self, x: Float[Tensor, "b n m c"], t: int) -> Float[Tensor, "b n m c"]:
        count = self.dim // SHARE
        frames = x.flatten(2).unflatten(1, (t, -1))
        segment = torch.arange(t, device=x.device) // (self.segment or t)
        inside = (segment[1:] == segment[:-1])[:, None, None]
        end = torch.zeros_like(frames[:, :1, :, :count])
        after = torch.cat([frames[:, 1:, :, :count] * inside, end], 1)
        before = torch.cat([end, frames[:, :-1, :, count : 2 * count] * inside], 1)
        return torch.cat([after, before, frames[..., 2 * count :]], -1).view(x.shape)

    def macs(self, prefix: int = 0) -> int:
        """Four projections; scores and weighted sum inside each frame."""
        (t, h, w), d = self.grid, self.dim
        return self_attention_macs(t, h * w + prefix // t, d)

    def reach(self, prefix: int = 0) -> Bool[Tensor, "n n"]:
        """All places of a frame and of its neighbours in the segment."""
        t, h, w = self.grid
        frame = torch.cat([torch.arange(t).repeat_interleave(n) for n in (prefix // t, h * w)])
        segment = frame // (self.segment or t)
        near = (frame[:, None] - frame).abs() <= (1 if self.dim >= SHARE else 0)
        return near & (segment[:, None] == segment)
