"""The family whose attention changes the grid: MViT and MViTv2, one column of blocks that pool as they go.

A block pools its queries and, at the beginning of a stage, leaves a quarter of the tokens; the width doubles there, in
the MLP before (MViT) or inside of attention (MViTv2). Both skip paths follow.

Sources: MViT, arXiv:2104.11227, MViTv2, arXiv:2112.01526, and their released code, facebookresearch/SlowFast at commit
287ec007; MultiTrain, arXiv:2209.12362, and JunweiLiang/MultiTrain at commit 16723114, a variant of MViTv2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool3d

import attention_zoo
from attention_zoo import Grid, Tokens
from attention_zoo.grid import pooling_kernel
from attention_zoo.pooling_attention import Pool
from backbones.column import Column
from backbones.configs.multiscale import BlockSizes, MultiscaleConfig, models
from backbones.family import Family, Origin, families
from backbones.layouts import NATIVE_NAME, Layout
from backbones.mlp import Mlp
from backbones.parts import ClassToken, DropPath, initialise_linear, linear_rates, of_image_model
from backbones.residual import Attend, Block, PerToken, Residual

EPS = 1e-6


class PooledSkip(nn.Module):
    """The way around attention or MLP: a linear map of the tokens, normed or `raw`, where the width changes, and the
    largest of each neighbourhood where the grid does; class tokens are not pooled.
    """

    def __init__(self, dim: int, out_dim: int, stride: Grid, raw: bool = False):
        super().__init__()
        self.raw = raw
        self.proj = nn.Linear(dim, out_dim) if dim != out_dim else None
        self.stride = stride

    def forward(self, tokens: Tokens, normed: Tokens) -> Tokens:
        kept = tokens if self.proj is None else tokens.with_x(self.proj((tokens if self.raw else normed).x))
        if max(self.stride) == 1:
            return kept
        kernel = pooling_kernel(self.stride)
        maps = rearrange(kept.map, "b t h w d -> b d t h w")
        maps = max_pool3d(maps, tuple(kernel), tuple(self.stride), tuple(k // 2 for k in kernel))
        return kept.of(rearrange(maps, "b d t h w -> b t h w d"), kept.head)

    def macs(self, grid: Grid, prefix: int) -> int:
        return 0 if self.proj is None else (grid.tokens + prefix) * self.proj.weight.numel()


class MultiscaleBlock(Block):
    """Pooling attention, then MLP, each with the way around it that its grid and width ask for."""

    def __init__(self, config: MultiscaleConfig, sizes: BlockSizes, attention: nn.Module, drop_path: float):
        super().__init__(sizes.grid, int(config.class_token))
        self.norm1, self.attention = nn.LayerNorm(sizes.width, EPS), attention
        self.norm2, self.mlp = nn.LayerNorm(sizes.inner, EPS), Mlp.of(config, sizes.inner, sizes.out)
        self.drop_path = DropPath(drop_path)
        # One of the two ways around has weights at most: `skip`, around the MLP where that widens.
        self.widens_mlp = sizes.inner != sizes.out
        around = _skip(sizes.width, sizes.inner, sizes.query_stride, config.widening_skip == "raw")
        self.skip = PooledSkip(sizes.inner, sizes.out, Grid(1, 1, 1)) if self.widens_mlp else around
        self.pool = around if self.widens_mlp else None

    def residuals(self) -> tuple[Residual, Residual]:
        first, second = (self.pool, self.skip) if self.widens_mlp else (self.skip, None)
        return (
            Residual("attention", self.norm1, Attend(self.attention), first, self.drop_path),
            Residual("mlp", self.norm2, PerToken(self.mlp), second, self.drop_path),
        )


def _skip(dim: int, out_dim: int, stride: Grid, raw: bool) -> PooledSkip | None:
    return None if dim == out_dim and max(stride) == 1 else PooledSkip(dim, out_dim, stride, raw)


class OverlappingEmbedding(nn.Module):
    """Overlapping patches become tokens: one convolution, no norm."""

    kind = "embedding"

    def __init__(self, in_dim: int, dim: int, kernel: Grid, stride: Grid, grid: Grid):
        super().__init__()
        self.grid = grid
        self.proj = nn.Conv3d(in_dim, dim, tuple(kernel), tuple(stride), tuple(k // 2 for k in kernel))

    def forward(self, x: Float[Tensor, "b t h w i"]) -> Float[Tensor, "b _t _h _w d"]:
        return rearrange(self.proj(rearrange(x, "b t h w i -> b i t h w")), "b d t h w -> b t h w d")

    def macs(self) -> int:
        return self.grid.tokens * self.proj.weight.numel()


class SeparablePosition(nn.Module):
    """A learned table over space and one over time, both added; an entry of its own for class tokens.

    For clips of another size the tables are interpolated, the nearest entry in time and bicubic in space.
    """

    kind = "position"

    def __init__(self, dim: int, grid: Grid, class_token: bool):
        super().__init__()
        self.grid = grid
        self.space = nn.Parameter(torch.empty(1, grid.h * grid.w, dim))
        self.time = nn.Parameter(torch.empty(1, grid.t, dim))
        self.of_class = nn.Parameter(torch.empty(1, 1, dim)) if class_token else None
        for table in self.parameters():
            nn.init.trunc_normal_(table, std=0.02)

    def forward(self, x: Float[Tensor, "b t h w d"]) -> Float[Tensor, "b t h w d"]:
        t, h, w = x.shape[1:4]
        space = self.space.unflatten(1, (self.grid.h, self.grid.w))
        if (h, w) != (self.grid.h, self.grid.w):
            space = interpolate(space.movedim(-1, 1), size=(h, w), mode="bicubic", align_corners=False).movedim(1, -1)
        time = self.time
        if t != self.grid.t:
            time = interpolate(time.mT, size=t, mode="nearest").mT
        return x + (space[:, None] + time[:, :, None, None])


class Multiscale(Column):
    """Clip in, class scores out, over a column of pooling blocks; see `MultiscaleConfig`."""

    def __init__(self, config: MultiscaleConfig, num_classes: int, kernel: str):
        super().__init__(config, num_classes)
        self.embed = OverlappingEmbedding(
            config.in_channels, config.width, config.patch_kernel, config.patch, config.grid
        )
        self.class_token = ClassToken(config.width) if config.class_token else None
        separable = config.position == "separable"
        self.position = SeparablePosition(config.width, config.grid, config.class_token) if separable else None
        sizes = config.block_sizes()
        rates = linear_rates(config.drop_path, len(sizes))
        self.column = nn.ModuleList(
            MultiscaleBlock(config, size, _attention(config, size, kernel), rate)
            for size, rate in zip(sizes, rates, strict=True)
        )
        self.end_in(nn.LayerNorm(sizes[-1].out, EPS), sizes[-1].out, config.dropout)
        (self._initialise if config.start == "mvit" else self._initialise_plainly)()

    def scores(self, tokens: Tokens) -> Float[Tensor, "b k"]:
        """Class scores; the released code applies a softmax to them in evaluation, which keeps their order."""
        tokens = tokens.with_x(self.norm(tokens.x))
        return self.classified(tokens.map.mean(dim=(1, 2, 3)) if tokens.head is None else tokens.head[:, 0])

    def embedded(self, clip: Tensor) -> Tokens:
        x = self.embed(self.channels_last(clip))
        x = x if self.position is None else self.position(x)
        if self.class_token is None:
            return Tokens.of_map(x)
        head = self.class_token(len(x))
        return Tokens.of_map(x).of(x, head if self.position is None else head + self.position.of_class)

    def _initialise(self) -> None:
        """As the released code: weights truncated normal, biases of linear maps and of norms 0.02, not 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv3d):
                nn.init.trunc_normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
                nn.init.constant_(module.bias, 0.02)

    def _initialise_plainly(self) -> None:
        initialise_linear(self)
        for module in self.modules():
            if isinstance(module, Pool):
                nn.init.kaiming_uniform_(module.weight, a=5**0.5)  # as PyTorch starts convolutions


