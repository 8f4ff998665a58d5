"""The names under which checkpoints keep their tensors, and how they become ours. Rules are data, tried in order.

Sources: the released code of DualFormer (sail-sg/dualformer) and Video Swin (SwinTransformer/Video-Swin-Transformer),
both on mmaction; the image Swin checkpoints differ from the latter in their classifier only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

# What wrapping a module (in DDP, torch.compile, a recogniser with a head) puts before every name.
WRAPPED = re.compile(r"^(?:module\.|_orig_mod\.)*(?:backbone\.)?")


@dataclass(frozen=True)
class Layout:
    """A naming scheme: `sign` finds it, `renames` translates it, `ignored` says what we leave out and why."""

    name: str
    sign: str
    renames: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = ()
    ignored: tuple[tuple[str, str], ...] = ()

    def rename(self, key: str) -> str:
        """The first rule that matches renames; a name that none matches stays."""
        for pattern, replacement in self.renames:
            new, count = re.subn(pattern, replacement, key)
            if count:
                return new
        return key


def _next_stage(match: re.Match[str]) -> str:
    """Video Swin counts the merging after a stage to that stage, we to the next."""
    return f"stages.{int(match[1]) + 1}.embed."


NATIVE = Layout("attention-zoo", r"^stages\.\d+\.embed\.")
DUALFORMER = Layout(
    "DualFormer (mmaction)",
    r"^patch_embeds\.\d+\.",
    renames=(
        (r"^patch_embeds\.(\d+)\.", r"stages.\1.embed."),
        (r"^pos_block\.(\d+)\.proj\.0\.", r"stages.\1.position."),
        (r"^blocks\.(\d+)\.(\d+)\.attn\.sr\.", r"stages.\1.blocks.\2.attention.priors.0.0."),
        (r"^blocks\.(\d+)\.(\d+)\.attn\.lr\.", r"stages.\1.blocks.\2.attention.priors.1."),
        (r"^blocks\.(\d+)\.(\d+)\.attn\.", r"stages.\1.blocks.\2.attention."),
        (r"^blocks\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"^cls_head\.fc_cls\.", "classifier."),
    ),
    ignored=(
        (r"^teacher\.", "the teacher of token labelling is no part of the model"),
        (r"^cls_head\.token_linear\.", "the token classifier serves training only"),
    ),
)
VIDEO_SWIN = Layout(
    "Video Swin (mmaction)",
    r"^(patch_embed\.|layers\.\d+\.blocks\.)",
    renames=(
        (r"^patch_embed\.", "stages.0.embed."),
        (r"^layers\.(\d+)\.downsample\.", _next_stage),
        (
            r"^layers\.(\d+)\.blocks\.(\d+)\.attn\.relative_position_bias_table$",
            r"stages.\1.blocks.\2.attention.bias.table",
        ),
        (r"^layers\.(\d+)\.blocks\.(\d+)\.attn\.", r"stages.\1.blocks.\2.attention."),
        (r"^layers\.(\d+)\.blocks\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"^(?:cls_head\.fc_cls|head)\.", "classifier."),
    ),
    ignored=(
        (r"\.relative_position_index$", "follows from the window"),
        (r"\.attn_mask$", "follows from the window and the map"),
    ),
)
LAYOUTS = (NATIVE, DUALFORMER, VIDEO_SWIN)


@dataclass(frozen=True)
class Translated:
    """A state dict under our names; `origin` gives the name in the file, `ignored` what was left out and why."""

    layout: Layout
    tensors: dict[str, Tensor]
    origin: dict[str, str]
    ignored: dict[str, str]


def detect(keys: Iterable[str]) -> Layout | None:
    stripped = [WRAPPED.sub("", key) for key in keys]
    return next((layout for layout in LAYOUTS if any(re.search(layout.sign, key) for key in stripped)), None)


def translate(state: Mapping[str, Tensor]) -> Translated:
    """Finds the layout by the names and renames.

    Raises:
        ValueError: no known layout has such names, or two of them mean the same tensor.
    """
    layout = detect(state)
    if layout is None:
        raise ValueError(
            f"names such as {', '.join(list(state)[:3])} belong to no known layout; "
            f"known: {', '.join(known.name for known in LAYOUTS)}"
        )
    tensors: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    ignored: dict[str, str] = {}
    for key, tensor in state.items():
        bare = WRAPPED.sub("", key)
        reason = next((why for pattern, why in layout.ignored if re.search(pattern, bare)), None)
        if reason:
            ignored[key] = reason
            continue
        new = layout.rename(bare)
        if new in tensors:
            raise ValueError(f"{origin[new]} and {key} both stand for {new}; remove one of them")
        tensors[new], origin[new] = tensor, key
    return Translated(layout, tensors, origin, ignored)
