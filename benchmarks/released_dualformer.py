"""DualFormer in the layout of its released code, attention as a plain softmax: what our model is to be faster than.

The released repository needs an mmaction that no current torch runs, so its network is written here a second time, from
its description. It differs from ours in how it computes, not in what. Maps are channels-first between stages and around
every convolution, tokens are `b n d` elsewhere; scores are a tensor of their own; autograd keeps what it keeps; and
windows and pooling have to divide the map. Parameters have the names of the released checkpoints.

Dropout and stochastic depth, which are random, are left out.

Source: Liang et al., DualFormer, arXiv:2112.04674, and sail-sg/dualformer at commit 058c10c6.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from attention_zoo import Grid
from backbones import PyramidConfig
from backbones.family import layouts_of
from backbones.layouts import renamed
from benchmarks.public import Peer, peers

PATCH, STEP = Grid(2, 4, 4), Grid(1, 2, 2)  # of the first stage, of each further one
WINDOW, FINE, COARSE = Grid(8, 7, 7), Grid(8, 7, 7), Grid(4, 4, 4)
FIRST_STEP = 7  # by which the coarse branch pools space first, or the next smaller divisor
SCALES = (("fine", "coarse"), ("fine", "coarse"), ("fine",), ())  # of each stage; none: the map itself


def attend(
    q: Float[Tensor, "*b n c"], k: Float[Tensor, "*b s c"], v: Float[Tensor, "*b s c"]
) -> Float[Tensor, "*b n c"]:
    """Softmax attention, written out."""
    scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
    scores = scores.softmax(-1)  # the same name: the unnormed ones are not kept
    return scores @ v


class PatchEmbedding(nn.Module):
    """Blocks become tokens: convolution with kernel = stride on the map, LayerNorm on the tokens."""

    def __init__(self, in_dim: int, dim: int, patch: Grid):
        super().__init__()
        self.proj = nn.Conv3d(in_dim, dim, tuple(patch), tuple(patch))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Float[Tensor, "b i t h w"]) -> Float[Tensor, "b n d"]:
        return self.norm(self.proj(x).flatten(2).transpose(1, 2))


class LocalAttention(nn.Module):
    """LW-MSA: self-attention inside windows. Raises: ValueError where they do not divide the map."""

    def __init__(self, dim: int, num_heads: int, grid: Grid, window: Grid):
        super().__init__()
        self.num_heads, self.window = num_heads, grid.clipped(window)
        self.windows = _quotient(grid, self.window, "windows")
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        (nt, nh, nw), (t, h, w) = self.windows, self.window
        axes = dict(nt=nt, nh=nh, nw=nw, t=t, h=h, w=w)
        x = rearrange(x, "b (nt t nh h nw w) d -> b (nt nh nw) (t h w) d", **axes)
        q, k, v = rearrange(self.qkv(x), "b s n (qkv m c) -> qkv b s m n c", qkv=3, m=self.num_heads)
        return self.proj(rearrange(attend(q, k, v), "b (nt nh nw) m (t h w) c -> b (nt t nh h nw w) (m c)", **axes))


class GlobalAttention(nn.Module):
    """GP-MSA: every token attends to pooled copies of the map, first the fine one, then the coarse one.

    Without a copy, to the tokens themselves. Raises: ValueError where the copies do not divide the map or are the map.
    """

    def __init__(self, dim: int, num_heads: int, grid: Grid, fine: Grid | None, coarse: Grid | None):
        super().__init__()
        self.num_heads, self.grid = num_heads, grid
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.sr = self.lr = None
        if fine is not None:
            self.sr = _depthwise(dim, _quotient(grid, grid.clipped(fine), "fine priors"))
            self.norm = nn.LayerNorm(dim)
        if coarse is not None:
            block = _quotient(grid, grid.clipped(coarse), "coarse priors")
            if block.tokens == 1:
                raise ValueError(f"a map of {tuple(grid)} is no larger than its coarse priors")
            first = Grid(1, _first_step(block.h), _first_step(block.w))
            rest = _quotient(block, first, "first steps")
            self.lr = nn.Sequential(_depthwise(dim, first), nn.BatchNorm3d(dim), nn.ReLU(), _depthwise(dim, rest))

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        q = rearrange(self.q(x), "b n (m c) -> b m n c", m=self.num_heads)
        k, v = rearrange(self.kv(self._priors(x)), "b s (kv m c) -> kv b m s c", kv=2, m=self.num_heads)
        return self.proj(rearrange(attend(q, k, v), "b m n c -> b n (m c)"))

    def _priors(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b s d"]:
        if self.sr is None:
            return x
        maps = to_map(x, self.grid)
        priors = to_tokens(self.sr(maps))
        if self.lr is not None:
            priors = torch.cat([priors, to_tokens(self.lr(maps))], dim=1)
        return self.norm(priors)


class Position(nn.Module):
    """PEG: a depthwise convolution of the map added to it."""

    def __init__(self, dim: int, grid: Grid):
        super().__init__()
        self.grid = grid
        self.proj = nn.Sequential(nn.Conv3d(dim, dim, 3, padding=1, groups=dim))

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        maps = to_map(x, self.grid)
        return to_tokens(self.proj(maps) + maps)


class Mlp(nn.Module):
    """Two linear maps with an exact GELU between them."""

    def __init__(self, dim: int, ratio: int = 4):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, ratio * dim), nn.GELU(), nn.Linear(ratio * dim, dim)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """Attention, then MLP; each normed before and added to its input."""

    def __init__(self, dim: int, attn: nn.Module):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), attn
        self.norm2, self.mlp = nn.LayerNorm(dim), Mlp(dim)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Classifier(nn.Module):
    """The mean over the map, then a linear map."""

    def __init__(self, dim: int, num_classes: int):
        super().__init__()
        self.fc_cls = nn.Linear(dim, num_classes)

    def forward(self, x: Float[Tensor, "b d t h w"]) -> Float[Tensor, "b k"]:
        return self.fc_cls(x.mean((2, 3, 4)))


class DualFormer(nn.Module):
    """From a clip `b 3 t h w` to class scores. In each stage blocks of local and of global attention alternate.

    Args:
        clip: frames, height and width of the clip.
        widths, num_heads, depths: one number for each of the four stages; depths count single blocks.
        window, fine, coarse: upper bounds; a map that is smaller along an axis is taken whole there.

    Raises:
        ValueError: the patches, windows or pooled copies do not divide their map.
    """

    def __init__(
        self,
        clip: Grid,
        num_classes: int,
        *,
        widths: Sequence[int],
        num_heads: Sequence[int],
        depths: Sequence[int],
        window: Grid = WINDOW,
        fine: Grid = FINE,
        coarse: Grid = COARSE,
    ):
        super().__init__()
        self.patch_embeds, self.pos_block, self.blocks = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.grids: list[Grid] = []
        grid, in_dim = clip, 3
        for s, (dim, heads, depth) in enumerate(zip(widths, num_heads, depths, strict=True)):
            patch = STEP if s else PATCH
            grid = _quotient(grid, patch, "patches")
            self.grids.append(grid)
            self.patch_embeds.append(PatchEmbedding(in_dim, dim, patch))
            self.pos_block.append(Position(dim, grid))
            scales = (fine if "fine" in SCALES[s] else None, coarse if "coarse" in SCALES[s] else None)
            attentions = [
                GlobalAttention(dim, heads, grid, *scales) if b % 2 else LocalAttention(dim, heads, grid, window)
                for b in range(depth)
            ]
            self.blocks.append(nn.ModuleList(Block(dim, attn) for attn in attentions))
            in_dim = dim
        self.norm, self.cls_head = nn.LayerNorm(in_dim), Classifier(in_dim, num_classes)

    def forward(self, clip: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b k"]:
        maps = clip
        for grid, embed, position, blocks in zip(
            self.grids, self.patch_embeds, self.pos_block, self.blocks, strict=True
        ):
            x = embed(maps)
            for b, block in enumerate(blocks):
                x = block(x)
                if b == 0:
                    x = position(x)
            maps = to_map(x, grid)
        return self.cls_head(to_map(self.norm(to_tokens(maps)), grid))


def to_map(x: Float[Tensor, "b n d"], grid: Grid) -> Float[Tensor, "b d t h w"]:
    """The tokens at their places: a view."""
    return x.transpose(1, 2).unflatten(2, tuple(grid))


def to_tokens(x: Float[Tensor, "b d t h w"]) -> Float[Tensor, "b n d"]:
    return x.flatten(2).transpose(1, 2)


def _depthwise(dim: int, block: Grid) -> nn.Conv3d:
    return nn.Conv3d(dim, dim, tuple(block), tuple(block), groups=dim)


def _quotient(grid: Grid, size: Grid, noun: str) -> Grid:
    """How many of `size` make up the grid. Raises: ValueError where they do not."""
    if any(n % m for n, m in zip(grid, size, strict=True)):
        raise ValueError(f"{noun} of {tuple(size)} do not divide a map of {tuple(grid)}")
    return grid.ceil_div(size)


def _first_step(size: int) -> int:
    return next(step for step in range(FIRST_STEP, 0, -1) if size % step == 0)


def fitted(config: PyramidConfig) -> PyramidConfig:
    """Local attention and the fine pooled copy take a small map's share: they have to divide it, and nothing pads."""
    side = min(WINDOW.h, max(1, config.clip.h // 32))
    window = [WINDOW.t, side, side]
    scales = {"attention.G1.scales": [window], "attention.G2.scales": [window, list(COARSE)]}
    return config.changed({"attention.L.window": window} | scales)


def make(config: PyramidConfig, num_classes: int) -> DualFormer:
    """Raises: ValueError where the clip cannot be divided as the released code demands."""
    window = Grid(*config.attention["L"]["window"])
    sizes = dict(widths=config.widths, num_heads=config.num_heads, depths=config.depths)
    try:
        return DualFormer(config.clip, num_classes, **sizes, window=window, fine=window)
    except ValueError as error:
        raise ValueError(
            f"clip {tuple(config.clip)}: the released layout pads nothing, and {error}; "
            "allowed: frames 2, 4, 6, 8 or a multiple of 16, size a multiple of 32 from 64 to 224 or one of 224"
        ) from error


peers.register("released")(
    Peer(
        {f"released_dualformer_{size}": f"dualformer_{size}" for size in ("tiny", "small", "base")},
        make,
        lambda state: renamed(state, layouts_of("pyramid")).tensors,
        "cls_head.fc_cls",
        fitted,
    )
)
