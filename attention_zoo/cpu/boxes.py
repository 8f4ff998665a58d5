"""Neighbouring windows as one masked box: on a CPU, matrix products instead of one gathered window for each token."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from attention_zoo.gathered import Group, product_of_axes
from attention_zoo.grid import Grid

GATHER = 32  # pairs of a query and a key that take as long as to gather a key and its value

Run = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Queries, the keys that any of them sees, and a table of which sees which."""


def together(grid: Grid, groups: Sequence[Sequence[Sequence[Group]]]) -> list[tuple[np.ndarray, ...]]:
    """The buckets of a rule whose groups of each axis are these: queries, keys, and a table where some are forbidden.

    How many neighbours along each axis: what costs least, where a gathered key costs as much as its pairs with GATHER
    queries.
    """
    runs = [[_runs(axis, count) for count in range(1, 1 + max(map(len, axis)))] for axis in groups]

    def cost(axes: Sequence[Sequence[Run]]) -> float:
        pairs = math.prod(sum(len(queries) * len(keys) for queries, keys, _ in axis) for axis in axes)
        return pairs + GATHER * math.prod(sum(len(keys) for _, keys, _ in axis) for axis in axes)

    buckets: list[tuple[np.ndarray, ...]] = []
    for along_t, along_h, along_w in itertools.product(*map(_alike, min(itertools.product(*runs), key=cost))):
        (tables,) = product_of_axes(grid, [[along_t[:2]], [along_h[:2]], [along_w[:2]]])
        t, h, w = along_t[2], along_h[2], along_w[2]
        allowed = t[:, None, None, :, None, None] & h[:, None, None, :, None] & w[:, None, None, :]
        allowed = allowed.reshape(tables[0].shape[1], tables[1].shape[1])
        buckets.append(tables if allowed.all() else (*tables, allowed))
    return buckets


def _runs(axis: Sequence[Sequence[Group]], count: int) -> list[Run]:
    """Each `count` successive groups of a dilation group of an axis as one."""
    runs = []
    for groups in axis:
        for first in range(0, len(groups), count):
            run = groups[first : first + count]
            keys = np.unique(np.concatenate([keys for _, keys in run]))
            rows = [np.broadcast_to(np.isin(keys, seen_keys), (len(queries), len(keys))) for queries, seen_keys in run]
            runs.append((np.concatenate([queries for queries, _ in run]), keys, np.concatenate(rows)))
    return runs


def _alike(runs: Sequence[Run]) -> list[Run]:
    """Runs of one axis whose tables are the same, together: queries "g s" and keys "g r" with the table."""
    same: dict[tuple, list] = {}
    for queries, keys, allowed in runs:
        same.setdefault((allowed.shape, allowed.tobytes()), []).append((queries, keys, allowed))
    return [
        (np.stack([q for q, _, _ in members]), np.stack([k for _, k, _ in members]), members[0][2])
        for members in same.values()
    ]
