"""Token counts of a clip: how many there are along time, height and width, and how windows tile them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Grid(NamedTuple):
    """Sizes along time, height and width: of a token map, of a window, of a kernel."""

    t: int
    h: int
    w: int

    @classmethod
    def of(cls, sizes: Sequence[int], name: str = "grid") -> Grid:
        """A grid from any sequence of three positive integers.

        Raises:
            ValueError: for anything else, naming the value.
        """
        whole = isinstance(sizes, Sequence) and not isinstance(sizes, str)
        whole = whole and all(isinstance(n, int) and not isinstance(n, bool) for n in sizes)
        if not whole or len(sizes) != 3 or min(sizes) < 1:
            raise ValueError(
                f"{name} {sizes!r} is not three positive integers (time, height, width), such as (8, 7, 7)"
            )
        return cls(*sizes)

    @property
    def tokens(self) -> int:
        return self.t * self.h * self.w

    def clipped(self, window: Grid) -> Grid:
        """The window that fits: per axis the smaller of the window and this grid."""
        return Grid(*(size if n > size else n for n, size in zip(self, window, strict=True)))

    def ceil_div(self, size: Grid) -> Grid:
        """How many pieces of `size` cover this grid, the last one padded where it must be."""
        return Grid(*(-(-n // m) for n, m in zip(self, size, strict=True)))

    def times(self, size: Grid) -> Grid:
        return Grid(*(n * m for n, m in zip(self, size, strict=True)))

    def padded(self, size: Grid) -> Grid:
        """The smallest multiple of `size` that covers this grid."""
        return self.ceil_div(size).times(size)


def check_heads(dim: int, num_heads: int) -> None:
    """Raises ValueError, naming the allowed numbers, where the heads do not divide the width."""
    if num_heads < 1 or dim % num_heads:
        divisors = ", ".join(str(m) for m in range(1, dim + 1) if dim % m == 0)
        raise ValueError(f"num_heads {num_heads} does not divide dim {dim}; allowed: {divisors}")


def pooling_kernel(stride: Grid) -> Grid:
    """The kernel of a pooling convolution that follows from its stride where none is named."""
    return Grid(*(s + 1 if s > 1 else 1 for s in stride))
