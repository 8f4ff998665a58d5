"""Training clips of several data sets as one list, set after set, and the order in which their clips are taken.

Each set has clips, flips and labels of its own (`TrainingClips`); here they get their places in the list of all. The
order is, as for one set, a function of seed, epoch and place, so that a run goes on anywhere.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from harness.clips.loading import ORDER, Keys, TrainingClips, numpy_random

SETS = 4  # what a random stream is for, beside those of `loading`


def seed_of(seed: int, number: int) -> int:
    """Of the clips of one set: clips of the same number in two sets are not to be cut and coloured alike."""
    return int(np.random.SeedSequence((SETS, seed, number)).generate_state(1)[0])


class SetClips(Dataset):
    """Augmented clips of all sets by key (pass, index in the list of all); labels are those of the list of all."""

    def __init__(self, parts: Sequence[TrainingClips]):
        self.parts = list(parts)
        self.firsts = [0, *accumulate(map(len, self.parts))]
        self.labels = [0, *accumulate(len(part.dataset.classes) for part in self.parts)]

    def __len__(self) -> int:
        return self.firsts[-1]

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        number = bisect_right(self.firsts, key[1]) - 1
        first = self.firsts[number]
        sample = self.parts[number][key[0], key[1] - first]
        return sample | {
            "label": sample["label"] + self.labels[number],
            "index": sample["index"] + first,
            "failed": [index + first for index in sample["failed"]],
        }

    def path(self, index: int) -> str:
        """Of the item, as its set lists it."""
        number = bisect_right(self.firsts, index) - 1
        return self.parts[number].path(index - self.firsts[number])


@dataclass(frozen=True, kw_only=True)
class SetKeys(Keys):
    """The keys of clips of several sets. An epoch has as many clips as the sets have together, copies counted.

    "proportional": each clip once, in one order of all (the released code concatenates and shuffles). "balanced": every
    set has the same share of each batch, to a clip; a set is gone through again as often as that takes, in a new order
    each time, and a larger one less than once.
    """

    sizes: tuple[int, ...]  # clips of each set
    copies: tuple[int, ...]  # how often a set is in the list of an epoch
    balanced: bool = False

    def order(self, epoch: int) -> list[tuple[int, int]]:
        firsts = [0, *accumulate(self.sizes)]
        if self.balanced:
            return self._balanced(epoch, firsts)
        entries = [
            (epoch * copies + copy, first + index)
            for size, copies, first in zip(self.sizes, self.copies, firsts, strict=False)
            for copy in range(copies)
            for index in range(size)
        ]
        return [entries[place] for place in numpy_random(ORDER, self.seed, epoch).permutation(self.count)]

    def _balanced(self, epoch: int, firsts: list[int]) -> list[tuple[int, int]]:
        used, several = self.steps_per_epoch * self.batch, len(self.sizes)
        places = range(epoch * used, (epoch + 1) * used)  # clip p of the whole run is of set p mod their number
        orders = {
            (number, turn): numpy_random(ORDER, self.seed, turn, 1 + number).permutation(size)
            for number, size in enumerate(self.sizes)
            for turn in range(places[0] // several // size, places[-1] // several // size + 1)
        }
        taken = []
        for place in places:
            number = place % several
            turn, rest = divmod(place // several, self.sizes[number])
            taken.append((turn, firsts[number] + int(orders[number, turn][rest])))
        mixed = []
        for start in range(0, used, self.batch):  # else Mixup, which pairs the first with the last, would pair sets
            turns = numpy_random(ORDER, self.seed, epoch, 0, start).permutation(self.batch)
            mixed += [taken[start + turn] for turn in turns]
        return mixed
