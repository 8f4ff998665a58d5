"""Kin of public faults: other inputs of the same kinds, of which a repair of one line would have left some wrong."""

import argparse
import collections
import copy
import datetime
import json
import os
import pathlib
import pickle
import re
import time
import types
import unicodedata
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
import training_runs
from colours import COLOURS, colour_model, colour_video
from filelock import FileLock
from PIL import Image
from safetensors.torch import save_file
from test_datasets import listed, write
from test_every_family import FAMILIES, KINDS, tiny
from test_public_faults import SMALL

import backbones
from harness import datasets, evaluate
from harness.clips import loading
from harness.clips.decoding import probe
from harness.datasets import DataError, Item, check
from harness.datasets.files import Found, class_names
from harness.datasets.frames import picture_names, read_frames
from harness.training import loop
from harness.training.job import TrainingError

# A name decides what a thing is


def test_a_moving_preview_beside_a_film_is_no_video(tmp_path):
    write(tmp_path, {"train/run/a.mp4": None, "train/run/a.gif": None, "train/run/b.gif": None})
    assert Found(tmp_path).file("a") == "train/run/a.mp4"
    paths = [item.path for item in datasets.load("folder", "train", tmp_path).items]
    assert paths == ["train/run/a.mp4", "train/run/b.gif"]


def test_a_folder_of_pictures_may_be_called_like_a_film(tmp_path):
    """As programs leave it that take films apart, each into a folder of its own name."""
    names = {f"train/Run/v_x.avi/{number:03}.jpg": None for number in (1, 2, 3)}
    write(tmp_path, names | {"classInd.txt": "1 Run\n", "trainlist01.txt": "Run/v_x.avi 1\n"})
    for name in ("ucf101", "folder"):
        assert datasets.load(name, "train", tmp_path).items == (Item("train/Run/v_x.avi", 0, frames=3),)


def test_what_systems_leave_behind_is_no_class_and_no_video(tmp_path):
    write(tmp_path, {"val/run/a.mp4": None, "val/__MACOSX/._a.mp4": None, "val/@eaDir/b.mp4": None})
    write(tmp_path, {"val/lost+found/x": None, "val/run/@eaDir/a.mp4/SYNOVIDEO_1.jpg": None})
    dataset = datasets.load("folder", "val", tmp_path)
    assert (dataset.classes, [item.path for item in dataset.items]) == (("run",), ["val/run/a.mp4"])


def test_a_link_back_to_a_folder_above_is_not_followed(tmp_path):
    write(tmp_path, {"train/run/day/a.mp4": None})
    (tmp_path / "train" / "run" / "day" / "back").symlink_to(tmp_path / "train" / "run")
    assert [item.path for item in datasets.load("folder", "train", tmp_path).items] == ["train/run/day/a.mp4"]


@pytest.mark.parametrize(
    "names, message",
    [
        (("img_1.jpg", "img_01.jpg", "img_2.jpg"), "img_01.jpg and img_1.jpg have the same number"),
        (("img_1.jpg", "img_1.png"), "img_1.jpg and img_1.png have the same number"),
        (("t_0.5.jpg", "t_0.25.jpg"), "t_0.5.jpg and t_0.25.jpg have points, and another order"),
    ],
)
def test_frames_whose_order_is_open_are_refused(names, message, tmp_path):
    write(tmp_path, dict.fromkeys(names))
    with pytest.raises(DataError, match=message):
        picture_names(tmp_path)


def test_times_of_one_width_order_frames(tmp_path):
    write(tmp_path, dict.fromkeys(("t_10.25.jpg", "t_9.50.jpg", "t_9.75.jpg")))
    assert picture_names(tmp_path) == ["t_9.50.jpg", "t_9.75.jpg", "t_10.25.jpg"]


@pytest.mark.parametrize(
    "files, paths",
    [
        # A numbered poster above folders of films, and above folders of pictures.
        (("train/run/day/poster1.jpg", "train/run/day/one/a.mp4"), ["train/run/day/one/a.mp4"]),
        (("train/run/day/poster1.jpg", "train/run/day/one/1.jpg"), ["train/run/day/one"]),
        # Pictures of a film, and among them a folder of smaller ones.
        (("train/run/x/1.jpg", "train/run/x/2.jpg", "train/run/x/small/1.jpg"), ["train/run/x"]),
        (("train/run/a.mp4", "train/run/~$b.mp4", "train/run/c.mp4.part"), ["train/run/a.mp4"]),
        (("Training/run/a.MP4",), ["Training/run/a.MP4"]),
    ],
)
def test_what_lies_beside_and_above_videos_hides_none(files, paths, tmp_path):
    write(tmp_path, dict.fromkeys(files))
    for data in (("folder", "train", tmp_path), (str(tmp_path), "train")):
        assert [item.path for item in datasets.load(*data).items] == paths


