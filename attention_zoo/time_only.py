"""Self-attention over time at each place: no information passes between places. One half of divided attention."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from attention_zoo import cpu, dispatch
from attention_zoo.grid import Grid
from attention_zoo.kernels import AUTO
from attention_zoo.projected import Projected
from attention_zoo.scheme import Mixed, register
from attention_zoo.sequence import self_attention, self_attention_macs


@register("time_only")
class TimeOnlyAttention(Projected):
    """Source: Bertasius et al., TimeSformer, arXiv:2102.05095, Sec. 3, the temporal half of "divided attention".

    Class tokens have no place and take no part: nothing is added to them.

    Args:
        fc: TimeSformer's further linear map of the result. It starts at zero, as in the released code, so that an
            untrained block passes on what it is given.
    """

    example = {}
    takes_prefix = True
    growth = {"frames": (2, 2), "size": (1, 1)}

    def __init__(self, dim: int, num_heads: int, grid: Grid, *, fc: bool = False, kernel: str = AUTO):
        super().__init__(dim, num_heads, grid, kernel)
        self.fc = nn.Linear(dim, dim) if fc else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.fc is not None:
            nn.init.zeros_(self.fc.weight)
            nn.init.zeros_(self.fc.bias)

    def forward(self, x: Float[Tensor, "b t h w d"], prefix: Float[Tensor, "b p d"] | None = None) -> Mixed:
        _, _, h, w, _ = x.shape
        places, merged = rearrange(x, "b t h w d -> (b h w) t d"), self._merges(x)
        y = self_attention(places, self.qkv, None if merged else self.proj, self.num_heads, kernel=self.kernel)
        if merged:
            y = linear(y, self.fc.weight @ self.proj.weight, self.fc.weight @ self.proj.bias + self.fc.bias)
        elif self.fc is not None:
            y = self.fc(y)
        y = rearrange(y, "(b h w) t d -> b t h w d", h=h, w=w)
        return y if prefix is None else (y, torch.zeros_like(prefix))

    def _merges(self, x: Float[Tensor, "b t h w d"]) -> bool:
        """Two linear maps in a row are one, whose weights cost less than the second map of more tokens than channels.

        On a CPU only, where nobody counts operators, rounds products or has put hooks or other parts in.
        """
        plain = all(type(part) is nn.Linear and not dispatch.watched(part) for part in (self.proj, self.fc))
        exact = x.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")
        return plain and exact and cpu.eager(x) and x.shape[:4].numel() > self.dim

    def macs(self, prefix: int = 0) -> int:
        (t, h, w), d = self.grid, self.dim
        return self_attention_macs(h * w, t, d) + (0 if self.fc is None else self.grid.tokens * d * d)

    def reach(self, prefix: int = 0) -> Bool[Tensor, "n n"]:
        place = torch.arange(self.grid.h * self.grid.w).repeat(self.grid.t)
        return pad(place[:, None] == place, (prefix, 0, prefix, 0), value=False)
