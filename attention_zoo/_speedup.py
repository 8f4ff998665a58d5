"""`python -m attention_zoo speedup NAME grid=16x56x56 block=64x64`: can a block-sparse kernel make a scheme fast?

Such a kernel computes a tile of the score matrix, a block of queries times a block of keys, wholly or not at all, so a
tile with one allowed pair costs as much as a full one. Counted here are the tiles that a scheme touches against the
pairs that it allows, on any grid and without a GPU; what a kernel needs beside its products is not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from torch import nn

from attention_zoo import gathered
from attention_zoo._draw import clip
from attention_zoo._settings import counting
from attention_zoo.blocks import tiles_of
from attention_zoo.grid import Grid
from attention_zoo.scheme import build

PIECE = 2**24  # entries of a table that are looked at at once
FEW = 4096  # pairs of a group, up to which they are marked one by one
MOST = 3 * 2**30  # bytes of a table of pairs
WORTH = 1.25  # times as fast, from which on it may survive what a kernel needs beside its products


@dataclass(frozen=True)
class Tiles:
    """How many tiles of one size the allowed pairs touch."""

    tokens: int
    queries: int
    keys: int
    pairs: float
    touched: float
    ordered: bool  # whether tokens are in the order of boxes

    @property
    def share(self) -> float:
        """Of all tiles, those that are touched."""
        return self.touched / (math.ceil(self.tokens / self.queries) * math.ceil(self.tokens / self.keys))

    @property
    def executed(self) -> float:
        """Pairs that are computed for each one that is allowed."""
        return self.touched * self.queries * self.keys / self.pairs


@dataclass(frozen=True)
class Mask:
    """The pairs that one or all heads allow: their number, and groups of queries that share keys, some at a time."""

    pairs: int
    groups: Callable[[], Iterable[gathered.Group]]


def speedup(arguments: Sequence[str]) -> str:
    """What the command says, as a table.

    Raises:
        ValueError: an argument is wrong, a table of pairs would be too large, or the scheme is no masked attention.
        UnknownName: there is no such scheme.
    """
    name, grid, seed, dim, heads, blocks, box, options = counting(arguments)
    torch.manual_seed(seed)
    module = build(name, dim, heads, grid, kernel="reference", **options).eval()
    allowed = masks(module, grid)
    # Of a width of 4 the projections are next to nothing, so that the products remain.
    if not hasattr(module, "selection") and build(name, 4, 1, grid, **options).macs() < 2 * 4 * allowed[0].pairs:
        raise ValueError(
            f"{name} is no masked attention: a token depends on {allowed[0].pairs / grid.tokens:.0f} tokens, but "
            "through means, several steps or no softmax, for which there are no tiles to skip"
        )
    tilings = [tiles(allowed, grid, *block, order) for order in (None, box) for block in blocks]
    words = " ".join([name, *(f"{option}={json.dumps(value)}" for option, value in options.items())])
    return _text(words, grid, box, tilings, dim)


def tiles(allowed: Sequence[Mask], grid: Grid, queries: int, keys: int, box: Grid | None = None) -> Tiles:
    """The tiles that masks touch, on the mean, with tokens in (t, h, w) order or in the order of boxes of this size."""
    place = np.arange(grid.tokens)
    if box is not None:
        place[np.concatenate(tiles_of(grid, grid.clipped(box)))] = np.arange(grid.tokens)
    touched = []
    for mask in allowed:
        table = np.zeros((-(-grid.tokens // queries), -(-grid.tokens // keys)), dtype=bool)
        for rows, columns in mask.groups():
            _touch(table, place[rows] // queries, place[columns] // keys)
        touched.append(int(table.sum()))
    return Tiles(grid.tokens, queries, keys, fmean(mask.pairs for mask in allowed), fmean(touched), box is not None)


def masks(module: nn.Module, grid: Grid) -> list[Mask]:
    """What a scheme with a fixed rule allows; of one that chooses, what each head chose on a clip of smooth noise.

    Raises: ValueError where the table of pairs would be too large.
    """
    if hasattr(module, "buckets"):
        buckets = module.buckets()
        return [Mask(gathered.pairs(buckets), lambda: _bucket_groups(buckets))]
    choosing = hasattr(module, "selection")
    size = grid.tokens**2 * (module.num_heads if choosing else 1)
    if size > MOST:
        raise ValueError(
            f"grid {tuple(grid)} has {grid.tokens} tokens, whose table of pairs takes {size / 2**30:.1f} GiB; allowed: "
            f"{math.isqrt(MOST * grid.tokens**2 // size)} tokens, or a scheme whose rule is a list of keys "
            "(neighborhood, sliding_tile, radial), on any grid"
        )
    tables = module.selection(clip(grid, module.dim))[0] if choosing else module.reach()[None]
    return [Mask(int(table.sum()), lambda table=table: _table_groups(table)) for table in tables.numpy()]


def _touch(table: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> None:
    """Marks every (row, column) of each group."""
    if rows.shape[1] * columns.shape[1] <= FEW:
        table[rows[:, :, None], columns[:, None]] = True
        return
    touched = [np.zeros((len(rows), size), dtype=np.float32) for size in table.shape]
    for blocks, members in zip(touched, (rows, columns), strict=True):
        np.put_along_axis(blocks, members, 1, axis=1)
    table |= touched[0].T @ touched[1] > 0


def _bucket_groups(buckets: Iterable[gathered.Group]) -> Iterable[gathered.Group]:
    for queries, keys in buckets:
        length = max(1, PIECE // (queries.shape[1] * keys.shape[1]))
        for start in range(0, len(queries), length):
            yield queries[start : start + length], keys[start : start + length]


def _table_groups(table: np.ndarray) -> Iterable[gathered.Group]:
    length = max(1, PIECE // len(table))
    for start in range(0, len(table), length):
        rows, columns = table[start : start + length].nonzero()
        yield rows[:, None] + start, columns[:, None]


def _text(words: str, grid: Grid, box: Grid, tilings: Sequence[Tiles], dim: int) -> str:
    """A table of all tiles with the best of them in a sentence."""
    n, pairs = grid.tokens, tilings[0].pairs
    lines = [
        f"{words} on {'x'.join(map(str, grid))}, {n:,} tokens: {pairs:,.0f} of {n * n:,} pairs ({pairs / n**2:.2%}); "
        f"the products of full attention are {n * n / pairs:.1f} times as many",
        "",
        f"{'tile, queries x keys':<22}{'order of tokens':<18}{'tiles touched':>14}{'pairs computed for':>20}"
        f"{'at most so many times':>23}",
        f"{'':<54}{'each allowed one':>20}{'as fast as full':>23}",
    ]
    for tiling in tilings:
        order = "boxes of " + "x".join(map(str, box)) if tiling.ordered else "t, h, w"
        size, times = f"{tiling.queries} x {tiling.keys}", 1 / tiling.share
        lines.append(f"{size:<22}{order:<18}{tiling.share:>14.1%}{tiling.executed:>20.1f}{times:>23.2f}")
    best = min(tilings, key=lambda t: (round(t.share, 2), -t.queries * t.keys))  # a kernel likes large tiles
    order = "boxes" if best.ordered else "t, h, w"
    projections = 2 * n * dim  # as many multiply-adds as the two products need for so many pairs
    whole = (n * n + projections) / (n * n * best.share + projections)
    where = f"tiles of {best.queries} x {best.keys}, tokens in the order of {order}"
    if 1 / best.share >= WORTH:
        verdict = (
            f"It can be fast: in {where}, the products take 1/{1 / best.share:.1f} of full attention's time at best"
        )
    else:
        verdict = (
            f"It cannot be fast: {best.share:.0%} of the {where}, are touched, for {pairs / n**2:.0%} of the pairs"
        )
    return "\n".join([*lines, "", f"{verdict} (with the projections {whole:.2f} times as fast)."])