def test_classes_that_are_numbers_are_in_their_order(tmp_path):
    write(tmp_path, {f"train/{number}/a.mp4": None for number in range(12)})
    dataset = datasets.load("folder", "train", tmp_path)
    assert dataset.classes == tuple(map(str, range(12)))
    assert [item.label for item in dataset.items] == list(range(12))


def test_what_is_to_be_tested_adds_no_class(tmp_path):
    """Unlabelled videos lie in a folder of any name."""
    write(tmp_path, {"train/run/a.mp4": None, "train/walk/a.mp4": None, "test/all/b.mp4": None})
    assert datasets.load("folder", "train", tmp_path).classes == ("run", "walk")
    with pytest.raises(DataError, match="test/all: is no class of train or val, which have run, walk"):
        datasets.load("folder", "test", tmp_path)
    root = write(tmp_path / "lists", {"train.csv": "a.mp4,0\n", "test.csv": "b.mp4\nc.mp4\n"})
    assert datasets.load("csv", "train", root).classes == ("0",)
    with pytest.raises(DataError, match="test.csv, line 1: 'b.mp4' is not"):
        datasets.load("csv", "test", root)


@pytest.mark.parametrize("name, folder", [("ucf101", "Run/"), ("hmdb51", "")])
def test_a_dot_in_a_name_is_no_ending(name, folder, tmp_path):
    lists = {"classInd.txt": "1 Run\n", "trainlist01.txt": "Run/a.b 1\nRun/c.d.avi 1\n"}
    write(tmp_path, lists if folder else {"Run_test_split1.txt": "a.b 1\nc.d.avi 1\n"})
    write(tmp_path, {"videos/Run/a.b.AVI": None, "videos/Run/c.d.mp4": None})
    paths = [item.path for item in datasets.load(name, "train", tmp_path).items]
    assert paths == ["videos/Run/a.b.AVI", "videos/Run/c.d.mp4"]


def test_a_class_of_ucf101_may_have_a_space(tmp_path):
    write(tmp_path, {"classInd.txt": "1 Long Run\n2 Walk\n", "trainlist01.txt": "Long Run/a b.avi 1\nWalk\\c.avi,2\n"})
    write(tmp_path, {"Long Run/a b.avi": None, "Walk/c.avi": None})
    assert datasets.load("ucf101", "train", tmp_path).items == (Item("Long Run/a b.avi", 0), Item("Walk/c.avi", 1))
    write(tmp_path, {"trainlist01.txt": "Walk/c.avi,1\n"})
    with pytest.raises(DataError, match="line 1: .* numbered as in classInd.txt, where Walk is 2"):
        datasets.load("ucf101", "train", tmp_path)


# The first line decides about all


@pytest.mark.parametrize(
    "text",
    ["video_path,label_id\na.mp4,1\nb.mp4,0\n", "Video Path;Target\na.mp4;1\nb.mp4;0\n",
     "label\tpath\n1\ta.mp4\n0\tb.mp4\n",
     "a.mp4;1\nb.mp4;0\n", "a.mp4\t1\nb.mp4\t0\n", "a.mp4 1\nb.mp4 0\n", ",name,tag\n0,a.mp4,1\n1,b.mp4,0\n"],
)  # fmt: skip
def test_a_list_is_parted_and_headed_in_many_ways(text, tmp_path):
    root = write(tmp_path, {"train.csv": text})
    assert datasets.load("csv", "train", root).items == (Item("a.mp4", 1), Item("b.mp4", 0))


@pytest.mark.parametrize("text", ["path,label\na.mp4,1\n", "video label\na.mp4 1\n", '"a.mp4","1"\n', "a.mp4;1\n"])
def test_plain_lists_agree_about_headings_and_quotes(text, tmp_path):
    root = write(tmp_path, {"train.csv": text, "train.txt": text})
    for name in ("slowfast", "mmaction", "kinetics400", "csv"):
        assert datasets.load(name, "train", root).items == (Item("a.mp4", 1),)


