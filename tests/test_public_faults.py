"""Situations that users of other video code reported, and their kin: what is right, once and for all."""

import os
import re
import struct
from dataclasses import replace

import av
import numpy as np
import pytest
import torch

import backbones
from backbones import checkpoint, layouts
from backbones.pyramid import VIDEO_SWIN
from harness import datasets
from harness.clips.decoding import open_video
from harness.datasets import several
from harness.evaluation import tested
from harness.spec import options, recipe
from harness.spec.reader import UsageError
from harness.training import start
from records.record import write_text
from tests.small_cases import TINY

SMALL = {"clip": [4, 32, 32], **TINY, "depths": [1, 1, 1, 1]}


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield 0o640
    os.umask(before)


def test_files_have_the_rights_that_the_umask_gives(tmp_path, umask):
    model = backbones.create("pyramid_tiny_local_window", 2, changes=SMALL)
    written = [backbones.save_checkpoint(model, tmp_path / "m.safetensors"), write_text("{}", tmp_path / "r.json")]
    (tmp_path / "plain").write_text("")
    for path in [*written, tmp_path / "plain"]:
        assert path.stat().st_mode & 0o777 == umask, path.name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.safetensors", "plain", "r.json"]


@pytest.mark.parametrize("before", ("", "module.", "model.", "net.", "backbone.module.", "model.backbone."))
def test_names_that_trainers_put_in_front_are_taken_off(before, tmp_path):
    model = backbones.create("pyramid_tiny_local_window", 2, changes=SMALL)
    state = {f"{before}{key}": tensor for key, tensor in model.state_dict().items()}
    state |= {"n_averaged": torch.tensor(3), f"{before}stages.0.total_ops": torch.zeros(1)}
    again = backbones.create("pyramid_tiny_local_window", 2, changes=SMALL)
    torch.save(state, tmp_path / "weights.pth")
    backbones.load_checkpoint(again, tmp_path / "weights.pth")
    for key, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[key])


def test_the_last_norm_may_be_named_after_its_stage():
    assert layouts.detect(["backbone.layers.0.x"], [VIDEO_SWIN]).rename("norm3.weight") == "norm.weight"


def test_a_video_model_is_not_inflated():
    model = backbones.create("video_swin_tiny", 2, changes={**SMALL, "clip": [8, 32, 32]})
    with pytest.raises(checkpoint.CheckpointError, match="is a video model already; leave inflate out"):
        backbones.inflate(dict(model.state_dict()), model)


COLOURS = {(1, 0, 0): "R", (0, 1, 0): "G", (0, 0, 1): "B", (1, 1, 1): "W"}


