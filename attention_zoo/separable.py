"""Separable attention: values are mixed over time, then over space, with the same queries and keys."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from attention_zoo.factorised_dot_product import over_space, over_time
from attention_zoo.grid import Grid
from attention_zoo.kernels import AUTO
from attention_zoo.projected import Projected
from attention_zoo.scheme import register


@register("separable")
class SeparableAttention(Projected):
    """Source: Zhang et al., VidTr, arXiv:2104.11746, Sec. 3.2; code: amazon-science/gluonmm@29d63b3a (Apache-2.0),
    without class token and without the compact form, which drops frames.

    y = proj(A_s A_t v): A_t is softmax attention over the times of a place, A_s over the places of a frame, both from
    one q and k. With one frame it is `space_only`; on a single place attention over time.
    """

    example = {}
    growth = {"frames": (1, 2), "size": (1, 2)}

    def __init__(self, dim: int, num_heads: int, grid: Grid, *, kernel: str = AUTO):
        super().__init__(dim, num_heads, grid, kernel)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> Float[Tensor, "b n m c"]:
        over_times = over_time(q, k, v, grid.t, kernel=self.kernel)
        return over_space(q, k, over_times, grid.t, kernel=self.kernel)

    def products(self) -> int:
        """Scores and weighted sum over times, then over places."""
        t, h, w = self.grid
        return 2 * self.grid.tokens * (t + h * w) * self.dim
