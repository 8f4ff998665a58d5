"""Video in: decode a clip from a file, or render the small moving scene that stands in where no file is given.

Both go the same way: a file on disk, a decoder, test-time sampling of one clip, short side and centre crop. Sampling
and crop follow the DualFormer configurations (one view: the clip in the middle of the video, stride 2, short side
resized to the crop, centre crop).
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.clips import decoding
from harness.clips.decoding import VideoError
from harness.motion.encoding import encode
from harness.spec.sampling import Sampling, test_indices

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

MEAN = (123.675, 116.28, 103.53)  # RGB on the scale 0-255, as in the Kinetics configurations of both families
STD = (58.395, 57.12, 57.375)
SAMPLE = "sample_clip.mp4"
ELSE = "or leave clip out to use the built-in sample"


@dataclass(frozen=True)
class Decoded:
    """One clip as it came out of the decoder: RGB frames after resize and crop, and how they were made."""

    frames: np.ndarray  # uint8, t h w 3
    source: str  # file name without its folder
    decoder: str
    frames_in_file: int

    @property
    def digest(self) -> str:
        """Says whether two clips are the same pixels, whatever files they came from."""
        shape = "x".join(map(str, self.frames.shape))
        return hashlib.sha256(shape.encode() + np.ascontiguousarray(self.frames).tobytes()).hexdigest()


def read_clip(path: str | Path, frames: int = 32, stride: int = 2, size: int = 224) -> Float[Tensor, "3 t h w"]:
    """One normalised test clip of a video file. Raises: VideoError naming the file."""
    return normalise(decode(path, frames, stride, size).frames)


def normalise(frames: np.ndarray) -> Float[Tensor, "3 t h w"]:
    """uint8 frames `t h w 3` to float32 `3 t h w` with the ImageNet mean and deviation."""
    import torch

    pixels = torch.from_numpy(np.array(frames)).to(torch.float32)
    return ((pixels - torch.tensor(MEAN)) / torch.tensor(STD)).permute(3, 0, 1, 2).contiguous()


def sample_indices(total: int, frames: int, stride: int) -> list[int]:
    """Frame numbers of the one test clip of a video with `total` frames: it stands in the middle and wraps around."""
    return test_indices(total, Sampling(frames, stride), clips=1)[0]


def check_file(path: str | Path) -> None:
    """Raises: VideoError, when there is no readable file with something in it."""
    try:
        decoding.check_file(path)
    except VideoError as error:
        raise VideoError(f"clip={error}, {ELSE}") from None


def file_digest(path: str | Path) -> str:
    """sha256 of a file's bytes."""
    with Path(path).expanduser().open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def decode(path: str | Path, frames: int = 32, stride: int = 2, size: int = 224) -> Decoded:
    """Decode one clip; the result says with which decoder, and why not with decord where that was installed.

    Raises: VideoError naming the file, when it is missing, empty, truncated, without a video stream or not decodable.
    """
    for name, value in (("frames", frames), ("stride", stride), ("size", size)):
        if value < 1:
            raise ValueError(f"clip.{name} is {value}; allowed: 1 or more")
    try:
        with decoding.open_video(path) as video:
            pictures = video.read(sample_indices(len(video), frames, stride))
            facts = video.facts  # now, for decord may have failed on the frames
    except VideoError as error:
        raise VideoError(f"clip={error}, {ELSE}") from error
    decoder = facts.decoder
    if facts.fallback and facts.fallback != decoding.NO_DECORD:
        decoder += f" ({facts.fallback})"
    pixels = np.stack([_resize_and_crop(picture, size) for picture in pictures])
    return Decoded(pixels, Path(path).name, decoder, facts.frames)


