"""`python -m attention_zoo draw NAME grid=8x14x14 query=3,7,7`: what one token attends to, frame by frame, and beside
it the mask of all pairs of tokens, as a PNG.

Of a scheme with a fixed rule that is its reach. Of one whose tokens choose, it is the choice made on a clip, as the
share of the heads that see a token: of smooth noise, or of clip=FILE.npy, an array of frames, height, width, channels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.figure
import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch.nn.functional import adaptive_avg_pool2d, adaptive_avg_pool3d, interpolate

from attention_zoo._settings import drawing
from attention_zoo.grid import Grid
from attention_zoo.scheme import build

DIM, HEADS, PER_ROW = 32, 4, 4
FINEST = 560  # rows of a drawn mask: beyond that a point is the mean of several pairs


def draw(arguments: Sequence[str]) -> Path:
    """Draws what the command says and returns where.

    Raises:
        ValueError: an argument is not of the form name=value, a place is outside of the grid, an option does not exist.
        UnknownName: there is no such scheme.
    """
    name, grid, seed, out, query, pixels, options = drawing(arguments)
    tokens = None if pixels is None else _read(Path(pixels), grid, seed)
    table, how = pairs(name, grid, seed, options, tokens)
    seen = table.of(query, grid)
    words = " ".join(f"{option}={json.dumps(value)}" for option, value in options.items())
    share = f"{seen.mean().item():.1%} of {grid.tokens} tokens"
    title = f"{name} {words}".strip() + f": what the token at {tuple(query)} {how}, {share}"
    _figure(table, grid, query, title).savefig(out, dpi=120, metadata={"Software": None})
    return out


class Table(NamedTuple):
    """How much each token of the map that comes out sees of each token that goes in, 0 to 1."""

    seen: Float[torch.Tensor, "n_out n"]
    out: Grid

    def of(self, query: Sequence[int], grid: Grid) -> Float[torch.Tensor, "t h w"]:
        """What one token sees of a map of this grid; where the map that comes out is smaller, the token it is in."""
        t, h, w = (i * n // m for i, n, m in zip(query, self.out, grid, strict=True))
        return self.seen[(t * self.out.h + h) * self.out.w + w].view(tuple(grid))


def pairs(
    name: str,
    grid: Grid,
    seed: int = 0,
    options: dict | None = None,
    tokens: Float[torch.Tensor, "1 t h w d"] | None = None,
) -> tuple[Table, str]:
    """How much of each token every query sees, and in what sense; `tokens` is the clip where tokens choose."""
    torch.manual_seed(seed)
    module = build(name, DIM, HEADS, grid, kernel="reference", **(options or {})).eval()
    if not hasattr(module, "selection"):
        return Table(module.reach().float(), module.out_grid), "can be influenced by"
    chosen = module.selection(clip(grid) if tokens is None else tokens)
    return Table(chosen[0].float().mean(0), grid), "chose, as a share of heads"


def _read(path: Path, grid: Grid, seed: int) -> Float[torch.Tensor, "1 t h w d"]:
    """Tokens of a clip: pixels averaged to the grid, each channel normed, mixed to the width at random.

    Raises: ValueError where there is no array of four axes, or one that is smaller than the grid.
    """
    try:
        pixels = np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"clip={path} cannot be read ({error}); save an array with numpy.save") from error
    if pixels.ndim != 4 or any(n < m for n, m in zip(pixels.shape, grid, strict=False)):
        raise ValueError(
            f"clip={path} holds an array of {'x'.join(map(str, pixels.shape))}, not of frames, height, width and "
            f"channels with at least the {'x'.join(map(str, grid))} tokens of the grid"
        )
    x = torch.from_numpy(pixels.astype(np.float32)).movedim(-1, 0)[None]
    x = adaptive_avg_pool3d(x, tuple(grid)).movedim(1, -1)
    mean, deviation = x.mean((0, 1, 2, 3)), x.std((0, 1, 2, 3), correction=0)
    mixing = torch.randn(x.shape[-1], DIM, generator=torch.Generator().manual_seed(seed))
    return (x - mean) / deviation.clamp(min=1e-6) @ mixing


def clip(grid: Grid, dim: int = DIM) -> Float[torch.Tensor, "1 t h w d"]:
    """Smooth noise, so that neighbours are alike as in a video; of the generator as it stands."""
    coarse = torch.randn(1, dim, *(-(-n // 3) + 1 for n in grid))
    return interpolate(coarse, size=tuple(grid), mode="trilinear", align_corners=True).permute(0, 2, 3, 4, 1)


def _figure(table: Table, grid: Grid, query: Sequence[int], title: str) -> matplotlib.figure.Figure:
    columns = min(PER_ROW, grid.t)
    rows = math.ceil(grid.t / columns)
    size = max(1.6 * rows, 2.6)
    figure = matplotlib.figure.Figure(figsize=(1.6 * columns + size + 0.4, size + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=9)
    left, right = figure.subfigures(1, 2, width_ratios=(1.6 * columns, size))
    for t, axes in enumerate(left.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if t < grid.t:
            frame = table.of(query, grid)[t].numpy()
            axes.imshow(frame, cmap="Blues", vmin=0, vmax=1)
            axes.set_title(f"frame {t}", fontsize=8)
            edge = dict(fill=False, edgecolor="0.6", linewidth=0.8)
            axes.add_patch(Rectangle((-0.5, -0.5), grid.w, grid.h, **edge))
        if t == query[0]:
            axes.plot(query[2], query[1], marker="s", markersize=5, markerfacecolor="none", markeredgecolor="red")
    axes = right.subplots()
    mask(axes, table, grid)
    axes.set_title("all pairs: queries down, keys across", fontsize=8)
    return figure


def mask(axes: Axes, table: Table, grid: Grid) -> None:
    """Queries down, keys across, lines between frames."""
    shown = [min(n, FINEST) for n in table.seen.shape]
    image(axes, adaptive_avg_pool2d(table.seen[None], shown)[0].numpy())
    rows, columns = shown[0] / table.out.t, shown[1] / grid.t
    for t in range(1, table.out.t):
        axes.axhline(t * rows - 0.5, color="0.55", linewidth=0.4)
    for t in range(1, grid.t):
        axes.axvline(t * columns - 0.5, color="0.55", linewidth=0.4)
    axes.set_frame_on(True)


def image(axes: Axes, values: Float[np.ndarray, "rows columns"]) -> None:
    """Shares from 0 to 1 in blue."""
    axes.imshow(values, cmap="Blues", vmin=0, vmax=1.15, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_frame_on(False)
