"""Where in a video a checkpoint sees a class: `python -m harness.gradcam model=NAME checkpoint=FILE clip=video.mp4`.

Writes frames over heat as a PNG, and the clip under its heat as a GIF or MP4; as the published figure (DualFormer,
Fig. 6), see `evaluation.gradcam`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from harness.evaluation import protocol
from harness.evaluation.overlay import OverlayOptions
from harness.spec import options
from harness.spec.options import Work, option


@dataclass(frozen=True, kw_only=True)
class Options(OverlayOptions):
    target: str | None = option(None, "name or number of the class that is looked for; the most probable if left out")
    block: str | None = option(None, "whose output is looked at, as in block=stages.3.blocks.3; the last if left out")
    views: str = option("1x1", "clips x crops; each has its own pictures, the class is theirs together")


COMMAND = options.Command(
    "python -m harness.gradcam",
    "Pictures of where and when a trained model sees a class (Grad-CAM).",
    Options,
    (
        ("checkpoint=model.safetensors clip=video.mp4", "of the most probable class"),
        ("checkpoint=model.safetensors clip=video.mp4 target=waving block=stages.2.blocks.9", "of another, earlier"),
    ),
)


def main(argv: list[str] | None = None) -> int:
    return options.run(COMMAND, checked, argv)


def checked(options: Options) -> Work:
    path = protocol.checked_clip(options.clip)
    _, views = protocol.checked(options, options.views)
    return Work("harness.evaluation.seen:gradcam", (options, path, options.png("gradcam", path), views))


if __name__ == "__main__":
    sys.exit(main())
