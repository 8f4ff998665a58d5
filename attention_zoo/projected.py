"""What most schemes have around attention: a linear map to queries, keys and values, and one of the weighted sums."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attention_zoo.grid import Grid
from attention_zoo.windows import grid_of


class Projected(nn.Module):
    """A subclass computes in `attention` what lies between the maps, and says in `products` what that costs.

    One that has more around its attention, such as class tokens, writes `forward` and `macs` instead; one whose tokens
    do not reach everything writes `reach`.
    """

    def __init__(self, dim: int, num_heads: int, grid: Grid, kernel: str, *, qkv_bias: bool = True):
        super().__init__()
        self.dim, self.num_heads, self.grid, self.kernel = dim, num_heads, grid, kernel
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=qkv_bias), nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b t h w d"]) -> Float[Tensor, "b t h w d"]:
        q, k, v = projected(x, self.qkv, self.num_heads)
        return self.proj(self.attention(q, k, v, grid_of(x)).flatten(2)).view(x.shape)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> Float[Tensor, "b n m c"]:
        """The weighted sums for the tokens of a map of this grid, from queries, keys and values "b n m c"."""
        raise NotImplementedError(f"{type(self).__name__} has neither attention nor a forward of its own")

    def macs(self) -> int:
        """Four projections of every token, and what comes between them."""
        return 4 * self.grid.tokens * self.dim**2 + self.products()

    def products(self) -> int:
        """Multiply-adds of scores and weighted sums, and of what else `attention` has."""
        raise NotImplementedError(f"{type(self).__name__} has neither products nor macs of its own")

    def reach(self, prefix: int = 0) -> Bool[Tensor, "n n"]:
        """Everything."""
        n = prefix + self.grid.tokens
        return torch.ones(n, n, dtype=torch.bool)


def projected(x: Float[Tensor, "b t h w d"], qkv: nn.Linear, num_heads: int) -> tuple[Float[Tensor, "b n m c"], ...]:
    """Queries, keys and values of every token: part-major, then head-major, as `full` has them."""
    return qkv(x.flatten(1, 3)).unflatten(-1, (3, num_heads, -1)).unbind(2)
