"""swin3d_t and mvit_v2_s of torchvision, whose compiled part loads with the full torch build that it was made for only.

A torchvision that does not load keeps transformers from loading too: remove it then.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from torch import nn

from backbones.config import Config
from backbones.configs.multiscale import MultiscaleConfig
from backbones.layouts import Layout, renamed
from benchmarks.public import Absent, Peer, peers

STAGE, BLOCK = r"^features\.(\d+)\.(\d+)\.", r"^blocks\.(\d+)\."  # features alternate stages and merging
SWIN = (
    (r"^patch_embed\.", lambda m: "stages.0.embed."),
    (r"^features\.(\d+)\.(reduction|norm)\.", lambda m: f"stages.{(int(m[1]) + 1) // 2}.embed.{m[2]}."),
    (rf"{STAGE}attn\.relative_position_bias_table$", lambda m: f"{_block(m)}.attention.bias.table"),
    (rf"{STAGE}attn\.", lambda m: f"{_block(m)}.attention."),
    (rf"{STAGE}mlp\.0\.", lambda m: f"{_block(m)}.mlp.fc1."),
    (rf"{STAGE}mlp\.3\.", lambda m: f"{_block(m)}.mlp.fc2."),
    (rf"{STAGE}norm", lambda m: f"{_block(m)}.norm"),
    (r"^head\.", lambda m: "classifier."),
    (r"^norm\.", lambda m: "norm."),
)
MVIT = (
    (r"^conv_proj\.", "embed.proj."),
    (r"^pos_encoding\.class_token$", "class_token.token"),
    (rf"{BLOCK}attn\.project\.0\.", r"column.\1.attention.proj."),
    (rf"{BLOCK}attn\.pool_([qkv])\.pool\.", r"column.\1.attention.pool_\2."),
    (rf"{BLOCK}attn\.pool_([qkv])\.norm_act\.0\.", r"column.\1.attention.pool_\2.norm."),
    (rf"{BLOCK}attn\.rel_pos_([thw])$", r"column.\1.attention.tables.\2"),
    (rf"{BLOCK}attn\.", r"column.\1.attention."),
    (rf"{BLOCK}mlp\.0\.", r"column.\1.mlp.fc1."),
    (rf"{BLOCK}mlp\.3\.", r"column.\1.mlp.fc2."),
    (rf"{BLOCK}project\.", r"column.\1.skip.proj."),
    (BLOCK, r"column.\1."),
    (r"^head\.1\.", "classifier."),
)


def _block(match) -> str:
    return f"stages.{int(match[1]) // 2}.blocks.{match[2]}"


def _loaded(module: str) -> ModuleType:
    try:
        return import_module(f"torchvision.models.video.{module}")
    except (ImportError, RuntimeError, OSError) as error:
        needs = "it needs the full torch build that it was made for; install both, then add force=true"
        raise Absent(f"torchvision does not load ({error}); {needs}") from error


def swin(config: Config, num_classes: int) -> nn.Module:
    (_, options) = config.entry(config.stages[0][0])
    return _loaded("swin_transformer").SwinTransformer3d(
        patch_size=list(config.patch), embed_dim=config.widths[0], depths=list(config.depths),
        num_heads=list(config.num_heads), window_size=list(options["window"]), mlp_ratio=config.mlp_ratio,
        stochastic_depth_prob=0.0, num_classes=num_classes,
    )  # fmt: skip


def mvit(config: MultiscaleConfig, num_classes: int) -> nn.Module:
    theirs = _loaded("mvit")
    if config.clip.h % 32 or config.clip.w % 32:
        raise ValueError(
            f"clip {tuple(config.clip)}: torchvision halves whole maps only; allowed: sizes of 32, 64, ..."
        )
    blocks = [
        theirs.MSBlockConfig(
            num_heads=block.heads, input_channels=block.width, output_channels=block.inner,
            kernel_q=list(block.query_kernel), kernel_kv=list(config.pool_kernel),
            stride_q=list(block.query_stride), stride_kv=list(block.key_stride),
        )
        for block in config.block_sizes()
    ]  # fmt: skip
    return theirs.MViT(
        spatial_size=tuple(config.clip[1:]), temporal_size=config.clip.t, block_setting=blocks, num_classes=num_classes,
        residual_pool=True, residual_with_cls_embed=False, rel_pos_embed=True, proj_after_attn=True, dropout=0.0,
    )  # fmt: skip


OF_SWIN = Layout("torchvision", "", SWIN, ignored=((r"\.relative_position_index$", "follows from the window"),))
OF_MVIT = Layout("torchvision", "", MVIT, shaped=lambda name, x: x[None, None] if name.endswith("class_token") else x)
peers.register("torchvision")(
    Peer({"torchvision_swin3d_t": "video_swin_tiny"}, swin, lambda x: renamed(x, [OF_SWIN]).tensors, "head")
)
peers.register("torchvision_mvit")(
    Peer({"torchvision_mvit_v2_s": "mvit_v2_small_16f"}, mvit, lambda x: renamed(x, [OF_MVIT]).tensors, "head.1")
)
