"""The hierarchical family: stages of blocks on a token map that shrinks between stages.

DualFormer and Video Swin are both configurations of it, and the skeleton in which schemes are compared:
`pyramid_tiny_<scheme>` is DualFormer-T with that scheme in every block, so that rows differ in the scheme alone. The
module is given a function that builds the attention of each block and knows no scheme. Tokens stay channels-last,
`b t h w d`, from the first embedding to the classifier.

Sources: DualFormer, arXiv:2112.04674, and Video Swin Transformer, arXiv:2106.13230, both with their released code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args, no_type_check

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

import attention_zoo
from attention_zoo import Grid, Tokens
from backbones.config import Config, attention_entries, choice, narrower, number, patterns, positive_integers
from backbones.family import Backbone, Family, Origin, families
from backbones.layouts import NATIVE_NAME, Layout
from backbones.mlp import Mlp
from backbones.parts import (
    ConditionalPosition,
    DropPath,
    PatchEmbedding,
    PatchMerging,
    channels_last,
    check_classes,
    initialise_linear,
    linear_rates,
    recomputed,
)
from backbones.residual import Attend, Block, PerToken, Residual

Downsampling = Literal["conv", "merge"]
Position = Literal["peg", "relative", "none"]
RELATIVE_BIAS = "relative_bias"  # the option by which a scheme takes a relative position bias
BuildAttention = Callable[[int, int, int, int, Grid], nn.Module]
"""(stage, block, dim, num_heads, grid) -> the attention scheme of that block."""

PATCH, POSITION_KERNEL = Grid(2, 4, 4), Grid(3, 3, 3)
SPATIAL_STEP = 2  # every stage after the first halves height and width


@no_type_check  # it checks its values itself and takes lists where it keeps tuples
@dataclass(frozen=True)
class PyramidConfig(Config):
    """A pyramid and the attention scheme of each of its blocks.

    Args:
        attention: the schemes that `stages` may name: `{"G": {"scheme": "global_pyramid", "scales": [[8, 7, 7]]}}`.
            A registered scheme with its default options needs no entry.
        stages: for each stage a pattern of names, repeated over its blocks: `("L", "G")` alternates.
        widths, num_heads, depths: one number for each stage; depths count single blocks.
        clip: the nominal input: frames, height and width in pixels. Sizes of parameters may follow from it.
        mlp_ratio: hidden width of the MLP over the width of the stage.
        patch: frames and pixels that become one token of the first stage.
        temporal_pooling: how many time steps each further stage joins. Space is halved in each.
        downsampling: between stages, "conv" is DualFormer's patch embedding, "merge" Video Swin's patch merging.
        position: "peg" is DualFormer's conditional position encoding after the first block of each stage; "relative" a
            relative position bias in every scheme that has this option; "none" adds nothing to what the schemes do.
        position_kernel: size of the convolution of "peg".
        drop_path: stochastic depth of the last block, growing linearly from 0 in the first.
        dropout: before the classifier.
        activation_checkpointing: in training, compute the blocks again in the backward pass instead of keeping their
            activations.

    Raises:
        ValueError: a value is impossible.
        UnknownName: a scheme or a name in `stages` is unknown; the nearest is given.
    """

    family = "pyramid"

    attention: dict[str, dict[str, Any]]
    stages: tuple[tuple[str, ...], ...]
    widths: tuple[int, ...]
    num_heads: tuple[int, ...]
    depths: tuple[int, ...]
    clip: Grid = Grid(32, 224, 224)
    in_channels: int = 3
    mlp_ratio: float = 4.0
    patch: Grid = Grid(2, 4, 4)
    temporal_pooling: tuple[int, ...] = (1, 1, 1)
    downsampling: Downsampling = "conv"
    position: Position = "peg"
    position_kernel: Grid = Grid(3, 3, 3)
    drop_path: float = 0.1
    dropout: float = 0.5
    activation_checkpointing: bool = False

    def __post_init__(self):
        for name in ("clip", "patch", "position_kernel"):
            self._set(name, Grid.of(getattr(self, name), name))
        if not all(n % 2 for n in self.position_kernel):
            raise ValueError(f"position_kernel {tuple(self.position_kernel)} must be odd along every axis: (3, 3, 3)")
        for name in ("widths", "num_heads", "depths"):
            self._set(name, positive_integers(name, getattr(self, name)))
        self._set("temporal_pooling", positive_integers("temporal_pooling", self.temporal_pooling, empty=True))
        self._set("in_channels", *positive_integers("in_channels", (self.in_channels,)))
        self._set("mlp_ratio", number("mlp_ratio", self.mlp_ratio, zero=False))
        for name in ("drop_path", "dropout"):
            self._set(name, number(name, getattr(self, name), zero=True, below=1.0))
        choice("downsampling", self.downsampling, get_args(Downsampling))
        choice("position", self.position, get_args(Position))
        if not isinstance(self.activation_checkpointing, bool):
            raise ValueError(f"activation_checkpointing {self.activation_checkpointing!r} is not true or false")
        self._set("attention", attention_entries(self.attention))
        self._set("stages", patterns("stages", self.stages, self.attention))
        self._check_lengths()
        for stage, (width, heads) in enumerate(zip(self.widths, self.num_heads, strict=True)):
            try:
                attention_zoo.check_heads(width, heads)
            except ValueError as error:
                raise ValueError(f"stage {stage}: {error}") from None
        if self.position == "relative":
            self._check_relative()

    def _check_lengths(self) -> None:
        count = len(self.widths)
        for name in ("num_heads", "depths", "stages"):
            if len(getattr(self, name)) != count:
                raise ValueError(
                    f"{name} {getattr(self, name)} has {len(getattr(self, name))} entries, but widths {self.widths} "
                    f"makes {count} stages; give one for each stage"
                )
        if len(self.temporal_pooling) != count - 1:
            raise ValueError(
                f"temporal_pooling {self.temporal_pooling} has {len(self.temporal_pooling)} entries, expected "
                f"{count - 1}: one for each stage after the first"
            )

    def _check_relative(self) -> None:
        used = {name: self.entry(name) for name in self.used()}
        schemes = {scheme for scheme, _ in used.values()}
        if not any(RELATIVE_BIAS in attention_zoo.options_of(scheme) for scheme in schemes):
            able = [n for n in attention_zoo.schemes.names() if RELATIVE_BIAS in attention_zoo.options_of(n)]
            raise ValueError(
                f"position 'relative' needs a scheme with the option {RELATIVE_BIAS}; this model uses "
                f"{', '.join(sorted(schemes))}; schemes that have it: {', '.join(able)}"
            )
        for name, (_, options) in used.items():
            if options.get(RELATIVE_BIAS) is False:
                raise ValueError(
                    f"position 'relative' contradicts attention.{name}.{RELATIVE_BIAS} = False; remove one of the two"
                )

    def attention_at(self, stage: int, block: int) -> tuple[str, dict[str, Any]]:
        """The scheme of a block and its options."""
        pattern = self.stages[stage]
        scheme, options = self.entry(pattern[block % len(pattern)])
        if self.position == "relative" and RELATIVE_BIAS in attention_zoo.options_of(scheme):
            options[RELATIVE_BIAS] = True
        return scheme, options

    def used(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for pattern in self.stages for name in pattern))

    def shrunk(self, width: float, depth: int | None, clip: Sequence[int]) -> PyramidConfig:
        """The width of a head shrinks with the width of its stage once a stage has a single head left. Stages keep at
        least one whole turn of their pattern, so that local and global attention still alternate.
        """
        depths = [
            blocks if depth is None else min(blocks, max(depth, len(pattern)))
            for blocks, pattern in zip(self.depths, self.stages, strict=True)
        ]
        sizes = [narrower(*size, width) for size in zip(self.widths, self.num_heads, strict=True)]
        narrow = dict(zip(("widths", "num_heads"), zip(*sizes, strict=True), strict=True)) if width != 1 else {}
        return self.changed({"clip": clip, "depths": depths} | narrow)

    def sizes(self) -> dict[str, Any]:
        grid, tokens = self.clip, []
        for step in self.steps():
            grid = grid.ceil_div(step)
            tokens.append(list(grid))
        return {"blocks": list(self.depths), "widths": list(self.widths), "tokens": tokens}

    def steps(self) -> list[Grid]:
        """What one token of each stage joins of the map before it."""
        return [self.patch, *(Grid(t, SPATIAL_STEP, SPATIAL_STEP) for t in self.temporal_pooling)]


class PyramidBlock(Block):
    """Attention, then MLP; each normed before and added to its input, with its own draw of stochastic depth."""

    def __init__(self, dim: int, grid: Grid, attention: nn.Module, mlp_ratio: float | int, drop_path: float | int):
        super().__init__(grid)
        self.norm1, self.attention = nn.LayerNorm(dim), attention
        self.norm2, self.mlp = nn.LayerNorm(dim), Mlp(dim, mlp_ratio)
        self.drop_path = DropPath(drop_path)

    def residuals(self) -> tuple[Residual, Residual]:
        return (
            Residual("attention", self.norm1, Attend(self.attention), drop_path=self.drop_path),
            Residual("mlp", self.norm2, PerToken(self.mlp), drop_path=self.drop_path),
        )


class Stage(nn.Module):
    """An embedding, then blocks on one token map; `position`, if any, follows the first block."""

    def __init__(self, embed: nn.Module, blocks: Sequence[PyramidBlock], position: ConditionalPosition | None):
        super().__init__()
        self.embed, self.blocks, self.position = embed, nn.ModuleList(blocks), position
        self.activation_checkpointing = False

    def forward(self, x: Float[Tensor, "b t h w i"]) -> Float[Tensor, "b pt ph pw d"]:
        tokens = Tokens.of_map(self.embed(x))
        recompute = self.activation_checkpointing and self.training and torch.is_grad_enabled()
        for i, block in enumerate(self.blocks):
            tokens = recomputed(block, tokens) if recompute else block(tokens)
            if i == 0 and self.position is not None:
                tokens = tokens.of(self.position(tokens.map))
        return tokens.map

    def macs(self) -> int:
        position = 0 if self.position is None else self.position.macs(self.embed.grid)
        return self.embed.macs() + sum(block.macs() for block in self.blocks) + position


class Pyramid(Backbone):
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
        check_classes(num_classes)
        self.clip, self.num_classes, self.in_channels = clip, num_classes, in_channels
        rates = iter(linear_rates(drop_path, sum(depths)))
        pooling = temporal_pooling or [1] * (len(widths) - 1)
        grid, width, stages = clip, in_channels, []
        for s, (dim, heads, depth) in enumerate(zip(widths, num_heads, depths, strict=True)):
            step = Grid(*patch) if s == 0 else Grid(pooling[s - 1], SPATIAL_STEP, SPATIAL_STEP)
            embed = (PatchMerging if merge and s else PatchEmbedding)(width, dim, grid, step)
            grid, width = embed.grid, dim
            blocks = [
                PyramidBlock(dim, grid, build_attention(s, b, dim, heads, grid), mlp_ratio, next(rates))
                for b in range(depth)
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

    def tokens(self, clip: Tensor) -> Tokens:
        x = channels_last(clip, self.in_channels, self.clip)
        for stage in self.stages:
            x = stage(x)
        return Tokens.of_map(x)

    def scores(self, tokens: Tokens) -> Float[Tensor, "b k"]:
        """Class scores of the averaged normed map; without a classifier, the average."""
        pooled = self.norm(tokens.map).mean(dim=(1, 2, 3))
        return pooled if self.classifier is None else self.classifier(self.dropout(pooled))

    def features(self, clip: Tensor) -> tuple[Float[Tensor, "b _d _t _h _w"], ...]:
        """The output map of the last block of each stage, channels first, before the final norm."""
        x, maps = channels_last(clip, self.in_channels, self.clip), []
        for stage in self.stages:
            x = stage(x)
            maps.append(rearrange(x, "b t h w d -> b d t h w"))
        return tuple(maps)

    def blocks(self) -> dict[str, Block]:
        """All blocks by name, from the first to the last."""
        return {
            f"stages.{s}.blocks.{b}": block
            for s, stage in enumerate(self.stages)
            for b, block in enumerate(stage.blocks)
        }

    def macs(self, classifier: bool = True) -> int:
        """Multiply-adds of one nominal clip in closed form: linear maps, convolutions, attention; padding included."""
        last = self.classifier.weight.numel() if classifier and self.classifier is not None else 0
        return sum(stage.macs() for stage in self.stages) + last

    def _initialise(self) -> None:
        """As both released codes do: linear maps truncated normal, convolutions as PyTorch makes them.

        A scheme whose parameters start in another way says so in `reset_parameters`, which has the last word.
        """
        initialise_linear(self)
        if self.classifier is not None:
            nn.init.normal_(self.classifier.weight, std=0.01)
        for block in self.blocks().values():
            if hasattr(block.attention, "reset_parameters"):
                block.attention.reset_parameters()


def build(config: PyramidConfig, num_classes: int, kernel: str) -> Pyramid:
    """A pyramid in which each block attends as the config says."""

    def build_attention(stage: int, block: int, dim: int, num_heads: int, grid: Grid):
        scheme, options = config.attention_at(stage, block)
        return attention_zoo.build(scheme, dim, num_heads, grid, kernel=kernel, **options)

    return Pyramid(
        config.clip,
        num_classes,
        build_attention,
        widths=config.widths,
        num_heads=config.num_heads,
        depths=config.depths,
        in_channels=config.in_channels,
        patch=config.patch,
        temporal_pooling=config.temporal_pooling,
        merge=config.downsampling == "merge",
        position_kernel=config.position_kernel if config.position == "peg" else None,
        mlp_ratio=config.mlp_ratio,
        drop_path=config.drop_path,
        dropout=config.dropout,
        activation_checkpointing=config.activation_checkpointing,
    )


# Named models

# Sources: DualFormer, arXiv:2112.04674, and the released configuration files, which alone give the heads. Depths count
# single blocks; the paper counts pairs.
DUALFORMER_SIZES = {
    "tiny": dict(widths=(64, 128, 256, 512), num_heads=(2, 4, 8, 16), depths=(2, 2, 10, 4), drop_path=0.1),
    "small": dict(widths=(96, 192, 384, 768), num_heads=(3, 6, 12, 24), depths=(2, 2, 18, 2), drop_path=0.2),
    "base": dict(widths=(128, 256, 512, 1024), num_heads=(4, 8, 16, 32), depths=(2, 2, 18, 2), drop_path=0.3),
}
# Sources: Video Swin, arXiv:2106.13230, and the released configuration files; none is released for the large one, whose
# drop path is the base's.
VIDEO_SWIN_SIZES = {
    "tiny": dict(widths=(96, 192, 384, 768), num_heads=(3, 6, 12, 24), depths=(2, 2, 6, 2), drop_path=0.1),
    "small": dict(widths=(96, 192, 384, 768), num_heads=(3, 6, 12, 24), depths=(2, 2, 18, 2), drop_path=0.1),
    "base": dict(widths=(128, 256, 512, 1024), num_heads=(4, 8, 16, 32), depths=(2, 2, 18, 2), drop_path=0.3),
    "large": dict(widths=(192, 384, 768, 1536), num_heads=(6, 12, 24, 48), depths=(2, 2, 18, 2), drop_path=0.3),
}
WINDOW, FINE, COARSE = (8, 7, 7), (8, 7, 7), (4, 4, 4)
IMAGE = dict(clip=Grid(1, 224, 224), patch=Grid(1, 4, 4))


def _dualformer_attention(window: tuple, fine: tuple, coarse: tuple) -> dict[str, dict[str, Any]]:
    """L: local windows; G2: two pooled copies; G1: one; W: the whole map, of the last stage."""
    return {
        "L": dict(scheme="local_window", window=window),
        "G2": dict(scheme="global_pyramid", scales=(fine, coarse)),
        "G1": dict(scheme="global_pyramid", scales=(fine,)),
        "W": dict(scheme="global_pyramid", scales=("whole",)),
    }


def _dualformer(size: str) -> PyramidConfig:
    return PyramidConfig(
        attention=_dualformer_attention(WINDOW, FINE, COARSE),
        stages=(("L", "G2"), ("L", "G2"), ("L", "G1"), ("L", "W")),
        **DUALFORMER_SIZES[size],
    )


def _dualformer_image(size: str) -> PyramidConfig:
    """The 2-D model before inflation, inferred: none is released."""
    return PyramidConfig(
        attention=_dualformer_attention(*((1, *scale[1:]) for scale in (WINDOW, FINE, COARSE))),
        stages=(("L", "G2"), ("L", "G2"), ("L", "G1"), ("L", "W")),
        position_kernel=Grid(1, 3, 3),
        **DUALFORMER_SIZES[size],
        **IMAGE,
    )


def _video_swin(size: str, window: tuple = WINDOW, **changes: Any) -> PyramidConfig:
    """As released: padding can be attended to, and clipped windows take the released rows of the bias table."""
    shared = dict(scheme="shifted_window", window=window, padding="attended", clipped_bias="published")
    return PyramidConfig(
        attention={"W": dict(shared, shift="none"), "S": dict(shared, shift="half")},
        stages=(("W", "S"),) * 4,
        downsampling="merge",
        position="none",
        **VIDEO_SWIN_SIZES[size],
        **changes,
    )


def _pyramid_tiny(scheme: str) -> PyramidConfig:
    if scheme == "global_pyramid":  # the scales that DualFormer has in each stage
        attention = _dualformer_attention(WINDOW, FINE, COARSE)
        stages = (("G2",), ("G2",), ("G1",), ("W",))
    elif scheme == "shifted_window":
        attention = {name: dict(scheme=scheme, shift=shift) for name, shift in (("W", "none"), ("S", "half"))}
        stages = (("W", "S"),) * 4
    else:
        attention, stages = {}, ((scheme,),) * 4
    used = {name for pattern in stages for name in pattern}
    attention = {name: entry for name, entry in attention.items() if name in used}
    return PyramidConfig(attention=attention, stages=stages, **DUALFORMER_SIZES["tiny"])


def models() -> dict[str, Callable[[], PyramidConfig]]:
    """Looked up at each call: a scheme registered later has its pyramid at once."""
    image_window = (1, *WINDOW[1:])
    return {
        **{f"dualformer_{size}": partial(_dualformer, size) for size in DUALFORMER_SIZES},
        **{f"dualformer_{size}_image": partial(_dualformer_image, size) for size in DUALFORMER_SIZES},
        **{f"video_swin_{size}": partial(_video_swin, size) for size in VIDEO_SWIN_SIZES},
        **{f"video_swin_{size}_image": partial(_video_swin, size, image_window, **IMAGE) for size in VIDEO_SWIN_SIZES},
        **{f"pyramid_tiny_{scheme}": partial(_pyramid_tiny, scheme) for scheme in attention_zoo.schemes.names()},
    }


# Names in checkpoints: the released code of DualFormer (sail-sg/dualformer) and of Video Swin
# (SwinTransformer/Video-Swin-Transformer), both on mmaction; image Swin differs from the latter in its classifier only.


def _next_stage(match: re.Match[str]) -> str:
    """Video Swin counts the merging after a stage to that stage, we to the next."""
    return f"stages.{int(match[1]) + 1}.embed."


NATIVE = Layout(NATIVE_NAME, r"^stages\.\d+\.embed\.")
DUALFORMER = Layout(
    "DualFormer (mmaction)",
    r"^patch_embeds\.\d+\.",
    renames=(
        (r"^patch_embeds\.(\d+)\.", r"stages.\1.embed."),
        (r"^pos_block\.(\d+)\.proj\.0\.", r"stages.\1.position."),
        (r"^blocks\.(\d+)\.(\d+)\.attn\.sr\.", r"stages.\1.blocks.\2.attention.priors.0.0."),
        (r"^blocks\.(\d+)\.(\d+)\.attn\.lr\.", r"stages.\1.blocks.\2.attention.priors.1."),
        (r"^blocks\.(\d+)\.(\d+)\.attn\.", r"stages.\1.blocks.\2.attention."),
        (r"^blocks\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"^cls_head\.fc_cls\.", "classifier."),
    ),
    ignored=(
        (r"^teacher\.", "the teacher of token labelling is no part of the model"),
        (r"^cls_head\.token_linear\.", "the token classifier serves training only"),
    ),
)
VIDEO_SWIN = Layout(
    "Video Swin (mmaction)",
    r"^layers\.\d+\.",
    renames=(
        (r"^patch_embed\.", "stages.0.embed."),
        (r"^layers\.(\d+)\.downsample\.", _next_stage),
        (
            r"^layers\.(\d+)\.blocks\.(\d+)\.attn\.relative_position_bias_table$",
            r"stages.\1.blocks.\2.attention.bias.table",
        ),
        (r"^layers\.(\d+)\.blocks\.(\d+)\.attn\.", r"stages.\1.blocks.\2.attention."),
        (r"^layers\.(\d+)\.blocks\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"^(?:cls_head\.fc_cls|head)\.", "classifier."),
    ),
    ignored=(
        (r"\.relative_position_index$", "follows from the window"),
        (r"\.attn_mask$", "follows from the window and the map"),
    ),
)

ORIGINS = {
    "dualformer": Origin("arXiv:2112.04674", "sail-sg/dualformer", "Apache-2.0", "K400, K600: README"),
    "video_swin": Origin(
        "arXiv:2106.13230", "SwinTransformer/Video-Swin-Transformer", "Apache-2.0", "K400, K600, SSv2: README"
    ),
    "pyramid_tiny": Origin("arXiv:2112.04674 (skeleton)"),
}

families.register("pyramid")(Family("pyramid", PyramidConfig, build, models, (NATIVE, DUALFORMER, VIDEO_SWIN), ORIGINS))
