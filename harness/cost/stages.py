"""A model taken apart into stages: the blocks on maps of one size, with the embedding that makes the map."""

from __future__ import annotations

import re
from itertools import groupby

from torch import nn

from attention_zoo import Grid

REST = "rest"


def stages_of(model: nn.Module) -> dict[str, list[str]]:
    """The modules of each stage, by their names in the model; what lies in none of them is the rest."""
    blocks = model.blocks()
    whole = [match[1] if (match := re.match(r"(stages\.\d+)\.", name)) else None for name in blocks]
    if blocks and all(whole):
        groups = [[name] for name in dict.fromkeys(whole)]
    else:
        maps: list[tuple[Grid, str]] = [(block.grid, name) for name, block in blocks.items()]
        groups = [[name for _, name in group] for _, group in groupby(maps, key=lambda pair: pair[0])]
    return {f"stage {number}": group for number, group in enumerate(groups, start=1)}
