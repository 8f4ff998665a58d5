"""Pyramid sparse attention: the less a block of keys matters to a block of queries, the coarser it is seen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity

from attention_zoo import blocks, cpu, gathered
from attention_zoo.grid import Grid
from attention_zoo.kernels import AUTO, attend
from attention_zoo.projected import Projected, projected
from attention_zoo.scheme import register
from attention_zoo.windows import check_choice, grid_of

Mode = Literal["topk", "threshold"]
LEVELS = (1, 2, 4, 8)  # tokens that become one key; 0 drops the block
SAMPLE = 4  # importance looks at one token of so many
RATIOS = (0.05, 0.15, 0.25, 0.5)  # where each level ends


@register("pyramid_sparse")
class PyramidSparseAttention(Projected):
    """Source: Li et al., PSA, arXiv:2512.04025; code: ziplab/Pyramid-Sparse-Attention@be122cfb (no licence file).

    Of each block of queries the blocks of keys are ranked by importance: the largest softmax weight between tokens of
    the two, as a share of the row. The first are attended to token by token, the next as means of 2, of 4, of 8
    consecutive tokens, the rest not at all. Scores of means of L tokens gain ln L, so that L equal tokens weigh as L.
    No gradient passes through the ranks.

    Args:
        ratios: where the levels 1, 2, 4, 8 end; of the number of blocks ("topk"), or of the importance ("threshold",
            whose first level has at least 6 % of the blocks and one more).
        similarity: three least mean cosines of tokens 1, 2 and 4 apart; a block of keys whose tokens are less alike is
            seen at no coarser level than it passes.
        tile: a level is given to whole tiles of pooled keys: its number of blocks is rounded up to fill them.

    The published code estimates importance from a quarter of the tokens of each block, drawn at random; here it is each
    fourth, so that results repeat. As published, the last block repeats the last token. A row without any key (few
    blocks) sees the first block. Where content decides the levels, `macs` counts each block at level 1: the most.
    """

    example = dict(query_block=16, key_block=16, tile=4, ratios=(0.2, 0.4, 0.6, 0.9))
    loose_reach = "through the rank of blocks"
    growth = {"frames": (2, 2), "size": (2, 2)}

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: Grid,
        *,
        mode: Mode = "topk",
        ratios: Sequence[float] = RATIOS,
        similarity: Sequence[float] | None = None,
        query_block: int = 128,
        key_block: int = 128,
        tile: int = 32,
        kernel: str = AUTO,
    ):
        super().__init__(dim, num_heads, grid, kernel)
        check_choice("mode", mode, Mode)
        _check(ratios, similarity, query_block, key_block, tile)
        self.mode, self.ratios, self.similarity, self.tile = mode, tuple(ratios), similarity, tile
        self.query_block, self.key_block = query_block, key_block

    def attention(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> Float[Tensor, "b n m c"]:
        query_blocks, keys, values = self._cut(q), self._blocked(k), self._blocked(v)
        ranks = self._ranks(q, keys, query_blocks)
        pooled = {level: [part.unflatten(3, (-1, level)).mean(4) for part in (keys, values)] for level in LEVELS}
        filled = keys.shape[2] * keys.shape[3] - q.shape[1]  # tokens that the last block repeats
        rows, parts = q.transpose(1, 2).contiguous(), []
        for size, numbers in query_blocks.runs:
            index = query_blocks.tokens[numbers, :size]
            queries = rows.index_select(2, index.flatten()).view(-1, 1, size, q.shape[-1])
            head = torch.arange(queries.shape[0], device=q.device) // len(numbers) * keys.shape[2]
            choices = list(self._choices(ranks[:, :, numbers].flatten(0, 2)))
            results = [_attended(queries[i], head[i], chosen, pooled, filled, self.kernel) for i, chosen in choices]
            back = torch.cat([i for i, _ in choices]).argsort()
            parts.append(torch.cat(results).index_select(0, back).view(*rows.shape[:2], len(numbers), size, -1))
        return blocks.joined(parts, query_blocks)

    def _sizes(self, tokens: int) -> tuple[int, int]:
        """Tokens of a block of queries and of keys; these are whole keys of the coarsest level."""
        return min(self.query_block, tokens), min(self.key_block, -(-tokens // LEVELS[-1]) * LEVELS[-1])

    def _cut(self, q: Float[Tensor, "b n m c"]) -> blocks.Blocks:
        tokens = int(q.shape[1])  # a tensor under `torch.jit.trace`
        return blocks.cut(q.device, blocks.runs_of, tokens, self._sizes(tokens)[0])

    def _blocked(self, x: Float[Tensor, "b n m c"]) -> Float[Tensor, "b m blocks slots c"]:
        return _repeated(x, self._sizes(int(x.shape[1]))[1])

    @torch.no_grad()
    def _ranks(self, q: Tensor, keys: Tensor, query_blocks: blocks.Blocks) -> Int[Tensor, "b m queries blocks"]:
        """Blocks of keys by falling importance where each row has the same levels; else the level of each block."""
        sample = _repeated(q, query_blocks.slots)[..., ::SAMPLE, :], keys[..., ::SAMPLE, :]
        if cpu.inference(q):
            numbers = q.shape[0] * self.num_heads * sample[0].shape[3] * sample[1][0, 0, ..., 0].numel()
            pieces = sample[0].split(cpu.chunk_length(q, query_blocks.count, 2 * numbers), 2)
            shares = torch.cat([importance(piece, sample[1]) for piece in pieces], 2)
        else:
            shares = importance(*sample)
        return blocks.largest(shares, keys.shape[2]) if self._static() else self._levels(shares, keys)

    def _levels(self, shares: Float[Tensor, "b m queries blocks"], keys: Tensor) -> Int[Tensor, "b m queries blocks"]:
        """The level of each block of keys for each block of queries; 0 where it is dropped."""
        count = shares.shape[-1]
        order = blocks.largest(shares, count)
        rank = torch.arange(count, device=shares.device)
        lengths = self._lengths(count)
        if self.mode == "threshold":
            lengths = self._lengths_by_share(shares.gather(-1, order).cumsum(-1))
        by_rank, start = torch.zeros_like(order), 0
        for level, length in zip(LEVELS, lengths, strict=True):
            by_rank = torch.where((rank >= start) & (rank < start + length), level, by_rank)
            start = start + length
        levels = torch.zeros_like(order).scatter(-1, order, by_rank)
        if self.similarity is not None:
            levels = torch.minimum(levels, coarsest(keys, self.similarity)[:, :, None])
        levels[..., 0] = torch.where(levels.any(-1), levels[..., 0], 1)
        return levels

    def _lengths(self, count: int) -> list[int]:
        """How many blocks each level has by their number."""
        lengths, start = [], 0
        for level, ratio in zip(LEVELS, self.ratios, strict=True):
            unit = self._unit(level)
            length = -(-max(0, int(count * ratio) - start) // unit) * unit
            if start + length > count:
                length = (count - start) // unit * unit
            lengths.append(length)
            start += length
        return lengths

    def _lengths_by_share(self, sums: Float[Tensor, "b m queries blocks"]) -> list[Int[Tensor, "b m queries 1"]]:
        """How many blocks each level has by the running sum of their importance."""
        count, lengths, start = sums.shape[-1], [], torch.zeros_like(sums[..., :1], dtype=torch.int64)
        for level, ratio in zip(LEVELS, self.ratios, strict=True):
            below = (sums <= ratio + 1e-6).sum(-1, keepdim=True)
            end = torch.where(below > 0, below + 1, 0)
            if level == 1:
                end = end.clamp(min=int(0.06 * count) + 1)
            unit = self._unit(level)
            length = (end - start + unit - 1).clamp(min=0) // unit * unit
            length = torch.where(start + length > count, (count - start) // unit * unit, length)
            lengths.append(length)
            start = start + length
        return lengths

    def _unit(self, level: int) -> int:
        """How many pooled blocks fill a tile."""
        return -(-level * self.tile // self.key_block)

    def _choices(self, ranks: Int[Tensor, "x blocks"]) -> Iterator[tuple[Int[Tensor, " y"], dict[int, Tensor]]]:
        """Rows with equally many blocks at each level, and which."""
        every = torch.arange(ranks.shape[0], device=ranks.device)
        if self._static():
            lengths = self._lengths(ranks.shape[1])
            if not any(lengths):
                yield every, {1: torch.zeros_like(ranks[:, :1])}
            else:
                yield every, dict(zip(LEVELS, ranks[:, : sum(lengths)].split(lengths, 1), strict=True))
        elif ranks.device.type == "meta":  # nothing is known of what content decides
            yield every, {1: ranks}
        else:
            counts = torch.stack([(ranks == level).sum(1) for level in LEVELS], 1)
            for lengths in counts.unique(dim=0):
                rows = (counts == lengths).all(1).nonzero()[:, 0]
                some = zip(LEVELS, lengths.tolist(), strict=True)
                yield rows, {level: (ranks[rows] == level).nonzero()[:, 1].view(len(rows), n) for level, n in some}

    def _static(self) -> bool:
        return self.mode == "topk" and self.similarity is None

    @torch.no_grad()
    def levels(self, x: Float[Tensor, "b t h w d"]) -> Int[Tensor, "b m queries blocks"]:
        """How many tokens of a block of keys are one key for a block of queries; 0 for none."""
        q, k, _ = projected(x, self.qkv, self.num_heads)
        keys, query_blocks = self._blocked(k), self._cut(q)
        ranks = self._ranks(q, keys, query_blocks)
        if not self._static():
            return ranks
        levels = torch.zeros_like(ranks)
        for _, chosen in self._choices(ranks.flatten(0, 2)):
            for level, numbers in chosen.items():
                levels.view(-1, levels.shape[-1]).scatter_(1, numbers, level)
        return levels

    def selection(self, x: Float[Tensor, "b t h w d"]) -> Bool[Tensor, "b m n n"]:
        """The (query, key) pairs that are attended to, at whatever level."""
        n = grid_of(x).tokens
        queries, keys = (torch.arange(n, device=x.device) // size for size in self._sizes(n))
        return self.levels(x)[:, :, queries][..., keys] > 0

    def products(self) -> int:
        """The importance, then scores and weighted sum over the pooled keys."""
        n, d = self.grid.tokens, self.dim
        queries, keys = self._sizes(n)
        count = -(-n // keys)
        ranking = -(-n // queries) * -(-queries // SAMPLE) * count * -(-keys // SAMPLE) * d
        lengths = self._lengths(count)
        attended = sum(length * keys // level for level, length in zip(LEVELS, lengths, strict=True)) or keys
        return ranking + 2 * n * d * (attended if self._static() else count * keys)


def _check(ratios: Sequence[float], similarity: Sequence[float] | None, queries: int, keys: int, tile: int) -> None:
    if len(ratios) != len(LEVELS) or sorted(ratios) != list(ratios) or not 0 <= ratios[0] <= ratios[-1] <= 1:
        raise ValueError(f"ratios {ratios!r} are not four rising shares, where levels {LEVELS} end, such as {RATIOS}")
    if similarity is not None and len(similarity) != len(LEVELS) - 1:
        raise ValueError(f"similarity {similarity!r} is not three cosines, for levels 2, 4 and 8")
    if queries < 1 or tile < 1 or keys < LEVELS[-1] or keys % LEVELS[-1]:
        raise ValueError(f"query_block {queries}, key_block {keys}, tile {tile}: key_block must be a multiple of 8")


def _repeated(x: Float[Tensor, "b n m c"], size: int) -> Float[Tensor, "b m blocks size c"]:
    """Blocks of consecutive tokens, the last one filled up with the last token."""
    index = torch.arange(-(-x.shape[1] // size) * size, device=x.device).clamp(max=x.shape[1] - 1)
    return x.transpose(1, 2).index_select(2, index).unflatten(2, (-1, size))


def importance(
    q: Float[Tensor, "b m queries s c"], k: Float[Tensor, "b m blocks r c"]
) -> Float[Tensor, "b m queries blocks"]:
    """The largest weight, before the softmax is normed, of any pair of tokens of two blocks, as a share of the row."""
    scores = (q.flatten(2, 3) * q.shape[-1] ** -0.5) @ k.flatten(2, 3).mT
    highest = scores.unflatten(3, k.shape[2:4]).amax(4)
    weights = (highest - highest.amax(-1, keepdim=True)).exp().unflatten(2, q.shape[2:4]).amax(3)
    return weights / weights.sum(-1, keepdim=True)


def coarsest(keys: Float[Tensor, "b m blocks slots c"], least: Sequence[float]) -> Int[Tensor, "b m blocks"]:
    """The coarsest level at which the tokens that become one key are alike enough."""
    cap = torch.ones(keys.shape[:3], dtype=torch.int64, device=keys.device)
    for level, threshold in zip(LEVELS[1:], least, strict=True):
        alike = cosine_similarity(keys[..., ::level, :], keys[..., level - 1 :: level, :], dim=-1).mean(-1)
        cap = torch.where(alike > threshold, level, cap)
    return cap


def _attended(
    q: Float[Tensor, "x 1 s c"],
    head: Int[Tensor, " x"],
    chosen: Mapping[int, Int[Tensor, "x r"]],
    pooled: Mapping[int, Sequence[Tensor]],
    filled: int,
    kernel: str,
) -> Float[Tensor, "x 1 s c"]:
    """Rows of queries over the blocks chosen at each level; `head` is the first block of the row's own head.

    At level 1 the tokens that fill the last block up are no keys; coarser, as published, they count as they are.
    """
    chosen = {level: numbers for level, numbers in chosen.items() if numbers.shape[1]}
    sizes = {level: numbers.shape[1] * pooled[level][0].shape[3] for level, numbers in chosen.items()}
    weight = torch.cat([q.new_full((size,), math.log(level)) for level, size in sizes.items()])
    slots = q.new_zeros(pooled[1][0].shape[2:4])
    slots[-1, slots.shape[1] - filled :] = -torch.inf

    def bias(rows: slice) -> Tensor | None:
        if 1 not in chosen or not filled:
            return weight[None, None, None] if max(chosen) > 1 else None
        fine = slots[chosen[1][rows]].flatten(1)  # level 1 comes first
        coarse = weight[sizes[1] :].expand(fine.shape[0], -1)
        return torch.cat([fine, coarse], 1)[:, None, None]

    def part(rows: slice) -> Tensor:
        keys, values = (
            torch.cat([_rows(pooled[level][i], head[rows], numbers[rows]) for level, numbers in chosen.items()], 2)
            for i in range(2)
        )
        return attend(q[rows], keys, values, bias(rows), kernel=kernel)

    return gathered.in_pieces(part, q.shape[0], 2 * (q.shape[2] * q.shape[3] + sum(sizes.values()) * q.shape[-1]), q)


def _rows(x: Float[Tensor, "b m blocks slots c"], head: Tensor, numbers: Tensor) -> Float[Tensor, "x 1 keys c"]:
    picked = x.reshape(-1, x.shape[3] * x.shape[4]).index_select(0, (head[:, None] + numbers).flatten())
    return picked.view(numbers.shape[0], 1, -1, x.shape[-1])