@pytest.mark.parametrize(
    "columns", ["path,label,label_name\na.mp4,{}\nb.mp4,{}\n", "class_id,class,path\n{},a.mp4\n{},b.mp4\n"]
)
def test_a_list_may_have_numbers_and_names(columns, tmp_path):
    root = write(tmp_path, {"train.csv": columns.format("1,run", "0,walk")})
    dataset = datasets.load("csv", "train", root)
    assert (dataset.classes, [item.label for item in dataset.items]) == (("walk", "run"), [1, 0])
    write(root, {"val.csv": columns.format("1,jump", "0,walk")})
    with pytest.raises(DataError, match="val.csv: names label 1 'jump'; another list has 1 'run'"):
        datasets.load("csv", "val", root)
    write(root, {"val.csv": "c.mp4,2\n", "train.csv": columns.format("1,sport", "0,sport")})  # names of groups
    assert datasets.load("csv", "train", root).classes == ("0", "1", "2")


@pytest.mark.parametrize("heads", ["start,end", "time_start,time_end", "Start Time,end-time", "t_start,stop"])
def test_a_cut_is_read_whatever_its_columns_are_called(heads, tmp_path):
    root = write(tmp_path, {"train.csv": f"path,label,{heads}\na.mp4,0,3,00:01:02.5\n"})
    assert datasets.load("csv", "train", root).items == (Item("a.mp4", 0, 3.0, 62.5),)


@pytest.mark.parametrize(
    "text, message",
    [
        ("path,label,start_frame,end_frame\na.mp4,0,3,9\n", "line 1: .*start_frame is none, a cut is .* in seconds"),
        ("run,a.mp4\nwalk,b.mp4\n", "line 1: .*the path comes first"),
        ("0,a.mp4\n1,b.mp4\n", "line 1: .*the path comes first"),
        ("path,label\na.mp4,run\npath,label\nb.mp4,walk\n", "line 3: 'path,label' is not a video, but a heading"),
        ("a.mp4,run\nb.mp4,\n", "line 2: 'b.mp4,' is not"),
        ("label,youtube_id,time_start,time_end\nrun,abc,0,10\n", "line 1: .* column of paths .*data=kinetics400"),
        ("path,label\n", "lists no videos"),
    ],
)
def test_lines_that_no_reading_fits_are_refused(text, message, tmp_path):
    with pytest.raises(DataError, match=message):
        datasets.load("csv", "train", write(tmp_path, {"train.csv": text}))


def test_lists_that_label_by_names_and_by_numbers_do_not_go_together(tmp_path):
    root = write(tmp_path, {"train.csv": "a.mp4,walk\nb.mp4,run\n", "val.csv": "c.mp4,0\n"})
    for split in ("train", "val"):
        with pytest.raises(DataError, match="train.csv labels with names, .*val.csv with numbers"):
            datasets.load("csv", split, root)


def test_a_header_that_nobody_knows_is_no_video(tmp_path):
    root = write(tmp_path, {"train.csv": "footage,motion\na.mp4,run\nb.mp4,walk\n"})
    with pytest.raises(DataError, match="line 1: .* is not a video, as all lines below it are; a header must name"):
        datasets.load("csv", "train", root)


def test_a_number_among_class_names_is_refused_with_its_line(tmp_path):
    root = write(tmp_path, {"train.csv": "a.mp4,run\nb.mp4,walk\nc.mp4,3\n"})
    with pytest.raises(DataError, match=r"line 3: 'c.mp4,3' is not labelled with a class name, .* in classes.txt"):
        datasets.load("csv", "train", root)
    write(root, {"classes.txt": "walk\nrun\n3\n"})
    assert listed(datasets.load("csv", "train", root)) == [("a.mp4", "run"), ("b.mp4", "walk"), ("c.mp4", "3")]


def test_commas_in_the_first_path_make_no_list_of_the_owners(tmp_path):
    root = write(tmp_path, {"val.csv": 'val/a, b, c/x.mp4,2\n"val/d, e/y.mp4",3\nval/z.mp4,4\n'})
    items = datasets.load("kinetics400", "val", root).items
    assert [(item.path, item.label) for item in items] == [
        ("val/a, b, c/x.mp4", 2), ("val/d, e/y.mp4", 3), ("val/z.mp4", 4),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ["run\nwalk\n", "0 run\n1 walk\n", "1,run\n2,walk\n", "id,name\n0,run\n1,walk\n", ",0\n0,run\n1,walk\n",
     '"run"\n"walk"\n', "0: run\n1: walk\n", "1. run\n2. walk\n", "run\n\ufeffwalk\n",
     "name\tid\nwalk\t1\nrun\t0\n", "run,0\nwalk,1\n", '1;"walk"\n0;"run"\n', "\ufeffrun\r\nwalk\r\n"],
)  # fmt: skip
def test_class_names_are_read_by_all_their_lines(text, tmp_path):
    (tmp_path / "classes.txt").write_bytes(text.encode())
    assert class_names(tmp_path / "classes.txt") == ("run", "walk")


