"""TimeSformer and ViViT of the package transformers, which installs beside any torch: `pip install transformers`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from backbones.config import Config
from backbones.family import layouts_of
from backbones.layouts import renamed
from benchmarks.public import Absent, Peer, peers


class FramesFirst(nn.Module):
    """Theirs, with frames and channels in our order."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, clip: Tensor) -> Tensor:
        return self.model(clip.transpose(1, 2)).logits


def make(config: Config, num_classes: int) -> FramesFirst:
    """ViViT's model 1 where positions are those of each place at each time, else TimeSformer with divided attention."""
    try:
        import transformers

        classes = (
            (transformers.VivitConfig, transformers.VivitForVideoClassification)
            if config.position == "joint"
            else (transformers.TimesformerConfig, transformers.TimesformerForVideoClassification)
        )
    except (ImportError, RuntimeError, OSError) as error:
        raise Absent(f"transformers does not load ({error}); pip install transformers, then add force=true") from error
    tubes = {"tubelet_size": list(config.patch)} if config.position == "joint" else {"patch_size": config.patch.h}
    theirs = classes[0](
        image_size=config.clip.h, num_frames=config.clip.t, num_hidden_layers=config.depth, hidden_size=config.width,
        num_attention_heads=config.num_heads, intermediate_size=int(config.mlp_ratio * config.width),
        num_labels=num_classes, hidden_dropout_prob=0.0, **tubes,
    )  # fmt: skip
    return FramesFirst(classes[1](theirs))


def ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By the layouts that `load_checkpoint` knows; a convolution of images is ours of a single frame."""
    tensors = renamed(state, layouts_of("columnar")).tensors
    return {name: tensor[:, :, None] if tensor.ndim == 4 else tensor for name, tensor in tensors.items()}


NAMES = {"transformers_timesformer_base": "timesformer_base", "transformers_vivit_base_16x2": "vivit_base_16x2"}
peers.register("transformers")(Peer(NAMES, make, ours, "model.classifier"))
