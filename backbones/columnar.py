"""The columnar family: patches become tokens once, and a column of equal blocks works on them; a ViT for clips.

TimeSformer in its three forms, ViViT's models 1, 3 and 4 and the image models DeiT are configurations of it. A block
attends once or several times, each in a residual of its own, then comes the MLP; which schemes these are is the
config's choice. Other families take the parts that they share with it: `VitBlock`, `parts.Places`, `vit_attention`.

Sources: Bertasius et al., TimeSformer, arXiv:2102.05095, and facebookresearch/TimeSformer at commit a5ef29a7; Arnab et
al., ViViT, arXiv:2103.15691, and google-research/scenic at commit 4a38d475; Touvron et al., DeiT, arXiv:2012.12877.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

import attention_zoo
from attention_zoo import Grid, Tokens
from backbones.column import Column
from backbones.configs.columnar import ColumnarConfig, models
from backbones.family import Family, Origin, families
from backbones.layouts import NATIVE_NAME, Layout, stacked
from backbones.mlp import Mlp
from backbones.parts import DropPath, PatchEmbedding, Places, initialise_linear, linear_rates, of_image_model, resized
from backbones.residual import Attend, Block, PerToken, Residual

EPS = 1e-6


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
        mlp: nn.Module | None = None,
        *,
        drop_path: float | int = 0.0,
        eps: float = EPS,
    ):
        super().__init__(grid, prefix)
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps) for _ in attention)
        self.attention = nn.ModuleList(attention)
        self.mlp_norm, self.mlp = nn.LayerNorm(dim, eps), Mlp(dim, 4) if mlp is None else mlp
        self.drop_path = DropPath(drop_path)

    def residuals(self) -> list[Residual]:
        attend = zip(self.norms, self.attention, strict=True)
        return [
            *(Residual("attention", norm, Attend(scheme), drop_path=self.drop_path) for norm, scheme in attend),
            Residual("mlp", self.mlp_norm, PerToken(self.mlp), drop_path=self.drop_path),
        ]


class Columnar(Column):
    """Clip in, class scores out; each block attends as the config says."""

    def __init__(self, config: ColumnarConfig, num_classes: int, kernel: str):
        super().__init__(config, num_classes)
        self.class_token, width = config.class_token, config.width
        self.embed = PatchEmbedding(config.in_channels, width, config.clip, config.patch, normed=False)
        grid, position = self.embed.grid, config.position
        space, time = position in ("space_time", "space"), position == "space_time"
        self.position = Places(width, grid, config.class_token, space=space, time=time, joint=position == "joint")
        prefix, rates = self.position.prefix(grid.t), linear_rates(config.drop_path, config.depth)
        self.column = nn.ModuleList(
            VitBlock(width, grid, prefix, _schemes(config, b, grid, kernel), Mlp.of(config, width), drop_path=rate)
            for b, rate in enumerate(rates)
        )
        self.end_in(nn.LayerNorm(width, EPS), width * (2 if self.class_token == "distilled" else 1), config.dropout)
        initialise_linear(self)
        self.position.reset_parameters()
        for block in self.column:
            for scheme in block.attention:
                if hasattr(scheme, "reset_parameters"):
                    scheme.reset_parameters()

    def embedded(self, clip: Tensor) -> Tokens:
        return self.position(self.embed(self.channels_last(clip)))

    def scores(self, tokens: Tokens) -> Float[Tensor, "b k"]:
        """Of the class token, or of the mean of all; the class tokens of frames are averaged before the norm."""
        if self.class_token == "frame":
            return self.classified(self.norm(tokens.head.mean(1)))
        tokens = tokens.with_x(self.norm(tokens.x))
        return self.classified(tokens.head.flatten(1) if tokens.prefix else tokens.map.mean((1, 2, 3)))


def _schemes(config: ColumnarConfig, block: int, grid: Grid, kernel: str) -> list[nn.Module]:
    entries = (config.entry(name) for name in config.blocks[block % len(config.blocks)])
    return [
        attention_zoo.build(scheme, config.width, config.num_heads, grid, kernel=kernel, **options)
        for scheme, options in entries
    ]


# Named models: the paper's Table 1 and the released configuration files.


# Names in checkpoints. An image ViT (timm) has those of the forms without attention over time.


def vit_names(
    theirs: str, ours: str, attention: Mapping[str, str], norms: Mapping[str, str]
) -> tuple[tuple[str, str], ...]:
    """timm's names of a ViT whose names begin so, `attention` and `norms` by their numbers in our blocks."""
    block = rf"^{theirs}blocks\.(\d+)\."
    return (
        (rf"^{theirs}patch_embed\.", f"{ours}embed."),
        (rf"^{theirs}cls_token$", f"{ours}position.class_token"),
        (rf"^{theirs}pos_embed$", f"{ours}position.space"),
        (rf"^{theirs}(?:time|temp)_embed$", f"{ours}position.time"),
        (rf"{block}temporal_fc\.", rf"{ours}column.\1.attention.0.fc."),
        *((rf"{block}{name}\.", rf"{ours}column.\1.attention.{i}.") for name, i in attention.items()),
        *((rf"{block}{name}\.", rf"{ours}column.\1.norms.{i}.") for name, i in norms.items()),
        (rf"{block}norm2\.", rf"{ours}column.\1.mlp_norm."),
        (rf"{block}mlp\.", rf"{ours}column.\1.mlp."),
        (rf"^{theirs}norm\.", f"{ours}norm."),
        (r"^head\.", "classifier."),
    )


