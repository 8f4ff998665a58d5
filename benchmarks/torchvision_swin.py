"""swin3d_t of torchvision, whose compiled part loads with the full torch build that it was made for only.

A torchvision that does not load keeps transformers from loading too: remove it then.
"""

from __future__ import annotations

from torch import nn

from backbones.config import Config
from backbones.layouts import Layout, renamed
from benchmarks.public import Absent, Peer, peers

RENAMES = (  # features alternate stages and merging
    (r"^patch_embed\.", lambda m: "stages.0.embed."),
    (r"^features\.(\d+)\.(reduction|norm)\.", lambda m: f"stages.{(int(m[1]) + 1) // 2}.embed.{m[2]}."),
    (
        r"^features\.(\d+)\.(\d+)\.attn\.relative_position_bias_table$",
        lambda m: f"stages.{int(m[1]) // 2}.blocks.{m[2]}.attention.bias.table",
    ),
    (r"^features\.(\d+)\.(\d+)\.attn\.", lambda m: f"stages.{int(m[1]) // 2}.blocks.{m[2]}.attention."),
    (r"^features\.(\d+)\.(\d+)\.mlp\.0\.", lambda m: f"stages.{int(m[1]) // 2}.blocks.{m[2]}.mlp.fc1."),
    (r"^features\.(\d+)\.(\d+)\.mlp\.3\.", lambda m: f"stages.{int(m[1]) // 2}.blocks.{m[2]}.mlp.fc2."),
    (r"^features\.(\d+)\.(\d+)\.norm", lambda m: f"stages.{int(m[1]) // 2}.blocks.{m[2]}.norm"),
    (r"^head\.", lambda m: "classifier."),
    (r"^norm\.", lambda m: "norm."),
)


def make(config: Config, num_classes: int) -> nn.Module:
    try:
        from torchvision.models.video.swin_transformer import SwinTransformer3d
    except (ImportError, RuntimeError, OSError) as error:
        needs = "it needs the full torch build that it was made for; install both, then add force=true"
        raise Absent(f"torchvision does not load ({error}); {needs}") from error
    (_, options) = config.entry(config.stages[0][0])
    return SwinTransformer3d(
        patch_size=list(config.patch), embed_dim=config.widths[0], depths=list(config.depths),
        num_heads=list(config.num_heads), window_size=list(options["window"]), mlp_ratio=config.mlp_ratio,
        stochastic_depth_prob=0.0, num_classes=num_classes,
    )  # fmt: skip


LAYOUT = Layout("torchvision", "", RENAMES, ignored=((r"\.relative_position_index$", "follows from the window"),))
peers.register("torchvision")(
    Peer({"torchvision_swin3d_t": "video_swin_tiny"}, make, lambda state: renamed(state, [LAYOUT]).tensors, "head")
)
