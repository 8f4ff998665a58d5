"""VidTr: separable attention over a grid with one more row and one more column, of class tokens.

Each place has a class token in time, each frame one in space; the token where the two lines meet is classified. Values
are mixed over time, then over space, with one map to queries, keys and values. The paper adds positions to queries and
keys alone, the released code to all three: it projects the values from what it is given as queries. So do we.

Source: Zhang et al., VidTr, arXiv:2104.11746, and amazon-science/gluonmm at commit 29d63b3a. Its compact variant, which
drops frames on the way, is not here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, no_type_check

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attention_zoo import Grid, Tokens
from attention_zoo.factorised_dot_product import over_space, over_time
from attention_zoo.kernels import AUTO
from backbones.column import Column, PreNormBlock
from backbones.columnar import ClassToken, ColumnarConfig, Position
from backbones.columnar import from_image as column_from_image
from backbones.family import Family, Origin, families
from backbones.layouts import NATIVE_NAME, Layout
from backbones.mlp import Activation, Mlp
from backbones.parts import PatchEmbedding, initialise_linear, linear_rates, resized


@no_type_check  # it checks its values itself and takes lists where it keeps tuples
@dataclass(frozen=True)
class VidtrConfig(ColumnarConfig):
    """A columnar config of separable attention alone, whose class tokens and positions are VidTr's own.

    Args:
        positions_in_all: whether every block adds the positions to what it attends with, not the first alone; the
            released models of 16 frames do.
    """

    family = "vidtr"

    attention: dict[str, dict[str, Any]] = field(default_factory=dict)
    blocks: tuple[tuple[str, ...], ...] = (("separable",),)
    class_token: ClassToken = "none"
    position: Position = "joint"
    activation: Activation = "relu"
    positions_in_all: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.attention or self.blocks != (("separable",),):
            raise ValueError(f"blocks {self.blocks} of attention {self.attention}: VidTr has [['separable']] alone")
        if (self.class_token, self.position) != ("none", "joint"):
            raise ValueError(
                f"class_token {self.class_token!r}, position {self.position!r}: "
                "VidTr has its own; write 'none' and 'joint'"
            )


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


class Vidtr(Column):
    """Clip in, class scores out."""

    def __init__(self, config: VidtrConfig, num_classes: int, kernel: str):
        super().__init__(config, num_classes)
        width = config.width
        self.embed = PatchEmbedding(config.in_channels, width, config.clip, config.patch, normed=False)
        grid = self.embed.grid
        self.position = CrossTokens(width, grid)
        prefix = 1 + grid.t + grid.h * grid.w
        self.column = nn.ModuleList()
        for b, rate in enumerate(linear_rates(config.drop_path, config.depth)):
            positions = self.position if b == 0 or config.positions_in_all else None
            attention = CrossAttention(width, config.num_heads, grid, positions, kernel)
            self.column.append(PreNormBlock(width, grid, prefix, attention, Mlp.of(config, width), rate))
        self.end_in(nn.LayerNorm(width), width, config.dropout)
        initialise_linear(self)

    def embedded(self, clip: Tensor) -> Tokens:
        return self.position(self.embed(self.channels_last(clip)))

    def scores(self, tokens: Tokens) -> Float[Tensor, "b k"]:
        return self.classified(self.norm(tokens.head[:, 0]))


def models() -> dict[str, Callable[[], VidtrConfig]]:
    """As released: 8, 16 and 32 frames."""
    make = partial(VidtrConfig, drop_path=0.0, dropout=0.5)
    return {
        "vidtr_small": partial(make, clip=Grid(8, 224, 224)),
        "vidtr_medium": partial(make, clip=Grid(16, 224, 224), positions_in_all=True),
        "vidtr_large": partial(make, clip=Grid(32, 224, 224)),
    }


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
    if token is not None and space is not None:
        grid = model.position.grid
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
