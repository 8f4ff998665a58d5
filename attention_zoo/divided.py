"""Divided space-time attention: over time at each place, then over space in each frame."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attention_zoo.grid import Grid
from attention_zoo.kernels import AUTO
from attention_zoo.scheme import register
from attention_zoo.sequence import self_attention, self_attention_macs


class _Projections(nn.Module):
    """The projections of one of the two attentions."""

    def __init__(self, dim: int):
        super().__init__()
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)


@register("divided")
class DividedAttention(nn.Module):
    """Source: Bertasius et al., TimeSformer, arXiv:2102.05095, Sec. 3, "divided space-time attention".

    With r = time_fc(time(x)), the result is r + space(space_norm(x + r)): time first, then space on what time left,
    both residual, as in TimeSformer; the block around adds the outer residual. TimeSformer keeps its class token and
    norms the residual stream between the two steps; a scheme sees normed tokens only, so `space_norm` norms these.

    With one frame, attention over time is a linear map of each token; on a 1x1 map, attention over space is. `time_fc`
    starts at zero, as in the released code: an untrained scheme equals `space_only` on normed tokens.

    Args:
        fc: whether there is a `time_fc`; without it the scheme is ViViT's factorised self-attention (model 3).
    """

    example = {}
    growth = {"frames": (1, 2), "size": (1, 2)}

    def __init__(self, dim: int, num_heads: int, grid: Grid, *, fc: bool = True, kernel: str = AUTO):
        super().__init__()
        self.dim, self.num_heads, self.grid, self.kernel = dim, num_heads, grid, kernel
        self.time, self.time_fc = _Projections(dim), nn.Linear(dim, dim) if fc else None
        self.space_norm, self.space = nn.LayerNorm(dim), _Projections(dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.time_fc is None:
            return
        nn.init.zeros_(self.time_fc.weight)
        nn.init.zeros_(self.time_fc.bias)

    def forward(self, x: Float[Tensor, "b t h w d"]) -> Float[Tensor, "b t h w d"]:
        b, t, h, w, _ = x.shape
        places = rearrange(x, "b t h w d -> (b h w) t d")
        r = self._attend(places, self.time)
        r = r if self.time_fc is None else self.time_fc(r)
        r = rearrange(r, "(b h w) t d -> (b t) (h w) d", b=b, h=h, w=w)
        frames = rearrange(x, "b t h w d -> (b t) (h w) d")
        y = r + self._attend(self.space_norm(frames + r), self.space)
        return rearrange(y, "(b t) (h w) d -> b t h w d", t=t, h=h)

    def _attend(self, tokens: Float[Tensor, "s n d"], weights: _Projections) -> Float[Tensor, "s n d"]:
        return self_attention(tokens, weights.qkv, weights.proj, self.num_heads, kernel=self.kernel)

    def macs(self) -> int:
        """Two attentions, and the linear map between them if there is one."""
        (t, h, w), d = self.grid, self.dim
        over_time, over_space = self_attention_macs(h * w, t, d), self_attention_macs(t, h * w, d)
        return over_time + (0 if self.time_fc is None else self.grid.tokens * d * d) + over_space

    def reach(self) -> Bool[Tensor, "n n"]:
        """Everything: in two steps a token sees its place at all times, and through these all places."""
        return torch.ones(self.grid.tokens, self.grid.tokens, dtype=torch.bool)
