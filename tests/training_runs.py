"""A small data set of rendered videos and small jobs on it, for the tests of loading and training."""

from pathlib import Path

import numpy as np

from harness.spec.clip import Augmentation, Mixing
from harness.spec.recipe import Optimisation, Recipe, Testing
from harness.spec.sampling import Sampling
from harness.training.job import Job, model_config

CLASSES = ("left", "right", "down")
MOVES = {"left": (0, -2), "right": (0, 2), "down": (2, 0)}


def write_video(path, pictures, rate=10):
    """uint8 "t h w 3" as an MP4 file."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 400_000
        for picture in pictures:
            for packet in stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def moving_square(name, number, frames=10, height=40, width=48):
    """A square on a noisy ground, moving as its class says."""
    random = np.random.default_rng(number)
    ground = random.integers(0, 80, (height, width, 3), dtype=np.uint8)
    top, left = random.integers(12, 20, size=2)
    clip = np.stack([ground] * frames)
    for t in range(frames):
        y, x = top + t * MOVES[name][0] // 2, left + t * MOVES[name][1] // 2
        clip[t, y : y + 10, x : x + 10] = (230, 200, 40)
    return clip


def data_set(folder, train=12, val=6):
    """A folder with videos, train.csv, val.csv and classes.txt. Returns it."""
    folder = Path(folder)
    for split, count in (("train", train), ("val", val)):
        lines = []
        for number in range(count):
            label = number % len(CLASSES)
            path = f"videos/{split}{number:03d}.mp4"
            write_video(folder / path, moving_square(CLASSES[label], number + 1000 * (split == "val"), 8 + number % 4))
            lines.append(f"{path},{label}\n")
        (folder / f"{split}.csv").write_text("".join(lines))
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    return folder


MODEL = {  # a DualFormer of two stages: local windows, and a pyramid of two scales with its BatchNorm
    "widths": [8, 16],
    "num_heads": [1, 2],
    "depths": [2, 1],
    "stages": [["L", "G2"], ["L"]],
    "temporal_pooling": [1],
    "attention.L.window": [2, 4, 4],
    "attention.G2.scales": [[2, 4, 4], [2, 2, 2]],
}


def recipe(**optimisation):
    """Everything that draws random numbers is on."""
    settings = dict(
        epochs=2.0, batch_size=4, lr=2e-3, backbone_lr=1e-3, warmup_epochs=0.5, clip_norm=1.0, groups="plain"
    )
    return Recipe(
        name="test",
        sampling=Sampling(frames=4, stride=2),
        augmentation=Augmentation(size=32, resize=36, area=(0.5, 1.0), erasing=0.3),
        mixing=Mixing(smoothing=0.1),
        optimisation=Optimisation(**settings | optimisation),
        testing=Testing(clips=2, crops=1, resize=34),
        drop_path=0.2,
        dropout=0.3,
    )


def job(data, folder, chosen=None, changes=None, **values):
    """A job of seconds; `changes` are of the model, `values` of the job."""
    chosen = chosen or recipe()
    config = model_config("dualformer_tiny", chosen, MODEL | (changes or {}))
    settings = dict(classes=len(CLASSES), threads=1, log_every=1, data=str(data), folder=Path(folder))
    return Job(model="dualformer_tiny", config=config, recipe=chosen, **settings | values)
