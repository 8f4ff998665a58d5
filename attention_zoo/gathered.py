"""Softmax attention of groups of queries, each over its own list of keys, which are gathered: no pair is computed and
then masked, so the products counted are those that the rule allows.

A rule is written down as buckets of index tables; what is in one bucket has one shape and is one call of a kernel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch._guards import detect_fake_mode
from torch.utils.checkpoint import checkpoint

from attention_zoo import cpu, dispatch
from attention_zoo.dispatch import unwatched
from attention_zoo.grid import Grid
from attention_zoo.kernels import attend

# Bytes of gathered queries, keys and values that a backward pass may find as they were. Keys are half of it and values
# the other: above 32 MiB the C library gives memory back at once; below, results in between scatter it over the heap.
KEPT = 96 * 2**20


SPAN = 128  # queries of a group, from which on a call for each group costs less on a CPU than to gather for one call


class Bucket(NamedTuple):
    """Groups of equally many queries over equally many keys, as numbers of tokens in (t, h, w) order.

    `bias` forbids, in every group alike, some of the pairs; None where all are allowed. `spans` are the first and the
    last token of queries and keys of each group, where these are all that lie between, and many.
    """

    queries: Int[Tensor, "g s"]
    keys: Int[Tensor, "g r"]
    bias: Float[Tensor, "1 1 s r"] | None
    spans: tuple[tuple[int, int, int, int], ...]


Group = tuple[np.ndarray, np.ndarray]
"""Queries "g s" and the keys "g r" that they share, as a bucket has them before it is on a device."""
Rule = Callable[..., Sequence[tuple[np.ndarray, ...]]]
"""A function of hashable values that gives the (queries, keys) of each bucket, and a table (s, r) of the pairs that are
allowed where these are not all; each query is in exactly one group.
"""


class Tables(NamedTuple):
    """The buckets of a rule on a device, and where each token's result lies in the results of all buckets."""

    buckets: tuple[Bucket, ...]
    back: Int[Tensor, " n"]
    sorted: bool  # whether they lie there in the order of the tokens


@functools.lru_cache(maxsize=16)  # a model has one or two rules in each of its stages
def _made(device: torch.device, rule: Rule, *key) -> Tables:
    arrays = rule(*key)
    back = np.argsort(np.concatenate([queries.ravel() for queries, *_ in arrays]))

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int32)).to(device)

    def bias(allowed: np.ndarray) -> Tensor:
        forbidden = torch.from_numpy(~allowed[None, None]).to(device)
        return torch.zeros(forbidden.shape, device=device).masked_fill(forbidden, -torch.inf)

    with unwatched():
        buckets = (
            Bucket(tensor(queries), tensor(keys), bias(masks[0]) if masks else None, _spans(queries, keys))
            for queries, keys, *masks in arrays
        )
        return Tables(tuple(buckets), tensor(back), bool((np.diff(back) == 1).all()))


def _spans(queries: np.ndarray, keys: np.ndarray) -> tuple[tuple[int, int, int, int], ...]:
    """See `Bucket`; none where a group is too small for a call of its own, or leaves tokens out."""
    if queries.shape[1] < SPAN or any((np.diff(numbers) != 1).any() for numbers in (queries, keys)):
        return ()
    ends = (queries[:, 0], queries[:, -1] + 1, keys[:, 0], keys[:, -1] + 1)
    return tuple(zip(*(column.tolist() for column in ends), strict=True))


@torch.compiler.disable  # numpy makes the tables: a compiled model takes them between two graphs
def tables(device: torch.device, rule: Rule, *key) -> Tables:
    """The tables of `rule(*key)`, made once, unless tensors are fakes for the time being."""
    return (_made if detect_fake_mode() is None else _made.__wrapped__)(device, rule, *key)


def pairs(buckets: Iterable[Group]) -> int:
    """How many (query, key) pairs a rule allows."""
    return sum(queries.size * keys.shape[1] for queries, keys in buckets)


def reach(tokens: int, buckets: Iterable[Group]) -> Bool[Tensor, "n n"]:
    """The pairs that a rule allows, as a table."""
    allowed = np.zeros((tokens, tokens), dtype=bool)
    for queries, keys in buckets:
        allowed[queries[:, :, None], keys[:, None, :]] = True
    return torch.from_numpy(allowed)


