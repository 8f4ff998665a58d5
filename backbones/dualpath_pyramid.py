"""DualPath on a pyramid of windows: one frozen image Swin sees eight frames and mosaics; only adapters learn.

The paths, the adapters and the head are those of `dualpath`; names of all else are those of the image pyramid, so its
weights load as they are.

Source: DualPath, arXiv:2303.09857, appendix B.1, which says: Swin-B of ImageNet-21K, adapters of 128 at the blocks
whose windows are not shifted, one more before attention of the temporal path on SSv2. No code of it is released. What
the appendix leaves open is a guess here, as near to the ViT's as there is:

- positions: the frames have Swin's own alone, its frozen tables of relative bias; the mosaics have besides, where Swin
  adds its optional absolute ones (after the patch embedding), learned ones and sinusoids of the frames' numbers;
- features: the normed map of each picture, averaged over its places and then over the pictures of a path;
- head: two linear maps, from both paths' 1024 to 1024 and to the classes.

So 10.42 M learn of 97.16 M (SSv2, five adapters), where 11 M of 97 M are printed.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from attention_zoo import Grid, Tokens
from backbones import pyramid
from backbones.configs.dualpath_pyramid import DualPathPyramidConfig, models
from backbones.dualpath import DualPathBlock, Framesets, Scores, frame_sinusoid
from backbones.family import Family, Origin, families
from backbones.layouts import NATIVE_NAME, Layout
from backbones.parts import linear_rates, through


class MosaicPositions(nn.Module):
    """Learned positions of a mosaic's patches, and sine and cosine of the numbers of the frames that they show."""

    kind = "position"

    def __init__(self, dim: int, grid: Grid, mosaics: int):
        super().__init__()
        self.of_mosaic = nn.Parameter(dim**-0.5 * torch.randn(grid.tokens, dim))
        numbers = frame_sinusoid(mosaics, grid, dim)[:, 1:]  # without a class token's
        self.register_buffer("numbers", numbers.unflatten(1, tuple(grid)), persistent=False)

    def forward(self, mosaics: Float[Tensor, "p 1 h w d"]) -> Float[Tensor, "p 1 h w d"]:
        """Of all pictures, those of a clip side by side."""
        positions = self.numbers + self.of_mosaic.view(self.numbers.shape[1:])
        return mosaics + positions.repeat(len(mosaics) // len(positions), 1, 1, 1, 1)


class Stage(nn.Module):
    """An embedding of frames and mosaics alike, then blocks."""

    def __init__(self, embed: nn.Module, blocks: list[DualPathBlock]):
        super().__init__()
        self.embed, self.blocks = embed, nn.ModuleList(blocks)

    def macs(self) -> int:
        tokens = self.blocks[0].frames.tokens + self.blocks[0].mosaics.tokens
        return tokens * self.embed.macs() // self.embed.grid.tokens + sum(block.macs() for block in self.blocks)


class DualPathPyramid(Framesets):
    """Clip in, class scores out; see `DualPathPyramidConfig`."""

    def __init__(self, config: DualPathPyramidConfig, num_classes: int, kernel: str):
        super().__init__(config, num_classes)
        rates = iter(linear_rates(config.drop_path, sum(config.depths)))
        grid, width, self.stages = config.frame, config.in_channels, nn.ModuleList()
        stages = zip(config.widths, config.num_heads, config.depths, config.steps(), config.maps(), strict=True)
        for s, (dim, heads, depth, step, maps) in enumerate(stages):
            embed = pyramid.embedding(s, config)(width, dim, grid, step)
            blocks = [
                DualPathBlock(
                    config, dim, heads, *maps, config.attention_at(s, b), kernel, next(rates),
                    class_tokens=0, adapted=config.adapts(s, b),
                )
                for b in range(depth)
            ]  # fmt: skip
            grid, width = maps[0], dim
            self.stages.append(Stage(embed, blocks))
        self.position = MosaicPositions(config.widths[0], config.maps()[0][1], config.mosaics)
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(config.dropout)
        self.classifier = Scores(width, num_classes) if num_classes else None
        self._initialise()

    def tokens(self, clip: Tensor) -> Tokens:
        frames, mosaics = (rearrange(part, "b i s h w -> (b s) 1 h w i") for part in self.pictures(clip))
        for s, stage in enumerate(self.stages):
            frames, mosaics = stage.embed(frames), stage.embed(mosaics)
            mosaics = self.position(mosaics) if s == 0 else mosaics
            block = stage.blocks[0]
            tokens = through(stage.blocks, block.together(Tokens.of_map(mosaics), Tokens.of_map(frames)), self)
            mosaics, frames = (part.map for part in block.apart(tokens))
        return tokens

    def scores(self, tokens: Tokens) -> Float[Tensor, "b k"]:
        """Of the averaged normed maps of the mosaics, then of the frames; each path's are averaged."""
        paths = (self.norm(path.map).mean((1, 2, 3)) for path in self.stages[-1].blocks[0].apart(tokens))
        return self.classified(torch.cat([path.unflatten(0, (len(tokens.x), -1)).mean(1) for path in paths], 1))

    def blocks(self) -> dict[str, DualPathBlock]:
        return {
            f"stages.{s}.blocks.{b}": block
            for s, stage in enumerate(self.stages)
            for b, block in enumerate(stage.blocks)
        }

    def macs(self, classifier: bool = True) -> int:
        last = self.classifier.macs() if classifier and self.classifier is not None else 0
        return sum(stage.macs() for stage in self.stages) + last


families.register("dualpath_pyramid")(
    Family(
        "dualpath_pyramid",
        DualPathPyramidConfig,
        DualPathPyramid,
        models,
        (Layout(NATIVE_NAME, r"^stages\.\d+\.blocks\.\d+\.adapters\."),),
        origins={"dualpath_swin": Origin("arXiv:2303.09857, appendix B.1", "none released", "-", "none")},
    )
)
