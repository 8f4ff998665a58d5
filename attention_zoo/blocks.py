"""Attention of blocks of queries over the blocks of keys that were chosen for them, head by head, clip by clip."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch._guards import detect_fake_mode

from attention_zoo.dispatch import unwatched
from attention_zoo.gathered import in_pieces
from attention_zoo.grid import Grid
from attention_zoo.kernels import attend, of_rule
from attention_zoo.projected import Projected, projected
from attention_zoo.windows import grid_of


class Blocks(NamedTuple):
    """A cut of the tokens of a clip into blocks, each with its real tokens first and then padding.

    `tokens` numbers the tokens of a block in (t, h, w) order, padding with the number of tokens; `sizes` and `lengths`
    count the real ones, on the device and beside it; `block` is the block of each token; `runs` are the blocks of one
    size: its tokens, and their numbers.
    """

    tokens: Int[Tensor, "blocks slots"]
    sizes: Int[Tensor, " blocks"]
    lengths: tuple[int, ...]
    block: Int[Tensor, " n"]
    runs: tuple[tuple[int, Int[Tensor, " g"]], ...]
    back: Int[Tensor, " n"]  # where each token lies in the runs, one after the other
    ragged: bool

    @property
    def count(self) -> int:
        return self.tokens.shape[0]

    @property
    def slots(self) -> int:
        return self.tokens.shape[1]


def runs_of(tokens: int, size: int) -> list[np.ndarray]:
    """Blocks of consecutive tokens, the last one short."""
    return [np.arange(start, min(start + size, tokens)) for start in range(0, tokens, size)]


def tiles_of(grid: Grid, tile: Grid) -> list[np.ndarray]:
    """Boxes of tokens, numbered in (t, h, w) order, short ones at the far ends."""
    number = np.arange(grid.tokens).reshape(grid)
    starts = (range(0, n, size) for n, size in zip(grid, tile, strict=True))
    t, h, w = (list(axis) for axis in starts)
    return [number[i : i + tile.t, j : j + tile.h, k : k + tile.w].ravel() for i in t for j in h for k in w]


@functools.lru_cache(maxsize=32)
def _cut(device: torch.device, make, *key) -> Blocks:
    blocks = make(*key)
    sizes = np.array([len(block) for block in blocks])
    n, slots = int(sizes.sum()), int(sizes.max())
    tokens = np.stack([np.pad(block, (0, slots - len(block)), constant_values=n) for block in blocks])
    block = np.empty(n, dtype=np.int64)
    for number, members in enumerate(blocks):
        block[members] = number
    runs = [(int(size), np.flatnonzero(sizes == size)) for size in np.unique(sizes)]
    back = np.argsort(np.concatenate([tokens[numbers, :size].ravel() for size, numbers in runs]))

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(device)

    with unwatched():
        tensors = tuple((size, tensor(numbers)) for size, numbers in runs)
        lengths = tuple(sizes.tolist())
        return Blocks(
            tensor(tokens), tensor(sizes), lengths, tensor(block), tensors, tensor(back), slots * len(blocks) > n
        )


@torch.compiler.disable  # numpy makes the tables: a compiled model takes them between two graphs
def cut(device: torch.device, make, *key) -> Blocks:
    """The cut `make(*key)` on a device, made once, unless tensors are fakes for the time being."""
    return (_cut if detect_fake_mode() is None else _cut.__wrapped__)(device, make, *key)


def split(x: Float[Tensor, "b n m c"], blocks: Blocks) -> Float[Tensor, "b m blocks slots c"]:
    """The tokens of each block, padding as zeros."""
    if blocks.ragged:
        x = torch.cat([x, x.new_zeros(x.shape[0], 1, *x.shape[2:])], 1)
    x = x.transpose(1, 2).contiguous().index_select(2, blocks.tokens.flatten())
    return x.unflatten(2, (blocks.count, blocks.slots))


def means(x: Float[Tensor, "b m blocks slots c"], blocks: Blocks) -> Float[Tensor, "b m blocks c"]:
    """Of the real tokens of each block."""
    return x.sum(3) / blocks.sizes[:, None]


def joined(parts: list[Float[Tensor, "b m g s c"]], blocks: Blocks) -> Float[Tensor, "b n m c"]:
    """The tokens of all runs in their order in the clip."""
    flat = [part.flatten(2, 3) for part in parts]
    return (flat[0] if len(flat) == 1 else torch.cat(flat, 2)).index_select(2, blocks.back).transpose(1, 2)


def attention(
    q: Float[Tensor, "b n m c"],
    k: Float[Tensor, "b m blocks slots c"],
    v: Float[Tensor, "b m blocks slots c"],
    query_blocks: Blocks,
    key_blocks: Blocks,
    chosen: Int[Tensor, "b m queries r"] | Bool[Tensor, "b m queries blocks"],
    *,
    kernel: str,
) -> Float[Tensor, "b n m c"]:
    """Each query over the real tokens of the blocks chosen for its own block; zero where none are.

    `chosen` are numbers of key blocks, equally many for each query block, or a table of which are chosen.
    """
    if (program := of_rule(kernel, "blocks", q)) is not None:
        chosen = table(chosen, key_blocks.count)
        y = program(split(q, query_blocks), k, v, query_blocks.lengths, key_blocks.lengths, chosen)
        y = y.masked_fill(~chosen.any(-1)[..., None, None], 0)
        place = query_blocks.tokens.flatten().argsort()[: q.shape[1]]  # padding is numbered last
        return y.flatten(2, 3).index_select(2, place).transpose(1, 2)
    b, n, m, c = q.shape
    rows = q.transpose(1, 2).contiguous()
    keys, values = (x.reshape(b * m * key_blocks.count, key_blocks.slots * c) for x in (k, v))
    forbidden = None
    if key_blocks.ragged:
        padding = torch.arange(key_blocks.slots, device=q.device) >= key_blocks.sizes[:, None]
        forbidden = torch.zeros_like(padding, dtype=q.dtype).masked_fill(padding, -torch.inf)
    parts = []
    for size, numbers in query_blocks.runs:
        index = query_blocks.tokens[numbers, :size]
        queries = rows.index_select(2, index.flatten()).view(b * m * len(numbers), 1, size, c)
        y = _run(
            queries, keys, values, chosen[:, :, numbers].flatten(0, 2), key_blocks, forbidden, len(numbers), kernel
        )
        parts.append(y.view(b, m, len(numbers), size, c))
    return joined(parts, query_blocks)


class Choosing(Projected, ABC):
    """Blocks of queries choose blocks of keys. A subclass says in `cuts` what blocks are, and chooses in `choice`."""

    @abstractmethod
    def cuts(self, grid: Grid, device: torch.device) -> tuple[Blocks, Blocks]:
        """Of queries, and of keys."""

    @abstractmethod
    def choice(
        self,
        q: Float[Tensor, "b n m c"],
        keys: Float[Tensor, "b m blocks slots c"],
        query_blocks: Blocks,
        key_blocks: Blocks,
    ) -> Tensor:
        """Numbers of key blocks where each query block has equally many, else a table; without gradients."""

    def attention(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> Float[Tensor, "b n m c"]:
        cuts = self.cuts(grid, q.device)
        keys, values = split(k, cuts[1]), split(v, cuts[1])
        with torch.no_grad():
            chosen = self.choice(q, keys, *cuts)
        return self.attended(q, keys, values, *cuts, chosen)

    def attended(
        self, q: Tensor, keys: Tensor, values: Tensor, query_blocks: Blocks, key_blocks: Blocks, chosen: Tensor
    ) -> Float[Tensor, "b n m c"]:
        return attention(q, keys, values, query_blocks, key_blocks, chosen, kernel=self.kernel)

    @torch.no_grad()
    def chosen(self, x: Float[Tensor, "b t h w d"]) -> Bool[Tensor, "b m queries keys"]:
        """Which key blocks each query block chooses."""
        cuts = self.cuts(grid_of(x), x.device)
        q, k, _ = projected(x, self.qkv, self.num_heads)
        return table(self.choice(q, split(k, cuts[1]), *cuts), cuts[1].count)

    def selection(self, x: Float[Tensor, "b t h w d"]) -> Bool[Tensor, "b m n n"]:
        """The (query, key) pairs that are attended to."""
        return pairs_of(self.chosen(x), *self.cuts(grid_of(x), x.device))


def _run(q, k, v, chosen, key_blocks: Blocks, forbidden, group: int, kernel: str) -> Float[Tensor, "x 1 s c"]:
    head = torch.arange(q.shape[0], device=q.device) // group * key_blocks.count  # the first block of each row's head
    if chosen.dtype != torch.bool:
        return _rows(q, k, v, chosen, head, forbidden, kernel)
    indices, choices = zip(*_equal(chosen), strict=True)
    parts = [_rows(q[i], k, v, some, head[i], forbidden, kernel) for i, some in zip(indices, choices, strict=True)]
    return torch.cat(parts).index_select(0, torch.cat(indices).argsort())


def _equal(chosen: Bool[Tensor, "x blocks"]) -> Iterator[tuple[Int[Tensor, " y"], Int[Tensor, "y r"]]]:
    """The rows with equally many choices, and what they chose."""
    if chosen.device.type == "meta":  # nothing is known of what content decides: as if all were chosen
        yield torch.arange(len(chosen), device="meta"), torch.empty(chosen.shape, dtype=torch.int64, device="meta")
        return
    counts = chosen.sum(1)
    for count in counts.unique().tolist():
        rows = (counts == count).nonzero()[:, 0]
        yield rows, chosen[rows].nonzero()[:, 1].view(len(rows), count)


def _rows(q, k, v, chosen, head, forbidden, kernel: str) -> Float[Tensor, "x 1 s c"]:
    if chosen.shape[1] == 0:
        return torch.zeros_like(q)

    def piece(rows: slice) -> Tensor:
        return _attended(q[rows], k, v, chosen[rows], head[rows], forbidden, kernel)

    return in_pieces(piece, q.shape[0], 2 * (q.shape[2] * q.shape[3] + chosen.shape[1] * k.shape[1]), q)


def _attended(q, k, v, chosen, head, forbidden, kernel: str) -> Float[Tensor, "x 1 s c"]:
    index = (head[:, None] + chosen).flatten()
    keys, values = (x.index_select(0, index).view(q.shape[0], 1, -1, q.shape[-1]) for x in (k, v))
    bias = None if forbidden is None else forbidden[chosen].flatten(1)[:, None, None]
    return attend(q, keys, values, bias, kernel=kernel)


def pairs_of(
    chosen: Bool[Tensor, "b m queries keys"], query_blocks: Blocks, key_blocks: Blocks
) -> Bool[Tensor, "b m n n"]:
    """A choice of blocks as a choice of tokens, in (t, h, w) order."""
    return chosen[:, :, query_blocks.block][..., key_blocks.block]


def table(chosen: Tensor, count: int) -> Bool[Tensor, "b m queries blocks"]:
    """Numbers of chosen blocks as a table; a table stays one."""
    if chosen.dtype == torch.bool:
        return chosen
    return torch.zeros(*chosen.shape[:-1], count, dtype=torch.bool, device=chosen.device).scatter(-1, chosen, True)


def largest(scores: Float[Tensor, "b m queries blocks"], count: int) -> Int[Tensor, "b m queries r"]:
    """The numbers of the `count` largest scores of each row; among equals, lower numbers first."""
    return scores.argsort(dim=-1, descending=True, stable=True)[..., :count]
