"""What a user tries first with a checkpoint: the right answer, or one error that says what to do."""

import json
from dataclasses import replace

import pytest
import torch
from colours import COLOURS, FRAMES, SIZE, colour_model, colour_video, published

import backbones
from harness import predict
from harness.clips import transforms
from harness.clips.reading import opened
from harness.datasets import DataSet, Item
from harness.evaluation import views
from harness.evaluation.protocol import Protocol
from harness.evaluation.trained import class_names
from harness.spec import recipe
from harness.spec.clip import Augmentation
from harness.spec.reader import UsageError
from harness.spec.recipe import Testing
from harness.spec.sampling import Sampling
from harness.training.job import Job

# What makes the colour model out of a named one, as a user would give it for a published checkpoint of another size.
AS_COLOURS = [
    "model=dualformer_tiny",
    "model.stages=[[L]]",
    "model.widths=[8]",
    "model.num_heads=[2]",
    "model.depths=[2]",
    "model.temporal_pooling=[]",
    "model.position=none",
    "model.attention.L.window=[2,4,4]",
    f"frames={FRAMES}",
    f"size={SIZE}",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("predict")
    for colour in COLOURS:
        colour_video(root / f"{colour}.mp4", colour)
    (root / "classes.txt").write_text("\n".join(COLOURS) + "\n\n")
    backbones.save_checkpoint(colour_model(), root / "model.safetensors")
    torch.save({"meta": {"epoch": 3}, "state_dict": published(colour_model())}, root / "released.pth")
    return root


def said(capsys, *arguments):
    assert predict.main(list(map(str, arguments))) == 0
    captured = capsys.readouterr()
    assert not captured.err
    return captured.out.splitlines()


def refused(capsys, *arguments):
    assert predict.main(list(map(str, arguments))) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.startswith("error: ")
    return error


@pytest.mark.parametrize("colour", COLOURS)
def test_the_colour_of_a_video_is_named(folder, capsys, colour):
    lines = said(
        capsys,
        f"checkpoint={folder / 'model.safetensors'}",
        f"clip={folder / f'{colour}.mp4'}",
        f"classes={folder / 'classes.txt'}",
        "views=2x3",
        "batch_size=4",
        "top=2",
    )
    assert lines[0] == "model.safetensors (attention-zoo layout): 3 classes"
    assert "2 clips x 3 crops of 4 frames, every 2nd, 32 x 32 pixels" in lines[1]
    assert len(lines) == 4
    place, name, share, _ = lines[2].split()
    assert (place, name) == ("1", colour)
    assert 50 < float(share) < 100


def test_a_published_checkpoint_is_found_out(folder, capsys):
    ours = said(capsys, f"checkpoint={folder / 'model.safetensors'}", f"clip={folder / 'blue.mp4'}")
    theirs = said(capsys, f"checkpoint={folder / 'released.pth'}", f"clip={folder / 'blue.mp4'}", *AS_COLOURS)
    assert "released.pth (DualFormer (mmaction) layout): 3 classes" in theirs[0]
    assert theirs[1:] == ours[1:]  # the number of classes follows from the file
    assert "classes have no names; classes=FILE" in ours[2]
    assert ours[3].split()[:3] == ["1", "class", "2"]


def test_a_training_run_says_how_it_is_tested(folder, tmp_path, capsys):
    run = tmp_path / "run"
    checkpoint = run / "checkpoints" / "step-0000010" / "model.safetensors"
    backbones.save_checkpoint(colour_model(), checkpoint)
    trained_so = recipe.Recipe(
        "own",
        sampling=Sampling(frames=FRAMES, kind="uniform"),
        augmentation=Augmentation(size=SIZE),
        testing=replace(recipe.Testing(), clips=2, crops=3, resize=40),
    )
    job = Job(model="colours", data="motion", config={}, recipe=trained_so, classes=3, folder=run)
    (run / "job.json").write_text(json.dumps({"identity": {}, "job": job.to_dict()}))
    lines = said(
        capsys, f"checkpoint={checkpoint}", f"clip={folder / 'green.mp4'}", f"classes={folder / 'classes.txt'}"
    )
    assert lines[0] == "colours from model.safetensors (attention-zoo layout): 3 classes"
    assert "2 clips x 3 crops of 4 frames (uniform), 32 x 32 pixels of short side 40" in lines[1]
    assert lines[2].split()[1] == "green"


def test_without_weights_there_is_no_answer(folder, capsys):
    error = refused(capsys, f"clip={folder / 'red.mp4'}", "model=dualformer_tiny")
    assert "checkpoint is missing" in error
    assert "a model without trained weights answers at random" in error


@pytest.mark.parametrize(
    "changes, messages",
    [
        ({"clip": "nowhere.mp4"}, ["clip=nowhere.mp4: no such file"]),
        ({"checkpoint": "{0}/modle.safetensors"}, ["there is no checkpoint", "did you mean", "model.safetensors"]),
        ({"checkpoint": "{0}/classes.txt"}, ["classes.txt", "not a readable PyTorch checkpoint"]),
        ({"checkpoint": "{0}/released.pth"}, ["does not say of which model it is", "nearest: ", "give model="]),
        ({"checkpoint": "{0}/released.pth", "model": "dualformer_tny"}, ["did you mean 'dualformer_tiny'"]),
        ({"checkpoint": "{0}/released.pth", "model": "dualformer_tiny"}, ["does not fit", "is it dualformer_tiny?"]),
        ({"classes": "{0}/names.txt"}, ["names.txt: no such file", "one class a line"]),
        ({"classes": "{0}"}, ["a folder, not a file"]),
        ({"classes": "{0}/two.txt"}, ["two.txt has 2 names, the checkpoint answers for 3 classes"]),
        ({"top": "0"}, ["top=0 is not a whole number from 1"]),
        ({"clip": "{0}/two.txt"}, ["clip=", "two.txt"]),
        ({"views": "0x1"}, ["views=0x1 is not CLIPSxCROPS"]),
        ({"clips": "3"}, ["unknown option 'clips'", "did you mean 'clip'"]),
        ({"checkpoint": "{0}/backbone.safetensors"}, ["no classifier: a backbone alone"]),
        ({"checkpoint": "{0}/nan.safetensors"}, ["nan.safetensors: classifier.bias", "not finite", "diverged"]),
    ],
)
def test_slips_are_one_error(folder, capsys, changes, messages):
    (folder / "two.txt").write_text("red\ngreen\n")
    if not (folder / "nan.safetensors").exists():
        backbones.save_checkpoint(backbones.create(colour_model().config, 0), folder / "backbone.safetensors")
        diverged = colour_model()
        torch.nn.init.constant_(diverged.classifier.bias, float("nan"))
        backbones.save_checkpoint(diverged, folder / "nan.safetensors")
    options = {"checkpoint": "{0}/model.safetensors", "clip": "{0}/red.mp4"} | changes
    error = refused(capsys, *(f"{key}={value.format(folder)}" for key, value in options.items()))
    for message in messages:
        assert message in error


def test_names_of_classes_come_from_text_or_json(tmp_path):
    files = {
        "a.txt": "one\n two \n\n",
        "b.json": '["one", "two"]',
        "c.json": '{"two": "1", "one": "0"}',
        "d.json": '{"one": 0, "two": 2}',
        "e.json": "{",
        "f.json": "3",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    for name in ("a.txt", "b.json", "c.json"):
        assert class_names(tmp_path / name, 2) == ["one", "two"]
    for name, message in (
        ("d.json", "with the numbers 0, 1, 2"),
        ("e.json", "line 1: not JSON"),
        ("f.json", "neither a list"),
    ):
        with pytest.raises(UsageError, match=message):
            class_names(tmp_path / name)


def test_a_recurrent_model_answers_as_the_video_plays(folder, capsys, tmp_path):
    """After the last frame it says what the clip form says of all of them."""
    changes = {"width": 16, "num_heads": 2, "depth": 2, "clip": [4, SIZE, SIZE]}
    torch.manual_seed(0)
    model = backbones.create("rvit_small", len(COLOURS), changes=changes).eval()
    path = backbones.save_checkpoint(model, tmp_path / "rvit.safetensors")
    film = folder / "blue.mp4"
    arguments = [f"checkpoint={path}", f"clip={film}", f"classes={folder / 'classes.txt'}", "stride=2"]
    lines = said(capsys, *arguments, "stream=true", "top=3")
    protocol = Protocol(Sampling(frames=4, stride=2), Testing(1, 1, SIZE), Augmentation(size=SIZE))
    told = list(views.streamed(model, film, protocol))
    assert len(lines) == 1 + len(told)
    assert [number for number, *_ in told] == list(range(0, 2 * len(told), 2))
    best = int(told[-1][2].argmax())
    assert f"{COLOURS[best]} {100 * told[-1][2][best]:.1f} %" in lines[-1]
    with opened(DataSet("clip", "test", folder, (), ("0",)), Item("blue.mp4", 0)) as source:
        pixels = torch.from_numpy(source.read([number for number, *_ in told]))
    whole = views.probabilities_of(model, transforms.test_view(pixels, SIZE, SIZE, 0, 1)[None], protocol)[0]
    torch.testing.assert_close(told[-1][2], whole, rtol=1e-5, atol=1e-6)


def test_a_model_of_whole_clips_does_not_stream(folder, capsys):
    arguments = f"checkpoint={folder / 'model.safetensors'}", f"clip={folder / 'blue.mp4'}", "stream=true"
    assert "looks at whole clips" in refused(capsys, *arguments)
