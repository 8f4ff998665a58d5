"""mvit_v2_s of torchvision, whose compiled part loads with the full torch build that it was made for only."""

from __future__ import annotations

from torch import nn

from backbones.layouts import Layout, renamed
from backbones.multiscale import MultiscaleConfig
from benchmarks.public import Absent, Peer, peers

BLOCK = r"^blocks\.(\d+)\."
RENAMES = (
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


def make(config: MultiscaleConfig, num_classes: int) -> nn.Module:
    try:
        from torchvision.models.video.mvit import MSBlockConfig, MViT
    except (ImportError, RuntimeError, OSError) as error:
        needs = "it needs the full torch build that it was made for; install both, then add force=true"
        raise Absent(f"torchvision does not load ({error}); {needs}") from error
    if config.clip.h % 32 or config.clip.w % 32:
        raise ValueError(
            f"clip {tuple(config.clip)}: torchvision halves whole maps only; allowed: sizes of 32, 64, ..."
        )
    blocks = [
        MSBlockConfig(
            num_heads=block.heads, input_channels=block.width, output_channels=block.inner,
            kernel_q=list(block.query_kernel), kernel_kv=list(config.pool_kernel),
            stride_q=list(block.query_stride), stride_kv=list(block.key_stride),
        )
        for block in config.block_sizes()
    ]  # fmt: skip
    return MViT(
        spatial_size=tuple(config.clip[1:]), temporal_size=config.clip.t, block_setting=blocks, num_classes=num_classes,
        residual_pool=True, residual_with_cls_embed=False, rel_pos_embed=True, proj_after_attn=True, dropout=0.0,
    )  # fmt: skip


LAYOUT = Layout("torchvision", "", RENAMES, shaped=lambda name, x: x[None, None] if name.endswith("class_token") else x)
peers.register("torchvision_mvit")(
    Peer({"torchvision_mvit_v2_s": "mvit_v2_small_16f"}, make, lambda state: renamed(state, [LAYOUT]).tensors, "head.1")
)
