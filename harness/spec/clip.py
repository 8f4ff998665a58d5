"""What is done to clips in training, as values: the augmentation of one clip, and the mixing of the clips of a batch.

No torch here, so that recipes and command lines load at once. `transforms` and `mixing` carry these settings out.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

MEAN = (123.675, 116.28, 103.53)  # RGB on the scale 0-255, as in the Kinetics configurations of both families
STD = (58.395, 57.12, 57.375)
CROPS = ("random_resized", "random", "center")
RAND_AUGMENT = re.compile(r"n(?P<operations>\d+)-m(?P<magnitude>\d+(?:\.\d+)?)(?:-s(?P<deviation>\d+(?:\.\d+)?))?")
RAND_AUGMENT_SCALE = 10  # the largest magnitude, at which every operation is as strong as it gets


@dataclass(frozen=True)
class Augmentation:
    """What one training clip goes through, in this order: short side to `resize`, crop, to `size` x `size`, flip,
    RandAugment, colour jitter, normalisation, erasing.

    Source: the Kinetics configurations of DualFormer and Video Swin (the defaults); RandAugment, jitter and erasing as
    in those of MViT and of Video Swin on Something-Something. Lists are taken as tuples. Raises: ValueError.
    """

    size: int = 224
    resize: int | tuple[int, int] | None = 256  # short side in pixels; a pair: drawn between the two; None: as decoded
    crop: str = "random_resized"  # "random" and "center" cut size x size without another change of scale
    area: tuple[float, float] = (0.08, 1.0)  # share of the frame that a random resized crop keeps
    aspect: tuple[float, float] = (3 / 4, 4 / 3)  # its width over its height
    flip: float = 0.5  # probability of left for right; clips of `sided` data sets are not flipped
    mirror: bool = False  # flip them, too, where the data set names the class of the flipped clip, which it then is
    rand_augment: str | None = None  # "n4-m7": four operations at magnitude 7 of 10; "n4-m7-s0.5": 7 with deviation 0.5
    erasing: float = 0.0  # probability that a box of the clip becomes noise
    jitter: float = 0.0  # brightness, contrast and saturation change by factors up to 1 - jitter and 1 + jitter
    mean: tuple[float, float, float] = MEAN  # RGB on the scale 0-255, as `std`
    std: tuple[float, float, float] = STD

    def __post_init__(self):
        for name in ("resize", "area", "aspect", "mean", "std"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        _whole("size", self.size)
        if isinstance(self.resize, tuple):
            _pair("resize", self.resize)
            for side in self.resize:
                _whole("resize", side)
        elif self.resize is not None:
            _whole("resize", self.resize)
        if self.crop not in CROPS:
            raise ValueError(f"crop is {self.crop!r}; allowed: {', '.join(CROPS)}")
        smallest = self.resize[0] if isinstance(self.resize, tuple) else self.resize
        if self.crop != "random_resized" and smallest is not None and smallest < self.size:
            raise ValueError(
                f"crop {self.crop!r} cannot cut size {self.size} from frames with a short side of {smallest} (resize); "
                f"allowed: resize of {self.size} or more, or crop 'random_resized'"
            )
        _pair("area", self.area)
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area is {self.area}; allowed: shares of the frame, above 0 and at most 1")
        _pair("aspect", self.aspect)
        if self.aspect[0] <= 0:
            raise ValueError(f"aspect is {self.aspect}; allowed: width over height, above 0")
        for name in ("flip", "erasing", "jitter"):
            _share(name, getattr(self, name))
        if not isinstance(self.mirror, bool):
            raise ValueError(f"mirror is {self.mirror!r}; allowed: true or false")
        if self.rand_augment is not None:
            rand_augment_settings(self.rand_augment)
        for name in ("mean", "std"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or len(value) != 3 or not all(_is_number(entry) for entry in value):
                raise ValueError(f"{name} is {value!r}; allowed: three numbers (red, green, blue) on the scale 0-255")
        if min(self.std) < 1:
            raise ValueError(f"std is {self.std}; allowed: 1 or more, on the scale 0-255: multiply by 255")


@dataclass(frozen=True)
class Mixing:
    """How the clips of a batch are mixed with each other, and how sharp the targets are. Raises: ValueError.

    With mixup and CutMix both on, each batch gets one of them. Sources: Zhang et al., mixup, arXiv:1710.09412; Yun et
    al., CutMix, arXiv:1905.04899; label smoothing as Szegedy et al., arXiv:1512.00567.
    """

    mixup: float = 0.0  # both parameters of the Beta distribution that the mixing weight is drawn from; 0: no mixup
    cutmix: float = 0.0  # the same for CutMix
    probability: float = 1.0  # that a batch is mixed at all
    switch: float = 0.5  # that it is CutMix, where both are on
    smoothing: float = 0.0  # share of the target that is spread evenly over all classes

    def __post_init__(self):
        for name in ("mixup", "cutmix"):
            value = getattr(self, name)
            if not _is_number(value) or value < 0:
                raise ValueError(
                    f"{name} is {value!r}; allowed: 0 (off) or a positive parameter of the Beta distribution"
                )
        for name in ("probability", "switch", "smoothing"):
            _share(name, getattr(self, name))


def rand_augment_settings(text: str) -> tuple[int, float, float]:
    """Operations per clip, magnitude (0-10) and its standard deviation, of "n4-m7" or "n4-m7-s0.5".

    Raises: ValueError.
    """
    match = RAND_AUGMENT.fullmatch(text) if isinstance(text, str) else None
    if not match or int(match["operations"]) < 1 or float(match["magnitude"]) > RAND_AUGMENT_SCALE:
        raise ValueError(
            f"rand_augment is {text!r}; allowed: n<operations>-m<magnitude 0-{RAND_AUGMENT_SCALE}>, such as 'n4-m7', "
            "with a deviation of the magnitude as in 'n4-m7-s0.5', or none"
        )
    return int(match["operations"]), float(match["magnitude"]), float(match["deviation"] or 0)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}; allowed: a whole number of pixels, 1 or more")


def _share(name: str, value: Any) -> None:
    if not _is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"{name} is {value!r}; allowed: 0 to 1")


def _pair(name: str, value: Any) -> None:
    if not isinstance(value, tuple) or len(value) != 2 or not all(map(_is_number, value)) or value[0] > value[1]:
        raise ValueError(f"{name} is {value!r}; allowed: two numbers, the smaller first")
