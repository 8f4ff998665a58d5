"""The configs of DualPath on image Swin, by name; see `backbones.dualpath_pyramid`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, no_type_check

from attention_zoo import Grid
from backbones.config import Configs, Rate, configs
from backbones.configs import pyramid
from backbones.configs.dualpath import SIDE, SPATIAL, TwoPaths
from backbones.configs.pyramid import PyramidConfig

POSITIONS = ("none", "relative")  # those that schemes have in themselves


@no_type_check  # it checks its values itself and takes lists where it keeps tuples
@dataclass(frozen=True)
class DualPathPyramidConfig(TwoPaths, PyramidConfig):
    """An image pyramid with adapters for clips; see `PyramidConfig` for what is not told here.

    Args:
        clip, shrink: see `TwoPaths`.
        bottleneck, before_attention, adapter_dropout: as in `DualPathConfig`.
        adapted: names of attention, as in `stages`, whose blocks have adapters.

    Raises:
        ValueError: a value is impossible.
    """

    family = "dualpath_pyramid"

    shrink: int = SIDE
    bottleneck: int = 128
    before_attention: bool = True
    adapted: tuple[str, ...] = ("W",)
    adapter_dropout: Rate = 0.1

    def __post_init__(self):
        super().__post_init__()
        self.check_paths()
        if self.position not in POSITIONS:
            raise ValueError(f"position {self.position!r} is not one of an image pyramid with adapters: none, relative")
        if self.st_adapter is not None:
            raise ValueError("st_adapter is of models of whole clips; here adapters are of `bottleneck` and `adapted`")
        if set(self.temporal_pooling) - {1}:
            raise ValueError(f"temporal_pooling {self.temporal_pooling} joins frames, but a picture is one; write 1s")
        names = self.adapted if isinstance(self.adapted, list | tuple) else [self.adapted]
        strange = [name for name in names if name not in self.used()]
        if strange or not names:
            raise ValueError(
                f"adapted {self.adapted!r} is not a list of attention that a block uses; there are: "
                f"{', '.join(self.used())}"
            )
        self._set("adapted", tuple(names))

    def adapts(self, stage: int, block: int) -> bool:
        """Whether a block has adapters."""
        pattern = self.stages[stage]
        return pattern[block % len(pattern)] in self.adapted

    def maps(self) -> list[tuple[Grid, Grid]]:
        """Tokens of a frame and of a mosaic in each stage."""
        sizes, frame, mosaic = [], self.frame, self.mosaic
        for step in self.steps():
            frame, mosaic = frame.ceil_div(step), mosaic.ceil_div(step)
            sizes.append((frame, mosaic))
        return sizes

    def shrunk(self, width: float, depth: int | None, clip: Any) -> DualPathPyramidConfig:
        """Clips keep enough frames for a mosaic; adapters narrow with the stages."""
        small = super().shrunk(width, depth, [SIDE**2 * max(1, clip[0] // SIDE**2), *clip[1:]])
        return small.changed({"bottleneck": max(1, round(self.bottleneck * width))}) if width != 1 else small

    def sizes(self) -> dict[str, Any]:
        """The stages of the frames, then those of the mosaics."""
        frames, mosaics = zip(*self.maps(), strict=True)
        tokens = [list(grid._replace(t=SPATIAL)) for grid in frames]
        tokens += [list(grid._replace(t=self.mosaics)) for grid in mosaics]
        return {"blocks": [*self.depths] * 2, "widths": [*self.widths] * 2, "tokens": tokens}


def _swin(size: str, **changes: Any) -> DualPathPyramidConfig:
    image = pyramid.models()[f"video_swin_{size}_image"]()
    names = ("attention", "stages", "widths", "num_heads", "depths", "patch", "downsampling", "position")
    same = {name: getattr(image, name) for name in names}
    clip = Grid(SIDE**2, *image.clip[1:])
    return DualPathPyramidConfig(**same, clip=clip, drop_path=0.0, dropout=0.0, **changes)


def models() -> dict[str, Callable[[], DualPathPyramidConfig]]:
    """Swin-B with five adapters, as on SSv2, and with four."""
    return {
        "dualpath_swin_base_16f": partial(_swin, "base"),
        "dualpath_swin_base_16f_4_adapters": partial(_swin, "base", before_attention=False),
    }


configs.register("dualpath_pyramid")(Configs(DualPathPyramidConfig, models))
