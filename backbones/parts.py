"""What backbones are put together from: embeddings, positions, stochastic depth, activation checkpointing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, linear, pad
from torch.utils.checkpoint import checkpoint

from attention_zoo import Grid, Tokens, cpu, dispatch
from attention_zoo.depthwise import with_residual
from attention_zoo.empty import frozen_statistics


class PatchEmbedding(nn.Module):
    """Blocks of `patch` become tokens: convolution with kernel = stride, then LayerNorm (if `normed`).

    A map that `patch` does not divide is padded with zeros at the end (as Video Swin does; DualFormer requires that it
    divides).
    """

    kind = "embedding"

    def __init__(self, in_dim: int, dim: int, grid: Grid, patch: Grid, *, normed: bool = True):
        super().__init__()
        self.patch, self.grid = patch, grid.ceil_div(patch)
        self.proj = nn.Conv3d(in_dim, dim, kernel_size=tuple(patch), stride=tuple(patch))
        self.norm = nn.LayerNorm(dim) if normed else nn.Identity()

    def forward(self, x: Float[Tensor, "b t h w i"]) -> Float[Tensor, "b pt ph pw d"]:
        x = pad_to_blocks(x, self.patch)
        if torch.is_grad_enabled() and x.is_contiguous() and cpu.eager(x) and not dispatch.watched(self.proj):
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


class ConvolutionStem(nn.Module):
    """Two convolutions of 3x3x3 with a norm and GELU between them; tokens are as many as those of a `PatchEmbedding`.

    A patch is a linear map of its pixels: which way something moves in it is a product of differences in space and in
    time, and first the blocks have to learn it. Two convolutions that overlap have it after some hundred steps.

    Source: Xiao et al., Early Convolutions Help Transformers See Better, arXiv:2106.14881; ours has one norm over all
    channels of a clip, since BatchNorm would differ between training and test, and two steps instead of four.
    """

    kind = "embedding"

    def __init__(self, in_dim: int, dim: int, grid: Grid, patch: Grid):
        super().__init__()
        self.patch, self.grid = patch, grid.ceil_div(patch)
        first = Grid(1, *(2 if n % 2 == 0 else 1 for n in patch[1:]))
        second = patch.ceil_div(first)
        self.half = self.grid.times(second)
        self.first = nn.Conv3d(in_dim, dim, kernel_size=3, stride=tuple(first), padding=1)
        self.middle = nn.GroupNorm(1, dim)
        self.second = nn.Conv3d(dim, dim, kernel_size=3, stride=tuple(second), padding=1)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Float[Tensor, "b t h w i"]) -> Float[Tensor, "b pt ph pw d"]:
        x = rearrange(pad_to_blocks(x, self.patch), "b t h w i -> b i t h w")
        x = self.second(gelu(self.middle(self.first(x))))
        return self.norm(rearrange(x, "b d t h w -> b t h w d"))

    def macs(self) -> int:
        return self.half.tokens * self.first.weight.numel() + self.grid.tokens * self.second.weight.numel()


class PatchMerging(nn.Module):
    """Blocks of `patch` become tokens: their tokens are concatenated, normed and projected without a bias.

    Source: Video Swin, where `patch` is (1, 2, 2); row runs fastest in the concatenation, then column, as in
    the released code. Time, which Video Swin never merges, runs slowest.
    """

    kind = "embedding"

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

    kind = "position"

    def __init__(self, dim: int, kernel: Grid):
        super().__init__(dim, dim, kernel_size=tuple(kernel), padding=tuple(n // 2 for n in kernel), groups=dim)

    def forward(self, x: Float[Tensor, "b t h w d"]) -> Float[Tensor, "b t h w d"]:
        return with_residual(x, self.weight, self.bias)

    def macs(self, grid: Grid) -> int:
        return grid.tokens * self.weight.numel()


class SpaceTimeAdapter(nn.Module):
    """Down to a bottleneck, a depthwise convolution over three frames, up again: what frames of an image model learn of
    each other. Its convolution starts at zero, so that nothing changes.

    Source: ST-Adapter, Pan et al., arXiv:2206.13559, and linziyi96/st-adapter, which has no activation.
    """

    def __init__(self, dim: int, bottleneck: int, grid: Grid):
        super().__init__()
        self.out_grid = grid
        self.fc1, self.fc2 = nn.Linear(dim, bottleneck), nn.Linear(bottleneck, dim)
        self.conv = nn.Conv3d(bottleneck, bottleneck, (3, 1, 1), padding=(1, 0, 0), groups=bottleneck)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: Float[Tensor, "b t h w d"]) -> Float[Tensor, "b t h w d"]:
        x = self.conv(rearrange(self.fc1(x), "b t h w d -> b d t h w"))
        return self.fc2(rearrange(x, "b d t h w -> b t h w d"))

    def macs(self) -> int:
        return self.out_grid.tokens * sum(part.weight.numel() for part in (self.fc1, self.conv, self.fc2))


class ClassToken(nn.Module):
    """A learned token without a place, before the map; what it gathers is classified."""

    kind = "embedding"

    def __init__(self, dim: int):
        super().__init__()
        self.token = nn.Parameter(torch.empty(1, 1, dim))
        nn.init.trunc_normal_(self.token, std=0.02)

    def forward(self, clips: int) -> Float[Tensor, "b 1 d"]:
        return self.token.repeat(clips, 1, 1)  # no view: counters of operators trip over views of a parameter


class Places(nn.Module):
    """Learned positions of places and times, and class tokens before the map; what a ViT adds to its patches.

    Args:
        class_token: "clip" for one, "frame" for one before each frame's tokens (each starts as the same), "distilled"
            for two, the second of which learns from a teacher, "none".
        space: positions of places, and one of each class token.
        time: of frames, which the class token of a clip has not.
        joint: instead of both a position of each place at each time, and one of each class token, as in ViViT.

    Positions learned for another grid are resized by the nearest, as TimeSformer's released code does.
    """

    kind = "position"

    def __init__(self, dim: int, grid: Grid, class_token: str, *, space: bool, time: bool, joint: bool = False):
        super().__init__()
        self.grid, self.per_frame = grid, class_token == "frame"
        self.class_token = None if class_token == "none" else nn.Parameter(torch.zeros(1, 1, dim))
        self.distilled = nn.Parameter(torch.zeros(1, 1, dim)) if class_token == "distilled" else None
        self.rows = {"none": 0, "distilled": 2}.get(class_token, 1)  # class tokens that have positions of their own
        self.space = nn.Parameter(torch.zeros(1, self.rows + grid.h * grid.w, dim)) if space else None
        self.time = nn.Parameter(torch.zeros(1, grid.t, dim)) if time else None
        self.joint = nn.Parameter(torch.zeros(1, self.rows + grid.tokens, dim)) if joint else None

    def reset_parameters(self) -> None:
        for parameter in (self.class_token, self.distilled, self.space, self.joint):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)
        if self.time is not None:
            nn.init.zeros_(self.time)

    def prefix(self, frames: int) -> int:
        """How many class tokens a map of so many time steps has."""
        return frames if self.per_frame else self.rows

    def forward(self, x: Float[Tensor, "b t h w d"]) -> Tokens:
        b, t, h, w, _ = x.shape
        first = self.class_token if self.distilled is None else torch.cat([self.class_token, self.distilled], 1)
        if self.space is not None:
            table = self.space
            if first is not None:
                first, table = first + table[:, : self.rows], table[:, self.rows :]
            table = table.unflatten(1, self.grid[1:])
            x = x + (table if (h, w) == self.grid[1:] else resized(table.movedim(-1, 1), (h, w)).movedim(1, -1))
        if self.joint is not None:
            table = self.joint
            if first is not None:
                first, table = first + table[:, : self.rows], table[:, self.rows :]
            table = table.unflatten(1, tuple(self.grid))
            x = x + (table if (t, h, w) == self.grid else resized(table.movedim(-1, 1), (t, h, w)).movedim(1, -1))
        if self.time is not None:
            table = self.time if t == self.grid.t else resized(self.time.mT, t).mT
            x = x + table[:, :, None, None]
            first = first + table if self.per_frame else first
        return Tokens.of_map(x) if first is None else Tokens.of_map(x).of(x, first.expand(b, self.prefix(t), -1))


def resized(x: Float[Tensor, "1 d *n"], size: int | tuple[int, ...]) -> Float[Tensor, "1 d *m"]:
    """Another length or size, each value that of the nearest."""
    return interpolate(x, size=size, mode="nearest")


def central_frame(image: Tensor, target: Tensor) -> Float[Tensor, "o i t h w"] | None:
    """The kernel of an image model's convolution, "o i h w" or with one frame, as the middle frame of one as large as
    `target`, zeros before and after; None where it does not fit.
    """
    flat = of_one_frame(image, target)
    if flat is None:
        return None
    kernel = torch.zeros_like(target)
    kernel[:, :, target.shape[2] // 2] = flat
    return kernel


def of_one_frame(image: Tensor, target: Tensor) -> Float[Tensor, "o i h w"] | None:
    """The kernel of an image model's convolution, without its axis of one frame; None where it does not fit."""
    flat = image[:, :, 0] if image.ndim == 5 and image.shape[2] == 1 else image
    return flat if flat.shape == target[:, :, 0].shape else None


