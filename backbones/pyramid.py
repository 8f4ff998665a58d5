"""The backbone in which attention schemes are compared: stages of blocks on a token map that shrinks between stages.

DualFormer and Video Swin are both configurations of it. It is given a function that builds the attention of each block
and knows no scheme. Tokens stay channels-last, `b t h w d`, from the first embedding to the classifier.

Sources: DualFormer, arXiv:2112.04674, and Video Swin Transformer, arXiv:2106.13230, both with their released code.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear, pad
from torch.utils.checkpoint import checkpoint

from attention_zoo import Grid, chunks
from backbones.depthwise import depthwise
from backbones.mlp import Mlp, watched

if TYPE_CHECKING:
    from backbones.config import ModelConfig

BuildAttention = Callable[[int, int, int, int, Grid], nn.Module]
"""(stage, block, dim, num_heads, grid) -> the attention scheme of that block."""

PATCH, POSITION_KERNEL = Grid(2, 4, 4), Grid(3, 3, 3)
SPATIAL_STEP = 2  # every stage after the first halves height and width


class PatchEmbedding(nn.Module):
    """Blocks of `patch` become tokens: convolution with kernel = stride, then LayerNorm.

    A map that `patch` does not divide is padded with zeros at the end (as Video Swin does; DualFormer requires that it
    divides).
    """

    def __init__(self, in_dim: int, dim: int, grid: Grid, patch: Grid):
        super().__init__()
        self.patch, self.grid = patch, grid.ceil_div(patch)
        self.proj = nn.Conv3d(in_dim, dim, kernel_size=tuple(patch), stride=tuple(patch))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Float[Tensor, "b t h w i"]) -> Float[Tensor, "b pt ph pw d"]:
        x = pad_to_blocks(x, self.patch)
        if torch.is_grad_enabled() and x.is_contiguous() and chunks.eager(x) and not watched(self.proj):
            return self.norm(self._as_linear(x))
        x = self.proj(rearrange(x, "b t h w d -> b d t h w"))
        return self.norm(rearrange(x, "b d t h w -> b t h w d"))

    def _as_linear(self, x: Float[Tensor, "b t h w i"]) -> Float[Tensor, "b pt ph pw d"]:
        """The same as a linear map of patches: as fast as the convolution, with a backward pass twice as fast."""
        t, h, w = self.patch
        patches = rearrange(x, "b (nt t) (nh h) (nw w) i -> b nt nh nw (t h w i)", t=t, h=h, w=w)
        return linear(patches, rearrange(self.proj.weight, "d i t h w -> d (t h w i)"), self.proj.bias)

    def macs(self) -> int:
        return self.grid.tokens * self.proj.weight.numel()


class PatchMerging(nn.Module):
    """Blocks of `patch` become tokens: their tokens are concatenated, normed and projected without a bias.

    Source: Video Swin, where `patch` is (1, 2, 2); row runs fastest in the concatenation, then column, as in
    the released code. Time, which Video Swin never merges, runs slowest.
    """

    def __init__(self, in_dim: int, dim: int, grid: Grid, patch: Grid):
        super().__init__()
        self.patch, self.grid = patch, grid.ceil_div(patch)
        self.norm = nn.LayerNorm(patch.tokens * in_dim)
        self.reduction = nn.Linear(patch.tokens * in_dim, dim, bias=False)

    def forward(self, x: Float[Tensor, "b t h w i"]) -> Float[Tensor, "b pt ph pw d"]:
        t, h, w = self.patch
        x = pad_to_blocks(x, self.patch)
        x = rearrange(x, "b (nt t) (nh h) (nw w) d -> b nt nh nw (t w h d)", t=t, h=h, w=w)
        return self.reduction(self.norm(x))

    def macs(self) -> int:
        return self.grid.tokens * self.reduction.weight.numel()


def pad_to_blocks(x: Float[Tensor, "b t h w d"], block: Grid) -> Float[Tensor, "b pt ph pw d"]:
    """Zeros at the end of each axis up to a multiple of the block."""
    t, h, w = (-n % size for n, size in zip(x.shape[1:4], block, strict=True))
    return pad(x, (0, 0, 0, w, 0, h, 0, t)) if t or h or w else x


class ConditionalPosition(nn.Conv3d):
    """Position from the neighbourhood: a depthwise convolution added to the tokens ("PEG").

    Source: Chu et al., Conditional Positional Encodings, arXiv:2102.10882; in 3-D: DualFormer.
    """

    def __init__(self, dim: int, kernel: Grid):
        super().__init__(dim, dim, kernel_size=tuple(kernel), padding=tuple(n // 2 for n in kernel), groups=dim)

    def forward(self, x: Float[Tensor, "b t h w d"]) -> Float[Tensor, "b t h w d"]:
        return x + depthwise(x, self.weight, self.bias)

    def macs(self, grid: Grid) -> int:
        return grid.tokens * self.weight.numel()


class DropPath(nn.Module):
    """Stochastic depth: in training, drops a residual branch for whole clips and scales the others up.

    Source: Huang et al., arXiv:1603.09382.
    """

    def __init__(self, rate: float | int = 0.0):
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"drop path rate {rate} is not at least 0 and below 1")
        self.rate = rate

    def forward(self, x: Float[Tensor, "b t h w d"]) -> Float[Tensor, "b t h w d"]:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        return x * x.new_empty(x.shape[0], 1, 1, 1, 1).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3g}"


class Block(nn.Module):
    """Attention, then MLP; each normed before and added to its input, with its own draw of stochastic depth."""

    def __init__(self, dim: int, grid: Grid, attention: nn.Module, mlp_ratio: float | int, drop_path: float | int):
        super().__init__()
        self.grid = grid
        self.norm1, self.attention = nn.LayerNorm(dim), attention
        self.norm2, self.mlp = nn.LayerNorm(dim), Mlp(dim, mlp_ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "b t h w d"]) -> Float[Tensor, "b t h w d"]:
        x = x + self.drop_path(self.attention(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def macs(self) -> int:
        return self.attention.macs() + self.mlp.macs(self.grid)


class Stage(nn.Module):
    """An embedding, then blocks on one token map; `position`, if any, follows the first block."""

    def __init__(self, embed: nn.Module, blocks: Sequence[Block], position: ConditionalPosition | None):
        super().__init__()
        self.embed, self.blocks, self.position = embed, nn.ModuleList(blocks), position
        self.activation_checkpointing = False

    def forward(self, x: Float[Tensor, "b t h w i"]) -> Float[Tensor, "b pt ph pw d"]:
        x = self.embed(x)
        recompute = self.activation_checkpointing and self.training and torch.is_grad_enabled()
        for i, block in enumerate(self.blocks):
            x = _recomputed(block, x) if recompute else block(x)
            if i == 0 and self.position is not None:
                x = self.position(x)
        return x

    def macs(self) -> int:
        position = 0 if self.position is None else self.position.macs(self.embed.grid)
        return self.embed.macs() + sum(block.macs() for block in self.blocks) + position


def _recomputed(block: Block, x: Float[Tensor, "b t h w d"]) -> Float[Tensor, "b t h w d"]:
    """Runs a block without keeping its activations. The second run leaves BatchNorm's running statistics alone."""
    contexts = lambda: (contextlib.nullcontext(), _frozen_statistics(block))  # noqa: E731
    return checkpoint(block, x, use_reentrant=False, context_fn=contexts)