def _attention(config: MultiscaleConfig, sizes: BlockSizes, kernel: str) -> nn.Module:
    scheme, options = config.entry("P")
    derived = dict(
        query_kernel=sizes.query_kernel,
        query_stride=sizes.query_stride,
        key_kernel=config.pool_kernel,
        key_stride=sizes.key_stride,
        out_dim=sizes.inner,
        residual=config.residual,
        relative=config.position == "relative",
        eps=config.pool_eps,
    )
    return attention_zoo.build(scheme, sizes.width, sizes.heads, sizes.grid, kernel=kernel, **(derived | options))


# Named models. Sources: the released configuration files of SlowFast; MViT-B 32x3 and 64x3 of the paper's tables have
# none and are the 16-frame file with another clip.


NATIVE = Layout(NATIVE_NAME, r"^column\.\d+\.")
RELEASED = Layout(
    "MViT (SlowFast)",
    r"^blocks\.\d+\.attn\.(?:pool_[qkv]|norm_[qkv])\.|^pos_embed_spatial$",
    renames=(
        (r"^patch_embed\.", "embed."),
        (r"^cls_token$", "class_token.token"),
        (r"^pos_embed_spatial$", "position.space"),
        (r"^pos_embed_temporal$", "position.time"),
        (r"^pos_embed_class$", "position.of_class"),
        (r"^head\.projection\.", "classifier."),
        (r"^blocks\.(\d+)\.attn\.norm_([qkv])\.", r"column.\1.attention.pool_\2.norm."),
        (r"^blocks\.(\d+)\.attn\.rel_pos_([thw])$", r"column.\1.attention.tables.\2"),
        (r"^blocks\.(\d+)\.attn\.", r"column.\1.attention."),
        (r"^blocks\.(\d+)\.proj(?:_max_pool)?\.", r"column.\1.skip.proj."),
        (r"^blocks\.(\d+)\.", r"column.\1."),
    ),
    note="the released model gives probabilities in evaluation, a softmax of the class scores that this one gives",
)
MULTI = replace(
    RELEASED,
    name="MultiTrain",
    sign=r"^blocks\.\d+\.proj_max_pool\.",
    note="",
    renames=((r"^head\.heads\.", "classifier."), *RELEASED.renames),  # of each data set, see `backbones.sets`
    ignored=(
        (
            r"^(?:head\.cross_dataset_heads|expander)\.",
            "projections and expander belong to the training, see harness.training.many_sets",
        ),
    ),
)

