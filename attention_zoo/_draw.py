"""`python -m attention_zoo draw NAME grid=8x14x14 query=3,7,7`: what one token attends to, frame by frame, as a PNG.

Of a scheme with a fixed rule that is its reach. Of one whose tokens choose, it is the choice made on a clip of smooth
noise, as the share of the heads that see a token.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib.figure
import matplotlib.patches
import torch
from jaxtyping import Float
from torch.nn.functional import interpolate

from attention_zoo.grid import Grid
from attention_zoo.scheme import build

DIM, HEADS, PER_ROW = 32, 4, 8


def draw(arguments: Sequence[str]) -> Path:
    """Draws what the command says and returns where.

    Raises:
        ValueError: an argument is not of the form name=value, a place is outside of the grid, an option does not exist.
        UnknownName: there is no such scheme.
    """
    name, *settings = arguments or [""]
    wrong = [setting for setting in settings if "=" not in setting]
    if not name or "=" in name or wrong:
        raise ValueError(
            f"draw {' '.join(arguments)}: say draw NAME, then settings such as grid=8x14x14 query=3,7,7 seed=0 "
            "out=FILE.png, and the scheme's own options"
        )
    given = dict(setting.split("=", 1) for setting in settings)
    grid = Grid.of([_whole(n, "grid") for n in re.split("[x,]", given.pop("grid", "8x14x14"))])
    query = [_whole(n, "query") for n in given.pop("query", ",".join(str(n // 2) for n in grid)).split(",")]
    seed, out = _whole(given.pop("seed", "0"), "seed"), Path(given.pop("out", f"{name}.png"))
    if len(query) != 3 or any(not 0 <= at < n for at, n in zip(query, grid, strict=True)):
        raise ValueError(
            f"query {query} is no place of grid {tuple(grid)}; allowed: {tuple(n - 1 for n in grid)} at most"
        )
    options = {option: _value(text) for option, text in given.items()}
    seen, how = attended(name, grid, query, seed, options)
    words = " ".join(f"{option}={json.dumps(value)}" for option, value in options.items())
    share = f"{seen.mean().item():.1%} of {grid.tokens} tokens"
    title = f"{name} {words}".strip() + f": what the token at {tuple(query)} {how}, {share}"
    _figure(seen, query, title).savefig(out, dpi=120, metadata={"Software": None})
    return out


def attended(
    name: str, grid: Grid, query: Sequence[int], seed: int = 0, options: dict | None = None
) -> tuple[Float[torch.Tensor, "t h w"], str]:
    """How much of each token one query sees, 0 to 1, and in what sense."""
    torch.manual_seed(seed)
    module = build(name, DIM, HEADS, grid, kernel="reference", **(options or {})).eval()
    number = (query[0] * grid.h + query[1]) * grid.w + query[2]
    if not hasattr(module, "selection"):
        return module.reach()[number].view(tuple(grid)).float(), "can be influenced by"
    coarse = torch.randn(1, DIM, *(-(-n // 3) + 1 for n in grid))
    clip = interpolate(coarse, size=tuple(grid), mode="trilinear", align_corners=True).permute(0, 2, 3, 4, 1)
    return module.selection(clip)[0, :, number].float().mean(0).view(tuple(grid)), "chose, as a share of heads"


def _figure(seen: Float[torch.Tensor, "t h w"], query: Sequence[int], title: str) -> matplotlib.figure.Figure:
    columns = min(PER_ROW, len(seen))
    rows = math.ceil(len(seen) / columns)
    figure = matplotlib.figure.Figure(figsize=(max(5, 1.5 * columns), 1.6 * rows + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=9)
    for t, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if t < len(seen):
            axes.imshow(seen[t], cmap="Blues", vmin=0, vmax=1)
            axes.set_title(f"frame {t}", fontsize=8)
            height, width = seen[t].shape
            edge = dict(fill=False, edgecolor="0.6", linewidth=0.8)
            axes.add_patch(matplotlib.patches.Rectangle((-0.5, -0.5), width, height, **edge))
        if t == query[0]:
            axes.plot(query[2], query[1], marker="s", markersize=5, markerfacecolor="none", markeredgecolor="red")
    return figure


def _whole(text: str, name: str) -> int:
    if not re.fullmatch(r"\d+", text):
        raise ValueError(f"{name}: {text!r} is not a number; say grid=8x14x14, query=3,7,7, seed=0")
    return int(text)


def _value(text: str) -> object:
    """An option as JSON has it, or as it stands: window=[8,7,7], keep=0.25, rule=paper."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