def quarters(path, pix_fmt="yuv444p", width=64, height=48, codec="libx264"):
    """A film whose quarters are red, green / blue, white."""
    picture = np.zeros((height, width, 3), np.uint8)
    for rows, columns, colour in ((0, 0, (250, 0, 0)), (0, 1, (0, 250, 0)), (1, 0, (0, 0, 250)), (1, 1, (250,) * 3)):
        picture[rows * height // 2 :, columns * width // 2 :] = 0
        picture[rows * height // 2 :, columns * width // 2 :] = colour
    picture[height // 2 :, : width // 2] = (0, 0, 250)
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        for shift in range(4):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, shift, axis=1), format="rgb24")
            file.mux(stream.encode(frame.reformat(format=pix_fmt)))
        file.mux(stream.encode())
    return path


def seen(path):
    """The colours of the corners of the first frame, row by row."""
    with open_video(path) as video:
        frame = video.read([0])[0]
    return "".join(COLOURS[tuple(int(v > 120) for v in frame[r, c])] for r in (4, -5) for c in (4, -5))


@pytest.mark.parametrize(
    "matrix, corners",
    [
        ((1, 0, 0, 1), "RGBW"),
        ((-1, 0, 0, 1), "GRWB"),  # mirrored
        ((1, 0, 0, -1), "BWRG"),  # upside down
        ((-1, 0, 0, -1), "WBGR"),
        ((0, 1, -1, 0), "BRWG"),
        ((0, 1, 1, 0), "RBGW"),  # rows and columns exchanged
        ((0, -1, -1, 0), "WGBR"),
    ],
)
def test_a_matrix_for_display_may_mirror(tmp_path, matrix, corners):
    content = bytearray(quarters(tmp_path / "plain.mp4").read_bytes())
    a, b, c, d = (65536 * entry for entry in matrix)
    place = content.index(b"tkhd") + 4 + 40
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(content)
    assert seen(tmp_path / "turned.mp4") == corners


@pytest.mark.parametrize(
    "pix_fmt, width, height", [("yuv420p", 47, 33), ("yuv440p", 47, 32), ("yuv410p", 47, 32), ("yuv422p", 47, 33)]
)
def test_pictures_do_not_depend_on_the_decoder(tmp_path, pix_fmt, width, height):
    path = quarters(tmp_path / "odd.mkv", pix_fmt, width, height, "ffv1")
    with open_video(path) as auto, open_video(path, pyav=True) as pyav:
        assert np.array_equal(auto.read([0, 3]), pyav.read([0, 3]))


def listed(folder, text, **more):
    """A data set in the lists of mmaction2, with a file for each line."""
    folder.mkdir(exist_ok=True)
    (folder / "2024").mkdir()
    for line in text.splitlines():
        (folder / "2024" / line.split()[0]).touch()
    for split in ("train", "val"):
        (folder / f"{split}_videos.txt").write_text(text)
    return {"annotations": "{split}_videos.txt", "videos": "2024", **more}


def test_an_option_of_a_data_set_means_the_same_everywhere(tmp_path):
    wanted = listed(tmp_path / "lists", "a.mp4 0\nb.mp4 1\n", sided="false")
    words = [f"data.{key}={value}" for key, value in wanted.items()]

    from harness import run, train

    parsed = options.parse(train.COMMAND, ["model=m", "data=mmaction", f"root={tmp_path / 'lists'}", "out=o", *words])
    assert parsed.data_changes == wanted
    assert options.parse(run.PROGRAM, ["ablation=all", *words]).data_changes == wanted
    (source,) = several.chosen("mmaction", str(tmp_path / "lists"), parsed.data_changes)
    assert source.options == {**wanted, "sided": False}
    assert [item.path for item in source.load("train").items] == ["2024/a.mp4", "2024/b.mp4"]
    assert not datasets.load("mmaction", "val", tmp_path / "lists", **wanted).sided
    with pytest.raises(datasets.DataError, match="sided='perhaps' is not true or false"):
        datasets.load("mmaction", "val", tmp_path / "lists", **wanted | {"sided": "perhaps"})


class Answering:
    """Of a checkpoint what `of_checkpoint` asks."""

    def __init__(self, answers, names=None):
        self.model = type("Model", (), {"num_classes": answers})
        self.named, self.classes = names is not None, names or ()


def test_a_list_without_names_is_of_all_classes_of_the_checkpoint(tmp_path, capsys):
    part = datasets.load("mmaction", "val", tmp_path / "l", **listed(tmp_path / "l", "a.mp4 3\nb.mp4 7\n"))
    whole = tested.of_checkpoint(part, "l", Answering(10))
    assert len(whole.classes) == 10
    assert [item.label for item in whole.items] == [3, 7]
    assert "l names no classes: its labels, up to 7, are taken as the checkpoint's, of 10" in capsys.readouterr().out
    assert tested.of_checkpoint(part, "l", Answering(8)) is part
    named = tested.of_checkpoint(part, "l", Answering(8, names=tuple("abcdefgh")))
    assert named.classes == tuple("abcdefgh")
    with pytest.raises(UsageError, match="l has 8 classes, the checkpoint answers for 5: .*data.classes=FILE"):
        tested.of_checkpoint(part, "l", Answering(5))
    with pytest.raises(UsageError, match="l has 8 classes, the checkpoint answers for 10"):
        tested.of_checkpoint(replace(part, classes=tuple("abcdefgh")), "l", Answering(10))


@pytest.mark.parametrize(
    "changes, epochs, told",
    [
        ({}, 30, []),
        ({}, 1, ["the warm-up of 2.5 epochs does not end, the training ends after 1 epoch: .* 40 % "]),
        ({"warmup_epochs": 0.5, "schedule": "step", "milestones": [2, 40]}, 30, ["milestones at epoch 40 are never"]),
        ({"warmup_epochs": 0}, 1, []),
    ],
)
def test_what_a_training_never_comes_to_is_told(changes, epochs, told):
    optimisation = replace(recipe.Optimisation(), **changes)
    plan = start.Schedule(micro=1, parts=1, per_epoch=10, ends=[10 * epochs], every=1)
    notes = start.unreached(optimisation, plan)
    assert len(notes) == len(told)
    for note, pattern in zip(notes, told, strict=True):
        assert re.search(pattern, note), note


def test_a_window_scheme_is_traced_the_same_each_time():
    model = backbones.create("video_swin_tiny", 2, changes={**SMALL, "clip": [4, 32, 32]}).eval()
    clip = torch.randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        for _ in range(2):
            traced = torch.jit.trace(model, clip)
        torch.testing.assert_close(traced(clip), model(clip))


@pytest.mark.parametrize("name", ("video_swin_tiny", "dualformer_tiny", "pyramid_tiny_full"))
def test_an_empty_batch_has_no_scores(name):
    model = backbones.create(name, 2, changes=SMALL).eval()
    with torch.no_grad():
        assert model(torch.empty(0, 3, 4, 32, 32)).shape == (0, 2)
