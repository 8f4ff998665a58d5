"""Factorised encoders: an image transformer sees each frame, a second one the row of frames that the first made.

ViViT's model 2, X-ViT (whose frames also mix inside the first) and VTN are configurations of it. The first is a model
of the columnar family with a class token for each frame; what these gathered are the tokens of the second.

Sources: Arnab et al., ViViT, arXiv:2103.15691; Bulat et al., X-ViT, arXiv:2106.05968, and 1adrianb/video-transformers
at commit 82ca1766; Neimark et al., VTN, arXiv:2102.00719, and bomri/SlowFast at commit 00a68201, whose second
transformer is Longformer, arXiv:2004.05150.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

import attention_zoo
from attention_zoo import Grid, Tokens, gathered
from attention_zoo.kernels import AUTO, attend
from backbones.column import Column, PreNormBlock
from backbones.columnar import (
    ATTN,
    EPS,
    Columnar,
    VitBlock,
    jax_layout,
    jax_names,
    jax_parts,
    vit_names,
)
from backbones.columnar import from_image as column_from_image
from backbones.columnar import of_image as column_of_image
from backbones.configs.encoders import EncodersConfig, models
from backbones.family import Family, Origin, families
from backbones.layouts import NATIVE_NAME, Layout, stacked
from backbones.mlp import Mlp
from backbones.parts import Places, initialise_linear, linear_rates
from backbones.residual import Block

WINDOWED_EPS = 1e-12  # Longformer's


class WindowedAttention(nn.Module):
    """Each frame sees the frames around it and the class token; the class token, with maps of its own, sees all."""

    takes_prefix, like = True, "windowed"

    def __init__(self, dim: int, num_heads: int, grid: Grid, window: int, kernel: str = AUTO):
        super().__init__()
        self.dim, self.num_heads, self.grid, self.half, self.kernel = dim, num_heads, grid, window // 2, kernel
        self.out_grid = grid
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.global_q, self.global_kv = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)

    def forward(
        self, x: Float[Tensor, "b t 1 1 d"], prefix: Float[Tensor, "b 1 d"]
    ) -> tuple[Float[Tensor, "b t 1 1 d"], Float[Tensor, "b 1 d"]]:
        tokens = torch.cat([prefix, x.flatten(1, 3)], 1)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        tables = gathered.tables(x.device, _frames_around, x.shape[1], self.half)
        frames = gathered.attention(q, k, v, tables, kernel=self.kernel)
        q = self.global_q(prefix).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = (
            part.transpose(1, 2) for part in self.global_kv(tokens).unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        )
        first = attend(q, k, v, kernel=self.kernel).transpose(1, 2)
        y = self.proj(torch.cat([first, frames], 1).flatten(2))
        return y[:, 1:].view(x.shape), y[:, :1]

    def macs(self, prefix: int = 1) -> int:
        """Four maps and two for the class token of each token, one of the class token, and the products."""
        tokens, d = self.grid.tokens + 1, self.dim
        pairs = gathered.pairs(_frames_around(self.grid.tokens, self.half)) + tokens
        return 6 * tokens * d * d + d * d + 2 * pairs * d

    def reach(self, prefix: int = 1) -> Bool[Tensor, "n n"]:
        tokens = self.grid.tokens + 1
        allowed = gathered.reach(tokens, _frames_around(self.grid.tokens, self.half))
        allowed[0] = True
        return allowed


def _frames_around(frames: int, half: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each frame, from 1 on, those around it and the class token, which is 0."""
    around = (range(max(1, i - half), min(frames, i + half) + 1) for i in range(1, frames + 1))
    return gathered.by_shape((np.array([i]), np.array([0, *keys])) for i, keys in enumerate(around, 1))


class WindowedTokens(nn.Module):
    """A class token before the frames, learned positions and types of both, and a norm, as in Longformer.

    Frames beyond the table begin it anew; the class token has the row after those of frames, its last row is no one's.
    """

    kind = "position"

    def __init__(self, dim: int, rows: int):
        super().__init__()
        self.class_token = nn.Parameter(torch.empty(1, 1, dim))
        self.time, self.token_type = nn.Parameter(torch.empty(rows, dim)), nn.Parameter(torch.empty(2, dim))
        self.norm = nn.LayerNorm(dim, WINDOWED_EPS)

    def reset_parameters(self) -> None:
        for table in (self.class_token, self.time, self.token_type):
            nn.init.normal_(table, std=0.02)

    def forward(self, x: Float[Tensor, "b t 1 1 d"], at: Int[Tensor, " t"] | None = None) -> Tokens:
        """`at`: numbers of the frames in their video; left out, 0 and so on."""
        frames = len(self.time) - 2
        at = torch.arange(x.shape[1], device=x.device) if at is None else at
        first = self.class_token + self.time[frames] + self.token_type[1]
        x = x + (self.time[at % frames] + self.token_type[0])[:, None, None]
        tokens = Tokens.of_map(x).of(x, first.expand(len(x), -1, -1))
        return tokens.with_x(self.norm(tokens.x))


