"""What is done to clips in training, as values: the augmentation of one clip, and the mixing of the clips of a batch.

No torch here, so that recipes and command lines load at once. `transforms` and `mixing` carry these settings out.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from harness.spec.reader import STRICT, Count, Flag, FromZero, Meaning, Number, Positive, Share

MEAN = (123.675, 116.28, 103.53)  # RGB on the scale 0-255, as in the Kinetics configurations of both families
STD = (58.395, 57.12, 57.375)
RAND_AUGMENT = re.compile(r"n(?P<operations>\d+)-m(?P<magnitude>\d+(?:\.\d+)?)(?:-s(?P<deviation>\d+(?:\.\d+)?))?")
RAND_AUGMENT_SCALE = 10  # the largest magnitude, at which every operation is as strong as it gets


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


def _valid(text: str) -> str:
    rand_augment_settings(text)
    return text


def _grows(pair: tuple) -> tuple:
    if pair[0] > pair[1]:
        raise ValueError(f"{list(pair)} are two numbers, the smaller first")
    return pair


Area = Annotated[Number, Field(gt=0, le=1), Meaning("a share of the frame, above 0 and at most 1")]


def _of_bytes(mean: float) -> float:
    if 0 < mean < 1:  # 0 itself is a mean: that of none
        raise ValueError(f"{mean:g} is a mean on the scale 0-1; ours is 0-255: multiply by 255")
    return mean


Mean = Annotated[Number, AfterValidator(_of_bytes)]
Deviation = Annotated[Number, Field(ge=1), Meaning("1 or more, on the scale 0-255: multiply by 255")]


@dataclass(frozen=True, config=STRICT)
class Augmentation:
    """What one training clip goes through, in this order: short side to `resize`, crop, to `size` x `size`, flip,
    RandAugment, colour jitter, normalisation, erasing.

    Source: the Kinetics configurations of DualFormer and Video Swin (the defaults); RandAugment, jitter and erasing as
    in those of MViT and of Video Swin on Something-Something. Lists are taken as tuples. Raises: ValueError.
    """

    size: Count = 224
    # Short side in pixels; a pair: drawn between the two; None: as decoded.
    resize: Count | Annotated[tuple[Count, Count], AfterValidator(_grows), Meaning("two, the smaller first")] | None = (
        256
    )
    crop: Literal["random_resized", "random", "center"] = "random_resized"  # the last two cut without a change of scale
    area: Annotated[tuple[Area, Area], AfterValidator(_grows)] = (0.08, 1.0)  # what a random resized crop keeps
    aspect: Annotated[tuple[Positive, Positive], AfterValidator(_grows)] = (3 / 4, 4 / 3)  # its width over its height
    # Frames that shrink are smoothed first, those of tests too: at a quarter of the size thin things vanish without.
    antialias: Flag = False
    flip: Share = 0.5  # probability of left for right; clips of `sided` data sets are not flipped
    mirror: Flag = False  # flip them, too, where the data set names the class of the flipped clip, which it then is
    # "n4-m7": four operations at magnitude 7 of 10; "n4-m7-s0.5": 7 with deviation 0.5
    rand_augment: Annotated[str, AfterValidator(_valid)] | None = None
    erasing: Share = 0.0  # probability that a box of the clip becomes noise
    jitter: Share = 0.0  # brightness, contrast and saturation change by factors up to 1 - jitter and 1 + jitter
    mean: tuple[Mean, Mean, Mean] = MEAN  # RGB on the scale 0-255, as `std`
    std: tuple[Deviation, Deviation, Deviation] = STD

    def __post_init__(self):
        smallest = self.resize[0] if isinstance(self.resize, tuple) else self.resize
        if self.crop != "random_resized" and smallest is not None and smallest < self.size:
            raise ValueError(
                f"crop {self.crop!r} cannot cut size {self.size} from frames with a short side of {smallest} (resize); "
                f"allowed: resize of {self.size} or more, or crop 'random_resized'"
            )


@dataclass(frozen=True, config=STRICT)
class Mixing:
    """How the clips of a batch are mixed with each other, and how sharp the targets are. Raises: ValueError.

    With mixup and CutMix both on, each batch gets one of them. Sources: Zhang et al., mixup, arXiv:1710.09412; Yun et
    al., CutMix, arXiv:1905.04899; label smoothing as Szegedy et al., arXiv:1512.00567.
    """

    mixup: FromZero = 0.0  # both parameters of the Beta distribution that the mixing weight is drawn from; 0: no mixup
    cutmix: FromZero = 0.0  # the same for CutMix
    probability: Share = 1.0  # that a batch is mixed at all
    switch: Share = 0.5  # that it is CutMix, where both are on
    smoothing: Share = 0.0  # share of the target that is spread evenly over all classes
