"""The dual-path family: one frozen image transformer sees eight frames and, as a mosaic, sixteen; only adapters learn.

The spatial path takes frames one by one, with adapters beside attention and MLP; the temporal path takes pictures that
are put together of sixteen small frames, with adapters before and behind. Both use the same weights and meet at the
end.

Source: DualPath, arXiv:2303.09857, and park-jungin/DualPath at commit cc909245, which does not run as published; where
paper and code differ, `bottleneck` and `before_attention` say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate
from torch.utils.checkpoint import checkpoint

import attention_zoo
from attention_zoo import Grid, Tokens
from backbones.column import Classified, Column
from backbones.configs.dualpath import SIDE, SPATIAL, DualPathConfig, models
from backbones.family import Family, Origin, families
from backbones.layouts import NATIVE_NAME, Layout
from backbones.mlp import Mlp
from backbones.parts import DropPath, PatchEmbedding, initialise_linear, linear_rates
from backbones.residual import Attend, Block, Branch, PerToken, Residual


class Adapter(nn.Module):
    """Down to a bottleneck, GELU, up again; no skip and no norm. The way up starts at zero, so that nothing changes."""

    def __init__(self, dim: int, bottleneck: int, dropout: float):
        super().__init__()
        self.down_proj, self.up_proj = nn.Linear(dim, bottleneck), nn.Linear(bottleneck, dim)
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.kaiming_normal_(self.down_proj.weight)  # by the paper; the released code draws uniformly
        nn.init.zeros_(self.up_proj.weight)
        for linear in (self.down_proj, self.up_proj):
            nn.init.zeros_(linear.bias)

    def forward(self, x: Float[Tensor, "b *n d"]) -> Float[Tensor, "b *n d"]:
        return self.up_proj(self.dropout(gelu(self.down_proj(x))))

    def macs(self, tokens: int) -> int:
        return tokens * (self.down_proj.weight.numel() + self.up_proj.weight.numel())


def lightly(residual: Residual, tokens: Tokens) -> Tokens:
    """A residual whose branch is frozen keeps nothing but what went in, and is run again for the gradient.

    Of 19 numbers that training of adapters would keep for each channel of a token and block, 13 are of frozen attention
    and MLP, which want no gradients of their own, and 26 are what full tuning keeps. With 2 of them a step of adapters
    takes a third of the memory of full tuning; it costs another forward pass, so that both take about the same time.
    """
    frozen = residual.branch.branch.parts("").values()
    learns = any(parameter.requires_grad for parts in frozen for part in parts for parameter in part.parameters())
    if learns or not (torch.is_grad_enabled() and tokens.x.requires_grad):
        return residual(tokens)
    return checkpoint(residual, tokens, use_reentrant=False)


@dataclass(frozen=True)
class Adapted:
    """A frozen branch with adapters: `beside` it on the same input and added up (spatial path), or before and behind it
    (temporal path).
    """

    branch: Branch
    beside: Adapter | None = None
    before: Adapter | None = None
    behind: Adapter | None = None

    @property
    def adapters(self) -> list[Adapter]:
        return [adapter for adapter in (self.before, self.beside, self.behind) if adapter is not None]

    def __call__(self, tokens: Tokens) -> Tokens:
        y = self.branch(tokens if self.before is None else tokens.with_x(self.before(tokens.x)))
        y = y if self.behind is None else y.with_x(self.behind(y.x))
        return y if self.beside is None else y.with_x(y.x + self.beside(tokens.x))

    def macs(self, grid: Grid, prefix: int) -> int:
        return self.branch.macs(grid, prefix) + sum(adapter.macs(grid.tokens + prefix) for adapter in self.adapters)

    def out_grid(self, grid: Grid) -> Grid:
        return grid

    def parts(self, kind: str) -> dict[str, Sequence[nn.Module]]:
        return self.branch.parts(kind) | {"adapter": self.adapters}


class DualPathBlock(Block):
    """A block of the image model, on both paths.

    Its tokens are those of all mosaics, each with its class token if pictures have one, then the class tokens of the
    frames, then the frames' map: what is not the map stands before it, as class tokens do.

    Args:
        config: has `mosaics`, `bottleneck`, `before_attention`, `adapter_dropout` and what `Mlp.of` reads.
        frame, mosaic: patches of one.
        attention: scheme and options.
        class_tokens: of a picture, 0 or 1.
        adapted: whether it has adapters; without them it is the frozen block on both paths.
    """

    def __init__(
        self,
        config: Any,
        dim: int,
        num_heads: int,
        frame: Grid,
        mosaic: Grid,
        attention: tuple[str, dict[str, Any]],
        kernel: str,
        drop_path: float = 0.0,
        *,
        class_tokens: int,
        eps: float = 1e-5,
        adapted: bool = True,
    ):
        frames, mosaics = frame._replace(t=SPATIAL), mosaic._replace(t=config.mosaics)
        super().__init__(frames, mosaics.tokens + class_tokens * (mosaics.t + SPATIAL))
        self.frames, self.mosaics, self.class_tokens = frames, mosaics, class_tokens
        scheme, options = attention
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)
        self.attention = attention_zoo.build(scheme, dim, num_heads, frame, kernel=kernel, **options)
        with torch.device("meta"):  # the same weights work on mosaics, whose size the cost alone depends on
            self.mosaic_attention_macs = self._macs_of(attention_zoo.build(scheme, dim, num_heads, mosaic, **options))
        self.mlp, self.drop_path = Mlp.of(config, dim), DropPath(drop_path)
        names = ("beside_attention", "beside_mlp", "behind_attention", "behind_mlp") if adapted else ()
        names += ("before_attention",) if adapted and config.before_attention else ()
        self.adapters = nn.ModuleDict({n: Adapter(dim, config.bottleneck, config.adapter_dropout) for n in names})

    def spatial(self) -> list[Residual]:
        attention = Adapted(Attend(self.attention), beside=self._adapter("beside_attention"))
        return self._pair(attention, Adapted(PerToken(self.mlp), beside=self._adapter("beside_mlp")))

    def temporal(self) -> list[Residual]:
        before, behind = self._adapter("before_attention"), self._adapter("behind_attention")
        attention = Adapted(Attend(self.attention), before=before, behind=behind)
        return self._pair(attention, Adapted(PerToken(self.mlp), behind=self._adapter("behind_mlp")))

    def _adapter(self, name: str) -> Adapter | None:
        return self.adapters[name] if name in self.adapters else None

    def _pair(self, attention: Branch, mlp: Branch) -> list[Residual]:
        return [
            Residual("attention", self.norm1, attention, drop_path=self.drop_path),
            Residual("mlp", self.norm2, mlp, drop_path=self.drop_path),
        ]

    def residuals(self) -> list[Residual]:
        return [*self.temporal(), *self.spatial()]

    def forward(self, tokens: Tokens) -> Tokens:
        mosaics, frames = self.apart(tokens)
        for residual in self.temporal():
            mosaics = lightly(residual, mosaics)
        for residual in self.spatial():
            frames = lightly(residual, frames)
        return self.together(mosaics, frames)

    def apart(self, tokens: Tokens) -> tuple[Tokens, Tokens]:
        """Mosaics and frames as pictures of their own, each with its class token."""
        count, heads = self.prefix - SPATIAL * self.class_tokens, SPATIAL * self.class_tokens
        mosaics, frames = tokens.x[:, :count], tokens.x[:, count:]
        if heads:
            first, maps = frames[:, :heads].unflatten(1, (SPATIAL, -1)), frames[:, heads:].unflatten(1, (SPATIAL, -1))
            frames = torch.cat([first, maps], 2).flatten(1, 2)
        return self._pictures(mosaics, self.mosaics), self._pictures(frames, self.frames)

    def _pictures(self, x: Float[Tensor, "b n d"], grid: Grid) -> Tokens:
        """The tokens of so many pictures, each by itself."""
        x, alone = x.unflatten(1, (grid.t, -1)).flatten(0, 1), grid._replace(t=1)
        return Tokens(x, alone, self.class_tokens) if self.class_tokens else Tokens.of_map(x.unflatten(1, alone))

    def together(self, mosaics: Tokens, frames: Tokens) -> Tokens:
        before, after = mosaics.x.flatten(1, -2), frames.x.flatten(1, -2)
        before, after = before.unflatten(0, (-1, self.mosaics.t)).flatten(1, 2), after.unflatten(0, (-1, SPATIAL))
        parts = [before, after[:, :, : self.class_tokens].flatten(1, 2), after[:, :, self.class_tokens :].flatten(1, 2)]
        return Tokens(torch.cat(parts, 1), self.frames, self.prefix)

    def macs(self) -> int:
        """Eight frames and the mosaics."""
        frame, mosaic = self.frames._replace(t=1), self.mosaics._replace(t=1)
        frame_macs = sum(residual.macs(frame, self.class_tokens) for residual in self.spatial())
        mosaic_macs = sum(residual.macs(mosaic, self.class_tokens) for residual in self.temporal())
        mosaic_macs += self.mosaic_attention_macs - self._macs_of(self.attention)
        return SPATIAL * frame_macs + self.mosaics.t * mosaic_macs

    def _macs_of(self, attention: nn.Module) -> int:
        return attention.macs(self.class_tokens) if self.class_tokens else attention.macs()


class PathPositions(nn.Module):
    """A class token and learned positions, of frames the image model's, of mosaics its own and the numbers of frames.

    Every patch of a mosaic is told which frame it shows by sine and cosine of the frame's number, from 1; on the border
    of two frames the number lies between theirs. A class token has the number 0.
    """

    kind = "position"

    def __init__(self, config: DualPathConfig):
        super().__init__()
        dim = config.width
        self.class_token = nn.Parameter(dim**-0.5 * torch.randn(dim))
        self.of_frame = nn.Parameter(dim**-0.5 * torch.randn(1 + config.frame_grid.tokens, dim))
        self.of_mosaic = nn.Parameter(dim**-0.5 * torch.randn(1 + config.mosaic_grid.tokens, dim))
        self.register_buffer("numbers", frame_sinusoid(config.mosaics, config.mosaic_grid, dim), persistent=False)

    def forward(
        self, frames: Float[Tensor, "b s n d"], mosaics: Float[Tensor, "b g _n d"]
    ) -> tuple[Float[Tensor, "b s n1 d"], Float[Tensor, "b g _n1 d"]]:
        """Both paths with class tokens and positions."""
        frames, mosaics = (torch.cat([self.class_token.expand(*x.shape[:2], 1, -1), x], 2) for x in (frames, mosaics))
        return frames + self.of_frame, mosaics + (self.of_mosaic + self.numbers)


def frame_sinusoid(mosaics: int, grid: Grid, dim: int) -> Float[Tensor, "g n1 d"]:
    """Sine and cosine of the numbers of the frames that each patch of each mosaic shows, its class token first."""
    cell = torch.arange(SIDE * SIDE, dtype=torch.float32).view(SIDE, SIDE) + 1
    numbers = torch.stack([cell + SIDE * SIDE * i for i in range(mosaics)])
    numbers = numbers.repeat_interleave(SIDE, 1).repeat_interleave(SIDE, 2)  # 4x4 places for each frame
    numbers = interpolate(numbers[:, None], size=grid[1:], mode="bilinear", antialias=True, align_corners=False)
    numbers = torch.cat([torch.zeros(mosaics, 1), numbers.flatten(1)], 1)
    rates = 10000 ** (torch.arange(0, dim, 2) / dim)
    angles = numbers[..., None] / rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(2)[..., :dim]


def frameset(
    clip: Float[Tensor, "b i t h w"], shrink: int = SIDE
) -> tuple[Float[Tensor, "b i s h w"], Float[Tensor, "b i g _h _w"]]:
    """Frames of the spatial path, evenly from the first on, and mosaics of 4x4 consecutive frames, row by row."""
    frames = clip[:, :, :: clip.shape[2] // SPATIAL]
    mosaic = rearrange(clip, "b i (g r c) h w -> (b g) i (r h) (c w)", r=SIDE, c=SIDE)
    if shrink > 1:
        size = [n // shrink for n in mosaic.shape[2:]]
        mosaic = interpolate(mosaic, size=size, mode="bilinear", antialias=True, align_corners=False)
    return frames, rearrange(mosaic, "(b g) i h w -> b i g h w", b=len(clip))


class Scores(nn.Module):
    """Two linear maps with GELU between them, from the features of both paths to classes."""

    def __init__(self, dim: int, num_classes: int):
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(2 * dim, dim), nn.Linear(dim, num_classes)

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        return self.linear2(gelu(self.linear1(x)))

    def macs(self) -> int:
        return self.linear1.weight.numel() + self.linear2.weight.numel()


class Projection(nn.Module):
    """From the transformer's width to that of its features, without a bias; as CLIP keeps it, width first."""

    kind = "classifier"

    def __init__(self, dim: int, features: int):
        super().__init__()
        self.weight = nn.Parameter(dim**-0.5 * torch.randn(dim, features))

    def forward(self, x: Float[Tensor, "b *n d"]) -> Float[Tensor, "b *n _d"]:
        return x @ self.weight


