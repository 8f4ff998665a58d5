"""The configs of pyramids, by name: DualFormer, Video Swin, UniFormer's blocks and `pyramid_tiny_<scheme>`; see
`backbones.pyramid`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, no_type_check

from attention_zoo import Grid, check_heads, declared
from backbones.config import Config, Configs, Rate, Ratio, Steps, configs, narrower, patterns

Downsampling = Literal["conv", "merge"]
Position = Literal["peg", "every", "relative", "none"]
Stem = Literal["patch", "convolutions"]
RELATIVE_BIAS = "relative_bias"  # the option by which a scheme takes a relative position bias
SPATIAL_STEP = 2  # every stage after the first halves height and width


@no_type_check  # it checks its values itself and takes lists where it keeps tuples
@dataclass(frozen=True)
class PyramidConfig(Config):
    """A pyramid and the attention scheme of each of its blocks.

    Args:
        attention: the schemes that `stages` may name: `{"G": {"scheme": "global_pyramid", "scales": [[8, 7, 7]]}}`.
            A registered scheme with its default options needs no entry.
        stages: for each stage a pattern of names, repeated over its blocks: `("L", "G")` alternates.
        widths, num_heads, depths: one number for each stage; depths count single blocks.
        clip: the nominal input: frames, height and width in pixels. Sizes of parameters may follow from it.
        mlp_ratio: hidden width of the MLP over the width of the stage.
        mlp_rank: of both maps of the MLP, over the width of the stage; None for whole maps. See `mlp.Mlp`.
        patch: frames and pixels that become one token of the first stage.
        stem: how pixels become the tokens of the first stage: "patch", or for small models and little data
            "convolutions", see `ConvolutionStem`.
        temporal_pooling: how many time steps each further stage joins. Space is halved in each.
        downsampling: between stages, "conv" is DualFormer's patch embedding, "merge" Video Swin's patch merging.
        position: "peg" is DualFormer's conditional position encoding after the first block of each stage; "every" the
            same before each block, as in UniFormer; "relative" a relative position bias in every scheme that has this
            option; "none" adds nothing to what the schemes do.
        position_kernel: size of the convolution of "peg" and "every".
        st_adapter: width of an ST-Adapter before each block's attention, over the width of the stage; None for none.
        drop_path: stochastic depth of the last block, growing linearly from 0 in the first.
        dropout: before the classifier.
        activation_checkpointing: in training, compute the blocks again in the backward pass instead of keeping their
            activations.

    Raises:
        ValueError: a value is impossible.
        UnknownName: a scheme or a name in `stages` is unknown; the nearest is given.
    """

    family = "pyramid"

    attention: dict[str, dict[str, Any]]
    stages: tuple[tuple[str, ...], ...]
    widths: tuple[int, ...]
    num_heads: tuple[int, ...]
    depths: tuple[int, ...]
    clip: Grid = Grid(32, 224, 224)
    in_channels: int = 3
    mlp_ratio: Ratio = 4.0
    mlp_rank: Ratio | None = None
    patch: Grid = Grid(2, 4, 4)
    stem: Stem = "patch"
    temporal_pooling: Steps = (1, 1, 1)
    downsampling: Downsampling = "conv"
    position: Position = "peg"
    position_kernel: Grid = Grid(3, 3, 3)
    st_adapter: Ratio | None = None
    drop_path: Rate = 0.1
    dropout: Rate = 0.5
    activation_checkpointing: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not all(n % 2 for n in self.position_kernel):
            raise ValueError(f"position_kernel {tuple(self.position_kernel)} must be odd along every axis: (3, 3, 3)")
        self._set("stages", patterns("stages", self.stages, self.attention))
        self._check_lengths()
        if self.st_adapter is not None and self.position == "every":
            raise ValueError("st_adapter goes with no position 'every', whose blocks have a part of their own there")
        for stage, (width, heads) in enumerate(zip(self.widths, self.num_heads, strict=True)):
            try:
                check_heads(width, heads)
            except ValueError as error:
                raise ValueError(f"stage {stage}: {error}") from None
        if self.position == "relative":
            self._check_relative()

    def _check_lengths(self) -> None:
        count = len(self.widths)
        for name in ("num_heads", "depths", "stages"):
            if len(getattr(self, name)) != count:
                raise ValueError(
                    f"{name} {getattr(self, name)} has {len(getattr(self, name))} entries, but widths {self.widths} "
                    f"makes {count} stages; give one for each stage"
                )
        if len(self.temporal_pooling) != count - 1:
            raise ValueError(
                f"temporal_pooling {self.temporal_pooling} has {len(self.temporal_pooling)} entries, expected "
                f"{count - 1}: one for each stage after the first"
            )

    def _check_relative(self) -> None:
        used = {name: self.entry(name) for name in self.used()}
        schemes = {scheme for scheme, _ in used.values()}
        if not any(RELATIVE_BIAS in declared.options_of(scheme) for scheme in schemes):
            able = [n for n in declared.names("schemes") if RELATIVE_BIAS in declared.options_of(n)]
            raise ValueError(
                f"position 'relative' needs a scheme with the option {RELATIVE_BIAS}; this model uses "
                f"{', '.join(sorted(schemes))}; schemes that have it: {', '.join(able)}"
            )
        for name, (_, options) in used.items():
            if options.get(RELATIVE_BIAS) is False:
                raise ValueError(
                    f"position 'relative' contradicts attention.{name}.{RELATIVE_BIAS} = False; remove one of the two"
                )

    def attention_at(self, stage: int, block: int) -> tuple[str, dict[str, Any]]:
        """The scheme of a block and its options."""
        pattern = self.stages[stage]
        scheme, options = self.entry(pattern[block % len(pattern)])
        if self.position == "relative" and RELATIVE_BIAS in declared.options_of(scheme):
            options[RELATIVE_BIAS] = True
        return scheme, options

    @property
    def tunable(self) -> Mapping[str, str]:
        adapters = {} if self.st_adapter is None else {"adapters": r"\.adapter\.|^classifier\."}
        return Config.tunable | adapters

    def used(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for pattern in self.stages for name in pattern))

    def shrunk(self, width: float, depth: int | None, clip: Sequence[int]) -> PyramidConfig:
        """The width of a head shrinks with the width of its stage once a stage has a single head left. Stages keep at
        least one whole turn of their pattern, so that local and global attention still alternate.
        """
        depths = [
            blocks if depth is None else min(blocks, max(depth, len(pattern)))
            for blocks, pattern in zip(self.depths, self.stages, strict=True)
        ]
        sizes = [narrower(*size, width) for size in zip(self.widths, self.num_heads, strict=True)]
        narrow = dict(zip(("widths", "num_heads"), zip(*sizes, strict=True), strict=True)) if width != 1 else {}
        return self.changed({"clip": clip, "depths": depths} | narrow)

    def sizes(self) -> dict[str, Any]:
        grid, tokens = self.clip, []
        for step in self.steps():
            grid = grid.ceil_div(step)
            tokens.append(list(grid))
        return {"blocks": list(self.depths), "widths": list(self.widths), "tokens": tokens}

    def steps(self) -> list[Grid]:
        """What one token of each stage joins of the map before it."""
        return [self.patch, *(Grid(t, SPATIAL_STEP, SPATIAL_STEP) for t in self.temporal_pooling)]


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
UNIFORMER_DEPTHS = {"small": (3, 4, 8, 3), "base": (5, 8, 20, 7)}  # arXiv:2201.09450, Sec. 3.4
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


def _dualformer(size: str) -> PyramidConfig:
    return PyramidConfig(
        attention=_dualformer_attention(WINDOW, FINE, COARSE),
        stages=(("L", "G2"), ("L", "G2"), ("L", "G1"), ("L", "W")),
        **DUALFORMER_SIZES[size],
    )


def _dualformer_image(size: str) -> PyramidConfig:
    """The 2-D model before inflation, inferred: none is released."""
    return PyramidConfig(
        attention=_dualformer_attention(*((1, *scale[1:]) for scale in (WINDOW, FINE, COARSE))),
        stages=(("L", "G2"), ("L", "G2"), ("L", "G1"), ("L", "W")),
        position_kernel=Grid(1, 3, 3),
        **DUALFORMER_SIZES[size],
        **IMAGE,
    )


def _video_swin(size: str, window: tuple = WINDOW, **changes: Any) -> PyramidConfig:
    """As released: padding can be attended to, and clipped windows take the released rows of the bias table."""
    shared = dict(scheme="shifted_window", window=window, padding="attended", clipped_bias="published")
    return PyramidConfig(
        attention={"W": dict(shared, shift="none"), "S": dict(shared, shift="half")},
        stages=(("W", "S"),) * 4,
        downsampling="merge",
        position="none",
        **VIDEO_SWIN_SIZES[size],
        **changes,
    )


def _st_adapter(size: str) -> PyramidConfig:
    """Frames seen by image Swin, each for itself, but for the adapters, as wide as in the ViT: half of the width."""
    changes = dict(clip=Grid(8, 224, 224), patch=Grid(1, 4, 4), st_adapter=0.5)
    return _video_swin(size, (1, *WINDOW[1:]), **changes)


def _pyramid_tiny(scheme: str) -> PyramidConfig:
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
    return PyramidConfig(attention=attention, stages=stages, **DUALFORMER_SIZES["tiny"])


def _uniformer(depths: tuple[int, ...]) -> PyramidConfig:
    """UniFormer's blocks, widths and depths in this backbone: its patches do not overlap, and all norms are LayerNorm.

    (The released model has BatchNorm in its first two stages and stems of 3 frames, so its weights do not fit.)
    """
    return PyramidConfig(
        attention={},
        stages=(("depthwise_relation",),) * 2 + (("full",),) * 2,
        widths=(64, 128, 320, 512),
        num_heads=(1, 2, 5, 8),
        depths=depths,
        clip=Grid(16, 224, 224),
        position="every",
    )


def models() -> dict[str, Callable[[], PyramidConfig]]:
    """Looked up at each call: a scheme registered later has its pyramid at once."""
    image_window = (1, *WINDOW[1:])
    return {
        **{f"dualformer_{size}": partial(_dualformer, size) for size in DUALFORMER_SIZES},
        **{f"dualformer_{size}_image": partial(_dualformer_image, size) for size in DUALFORMER_SIZES},
        **{f"video_swin_{size}": partial(_video_swin, size) for size in VIDEO_SWIN_SIZES},
        **{f"video_swin_{size}_image": partial(_video_swin, size, image_window, **IMAGE) for size in VIDEO_SWIN_SIZES},
        "st_adapter_swin_base_8f": partial(_st_adapter, "base"),
        **{f"pyramid_uniformer_{size}": partial(_uniformer, depths) for size, depths in UNIFORMER_DEPTHS.items()},
        **{f"pyramid_tiny_{scheme}": partial(_pyramid_tiny, scheme) for scheme in declared.names("schemes")},
    }


configs.register("pyramid")(Configs(PyramidConfig, models))