NATIVE = Layout(NATIVE_NAME, r"^column\.\d+\.")
ATTN = ({"attn": "0"}, {"norm1": "0"})  # of blocks that attend once
DIVIDED_LAYOUT = Layout(
    "TimeSformer",
    r"^blocks\.\d+\.temporal_attn\.",
    vit_names("", "", {"temporal_attn": "0", "attn": "1"}, {"temporal_norm1": "0", "norm1": "1"}),
)
VIT_LAYOUT = Layout("image ViT (timm, DeiT)", r"^blocks\.\d+\.attn\.qkv\.", vit_names("", "", *ATTN))


def _mean_of_classifiers(name: str, parts: Sequence[Tensor]) -> Tensor:
    """DeiT's two classifiers as one linear map of both tokens; other parts are stacked."""
    if not name.startswith("classifier."):
        return torch.cat(tuple(parts))
    return torch.cat(tuple(parts), 1) / 2 if parts[0].ndim == 2 else sum(parts) / 2


DEIT_LAYOUT = Layout(
    "DeiT, distilled (timm, DeiT)",
    r"^dist_token$",
    (
        (r"^dist_token$", "position.distilled"),
        (r"^head\.(.*)$", r"classifier.\1#0"),
        (r"^head_dist\.(.*)$", r"classifier.\1#1"),
        *VIT_LAYOUT.renames,
    ),
    joined=_mean_of_classifiers,
)

# ViViT's weights: in the names and shapes of its JAX code, and in those of transformers, whose image ViT has them too.


def _from_jax(name: str, tensor: Tensor) -> Tensor:
    """A kernel of flax, inputs first and heads apart, in PyTorch's shape."""
    if name.endswith("/kernel"):
        if name.startswith("embedding/"):  # [t] h w in out
            return tensor.movedim((-1, -2), (0, 1))
        return tensor.flatten(0, -2).mT if name.endswith("out/kernel") else tensor.flatten(1).mT
    return tensor.flatten() if name.endswith("/bias") else tensor


