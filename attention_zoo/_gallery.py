"""`python -m attention_zoo gallery`: every registered scheme in one picture, and the page that says what it shows.

For each, as in Fig. 2 of DualFormer's paper: what one token attends to, frame by frame; beside it all pairs of tokens,
queries down and keys across.
"""

from __future__ import annotations

import inspect
import math
import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.figure
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from attention_zoo._draw import DIM, HEADS, Table, image, mask, pairs
from attention_zoo._settings import showing
from attention_zoo.grid import Grid
from attention_zoo.laws import noise, randomised
from attention_zoo.scheme import build, schemes

ACROSS, CELL = 3, (4.0, 2.4)  # schemes beside each other; inches of one
DRAWS, FAINTEST = 2, 0.1  # directions in which results are looked at; the shade of what matters least
SAID = """# What every scheme attends to

![For each scheme what one token attends to, frame by frame, and the mask of all pairs]({picture})

Each scheme on a clip of {grid} tokens with the options that it names as its example. On the left the frames: what the
token in the red square sees, the darker, the more of its result comes from there; on a clip of tokens that are all
alike, so that nothing but the rule decides. Where tokens choose, it is what was chosen on a clip of smooth noise, paler
where only some of the heads did. On the right all pairs, a row for each token, a column for each that it sees; lines
part the frames. Most schemes of several steps, or of means, see everything, but little of most of it.

`python -m attention_zoo gallery` makes this page. Any scheme on any grid, with options of yours:
`python -m attention_zoo draw neighborhood grid=8x14x14 query=3,7,7 'window=[5,5,5]'`; whether a kernel that skips empty
tiles can make it fast: `python -m attention_zoo speedup neighborhood grid=8x14x14 'window=[5,5,5]'`.

| scheme | what it is | options here | a token sees |
| --- | --- | --- | ---: |
"""


@dataclass(frozen=True)
class Shown:
    """A scheme as it is drawn."""

    name: str
    summary: str
    options: dict[str, Any]
    table: Table  # of what it sees at all
    chooses: bool


def gallery(arguments: Sequence[str]) -> str:
    """Writes the page and its picture and returns where they are. Raises: ValueError for a wrong argument."""
    folder, grid, query = showing(arguments)
    every = [shown(name, grid) for name in schemes.names()]
    picture = folder / "gallery.png"
    words = ["python", "-m", "attention_zoo", "gallery", *(word for word in arguments if not word.startswith("out="))]
    about = f"clip of {grid.t}x{grid.h}x{grid.w} tokens · {shlex.join(words)}"
    drawn(every, grid, query).savefig(picture, dpi=110, metadata={"Software": None, "Description": about})
    (folder / "gallery.md").write_text(page(every, grid, picture.name), encoding="utf-8")
    return f"{folder / 'gallery.md'}\n{picture}"


def shown(name: str, grid: Grid) -> Shown:
    """A scheme with the options that it names as its example."""
    scheme = schemes.get(name)
    text = inspect.getdoc(inspect.getmodule(scheme)) or inspect.getdoc(scheme) or ""
    table, how = pairs(name, grid, options=scheme.example)
    return Shown(name, text.partition("\n")[0], scheme.example, table, how.startswith("chose"))


def shades(example: Shown, grid: Grid) -> Table:
    """What a token sees, 0 to 1: what it chose; or, by a fixed rule, how much of its result each token makes.

    Where all tokens are alike a softmax weighs what it may see alike, and gradients show the rule alone.
    """
    if example.chooses:
        return example.table
    module = randomised(build(example.name, DIM, HEADS, grid, kernel="reference", **example.options))
    x = noise(DIM).expand(1, *grid, DIM).clone().requires_grad_()
    y = module(x).flatten(1, 3)[0]
    strength = torch.zeros_like(example.table.seen)
    for direction in noise(DRAWS, y.shape[-1], seed=1):
        identity = torch.eye(len(y), dtype=y.dtype)
        (gradient,) = torch.autograd.grad(y @ direction, x, identity, is_grads_batched=True, retain_graph=True)
        strength += gradient.reshape(*strength.shape, DIM).square().mean(-1)
    strength = (strength / strength.amax(1, keepdim=True)) ** 0.25  # of squares: the root of what each token makes
    return example.table._replace(seen=torch.where(example.table.seen > 0, FAINTEST + (1 - FAINTEST) * strength, 0))


def page(every: Sequence[Shown], grid: Grid, picture: str) -> str:
    lines = []
    for example in every:
        options = ", ".join(f"{name} {str(value).replace(' ', '')}" for name, value in example.options.items()) or "—"
        share = (example.table.seen > 0).float().mean()
        lines.append(f"| `{example.name}` | {example.summary} | {options} | {share:.0%} |")
    return SAID.format(picture=picture, grid="x".join(map(str, grid))) + "\n".join(lines) + "\n"


def drawn(every: Sequence[Shown], grid: Grid, query: Sequence[int]) -> matplotlib.figure.Figure:
    deep = math.ceil(len(every) / ACROSS)
    figure = matplotlib.figure.Figure(figsize=(ACROSS * CELL[0], deep * CELL[1]), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02)
    cells = figure.subfigures(deep, ACROSS, squeeze=False).flat
    for cell, example in zip(cells, every, strict=False):
        table = shades(example, grid)
        cell.suptitle(example.name, fontsize=9, weight="bold", x=0.02, ha="left")
        words = "\n".join(textwrap.wrap(example.summary, 70))
        cell.supxlabel(words, fontsize=6.5, x=0.02, ha="left", linespacing=1.25)
        frames, pairs_axes = cell.subplots(1, 2)
        _frames(frames, table, grid, query)
        mask(pairs_axes, table, grid)
    return figure


def _frames(axes: Axes, table: Table, grid: Grid, query: Sequence[int]) -> None:
    """The frames in rows of two, one place apart."""
    seen = table.of(query, grid).numpy()
    across = math.ceil(math.sqrt(grid.t))
    deep = math.ceil(grid.t / across)
    sheet = np.full((deep * (grid.h + 1) - 1, across * (grid.w + 1) - 1), np.nan)
    for t, frame in enumerate(seen):
        top, left = t // across * (grid.h + 1), t % across * (grid.w + 1)
        sheet[top : top + grid.h, left : left + grid.w] = frame
        edge = dict(fill=False, edgecolor="0.55", linewidth=0.6, clip_on=False)
        axes.add_patch(Rectangle((left - 0.5, top - 0.5), grid.w, grid.h, **edge))
        if t == query[0]:
            red = dict(fill=False, edgecolor="red", linewidth=1.4, zorder=3)
            axes.add_patch(Rectangle((left + query[2] - 0.5, top + query[1] - 0.5), 1, 1, **red))
    image(axes, sheet)
