"""The configs of Hiera, by name; see `backbones.hiera`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, no_type_check

from attention_zoo import Grid
from backbones.config import Configs, configs
from backbones.configs.multiscale import StagedConfig


@no_type_check  # it checks its values itself and takes lists where it keeps tuples
@dataclass(frozen=True)
class HieraConfig(StagedConfig):
    """A column of blocks in stages; see `StagedConfig` for what is not told here.

    Args:
        unit: tokens of a mask unit in the first stage; halved in height and width with each pooling.
        unit_stages: how many stages, from the first on, attend inside of mask units; the first block after them does,
            too, as released.
        attention: {"local_window": {...}} or {"full": {...}} changes an option of the blocks that attend so.

    Raises:
        ValueError: a value is impossible; mask units do not divide the map of the first stage.
    """

    family = "hiera"

    depths: tuple[int, ...] = (2, 3, 16, 3)
    unit: Grid = Grid(1, 8, 8)
    unit_stages: int = 2
    attention: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self):
        super().__post_init__()
        if unknown := set(self.attention) - {"local_window", "full"}:
            raise ValueError(f"attention {sorted(unknown)} is no kind of block here; allowed: local_window, full")
        if self.grid.padded(self.unit) != self.grid:
            raise ValueError(
                f"unit {tuple(self.unit)} does not divide the map {tuple(self.grid)} of the first stage; "
                f"allowed are clips whose sides are multiples of {tuple(self.unit.times(self.patch))}, or another unit"
            )
        if any(n % 2 ** (len(self.depths) - 1) for n in self.unit[1:]):
            raise ValueError(
                f"unit {tuple(self.unit)} cannot be halved in height and width {len(self.depths) - 1} times, once for "
                f"each stage after the first"
            )

    def used(self) -> tuple[str, ...]:
        return ("local_window", "full")[: 1 + (self.unit_stages < len(self.depths))]

    def shrunk(self, width: float, depth: int | None, clip: Sequence[int]) -> HieraConfig:
        """The clip is cut to whole mask units."""
        whole = self.unit.times(self.patch)
        return super().shrunk(width, depth, [max(size, n // size * size) for n, size in zip(clip, whole, strict=True)])

    def stage_grids(self) -> list[Grid]:
        return [Grid(self.grid.t, self.grid.h >> stage, self.grid.w >> stage) for stage in range(len(self.depths))]


def models() -> dict[str, Callable[[], HieraConfig]]:
    """The two sizes for 16 frames whose stages our sheet of the released code lists."""
    sizes = {"base": {}, "large": dict(width=144, num_heads=2, depths=(2, 6, 36, 4))}
    return {f"hiera_{size}_16f": partial(HieraConfig, **changes) for size, changes in sizes.items()}


configs.register("hiera")(Configs(HieraConfig, models))