@pytest.mark.parametrize(
    "file, text",
    [("c.json", '{"0": "run", "1": "walk"}'), ("c.json", '{"run": 1, "walk": 2}'), ("c.json", '["run", "walk"]'),
     ("config.json", '{"hidden_size": 8, "id2label": {"0": "run", "1": "walk"}}'), ("c.yaml", "- run\n- walk\n"),
     ("data.yml", "path: x\nnames:\n  0: run\n  1: walk\n")],
)  # fmt: skip
def test_class_names_are_read_where_other_programs_keep_them(file, text, tmp_path):
    (tmp_path / file).write_text(text)
    assert class_names(tmp_path / file) == ("run", "walk")


@pytest.mark.parametrize(
    "file, text, message",
    [
        ("c.txt", "label\nrun\nwalk\n", "line 1: 'label' is not the name of a class, but a heading"),
        ("c.txt", "0,run\n2,walk\n", "line 1: '0,run' is not numbered as it should be"),
        ("c.json", '{"run": 0, "walk": 2}', "neither a list of names nor names with the numbers 0, 1, 2"),
        ("c.json", '["run", "run"]', "or one twice"),
        ("c.json", '[{"id": 0, "name": "run"}]', "neither a list of names"),
        ("c.json", '["run", null]', "neither a list of names"),
        ("c.json", '{"run": true, "walk": false}', "neither a list of names"),
        ("c.json", '{"run": 0, "run": 1}', "'run' is in it twice"),
        ("c.yaml", "a: [", "cannot be read"),
        ("c.txt", "name\nrun\n", "line 1: 'name' is not the name of a class, but a heading"),
        ("c.pbtxt", 'item {\n  name: "run"\n}\n', "line 1: 'item {' is not the name of a class, but of a label map"),
    ],
)
def test_class_names_that_no_reading_fits_are_refused(file, text, message, tmp_path):
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError, match=message):
        class_names(tmp_path / file)


# Text is cut by the wrong tool


def test_class_names_are_not_cut_where_unicode_has_line_ends(tmp_path):
    (tmp_path / "classes.txt").write_text("a\u2028b\nc\x85d\n", encoding="utf-8")
    assert class_names(tmp_path / "classes.txt") == ("a\u2028b", "c\x85d")


def test_a_quoted_path_may_hold_what_parts_it_from_its_label(tmp_path):
    text = '"a, b.mp4",0\n"c ""d"" e.mp4" 1\n'
    root = write(tmp_path, {"train.csv": text, "train.txt": text})
    for name in ("slowfast", "mmaction"):
        assert datasets.load(name, "train", root).items == (Item("a, b.mp4", 0), Item('c "d" e.mp4', 1))


def test_an_accent_may_be_written_in_two_ways(tmp_path):
    """A list made on Linux, files that come from a Mac."""
    composed, decomposed = (unicodedata.normalize(form, "caf\xe9.mp4") for form in ("NFC", "NFD"))
    root = write(tmp_path, {"train.csv": f"{composed},0\n{decomposed},1\n", decomposed: "film"})
    first, second = (dataset := datasets.load("csv", "train", root)).items
    assert dataset.path(first) == dataset.path(second) == root / decomposed
    assert (first.path, second.path) == (composed, decomposed)


def test_a_class_is_one_however_its_accent_is_written(tmp_path):
    """Folders and lists from Linux and from a Mac."""
    composed, decomposed = (unicodedata.normalize(form, "caf\xe9") for form in ("NFC", "NFD"))
    write(tmp_path, {f"train/{composed}/a.mp4": None, f"val/{decomposed}/b.mp4": None})
    write(tmp_path, {"train.csv": f"a.mp4,{composed}\n", "val.csv": f"b.mp4,{decomposed}\n"})
    for name in ("folder", "csv"):
        splits = [datasets.load(name, split, tmp_path) for split in ("train", "val")]
        assert [(split.classes, split.items[0].label) for split in splits] == [((composed,), 0)] * 2
    write(tmp_path, {f"{composed}_test_split1.txt": f"{composed}.avi 1\n", f"x/{decomposed}/{decomposed}.avi": None})
    (item,) = datasets.load("hmdb51", "train", tmp_path).items
    assert item.path == f"x/{decomposed}/{decomposed}.avi"


