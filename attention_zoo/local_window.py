"""Self-attention inside non-overlapping 3-D windows; cost linear in the number of tokens."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Bool, Float
from torch import Tensor

from attention_zoo.grid import Grid
from attention_zoo.kernels import AUTO
from attention_zoo.projected import Projected
from attention_zoo.scheme import register
from attention_zoo.windows import RelativeBias, Tiling, grid_of, reach, window_attention, window_attention_macs


@register("local_window")
class LocalWindowAttention(Projected):
    """Source: Liang et al., DualFormer, arXiv:2112.04674, Sec. 3.2, LW-MSA.

    The released code requires windows that divide the map; here a map that does not fit is padded at the end and the
    padding masked out. `relative_bias` adds Video Swin's relative position bias (our reading of Table 6's "Swin" row).
    """

    example = dict(window=(2, 3, 4))
    growth = {"frames": (1, 1), "size": (1, 1)}
    fixed_map = True  # where windows lie follows from it

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: Grid,
        *,
        window: Sequence[int] = (8, 7, 7),
        relative_bias: bool = False,
        kernel: str = AUTO,
    ):
        super().__init__(dim, num_heads, grid, kernel)
        self.window = Grid.of(window, "window")
        self.bias = RelativeBias(self.window, num_heads) if relative_bias else None

    def forward(self, x: Float[Tensor, "b t h w d"]) -> Float[Tensor, "b t h w d"]:
        tiling = self._tiling(grid_of(x))
        maps = self.qkv, self.proj
        return window_attention(x, *maps, self.num_heads, tiling, self.bias, kernel=self.kernel, scheme="local_window")

    def _tiling(self, grid: Grid) -> Tiling:
        return Tiling.fitted(grid, self.window)

    def macs(self) -> int:
        return window_attention_macs(self._tiling(self.grid), self.dim)

    def reach(self) -> Bool[Tensor, "n n"]:
        return reach(self._tiling(self.grid))
