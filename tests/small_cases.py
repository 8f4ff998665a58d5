"""Cases that are measured in a moment: small models, a clip of noise, few samples."""

from dataclasses import replace

import numpy as np

from harness.spec import case
from harness.spec.effort import Effort

TINY = {"widths": [12, 24, 48, 96], "num_heads": [1, 2, 4, 8], "depths": [2, 2, 2, 2]}
LITTLE = Effort(samples=3, seconds=0, budget=0.1, fewest=3, warm_up_seconds=0)


def tiny(model="dualformer_tiny", changes=None, frames=4, size=32, **fields):
    """The case of a narrow model; `changes` are of its config, `fields` of the case."""
    row = case.Row("tiny", model=model, changes={**TINY, **(changes or {})}, clip={"frames": frames, "size": size})
    ablation = case.Ablation("test", "?", [row])
    return replace(case.resolve(ablation, case.Settings(threads=1))[0].case, **fields)


def compiled(**fields):
    """The case of a model of four blocks only: a compiler takes its time for each."""
    return tiny("pyramid_tiny_full", {"depths": [1, 1, 1, 1]}, **fields)


def clip_file(folder, of):
    """A file of decoded frames for a case, as `harness.cost.measure` takes it."""
    path = folder / "clip.npy"
    shape = (of.clip.frames, of.clip.size, of.clip.size, 3)
    np.save(path, np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    return path