IN_TIME = (".tables.t", "position.time")  # what an image model has one row of, or none


def from_image(model: Multiscale, key: str, image: Mapping[str, Tensor]) -> tuple[str, Tensor | None]:
    """The rule of MViTv2's paper for one tensor: convolutions, those that pool included, see their central frame alone,
    and neither an offset nor a place in time makes a difference: each has the row of the image model, or zeros.
    """
    target, tensor = model.state_dict()[key], image.get(key)
    if key.endswith(IN_TIME):
        row = torch.zeros_like(target) if tensor is None else tensor
        return ("inflated", row.expand_as(target)) if row.shape[-2] == 1 or tensor is None else ("mismatched", None)
    return of_image_model(key, target, tensor)


ORIGINS = {
    "mvit_base": Origin("arXiv:2104.11227", "facebookresearch/SlowFast", "Apache-2.0", "K400, K600: MODEL_ZOO"),
    "mvit_v2": Origin("arXiv:2112.01526", "facebookresearch/SlowFast", "Apache-2.0", "K400, SSv2: MODEL_ZOO"),
    "multitrain": Origin("arXiv:2209.12362", "JunweiLiang/MultiTrain", "Apache-2.0", "README"),
}
families.register("multiscale")(
    Family("multiscale", MultiscaleConfig, Multiscale, models, (NATIVE, MULTI, RELEASED), ORIGINS, from_image)
)