def jax_names(encoder: str, column: str) -> tuple[tuple[str, str], ...]:
    """The blocks of one encoder of scenic's ViViT; in model 3 attention over time is the first, as in its default."""
    inside = rf"^{encoder}/encoderblock_(\d+)/"
    names = []
    for kind, i in (("0", 0), ("time", 0), ("space", 1)):
        attention = f"{inside}MultiHeadDotProductAttention_{kind}"
        names += stacked(f"{attention}/ROLE/kernel$", rf"{column}.\1.attention.{i}.qkv.weight")
        names += stacked(f"{attention}/ROLE/bias$", rf"{column}.\1.attention.{i}.qkv.bias")
        names += jax_parts(f"{attention}/out", rf"{column}.\1.attention.{i}.proj")
        names += jax_parts(f"{inside}LayerNorm_{kind}", rf"{column}.\1.norms.{i}")
    names += jax_parts(f"{inside}LayerNorm_(?:1|mlp)", rf"{column}.\1.mlp_norm")
    for i in (0, 1):
        names += jax_parts(f"{inside}MlpBlock(?:_0)?/Dense_{i}", rf"{column}.\1.mlp.fc{i + 1}")
    return tuple(names)


def jax_parts(theirs: str, ours: str) -> tuple[tuple[str, str], ...]:
    """The bias of a linear map or a norm, and its weight, which flax calls a kernel or a scale."""
    return (rf"{theirs}/bias$", rf"{ours}.bias"), (rf"{theirs}/(?:kernel|scale)$", rf"{ours}.weight")


def jax_layout(name: str, sign: str, renames: Sequence[tuple[str, str]]) -> Layout:
    """A model of scenic: `renames`, and what all have."""
    shared = *jax_parts("^embedding", "embed.proj"), *jax_parts("^output_projection", "classifier")
    return Layout(name, sign, (*renames, *shared), shaped=_from_jax)


VIVIT_LAYOUT = jax_layout(
    "ViViT",
    r"^Transformer/encoderblock_\d+/",
    (
        *jax_names("Transformer", "column"),
        (r"^cls$", "position.class_token"),
        (r"^Transformer/posembed_input/pos_embedding$", "position.joint"),
        *jax_parts("^Transformer/encoder_norm", "norm"),
    ),
)


def _transformers(name: str, module: str, positions: str, divided: bool = False) -> Layout:
    """TimeSformer, ViViT and the image ViT have the same names there, but for the module's; `positions` are what theirs
    are here. A `divided` block attends over time first, and has one map to queries, keys and values.
    """
    inside = rf"^(?:{module}\.)?"
    block = rf"{inside}encoder\.layer\.(\d+)\."
    space = 1 if divided else 0
    renames = [
        (rf"{inside}embeddings\.patch_embeddings\.projection\.", "embed.proj."),
        (rf"{inside}embeddings\.cls_token$", "position.class_token"),
        (rf"{inside}embeddings\.position_embeddings$", positions),
        (rf"{inside}embeddings\.time_embeddings$", "position.time"),
        (rf"{block}temporal_layernorm\.", r"column.\1.norms.0."),
        (rf"{block}temporal_attention\.attention\.qkv\.", r"column.\1.attention.0.qkv."),
        (rf"{block}temporal_attention\.output\.dense\.", r"column.\1.attention.0.proj."),
        (rf"{block}temporal_dense\.", r"column.\1.attention.0.fc."),
        (rf"{block}layernorm_before\.", rf"column.\1.norms.{space}."),
        (rf"{block}attention\.attention\.qkv\.", rf"column.\1.attention.{space}.qkv."),
        *stacked(rf"{block}attention\.attention\.ROLE\.(.*)$", rf"column.\1.attention.{space}.qkv.\2"),
        (rf"{block}attention\.output\.dense\.", rf"column.\1.attention.{space}.proj."),
        (rf"{block}layernorm_after\.", r"column.\1.mlp_norm."),
        (rf"{block}intermediate\.dense\.", r"column.\1.mlp.fc1."),
        (rf"{block}output\.dense\.", r"column.\1.mlp.fc2."),
        (rf"{inside}layernorm\.", "norm."),
    ]
    sign = r"temporal_attention\." if divided else r"attention\.attention\.query\."
    return Layout(name, block + sign, renames=tuple(renames))