def _resize_and_crop(picture: np.ndarray, size: int) -> np.ndarray:
    """Short side to `size` (bilinear, half-pixel centres, no antialiasing, as in the configurations), centre crop."""
    import torch
    from torch.nn.functional import interpolate

    height, width = picture.shape[:2]
    if min(height, width) != size:
        scale = size / min(height, width)
        height, width = max(size, int(height * scale + 0.5)), max(size, int(width * scale + 0.5))
        planes = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].to(torch.float32)
        planes = interpolate(planes, size=(height, width), mode="bilinear", align_corners=False)
        picture = planes[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()
    top, left = (height - size) // 2, (width - size) // 2
    return np.ascontiguousarray(picture[top : top + size, left : left + size])


def sample_clip(folder: str | Path) -> Path:
    """The path of the built-in sample video in `folder`, rendered and encoded there on first use."""
    path = Path(folder) / SAMPLE
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{SAMPLE}.", suffix=".part")
    os.close(handle)
    try:
        encode(moving_scene(), temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def moving_scene(frames: int = 80, height: int = 240, width: int = 320) -> np.ndarray:
    """A rendered scene, uint8 `t h w 3`: textured objects that drift, spin, bounce and approach before a panning
    textured wall.

    Plain arithmetic without random numbers, so every machine renders the same pictures up to rounding.
    """
    y, x = np.meshgrid(np.arange(height, dtype=np.float32), np.arange(width, dtype=np.float32), indexing="ij")
    pictures = np.empty((frames, height, width, 3), np.uint8)
    for index in range(frames):
        s = index / max(1, frames - 1)  # 0 at the first frame, 1 at the last
        picture = _wall(x + 40 * s, y + 6 * np.sin(6 * s))
        for mask, colour in (
            _spinning_board(x - width * (0.2 + 0.5 * s), y - height * 0.68, angle=4 * s),
            _striped_ball(x - width * (0.85 - 0.6 * s), y - height * (0.75 - 0.5 * abs(np.sin(7 * s))), roll=9 * s),
            _approaching_ring(x - width * 0.55, y - height * 0.36, scale=0.35 + 1.1 * s * s),
        ):
            picture = np.where(mask[..., None], colour, picture)
        pictures[index] = np.clip(picture * 255, 0, 255).astype(np.uint8)
    return pictures


def _wall(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    grain = (
        0.5 + 0.2 * np.sin(0.11 * x + 1.7 * np.sin(0.05 * y)) + 0.15 * np.sin(0.23 * y + 0.31 * x) * np.sin(0.037 * x)
    )
    joint = ((x % 46 < 2) | (y % 30 < 2)).astype(np.float32) * 0.25
    return np.stack([grain * 0.75 - joint, grain * 0.7 - joint, 0.25 + grain * 0.45 - joint], axis=-1)


def _spinning_board(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    checks = ((u // 11).astype(np.int32) + (v // 11).astype(np.int32)) % 2
    mask = (abs(u) < 44) & (abs(v) < 30)
    return mask, np.stack([0.85 - 0.6 * checks, 0.25 + 0.5 * checks, 0.2 + 0 * u], axis=-1)


def _striped_ball(x: np.ndarray, y: np.ndarray, roll: float) -> tuple[np.ndarray, np.ndarray]:
    radius = np.sqrt(x * x + y * y)
    stripes = 0.5 + 0.5 * np.sign(np.sin(6 * np.arctan2(y, x) + 6 * roll))
    light = np.clip(1.1 - (radius / 34) ** 2 * 0.6 - 0.004 * (x + y), 0, 1.2)
    return radius < 32, np.stack([0.2 * light, (0.35 + 0.55 * stripes) * light, (0.9 - 0.5 * stripes) * light], axis=-1)


def _approaching_ring(x: np.ndarray, y: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    radius = np.sqrt(x * x + y * y) / scale
    weave = 0.5 + 0.5 * np.sin(radius * 0.9) * np.cos(8 * np.arctan2(y, x))
    mask = (radius > 22) & (radius < 48)
    return mask, np.stack([0.9 * weave + 0.1, 0.75 * weave + 0.1, 0.15 + 0.2 * weave], axis=-1)
