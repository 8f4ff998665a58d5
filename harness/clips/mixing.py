"""Mixup, CutMix and label smoothing of one batch, on the device of its clips.

Plain PyTorch: these are a blend and a copy, while kornia's versions draw from the global random state.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from harness.spec.clip import Mixing


def mixed(
    clips: Float[Tensor, "b 3 t h w"],
    labels: Int[Tensor, " b"],
    classes: int,
    mixing: Mixing,
    random: torch.Generator,
) -> tuple[Float[Tensor, "b 3 t h w"], Float[Tensor, "b k"]]:
    """The clips, mixed or as they were, and their soft targets: float32, each row a distribution over the classes.

    One mixing weight for the batch; clip i is mixed with clip b - 1 - i (the middle one of an odd batch stays as it
    is). The box of CutMix is the same in all frames, and the weight of the targets is its true area, after it was cut
    at the border. Source: as `Mixing`; pairs and true area as in the MViT recipe.

    Four uniform numbers and the seed of the mixing weight are drawn from `random`, whatever the settings.
    """
    targets = smoothed(labels, classes, mixing.smoothing)
    whether, choice, down, across = torch.rand(4, generator=random, device=random.device, dtype=torch.float64).tolist()
    seed = int(torch.randint(2**62, (1,), generator=random, device=random.device))
    if (not mixing.mixup and not mixing.cutmix) or whether >= mixing.probability:
        return clips, targets
    cut = bool(mixing.cutmix) and (not mixing.mixup or choice < mixing.switch)
    alpha = mixing.cutmix if cut else mixing.mixup
    weight = float(np.random.default_rng(seed).beta(alpha, alpha))  # PyTorch's Beta takes no generator
    if cut:
        clips, weight = cutmix(clips, weight, (down, across))
    else:
        clips = torch.lerp(clips.flip(0), clips, weight)
    return clips, torch.lerp(targets.flip(0), targets, weight)


def smoothed(labels: Int[Tensor, " b"], classes: int, smoothing: float = 0.0) -> Float[Tensor, "b k"]:
    """Targets that give `smoothing` evenly to all classes, the right one among them, and the rest to the right one."""
    targets = torch.full((len(labels), classes), smoothing / classes, dtype=torch.float32, device=labels.device)
    return targets.scatter_(1, labels.long()[:, None], 1 - smoothing + smoothing / classes)


def cutmix(
    clips: Float[Tensor, "b 3 t h w"], weight: float, place: tuple[float, float]
) -> tuple[Float[Tensor, "b 3 t h w"], float]:
    """Clips with a box of their partners in them, and the share of the frame that stayed theirs.

    The box has the shape of the frame, 1 - weight of its area, and its centre at `place` (down, across; shares of
    height and width below 1); what would stick out is cut off.
    """
    height, width = clips.shape[3:]
    sides = []
    for length, centre in ((height, place[0]), (width, place[1])):
        half = int(length * (1 - weight) ** 0.5) // 2
        middle = int(centre * length)
        sides.append((max(0, middle - half), min(length, middle + half)))
    (top, bottom), (left, right) = sides
    result = clips.clone()
    result[..., top:bottom, left:right] = clips.flip(0)[..., top:bottom, left:right]
    return result, 1 - (bottom - top) * (right - left) / (height * width)
