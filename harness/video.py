"""Video in: decode a clip from a file, or from the built-in scene that stands in where no file is given.

Both go the same way: a file on disk, a decoder, test-time sampling of one clip, short side and centre crop. Sampling
and crop follow the DualFormer configurations (one view: the clip in the middle of the video, stride 2, short side
resized to the crop, centre crop).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from harness.clips import decoding
from harness.clips.decoding import ELSE, VideoError
from harness.clips.transforms import centre_view
from harness.motion.drawing import pictures
from harness.motion.encoding import encode
from harness.motion.store import Version, drawn_scene
from harness.spec.sampling import Sampling, test_indices
from records.record import write_bytes

SAMPLE = "sample_scene.mp4"
SCENE = Version("sample", size=240, frames=80, rate=30, train=1, val=0, test=0)
CHASE = 3  # of its pairs of classes: two objects before a panning photograph


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


def decode(path: str | Path, frames: int = 32, stride: int = 2, size: int = 224) -> Decoded:
    """Decode one clip; the result says with which decoder, and why not with decord where that was installed.

    Raises: VideoError naming the file, when it is missing, empty, truncated, without a video stream or not decodable.
    """
    for name, value in (("frames", frames), ("stride", stride), ("size", size)):
        if value < 1:
            raise ValueError(f"clip.{name} is {value}; allowed: 1 or more")
    try:
        with decoding.open_video(path) as video:
            pixels = video.read(test_indices(len(video), Sampling(frames, stride), clips=1)[0])
            facts = video.facts  # now, for decord may have failed on the frames
    except VideoError as error:
        raise VideoError(f"clip={error}, {ELSE}") from error
    decoder = facts.decoder
    if facts.fallback and facts.fallback != decoding.NO_DECORD:
        decoder += f" ({facts.fallback})"
    return Decoded(centre_view(pixels, size), Path(path).name, decoder, facts.frames)


def sample_clip(folder: str | Path) -> Path:
    """The path of the built-in sample video in `folder`, rendered and encoded there on first use."""
    path = Path(folder) / SAMPLE
    if not path.is_file():
        encoded = BytesIO()
        encode(pictures(drawn_scene(SCENE, "train", CHASE, 0), SCENE.size), encoded, SCENE.rate)
        write_bytes(encoded.getvalue(), path)
    return path