@pytest.mark.parametrize(
    "written", ["train\\run\\a b.mp4", ".\\train\\run\\a b.mp4", "train//run/./a b.mp4", "train/run/a%20b.mp4"]
)
def test_a_path_may_be_written_as_other_systems_write_it(written, tmp_path):
    root = write(tmp_path, {"train/run/a b.mp4": None, "train.csv": f"{written},0\n", "train.txt": f"{written} 0\n"})
    for name in ("csv", "slowfast", "mmaction"):
        (item,) = (dataset := datasets.load(name, "train", root)).items
        assert dataset.path(item) == root / "train/run/a b.mp4"
    odd = write(tmp_path / "odd", {"a\\b%20c.mp4": None, "train.csv": "a\\b%20c.mp4,0\n"})  # names on this system
    (item,) = (dataset := datasets.load("csv", "train", odd)).items
    assert dataset.path(item) == odd / "a\\b%20c.mp4"


def test_joined_lists_have_the_mark_of_their_beginning_within(tmp_path):
    root = write(tmp_path, {"train.csv": "\ufeffa.mp4,0\n\ufeffb.mp4,1\n"})
    assert [item.path for item in datasets.load("csv", "train", root).items] == ["a.mp4", "b.mp4"]


def test_a_list_in_another_encoding_says_the_way_out(tmp_path):
    (tmp_path / "train.csv").write_bytes("caf\xe9.mp4,0\n".encode("latin-1"))
    with pytest.raises(DataError, match="byte 3 is none.; save it as UTF-8"):
        datasets.load("csv", "train", tmp_path)


# A guess is silent


@pytest.mark.parametrize(
    "train, val, told",
    [
        ("a.mp4,0\nb.mp4,1\n", "c.mp4,1\n", []),
        ("a.mp4,1\nb.mp4,2\n", "c.mp4,2\n", ["no training video has the label 0: labels count from 0"]),
        ("a.mp4,0\nb.mp4,3\n", "c.mp4,1\n", ["2 of 4 classes have no training video: 1, 2", "1 of the classes .*: 1"]),
        ("a.mp4,run\n", "c.mp4,walk\n", ["1 of 2 classes have no training video: walk", "are tested have none: walk"]),
    ],
)
def test_classes_that_nothing_teaches_are_told(train, val, told, tmp_path):
    root = write(tmp_path, {"train.csv": train, "val.csv": val})
    notes = datasets.untaught(datasets.load("csv", "train", root), datasets.load("csv", "val", root))
    assert len(notes) == len(told)
    for note, text in zip(notes, told, strict=True):
        assert re.match(f"warning: csv: .*{text}", note), note


# Two libraries, one claim


