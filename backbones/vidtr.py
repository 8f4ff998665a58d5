"""VidTr: separable attention over a grid with one more row and one more column, of class tokens.

Each place has a class token in time, each frame one in space; the token where the two lines meet is classified. Values
are mixed over time, then over space, with one map to queries, keys and values. The paper adds positions to queries and
keys alone, the released code to all three: it projects the values from what it is given as queries. So do we.

The compact variant has one class token and drops frames on the way: of each head and place those whose rows of
attention over time vary least. Class tokens pass its separable attention as they are; after the last of these blocks
the others attend jointly.

Source: Zhang et al., VidTr, arXiv:2104.11746, and amazon-science/gluonmm at commit 29d63b3a.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

import attention_zoo
from attention_zoo import Grid, Tokens
from attention_zoo.factorised_dot_product import over_space, over_time
from attention_zoo.kernels import AUTO
from backbones.column import Column, PreNormBlock
from backbones.columnar import from_image as column_from_image
from backbones.configs.vidtr import VidtrConfig, models
from backbones.family import Family, Origin, families
from backbones.layouts import NATIVE_NAME, Layout
from backbones.mlp import Mlp
from backbones.parts import PatchEmbedding, initialise_linear, linear_rates, resized
from backbones.residual import Residual


class CrossTokens(nn.Module):
    """The class tokens of frames and of places, and a position of each token of the larger grid.

    For clips of another size all are resized by the nearest; the one where row and column meet stays.
    """

    kind = "position"

    def __init__(self, dim: int, grid: Grid):
        super().__init__()
        self.grid, places = grid, grid.h * grid.w
        self.frames = nn.Parameter(torch.empty(grid.t, 1, dim))
        self.places = nn.Parameter(torch.empty(1, 1 + places, dim))
        self.table = nn.Parameter(torch.empty(1, (1 + grid.t) * (1 + places), dim))
        for table in self.parameters():
            nn.init.trunc_normal_(table, std=0.02)

    def forward(self, x: Float[Tensor, "b t h w d"]) -> Tokens:
        b, t, h, w, _ = x.shape
        places = self._over_places(self.places, h, w)
        head = torch.cat([places[:, :1], self._over_frames(self.frames, t).transpose(0, 1), places[:, 1:]], 1)
        return Tokens.of_map(x).of(x, head.expand(b, -1, -1))

    def positions(self, t: int, h: int, w: int) -> Float[Tensor, "rows columns d"]:
        table = self._over_places(self.table[0].unflatten(0, (1 + self.grid.t, -1)), h, w)
        return torch.cat([table[:1], self._over_frames(table[1:], t)])

    def _over_places(self, x: Float[Tensor, "r n d"], h: int, w: int) -> Float[Tensor, "r _n d"]:
        if (h, w) == self.grid[1:]:
            return x
        rest = resized(x[:, 1:].unflatten(1, self.grid[1:]).movedim(-1, 1), (h, w))
        return torch.cat([x[:, :1], rest.flatten(2).mT], 1)

    def _over_frames(self, x: Float[Tensor, "r n d"], t: int) -> Float[Tensor, "_r n d"]:
        return x if t == self.grid.t else resized(x.permute(1, 2, 0), t).permute(2, 0, 1)


class CrossAttention(nn.Module):
    """Separable attention of all tokens of the larger grid."""

    takes_prefix, like = True, "separable"

    def __init__(self, dim: int, num_heads: int, grid: Grid, positions: CrossTokens | None, kernel: str = AUTO):
        super().__init__()
        self.dim, self.num_heads, self.grid, self.kernel = dim, num_heads, grid, kernel
        self.out_grid = grid
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.shared = () if positions is None else (positions,)  # the model's: a tuple is no part of this one

    def forward(
        self, x: Float[Tensor, "b t h w d"], prefix: Float[Tensor, "b p d"]
    ) -> tuple[Float[Tensor, "b t h w d"], Float[Tensor, "b p d"]]:
        t, h, w = x.shape[1:4]
        row = torch.cat([prefix[:, :1], prefix[:, 1 + t :]], 1)
        whole = torch.cat([row[:, None], torch.cat([prefix[:, 1 : 1 + t, None], x.flatten(2, 3)], 2)], 1)
        tokens = whole.flatten(1, 2)
        if self.shared:
            tokens = tokens + self.shared[0].positions(t, h, w).flatten(0, 1)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        y = over_space(q, k, over_time(q, k, v, 1 + t, kernel=self.kernel), 1 + t, kernel=self.kernel)
        y = self.proj(y.flatten(2)).view(whole.shape)
        head = torch.cat([y[:, 0, :1], y[:, 1:, 0], y[:, 0, 1:]], 1)
        return y[:, 1:, 1:].unflatten(2, (h, w)), head

    def macs(self, prefix: int) -> int:
        """Four projections; scores and weighted sum over times, then over places, of the larger grid."""
        rows, columns, d = self.grid.t + 1, self.grid.h * self.grid.w + 1, self.dim
        return 4 * rows * columns * d * d + 2 * rows * columns * (rows + columns) * d

    def reach(self, prefix: int) -> Bool[Tensor, "n n"]:
        """Everything, in two steps."""
        return torch.ones(self.grid.tokens + prefix, self.grid.tokens + prefix, dtype=torch.bool)


class OneToken(nn.Module):
    """The class token of the compact variant, and a position of it and of each place at each time.

    For clips of another size the positions are resized by the nearest.
    """

    kind = "position"

    def __init__(self, dim: int, grid: Grid):
        super().__init__()
        self.grid = grid
        self.class_token = nn.Parameter(torch.empty(1, 1, dim))
        self.table = nn.Parameter(torch.empty(1, 1 + grid.tokens, dim))
        for table in self.parameters():
            nn.init.trunc_normal_(table, std=0.02)

    def forward(self, x: Float[Tensor, "b t h w d"]) -> Tokens:
        return Tokens.of_map(x).of(x, self.class_token.expand(len(x), -1, -1))

    def positions(self, t: int, h: int, w: int) -> tuple[Float[Tensor, "1 t h w d"], Float[Tensor, "1 1 d"]]:
        """Of the map, and of the class token."""
        rest = self.table[:, 1:].unflatten(1, tuple(self.grid))
        if (t, h, w) != self.grid:
            rest = resized(rest.movedim(-1, 1), (t, h, w)).movedim(1, -1)
        return rest, self.table[:, :1]


class CompactAttention(nn.Module):
    """Separable attention that may drop frames; a class token passes as it is.

    Rows of attention over time are softmax'ed once more where some are dropped, as in the released code. `kept` has the
    numbers of the frames that the last call left, "b m s k", for the way around.
    """

    takes_prefix, like = True, "separable"

    def __init__(
        self, dim: int, num_heads: int, grid: Grid, drop: int = 0, positions: OneToken | None = None, kernel: str = AUTO
    ):
        super().__init__()
        self.dim, self.num_heads, self.grid, self.drop, self.kernel = dim, num_heads, grid, drop, kernel
        self.out_grid = grid._replace(t=grid.t - drop)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.shared = () if positions is None else (positions,)  # the model's: a tuple is no part of this one
        self.kept: Int[Tensor, "b m s k"] | None = None

    def forward(
        self, x: Float[Tensor, "b t h w d"], prefix: Float[Tensor, "b 1 d"]
    ) -> tuple[Float[Tensor, "b k h w d"], Float[Tensor, "b 1 d"]]:
        t, h, w = x.shape[1:4]
        if self.shared:
            map_positions, class_positions = self.shared[0].positions(t, h, w)
            x, prefix = x + map_positions, prefix + class_positions
        q, k, v = self.qkv(x.flatten(1, 3)).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        if self.drop:
            q, k, v = self._on_fewer_frames(q, k, v, t)
            t = max(1, t - self.drop)
        else:
            v = over_time(q, k, v, t, kernel=self.kernel)
        y = self.proj(over_space(q, k, v, t, kernel=self.kernel).flatten(2))
        return y.unflatten(1, (t, h, w)), prefix

    def _on_fewer_frames(
        self, q: Float[Tensor, "b n m c"], k: Float[Tensor, "b n m c"], v: Float[Tensor, "b n m c"], t: int
    ) -> list[Float[Tensor, "b _n m c"]]:
        """Queries and keys of the frames that are kept, and what these gathered over time."""
        q, k, v = (rearrange(part, "b (t s) m c -> b m s t c", t=t) for part in (q, k, v))
        rows = (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1)
        self.kept = rows.var(-1, correction=0).topk(max(1, t - self.drop)).indices.sort(-1).values
        rows = rows.gather(-2, self.kept[..., None].expand(*self.kept.shape, t)).softmax(-1)
        parts = (_frames_of(q, self.kept), _frames_of(k, self.kept), rows @ v)
        return [rearrange(part, "b m s t c -> b (t s) m c") for part in parts]

    def macs(self, prefix: int = 1) -> int:
        """Projections, scores and weighted sums: over time of all frames, sums and space of those that are kept."""
        before, after, d, places = self.grid.tokens, self.out_grid.tokens, self.dim, self.grid.h * self.grid.w
        return (3 * before + after) * d * d + (before + after) * self.grid.t * d + 2 * after * places * d

    def reach(self, prefix: int = 1) -> Bool[Tensor, "n n"]:
        """Each token that is kept may see every token of the map; the class token itself."""
        reach = torch.ones(prefix + self.out_grid.tokens, prefix + self.grid.tokens, dtype=torch.bool)
        reach[:prefix], reach[:, :prefix] = False, False
        reach[:prefix, :prefix] = torch.eye(prefix, dtype=torch.bool)
        return reach


def _frames_of(x: Float[Tensor, "b m s t c"], kept: Int[Tensor, "b m s k"]) -> Float[Tensor, "b m s k c"]:
    return x.gather(3, kept[..., None].expand(*kept.shape, x.shape[-1]))


@dataclass(frozen=True)
class KeptFrames:
    """The way around attention that drops frames: of each head's channels those frames that its queries kept."""

    attention: CompactAttention

    def __call__(self, tokens: Tokens, normed: Tokens) -> Tokens:
        kept, (h, w) = self.attention.kept, tokens.grid[1:]
        x = rearrange(tokens.map, "b t h w (m c) -> b m (h w) t c", m=kept.shape[1])
        return tokens.of(rearrange(_frames_of(x, kept), "b m (h w) t c -> b t h w (m c)", h=h, w=w), tokens.head)

    def macs(self, grid: Grid, prefix: int) -> int:
        return 0


