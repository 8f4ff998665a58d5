"""Files as others publish them, each of a small model of ours, so that every layout is tested without a published file.

How a layout calls our tensors stands here a second time, written down from the released code's names and not made from
the rules that read them. What a golden has of a layout holds these names, too (`test_layouts.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from test_checkpoints import DUALFORMER, SWIN
from torch import Tensor

import backbones
from backbones import Backbone, Config
from backbones.configs.columnar import DIVIDED, JOINT, SPACE_ONLY, VIVIT_JOINT, ColumnarConfig
from backbones.configs.dualpath import DualPathConfig
from backbones.configs.encoders import VIVIT, VTN, XVIT, EncodersConfig
from backbones.configs.hiera import HieraConfig
from backbones.configs.multiscale import MultiscaleConfig
from backbones.configs.vidtr import VidtrConfig
from backbones.sets import with_sets

Rules = tuple[tuple[str, str], ...]
QKV = ("query", "key", "value")


@dataclass(frozen=True)
class Published:
    """A layout's file.

    Args:
        config: of the model; its clip is square.
        model: what the names of such models begin with.
        recipe: how they are tested, but for frames and pixels.
        names: patterns of our names and what stands for them there, applied one after another.
        parts: what the names of our tensors have in them that are several there, and what these have instead.
        pictures: whether convolutions over one frame have no axis of time there.
        shaped: (name there, tensor) -> the tensor as it is there.
        classes: of the classifier, or of each data set's.
        golden: the file whose names these are, and what stands before them there.
    """

    config: Config
    model: str
    recipe: str
    names: Rules
    parts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    pictures: bool = False
    shaped: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor
    classes: int | Mapping[str, int] = 5
    golden: tuple[str, str] | None = None

    def written(self) -> tuple[Backbone, dict[str, Tensor]]:
        """The model with values that its names make, and its file."""
        model = backbones.create(self.config, self.classes if isinstance(self.classes, int) else 1)
        model = model if isinstance(self.classes, int) else with_sets(model, self.classes, 8, 0.0)
        state = {}
        for name, tensor in model.state_dict().items():
            tensor.copy_(values(name, tuple(tensor.shape)))
            split = next((ours for ours in self.parts if ours in name), None)
            theirs = [name.replace(split, part) for part in self.parts[split]] if split else [name]
            for key, part in zip(theirs, _divided(name, tensor, len(theirs)), strict=True):
                for pattern, replacement in self.names:
                    key = re.sub(pattern, replacement, key)
                part = part[:, :, 0] if self.pictures and part.ndim == 5 else part
                state[key] = self.shaped(key, part).clone()
        return model.eval(), state


def values(name: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers of a size that a layer keeps, other ones for each name, so that different clips get different answers."""
    random = torch.Generator().manual_seed(sum(map(ord, name)))
    if name.endswith(("num_batches_tracked", "relative_position_index")):
        return torch.zeros(shape, dtype=torch.int64)
    if len(shape) < 2:
        around = 1.0 if re.search(r"norm[\w.]*\.weight$|norms\.\d\.weight$|var$", name) else 0.0
        return around + 0.1 * torch.randn(shape, generator=random).clamp(-2, 2)
    return torch.randn(shape, generator=random) * (2 * shape[0] / torch.Size(shape).numel()) ** 0.5


def _divided(name: str, tensor: Tensor, count: int) -> Sequence[Tensor]:
    """One tensor of ours as several: rows, or, of a classifier that is a mean of two, these two."""
    if count == 1:
        return [tensor]
    if not name.startswith("classifier."):
        return tensor.chunk(count)
    return [2 * part for part in tensor.chunk(count, 1)] if tensor.ndim == 2 else [tensor + 0.5, tensor - 0.5]


def in_jax(heads: int) -> Callable[[str, Tensor], Tensor]:
    """flax's shapes: inputs first, heads apart."""

    def shaped(name: str, tensor: Tensor) -> Tensor:
        if name.startswith("embedding/kernel"):
            return tensor.permute(2, 3, 4, 1, 0)
        tensor = tensor.mT if name.endswith("kernel") else tensor
        if re.search("/(query|key|value)/", name):
            return tensor.unflatten(-1, (heads, -1))
        return tensor.unflatten(0, (heads, -1)) if name.endswith("/out/kernel") else tensor

    return shaped


