"""The questions: each a generator of token maps from a seed, with a dial that makes it harder.

One token of each map carries a mark, the query, and the answer is read there and nowhere else: what never reaches it
cannot be answered. `needs` says which tokens hold what the answer depends on, so that the share of queries that a
scheme's reach allows can be counted without training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from attention_zoo import Grid

CODE = 12  # bits by which an object is known again; of 16 objects two are alike in one sample of thirty


class Sample(NamedTuple):
    """A batch of maps; `query` is the flat place of the marked token, `needs` what the answer depends on."""

    x: Float[Tensor, "b n f"]
    query: Int[Tensor, " b"]
    needs: Bool[Tensor, "b n"]
    answer: Int[Tensor, " b"]


@dataclass(frozen=True)
class Task:
    """One question, called `title` in tables.

    `values` of its dial go from easy to hard; `weights` say how often each is drawn in training.

    Easy values are drawn more often: a scheme that cannot reach far would else meet hardly any sample that it can
    answer, and learn nothing even of what it reaches.
    """

    name: str
    title: str
    asks: str
    dial: str
    grid: Grid
    features: int
    classes: int
    values: tuple[int, ...]
    weights: tuple[float, ...]
    draw: Callable[[Grid, Int[Tensor, " b"], torch.Generator], Sample]

    def sample(self, size: int, generator: torch.Generator, value: int | None = None) -> Sample:
        """`size` maps at one value of the dial, or at values drawn by their weights."""
        if value is None:
            drawn = torch.multinomial(torch.tensor(self.weights), size, replacement=True, generator=generator)
            dial = torch.tensor(self.values)[drawn]
        else:
            dial = torch.full((size,), value)
        return self.draw(self.grid, dial, generator)


def _places(grid: Grid, count: int, generator: torch.Generator) -> Int[Tensor, "b 3"]:
    return torch.stack([torch.randint(0, n, (count,), generator=generator) for n in grid], 1)


def _flat(grid: Grid, place: Int[Tensor, "... 3"]) -> Int[Tensor, " ..."]:
    return (place[..., 0] * grid.h + place[..., 1]) * grid.w + place[..., 2]


def _marked(grid: Grid, *flat: Int[Tensor, " b"]) -> Bool[Tensor, "b n"]:
    mask = torch.zeros(len(flat[0]), grid.tokens, dtype=torch.bool)
    for place in flat:
        mask.scatter_(1, place[:, None], True)
    return mask


def _apart(size: int, dial: Int[Tensor, " b"], generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Two coordinates on an axis of `size`, `dial` apart, and whether the first is the smaller one."""
    low = (torch.rand(len(dial), generator=generator) * (size - dial)).long()
    first = torch.rand(len(dial), generator=generator) < 0.5
    return torch.where(first, low, low + dial), torch.where(first, low + dial, low), first


def recall(axes: tuple[int, ...]) -> Callable[[Grid, Tensor, torch.Generator], Sample]:
    """Each token holds one of eight symbols; which one does the marked token, `dial` away on one axis, hold?"""

    def draw(grid: Grid, dial: Tensor, generator: torch.Generator) -> Sample:
        count, rows = len(dial), torch.arange(len(dial))
        axis = torch.tensor(axes)[torch.randint(0, len(axes), (count,), generator=generator)]
        query = _places(grid, count, generator)
        source = query.clone()
        query[rows, axis], source[rows, axis], _ = _apart(grid[axes[0]], dial, generator)
        symbols = torch.randint(0, 8, (count, grid.tokens), generator=generator)
        query, source = _flat(grid, query), _flat(grid, source)
        x = torch.cat([torch.zeros(count, grid.tokens, 2), F.one_hot(symbols, 8).float()], -1)
        x[rows, query, 0], x[rows, source, 1] = 1.0, 1.0
        return Sample(x, query, _marked(grid, source), symbols[rows, source])

    return draw


def order(grid: Grid, dial: Tensor, generator: torch.Generator) -> Sample:
    """Two events, `dial` frames apart, anywhere in their frames: which of the two came first?"""
    count, rows = len(dial), torch.arange(len(dial))
    query, first, second = (_places(grid, count, generator) for _ in range(3))
    first[:, 0], second[:, 0], earlier = _apart(grid.t, dial, generator)
    query, first, second = (_flat(grid, place) for place in (query, first, second))
    x = torch.zeros(count, grid.tokens, 3)
    x[rows, query, 0], x[rows, first, 1], x[rows, second, 2] = 1.0, 1.0, 1.0
    return Sample(x, query, _marked(grid, first, second), earlier.long())


def majority(grid: Grid, dial: Tensor, generator: torch.Generator) -> Sample:
    """Every token votes; `dial` percent more votes for one of two sides: which side is it?"""
    count, n = len(dial), grid.tokens
    answer = torch.randint(0, 2, (count,), generator=generator)
    ayes = (n / 2 * (1 + (2 * answer - 1) * dial / 100)).round().long()
    vote = torch.rand(count, n, generator=generator).argsort(1) < ayes[:, None]
    query = _flat(grid, _places(grid, count, generator))
    x = torch.stack([torch.zeros(count, n), 2.0 * vote - 1], -1)
    x[torch.arange(count), query, 0] = 1.0
    return Sample(x, query, torch.ones(count, n, dtype=torch.bool), answer)