def test_pictures_stand_as_their_camera_says(tmp_path):
    """As every viewer and OpenCV show them."""
    picture = np.zeros((4, 6, 3), np.uint8)
    picture[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right to see it upright
    Image.fromarray(picture).save(tmp_path / "1.png", exif=exif)
    (frame,) = read_frames(tmp_path, [0])
    assert frame.shape == (6, 4, 3)
    assert frame[0, -1].tolist() == [255] * 3


def test_pictures_of_16_bits_are_scaled_and_not_cut_off(tmp_path):
    levels = np.array([[0, 256, 32768, 65535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / "1.png")
    assert read_frames(tmp_path, [0])[0, 0, :, 0].tolist() == [0, 1, 128, 255]


def film(path, seconds):
    """One whose frames are shown at these times."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv444p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, second in enumerate(seconds):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 2 * number, np.uint8)).reformat(format="yuv444p")
            frame.pts, frame.time_base = round(1000 * second), Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def test_the_rate_of_frames_is_that_of_their_times(tmp_path):
    """Whatever the header says that the camera was set to."""
    uneven = film(tmp_path / "uneven.mkv", [0, 0.04, 0.05, 0.4, 0.41, 1, 1.01, 1.5, 1.9, 3])
    assert probe(uneven).fps == pytest.approx(3, abs=0.01)
    assert probe(film(tmp_path / "even.mkv", [number / 10 for number in range(10)])).fps == 10


def test_a_film_that_was_cut_off_says_how_long_it_was(tmp_path):
    content = film(tmp_path / "whole.mkv", [number / 10 for number in range(100)]).read_bytes()
    (tmp_path / "part.mkv").write_bytes(content[: len(content) // 3])
    assert probe(tmp_path / "whole.mkv").damage is None
    assert "the header promises 10.0 s, the file holds" in probe(tmp_path / "part.mkv").damage


def test_a_list_with_the_line_ends_of_old_macs_has_its_lines(tmp_path):
    (tmp_path / "train.txt").write_bytes(b"a.mp4 0\rb.mp4 1\r")
    assert [item.path for item in datasets.load("mmaction", "train", tmp_path).items] == ["a.mp4", "b.mp4"]


@pytest.mark.parametrize("entry", ["model_state_dict", "module", "ema", "state_dict"])
def test_weights_are_found_under_any_name(entry, tmp_path, caplog):
    model, again = (backbones.create("pyramid_tiny_local_window", 2, changes=SMALL) for _ in range(2))
    contents = {"epoch": 3, "optimizer": {"state": {}, "param_groups": []}, entry: model.state_dict()}
    torch.save(contents, tmp_path / "weights.pth")
    backbones.load_checkpoint(again, tmp_path / "weights.pth")
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in model.state_dict().items())
    averaged = {key: tensor + 1 for key, tensor in model.state_dict().items()}
    torch.save(contents | {"averaged": averaged}, tmp_path / "two.pth")
    if entry == "state_dict":  # a guess is told
        backbones.load_checkpoint(again, tmp_path / "two.pth")
        assert "the weights under state_dict are taken, not those under averaged" in caplog.text
    else:
        with pytest.raises(backbones.CheckpointError, match=f"more than one state dict, {entry} and averaged"):
            backbones.load_checkpoint(again, tmp_path / "two.pth")


def tensors_of(model, change=lambda tensor: tensor, before=""):
    return {f"{before}{key}": change(tensor) for key, tensor in model.state_dict().items()}


def loaded(model, path):
    again = backbones.create("pyramid_tiny_local_window", 2, changes=SMALL)
    backbones.load_checkpoint(again, path)
    return all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["w.pth", "pytorch_model.bin", "w.SAFETENSORS", "w"])
def test_what_a_file_of_weights_is_does_not_hang_on_its_name(name, tmp_path):
    model = backbones.create("pyramid_tiny_local_window", 2, changes=SMALL)
    save_file(model.state_dict(), tmp_path / name)
    assert loaded(model, tmp_path / name)
    torch.save(model.state_dict(), tmp_path / "pickled.safetensors")
    assert loaded(model, tmp_path / "pickled.safetensors")


@pytest.mark.parametrize(
    "contents",
    [
        lambda model: {"state_dict": {"model": tensors_of(model)}},
        lambda model: {"ema": {"module": tensors_of(model), "decay": 0.9}},
        lambda model: {"checkpoint": {"model_state": tensors_of(model), "ema_state": tensors_of(model, torch.neg)}},
        lambda model: {"state_dict": tensors_of(model, torch.Tensor.numpy)},
        lambda model: tensors_of(model) | {"epoch": 3, "best": 0.5, "optimizer": {"state": {}}},
        lambda model: tensors_of(model) | {"head._extra_state": None},
        lambda model: tensors_of(model, before="student."),
        lambda model: tensors_of(model, before="ema_model.module.") | {"n_averaged": torch.tensor(2)},
    ],
)
def test_weights_are_found_wherever_trainers_keep_them(contents, tmp_path):
    model = backbones.create("pyramid_tiny_local_window", 2, changes=SMALL)
    torch.save(contents(model), tmp_path / "w.ckpt")
    assert loaded(model, tmp_path / "w.ckpt")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda tensor: tensor * float("nan"), "holds numbers that are not finite"),
        (lambda tensor: (tensor + 1e6).half(), "holds numbers that are not finite"),
        (lambda tensor: (tensor * 10).to(torch.int8), "is of int8, as in a quantised model"),
        (lambda tensor: tensor.to("meta"), "holds no plain numbers"),
        (lambda tensor: tensor.to_sparse(), "holds no plain numbers"),
    ],
)
def test_weights_that_a_model_cannot_compute_with_are_refused(change, message, tmp_path):
    model = backbones.create("pyramid_tiny_local_window", 2, changes=SMALL)
    before = tensors_of(model, torch.clone)
    torch.save(tensors_of(model, change), tmp_path / "w.pth")
    with pytest.raises(backbones.CheckpointError, match=message):
        backbones.load_checkpoint(model, tmp_path / "w.pth")
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "text, message",
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 1\n", "a pointer of Git LFS .*git lfs pull"),
        ("<!DOCTYPE html><html>", "not a readable checkpoint but a web page"),
    ],
)
def test_what_stands_in_for_a_file_of_weights_is_named(text, message, tmp_path):
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_text(text)
        with pytest.raises(backbones.CheckpointError, match=message):
            backbones.checkpoint.read(tmp_path / name)


@pytest.mark.parametrize("name", [*FAMILIES, *KINDS])
def test_a_model_takes_no_clips_and_is_copied(name):
    model = backbones.create(tiny(name)[1], 2).eval()
    clip = torch.randn(1, 3, *model.clip)
    with torch.no_grad():
        assert model(clip[:0]).shape == (0, 2)
        for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(again(clip), model(clip))
    before = copy.deepcopy(model.state_dict())
    model.train()(clip[:0].requires_grad_()).sum().backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FAMILIES, *KINDS])
def test_a_model_is_traced_the_same_each_time(name):
    model = backbones.create(tiny(name)[1], 2).eval()
    clip = torch.randn(1, 3, *model.clip)
    with torch.no_grad():
        for _ in range(2):
            traced = torch.jit.trace(model, clip)
        torch.testing.assert_close(traced(clip), model(clip))


@pytest.mark.parametrize(
    "beside",
    [
        {"args": argparse.Namespace(lr=1e-3, out=pathlib.PosixPath("/a/b")), "more": types.SimpleNamespace(x=1)},
        {"optimizer": {"state": collections.defaultdict(dict, {0: {"step": 3}})}, "seen": collections.defaultdict(int)},
        {"when": datetime.datetime(2021, 5, 3), "tags": {"a"}, "frozen": frozenset([1])},
        {"best": np.float32(1.5), "count": np.int16(3), "name": np.str_("run"), "random": np.arange(3)},
    ],
)
def test_what_trainers_keep_beside_weights_is_no_code(beside, tmp_path):
    model = backbones.create("pyramid_tiny_local_window", 2, changes=SMALL)
    torch.save({"model": model.state_dict(), **beside}, tmp_path / "w.pth")
    assert loaded(model, tmp_path / "w.pth")


@pytest.mark.parametrize("within", ["_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module."])
def test_single_blocks_may_have_been_wrapped(within, tmp_path):
    model = backbones.create("pyramid_tiny_local_window", 2, changes=SMALL)
    wrapped = {re.sub(r"(blocks\.\d+\.)", rf"\1{within}", key): t for key, t in model.state_dict().items()}
    assert wrapped.keys() != model.state_dict().keys()
    torch.save({f"{within}{key}": tensor for key, tensor in wrapped.items()}, tmp_path / "w.pth")
    assert loaded(model, tmp_path / "w.pth")


def test_a_pipe_by_the_name_of_a_picture_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "1.jpg")
    with pytest.raises(DataError, match=r"1.jpg: a folder or device, not a picture"):
        read_frames(tmp_path, [0])


# What failed once


@pytest.fixture
def colours(tmp_path):
    """A video of each colour, and a checkpoint that knows colours."""
    root = tmp_path / "colours"
    lines = [f"{colour_video(root / f'{colour}.mp4', colour).name},{n}\n" for n, colour in enumerate(COLOURS)]
    write(root, {"val.csv": "".join(lines), "classes.txt": "".join(f"{colour}\n" for colour in COLOURS)})
    backbones.save_checkpoint(colour_model(), root / "model.safetensors")
    return root


def evaluated(root):
    return evaluate.main(
        [f"checkpoint={root / 'model.safetensors'}", f"data={root}", f"out={root / 'out'}", "views=1x1"]
    )


def test_a_disk_that_is_not_mounted_is_no_accuracy_of_0(colours, capsys):
    for colour in COLOURS:
        (colours / f"{colour}.mp4").rename(colours / f"{colour}.hidden")
    assert evaluated(colours) == 1
    assert "none of the 3 videos can be decoded; the first: " in capsys.readouterr().err
    assert not (colours / "out" / "scores.json").exists()
    for colour in COLOURS:
        (colours / f"{colour}.hidden").rename(colours / f"{colour}.mp4")
    assert evaluated(colours) == 0
    assert "top-1       100.0 %" in capsys.readouterr().out


def test_a_file_that_has_changed_since_is_predicted_again(colours, capsys):
    evaluated(colours)
    (colours / "red.mp4").write_bytes((colours / "blue.mp4").read_bytes())
    capsys.readouterr()
    evaluated(colours)
    told = capsys.readouterr()
    assert "2 of 3 videos are predicted already; the files of 1 have changed since" in told.err
    assert "red: 0 of 1, taken for blue once" in told.out
    (colours / "red.mp4").unlink()  # a disk that is not mounted takes nothing away that was predicted
    evaluated(colours)
    assert "coverage    100 %" in capsys.readouterr().out


def test_a_picture_that_is_rewritten_in_place_is_predicted_again(tmp_path, capsys):
    backbones.save_checkpoint(colour_model(), tmp_path / "model.safetensors")
    for colour in COLOURS:
        folder = tmp_path / "val" / colour / "clip"
        folder.mkdir(parents=True)
        for number in (1, 2):
            Image.new("RGB", (32, 32), colour).save(folder / f"{number}.png")
    assert evaluated(tmp_path) == 0
    Image.new("RGB", (32, 32), "black").save(tmp_path / "val" / "red" / "clip" / "2.png")
    capsys.readouterr()
    assert evaluated(tmp_path) == 0
    assert "2 of 3 videos are predicted already; the files of 1 have changed since" in capsys.readouterr().err


def test_a_path_that_is_too_long_for_a_file_is_missing(tmp_path):
    item = Item(f"{'x' * 300}.mp4", 0)
    looked = check.look_at(check.Job(str(tmp_path / item.path), item, whole=False))
    assert (looked.problem, looked.reason) == ("missing", "File name too long")


def test_a_training_that_tests_no_video_has_no_result(tmp_path):
    data = training_runs.data_set(tmp_path / "data", train=4, val=3)
    job = training_runs.job(data, tmp_path / "run", training_runs.recipe(epochs=1.0))
    tested = sorted((data / "videos").glob("val*"))
    for path in tested:
        path.rename(path.with_suffix(".hidden"))
    with pytest.raises(TrainingError, match="none of the 3 videos can be decoded.* the last good checkpoint is"):
        loop.train(job)
    for path in tested:
        path.with_suffix(".hidden").rename(path)
    assert loop.train(job).coverage == 1


def test_two_trainings_do_not_share_a_folder(tmp_path):
    data = training_runs.data_set(tmp_path / "data", train=4, val=3)
    job = training_runs.job(data, tmp_path / "run", training_runs.recipe(epochs=1.0))
    with FileLock(tmp_path / "run" / ".lock"):
        with pytest.raises(TrainingError, match="another process trains in it"):
            loop.train(job)
    assert loop.train(job).steps == 1


class Hanging(torch.utils.data.Dataset):
    """Reads from a disk that does not answer."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        time.sleep(60)


def test_a_read_without_an_end_is_one_line(monkeypatch):
    monkeypatch.setattr(loading, "WAIT_SECONDS", 0.5)
    with pytest.raises(loading.LoadingError, match="no clip has come for 0.5 s: .* does not answer") as caught:
        list(loading.loaded(Hanging(), [[0]], list, workers=1))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("result.json", b'{"new": 1}', "is of another version of this project .*remove it, and the same command tests"),
        ("result.json", b"[]", "cannot be read .it holds list"),
        ("result.json", b"\xd9", "cannot be read"),
        ("job.json", b"{}", "holds another run: its model is null"),
        ("job.json", b"\xd9", "cannot be read"),
    ],
)
def test_a_run_of_another_version_is_one_line(file, content, message, tmp_path):
    job = training_runs.job(tmp_path, tmp_path / "run", training_runs.recipe(epochs=1.0))
    (tmp_path / "run").mkdir()
    for name in ("job.json", "result.json"):
        (tmp_path / "run" / name).write_text(json.dumps({"identity": job.identity()}))
    (tmp_path / "run" / file).write_bytes(content)
    with pytest.raises(TrainingError, match=message):
        loop.train(job)


def test_an_id_is_no_label(tmp_path):
    root = write(tmp_path, {"train.csv": "a.mp4,0\nb.mp4,99999999999\n", "train.txt": "a.mp4 0\nb.mp4 20210503\n"})
    for name in ("csv", "mmaction"):
        with pytest.raises(DataError, match="line 2: .* is above 999999, as an id of a video is"):
            datasets.load(name, "train", root)


def test_seconds_may_have_a_decimal_comma(tmp_path):
    root = write(tmp_path, {"train.csv": "path;label;start;end\na.mp4;0;0,5;2,25\n"})
    assert datasets.load("csv", "train", root).items == (Item("a.mp4", 0, 0.5, 2.25),)