TIMM: Rules = (
    (r"\bembed\.", "patch_embed."),
    (r"position\.class_token", "cls_token"),
    (r"position\.distilled", "dist_token"),
    (r"position\.space", "pos_embed"),
    (r"position\.time", "time_embed"),
    (r"\bcolumn\.", "blocks."),
    (r"attention\.0\.", "attn."),
    (r"norms\.0\.", "norm1."),
    (r"mlp_norm\.", "norm2."),
    (r"^classifier\.", "head."),
)
DIVIDED_TIMM: Rules = (
    (r"attention\.0\.fc\.", "temporal_fc."),
    (r"attention\.0\.", "temporal_attn."),
    (r"norms\.0\.", "temporal_norm1."),
    (r"attention\.1\.", "attn."),
    (r"norms\.1\.", "norm1."),
    *TIMM,
)


def transformers(module: str) -> Rules:
    return (
        (r"^embed\.proj\.", f"{module}.embeddings.patch_embeddings.projection."),
        (r"^position\.class_token", f"{module}.embeddings.cls_token"),
        (r"^position\.distilled", f"{module}.embeddings.distillation_token"),
        (r"^position\.(?:space|joint)", f"{module}.embeddings.position_embeddings"),
        (r"^position\.time", f"{module}.embeddings.time_embeddings"),
        (r"^column\.", f"{module}.encoder.layer."),
        (r"attention\.0\.proj\.", "attention.output.dense."),
        (r"norms\.0\.", "layernorm_before."),
        (r"mlp_norm\.", "layernorm_after."),
        (r"mlp\.fc1\.", "intermediate.dense."),
        (r"mlp\.fc2\.", "output.dense."),
        (r"^norm\.", f"{module}.layernorm."),
    )


OF_TRANSFORMERS = {"attention.0.qkv": [f"attention.attention.{role}" for role in QKV]}
DIVIDED_TRANSFORMERS: Rules = (
    (r"attention\.0\.fc\.", "temporal_dense."),
    (r"attention\.0\.qkv\.", "temporal_attention.attention.qkv."),
    (r"attention\.0\.proj\.", "temporal_attention.output.dense."),
    (r"norms\.0\.", "temporal_layernorm."),
    (r"attention\.1\.qkv\.", "attention.attention.qkv."),
    (r"attention\.1\.proj\.", "attention.output.dense."),
    (r"norms\.1\.", "layernorm_before."),
    *transformers("timesformer"),
)
JAX: Rules = (  # inside of blocks, and what scenic's models share
    (r"attention\.0\.proj\.", "MultiHeadDotProductAttention_0/out/"),
    (r"norms\.0\.", "LayerNorm_0/"),
    (r"mlp_norm\.", "LayerNorm_1/"),
    (r"mlp\.fc1\.", "MlpBlock_0/Dense_0/"),
    (r"mlp\.fc2\.", "MlpBlock_0/Dense_1/"),
    (r"^(?:frames\.)?embed\.proj\.", "embedding/"),
    (r"^classifier\.", "output_projection/"),
    (r"((?:LayerNorm_\d|encoder_norm)/)weight$", r"\1scale"),
    (r"weight$", "kernel"),
)
OF_JAX = {"attention.0.qkv.": [f"MultiHeadDotProductAttention_0/{role}/" for role in QKV]}


def encoder(ours: str, theirs: str) -> Rules:
    return (
        (rf"^{ours}column\.(\d+)\.", rf"{theirs}/encoderblock_\1/"),
        (rf"^{ours}norm\.", f"{theirs}/encoder_norm/"),
        (rf"^{ours}position\.(?:joint|space)", f"{theirs}/posembed_input/pos_embedding"),
        (rf"^{ours}position\.class_token", f"cls_{theirs}"),
    )


