"""Factorised dot product: half of the heads attend over time, half over space, side by side."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from attention_zoo.grid import Grid
from attention_zoo.kernels import AUTO, attend
from attention_zoo.projected import Projected
from attention_zoo.scheme import register


@register("factorised_dot_product")
class FactorisedDotProductAttention(Projected):
    """Source: Arnab et al., ViViT, arXiv:2103.15691, Sec. 3.3, model 4; code: google-research/scenic@4a38d475
    (Apache-2.0). The first half of the heads sees the same place at all times, the second the same frame; of an odd
    number (the published code refuses it) the larger part sees the frame.
    """

    example = {}
    growth = {"frames": (1, 2), "size": (1, 2)}

    def __init__(self, dim: int, num_heads: int, grid: Grid, *, kernel: str = AUTO):
        super().__init__(dim, num_heads, grid, kernel)
        self.over_time = num_heads // 2

    def attention(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> Float[Tensor, "b n m c"]:
        results = []
        if self.over_time:
            heads = (part[:, :, : self.over_time] for part in (q, k, v))
            results.append(over_time(*heads, grid.t, kernel=self.kernel))
        heads = (part[:, :, self.over_time :] for part in (q, k, v))
        results.append(over_space(*heads, grid.t, kernel=self.kernel))
        return torch.cat(results, 2)

    def products(self) -> int:
        """Scores and weighted sum over times, and over places, with half of the width each."""
        t, h, w = self.grid
        keys = self.over_time * t + (self.num_heads - self.over_time) * h * w
        return 2 * self.grid.tokens * (self.dim // self.num_heads) * keys

    def reach(self) -> Bool[Tensor, "n n"]:
        """The same place at all times, and the same frame."""
        token = torch.arange(self.grid.tokens)
        frame, place = token // (self.grid.h * self.grid.w), token % (self.grid.h * self.grid.w)
        same_frame = frame[:, None] == frame
        return same_frame | (place[:, None] == place) if self.over_time else same_frame


def over_time(
    q: Float[Tensor, "b n m c"], k: Float[Tensor, "b n m c"], v: Float[Tensor, "b n m c"], t: int, *, kernel: str
) -> Float[Tensor, "b n m c"]:
    """Each token over its place at all times."""
    places = q.shape[1] // t
    q, k, v = (rearrange(x, "b (t s) m c -> (b s) m t c", t=t) for x in (q, k, v))
    return rearrange(attend(q, k, v, kernel=kernel), "(b s) m t c -> b (t s) m c", s=places)


def over_space(
    q: Float[Tensor, "b n m c"], k: Float[Tensor, "b n m c"], v: Float[Tensor, "b n m c"], t: int, *, kernel: str
) -> Float[Tensor, "b n m c"]:
    """Each token over the places of its frame."""
    q, k, v = (rearrange(x, "b (t s) m c -> (b t) m s c", t=t) for x in (q, k, v))
    return rearrange(attend(q, k, v, kernel=kernel), "(b t) m s c -> b (t s) m c", t=t)
