"""Frames into a model's input: scale, crop, flip and colour of one clip, normalisation and erasing of a batch.

A clip stays uint8 until `normalised`, which runs on whole batches, on the device they are on. Every frame of a clip
goes through the same crop, flip and colours. Randomness comes from the generator that is handed in and from nothing
else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from harness.clips.rand_augment import rand_augmented
from harness.spec.clip import MEAN, STD, Augmentation

ATTEMPTS = 10  # boxes drawn before a random resized crop falls back on the centred square
ERASED_AREA = (0.02, 1 / 3)  # share of the frame, and height over width, of what is erased
ERASED_ASPECT = (0.3, 1 / 0.3)
GRAY = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma of red, green, blue

Box = tuple[int, int, int, int]  # top, left, height, width in pixels


def augmented(
    pixels: UInt8[Tensor, "t h w 3"], augmentation: Augmentation, random: torch.Generator
) -> UInt8[Tensor, "3 t size size"]:
    """One training clip, up to normalisation (`normalised`) and erasing (`erased`), which work on batches.

    A clip whose short side is `augmentation.resize` already (preloaded ones are) is not resized before the crop; apart
    from that the pixels are resampled only if the crop has another size than the clip shall have.

    Thirty numbers are drawn from `random` first, whatever the settings, so that switching one step on or off leaves
    the others as they were: short side; area and aspect of each attempt of the crop; the crop's place (down, across);
    flip; strength of brightness, contrast and saturation; their order. RandAugment draws its own after these.
    Raises: ValueError.
    """
    _check(pixels)
    draws = iter(torch.rand(10 + 2 * ATTEMPTS, generator=random, device=random.device, dtype=torch.float64).tolist())
    side = next(draws)
    shapes = [(next(draws), next(draws)) for _ in range(ATTEMPTS)]
    down, across, flip = next(draws), next(draws), next(draws)
    strengths, order = [next(draws) for _ in range(3)], [next(draws) for _ in range(3)]

    size, resize = augmentation.size, augmentation.resize
    if isinstance(resize, tuple):
        resize = resize[0] + _whole(side, resize[1] - resize[0])
    smooth = augmentation.antialias
    pixels = pixels if resize is None else with_short_side(pixels, resize, smooth)
    height, width = pixels.shape[1:3]
    if augmentation.crop == "random_resized":
        box = random_resized_box(height, width, augmentation.area, augmentation.aspect, shapes, (down, across))
    else:
        _check_crop(height, width, size)
        if augmentation.crop == "center":
            box = ((height - size) // 2, (width - size) // 2, size, size)
        else:
            box = (_whole(down, height - size), _whole(across, width - size), size, size)
    top, left, high, wide = box
    clip = resized(pixels[:, top : top + high, left : left + wide], size, size, smooth).permute(3, 0, 1, 2)
    if flip < augmentation.flip:
        clip = clip.flip(3)
    if augmentation.rand_augment or augmentation.jitter:
        frames = clip.permute(1, 0, 2, 3).to(torch.float32) / 255
        if augmentation.rand_augment:
            frames = rand_augmented(frames, augmentation.rand_augment, random)
        if augmentation.jitter:
            frames = _jittered(frames, augmentation.jitter, strengths, order)
        clip = (frames * 255).round_().to(torch.uint8).permute(1, 0, 2, 3)
    return clip.contiguous()


def test_view(
    pixels: UInt8[Tensor, "t h w 3"],
    size: int,
    resize: int | None,
    crop: int,
    crops: int,
    antialias: bool = False,  # noqa: PT028 (no test, whatever its name)
) -> UInt8[Tensor, "3 t size size"]:
    """Crop number `crop` of the `crops` crops of a test clip with its short side at `resize`, without normalisation.

    One crop is the centre. Several lie along the longer side, centred on the shorter one: three are, in this order,
    left, right and middle (top, bottom and middle of an upright clip); other numbers go from left to right. The step
    is a whole number of pixels, so the outermost crop may end up to `crops` - 2 pixels before the border.
    Source: the testing pipelines of the DualFormer and Video Swin configurations. Raises: ValueError.
    """
    _check(pixels)
    if not 0 <= crop < crops:
        raise ValueError(f"crop {crop} of {crops} crops; allowed: 0 to {crops - 1}, of 1 crop or more")
    pixels = pixels if resize is None else with_short_side(pixels, resize, antialias)
    height, width = pixels.shape[1:3]
    _check_crop(height, width, size)
    top, left = (height - size) // 2, (width - size) // 2
    if crops > 1:
        place = (0, 2, 1)[crop] if crops == 3 else crop
        step = (max(height, width) - size) // (crops - 1)
        if width >= height:
            left = place * step
        else:
            top = place * step
    return pixels[:, top : top + size, left : left + size].permute(3, 0, 1, 2).contiguous()


def centre_view(frames: np.ndarray, size: int) -> np.ndarray:
    """uint8 frames `t h w 3` with their short side at `size`, cut to the square in the middle: `t size size 3`."""
    view = test_view(torch.from_numpy(frames), size, resize=size, crop=0, crops=1)
    return view.permute(1, 2, 3, 0).contiguous().numpy()


def normalise(frames: np.ndarray) -> Float[Tensor, "3 t h w"]:
    """uint8 frames `t h w 3` of one clip as a model takes them."""
    return normalised(torch.from_numpy(np.array(frames)).permute(3, 0, 1, 2)).contiguous()


def resized(
    pixels: UInt8[Tensor, "t h w 3"], height: int, width: int, antialias: bool = False
) -> UInt8[Tensor, "t height width 3"]:
    """Frames scaled to height x width: bilinear, half-pixel centres, as in the configurations without antialiasing.

    Frames of that size are returned as they are. The result is rounded once, from float32: the uint8 interpolation of
    PyTorch is several times faster but rounds after each axis, which makes frames that shrink by two brighter by half
    a level on average.
    """
    if pixels.shape[1:3] == (height, width):
        return pixels
    planes = pixels.to(torch.float32).permute(0, 3, 1, 2)  # in this order a cut-out becomes channels-last in memory
    planes = interpolate(planes, size=(height, width), mode="bilinear", align_corners=False, antialias=antialias)
    return planes.round_().to(torch.uint8).permute(0, 2, 3, 1)


def with_short_side(
    pixels: UInt8[Tensor, "t h w 3"], side: int, antialias: bool = False
) -> UInt8[Tensor, "t height width 3"]:
    """Frames scaled so that the shorter side has `side` pixels; the longer side is rounded to the nearest pixel."""
    height, width = pixels.shape[1:3]
    scale = side / min(height, width)
    return resized(pixels, max(side, int(height * scale + 0.5)), max(side, int(width * scale + 0.5)), antialias)


def random_resized_box(
    height: int,
    width: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
    shapes: Sequence[tuple[float, float]],
    place: tuple[float, float],
) -> Box:
    """The box of a random resized crop of height x width frames, from numbers drawn uniformly from [0, 1).

    Each of `shapes` makes one attempt: area uniform in `area` x frame, log of width over height uniform in the log of
    `aspect`. The first box that fits lies at `place` (down, across), uniform over its places; where none fits it is
    the largest centred square.
    Source: Szegedy et al., arXiv:1409.4842, Sec. 6; attempts and square as in the Kinetics configurations.
    """
    low, high = (math.log(ratio) for ratio in aspect)
    for first, second in shapes:
        pixels = height * width * (area[0] + first * (area[1] - area[0]))
        ratio = math.exp(low + second * (high - low))
        wide, tall = max(1, round(math.sqrt(pixels * ratio))), max(1, round(math.sqrt(pixels / ratio)))
        if wide <= width and tall <= height:
            return _whole(place[0], height - tall), _whole(place[1], width - wide), tall, wide
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def normalised(
    clips: UInt8[Tensor, "... 3 t h w"],
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "... 3 t h w"]:
    """(clips - mean) / std for each of red, green and blue (0-255), on the device of the clips, computed in float32."""
    middle, spread = (torch.tensor(v, dtype=torch.float32, device=clips.device).view(3, 1, 1, 1) for v in (mean, std))
    return clips.to(torch.float32).sub_(middle).div_(spread).to(dtype)


def erased(
    clips: Float[Tensor, "b 3 t h w"], probability: float, random: torch.Generator
) -> Float[Tensor, "b 3 t h w"]:
    """Normalised clips in which, with `probability` each, one box (the same in all frames) is normal noise.

    The noise is drawn for every pixel, frame and channel. The box covers 2 % to a third of the frame; its height over
    width is drawn on a log scale between 0.3 and 1 / 0.3; where ten attempts give none that is smaller than the frame
    in both directions, the clip stays as it is.
    Source: Zhong et al., Random Erasing, arXiv:1708.04896; noise and ranges as in the MViT configurations.

    `random` may be on another device than the clips; the same state gives the same boxes and noise on any device of
    the clips. Each clip takes the same number of draws, and those that are erased the noise of their box after that.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"erasing probability {probability}; allowed: 0 to 1")
    if probability == 0:
        return clips
    batch, channels, frames, height, width = clips.shape
    draws = torch.rand(batch, 3 + 2 * ATTEMPTS, generator=random, device=random.device, dtype=torch.float64).tolist()
    boxes = {
        index: box
        for index, (chosen, down, across, *shapes) in enumerate(draws)
        if chosen < probability and (box := _erased_box(height, width, shapes, (down, across)))
    }
    if not boxes:
        return clips
    clips = clips.clone()
    for index, (top, left, tall, wide) in boxes.items():
        noise = torch.randn(channels, frames, tall, wide, generator=random, device=random.device)
        clips[index, :, :, top : top + tall, left : left + wide] = noise.to(clips.device, clips.dtype)
    return clips