HEAD: Rules = ((r"^norm\.([01])\.", r"mlp_head.\1."), (r"^classifier\.", "mlp_head.4."))
LONGFORMER: Rules = (
    (r"^frames\.", "backbone."),
    (r"^position\.class_token", "cls_token"),
    (r"^position\.time", "temporal_encoder.embeddings.position_embeddings.weight"),
    (r"^position\.token_type", "temporal_encoder.embeddings.token_type_embeddings.weight"),
    (r"^position\.norm\.", "temporal_encoder.embeddings.LayerNorm."),
    (r"^column\.(\d+)\.norm1\.", r"column.\1.attention.output.LayerNorm."),
    (r"^column\.(\d+)\.norm2\.", r"column.\1.output.LayerNorm."),
    (r"^column\.(\d+)\.attention\.proj\.", r"column.\1.attention.output.dense."),
    (r"^column\.(\d+)\.mlp\.fc1\.", r"column.\1.intermediate.dense."),
    (r"^column\.(\d+)\.mlp\.fc2\.", r"column.\1.output.dense."),
    (r"^column\.", "temporal_encoder.encoder.layer."),
    *HEAD,
    *TIMM,
)
OF_LONGFORMER = {
    "attention.qkv.": [f"attention.self.{role}." for role in QKV],
    "attention.global_q.": ["attention.self.query_global."],
    "attention.global_kv.": ["attention.self.key_global.", "attention.self.value_global."],
}
XVIT_NAMES: Rules = (
    (r"^frames\.position\.time", "base_model.temp_embed"),
    (r"^frames\.", "base_model."),
    (r"^position\.class_token", "consensus.cls_token"),
    (r"^column\.", "consensus.temporal_encoder."),
    *HEAD,
    (r"^mlp_head\.", "consensus.mlp_head."),
    *TIMM,
)
SLOWFAST: Rules = (
    (r"^embed\.", "patch_embed."),
    (r"^class_token\.token", "cls_token"),
    (r"^position\.space", "pos_embed_spatial"),
    (r"^position\.time", "pos_embed_temporal"),
    (r"^position\.of_class", "pos_embed_class"),
    (r"attention\.pool_([qkv])\.norm\.", r"attention.norm_\1."),
    (r"attention\.tables\.", "attention.rel_pos_"),
    (r"attention\.", "attn."),
    (r"^column\.", "blocks."),
)
ONE_HEAD: Rules = ((r"skip\.proj\.", "proj."), (r"^classifier\.", "head.projection."))
MANY_HEADS: Rules = ((r"skip\.proj\.", "proj_max_pool."), (r"^classifier\.", "head.heads."))
VIDTR: Rules = (
    (r"^embed\.proj\.", "conv_stem."),
    (r"attention\.qkv\.", "self_attn.in_proj_"),
    (r"attention\.proj\.", "self_attn.out_proj."),
    (r"mlp\.fc(\d)\.", r"linear\1."),
    (r"^norm\.", "encoder.norm."),
    (r"^column\.", "encoder.layers."),
    (r"^classifier\.", "fc."),
    (r"^position\.frames", "cls_s"),
    (r"^position\.places", "cls_t"),
    (r"^position\.class_token", "cls"),
    (r"^position\.table", "pos_embedding"),
)
CLIP: Rules = (
    (r"^embed\.proj\.", "conv1."),
    (r"^position\.class_token", "class_embedding"),
    (r"^position\.of_frame", "positional_embedding"),
    (r"^position\.of_mosaic", "spatial_positional_embedding"),
    (r"^first_norm\.", "ln_pre."),
    (r"^norm\.", "ln_post."),
    (r"^projection\.weight", "proj"),
    (r"^classifier\.", "head."),
    (r"adapters\.before_attention\.", "t_adapter_attn_b."),
    (r"adapters\.behind_attention\.", "t_adapter_attn."),
    (r"adapters\.behind_mlp\.", "t_adapter_mlp."),
    (r"adapters\.beside_attention\.", "s_adapter_attn."),
    (r"adapters\.beside_mlp\.", "s_adapter_mlp."),
    (r"attention\.qkv\.", "attn.in_proj_"),
    (r"attention\.proj\.", "attn.out_proj."),
    (r"norm([12])\.", r"ln_\1."),
    (r"mlp\.fc1\.", "mlp.c_fc."),
    (r"mlp\.fc2\.", "mlp.c_proj."),
    (r"^column\.", "transformer.resblocks."),
    (r"^", "visual."),
)
MMACTION: Rules = ((r"^classifier\.", "cls_head.fc_cls."), (r"^(?!cls_head)", "backbone."))
DUALFORMER_NAMES: Rules = (
    (r"^stages\.(\d)\.embed\.", r"patch_embeds.\1."),
    (r"^stages\.(\d)\.position\.", r"pos_block.\1.proj.0."),
    (r"^stages\.(\d)\.blocks\.(\d+)\.", r"blocks.\1.\2."),
    (r"attention\.priors\.0\.0\.", "attn.sr."),
    (r"attention\.priors\.1\.", "attn.lr."),
    (r"attention\.", "attn."),
    *MMACTION,
)
SWIN_BLOCKS: Rules = (
    (r"^stages\.0\.embed\.", "patch_embed."),
    (r"attention\.bias\.table", "attn.relative_position_bias_table"),
    (r"attention\.", "attn."),
)
MERGED_BEFORE: Rules = tuple((rf"^stages\.{i + 1}\.embed\.", f"layers.{i}.downsample.") for i in range(3))
SWIN_TRANSFORMERS: Rules = (
    (r"^stages\.0\.embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^stages\.0\.embed\.", "embeddings."),
    *MERGED_BEFORE,
    (r"attention\.bias\.table", "attention.self.relative_position_bias_table"),
    (r"attention\.proj\.", "attention.output.dense."),
    (r"norm1\.", "layernorm_before."),
    (r"norm2\.", "layernorm_after."),
    (r"mlp\.fc1\.", "intermediate.dense."),
    (r"mlp\.fc2\.", "output.dense."),
    (r"^norm\.", "layernorm."),
    (r"^(?:stages|layers)\.", "encoder.layers."),
    (r"^(?!classifier)", "swin."),
)