def product_of_axes(grid: Grid, axes: Sequence[Sequence[Group]]):
    """The buckets of a rule that allows a pair where each axis does, from the buckets of each axis."""

    def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
        (gt, st), (gh, sh), (gw, sw) = (part.shape for part in parts)
        t, h, w = parts
        number = (t[:, None, None, :, None, None] * grid.h + h[:, None, None, :, None]) * grid.w + w[:, None, None, :]
        return number.reshape(gt * gh * gw, st * sh * sw)

    return [(joined([t[0], h[0], w[0]]), joined([t[1], h[1], w[1]])) for t in axes[0] for h in axes[1] for w in axes[2]]


def by_shape(groups: Iterable[Group]) -> list[Group]:
    """Buckets of the (queries, keys) of single groups."""
    shapes: dict[tuple[int, int], list[Group]] = {}
    for queries, keys in groups:
        shapes.setdefault((len(queries), len(keys)), []).append((queries, keys))
    return [(np.stack([q for q, _ in same]), np.stack([k for _, k in same])) for same in shapes.values()]


def attention(
    q: Float[Tensor, "b n m c"], k: Float[Tensor, "b n m c"], v: Float[Tensor, "b n m c"], table: Tables, *, kernel: str
) -> Float[Tensor, "b n m c"]:
    """What each query finds among the keys of its group."""
    if cpu.inference(q) and all(bucket.spans for bucket in table.buckets):
        parts = [
            attend(*(x.transpose(1, 2) for x in (q[:, a:b], k[:, c:d], v[:, c:d])), bucket.bias, kernel=kernel)
            for bucket in table.buckets
            for a, b, c, d in bucket.spans
        ]
        y = cpu.joined((part.transpose(1, 2) for part in parts), q, dim=1)
        return y if table.sorted else y.index_select(1, table.back)
    q, k, v = (x.contiguous() for x in (q, k, v))  # once: rows are taken from a view only after a copy of all of it
    parts = [_bucket(q, k, v, bucket, kernel) for bucket in table.buckets]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, 1)).index_select(1, table.back)


def _bucket(q: Tensor, k: Tensor, v: Tensor, bucket: Bucket, kernel: str) -> Float[Tensor, "b x m c"]:
    b, _, m, c = q.shape
    (g, s), r = bucket.queries.shape, bucket.keys.shape[1]

    def piece(groups: slice) -> Tensor:
        return _piece(q, k, v, bucket.queries[groups], bucket.keys[groups], bucket.bias, kernel)

    return in_pieces(piece, g, 2 * b * m * c * (s + r), q.new_empty(b, g * s, 0, 0), dim=1)


def in_pieces(piece: Callable[[slice], Tensor], count: int, numbers: int, like: Tensor, dim: int = 0) -> Tensor:
    """What `piece` gives for slices of `count` groups, together as long as `like` along `dim`.

    Each group gathers so many `numbers`. Without gradients a piece stays in the cache. With them all gathered keys
    would be kept for the backward pass, hundreds of times the tokens; where these are more than KEPT bytes, they are
    gathered again there.
    """
    if cpu.inference(like):
        length = cpu.chunk_length(like, count, numbers)
        return cpu.joined((piece(slice(i, i + length)) for i in range(0, count, length)), like, dim)
    size = numbers * like.element_size()
    if torch.is_grad_enabled() and not dispatch.observed() and count * size > KEPT:
        length = max(1, KEPT // size)
        slices = (slice(i, i + length) for i in range(0, count, length))
        return torch.cat([checkpoint(piece, part, use_reentrant=False) for part in slices], dim)
    return piece(slice(None))


def _piece(q, k, v, queries, keys, bias: Tensor | None, kernel: str) -> Float[Tensor, "b x m c"]:
    b, _, m, c = q.shape
    g, s = queries.shape

    def rows(x: Tensor, index: Tensor) -> Tensor:
        return x.index_select(1, index.flatten()).reshape(b * g, index.shape[1], m, c).transpose(1, 2)

    y = attend(rows(q, queries), rows(k, keys), rows(v, keys), bias, kernel=kernel)
    return y.transpose(1, 2).reshape(b, g * s, m, c)
