"""Mixture of block attention for video: each query token chooses the boxes of keys that it attends to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attention_zoo import blocks, cpu
from attention_zoo.blocks import Blocks, Choosing
from attention_zoo.cpu.chosen import by_chunk
from attention_zoo.grid import Grid
from attention_zoo.kernels import AUTO
from attention_zoo.scheme import register
from attention_zoo.windows import check_choice

Scope = Literal["query_head", "head_global", "overall", "block"]
SETS = {"query_head": (3,), "head_global": (2, 3), "overall": (1, 2, 3), "block": (1, 2)}  # axes of (b, m, n, chunks)


@register("mixture_of_blocks")
class MixtureOfBlocksAttention(Choosing):
    """Source: Wu et al., VMoBA, arXiv:2506.23858; code: KwaiVGI/VMoBA@4da72ff2 (no licence file), and a copy in
    hao-ai-lab/FastVideo (Apache-2.0).

    The gate of a query and a chunk of keys is the query times the chunk's mean key, per head, unscaled; softmax
    attention runs over all tokens of the chosen chunks, the query's own among them always. No gradient passes through
    the choice.

    Args:
        chunk: tokens of a chunk along time, height and width, clipped to the grid; null is the whole axis. The
            published layers take turns: some frames (n, null, null), a patch in all frames (null, n, n), a box.
        topk: how many chunks, the own one included: of each query and head ("query_head"), or on average, as the
            largest gates of each head ("head_global") or of all heads ("overall") of the clip.
        threshold: instead, the share of the gates' sum (scaled to 0..1 over the scope's set; "block" is a chunk's) that
            the largest must reach together with the own ones; one other chunk at least.

    The published code lets the clips of a batch share a choice where the scope is not "query_head"; here each has its
    own. Where content decides how many chunks are chosen, `macs` counts all: the most that can be needed.

    Where three of four chunks are chosen, as on 16x7x7 tokens by default, it takes 1.3 times as long as `full` on a CPU
    core: a quarter of the pairs is saved, and fused attention over 196 keys at a time is as slow as over all 784.
    """

    example = dict(chunk=(2, 3, 4), topk=2)
    loose_reach = "through the choice of chunks"
    growth = {"frames": (1, 2), "size": (1, 2)}

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: Grid,
        *,
        chunk: Sequence[int | None] = (4, 7, 7),
        topk: int = 3,
        threshold: float | None = None,
        scope: Scope = "query_head",
        kernel: str = AUTO,
    ):
        super().__init__(dim, num_heads, grid, kernel)
        check_choice("scope", scope, Scope)
        if topk < 1 or (threshold is not None and not 0 < threshold <= 1):
            raise ValueError(
                f"topk {topk} must be 1 or more, threshold {threshold} null or a share above 0 and up to 1"
            )
        if threshold is None and scope == "block":
            raise ValueError("scope 'block' needs a threshold; allowed with topk: query_head, head_global, overall")
        self.whole = tuple(size is None for size in chunk)
        self.chunk = Grid.of([size or 1 for size in chunk], "chunk")
        self.topk, self.threshold, self.scope = topk, threshold, scope

    def attended(
        self, q: Tensor, keys: Tensor, values: Tensor, query_blocks: Blocks, key_blocks: Blocks, chosen: Tensor
    ) -> Float[Tensor, "b n m c"]:
        if cpu.inference(q) and self.kernel in (AUTO, "sdpa"):
            return by_chunk(q, keys, values, key_blocks, blocks.table(chosen, key_blocks.count))
        return super().attended(q, keys, values, query_blocks, key_blocks, chosen)

    def cuts(self, grid: Grid, device: torch.device) -> tuple[Blocks, Blocks]:
        """Single queries, and chunks of keys, numbered in (t, h, w) order."""
        single = blocks.cut(device, blocks.runs_of, grid.tokens, 1)
        return single, blocks.cut(device, blocks.tiles_of, grid, self._fitted(grid))

    def _fitted(self, grid: Grid) -> Grid:
        sizes = zip(grid, self.chunk, self.whole, strict=True)
        return Grid(*(n if whole else min(n, size) for n, size, whole in sizes))

    def choice(self, q: Tensor, keys: Tensor, query_blocks: Blocks, key_blocks: Blocks) -> Tensor:
        gates = q.transpose(1, 2) @ blocks.means(keys, key_blocks).mT  # b m n chunks
        own = key_blocks.block[:, None] == torch.arange(key_blocks.count, device=q.device)
        first = gates.masked_fill(own, torch.inf)
        if self.threshold is not None:
            return own | _reaching(gates, own.expand_as(gates), self.threshold, SETS[self.scope])
        if self.scope == "query_head":
            return blocks.largest(first, min(self.topk, key_blocks.count))
        scope = SETS[self.scope]
        entries = first.flatten(scope[0])
        count = min(self.topk, key_blocks.count) * (entries.shape[-1] // key_blocks.count)
        return blocks.table(blocks.largest(entries, count), entries.shape[-1]).view(gates.shape)

    def products(self) -> int:
        """The gates, then scores and weighted sum over whole chosen chunks, padding included."""
        n, d, chunk = self.grid.tokens, self.dim, self._fitted(self.grid)
        count = self.grid.ceil_div(chunk).tokens
        kept = min(self.topk, count) if self.threshold is None and self.scope == "query_head" else count
        return n * count * d + 2 * n * kept * chunk.tokens * d


def _reaching(
    gates: Float[Tensor, "b m n chunks"], own: Bool[Tensor, "b m n chunks"], threshold: float, scope: tuple[int, ...]
) -> Bool[Tensor, "b m n chunks"]:
    """The largest gates beside the own ones, until they reach the threshold together with these; at least one."""
    rest = [axis for axis in range(4) if axis not in scope]
    order = rest + list(scope)
    shape = [gates.shape[axis] for axis in order]
    gates, own = (x.permute(order).flatten(len(rest)) for x in (gates, own))
    low, high = gates.amin(-1, keepdim=True), gates.amax(-1, keepdim=True)
    scaled = (gates - low) / (high - low).clamp(min=torch.finfo(gates.dtype).tiny)
    required = threshold * scaled.sum(-1, keepdim=True) - (scaled * own).sum(-1, keepdim=True)
    ranked = scaled.masked_fill(own, -1).argsort(dim=-1, descending=True, stable=True)
    sums = scaled.masked_fill(own, 0).gather(-1, ranked)
    selected = sums.cumsum(-1) - sums < required
    selected[..., 0] = True
    chosen = torch.zeros_like(own).scatter(-1, ranked, selected) & ~own
    return chosen.view(shape).permute([int(axis) for axis in np.argsort(order)])