SIZES = dict(width=24, num_heads=3, depth=2)
SQUARE = dict(**SIZES, clip=[4, 32, 32], patch=[1, 8, 8])
TUBELETS = dict(**SIZES, clip=[4, 32, 32], patch=[2, 8, 8])
PICTURE = dict(**SIZES, clip=[1, 32, 32], patch=[1, 8, 8])
TIMESFORMER = ColumnarConfig(**DIVIDED, **SQUARE)
VIVIT_1 = ColumnarConfig(**VIVIT_JOINT | TUBELETS)
FRAMES_ALONE = ColumnarConfig(**SPACE_ONLY, **SQUARE)
DISTILLED = ColumnarConfig(**JOINT, **PICTURE, position="space", class_token="distilled")
IMAGE_SWIN = SWIN.changed({"clip": [1, 24, 24], "patch": [1, 4, 4]} | {
    f"attention.{name}.window": [1, 3, 3] for name in SWIN.attention
})  # fmt: skip
PYRAMID_OF_FOUR = {"widths": [4, 8, 8, 8], "num_heads": [1, 2, 2, 2], "depths": [2, 2, 2, 2],
                   "stages": [["W", "S"]] * 4, "temporal_pooling": [1, 1, 1]}  # fmt: skip
COLUMN = dict(depths=(1, 1, 1, 1), width=8, drop_path=0.0)

