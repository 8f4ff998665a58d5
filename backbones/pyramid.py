"""The hierarchical family: stages of blocks on a token map that shrinks between stages.

DualFormer and Video Swin are both configurations of it, and the skeleton in which schemes are compared:
`pyramid_tiny_<scheme>` is DualFormer-T with that scheme in every block, so that rows differ in the scheme alone. Tokens
stay channels-last, `b t h w d`, from the first embedding to the classifier.

Sources: DualFormer, arXiv:2112.04674, and Video Swin Transformer, arXiv:2106.13230, both with their released code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

import attention_zoo
from attention_zoo import Grid, Tokens
from backbones.column import Classified, PreNormBlock
from backbones.configs.pyramid import PyramidConfig, models
from backbones.family import Family, Origin, families
from backbones.layouts import NATIVE_NAME, Layout
from backbones.mlp import Mlp
from backbones.parts import (
    ConditionalPosition,
    ConvolutionStem,
    PatchEmbedding,
    PatchMerging,
    SpaceTimeAdapter,
    initialise_linear,
    linear_rates,
    through,
)
from backbones.residual import Attend, Block, Residual


class PositionedBlock(PreNormBlock):
    """A block that begins with a conditional position encoding."""

    def __init__(self, position: ConditionalPosition, *parts: Any):
        super().__init__(*parts)
        self.position = position

    def forward(self, tokens: Tokens) -> Tokens:
        return super().forward(tokens.of(self.position(tokens.map)))

    def macs(self) -> int:
        return super().macs() + self.position.macs(self.grid)


class AdaptedBlock(PreNormBlock):
    """A block that begins with an adapter, which has no norm."""

    def __init__(self, adapter: SpaceTimeAdapter, *parts: Any):
        super().__init__(*parts)
        self.adapter = adapter

    def residuals(self) -> tuple[Residual, ...]:
        return Residual("adapter", nn.Identity(), Attend(self.adapter)), *super().residuals()


class Stage(nn.Module):
    """An embedding, then blocks on one token map; `position`, if any, follows the first block."""

    def __init__(self, embed: nn.Module, blocks: Sequence[Block], position: ConditionalPosition | None):
        super().__init__()
        self.embed, self.blocks, self.position = embed, nn.ModuleList(blocks), position

    def forward(self, x: Float[Tensor, "b t h w i"], owner: nn.Module) -> Float[Tensor, "b pt ph pw d"]:
        """`owner` says by `activation_checkpointing` whether activations are kept."""
        tokens = through(self.blocks[:1], Tokens.of_map(self.embed(x)), owner)
        if self.position is not None:
            tokens = tokens.of(self.position(tokens.map))
        return through(self.blocks[1:], tokens, owner).map

    def macs(self) -> int:
        position = 0 if self.position is None else self.position.macs(self.embed.grid)
        return self.embed.macs() + sum(block.macs() for block in self.blocks) + position


class Pyramid(Classified):
    """Clip in, class scores out. `forward` takes clips of other sizes than the nominal one where the schemes can."""

    def __init__(self, config: PyramidConfig, num_classes: int, kernel: str):
        super().__init__(config, num_classes)
        rates = iter(linear_rates(config.drop_path, sum(config.depths)))
        grid, width, self.stages = config.clip, config.in_channels, nn.ModuleList()
        sizes = zip(config.widths, config.num_heads, config.depths, config.steps(), strict=True)
        for s, (dim, heads, depth, step) in enumerate(sizes):
            embed = embedding(s, config)(width, dim, grid, step)
            grid, width, blocks = embed.grid, dim, []
            for b in range(depth):
                scheme, options = config.attention_at(s, b)
                attention = attention_zoo.build(scheme, dim, heads, grid, kernel=kernel, **options)
                parts = dim, grid, 0, attention, Mlp.of(config, dim), next(rates)
                if config.position == "every":
                    blocks.append(PositionedBlock(ConditionalPosition(dim, config.position_kernel), *parts))
                elif config.st_adapter is not None:
                    adapter = SpaceTimeAdapter(dim, max(1, round(config.st_adapter * dim)), grid)
                    blocks.append(AdaptedBlock(adapter, *parts))
                else:
                    blocks.append(PreNormBlock(*parts))
            position = ConditionalPosition(dim, config.position_kernel) if config.position == "peg" else None
            self.stages.append(Stage(embed, blocks, position))
        self.end_in(nn.LayerNorm(width), width, config.dropout)
        self._initialise()

    @property
    def grids(self) -> tuple[Grid, ...]:
        """The token map of each stage, for the nominal clip."""
        return tuple(stage.embed.grid for stage in self.stages)

    def tokens(self, clip: Tensor) -> Tokens:
        x = self.channels_last(clip)
        for stage in self.stages:
            x = stage(x, self)
        return Tokens.of_map(x)

    def scores(self, tokens: Tokens) -> Float[Tensor, "b k"]:
        """Class scores of the averaged normed map; without a classifier, the average."""
        return self.classified(self.norm(tokens.map).mean(dim=(1, 2, 3)))

    def features(self, clip: Tensor) -> tuple[Float[Tensor, "b _d _t _h _w"], ...]:
        """The output map of the last block of each stage, channels first, before the final norm."""
        x, maps = self.channels_last(clip), []
        for stage in self.stages:
            x = stage(x, self)
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
        return sum(stage.macs() for stage in self.stages) + self.classifier_macs(classifier)

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


def embedding(stage: int, config: PyramidConfig) -> Callable[..., nn.Module]:
    """What turns pixels, or the tokens of the stage before, into the tokens of a stage."""
    if stage == 0:
        return ConvolutionStem if config.stem == "convolutions" else PatchEmbedding
    return PatchMerging if config.downsampling == "merge" else PatchEmbedding


# Named models


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
    "Video Swin (mmaction), image Swin",
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
        (r"^norm\d\.", "norm."),  # mmaction2 from 1.0 on names the last norm after its stage
        (r"^(?:cls_head\.fc_cls|head)\.", "classifier."),
    ),
    ignored=(
        (r"\.relative_position_index$", "follows from the window"),
        (r"\.attn_mask$", "follows from the window and the map"),
    ),
)

SWIN_TIMM = replace(
    VIDEO_SWIN,
    name="Swin (timm)",
    sign=r"^head\.fc\.|^layers\.3\.downsample\.",
    renames=(  # timm counts the merging to the stage after it, as we do
        (r"^layers\.(\d+)\.downsample\.", r"stages.\1.embed."),
        (r"^head\.fc\.", "classifier."),
        *VIDEO_SWIN.renames,
    ),
)

# The names of files of transformers, and those that models of its version 5 have in memory.
OUR_BLOCK = r"stages.\1.blocks.\2."
SWIN_BLOCK = r"^(?:swin\.)?encoder\.layers\.(\d+)\.blocks\.(\d+)\."
SWIN_TRANSFORMERS = Layout(
    "Swin (transformers)",
    SWIN_BLOCK,
    renames=(
        (r"^(?:swin\.)?embeddings\.patch_embeddings\.projection\.", "stages.0.embed.proj."),
        (r"^(?:swin\.)?embeddings\.norm\.", "stages.0.embed.norm."),
        (r"^(?:swin\.)?encoder\.layers\.(\d+)\.downsample\.", _next_stage),
        *(
            (rf"{SWIN_BLOCK}attention\.(?:self\.{role}|{role[0]}_proj)\.(.*)$", rf"{OUR_BLOCK}attention.qkv.\3#{i}")
            for i, role in enumerate(("query", "key", "value"))
        ),
        *(
            (SWIN_BLOCK + theirs, OUR_BLOCK + ours)
            for theirs, ours in (
                (r"attention\.\w+\.relative_position_bias_table$", "attention.bias.table"),
                (r"attention\.(?:output\.dense|o_proj)\.", "attention.proj."),
                (r"layernorm_before\.", "norm1."),
                (r"layernorm_after\.", "norm2."),
                (r"(?:intermediate\.dense|mlp\.fc1)\.", "mlp.fc1."),
                (r"(?:output\.dense|mlp\.fc2)\.", "mlp.fc2."),
            )
        ),
        (r"^(?:swin\.)?layernorm\.", "norm."),
    ),
    ignored=VIDEO_SWIN.ignored,
)

ORIGINS = {
    "dualformer": Origin("arXiv:2112.04674", "sail-sg/dualformer", "Apache-2.0", "K400, K600: README"),
    "video_swin": Origin(
        "arXiv:2106.13230", "SwinTransformer/Video-Swin-Transformer", "Apache-2.0", "K400, K600, SSv2: README"
    ),
    "st_adapter": Origin("arXiv:2206.13559", "linziyi96/st-adapter", "Apache-2.0", "none of Swin"),
    "pyramid_uniformer": Origin("arXiv:2201.09450 (blocks)", "Sense-X/UniFormer", "Apache-2.0"),
    "pyramid_tiny": Origin("arXiv:2112.04674 (skeleton)"),
}

LAYOUTS = (NATIVE, DUALFORMER, SWIN_TIMM, SWIN_TRANSFORMERS, VIDEO_SWIN)
families.register("pyramid")(Family("pyramid", PyramidConfig, Pyramid, models, LAYOUTS, ORIGINS))