def _erased_box(height: int, width: int, shapes: Sequence[float], place: tuple[float, float]) -> Box | None:
    low, high = (math.log(ratio) for ratio in ERASED_ASPECT)
    for first, second in zip(shapes[::2], shapes[1::2], strict=True):
        pixels = height * width * (ERASED_AREA[0] + first * (ERASED_AREA[1] - ERASED_AREA[0]))
        ratio = math.exp(low + second * (high - low))
        tall, wide = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < tall < height and 0 < wide < width:
            return _whole(place[0], height - tall), _whole(place[1], width - wide), tall, wide
    return None


def _jittered(
    frames: Float[Tensor, "t 3 h w"], jitter: float, strengths: Sequence[float], order: Sequence[float]
) -> Float[Tensor, "t 3 h w"]:
    """Frames (0-1) blended with black, with their mean gray and with their gray version, in the order of `order`."""
    for step in sorted(range(3), key=order.__getitem__):
        factor = 1 - jitter + 2 * jitter * strengths[step]
        if step == 0:
            frames = frames * factor
        else:
            gray = sum(share * frames[:, [channel]] for channel, share in enumerate(GRAY))
            gray = gray.mean((2, 3), keepdim=True) if step == 1 else gray
            frames = torch.lerp(gray, frames, factor)
        frames = frames.clamp_(0, 1)
    return frames


def _whole(draw: float, most: int) -> int:
    """A number drawn uniformly from [0, 1) as one drawn uniformly from 0, 1, ..., most."""
    return min(most, int(draw * (most + 1)))


def _check(pixels: Tensor) -> None:
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or 0 in pixels.shape:
        raise ValueError(
            f"frames are {pixels.dtype} {tuple(pixels.shape)}; allowed: torch.uint8 (time, height, width, 3)"
        )


def _check_crop(height: int, width: int, size: int) -> None:
    if min(height, width) < size:
        raise ValueError(
            f"a crop of {size} x {size} does not fit into frames of {height} x {width}; "
            f"allowed: resize of {size} or more, or a smaller size"
        )
