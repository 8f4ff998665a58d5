"""Folders of clips whose classes are how the camera moves: what `accuracy=small` makes of a stranger's data."""

import numpy as np
import pytest
from PIL import Image
from training_runs import write_video

from harness import run
from harness.motion.photographs import PHOTOGRAPHS, photograph
from records.record import read_record

MOVES = {  # of the window: how far right and down, in widths of it; by what its size grows; turns; all over the clip
    "right": (0.5, 0.0, 1.0, 0.0),
    "left": (-0.5, 0.0, 1.0, 0.0),
    "down": (0.0, 0.5, 1.0, 0.0),
    "up": (0.0, -0.5, 1.0, 0.0),
    "in": (0.0, 0.0, 0.6, 0.0),
    "out": (0.0, 0.0, 1 / 0.6, 0.0),
    "clockwise": (0.0, 0.0, 1.0, 0.15),
    "anticlockwise": (0.0, 0.0, 1.0, -0.15),
}
FRAMES, SIDE, PER_CLASS = 24, 48, {"train": 60, "val": 20}
SPLITS = {"train": PHOTOGRAPHS["train"], "val": PHOTOGRAPHS["val"] + PHOTOGRAPHS["test"]}


def seen(picture, move, random):
    """uint8 "t h w 3": a window over a photograph, moved, scaled and turned about its own centre."""
    right, down, growth, turns = move
    image = Image.fromarray(picture)
    width = random.uniform(0.25, 0.4) * min(image.size)
    reach = width * (0.75 + max(abs(right), abs(down)))  # half a diagonal, and the way
    centre = np.array([random.uniform(reach, max(reach, side - reach)) for side in image.size])
    frames = []
    for share in np.linspace(-0.5, 0.5, FRAMES):
        half = width / 2 * growth**share
        angle = 2 * np.pi * turns * share
        x, y = centre + width * share * np.array([right, down])
        step = 2 * half / SIDE * np.array([np.cos(angle), np.sin(angle)])
        corner = (x - half * np.cos(angle) + half * np.sin(angle), y - half * np.sin(angle) - half * np.cos(angle))
        affine = (step[0], -step[1], corner[0], step[1], step[0], corner[1])
        frames.append(image.transform((SIDE, SIDE), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR))
    return np.stack([np.asarray(frame) for frame in frames])


def crossed(clip, picture, random):
    """The same clip with a cut of another photograph that crosses it, whichever way the camera moves."""
    side = SIDE // 4
    top, left = (random.integers(0, length - side) for length in picture.shape[:2])
    cut, angle = picture[top : top + side, left : left + side], random.uniform(0, 2 * np.pi)
    clip = clip.copy()
    for t, share in enumerate(np.linspace(-0.5, 0.5, FRAMES)):
        x, y = (int((SIDE - side) * (0.5 + share * way)) for way in (np.cos(angle), np.sin(angle)))
        clip[t, y : y + side, x : x + side] = cut
    return clip


def folder_of_clips(folder, crossing):
    """Videos and lists; the photographs of the test are not those of the training."""
    for split, count in PER_CLASS.items():
        random, lines = np.random.default_rng(len(split)), []
        for number in range(count * len(MOVES)):
            label = number % len(MOVES)
            ground, other = (photograph(str(name)) for name in random.choice(SPLITS[split], 2, replace=False))
            clip = seen(ground, list(MOVES.values())[label], random)
            path = f"videos/{split}{number:04d}.mp4"
            write_video(folder / path, crossed(clip, other, random) if crossing else clip)
            lines.append(f"{path},{label}\n")
        (folder / f"{split}.csv").write_text("".join(lines))
    (folder / "classes.txt").write_text("\n".join(MOVES))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("crossing", [False, True], ids=["still photographs", "something crosses"])
def test_small_learns_camera_motions(tmp_path, crossing):
    data = folder_of_clips(tmp_path / "clips", crossing)
    words = ["ablation=scheme_accuracy", 'rows=["local + global"]', "accuracy=small", "metrics=[]", f"data={data}"]
    assert run.main([*words, f"out={tmp_path}"]) == 0
    (path,) = (tmp_path / "scheme_accuracy").glob("local*.json")
    measured = read_record(path).measurements["top1_small_clips"]
    details = measured.visits[0].details
    chance = 100 / len(MOVES)
    assert measured.value > 3 * chance
    assert max(details["shuffled"], details["single"]) < 2 * chance