class VidtrBlock(PreNormBlock):
    def residuals(self) -> tuple[Residual, Residual]:
        first, second = super().residuals()
        drops = getattr(self.attention, "drop", 0)
        return (replace(first, skip=KeptFrames(self.attention)) if drops else first), second


class Vidtr(Column):
    """Clip in, class scores out; the compact variant has fewer frames from block to block."""

    def __init__(self, config: VidtrConfig, num_classes: int, kernel: str):
        super().__init__(config, num_classes)
        width, heads, compact = config.width, config.num_heads, bool(config.drop_layers)
        self.embed = PatchEmbedding(config.in_channels, width, config.clip, config.patch, normed=False)
        grid = self.embed.grid
        self.position, self.column = (OneToken if compact else CrossTokens)(width, grid), nn.ModuleList()
        prefix = 1 if compact else 1 + grid.t + grid.h * grid.w
        drops = dict(zip(config.drop_layers, config.drop_frames, strict=True))
        for b, rate in enumerate(linear_rates(config.drop_path, config.depth)):
            positions = self.position if b == 0 or config.positions_in_all else None
            if not compact:
                attention = CrossAttention(width, heads, grid, positions, kernel)
            elif b <= config.drop_layers[-1]:
                attention = CompactAttention(width, heads, grid, drops.get(b, 0), positions, kernel)
            else:
                attention = attention_zoo.build("full", width, heads, grid, kernel=kernel)
            self.column.append(VidtrBlock(width, grid, prefix, attention, Mlp.of(config, width), rate))
            grid = self.column[-1].out_grid
        self.end_in(nn.LayerNorm(width), width, config.dropout)
        initialise_linear(self)

    def embedded(self, clip: Tensor) -> Tokens:
        return self.position(self.embed(self.channels_last(clip)))

    def scores(self, tokens: Tokens) -> Float[Tensor, "b k"]:
        return self.classified(self.norm(tokens.head[:, 0]))


