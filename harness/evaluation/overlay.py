"""What commands have in common that draw heat over the frames of a video: their options and their files.

Imports no torch, so that a slip is told at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.evaluation.protocol import TestOptions
from harness.spec.options import option
from harness.spec.reader import Count, UsageError

COLUMNS = 8  # frames of the strip
RATE = 8  # frames per second of the film: slow enough to follow


@dataclass(frozen=True, kw_only=True)
class OverlayOptions(TestOptions):
    clip: str = option(meaning="a video file")
    frames_shown: Count = option(COLUMNS, "frames in the PNG")
    movie: Literal["gif", "mp4"] = option("gif", "format of the film")
    rate: Count = option(RATE, "frames per second of the film")
    out: str | None = option(None, "name of the PNG; in outputs/, with the name of the clip, if left out")

    def png(self, folder: str, clip: Path) -> Path:
        """Where the picture goes; the film stands beside it. Raises: UsageError, before anything is loaded."""
        png = Path(self.out) if self.out else Path("outputs") / folder / f"{clip.stem}.png"
        if not png.suffix:
            png = png.with_suffix(".png")
        if png.suffix.lower() != ".png":
            raise UsageError(f"out={png} must end in .png; the film stands beside it")
        if self.dtype != "float32":
            raise UsageError(f"dtype={self.dtype}: heat is computed in float32; leave dtype out")
        return png
