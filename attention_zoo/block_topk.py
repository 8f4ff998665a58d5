"""Block-sparse attention by pooled scores: blocks of queries choose blocks of keys, without parameters of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize, pad

from attention_zoo import blocks
from attention_zoo.blocks import Blocks, Choosing
from attention_zoo.grid import Grid
from attention_zoo.kernels import AUTO
from attention_zoo.scheme import register
from attention_zoo.windows import check_choice

Rule = Literal["sparge", "sla", "nabla", "xattention"]
SHARES = {"nabla": 0.9, "xattention": 0.9}  # their published thresholds


@register("block_topk")
class BlockTopkAttention(Choosing):
    """Which blocks of keys a block of queries attends to follows from the tokens, by one of four published rules:

    - "sparge": SpargeAttn, arXiv:2502.18137; thu-ml/SpargeAttn@bfd980b7 (Apache-2.0). Softmax over the key blocks of
      mean query times mean key (all keys less their common mean). The `keep` largest, at least one; or with a
      `threshold` the largest while their sum stays at most it (the block that crosses it is out), at least one. With a
      `similarity`, blocks whose tokens have a smaller mean cosine, and a short last one, keep all and are kept by all.
    - "sla": the selection of SLA, arXiv:2509.24006. The same scores; the `keep` largest, perhaps none.
    - "nabla": NABLA, arXiv:2507.13546; in diffusers (Apache-2.0). As "sparge" with keys as they are; the fewest largest
      whose sum reaches `threshold`. `own_block` adds the block itself (the smallest of the published window masks).
    - "xattention": arXiv:2503.16428; mit-han-lab/x-attention@e3798877 (no licence file). Sums along anti-diagonals of
      squares of `stride` tokens, softmax, added up over the block; as "nabla", and the first block always.

    Attention inside the chosen blocks is dense; no gradient passes through the choice, and a block need not choose
    itself. The kernels of SpargeAttn quantise and prune besides: not here.

    Args:
        query_block, key_block: consecutive tokens of a block, clipped to the clip; the last may be short.
        tile: blocks are made of tokens in the order of tiles of this size, instead of (t, h, w) order.

    Where content decides how many blocks are chosen ("nabla", "xattention", a threshold, a similarity), `macs` counts
    all: the most that can be needed. `selection` says what one clip needs.
    """

    example = dict(query_block=16, key_block=8, keep=0.3)
    growth = {"frames": (2, 2), "size": (2, 2)}
    loose_reach = "through the choice of blocks"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: Grid,
        *,
        rule: Rule = "sparge",
        keep: float = 0.125,
        threshold: float | None = None,
        similarity: float | None = None,
        query_block: int = 128,
        key_block: int = 64,
        stride: int = 8,
        own_block: bool = False,
        tile: Sequence[int] | None = None,
        kernel: str = AUTO,
    ):
        super().__init__(dim, num_heads, grid, kernel)
        check_choice("rule", rule, Rule)
        _check(rule, keep, threshold, query_block, key_block, stride)
        self.rule, self.keep, self.similarity, self.stride, self.own_block = rule, keep, similarity, stride, own_block
        self.threshold = threshold if threshold is not None else SHARES.get(rule)
        self.query_block, self.key_block = query_block, key_block
        self.tile = None if tile is None else Grid.of(tile, "tile")

    def cuts(self, grid: Grid, device: torch.device) -> tuple[Blocks, Blocks]:
        sizes = (min(size, grid.tokens) for size in (self.query_block, self.key_block))
        return tuple(blocks.cut(device, ordered_runs, grid, self.tile, size) for size in sizes)

    def choice(self, q: Tensor, keys: Tensor, query_blocks: Blocks, key_blocks: Blocks) -> Tensor:
        if self._static() and not self._kept(key_blocks.count):
            return torch.empty(q.shape[0], q.shape[2], query_blocks.count, 0, dtype=torch.int64, device=q.device)
        queries = blocks.split(q, query_blocks)
        if self.rule == "xattention":
            chosen = reaching(self._antidiagonal(queries, keys, query_blocks, key_blocks), self.threshold)
            chosen[..., 0] = True
            return chosen
        if self.rule in ("sparge", "sla"):
            keys = keys - (keys.sum((2, 3)) / key_blocks.sizes.sum())[:, :, None, None]
            if key_blocks.ragged:  # padding stays zero
                keys = keys * (torch.arange(key_blocks.slots, device=q.device) < key_blocks.sizes[:, None])[..., None]
        scores = (blocks.means(queries, query_blocks) * q.shape[-1] ** -0.5) @ blocks.means(keys, key_blocks).mT
        if self.rule == "sla":
            return blocks.largest(scores, self._kept(key_blocks.count))
        if self.rule == "nabla":
            chosen = reaching(scores.softmax(-1), self.threshold)
            return chosen | _overlap(query_blocks, key_blocks) if self.own_block else chosen
        return self._sparge(scores, queries, keys, query_blocks, key_blocks)

    def _sparge(
        self, scores: Tensor, queries: Tensor, keys: Tensor, query_blocks: Blocks, key_blocks: Blocks
    ) -> Tensor:
        alike = None
        if self.similarity is not None:
            alike = [_alike(x, cut, self.similarity) for x, cut in ((queries, query_blocks), (keys, key_blocks))]
            scores = scores.masked_fill(~alike[1][:, :, None], -torch.inf)
        shares = scores.softmax(-1).nan_to_num()  # no key block is left where all fall back
        if self.threshold is None:
            chosen = blocks.largest(shares, self._kept(key_blocks.count))
        else:
            order = shares.argsort(dim=-1, descending=True, stable=True)
            kept = shares.gather(-1, order).cumsum(-1) <= self.threshold
            kept[..., 0] = True
            chosen = torch.zeros_like(kept).scatter(-1, order, kept)
        if alike is None:
            return chosen
        return blocks.table(chosen, key_blocks.count) | ~alike[0][..., None] | ~alike[1][:, :, None]

    def _antidiagonal(self, queries: Tensor, keys: Tensor, query_blocks: Blocks, key_blocks: Blocks) -> Tensor:
        """The share of each key block in the scores of each query block; groups of padding alone take no part."""
        stride, c = self.stride, queries.shape[-1]
        q, k = (
            pad(x, (0, 0, 0, -x.shape[3] % stride)).flatten(2, 3).unflatten(2, (-1, stride)) for x in (queries, keys)
        )
        q, k = q.flip(3).flatten(3), k.flatten(3)
        scores = (q * (c**-0.5 / stride)) @ k.mT
        real = [
            (torch.arange(0, cut.slots, stride, device=q.device) < cut.sizes[:, None]).flatten()
            for cut in (query_blocks, key_blocks)
        ]
        shares = scores.masked_fill(~real[1], -torch.inf).softmax(-1) * real[0][:, None]
        shares = shares.unflatten(3, (key_blocks.count, -1)).sum(4).unflatten(2, (query_blocks.count, -1)).sum(3)
        return shares / shares.sum(-1, keepdim=True)

    def _static(self) -> bool:
        return self.rule == "sla" or (self.rule == "sparge" and self.threshold is None and self.similarity is None)

    def _kept(self, count: int) -> int:
        """How many key blocks a query block has by its share."""
        return int(self.keep * count) if self.rule == "sla" else max(1, int(self.keep * count))

    def products(self) -> int:
        """The scores of blocks, then scores and weighted sum over whole chosen blocks."""
        n, d = self.grid.tokens, self.dim
        queries, keys = (min(size, n) for size in (self.query_block, self.key_block))
        query_blocks, key_blocks = -(-n // queries), -(-n // keys)
        scoring = query_blocks * key_blocks * d
        if self.rule == "xattention":
            scoring *= -(-queries // self.stride) * -(-keys // self.stride) * self.stride
        kept = self._kept(key_blocks) if self._static() else key_blocks
        return (scoring if kept else 0) + 2 * n * kept * keys * d


def _check(rule: Rule, keep: float, threshold: float | None, queries: int, keys: int, stride: int) -> None:
    if not 0 < keep <= 1 or (threshold is not None and not 0 < threshold <= 1):
        raise ValueError(f"keep {keep} and threshold {threshold} must be shares above 0 and up to 1")
    if min(queries, keys, stride) < 1:
        raise ValueError(f"query_block {queries}, key_block {keys} and stride {stride} must be 1 or more")
    if rule == "xattention" and (queries % stride or keys % stride):
        raise ValueError(
            f"stride {stride} must divide query_block {queries} and key_block {keys}; "
            f"allowed: the divisors of {math.gcd(queries, keys)}"
        )


def ordered_runs(grid: Grid, tile: Grid | None, size: int) -> list[np.ndarray]:
    """Blocks of consecutive tokens in (t, h, w) order, or in the order of tiles."""
    order = np.arange(grid.tokens) if tile is None else np.concatenate(blocks.tiles_of(grid, grid.clipped(tile)))
    return [order[run] for run in blocks.runs_of(grid.tokens, size)]


def reaching(shares: Float[Tensor, "b m queries keys"], threshold: float) -> Bool[Tensor, "b m queries keys"]:
    """The fewest largest shares of each row whose sum reaches the threshold."""
    order = shares.argsort(dim=-1, descending=True, stable=True)
    sorted_shares = shares.gather(-1, order)
    before = sorted_shares.cumsum(-1) - sorted_shares
    return torch.zeros_like(shares, dtype=torch.bool).scatter(-1, order, before < threshold)


def _alike(x: Float[Tensor, "b m blocks slots c"], cut: Blocks, least: float) -> Bool[Tensor, "b m blocks"]:
    """Whether the mean cosine of all pairs of tokens of a block is large enough; never in a short block, as published.

    The mean over pairs of unit vectors is the squared length of their mean.
    """
    mean = normalize(x, dim=-1).mean(3)
    return (mean.square().sum(-1) > least) & (cut.sizes == cut.slots)


def _overlap(query_blocks: Blocks, key_blocks: Blocks) -> Bool[Tensor, "queries keys"]:
    shared = torch.zeros(query_blocks.count, key_blocks.count, dtype=torch.bool, device=query_blocks.block.device)
    shared[query_blocks.block, key_blocks.block] = True
    return shared
