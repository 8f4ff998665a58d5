"""Neighbourhood attention, generalised: each query attends to a box of fixed size near itself; linear in the tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from attention_zoo import cpu, gathered
from attention_zoo.cpu.boxes import together
from attention_zoo.grid import Grid
from attention_zoo.kernels import AUTO, of_rule
from attention_zoo.projected import Projected
from attention_zoo.scheme import register


@register("neighborhood")
class NeighborhoodAttention(Projected):
    """Source: Hassani et al., Generalized Neighborhood Attention, arXiv:2504.16922; without stride and dilation:
    arXiv:2204.07143; dilated: arXiv:2209.15001. Code: SHI-Labs/NATTEN 0.21.7 (MIT).

    Along each axis, independently: tokens of one dilation group (equal modulo `dilation`) are numbered, queries in runs
    of `stride` share the window of their middle one (the right of two), the window holds `window` keys around it (one
    more on the left where even) and stops at the border at full size. A causal axis looks back only: keys up to the
    query itself, and from the first of the window that ends at the last query of the run. A window as long as the axis
    is full attention along it; `stride` equal to a `window` that divides the axis is attention in blocks.

    A window is clipped to what an axis holds, and the stride to the window. (The published code refuses both, and
    windows of one token.)

    On a CPU, neighbours that have a window each attend together, with a mask, to the box that holds all their windows:
    a few times the multiply-adds, in matrix products instead of one gathered window for each token. Whoever counts
    operators sees the windows alone.
    """

    example = dict(window=(2, 3, 4), stride=(1, 2, 1), dilation=(1, 1, 2))
    growth = {"frames": (1, 1), "size": (1, 1)}

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: Grid,
        *,
        window: Sequence[int] = (8, 7, 7),
        stride: Sequence[int] = (1, 1, 1),
        dilation: Sequence[int] = (1, 1, 1),
        causal: Sequence[bool] = (False, False, False),
        kernel: str = AUTO,
    ):
        super().__init__(dim, num_heads, grid, kernel)
        self.window, self.stride = Grid.of(window, "window"), Grid.of(stride, "stride")
        self.dilation, self.causal = Grid.of(dilation, "dilation"), tuple(causal)
        if len(self.causal) != 3 or not all(isinstance(flag, bool) for flag in self.causal):
            raise ValueError(f"causal {causal!r} is not three of true and false, such as (True, False, False)")
        if any(s > n for s, n in zip(self.stride, self.window, strict=True)):
            raise ValueError(
                f"stride {tuple(self.stride)} is larger than window {tuple(self.window)}: a query could be outside of "
                "its own window; allowed: at most the window along each axis"
            )

    def attention(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> Float[Tensor, "b n m c"]:
        return near(q, k, v, self._key(grid), self.kernel)

    def _key(self, grid: Grid) -> tuple:
        return grid, self.window, self.stride, self.dilation, self.causal

    def products(self) -> int:
        """Scores and weighted sum over the pairs; N times the window where no axis is causal."""
        return 2 * self.dim * math.prod(map(gathered.pairs, axes(*self._key(self.grid))))

    def buckets(self) -> list[gathered.Group]:
        return neighborhoods(*self._key(self.grid))

    def reach(self) -> Bool[Tensor, "n n"]:
        return gathered.reach(self.grid.tokens, self.buckets())


def near(
    q: Float[Tensor, "b n m c"], k: Float[Tensor, "b n m c"], v: Float[Tensor, "b n m c"], key: tuple, kernel: str
) -> Float[Tensor, "b n m c"]:
    """What each query finds in its neighbourhood; `key` is the grid with the options, as the rule has them."""
    if (program := of_rule(kernel, "neighborhood", q)) is not None:
        return program(q, k, v, *key)
    # FlexAttention on a CPU compiles each shape for many seconds, and boxes have several.
    rule = halos if cpu.eager(q) and kernel != "flex" else neighborhoods
    return gathered.attention(q, k, v, gathered.tables(q.device, rule, *key), kernel=kernel)


def neighborhoods(grid: Grid, window: Grid, stride: Grid, dilation: Grid, causal: tuple[bool, bool, bool]):
    """The rule: which queries share which keys."""
    return gathered.product_of_axes(grid, axes(grid, window, stride, dilation, causal))


def halos(grid: Grid, *options: tuple) -> list[tuple[np.ndarray, ...]]:
    """The same with queries of neighbouring windows together, over the box that holds these, and what each may see."""
    groups = [
        [list(_axis(n, start, *settings)) for start in range(min(settings[2], n))]
        for n, *settings in zip(grid, *options, strict=True)
    ]
    return together(grid, groups)


def axes(grid: Grid, *options: tuple) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    return [
        gathered.by_shape(group for start in range(min(d, n)) for group in _axis(n, start, k, s, d, back))
        for n, k, s, d, back in zip(grid, *options, strict=True)
    ]


def _axis(length: int, start: int, window: int, stride: int, dilation: int, causal: bool):
    """The groups of one dilation group of an axis: that of the tokens start, start + dilation, ..."""
    tokens = np.arange(start, length, dilation)
    n = len(tokens)
    k = min(window, n)
    s = min(stride, k)
    for first in range(0, n, s):
        queries = tokens[first : first + s]
        if causal:  # each looks back from itself, to where the window of the last of the run begins
            leader = min(first + s - 1, n - 1)
            for a in range(first, first + len(queries)):
                yield tokens[a : a + 1], tokens[max(0, leader - k + 1) : a + 1]
        else:
            leader = min(first + s // 2, n - 1)
            begin = min(max(leader - k // 2, 0), n - k)
            yield queries, tokens[begin : begin + k]