def of_image_model(
    key: str, target: Tensor, image: Tensor | None, kernel: Callable[[Tensor, Tensor], Tensor | None] = central_frame
) -> tuple[str, Tensor | None]:
    """What becomes of a tensor whose image model has `image` under its name, and its values: a kind of
    `inflation.InflationReport`. `kernel` makes a convolution of one frame one of several.
    """
    if key.startswith("classifier.") and (image is None or image.shape != target.shape):
        return "fresh", None
    if image is None:
        return "missing", None
    kind, tensor = ("inflated", kernel(image, target)) if target.ndim == 5 else ("copied", image)
    return (kind, tensor) if tensor is not None and tensor.shape == target.shape else ("mismatched", None)


class DropPath(nn.Module):
    """Stochastic depth: in training, drops a residual branch for whole clips and scales the others up.

    Source: Huang et al., arXiv:1603.09382.
    """

    def __init__(self, rate: float | int = 0.0):
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"drop path rate {rate} is not at least 0 and below 1")
        self.rate = rate

    def forward(self, x: Float[Tensor, "b *n d"]) -> Float[Tensor, "b *n d"]:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        return x * x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3g}"


def through(blocks: Iterable[nn.Module], tokens: Tokens, owner: nn.Module) -> Tokens:
    """Block after block; in training without keeping activations where `owner.activation_checkpointing` says so."""
    recompute = owner.activation_checkpointing and owner.training and torch.is_grad_enabled()
    for block in blocks:
        tokens = recomputed(block, tokens) if recompute else block(tokens)
    return tokens