def motion(grid: Grid, dial: Tensor, generator: torch.Generator) -> Sample:
    """One object moves `dial` cells through the clip while the ground behind it moves otherwise: where does it go?

    It is marked where it arrives. The ground moves one cell a frame, around the edge, in a direction of its own.
    """
    count, rows, frames = len(dial), torch.arange(len(dial)), torch.arange(grid.t)
    answer = torch.randint(0, 4, (count,), generator=generator)
    ground = torch.randint(0, 4, (count,), generator=generator)
    pattern = torch.randint(0, 2, (count, grid.h, grid.w), generator=generator) - 0.5
    step = (2 * (ground % 2) - 1)[:, None] * frames
    down, right = step * (ground < 2)[:, None], step * (ground >= 2)[:, None]
    h = (torch.arange(grid.h) - down[..., None]) % grid.h
    w = (torch.arange(grid.w) - right[..., None]) % grid.w
    x = torch.zeros(count, *grid, 3)
    x[..., 2] = pattern[rows[:, None, None, None], h[..., None], w[:, :, None]]
    # It arrives where it may have come from either side, so that its place alone does not give the way away.
    room = (grid.h - 2 * dial)[:, None]
    arrived = dial[:, None] + (torch.rand(count, 2, generator=generator) * room).long()
    left = (dial[:, None] * (grid.t - 1 - frames) / (grid.t - 1)).round().long() * (2 * (answer % 2) - 1)[:, None]
    along, across = arrived[:, :1] - left, arrived[:, 1:].expand(-1, grid.t)
    vertical = (answer < 2)[:, None]
    place = torch.where(vertical, along, across), torch.where(vertical, across, along)
    where = (rows[:, None], frames, *place)
    x[where] = torch.tensor([0.0, 3.0, 0.0])
    path = _flat(grid, torch.stack([frames.expand(count, -1), *place], -1))
    query = path[:, -1]
    x = x.flatten(1, 3)
    x[rows, query, 0] = 1.0
    return Sample(x, query, _marked(grid, path[:, 0]), answer)


def cut(grid: Grid, dial: Tensor, generator: torch.Generator) -> Sample:
    """`dial` objects before a cut, each with a code and a colour; one code shows up after it: which colour was it?"""
    count, rows, most = len(dial), torch.arange(len(dial)), max(CUT)
    before = grid.t // 2 * grid.h * grid.w
    code = torch.randint(0, 2, (count, most, CODE), generator=generator) * 2.0 - 1
    colour = torch.randint(0, 4, (count, most), generator=generator)
    present = (torch.arange(most) < dial[:, None])[..., None]
    place = torch.rand(count, before, generator=generator).argsort(1)[:, :most]
    features = torch.cat([torch.zeros(count, most, 1), code / 2, F.one_hot(colour, 4)], -1) * present
    x = torch.zeros(count, grid.tokens, 1 + CODE + 4)
    x.scatter_(1, place[..., None].expand(-1, -1, x.shape[-1]), features)
    query = torch.randint(before, grid.tokens, (count,), generator=generator)
    x[rows, query, 0] = 1.0
    x[rows, query, 1 : 1 + CODE] = code[:, 0] / 2
    return Sample(x, query, _marked(grid, place[:, 0]), colour[:, 0])


def _near(values: tuple[int, ...]) -> tuple[float, ...]:
    return tuple(1 / value for value in values)


SPACE, TIME, VOTES, MOVED, CUT = (1, 2, 3, 5, 7), (1, 2, 3, 5, 7), (50, 25, 12, 6), (1, 2, 3), (1, 2, 4, 8)
TASKS = {task.name: task for task in (
    Task("space", "recall in space", "which symbol does the marked token, so far away in the same frame, hold?",
         "cells apart", Grid(1, 8, 8), 10, 8, SPACE, _near(SPACE), recall((1, 2))),
    Task("time", "recall in time", "which symbol does the marked token, so far away at the same place, hold?",
         "frames apart", Grid(8, 2, 4), 10, 8, TIME, _near(TIME), recall((0,))),
    Task("order", "order of two events", "which of two events, anywhere in their frames, came first?",
         "frames apart", Grid(8, 2, 4), 3, 2, TIME, _near(TIME), order),
    Task("majority", "majority", "for which of two sides do more tokens vote?",
         "% more votes", Grid(4, 4, 4), 2, 2, VOTES, (1.0,) * 4, majority),
    Task("motion", "motion over a moving ground",
         "which way did the marked object come, while the ground went its own?",
         "cells moved", Grid(2, 7, 7), 3, 4, MOVED, _near(MOVED), motion),
    Task("cut", "match across a cut", "which colour did the object with this code have before the cut?",
         "objects", Grid(4, 4, 4), 5 + CODE, 4, CUT, _near(CUT), cut),
)}  # fmt: skip
