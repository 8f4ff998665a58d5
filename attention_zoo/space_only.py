"""Self-attention inside each frame: no information passes between frames. The control for every temporal claim."""

from __future__ import annotations

from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from attention_zoo.grid import Grid
from attention_zoo.kernels import AUTO
from attention_zoo.projected import Projected
from attention_zoo.scheme import Mixed, register
from attention_zoo.sequence import self_attention, self_attention_macs
from attention_zoo.windows import check_choice

Prefix = Literal["shared", "own"]


@register("space_only")
class SpaceOnlyAttention(Projected):
    """Source: Bertasius et al., TimeSformer, arXiv:2102.05095, Sec. 3, "space attention".

    Args:
        prefix: what class tokens are. "shared": every frame attends with a copy of all of them, and what comes back is
            averaged over the frames, as in TimeSformer's divided attention. "own": each frame has its share of them,
            those of the first frame first.
    """

    example = {}
    takes_prefix = True
    growth = {"frames": (1, 1), "size": (2, 2)}

    def __init__(self, dim: int, num_heads: int, grid: Grid, *, prefix: Prefix = "shared", kernel: str = AUTO):
        super().__init__(dim, num_heads, grid, kernel)
        check_choice("prefix", prefix, Prefix)
        self.prefix = prefix

    def forward(self, x: Float[Tensor, "b t h w d"], prefix: Float[Tensor, "b p d"] | None = None) -> Mixed:
        frames = rearrange(x, "b t h w d -> (b t) (h w) d")
        if prefix is None:
            y = self_attention(frames, self.qkv, self.proj, self.num_heads, kernel=self.kernel)
            return y.view(x.shape)
        t, shared = x.shape[1], self.prefix == "shared"
        first = prefix.repeat_interleave(t, 0) if shared else rearrange(prefix, "b (t p) d -> (b t) p d", t=t)
        y = self_attention(
            torch.cat([first, frames], dim=1), self.qkv, self.proj, self.num_heads, kernel=self.kernel
        ).unflatten(0, (-1, t))
        first, y = y[:, :, : first.shape[1]], y[:, :, first.shape[1] :]
        return y.unflatten(2, x.shape[2:4]), first.mean(1) if shared else first.flatten(1, 2)

    def macs(self, prefix: int = 0) -> int:
        t, h, w = self.grid
        return self_attention_macs(t, h * w + (prefix if self.prefix == "shared" else prefix // t), self.dim)

    def reach(self, prefix: int = 0) -> Bool[Tensor, "n n"]:
        t, h, w = self.grid
        frame = torch.arange(t).repeat_interleave(h * w)
        if self.prefix == "own":
            frame = torch.cat([torch.arange(t).repeat_interleave(prefix // t), frame])
            return frame[:, None] == frame
        return pad(frame[:, None] == frame, (prefix, 0, prefix, 0), value=True)