class NormedHead(nn.Sequential):
    """The last norm and the hidden layer before the classifier."""

    kind = "mlp"

    def __init__(self, dim: int, hidden: int, eps: float):
        super().__init__(nn.LayerNorm(dim, eps), nn.Linear(dim, hidden), nn.GELU())


class Encoders(Column):
    """Clip in, class scores out."""

    def __init__(self, config: EncodersConfig, num_classes: int, kernel: str):
        super().__init__(config, num_classes)
        self.frames = Columnar(config, 0, kernel)
        width, grid, heads = config.width, Grid(self.frames.embed.grid.t, 1, 1), config.temporal_heads
        kind, windowed = config.temporal, config.temporal == "windowed"
        eps = EPS if kind == "positions" else 1e-5  # PyTorch's own where the released code names none
        activation = "gelu" if windowed else config.activation
        self.position = (
            WindowedTokens(width, config.max_frames)
            if windowed
            else Places(width, grid, "clip", space=False, time=False, joint=kind == "positions")
        )
        self.column = nn.ModuleList()
        for rate in linear_rates(config.drop_path, config.temporal_depth):
            mlp = Mlp(width, config.temporal_mlp_ratio, activation=activation, rank=config.mlp_rank)
            if windowed:
                attention = WindowedAttention(width, heads, grid, config.window, kernel)
                self.column.append(PreNormBlock(width, grid, 1, attention, mlp, rate, eps=WINDOWED_EPS, norm_last=True))
            else:
                qkv_bias = kind == "positions"
                attention = attention_zoo.build("full", width, heads, grid, kernel=kernel, qkv_bias=qkv_bias)
                self.column.append(VitBlock(width, grid, 1, [attention], mlp, drop_path=rate, eps=eps))
        hidden = config.head_width
        norm = NormedHead(width, hidden, eps) if hidden else nn.LayerNorm(width, eps)
        self.end_in(norm, hidden or width, config.dropout)
        for part in (self.column, self.norm, self.classifier):
            if part is not None:
                initialise_linear(part)
        self.position.reset_parameters()

    def embedded(self, clip: Tensor) -> Tokens:
        """Of the second transformer: the class token and one for each step in time."""
        return self.position(self.of_frames(clip)[:, :, None, None])

    def of_frames(self, clip: Tensor) -> Float[Tensor, "b t d"]:
        """What the class token of each frame gathered, normed."""
        self.frames.activation_checkpointing = self.activation_checkpointing
        return self.frames.norm(self.frames.tokens(clip).head)

    def scores(self, tokens: Tokens) -> Float[Tensor, "b k"]:
        return self.classified(self.norm(tokens.head[:, 0]))

    def blocks(self) -> dict[str, Block]:
        return {f"frames.{name}": block for name, block in self.frames.blocks().items()} | super().blocks()

    def macs(self, classifier: bool = True) -> int:
        hidden = sum(part.weight.numel() for part in self.norm.modules() if isinstance(part, nn.Linear))
        blocks = sum(block.macs() for block in self.column)
        return self.frames.macs() + blocks + hidden + self.classifier_macs(classifier)


NATIVE = Layout(NATIVE_NAME, r"^frames\.column\.\d+\.")
VIVIT_LAYOUT = jax_layout(
    "ViViT, factorised encoder",
    r"^SpatialTransformer/encoderblock_\d+/",
    (
        *jax_names("SpatialTransformer", "frames.column"),
        *jax_names("TemporalTransformer", "column"),
        (r"^cls_SpatialTransformer$", "frames.position.class_token"),
        (r"^cls_TemporalTransformer$", "position.class_token"),
        (r"^SpatialTransformer/posembed_input/pos_embedding$", "frames.position.space"),
        (r"^TemporalTransformer/posembed_input/pos_embedding$", "position.joint"),
        *jax_parts("^SpatialTransformer/encoder_norm", "frames.norm"),
        *jax_parts("^TemporalTransformer/encoder_norm", "norm"),
        *jax_parts("^embedding", "frames.embed.proj"),
    ),
)