RELEASED = Layout(
    "VidTr",
    r"^encoder\.layers\.\d+\.self_attn\.",
    renames=(
        (r"^conv_stem\.", "embed.proj."),
        (r"^encoder\.layers\.(\d+)\.self_attn\.in_proj_", r"column.\1.attention.qkv."),
        (r"^encoder\.layers\.(\d+)\.self_attn\.out_proj\.", r"column.\1.attention.proj."),
        (r"^encoder\.layers\.(\d+)\.linear(\d)\.", r"column.\1.mlp.fc\2."),
        (r"^encoder\.layers\.(\d+)\.norm", r"column.\1.norm"),
        (r"^encoder\.norm\.", "norm."),
        (r"^fc\.", "classifier."),
        (r"^cls$", "position.class_token"),
        (r"^cls_s$", "position.frames"),
        (r"^cls_t$", "position.places"),
        (r"^pos_embedding$", "position.table"),
    ),
)


def of_image(model: Vidtr, image: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An image ViT's tensors under VidTr's names; its positions for each row, its class token for all class tokens."""
    tensors = dict(image)
    token, space = tensors.pop("position.class_token", None), tensors.pop("position.space", None)
    for old, new in ((r"\.attention\.0\.", ".attention."), (r"\.norms\.0\.", ".norm1."), (r"\.mlp_norm\.", ".norm2.")):
        tensors = {re.sub(old, new, key): tensor for key, tensor in tensors.items()}
    if token is None or space is None:
        return tensors
    grid = model.position.grid
    if isinstance(model.position, OneToken):
        tensors["position.class_token"] = token
        tensors["position.table"] = torch.cat([space[:, :1], space[:, 1:].repeat(1, grid.t, 1)], 1)
    else:
        tensors["position.frames"] = token.repeat(grid.t, 1, 1)
        tensors["position.places"] = token.repeat(1, space.shape[1], 1)
        tensors["position.table"] = space.repeat(1, 1 + grid.t, 1)
    return tensors


def from_image(model: Vidtr, key: str, image: Mapping[str, Tensor]) -> tuple[str, Tensor | None]:
    if not key.startswith("position."):
        return column_from_image(model, key, image)
    tensor = image.get(key)
    if tensor is None:
        return "missing", None
    return ("inflated", tensor) if tensor.shape == model.get_parameter(key).shape else ("mismatched", None)


NATIVE = Layout(NATIVE_NAME, r"^column\.\d+\.attention\.qkv\.")
ORIGINS = {"vidtr": Origin("arXiv:2104.11746", "amazon-science/gluonmm", "Apache-2.0", "K400: README")}
families.register("vidtr")(
    Family("vidtr", VidtrConfig, Vidtr, models, (NATIVE, RELEASED), ORIGINS, from_image, of_image)
)
