"""Radial attention: a fixed mask whose spatial width halves as the distance in frames doubles; O(N log N)."""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from attention_zoo import gathered
from attention_zoo.blocks import runs_of
from attention_zoo.grid import Grid
from attention_zoo.kernels import AUTO
from attention_zoo.projected import Projected
from attention_zoo.scheme import register
from attention_zoo.windows import check_choice

Rule = Literal["released", "paper"]


@register("radial")
class RadialAttention(Projected):
    """Source: Li et al., Radial Attention, arXiv:2506.19852, Sec. 4; code: mit-han-lab/radial-attention@72788d4f
    (Apache-2.0).

    Args:
        rule: "released": what the code computes, in blocks: the width is the frame's length, rounded up to a power of
            two and halved with each doubling of the distance, never below a block; frame pairs that would be narrower
            than `threshold` are kept at regular distances only; a block is attended to, all of it, where enough of its
            pairs are allowed. "paper": token by token: places within the length of a frame, over the distance in frames
            rounded down to a power of two; beyond that the same place in some frames; the first frame by all.
        sink: all tokens see the first frame (the code's kind "wan"; without: "hunyuan").
        block: tokens of a block, at most those of a frame: with larger ones rows would be left without any key.
        decay: scales the width for frames that are not neighbours; released rule only.
        threshold: the released code fixes 128, whatever the block. None is the block that is used: 128 on the small
            frames of late stages would leave attention inside frames alone.

    A block whose row the released rule leaves empty (NaN there) keeps itself.
    """

    example = dict(block=5)
    growth = {"frames": (1, 2), "size": (2, 2)}

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: Grid,
        *,
        rule: Rule = "released",
        sink: bool = True,
        block: int = 128,
        decay: float = 1.0,
        threshold: int | None = None,
        kernel: str = AUTO,
    ):
        super().__init__(dim, num_heads, grid, kernel)
        check_choice("rule", rule, Rule)
        if block < 1 or decay <= 0 or (threshold is not None and threshold < 1):
            raise ValueError(f"block {block}, decay {decay} and threshold {threshold} must be above 0")
        self.options = rule, sink, block, decay, threshold

    def attention(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> Float[Tensor, "b n m c"]:
        return gathered.attention(q, k, v, gathered.tables(q.device, radii, grid, *self.options), kernel=self.kernel)

    def products(self) -> int:
        """Scores and weighted sum over the pairs of the blocks that are kept."""
        return 2 * self.dim * gathered.pairs(self.buckets())

    def buckets(self) -> list[gathered.Group]:
        return radii(self.grid, *self.options)

    def reach(self) -> Bool[Tensor, "n n"]:
        return gathered.reach(self.grid.tokens, self.buckets())


@functools.lru_cache(maxsize=16)
def radii(grid: Grid, rule: Rule, sink: bool, block: int, decay: float, threshold: int | None):
    """The rule: which queries share which keys."""
    frames, places = grid.t, grid.h * grid.w
    if rule == "paper":
        return gathered.by_shape(
            (np.array([i * places + p]), _paper(i, p, frames, places, sink))
            for i in range(frames)
            for p in range(places)
        )
    block = min(block, places)
    kept = block_mask(frames, places, block, decay, sink, threshold or block)
    runs = runs_of(grid.tokens, block)
    return gathered.by_shape(
        (runs[row], np.concatenate([runs[column] for column in np.flatnonzero(kept[row])])) for row in range(len(runs))
    )


def _paper(frame: int, place: int, frames: int, places: int, sink: bool) -> np.ndarray:
    """The keys of one query by the paper's rule."""
    keys = []
    for key_frame in range(frames):
        distance = abs(frame - key_frame)
        spread = 1 << (max(distance, 1).bit_length() - 1)
        if sink and key_frame == 0:
            first, last = 0, places
        elif spread <= places:
            near = places // spread  # |p - q| + 1 is at most places / spread
            first, last = max(0, place - near + 1), min(places, place + near)
        elif distance % -(-spread // places) == 0:
            first, last = place, place + 1
        else:
            continue
        keys.append(np.arange(first, last) + key_frame * places)
    return np.concatenate(keys)


def block_mask(
    frames: int, places: int, block: int, decay: float, sink: bool, threshold: int, length: int | None = None
) -> np.ndarray:
    """Which blocks attend to which by the released rule: (blocks, blocks); `length` may hold tokens beyond the clip."""
    length = length or frames * places
    count = -(-length // block)
    kept = np.zeros((count, count), dtype=bool)
    across = -(-places // block)
    for i in range(frames):
        for j in range(frames):
            width = _width(abs(i - j), places, block, decay, threshold)
            if sink and j == 0:
                width = places
            if width is not None:
                row, column = i * places // block, j * places // block
                cut = kept[row : row + across, column : column + across]
                cut |= _dense_enough(places, width, block, i * places % block, j * places % block, across)[
                    : cut.shape[0], : cut.shape[1]
                ]
    beyond = frames * places // block
    if length > frames * places:
        kept[beyond:] = kept[:, beyond:] = True
    empty = ~kept.any(1)
    kept[empty, empty] = True
    return kept


def _width(distance: int, places: int, block: int, decay: float, threshold: int) -> float | None:
    """How far apart the places of two frames may be; None where the frames do not see each other."""
    base = 2.0 ** (places.bit_length() - distance.bit_length())
    if base < threshold and distance % int(threshold // base):
        return None
    return places if distance <= 1 else max(base * decay, block)


@functools.lru_cache(maxsize=256)
def _dense_enough(places: int, width: float, block: int, rows: int, columns: int, across: int) -> np.ndarray:
    """Of the blocks of a pair of frames, which begin so many tokens into their first block, those that are kept."""
    place = np.arange(across * block)
    p, q = place[:, None] - rows, place - columns
    inside = (p >= 0) & (p < places) & (q >= 0) & (q < places)
    allowed = inside & (abs(p - q) <= width)
    share = allowed.reshape(across, block, across, block).mean(1)  # of a block's queries, for each key
    some, many = (share > 0).sum(-1), (share > 1 / 3).sum(-1)
    return many > 0.6 * some