@contextlib.contextmanager
def _frozen_statistics(module: nn.Module) -> Iterator[None]:
    """No batch norm updates its running statistics; what it computes stays the same.

    Not by `track_running_stats`: a checkpoint demands that both runs save the same number of tensors.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    before = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, batches in before:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(batches)


class Pyramid(nn.Module):
    """Clip in, class scores out; what the blocks attend with is `build_attention`'s choice.

    Args:
        clip: frames, height and width of the nominal clip. Attention is built for the maps that follow from it;
            `forward` takes other clips where the schemes can.
        num_classes: 0 for no classifier; `forward` then returns the pooled features.
        build_attention: called once for each block.
        widths, num_heads, depths: one number for each stage.
        temporal_pooling: one number for each stage after the first; None for 1 throughout.
        merge: patch merging between stages, instead of a patch embedding.
        position_kernel: size of the conditional position encoding of each stage; None for none.
        drop_path: of the last block, growing linearly from 0 in the first.
    """

    config: ModelConfig | None = None  # set by `create`; written into checkpoints

    def __init__(
        self,
        clip: Grid,
        num_classes: int,
        build_attention: BuildAttention,
        *,
        widths: Sequence[int],
        num_heads: Sequence[int],
        depths: Sequence[int],
        in_channels: int = 3,
        patch: Grid = PATCH,
        temporal_pooling: Sequence[int] | None = None,
        merge: bool = False,
        position_kernel: Grid | None = POSITION_KERNEL,
        mlp_ratio: float | int = 4,
        drop_path: float | int = 0.0,
        dropout: float | int = 0.0,
        activation_checkpointing: bool = False,
    ):
        super().__init__()
        if not isinstance(num_classes, int) or isinstance(num_classes, bool) or num_classes < 0:
            raise ValueError(f"num_classes {num_classes!r} is not a whole number; 0 makes a model without classifier")
        self.clip, self.num_classes, self.in_channels = clip, num_classes, in_channels
        rates = iter(_linear(drop_path, sum(depths)))
        pooling = temporal_pooling or [1] * (len(widths) - 1)
        grid, width, stages = clip, in_channels, []
        for s, (dim, heads, depth) in enumerate(zip(widths, num_heads, depths, strict=True)):
            step = Grid(*patch) if s == 0 else Grid(pooling[s - 1], SPATIAL_STEP, SPATIAL_STEP)
            embed = (PatchMerging if merge and s else PatchEmbedding)(width, dim, grid, step)
            grid, width = embed.grid, dim
            blocks = [
                Block(dim, grid, build_attention(s, b, dim, heads, grid), mlp_ratio, next(rates)) for b in range(depth)
            ]
            stages.append(Stage(embed, blocks, position_kernel and ConditionalPosition(dim, position_kernel)))
        self.stages = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, num_classes) if num_classes else None
        self.activation_checkpointing = activation_checkpointing
        self._initialise()

    @property
    def grids(self) -> tuple[Grid, ...]:
        """The token map of each stage, for the nominal clip."""
        return tuple(stage.embed.grid for stage in self.stages)

    @property
    def activation_checkpointing(self) -> bool:
        """May be switched at any time; it acts in training only."""
        return any(stage.activation_checkpointing for stage in self.stages)

    @activation_checkpointing.setter
    def activation_checkpointing(self, on: bool) -> None:
        for stage in self.stages:
            stage.activation_checkpointing = on

    def forward(self, clip: Tensor) -> Float[Tensor, "b k"]:
        """Class scores of clips (b, channels, frames, height, width); without a classifier, the pooled features.

        Raises:
            ValueError: the input is no such clip. (Hence the plain annotation: the message is better than a checker's.)
        """
        x = self._tokens(clip)
        for stage in self.stages:
            x = stage(x)
        pooled = self.norm(x).mean(dim=(1, 2, 3))
        return pooled if self.classifier is None else self.classifier(self.dropout(pooled))

    def features(self, clip: Tensor) -> tuple[Float[Tensor, "b _d _t _h _w"], ...]:
        """The output map of the last block of each stage, channels first, before the final norm."""
        x, maps = self._tokens(clip), []
        for stage in self.stages:
            x = stage(x)
            maps.append(rearrange(x, "b t h w d -> b d t h w"))
        return tuple(maps)

    def _tokens(self, clip: Tensor) -> Float[Tensor, "b t h w i"]:
        if clip.ndim != 5 or clip.shape[1] != self.in_channels or 0 in clip.shape[2:]:
            raise ValueError(
                f"a clip of shape {tuple(clip.shape)} is not (batch, {self.in_channels}, frames, height, width); "
                f"the nominal clip is (1, {self.in_channels}, {', '.join(map(str, self.clip))})"
            )
        if not clip.is_floating_point():
            raise ValueError(
                f"a clip of {clip.dtype} is not floating point; normalise it, such as by clip.float() / 255"
            )
        return rearrange(clip, "b c t h w -> b t h w c")

    def macs(self, classifier: bool = True) -> int:
        """Multiply-adds of one nominal clip in closed form: linear maps, convolutions, attention; padding included."""
        last = self.classifier.weight.numel() if classifier and self.classifier is not None else 0
        return sum(stage.macs() for stage in self.stages) + last

    def _initialise(self) -> None:
        """As both released codes do: linear maps truncated normal, convolutions as PyTorch makes them.

        A scheme whose parameters start in another way says so in `reset_parameters`, which has the last word.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.classifier is not None:
            nn.init.normal_(self.classifier.weight, std=0.01)
        for stage in self.stages:
            for block in stage.blocks:
                if hasattr(block.attention, "reset_parameters"):
                    block.attention.reset_parameters()


def _linear(last: float | int, count: int) -> list[float]:
    """`count` numbers from 0 to `last`, evenly spaced."""
    return [last * i / max(count - 1, 1) for i in range(count)]
