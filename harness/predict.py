"""What a checkpoint sees in a video: `python -m harness.predict model=NAME checkpoint=FILE clip=video.mp4`.

Prints the classes with the highest probability, averaged over views. Checkpoints written here say of which model they
are; published ones (DualFormer, Video Swin) need `model=` or `recipe=`. With `stream=true` a recurrent model
answers after every frame, as the video plays.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from harness.evaluation import protocol
from harness.evaluation.protocol import TestOptions
from harness.spec import options
from harness.spec.options import Work, option
from harness.spec.reader import Count, Flag


@dataclass(frozen=True, kw_only=True)
class Options(TestOptions):
    clip: str = option(meaning="a video file")
    top: Count = option(5, "how many classes are printed")
    stream: Flag = option(False, "the classes after each frame, as the video plays; for models that look back only")
    views: str | None = option(None, "clips x crops, as in views=4x1; for trained models as in their recipe, else 4x1")


COMMAND = options.Command(
    "python -m harness.predict",
    "The classes that a trained model sees in a video, with probabilities.",
    Options,
    (
        ("checkpoint=model.safetensors clip=video.mp4", "a checkpoint written here"),
        (
            "model=dualformer_tiny checkpoint=dualformer_tiny.pth clip=video.mp4 classes=kinetics400.txt",
            "a published one",
        ),
    ),
)


def main(argv: list[str] | None = None) -> int:
    return options.run(COMMAND, checked, argv)


def checked(options: Options) -> Work:
    clip = protocol.checked_clip(options.clip)
    return Work("harness.evaluation.predicted:predict", (options, clip, protocol.checked(options, options.views)[1]))


if __name__ == "__main__":
    sys.exit(main())