TRANSFORMERS_LAYOUT = _transformers("TimeSformer (transformers)", "timesformer", "position.space", divided=True)
VIVIT_TRANSFORMERS_LAYOUT = _transformers("ViViT (transformers)", "vivit", "position.joint")
VIT_TRANSFORMERS_LAYOUT = _transformers("image ViT (transformers)", "vit", "position.space")
DEIT_TRANSFORMERS_LAYOUT = Layout(
    "DeiT, distilled (transformers)",
    r"^(?:deit\.)?embeddings\.distillation_token$",
    (
        (r"^(?:deit\.)?embeddings\.distillation_token$", "position.distilled"),
        (r"^cls_classifier\.(.*)$", r"classifier.\1#0"),
        (r"^distillation_classifier\.(.*)$", r"classifier.\1#1"),
        *_transformers("", "deit", "position.space").renames,
    ),
    joined=_mean_of_classifiers,
)


def of_image(model: Columnar, image: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An image ViT's tensors under this model's names: without the tokens of classes and teachers that the model has
    not, and ViViT's positions those of the image, repeated over time.
    """
    tensors, positions = dict(image), model.position
    place = next((name for name in ("position.space", "position.joint") if name in tensors), None)
    if positions.distilled is None and tensors.pop("position.distilled", None) is not None and place is not None:
        tensors[place] = torch.cat([tensors[place][:, :1], tensors[place][:, 2:]], 1)
    if positions.class_token is None and "position.class_token" in tensors:
        tensors.pop("position.class_token")
        tensors[place] = tensors[place][:, 1:]
    if place is not None and positions.joint is not None:
        tensor, first = tensors.pop(place), positions.rows
        rows = tensor[:, first:].repeat(1, positions.grid.t, 1)
        tensors["position.joint"] = torch.cat([tensor[:, :first], rows], 1)
    elif place is not None and positions.space is not None:
        tensors["position.space"] = tensors.pop(place)
    return tensors


def from_image(model: Columnar, key: str, image: Mapping[str, Tensor]) -> tuple[str, Tensor | None]:
    """The rules of TimeSformer and ViViT for one tensor: every attention of a block starts as the image model's, with
    its norm.

    Positions are resized by the nearest over the row of all patches, not over the image, as in TimeSformer's released
    code; what an image model has not (positions in time, the map after attention over time) stays as it was. Patches of
    several frames see the central one alone, as in ViViT.
    """
    target = model.state_dict()[key]
    tensor = image.get(re.sub(r"\.(attention|norms)\.\d+\.", r".\1.0.", key))
    if tensor is None and (key == "position.time" or ".fc." in key):
        return "fresh", None
    if tensor is not None and key.startswith("position.") and tensor.shape != target.shape:
        first = 0 if key == "position.time" else model.position.rows
        rest = resized(tensor[:, first:].mT, target.shape[1] - first).mT
        return "inflated", torch.cat([tensor[:, :first], rest], dim=1)
    kind, tensor = of_image_model(key, target, tensor)
    return "inflated" if key == "position.joint" and kind == "copied" else kind, tensor


ORIGINS = {
    "timesformer": Origin(
        "arXiv:2102.05095", "facebookresearch/TimeSformer", "CC-BY-NC-4.0", "K400, K600, SSv2: README"
    ),
    "vivit": Origin("arXiv:2103.15691", "google-research/scenic", "Apache-2.0", "JAX, K400: README"),
    "deit": Origin("arXiv:2012.12877", "facebookresearch/deit", "Apache-2.0", "ImageNet-1k: README"),
}

LAYOUTS = (
    NATIVE,
    DIVIDED_LAYOUT,
    TRANSFORMERS_LAYOUT,
    VIVIT_LAYOUT,
    VIVIT_TRANSFORMERS_LAYOUT,
    DEIT_TRANSFORMERS_LAYOUT,
    VIT_TRANSFORMERS_LAYOUT,
    DEIT_LAYOUT,
    VIT_LAYOUT,
)
families.register("columnar")(
    Family("columnar", ColumnarConfig, Columnar, models, LAYOUTS, ORIGINS, from_image, of_image)
)
