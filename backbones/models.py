"""The named models, as data, and `create`, which builds one.

`pyramid_tiny_<scheme>` is DualFormer-T's skeleton with that scheme in every block: the same widths, depths, embeddings
and position encoding, so that rows differ in the scheme alone. There is one for every registered scheme.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import attention_zoo
from attention_zoo import Grid, UnknownName
from attention_zoo.registry import nearest
from backbones.config import ModelConfig
from backbones.pyramid import Pyramid

# Sources: DualFormer, arXiv:2112.04674, and the released configuration files, which alone give the heads. Depths count
# single blocks; the paper counts pairs.
DUALFORMER_SIZES = {
    "tiny": dict(widths=(64, 128, 256, 512), num_heads=(2, 4, 8, 16), depths=(2, 2, 10, 4), drop_path=0.1),
    "small": dict(widths=(96, 192, 384, 768), num_heads=(3, 6, 12, 24), depths=(2, 2, 18, 2), drop_path=0.2),
    "base": dict(widths=(128, 256, 512, 1024), num_heads=(4, 8, 16, 32), depths=(2, 2, 18, 2), drop_path=0.3),
}
# Sources: Video Swin, arXiv:2106.13230, and the released configuration files; none is released for the large one, whose
# drop path is the base's.
VIDEO_SWIN_SIZES = {
    "tiny": dict(widths=(96, 192, 384, 768), num_heads=(3, 6, 12, 24), depths=(2, 2, 6, 2), drop_path=0.1),
    "small": dict(widths=(96, 192, 384, 768), num_heads=(3, 6, 12, 24), depths=(2, 2, 18, 2), drop_path=0.1),
    "base": dict(widths=(128, 256, 512, 1024), num_heads=(4, 8, 16, 32), depths=(2, 2, 18, 2), drop_path=0.3),
    "large": dict(widths=(192, 384, 768, 1536), num_heads=(6, 12, 24, 48), depths=(2, 2, 18, 2), drop_path=0.3),
}
WINDOW, FINE, COARSE = (8, 7, 7), (8, 7, 7), (4, 4, 4)
IMAGE = dict(clip=Grid(1, 224, 224), patch=Grid(1, 4, 4))


def _dualformer_attention(window: tuple, fine: tuple, coarse: tuple) -> dict[str, dict[str, Any]]:
    """L: local windows; G2: two pooled copies; G1: one; W: the whole map, of the last stage."""
    return {
        "L": dict(scheme="local_window", window=window),
        "G2": dict(scheme="global_pyramid", scales=(fine, coarse)),
        "G1": dict(scheme="global_pyramid", scales=(fine,)),
        "W": dict(scheme="global_pyramid", scales=("whole",)),
    }


def _dualformer(size: str) -> ModelConfig:
    return ModelConfig(
        attention=_dualformer_attention(WINDOW, FINE, COARSE),
        stages=(("L", "G2"), ("L", "G2"), ("L", "G1"), ("L", "W")),
        **DUALFORMER_SIZES[size],
    )


def _dualformer_image(size: str) -> ModelConfig:
    """The 2-D model before inflation, inferred: none is released."""
    return ModelConfig(
        attention=_dualformer_attention(*((1, *scale[1:]) for scale in (WINDOW, FINE, COARSE))),
        stages=(("L", "G2"), ("L", "G2"), ("L", "G1"), ("L", "W")),
        position_kernel=Grid(1, 3, 3),
        **DUALFORMER_SIZES[size],
        **IMAGE,
    )


def _video_swin(size: str, window: tuple = WINDOW, **changes: Any) -> ModelConfig:
    """As released: padding can be attended to, and clipped windows take the released rows of the bias table."""
    shared = dict(scheme="shifted_window", window=window, padding="attended", clipped_bias="published")
    return ModelConfig(
        attention={"W": dict(shared, shift="none"), "S": dict(shared, shift="half")},
        stages=(("W", "S"),) * 4,
        downsampling="merge",
        position="none",
        **VIDEO_SWIN_SIZES[size],
        **changes,
    )


def _pyramid_tiny(scheme: str) -> ModelConfig:
    if scheme == "global_pyramid":  # the scales that DualFormer has in each stage
        attention = _dualformer_attention(WINDOW, FINE, COARSE)
        stages = (("G2",), ("G2",), ("G1",), ("W",))
    elif scheme == "shifted_window":
        attention = {name: dict(scheme=scheme, shift=shift) for name, shift in (("W", "none"), ("S", "half"))}
        stages = (("W", "S"),) * 4
    else:
        attention, stages = {}, ((scheme,),) * 4
    used = {name for pattern in stages for name in pattern}
    attention = {name: entry for name, entry in attention.items() if name in used}
    return ModelConfig(attention=attention, stages=stages, **DUALFORMER_SIZES["tiny"])


def _named() -> dict[str, Callable[[], ModelConfig]]:
    """Looked up at each call: a scheme registered later has its pyramid at once."""
    image_window = (1, *WINDOW[1:])
    return {
        **{f"dualformer_{size}": partial(_dualformer, size) for size in DUALFORMER_SIZES},
        **{f"dualformer_{size}_image": partial(_dualformer_image, size) for size in DUALFORMER_SIZES},
        **{f"video_swin_{size}": partial(_video_swin, size) for size in VIDEO_SWIN_SIZES},
        **{f"video_swin_{size}_image": partial(_video_swin, size, image_window, **IMAGE) for size in VIDEO_SWIN_SIZES},
        **{f"pyramid_tiny_{scheme}": partial(_pyramid_tiny, scheme) for scheme in attention_zoo.schemes.names()},
    }


def names() -> tuple[str, ...]:
    """The models that `create` knows by name."""
    return tuple(_named())


def config(name: str) -> ModelConfig:
    """The config of a named model. Raises UnknownName (a KeyError) with the nearest name."""
    known = _named()
    if name not in known:
        raise UnknownName(f"unknown model {name!r}; {nearest(str(name), known)}")
    return known[name]()


def create(
    model: str | ModelConfig,
    num_classes: int = 400,
    *,
    kernel: str = attention_zoo.kernels.AUTO,
    changes: Mapping[str, Any] | None = None,
) -> Pyramid:
    """Builds a model by name or from a config, freshly initialised on the current default device.

    Args:
        num_classes: 0 for a model without classifier, which returns pooled features.
        kernel: what computes the attention, see `attention_zoo.kernels`; results do not depend on it.
        changes: dotted paths into the config and their values, see `ModelConfig.changed`.
    """
    chosen = config(model) if isinstance(model, str) else model
    chosen = chosen.changed(changes) if changes else chosen

    def build_attention(stage: int, block: int, dim: int, num_heads: int, grid: Grid):
        scheme, options = chosen.attention_at(stage, block)
        return attention_zoo.build(scheme, dim, num_heads, grid, kernel=kernel, **options)

    built = Pyramid(
        chosen.clip,
        num_classes,
        build_attention,
        widths=chosen.widths,
        num_heads=chosen.num_heads,
        depths=chosen.depths,
        in_channels=chosen.in_channels,
        patch=chosen.patch,
        temporal_pooling=chosen.temporal_pooling,
        merge=chosen.downsampling == "merge",
        position_kernel=chosen.position_kernel if chosen.position == "peg" else None,
        mlp_ratio=chosen.mlp_ratio,
        drop_path=chosen.drop_path,
        dropout=chosen.dropout,
        activation_checkpointing=chosen.activation_checkpointing,
    )
    built.config = chosen
    return built
