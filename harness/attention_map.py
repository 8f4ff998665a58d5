"""What a checkpoint looks at: `python -m harness.attention_map model=NAME checkpoint=FILE clip=video.mp4`.

Draws the attention of the class token in the last block over the frames, of each path where a model has several
(DualPath: the frames and the mosaics); where there is no class token, the mean of all tokens. A PNG of some frames and
a film, as `harness.gradcam`, which says where a class is seen instead.
"""

from __future__ import annotations

import sys

from harness.evaluation import protocol
from harness.evaluation.overlay import OverlayOptions
from harness.spec import options
from harness.spec.options import Work

COMMAND = options.Command(
    "python -m harness.attention_map",
    "Pictures of what the class token of a trained model attends to in its last block; without one, the average of "
    "all tokens.",
    OverlayOptions,
    (
        ("checkpoint=model.safetensors clip=video.mp4", "of a checkpoint written here"),
        (
            "model=timesformer_base checkpoint=TimeSformer_divST.pth clip=video.mp4 recipe=timesformer_k400",
            "of a published one",
        ),
    ),
)


def main(argv: list[str] | None = None) -> int:
    return options.run(COMMAND, checked, argv)


def checked(options: OverlayOptions) -> Work:
    path = protocol.checked_clip(options.clip)
    protocol.checked(options, None)
    return Work("harness.evaluation.seen:attention_map", (options, path, options.png("attention_map", path)))


if __name__ == "__main__":
    sys.exit(main())