LAYOUTS = {
    "TimeSformer": Published(
        TIMESFORMER, "timesformer", "timesformer_k400", DIVIDED_TIMM, pictures=True,
        golden=("timesformer_divided", "model."),
    ),
    "TimeSformer (transformers)": Published(
        TIMESFORMER, "timesformer", "timesformer_k400", DIVIDED_TRANSFORMERS, pictures=True,
    ),
    "ViViT": Published(
        VIVIT_1, "vivit", "vivit_base_16x2_k400", (*encoder("", "Transformer"), (r"^cls_Transformer", "cls"), *JAX),
        OF_JAX, shaped=in_jax(3), golden=("vivit", "joint."),
    ),
    "ViViT (transformers)": Published(
        VIVIT_1, "vivit", "vivit_base_16x2_k400", transformers("vivit"), OF_TRANSFORMERS,
    ),
    "ViViT, factorised encoder": Published(
        EncodersConfig(**VIVIT | TUBELETS, temporal_depth=1, temporal_heads=3), "vivit", "vivit_base_16x2_model2_k400",
        (*encoder(r"frames\.", "SpatialTransformer"), *encoder("", "TemporalTransformer"), *JAX),
        OF_JAX, shaped=in_jax(3), golden=("vivit", "encoder."),
    ),
    "image ViT (timm, DeiT)": Published(
        FRAMES_ALONE, "timesformer_space_only", "timesformer_space_only_k400", TIMM, pictures=True,
        golden=("timesformer_space_only", "model."),
    ),
    "image ViT (transformers)": Published(
        FRAMES_ALONE, "timesformer_space_only", "timesformer_space_only_k400", transformers("vit"), OF_TRANSFORMERS,
        pictures=True,
    ),
    "DeiT, distilled (timm, DeiT)": Published(
        DISTILLED, "deit", "timesformer_space_only_k400", ((r"^(head(?:_dist)?)\.", r"\1."), *TIMM),
        {"classifier.": ["head.", "head_dist."]}, pictures=True,
    ),
    "DeiT, distilled (transformers)": Published(
        DISTILLED, "deit", "timesformer_space_only_k400", transformers("deit"),
        OF_TRANSFORMERS | {"classifier.": ["cls_classifier.", "distillation_classifier."]}, pictures=True,
    ),
    "CLIP, DualPath": Published(
        DualPathConfig(width=24, num_heads=3, depth=2, patch=[1, 8, 8], clip=[16, 64, 64], bottleneck=4, projection=6),
        "dualpath", "dualpath_k400", CLIP, pictures=True, golden=("dualpath_16f", ""),
    ),
    "X-ViT": Published(
        EncodersConfig(**XVIT | SQUARE | dict(head_width=12, temporal_heads=3)), "xvit", "xvit_k400", XVIT_NAMES,
        pictures=True, shaped=lambda name, tensor: tensor[:, :, None] if name.endswith("temp_embed") else tensor,
        golden=("xvit", "model."),
    ),
    "VTN": Published(
        EncodersConfig(**VTN | SQUARE | dict(head_width=7, temporal_heads=3, temporal_depth=2, max_frames=9)),
        "vtn", "vtn_k400", LONGFORMER, OF_LONGFORMER, pictures=True,
    ),
    "Hiera": Published(
        HieraConfig(**COLUMN, clip=[8, 64, 64]), "hiera", "hiera_base_k400", (*SLOWFAST, *ONE_HEAD),
        golden=("hiera", ""),
    ),
    "MViT (SlowFast)": Published(
        MultiscaleConfig(**COLUMN, clip=[4, 32, 32]), "mvit_v2", "mvit_v2_small_k400", (*SLOWFAST, *ONE_HEAD),
        golden=("mvit_v2", ""),
    ),
    "MultiTrain": Published(
        MultiscaleConfig(
            **COLUMN, clip=[4, 32, 32], position="separable", class_token=False, widening_skip="raw",
            start="multitrain",
        ),
        "multitrain", "multitrain_several", (*SLOWFAST, *MANY_HEADS),
        classes={"kinetics": 5, "mit": 7, "ssv2": 6}, golden=("multitrain", ""),
    ),
    "VidTr": Published(
        VidtrConfig(**SIZES, clip=[4, 32, 32], patch=[1, 8, 8]), "vidtr", "vidtr_small_k400", VIDTR,
        golden=("vidtr", ""),
    ),
    "DualFormer (mmaction)": Published(
        DUALFORMER, "dualformer", "dualformer_tiny_k400", DUALFORMER_NAMES, golden=("dualformer_32f", ""),
    ),
    "Video Swin (mmaction), image Swin": Published(
        SWIN, "video_swin", "video_swin_tiny_k400",
        (*MERGED_BEFORE, *SWIN_BLOCKS, (r"^stages\.", "layers."), *MMACTION), golden=("video_swin_clipped", ""),
    ),
    "Swin (timm)": Published(
        IMAGE_SWIN, "video_swin", "video_swin_tiny_k400",
        (*SWIN_BLOCKS, (r"^stages\.(\d)\.embed\.", r"layers.\1.downsample."), (r"^stages\.", "layers."),
         (r"^classifier\.", "head.fc.")), pictures=True,
    ),
    "Swin (transformers)": Published(
        IMAGE_SWIN, "video_swin", "video_swin_tiny_k400", SWIN_TRANSFORMERS,
        {"attention.qkv": [f"attention.self.{role}" for role in QKV]}, pictures=True,
    ),
}  # fmt: skip
