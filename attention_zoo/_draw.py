"""`python -m attention_zoo draw NAME grid=8x14x14 query=3,7,7`: what one token attends to, frame by frame, as a PNG.

Of a scheme with a fixed rule that is its reach. Of one whose tokens choose, it is the choice made on a clip of smooth
noise, as the share of the heads that see a token.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.figure
import matplotlib.patches
import torch
from jaxtyping import Float
from torch.nn.functional import interpolate

from attention_zoo._settings import Settings
from attention_zoo.grid import Grid
from attention_zoo.scheme import build

DIM, HEADS, PER_ROW = 32, 4, 8


def draw(arguments: Sequence[str]) -> Path:
    """Draws what the command says and returns where.

    Raises:
        ValueError: an argument is not of the form name=value, a place is outside of the grid, an option does not exist.
        UnknownName: there is no such scheme.
    """
    settings = Settings("draw", arguments, "grid=8x14x14 query=3,7,7 seed=0 out=FILE.png")
    name, grid, seed, out = (
        settings.name,
        settings.grid("grid", "8x14x14"),
        settings.whole("seed", 0),
        settings.path(".png"),
    )
    query = settings.place("query", grid)
    options = settings.options()
    mask, how = attended(name, grid, query, seed, options)
    words = " ".join(f"{option}={json.dumps(value)}" for option, value in options.items())
    share = f"{mask.mean().item():.1%} of {grid.tokens} tokens"
    title = f"{name} {words}".strip() + f": what the token at {tuple(query)} {how}, {share}"
    _figure(mask, query, title).savefig(out, dpi=120, metadata={"Software": None})
    return out


def attended(
    name: str, grid: Grid, query: Sequence[int], seed: int = 0, options: dict | None = None
) -> tuple[Float[torch.Tensor, "t h w"], str]:
    """How much of each token one query sees, 0 to 1, and in what sense."""
    table, how = pairs(name, grid, seed, options)
    place = [
        i * n // m for i, n, m in zip(query, table.out, grid, strict=True)
    ]  # where the map that comes out is smaller
    number = (place[0] * table.out.h + place[1]) * table.out.w + place[2]
    return table.seen[number].view(tuple(grid)), how


class Table(NamedTuple):
    """How much each token of the map that comes out sees of each token that goes in, 0 to 1."""

    seen: Float[torch.Tensor, "n_out n"]
    out: Grid


def pairs(name: str, grid: Grid, seed: int = 0, options: dict | None = None) -> tuple[Table, str]:
    """The same for every query."""
    torch.manual_seed(seed)
    module = build(name, DIM, HEADS, grid, kernel="reference", **(options or {})).eval()
    if not hasattr(module, "selection"):
        return Table(module.reach().float(), module.out_grid), "can be influenced by"
    return Table(module.selection(clip(grid))[0].float().mean(0), grid), "chose, as a share of heads"


def clip(grid: Grid, dim: int = DIM) -> Float[torch.Tensor, "1 t h w d"]:
    """Smooth noise, so that neighbours are alike as in a video; of the generator as it stands."""
    coarse = torch.randn(1, dim, *(-(-n // 3) + 1 for n in grid))
    return interpolate(coarse, size=tuple(grid), mode="trilinear", align_corners=True).permute(0, 2, 3, 4, 1)


def _figure(mask: Float[torch.Tensor, "t h w"], query: Sequence[int], title: str) -> matplotlib.figure.Figure:
    columns = min(PER_ROW, len(mask))
    rows = math.ceil(len(mask) / columns)
    figure = matplotlib.figure.Figure(figsize=(max(5, 1.5 * columns), 1.6 * rows + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=9)
    for t, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if t < len(mask):
            axes.imshow(mask[t], cmap="Blues", vmin=0, vmax=1)
            axes.set_title(f"frame {t}", fontsize=8)
            height, width = mask[t].shape
            edge = dict(fill=False, edgecolor="0.6", linewidth=0.8)
            axes.add_patch(matplotlib.patches.Rectangle((-0.5, -0.5), width, height, **edge))
        if t == query[0]:
            axes.plot(query[2], query[1], marker="s", markersize=5, markerfacecolor="none", markeredgecolor="red")
    return figure