def recomputed(block: nn.Module, tokens: Tokens) -> Tokens:
    """Runs a block without keeping its activations. The second run leaves BatchNorm's running statistics alone."""
    contexts = lambda: (contextlib.nullcontext(), frozen_statistics(block))  # noqa: E731
    return checkpoint(block, tokens, use_reentrant=False, context_fn=contexts)


def initialise_linear(model: nn.Module) -> None:
    """Linear maps truncated normal with standard deviation 0.02, their biases 0, in the order of the modules."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def channels_last(clip: Tensor, in_channels: int, nominal: Grid) -> Float[Tensor, "b t h w i"]:
    """A clip (b, channels, frames, height, width) as the tokens of an embedding.

    Raises:
        ValueError: the input is no such clip. (Hence the plain annotation: the message is better than a checker's.)
    """
    if clip.ndim != 5 or clip.shape[1] != in_channels or 0 in clip.shape[2:]:
        raise ValueError(
            f"a clip of shape {tuple(clip.shape)} is not (batch, {in_channels}, frames, height, width); "
            f"the nominal clip is (1, {in_channels}, {', '.join(map(str, nominal))})"
        )
    if not clip.is_floating_point():
        raise ValueError(f"a clip of {clip.dtype} is not floating point; normalise it, such as by clip.float() / 255")
    return rearrange(clip, "b c t h w -> b t h w c")


def linear_rates(last: float | int, count: int) -> list[float]:
    """`count` numbers from 0 to `last`, evenly spaced."""
    return [last * i / max(count - 1, 1) for i in range(count)]
