"""What flows through a model: the map of a clip's tokens, and before it tokens without a place (class tokens)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from attention_zoo.grid import Grid


class Tokens(NamedTuple):
    """Tokens of width d: `prefix` class tokens, then the map in (t, h, w) order.

    `x` is "b n d" where there is a prefix. Where there is none it may stay the map "b t h w d": what works on each
    token takes both, and a map whose memory is not in order need not be copied.
    """

    x: Float[Tensor, "b *n d"]
    grid: Grid
    prefix: int = 0

    @classmethod
    def of_map(cls, x: Float[Tensor, "b t h w d"]) -> Tokens:
        """A map without class tokens."""
        return cls(x, Grid(*x.shape[1:4]))

    @property
    def map(self) -> Float[Tensor, "b t h w d"]:
        return self.x if self.x.ndim == 5 else self.x[:, self.prefix :].unflatten(1, tuple(self.grid))

    @property
    def head(self) -> Float[Tensor, "b p d"] | None:
        """The class tokens, None where there are none."""
        return self.x[:, : self.prefix] if self.prefix else None

    def of(self, map: Float[Tensor, "b t h w d"], head: Float[Tensor, "b p d"] | None = None) -> Tokens:
        """Tokens of another map, and of other class tokens where there are any."""
        grid = Grid(*map.shape[1:4])
        if head is None:
            return Tokens(map, grid)
        return Tokens(torch.cat([head, map.flatten(1, 3)], 1), grid, head.shape[1])

    def with_x(self, x: Float[Tensor, "b *n d"]) -> Tokens:
        """The same places, other values."""
        return self._replace(x=x)
