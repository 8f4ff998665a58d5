"""Pictures of attention: weights are those of the scheme, on the tokens and frames that they belong to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from training_runs import moving_square, write_video

import attention_zoo
import backbones
from attention_zoo import Grid
from attention_zoo.sequence import heads
from harness import attention_map
from harness.evaluation.attention import looks, weights_on

GRID = Grid(4, 3, 5)
TINY = {"width": 24, "num_heads": 2, "depth": 2}


def softmaxed(scheme, tokens):
    q, k, _ = heads(scheme.qkv(tokens), 3, 2)
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)


def test_weights_of_full_attention_are_the_softmax_of_the_class_token():
    torch.manual_seed(0)
    scheme = attention_zoo.build("full", 12, 2, GRID)
    x, prefix = torch.randn(1, *GRID, 12), torch.randn(1, 1, 12)
    weights = weights_on(scheme, x, prefix)
    wanted = softmaxed(scheme, torch.cat([prefix, x.flatten(1, 3)], 1))[:, :, 0].mean(1)
    torch.testing.assert_close(weights.flatten(), wanted[0, 1:])
    assert scheme.kernel == "auto"


def test_without_a_class_token_it_is_the_mean_of_all():
    torch.manual_seed(0)
    scheme, x = attention_zoo.build("full", 12, 2, GRID), torch.randn(1, *GRID, 12)
    weights = weights_on(scheme, x, None)
    torch.testing.assert_close(weights.flatten(), softmaxed(scheme, x.flatten(1, 3)).mean((1, 2))[0])


def test_copies_of_a_class_token_look_at_their_frames():
    """Attention over space of TimeSformer: in each frame a copy of the class token."""
    torch.manual_seed(0)
    scheme = attention_zoo.build("space_only", 12, 2, GRID, prefix="shared")
    x, prefix = torch.randn(1, *GRID, 12), torch.randn(1, 1, 12)
    weights = weights_on(scheme, x, prefix)
    for frame in range(GRID.t):
        tokens = torch.cat([prefix, x[:, frame].flatten(1, 2)], 1)
        wanted = softmaxed(scheme, tokens)[:, :, 0].mean(1)[0, 1:] / GRID.t
        torch.testing.assert_close(weights[0, frame].flatten(), wanted)


@pytest.mark.parametrize("scheme", ["linear", "divided", "pooling", "global_pyramid", "factorised_dot_product"])
def test_weights_on_all_tokens_add_up_to_one(scheme):
    torch.manual_seed(0)
    built = attention_zoo.build(scheme, 12, 2, Grid(4, 6, 8), **attention_zoo.schemes.get(scheme).example)
    x = torch.randn(1, 4, 6, 8, 12)
    weights = weights_on(built, x, None)
    assert (weights >= 0).all()
    assert weights.any()


def test_attention_on_results_of_attention_is_the_product_of_both():
    """Over time, then over the places of a frame, with the same queries and keys."""
    torch.manual_seed(0)
    scheme, x = attention_zoo.build("separable", 12, 2, GRID), torch.randn(1, *GRID, 12)
    q, k, _ = (part.unflatten(2, (GRID.t, -1)) for part in heads(scheme.qkv(x.flatten(1, 3)), 3, 2))
    over_time = (torch.einsum("bmisc,bmjsc->bmsij", q, k) * q.shape[-1] ** -0.5).softmax(-1)
    over_space = (torch.einsum("bmtic,bmtjc->bmtij", q, k) * q.shape[-1] ** -0.5).softmax(-1)
    wanted = torch.einsum("bmtij,bmjtu->bmuj", over_space, over_time).mean(1) / GRID.tokens
    torch.testing.assert_close(weights_on(scheme, x, None).flatten(), wanted.flatten())


def test_a_trajectory_lies_on_the_tokens_that_it_was_found_on():
    torch.manual_seed(0)
    weights = weights_on(attention_zoo.build("trajectory", 12, 2, GRID), torch.randn(1, *GRID, 12), None)
    assert weights.sum().item() == pytest.approx(1)
    assert weights.min() > 0


def test_a_cell_of_a_mosaic_lies_on_its_frame():
    model = backbones.create(
        "dualpath_clip_base_16f", 3, changes=TINY | {"bottleneck": 4, "projection": 8, "clip": [16, 128, 128]}
    )
    mosaic = torch.zeros(1, 1, 8, 8)
    mosaic[0, 0, 2:4, 4:6] = 1  # row 1, column 2
    frames, cells = model.paths([mosaic, torch.zeros(8, 1, 8, 8)])["temporal"]
    assert frames == tuple(range(16))
    assert [number for number in frames if cells[number].any()] == [6]


def checkpoint(folder, name, **changes):
    torch.manual_seed(0)
    return backbones.save_checkpoint(backbones.create(name, 3, changes=TINY | changes), folder / "model.safetensors")


def video(folder):
    write_video(folder / "clip.mp4", moving_square("left", 1, frames=20))
    return f"clip={folder / 'clip.mp4'}"


def test_each_path_of_dualpath_has_its_strip_and_film(tmp_path, capsys):
    path = checkpoint(tmp_path, "dualpath_clip_base_16f", bottleneck=4, projection=8, clip=[16, 64, 64])
    assert attention_map.main([f"checkpoint={path}", video(tmp_path), f"out={tmp_path / 'look'}", "json=true"]) == 0
    for name, count in (("spatial", 8), ("temporal", 16)):
        assert Image.open(tmp_path / f"look-{name}.png").width > 1000
        assert Image.open(tmp_path / f"look-{name}.gif").n_frames == count
    printed = capsys.readouterr().out
    assert "the class token in column.1" in printed
    files = json.loads(printed.splitlines()[-1])["files"]
    assert len(files) == 4
    assert all(Path(file).is_file() for file in files)


@pytest.mark.parametrize(
    "name", ["timesformer_base", "vivit_base_16x2", "rvit_small", "mvit_v2_small_16f", "vidtr_small"]
)
def test_models_with_class_tokens_are_drawn(name):
    shrunk = backbones.config(name).shrunk(1 / 8, 2, (8, 64, 64))
    (look,) = looks(backbones.create(shrunk, 3).eval(), torch.randn(1, 3, 8, 64, 64))
    assert look.heat.shape == (8, 64, 64)
    assert look.heat.max() == 1


def test_swin_on_two_paths_shows_both():
    shrunk = backbones.config("dualpath_swin_base_16f").shrunk(1 / 16, 2, (16, 64, 64))
    shown = looks(backbones.create(shrunk, 3).eval(), torch.randn(1, 3, 16, 64, 64))
    assert [(look.path, len(look.frames), look.reader) for look in shown] == [
        ("spatial", 8, "all tokens, averaged"),
        ("temporal", 16, "all tokens, averaged"),
    ]


def test_what_sees_a_window_alone_is_refused_and_so_is_a_wrong_name(tmp_path, capsys):
    shrunk = backbones.config("pyramid_tiny_local_window").shrunk(1 / 4, 2, (8, 224, 224))
    path = backbones.save_checkpoint(backbones.create(shrunk, 3), tmp_path / "window.safetensors")
    clip = video(tmp_path)
    assert attention_map.main([f"checkpoint={path}", clip, "out=look.jpg"]) == 2
    assert "must end in .png" in capsys.readouterr().err