HEAD = tuple(
    (rf"^(?:consensus\.)?mlp_head\.{a}\.", f"{b}.") for a, b in ((0, "norm.0"), (1, "norm.1"), (4, "classifier"))
)
XVIT_LAYOUT = Layout(
    "X-ViT",
    r"^consensus\.temporal_encoder\.\d+\.",
    (
        *vit_names(r"base_model\.", "frames.", *ATTN),
        *(
            (rf"^consensus\.temporal_encoder\.(\d+)\.{theirs}\.", rf"column.\1.{ours}.")
            for theirs, ours in (("norm1", "norms.0"), ("attn", "attention.0"), ("norm2", "mlp_norm"), ("mlp", "mlp"))
        ),
        (r"^consensus\.cls_token$", "position.class_token"),
        *HEAD,
    ),
    ignored=((r"^base_model\.head\.", "the classifier of the image model"),),
    shaped=lambda name, tensor: tensor.flatten(1, 2) if name.endswith("temp_embed") else tensor,
)
LONGFORMER = r"^temporal_encoder\.encoder\.layer\.(\d+)\."
VTN_LAYOUT = Layout(
    "VTN",
    r"^temporal_encoder\.encoder\.layer\.\d+\.",
    (
        *stacked(rf"{LONGFORMER}attention\.self\.ROLE\.(.*)$", r"column.\1.attention.qkv.\2"),
        (rf"{LONGFORMER}attention\.self\.query_global\.", r"column.\1.attention.global_q."),
        *stacked(
            rf"{LONGFORMER}attention\.self\.ROLE_global\.(.*)$", r"column.\1.attention.global_kv.\2", ("key", "value")
        ),
        (rf"{LONGFORMER}attention\.output\.dense\.", r"column.\1.attention.proj."),
        (rf"{LONGFORMER}attention\.output\.LayerNorm\.", r"column.\1.norm1."),
        (rf"{LONGFORMER}intermediate\.dense\.", r"column.\1.mlp.fc1."),
        (rf"{LONGFORMER}output\.dense\.", r"column.\1.mlp.fc2."),
        (rf"{LONGFORMER}output\.LayerNorm\.", r"column.\1.norm2."),
        (r"^temporal_encoder\.embeddings\.position_embeddings\.weight$", "position.time"),
        (r"^temporal_encoder\.embeddings\.token_type_embeddings\.weight$", "position.token_type"),
        (r"^temporal_encoder\.embeddings\.LayerNorm\.", "position.norm."),
        (r"^cls_token$", "position.class_token"),
        *vit_names(r"backbone\.", "frames.", *ATTN),
        *HEAD,
    ),
    ignored=(
        (r"position_ids$", "numbers 0 and so on"),
        (r"^temporal_encoder\.embeddings\.word_embeddings\.", "of words, which there are none of"),
    ),
    own="backbone.",  # both transformers have a class token
)


def of_image(model: Encoders, image: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An image ViT's tensors are those of the frames."""
    column = column_of_image(model.frames, image)
    return {key if key.startswith("classifier.") else f"frames.{key}": tensor for key, tensor in column.items()}


def from_image(model: Encoders, key: str, image: Mapping[str, Tensor]) -> tuple[str, Tensor | None]:
    """Frames start as the image model does, the second transformer and the classifier as they are."""
    if not key.startswith("frames."):
        return "fresh", None
    tensors = {name.removeprefix("frames."): tensor for name, tensor in image.items()}
    return column_from_image(model.frames, key.removeprefix("frames."), tensors)


ORIGINS = {
    "vivit": Origin("arXiv:2103.15691", "google-research/scenic", "Apache-2.0", "JAX, K400: README"),
    "xvit": Origin("arXiv:2106.05968", "1adrianb/video-transformers", "Apache-2.0", "K400, K600, SSv2: README"),
    "vtn": Origin("arXiv:2102.00719", "bomri/SlowFast", "Apache-2.0", "K400: README"),
}
LAYOUTS = (NATIVE, VIVIT_LAYOUT, XVIT_LAYOUT, VTN_LAYOUT)
families.register("encoders")(
    Family("encoders", EncodersConfig, Encoders, models, LAYOUTS, ORIGINS, from_image, of_image)
)
