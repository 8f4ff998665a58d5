"""Video Swin's attention: windows with a relative position bias, shifted by half a window in every second block."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Bool, Float
from torch import Tensor

from attention_zoo.grid import Grid
from attention_zoo.kernels import AUTO
from attention_zoo.projected import Projected
from attention_zoo.scheme import register
from attention_zoo.windows import (
    ClippedBias,
    Padding,
    RelativeBias,
    Tiling,
    check_choice,
    grid_of,
    reach,
    window_attention,
    window_attention_macs,
)


@register("shifted_window")
class ShiftedWindowAttention(Projected):
    """Source: Liu et al., Video Swin Transformer, arXiv:2106.13230, Sec. 3.2 (3D W-MSA and SW-MSA).

    Args:
        shift: "none", "half" (half the window, rounded down), or tokens along (t, h, w), each less than the window.
        padding: "masked" hides the padding of a map that windows do not divide; "attended" lets it be attended to, as
            the released code does.
        clipped_bias: which rows of the bias table a clipped window takes, see `windows.bias_rows`.

    padding="attended" with clipped_bias="published" equals the released code on every input. It forbids a pair with a
    score of -100, we with minus infinity: a difference of e^-100.
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
        shift: str | Sequence[int] = "half",
        padding: Padding = "masked",
        clipped_bias: ClippedBias = "geometric",
        kernel: str = AUTO,
    ):
        super().__init__(dim, num_heads, grid, kernel)
        self.window = Grid.of(window, "window")
        self.shift = _shift(shift, self.window)
        check_choice("padding", padding, Padding)
        check_choice("clipped_bias", clipped_bias, ClippedBias)
        self.padding = padding
        self.bias = RelativeBias(self.window, num_heads, clipped_bias)

    def forward(self, x: Float[Tensor, "b t h w d"]) -> Float[Tensor, "b t h w d"]:
        tiling = self._tiling(grid_of(x))
        maps = self.qkv, self.proj
        return window_attention(
            x, *maps, self.num_heads, tiling, self.bias, kernel=self.kernel, scheme="shifted_window"
        )

    def _tiling(self, grid: Grid) -> Tiling:
        return Tiling.fitted(grid, self.window, self.shift, self.padding)

    def macs(self) -> int:
        return window_attention_macs(self._tiling(self.grid), self.dim)

    def reach(self) -> Bool[Tensor, "n n"]:
        return reach(self._tiling(self.grid))


def _shift(shift: str | Sequence[int], window: Grid) -> tuple[int, int, int]:
    if shift == "none":
        return (0, 0, 0)
    if shift == "half":
        return (window.t // 2, window.h // 2, window.w // 2)
    whole = isinstance(shift, Sequence) and len(shift) == 3 and all(isinstance(s, int) for s in shift)
    if isinstance(shift, str) or not whole or not all(0 <= s < n for s, n in zip(shift, window, strict=True)):
        raise ValueError(
            f"shift {shift!r} is not 'none', 'half' or three integers from 0 to less than the window {tuple(window)}"
        )
    return tuple(shift)
