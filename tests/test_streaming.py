"""Streams measured: what an answer after one more frame costs, and that it does not grow with what went before."""

from __future__ import annotations

import pytest
import torch
from small_cases import LITTLE, clip_file
from torch.testing import assert_close

import backbones
from harness.cost import measure
from harness.spec import case

SMALL = {"width": 48, "num_heads": 3, "depth": 2}
METRICS = ["stream_latency", "stream_memory"]


def small(model, frames):
    row = case.Row("tiny", model=model, changes=SMALL, clip={"frames": frames, "size": 64})
    (entry,) = case.resolve(case.Ablation("test", "?", [row]), case.Settings(threads=1))
    return entry.case


def measured(folder, of):
    return {m.name: m for m in measure.measure(of, METRICS, clip_file(folder, of), effort=LITTLE)}


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_a_long_stream_gives_the_scores_of_the_clip(dtype, near):
    """256 frames. Relative to the largest score, as scores of random weights are small."""
    torch.manual_seed(0)
    model = backbones.create("rvit_small", 7, changes=SMALL | {"clip": [256, 32, 32]}).to(dtype).eval()
    clip = torch.randn(1, 3, 256, 32, 32, dtype=dtype)
    stream = model.stream()
    with torch.no_grad():
        whole = model(clip)
    for frame in clip.unbind(2):
        scores = stream(frame)
    assert (scores - whole).abs().max() <= near * whole.abs().max()


def test_memory_of_a_stream_is_flat_and_that_of_a_window_is_not(tmp_path):
    """From 8 to 256 frames, which themselves are 12 MiB: a stream holds none of them, a model of clips a map of each.

    In bytes, and no finer: most of what models this small take is pages of libraries, which differ by 1 or 2 MiB
    between two processes, and by 10 from one run of the tests to the next.
    """
    grown = {}
    for model in ("rvit_small", "timesformer_base"):
        short, long = (measured(tmp_path, small(model, frames)) for frames in (8, 256))
        grown[model] = long["stream_memory"].value - short["stream_memory"].value
        assert [m.details["streamed"] for m in short.values()] == [model == "rvit_small"] * 2
        assert short["stream_latency"].samples
    assert abs(grown["rvit_small"]) < 4 * 2**20
    assert grown["timesformer_base"] > 8 * 2**20


def test_what_is_compiled_is_no_stream(tmp_path):
    of = small("rvit_small", 4)
    of.compile = True
    measurements = measured(tmp_path, of)
    assert all("use compile=false" in m.missing for m in measurements.values())


def test_the_row_on_whole_clips_is_the_same_blocks():
    rows = {row.row: row for row in case.load("streaming").rows}
    models = []
    for name in ("RViT, streamed", "RViT, whole clips"):
        torch.manual_seed(0)
        config = backbones.config(rows[name].model).changed(rows[name].changes | SMALL | {"clip": [5, 32, 32]})
        models.append(backbones.create(config, 7).eval())
    streamed, whole = models
    assert hasattr(streamed, "stream")
    assert not hasattr(whole, "stream")
    whole.load_state_dict(streamed.state_dict())
    clip = torch.randn(2, 3, 5, 32, 32)
    assert_close(whole.tokens(clip).x, streamed.tokens(clip).x, rtol=0, atol=0)
