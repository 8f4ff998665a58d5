"""Pictures into an MP4 file."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np

from harness.packages import late


def encode(pictures: np.ndarray, file: Path | BinaryIO, rate: int = 30, quality: int = 20) -> None:
    """Write uint8 `t h w 3` RGB pictures (even height and width) as H.264, or MPEG-4 where libx264 is missing.

    Every picture is coded by itself at one fixed quantiser, so what a picture loses in coding does not depend on those
    before it, and a clip coded backwards decodes to the same pictures backwards. `quality`: 0 loses nothing but colour
    resolution, 51 is worst.
    """
    av = late("av")
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with av.open(str(file) if isinstance(file, Path) else file, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1  # the bits then do not depend on the number of cores
        stream.options = {"g": "1", "qmin": "3", "qmax": "3"}
        if codec == "libx264":
            stream.options = {"qp": str(quality), "g": "1", "bf": "0", "preset": "veryfast"}
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode())
