"""The columnar family: patches become tokens once, and a column of equal blocks works on them; a ViT for clips.

TimeSformer in its three forms is a configuration of it. A block attends once or several times, each in a residual of
its own, then comes the MLP; which schemes these are is the config's choice. Other families take the parts that they
share with it: `VitBlock`, `parts.Places`, `vit_attention`.

Source: Bertasius et al., TimeSformer, arXiv:2102.05095, and facebookresearch/TimeSformer at commit a5ef29a7.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor, nn

import attention_zoo
from attention_zoo import Grid, Tokens
from backbones.config import Config, attention_entries, choice, narrower, number, patterns, positive_integers
from backbones.family import Backbone, Family, Origin, families
from backbones.layouts import NATIVE_NAME, Layout
from backbones.mlp import Mlp
from backbones.parts import (
    DropPath,
    PatchEmbedding,
    Places,
    channels_last,
    check_classes,
    initialise_linear,
    linear_rates,
    recomputed,
    resized,
)
from backbones.residual import Attend, Block, PerToken, Residual

ClassToken = Literal["clip", "frame", "none"]
Position = Literal["space_time", "space", "none"]


@no_type_check  # it checks its values itself and takes lists where it keeps tuples
@dataclass(frozen=True)
class ColumnarConfig(Config):
    """A column of blocks and the attention schemes of each.

    Args:
        attention: the schemes that `blocks` may name, see `Config`.
        blocks: a pattern of blocks, repeated over the depth; a block is the names that it attends with, in order:
            `(("T", "S"),)` attends over time and then over space in every block.
        clip: the nominal input: frames, height and width in pixels. Sizes of parameters follow from it.
        patch: frames and pixels that become one token.
        class_token: one for the clip, one for each frame (the answer is then their mean), or none (the mean of all).
        position: learned, for places and for times, or for places alone.

    Raises:
        ValueError: a value is impossible.
        UnknownName: a scheme or a name in `blocks` is unknown; the nearest is given.
    """

    family = "columnar"

    attention: dict[str, dict[str, Any]]
    blocks: tuple[tuple[str, ...], ...]
    width: int = 768
    num_heads: int = 12
    depth: int = 12
    clip: Grid = Grid(8, 224, 224)
    in_channels: int = 3
    patch: Grid = Grid(1, 16, 16)
    mlp_ratio: float = 4.0
    class_token: ClassToken = "clip"
    position: Position = "space_time"
    drop_path: float = 0.1
    dropout: float = 0.0
    activation_checkpointing: bool = False

    def __post_init__(self):
        for name in ("clip", "patch"):
            self._set(name, Grid.of(getattr(self, name), name))
        for name in ("width", "num_heads", "depth", "in_channels"):
            self._set(name, *positive_integers(name, (getattr(self, name),)))
        self._set("mlp_ratio", number("mlp_ratio", self.mlp_ratio, zero=False))
        for name in ("drop_path", "dropout"):
            self._set(name, number(name, getattr(self, name), zero=True, below=1.0))
        choice("class_token", self.class_token, get_args(ClassToken))
        choice("position", self.position, get_args(Position))
        if not isinstance(self.activation_checkpointing, bool):
            raise ValueError(f"activation_checkpointing {self.activation_checkpointing!r} is not true or false")
        self._set("attention", attention_entries(self.attention))
        self._set("blocks", patterns("blocks", self.blocks, self.attention))
        attention_zoo.check_heads(self.width, self.num_heads)
        if self.class_token != "none":
            able = [name for name in attention_zoo.schemes.names() if takes_prefix(name)]
            for scheme in self.schemes():
                if scheme not in able:
                    raise ValueError(
                        f"class_token {self.class_token!r} needs schemes that take class tokens, {scheme} does not; "
                        f"allowed: {', '.join(able)}, or class_token 'none'"
                    )

    def used(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for block in self.blocks for name in block))

    def shrunk(self, width: float, depth: int | None, clip: Sequence[int]) -> ColumnarConfig:
        """At least one whole turn of the pattern of blocks stays."""
        size = dict(zip(("width", "num_heads"), narrower(self.width, self.num_heads, width), strict=True))
        blocks = self.depth if depth is None else min(self.depth, max(depth, len(self.blocks)))
        return self.changed({"clip": clip, "depth": blocks} | (size if width != 1 else {}))

    def sizes(self) -> dict[str, Any]:
        return {"blocks": [self.depth], "widths": [self.width], "tokens": [list(self.clip.ceil_div(self.patch))]}


def takes_prefix(scheme: str) -> bool:
    """Whether a scheme works beside class tokens."""
    return getattr(attention_zoo.schemes.get(scheme), "takes_prefix", False)


class VitBlock(Block):
    """Attention, once or several times, then the MLP; each normed before, added to its input, with stochastic depth.

    A draw of stochastic depth is for a whole clip, as everywhere here; the released TimeSformer draws for each place in
    attention over time and for each frame in attention over space.
    """

    def __init__(
        self,
        dim: int,
        grid: Grid,
        prefix: int,
        attention: Sequence[nn.Module],
        *,
        mlp_ratio: float | int = 4,
        drop_path: float | int = 0.0,
        eps: float = 1e-6,
    ):
        super().__init__(grid, prefix)
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps) for _ in attention)
        self.attention = nn.ModuleList(attention)
        self.mlp_norm, self.mlp, self.drop_path = nn.LayerNorm(dim, eps), Mlp(dim, mlp_ratio), DropPath(drop_path)

    def residuals(self) -> list[Residual]:
        attend = zip(self.norms, self.attention, strict=True)
        return [
            *(Residual("attention", norm, Attend(scheme), drop_path=self.drop_path) for norm, scheme in attend),
            Residual("mlp", self.mlp_norm, PerToken(self.mlp), drop_path=self.drop_path),
        ]


class Columnar(Backbone):
    """Clip in, class scores out.

    Args:
        build_attention: (block, grid) -> the schemes of that block.
        class_token, position: see `ColumnarConfig`.
        drop_path: of the last block, growing linearly from 0 in the first.
    """

    def __init__(
        self,
        clip: Grid,
        num_classes: int,
        build_attention: Callable[[int, Grid], Sequence[nn.Module]],
        *,
        width: int,
        depth: int,
        in_channels: int = 3,
        patch: Grid = Grid(1, 16, 16),
        class_token: ClassToken = "clip",
        position: Position = "space_time",
        mlp_ratio: float | int = 4,
        drop_path: float | int = 0.0,
        dropout: float | int = 0.0,
        eps: float = 1e-6,
        activation_checkpointing: bool = False,
    ):
        super().__init__()
        check_classes(num_classes)
        self.clip, self.num_classes, self.in_channels = clip, num_classes, in_channels
        self.activation_checkpointing, self.class_token = activation_checkpointing, class_token
        self.embed = PatchEmbedding(in_channels, width, clip, patch, normed=False)
        grid = self.embed.grid
        self.position = Places(width, grid, class_token, space=position != "none", time=position == "space_time")
        prefix, rates = self.position.prefix(grid.t), linear_rates(drop_path, depth)
        self.column = nn.ModuleList(
            VitBlock(width, grid, prefix, build_attention(b, grid), mlp_ratio=mlp_ratio, drop_path=rates[b], eps=eps)
            for b in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, num_classes) if num_classes else None
        initialise_linear(self)
        self.position.reset_parameters()
        for block in self.column:
            for scheme in block.attention:
                if hasattr(scheme, "reset_parameters"):
                    scheme.reset_parameters()

    def tokens(self, clip: Tensor) -> Tokens:
        tokens = self.position(self.embed(channels_last(clip, self.in_channels, self.clip)))
        recompute = self.activation_checkpointing and self.training and torch.is_grad_enabled()
        for block in self.column:
            tokens = recomputed(block, tokens) if recompute else block(tokens)
        return tokens

    def scores(self, tokens: Tokens) -> Float[Tensor, "b k"]:
        """Of the class token, or of the mean of all; the class tokens of frames are averaged before the norm."""
        if self.class_token == "frame":
            pooled = self.norm(tokens.head.mean(1))
        else:
            tokens = tokens.with_x(self.norm(tokens.x))
            pooled = tokens.head[:, 0] if tokens.prefix else tokens.map.mean((1, 2, 3))
        return pooled if self.classifier is None else self.classifier(self.dropout(pooled))

    def blocks(self) -> dict[str, Block]:
        return {f"column.{b}": block for b, block in enumerate(self.column)}

    def macs(self, classifier: bool = True) -> int:
        last = self.classifier.weight.numel() if classifier and self.classifier is not None else 0
        return self.embed.macs() + sum(block.macs() for block in self.column) + last


def build(config: ColumnarConfig, num_classes: int, kernel: str, backbone: type[Columnar] | None = None) -> Columnar:
    """A column in which each block attends as the config says; of another class than `Columnar` where one is named."""

    def build_attention(block: int, grid: Grid) -> list[nn.Module]:
        entries = (config.entry(name) for name in config.blocks[block % len(config.blocks)])
        return [
            attention_zoo.build(scheme, config.width, config.num_heads, grid, kernel=kernel, **options)
            for scheme, options in entries
        ]

    return (backbone or Columnar)(
        config.clip,
        num_classes,
        build_attention,
        width=config.width,
        depth=config.depth,
        in_channels=config.in_channels,
        patch=config.patch,
        class_token=config.class_token,
        position=config.position,
        mlp_ratio=config.mlp_ratio,
        drop_path=config.drop_path,
        dropout=config.dropout,
        activation_checkpointing=config.activation_checkpointing,
    )


# Named models: the paper's Table 1 and the released configuration files.

DIVIDED = dict(
    attention={"T": dict(scheme="time_only", fc=True), "S": dict(scheme="space_only", prefix="shared")},
    blocks=(("T", "S"),),
)
JOINT = dict(attention={}, blocks=(("full",),))
SPACE_ONLY = dict(
    attention={"S": dict(scheme="space_only", prefix="own")}, blocks=(("S",),), class_token="frame", position="space"
)


def models() -> dict[str, Callable[[], ColumnarConfig]]:
    """TimeSformer by size and form of attention."""
    return {
        "timesformer_base": partial(ColumnarConfig, **DIVIDED),
        "timesformer_hr": partial(ColumnarConfig, **DIVIDED, clip=Grid(16, 448, 448)),
        "timesformer_l": partial(ColumnarConfig, **DIVIDED, clip=Grid(96, 224, 224)),
        "timesformer_joint_base": partial(ColumnarConfig, **JOINT),
        "timesformer_space_only_base": partial(ColumnarConfig, **SPACE_ONLY),
    }


# Names in checkpoints. An image ViT (timm) has those of the forms without attention over time.


def _layout(name: str, sign: str, attention: Mapping[str, str], norms: Mapping[str, str]) -> Layout:
    """The released names; `attention` and `norms` by their numbers in our blocks."""
    return Layout(
        name,
        sign,
        renames=(
            (r"^patch_embed\.", "embed."),
            (r"^cls_token$", "position.class_token"),
            (r"^pos_embed$", "position.space"),
            (r"^time_embed$", "position.time"),
            (r"^blocks\.(\d+)\.temporal_fc\.", r"column.\1.attention.0.fc."),
            *((rf"^blocks\.(\d+)\.{theirs}\.", rf"column.\1.attention.{i}.") for theirs, i in attention.items()),
            *((rf"^blocks\.(\d+)\.{theirs}\.", rf"column.\1.norms.{i}.") for theirs, i in norms.items()),
            (r"^blocks\.(\d+)\.norm2\.", r"column.\1.mlp_norm."),
            (r"^blocks\.(\d+)\.mlp\.", r"column.\1.mlp."),
            (r"^head\.", "classifier."),
        ),
    )


NATIVE = Layout(NATIVE_NAME, r"^column\.\d+\.")
DIVIDED_LAYOUT = _layout(
    "TimeSformer",
    r"^blocks\.\d+\.temporal_attn\.",
    {"temporal_attn": "0", "attn": "1"},
    {"temporal_norm1": "0", "norm1": "1"},
)
VIT_LAYOUT = _layout("ViT", r"^blocks\.\d+\.attn\.qkv\.", {"attn": "0"}, {"norm1": "0"})

TRANSFORMERS_LAYOUT = Layout(
    "TimeSformer (transformers)",
    r"^(timesformer\.)?encoder\.layer\.\d+\.temporal_attention\.",
    renames=tuple(
        (rf"^(?:timesformer\.)?{theirs}", ours)
        for theirs, ours in (
            (r"embeddings\.patch_embeddings\.projection\.", "embed.proj."),
            (r"embeddings\.cls_token$", "position.class_token"),
            (r"embeddings\.position_embeddings$", "position.space"),
            (r"embeddings\.time_embeddings$", "position.time"),
            (r"encoder\.layer\.(\d+)\.temporal_layernorm\.", r"column.\1.norms.0."),
            (r"encoder\.layer\.(\d+)\.temporal_attention\.attention\.qkv\.", r"column.\1.attention.0.qkv."),
            (r"encoder\.layer\.(\d+)\.temporal_attention\.output\.dense\.", r"column.\1.attention.0.proj."),
            (r"encoder\.layer\.(\d+)\.temporal_dense\.", r"column.\1.attention.0.fc."),
            (r"encoder\.layer\.(\d+)\.layernorm_before\.", r"column.\1.norms.1."),
            (r"encoder\.layer\.(\d+)\.attention\.attention\.qkv\.", r"column.\1.attention.1.qkv."),
            (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"column.\1.attention.1.proj."),
            (r"encoder\.layer\.(\d+)\.layernorm_after\.", r"column.\1.mlp_norm."),
            (r"encoder\.layer\.(\d+)\.intermediate\.dense\.", r"column.\1.mlp.fc1."),
            (r"encoder\.layer\.(\d+)\.output\.dense\.", r"column.\1.mlp.fc2."),
            (r"layernorm\.", "norm."),
        )
    ),
)


def from_image(model: Columnar, key: str, image: Mapping[str, Tensor]) -> tuple[str, Tensor | None]:
    """TimeSformer's rule for one tensor: every attention of a block starts as the image model's, with its norm.

    Positions are resized by the nearest over the row of all patches, not over the image, as in the released code; what
    an image model has not (positions in time, the map after attention over time) stays as it was.
    """
    target = model.state_dict()[key]
    tensor = image.get(re.sub(r"\.(attention|norms)\.\d+\.", r".\1.0.", key))
    if tensor is None:
        return "fresh" if key == "position.time" or ".fc." in key or key.startswith("classifier.") else "missing", None
    if key.startswith("classifier.") and tensor.shape != target.shape:
        return "fresh", None
    if key in ("position.space", "position.time") and tensor.shape != target.shape:
        first = 1 if key == "position.space" and model.position.class_token is not None else 0
        rest = resized(tensor[:, first:].mT, target.shape[1] - first).mT
        return "inflated", torch.cat([tensor[:, :first], rest], dim=1)
    if target.ndim == 5:
        flat = tensor[:, :, 0] if tensor.ndim == 5 and tensor.shape[2] == 1 else tensor
        if flat.shape != target[:, :, 0].shape:
            return "mismatched", None
        return "inflated", flat[:, :, None].expand_as(target) / target.shape[2]
    return ("copied", tensor) if tensor.shape == target.shape else ("mismatched", None)


ORIGINS = {
    "timesformer": Origin(
        "arXiv:2102.05095", "facebookresearch/TimeSformer", "CC-BY-NC-4.0", "K400, K600, SSv2: README"
    )
}

LAYOUTS = (NATIVE, DIVIDED_LAYOUT, TRANSFORMERS_LAYOUT, VIT_LAYOUT)
families.register("columnar")(Family("columnar", ColumnarConfig, build, models, LAYOUTS, ORIGINS, from_image))
