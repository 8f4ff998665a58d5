"""TimeSformer of the package transformers, which installs beside any torch: `pip install transformers`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from backbones.config import Config
from benchmarks.public import Absent, Peer, peers

RENAMES = (  # theirs, and ours
    (r"^timesformer\.embeddings\.patch_embeddings\.projection\.", "embed.proj."),
    (r"^timesformer\.embeddings\.cls_token$", "position.class_token"),
    (r"^timesformer\.embeddings\.position_embeddings$", "position.space"),
    (r"^timesformer\.embeddings\.time_embeddings$", "position.time"),
    (r"^timesformer\.encoder\.layer\.(\d+)\.temporal_layernorm\.", r"column.\1.norms.0."),
    (r"^timesformer\.encoder\.layer\.(\d+)\.temporal_attention\.attention\.qkv\.", r"column.\1.attention.0.qkv."),
    (r"^timesformer\.encoder\.layer\.(\d+)\.temporal_attention\.output\.dense\.", r"column.\1.attention.0.proj."),
    (r"^timesformer\.encoder\.layer\.(\d+)\.temporal_dense\.", r"column.\1.attention.0.fc."),
    (r"^timesformer\.encoder\.layer\.(\d+)\.layernorm_before\.", r"column.\1.norms.1."),
    (r"^timesformer\.encoder\.layer\.(\d+)\.attention\.attention\.qkv\.", r"column.\1.attention.1.qkv."),
    (r"^timesformer\.encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"column.\1.attention.1.proj."),
    (r"^timesformer\.encoder\.layer\.(\d+)\.layernorm_after\.", r"column.\1.mlp_norm."),
    (r"^timesformer\.encoder\.layer\.(\d+)\.intermediate\.dense\.", r"column.\1.mlp.fc1."),
    (r"^timesformer\.encoder\.layer\.(\d+)\.output\.dense\.", r"column.\1.mlp.fc2."),
    (r"^timesformer\.layernorm\.", "norm."),
    (r"^classifier\.", "classifier."),
)


class Timesformer(nn.Module):
    """Theirs, with frames and channels in our order."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, clip: Tensor) -> Tensor:
        return self.model(clip.transpose(1, 2)).logits


def make(config: Config, num_classes: int) -> Timesformer:
    try:
        from transformers import TimesformerConfig, TimesformerForVideoClassification
    except (ImportError, RuntimeError, OSError) as error:
        raise Absent(f"transformers does not load ({error}); pip install transformers, then add force=true") from error
    theirs = TimesformerConfig(
        image_size=config.clip.h, num_frames=config.clip.t, num_hidden_layers=config.depth, hidden_size=config.width,
        num_attention_heads=config.num_heads, intermediate_size=int(config.mlp_ratio * config.width),
        num_labels=num_classes,
    )  # fmt: skip
    return Timesformer(TimesformerForVideoClassification(theirs))


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    ours = {}
    for name, tensor in state.items():
        bare = name.removeprefix("model.")
        new = next((re.sub(pattern, to, bare) for pattern, to in RENAMES if re.search(pattern, bare)), None)
        if new is None:
            raise KeyError(f"no weight of transformers' TimeSformer is known as {name!r}")
        if new == "embed.proj.weight":  # a convolution of images, ours one of a single frame
            tensor = tensor.unsqueeze(2)
        ours[new] = tensor
    return ours


peers.register("transformers")(
    Peer({"transformers_timesformer_base": "timesformer_base"}, make, renamed, "model.classifier")
)