class Framesets(Classified):
    """A model that takes a clip as frames and mosaics, and of which adapters may learn alone.

    Args:
        config: a `TwoPaths`; else as for `Classified`.
    """

    def __init__(self, config: Any, num_classes: int):
        super().__init__(config, num_classes)
        self.shrink = config.shrink

    def pictures(self, clip: Tensor) -> tuple[Float[Tensor, "b i s h w"], Float[Tensor, "b i g _h _w"]]:
        """Its frames and mosaics, see `frameset`."""
        x = self.channels_last(clip)
        if x.shape[1:4] != tuple(self.clip):
            size = "x".join(map(str, self.clip))
            raise ValueError(
                f"a clip of {'x'.join(map(str, x.shape[1:4]))} fits no mosaics of this model; it takes {size}"
            )
        return frameset(clip, self.shrink)

    def paths(self, maps: list[Float[Tensor, "_n 1 _h _w"]]) -> dict[str, tuple[tuple[int, ...], Tensor]]:
        """Values at the patches of one clip's pictures, first of its mosaics, then of its frames, as a block takes
        them, by path: on which frames of the clip, and "t h w" for each of these. A patch that shows two frames of a
        mosaic gives to both."""
        mosaics, frames = (path_maps[:, 0] for path_maps in maps)
        size = [SIDE * -(-n // SIDE) for n in mosaics.shape[1:]]
        cells = interpolate(mosaics[:, None], size=size, mode="area")[:, 0]
        cells = rearrange(cells, "g (r h) (c w) -> (g r c) h w", r=SIDE, c=SIDE)
        every = self.clip.t // SPATIAL
        return {
            "spatial": (tuple(range(0, self.clip.t, every)), frames),
            "temporal": (tuple(range(self.clip.t)), cells),
        }

    def _initialise(self) -> None:
        """Adapters and schemes as they say; the rest as a ViT, to be replaced by an image model's weights."""
        initialise_linear(self)
        for block in self.blocks().values():
            for part in (block.attention, *block.adapters.values()):
                if hasattr(part, "reset_parameters"):
                    part.reset_parameters()


class DualPath(Framesets, Column):
    """Clip in, class scores out; see `DualPathConfig`."""

    def __init__(self, config: DualPathConfig, num_classes: int, kernel: str):
        super().__init__(config, num_classes)
        dim, frame, mosaic = config.width, config.frame_grid, config.mosaic_grid
        self.embed = PatchEmbedding(config.in_channels, dim, config.frame, config.patch, normed=False)
        if not config.patch_bias:
            self.embed.proj.bias = None
        self.position = PathPositions(config)
        self.first_norm = nn.LayerNorm(dim, config.eps) if config.first_norm else nn.Identity()
        size = config, dim, config.num_heads, frame, mosaic, config.entry("A"), kernel
        rates = linear_rates(config.drop_path, config.depth)
        self.column = nn.ModuleList(DualPathBlock(*size, rate, class_tokens=1, eps=config.eps) for rate in rates)
        self.norm = nn.LayerNorm(dim, config.eps)
        self.projection = Projection(dim, config.projection) if config.projection else None
        features = config.projection or dim
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = Scores(features, num_classes) if num_classes else None
        self._initialise()

    def embedded(self, clip: Tensor) -> Tokens:
        return self.of_pictures(*self.pictures(clip))

    def of_pictures(self, frames: Float[Tensor, "b i s h w"], mosaics: Float[Tensor, "b i g _h _w"]) -> Tokens:
        """The tokens of eight frames and of mosaics that are made already, see `frameset`."""
        frames, mosaics = self.position(self._patches(frames), self._patches(mosaics))
        block = self.column[0]
        return block.together(
            Tokens(self.first_norm(mosaics).flatten(0, 1), block.mosaics._replace(t=1), 1),
            Tokens(self.first_norm(frames).flatten(0, 1), block.frames._replace(t=1), 1),
        )

    def scores(self, tokens: Tokens) -> Float[Tensor, "b k"]:
        """Class tokens of the mosaics, then of the frames; each path's are averaged after the projection."""
        block = self.column[0]
        count = block.mosaics.t + block.mosaics.tokens
        mosaics = tokens.x[:, : count : count // block.mosaics.t]
        frames = tokens.x[:, count : count + SPATIAL]
        paths = (self.norm(path) for path in (mosaics, frames))
        paths = (path if self.projection is None else self.projection(path) for path in paths)
        return self.classified(torch.cat([path.mean(1) for path in paths], 1))

    def macs(self, classifier: bool = True) -> int:
        block = self.column[0]
        pictures = block.mosaics.t + SPATIAL
        patches = (block.mosaics.tokens + block.frames.tokens) * self.embed.proj.weight.numel()
        features = 0 if self.projection is None else pictures * self.projection.weight.numel()
        last = self.classifier.macs() if classifier and self.classifier is not None else 0
        return patches + sum(block.macs() for block in self.column) + features + last

    def _patches(self, pictures: Float[Tensor, "b i s h w"]) -> Float[Tensor, "b s n d"]:
        maps = self.embed(rearrange(pictures, "b i s h w -> (b s) 1 h w i"))
        return rearrange(maps, "(b s) 1 h w d -> b s (h w) d", b=len(pictures))


# Names in checkpoints: those of the released code, which are CLIP's with adapters, and of an image ViT (timm).

ADAPTERS = {
    "t_adapter_attn_b": "before_attention",
    "t_adapter_attn": "behind_attention",
    "t_adapter_mlp": "behind_mlp",
    "s_adapter_attn": "beside_attention",
    "s_adapter_mlp": "beside_mlp",
}
BLOCK = r"^visual\.transformer\.resblocks\.(\d+)\."
NATIVE = Layout(NATIVE_NAME, r"^column\.\d+\.adapters\.")
CLIP = Layout(
    "CLIP, DualPath",
    BLOCK,
    renames=(
        (r"^visual\.conv1\.", "embed.proj."),
        (r"^visual\.class_embedding$", "position.class_token"),
        (r"^visual\.positional_embedding$", "position.of_frame"),
        (r"^visual\.spatial_positional_embedding$", "position.of_mosaic"),
        (r"^visual\.ln_pre\.", "first_norm."),
        (r"^visual\.ln_post\.", "norm."),
        (r"^visual\.proj$", "projection.weight"),
        (r"^visual\.head\.", "classifier."),
        *((rf"{BLOCK}{theirs}\.", rf"column.\1.adapters.{ours}.") for theirs, ours in ADAPTERS.items()),
        (rf"{BLOCK}attn\.in_proj_(weight|bias)$", r"column.\1.attention.qkv.\2"),
        (rf"{BLOCK}attn\.out_proj\.", r"column.\1.attention.proj."),
        (rf"{BLOCK}ln_([12])\.", r"column.\1.norm\2."),
        (rf"{BLOCK}mlp\.c_fc\.", r"column.\1.mlp.fc1."),
        (rf"{BLOCK}mlp\.c_proj\.", r"column.\1.mlp.fc2."),
    ),
    ignored=((r"^(?!visual\.)", "the text encoder of CLIP is no part of the model"),),
)


def _without_batch(name: str, tensor: Tensor) -> Tensor:
    """timm keeps class token and positions as those of one picture of a batch."""
    return tensor.flatten(0, -2).squeeze(0) if name in ("cls_token", "pos_embed") else tensor


TIMM_BLOCK = r"^blocks\.(\d+)\."
VIT = Layout(
    "image ViT (timm)",
    rf"{TIMM_BLOCK}attn\.qkv\.",
    renames=(
        (r"^patch_embed\.", "embed."),
        (r"^cls_token$", "position.class_token"),
        (r"^pos_embed$", "position.of_frame"),
        (rf"{TIMM_BLOCK}attn\.", r"column.\1.attention."),
        (rf"{TIMM_BLOCK}", r"column.\1."),
        (r"^head\.", "classifier."),
    ),
    shaped=_without_batch,
)

families.register("dualpath")(
    Family(
        "dualpath",
        DualPathConfig,
        DualPath,
        models,
        (NATIVE, CLIP, VIT),
        origins={"dualpath": Origin("arXiv:2303.09857", "park-jungin/DualPath", "no licence file", "none")},
    )
)
