"""RandAugment on clips: a few operations drawn from fifteen, the same on every frame.

The operations are kornia's where kornia has them. Its own `RandAugment` class is not used: it draws from the global
random state only, and its magnitudes are others than those of the published recipes (30 steps, where the middle is no
change of colour and the largest solarises nothing).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from harness.packages import late
from harness.spec.clip import RAND_AUGMENT_SCALE, rand_augment_settings

PROBABILITY = 0.5  # that a drawn operation is carried out
FILL = 128 / 255  # what comes in from outside the frame: gray
INSTALL = (
    "RandAugment needs kornia: pip install 'attention-zoo[augment]', or give recipe.augmentation.rand_augment=none"
)


def rand_augmented(frames: Float[Tensor, "t 3 h w"], setting: str, random: torch.Generator) -> Float[Tensor, "t 3 h w"]:
    """Frames (0-1) after as many operations as `setting` says ("n4-m7"), drawn with replacement; each takes place with
    probability one half.

    Source: Cubuk et al., RandAugment, arXiv:1909.13719, in the variant of the MViT recipes: every operation grows
    stronger with the magnitude (0-10), which may itself be drawn from a normal distribution, and the probability.

    Four numbers are drawn for each operation, used or not: which, whether, sign, deviation of the magnitude.
    Raises: ModuleNotFoundError, where kornia is missing.
    """
    count, magnitude, deviation = rand_augment_settings(setting)
    uniform = torch.rand(count, 3, generator=random, device=random.device, dtype=torch.float64).tolist()
    normal = torch.randn(count, generator=random, device=random.device, dtype=torch.float64).tolist()
    carry_out = list(operations().values())
    for (choice, whether, sign), deviate in zip(uniform, normal, strict=True):
        if whether < PROBABILITY:
            level = min(1.0, max(0.0, (magnitude + deviation * deviate) / RAND_AUGMENT_SCALE))
            operation = carry_out[int(choice * len(carry_out))]
            frames = operation(frames, level, 1 if sign < 0.5 else -1).clamp(0, 1)
    return frames


@lru_cache(maxsize=1)
def operations() -> dict[str, Callable[[Tensor, float, int], Tensor]]:
    """Each operation as a function of frames `t 3 h w` (0-1), level (0-1) and sign (1 or -1), in the order of draws."""
    try:
        enhance, warp_affine = late("kornia.enhance"), late("kornia.geometry.transform").warp_affine
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(INSTALL, name=error.name) from error

    def stretched(frames: Tensor) -> Tensor:
        flat = frames.amax((2, 3), keepdim=True) == frames.amin((2, 3), keepdim=True)
        return torch.where(flat, frames, enhance.normalize_min_max(frames))

    def posterized(frames: Tensor, bits: int) -> Tensor:
        return ((frames * 255).round().to(torch.uint8) & (256 - 2 ** (8 - bits))).to(frames.dtype) / 255

    def factor(level: float, sign: int) -> float:
        return max(0.1, 1 + sign * 0.9 * level)

    def moved(frames: Tensor, *matrix: tuple[float, float, float]) -> Tensor:
        """Every pixel (x, y, 1) goes to matrix @ (x, y, 1)."""
        forward = frames.new_tensor(matrix).expand(len(frames), 2, 3)
        size, fill = (frames.shape[2], frames.shape[3]), frames.new_full((3,), FILL)
        return warp_affine(frames, forward, size, padding_mode="fill", fill_value=fill)

    def rotated(frames: Tensor, angle: float) -> Tensor:
        y, x = (frames.shape[2] - 1) / 2, (frames.shape[3] - 1) / 2
        c, s = math.cos(angle), math.sin(angle)
        return moved(frames, (c, -s, x - c * x + s * y), (s, c, y - s * x - c * y))

    return {
        "auto_contrast": lambda x, level, sign: stretched(x),
        "equalize": lambda x, level, sign: enhance.equalize(x),
        "invert": lambda x, level, sign: 1 - x,
        # At least one bit: the original keeps none at the largest magnitude, which leaves a black clip.
        "posterize": lambda x, level, sign: posterized(x, max(1, 4 - int(level * 4))),
        "solarize": lambda x, level, sign: torch.where(x < (256 - int(level * 256)) / 255, x, 1 - x),
        "solarize_add": lambda x, level, sign: torch.where(x < FILL, x + int(level * 110) / 255, x),
        "color": lambda x, level, sign: enhance.adjust_saturation_with_gray_subtraction(x, factor(level, sign)),
        "contrast": lambda x, level, sign: enhance.adjust_contrast_with_mean_subtraction(x, factor(level, sign)),
        "brightness": lambda x, level, sign: x * factor(level, sign),
        "sharpness": lambda x, level, sign: enhance.sharpness(x, factor(level, sign)),
        "rotate": lambda x, level, sign: rotated(x, sign * level * math.radians(30)),
        "shear_x": lambda x, level, sign: moved(x, (1, sign * level * 0.3, 0), (0, 1, 0)),
        "shear_y": lambda x, level, sign: moved(x, (1, 0, 0), (sign * level * 0.3, 1, 0)),
        "translate_x": lambda x, level, sign: moved(x, (1, 0, sign * level * 0.45 * x.shape[3]), (0, 1, 0)),
        "translate_y": lambda x, level, sign: moved(x, (1, 0, 0), (0, 1, sign * level * 0.45 * x.shape[2])),
    }
