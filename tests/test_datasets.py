"""Data sets: every annotation format against a few lines as its owners write them, and the walk before a long run."""

import json
import os
import signal
import subprocess
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from harness import datasets
from harness.clips import throughput
from harness.datasets import DataError, Item, check
from harness.datasets.__main__ import main
from harness.datasets.files import Found
from harness.datasets.frames import count_frames, picture_names, read_frames
from harness.progress import line

ROOT = Path(__file__).parents[1]
GESTURES = ROOT.parent / "shared" / "data" / "groundguide11"
OFFICIAL = (
    "kinetics400",
    "kinetics600",
    "kinetics700",
    "something_something_v2",
    "diving48",
    "hmdb51",
    "ucf101",
    "jester",
)
OWN = ("folder", "csv", "mmaction", "slowfast")


def write(root, files):
    """Writes texts (or JSON) and empty files (None) under a folder."""
    for name, content in files.items():
        path = Path(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if content is None else content if isinstance(content, str) else json.dumps(content))
    return Path(root)


def listed(dataset):
    return [(item.path, dataset.classes[item.label]) for item in dataset.items]


def render(path, frames=12, size=(48, 64), shift=0):
    """A tiny real video with `moov` at its end, as cameras write it."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264" if "libx264" in av.codecs_available else "mpeg4", rate=12)
        stream.height, stream.width, stream.pix_fmt, stream.thread_count = *size, "yuv420p", 1
        for index in range(frames):
            picture = np.full((*size, 3), 40 + (9 * index + shift) % 200, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def pictures(folder, count, size=(6, 8)):
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for index in range(1, count + 1):
        Image.fromarray(np.full((*size, 3), 10 * index, np.uint8)).save(folder / f"{index:05d}.jpg")
    return folder


# The registry


def test_every_data_set_that_was_promised_is_there_and_says_what_it_needs():
    assert {*OFFICIAL, *OWN, "motion"} <= set(datasets.names())
    for name in (*OFFICIAL, *OWN):
        source = datasets.get(name)
        assert source.needs_root, name
        assert source.needs, name
        assert source.what.endswith("."), name


def test_names_and_annotations_need_neither_torch_nor_a_decoder(tmp_path):
    write(tmp_path, {"train.csv": "a.mp4,0\n"})
    code = f"from harness import datasets; import sys; datasets.load({str(tmp_path)!r}, 'train'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert not {"torch", "av", "decord"} & set(done.stdout.split())


def test_a_taken_name_is_an_error():
    with pytest.raises(ValueError, match="data set 'csv' is registered already, by harness.datasets.lists"):

        @datasets.register("csv")
        def csv(split, root):
            """Another."""


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_missing_annotation_file_is_named_with_the_place_and_who_distributes_it(name, tmp_path):
    with pytest.raises(DataError, match=rf"{name} train.*: no .* in {tmp_path}.*https?://") as error:
        datasets.load(name, "train", tmp_path)
    assert "annotations=" in str(error.value)


def test_slips_in_names_splits_roots_and_options(tmp_path):
    with pytest.raises(
        DataError, match="unknown data set 'kinetics40', and no such folder here; did you mean 'kinetics400'"
    ):
        datasets.load("kinetics40", "train", tmp_path)
    with pytest.raises(DataError, match="unknown split 'validation'; allowed: test, train, val"):
        datasets.load("ucf101", "validation", tmp_path)
    with pytest.raises(DataError, match="needs its files: give root=FOLDER"):
        datasets.load("ucf101", "val")
    with pytest.raises(DataError, match="no such folder"):
        datasets.load("ucf101", "val", tmp_path / "gone")
    with pytest.raises(DataError, match="no option 'flod'; did you mean 'fold'"):
        datasets.load("ucf101", "val", tmp_path, flod=1)
    with pytest.raises(DataError, match="fold='one' is not a whole number"):
        datasets.load("ucf101", "val", tmp_path, fold="one")
    with pytest.raises(DataError, match="neither a folder nor the name"):
        datasets.load("./gone", "val")
    with pytest.raises(DataError, match=r"looked for train.csv or val.csv .* and for class folders"):
        datasets.load(str(tmp_path), "val")
    write(tmp_path, {"train.csv": "a.mp4,0\n"})
    with pytest.raises(DataError, match="one too many"):
        datasets.load(str(tmp_path), "train", tmp_path)
    with pytest.raises(KeyError, match="did you mean 'ucf101'"):
        datasets.get("ucf10")


# Kinetics


KINETICS = {
    "annotations/train.csv": "label,youtube_id,time_start,time_end,split,is_cc\n"
    'waxing legs,dkdBFuNzyDw,3,13,train,0\n"air drumming",-_dbcJuKJQN,40,50,train,0\n',
    "annotations/val.csv": "label,youtube_id,time_start,time_end,split\nabseiling,0wR5jVB-WPk,417,427,val\n",
    "train/dkdBFuNzyDw_000003_000013.mp4": None,
    "val/abseiling/0wR5jVB-WPk_000417_000427.mp4": None,
}


def test_kinetics_as_the_cvdf_distributes_it(tmp_path):
    root = write(tmp_path, KINETICS)
    train = datasets.load("kinetics400", "train", root, subset=True)
    assert train.classes == ("abseiling", "air drumming", "waxing legs")  # of all lists, in the order of the alphabet
    assert listed(train) == [
        ("train/dkdBFuNzyDw_000003_000013.mp4", "waxing legs"),
        ("train/-_dbcJuKJQN_000040_000050.mp4", "air drumming"),  # is not there, and stays listed
    ]
    val = datasets.load("kinetics400", "val", root, subset=True)
    assert listed(val) == [("val/abseiling/0wR5jVB-WPk_000417_000427.mp4", "abseiling")]
    assert val.classes == train.classes
    assert not train.sided


def test_kinetics_refuses_to_number_a_part_of_the_classes_unless_told_to(tmp_path):
    root = write(tmp_path, KINETICS)
    with pytest.raises(DataError, match="names 3 classes, kinetics600 has 600.*classes=FILE"):
        datasets.load("kinetics600", "train", root)
    write(root, {"all.txt": "abseiling\nair drumming\nanswering questions\nwaxing legs\n"})
    train = datasets.load("kinetics600", "train", root, classes="all.txt")
    assert [item.label for item in train.items] == [3, 1]


def test_kinetics_takes_replacements_of_damaged_videos(tmp_path):
    name = "dkdBFuNzyDw_000003_000013.mp4"
    root = write(tmp_path, {**KINETICS, f"replacement/replacement_for_corrupted_k400/{name}": None})
    train = datasets.load("kinetics400", "train", root, subset=True)
    assert train.items[0].path == f"replacement/replacement_for_corrupted_k400/{name}"


def test_kinetics_without_labels_or_with_broken_lines(tmp_path):
    root = write(tmp_path, {"test.csv": "youtube_id,time_start,time_end,split\ndkdBFuNzyDw,3,13,test\n"})
    with pytest.raises(DataError, match="has no column `label`"):
        datasets.load("kinetics700", "test", root)
    write(root, {"train.csv": "label,youtube_id,time_start,time_end,split\nabseiling,dkdBFuNzyDw,three,13,train\n"})
    with pytest.raises(DataError, match=r"train.csv, line 2: 'abseiling,dkdBFuNzyDw,three,13,train' is not .* seconds"):
        datasets.load("kinetics700", "train", root)


def test_kinetics_as_a_plain_list(tmp_path):
    root = write(tmp_path, {"kinetics400_val_list_videos.txt": "abseiling/a b.mp4 0\nyoga/c.mp4 399\n"})
    val = datasets.load("kinetics400", "val", root)
    assert val.items == (Item("abseiling/a b.mp4", 0), Item("yoga/c.mp4", 399))
    assert len(val.classes) == 400
    write(root, {"kinetics400_val_list_videos.txt": "yoga/c.mp4 400\n"})
    with pytest.raises(DataError, match="largest label is 400, but kinetics400 has 400"):
        datasets.load("kinetics400", "val", root)


# Something-Something V2, Jester


def entry(video, template):
    return {"id": video, "label": "whatever", "template": template, "placeholders": ["a cup"]}


SOMETHING = {
    "labels/labels.json": {
        "Holding something": "0",
        "Pulling something from left to right": "1",
        "Pulling something from right to left": "2",
        "Turning the camera left while filming something": "3",
        "Turning the camera right while filming something": "4",
    },
    "labels/train.json": [entry("78687", "Holding [something]"), entry("4", "Pulling [something] from left to right")],
    "labels/validation.json": [entry("5", "Turning the camera right while filming [something]")],
    "labels/test.json": [{"id": "6"}],
    "labels/test-answers.csv": "6;Pulling something from right to left\n",
    "20bn-something-something-v2/4.webm": None,
    "20bn-something-something-v2/5.webm": None,
    "20bn-something-something-v2/6.webm": None,
}


def test_something_something_v2_as_its_owners_distribute_it(tmp_path):
    root = write(tmp_path, SOMETHING)
    train = datasets.load("something_something_v2", "train", root)
    assert listed(train) == [
        ("20bn-something-something-v2/78687.webm", "Holding something"),
        ("20bn-something-something-v2/4.webm", "Pulling something from left to right"),
    ]
    assert train.sided
    assert train.mirror == {1: 2, 2: 1, 3: 4, 4: 3}
    assert [item.label for item in datasets.load("something_something_v2", "val", root).items] == [4]
    assert [item.label for item in datasets.load("something_something_v2", "test", root).items] == [2]


def test_something_something_v2_with_the_older_names_and_folders_of_pictures(tmp_path):
    older = {
        f"something-something-v2-{Path(name).name}": content for name, content in SOMETHING.items() if "labels/" in name
    }
    root = write(tmp_path, older)
    pictures(root / "frames" / "5", 3)
    assert datasets.load("something_something_v2", "val", root).items == (Item("frames/5", 4, frames=3),)


def test_something_something_v2_names_what_does_not_fit(tmp_path):
    root = write(tmp_path, {**SOMETHING, "labels/train.json": [entry("1", "Holding [something]"), {"id": "2"}]})
    with pytest.raises(DataError, match=r"train.json, entry 2: .* is not an object with `id` and `template`"):
        datasets.load("something_something_v2", "train", root)
    write(root, {"labels/train.json": [entry("1", "Eating [something]")]})
    with pytest.raises(DataError, match=r"entry 1: the template 'Eating something' is not in .*labels.json"):
        datasets.load("something_something_v2", "train", root)
    write(root, {"labels/train.json": "[{"})
    with pytest.raises(DataError, match="train.json, line 1: not JSON"):
        datasets.load("something_something_v2", "train", root)


def test_jester_as_its_owners_distribute_it(tmp_path):
    root = write(tmp_path, {
        "annotations/jester-v1-labels.csv": "Swiping Left\nSwiping Right\nTurning Hand Clockwise\n"
        "Turning Hand Counterclockwise\nNo gesture\n",
        "annotations/jester-v1-train.csv": "34870;Turning Hand Clockwise\n56557;No gesture\n",
        "annotations/jester-v1-validation.csv": "9223;Swiping Left\n",
        "annotations/jester-v1-test.csv": "1\n",
    })  # fmt: skip
    pictures(root / "20bn-jester-v1" / "34870", 4)
    train = datasets.load("jester", "train", root)
    assert train.items == (Item("20bn-jester-v1/34870", 2, frames=4), Item("20bn-jester-v1/56557", 4))
    assert train.sided
    assert train.mirror == {0: 1, 1: 0, 2: 3, 3: 2}
    with pytest.raises(DataError, match=r"no jester-v1-test-answers.csv or test-answers.csv"):
        datasets.load("jester", "test", root)
    write(root, {"annotations/jester-v1-train.csv": "34870;Waving\n"})
    with pytest.raises(DataError, match=r"jester-v1-train.csv, line 1: '34870;Waving' is not one of the 5 classes"):
        datasets.load("jester", "train", root)


# Diving-48, HMDB-51, UCF-101


def test_diving48_as_its_owners_distribute_it(tmp_path):
    dive = {"vid_name": "-mSvO3BUs_4_00001", "label": 1, "start_frame": 0, "end_frame": 139}
    root = write(tmp_path, {
        "Diving48_vocab.json": [["Back", "15som", "05Twis", "FREE"], ["Back", "15som", "15Twis", "FREE"]],
        "Diving48_V2_train.json": [dive],
        "Diving48_V2_test.json": [{**dive, "vid_name": "x", "label": 0}],
        "rgb/-mSvO3BUs_4_00001.mp4": None,
    })  # fmt: skip
    train = datasets.load("diving48", "train", root)
    assert listed(train) == [("rgb/-mSvO3BUs_4_00001.mp4", "Back 15som 15Twis FREE")]
    assert datasets.load("diving48", "val", root).digest == datasets.load("diving48", "test", root).digest
    write(root, {"Diving48_V2_train.json": [{**dive, "label": 2}]})
    with pytest.raises(DataError, match="entry 1: label 2; allowed: 0 to 1"):
        datasets.load("diving48", "train", root)


def test_hmdb51_as_its_owners_distribute_it(tmp_path):
    name = "#20_Rhythm_clap_u_nm_np1_fr_goo_0.avi"
    root = write(tmp_path, {
        "testTrainMulti_7030_splits/wave_test_split1.txt": "a.avi 1 \nb.avi 2 \nc.avi 0 \n",
        "testTrainMulti_7030_splits/clap_test_split1.txt": f"{name} 1 \n",
        "testTrainMulti_7030_splits/clap_test_split2.txt": f"{name} 2 \n",
        "hmdb51_org/wave/a.avi": None, "hmdb51_org/clap/a.avi": None, f"hmdb51_org/clap/{name}": None,
    })  # fmt: skip
    train = datasets.load("hmdb51", "train", root)
    assert train.classes == ("clap", "wave")
    assert listed(train) == [(f"hmdb51_org/clap/{name}", "clap"), ("hmdb51_org/wave/a.avi", "wave")]
    assert listed(datasets.load("hmdb51", "val", root)) == [("wave/b.avi", "wave")]
    pictures(root / "rawframes" / "wave" / "b", 3)
    assert datasets.load("hmdb51", "val", root).items == (Item("rawframes/wave/b", 1, frames=3),)
    assert listed(datasets.load("hmdb51", "test", root, fold=2)) == [(f"hmdb51_org/clap/{name}", "clap")]
    write(root, {"testTrainMulti_7030_splits/wave_test_split1.txt": "a.avi 3\n"})
    with pytest.raises(DataError, match=r"wave_test_split1.txt, line 1: 'a.avi 3' is not `<file>.avi <0, 1 or 2>`"):
        datasets.load("hmdb51", "train", root)


def test_ucf101_as_its_owners_distribute_it(tmp_path):
    root = write(tmp_path, {
        "ucfTrainTestlist/classInd.txt": "1 ApplyEyeMakeup\r\n2 YoYo\r\n",
        "ucfTrainTestlist/trainlist01.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\n"
        "YoYo/v_YoYo_g25_c05.avi 2\n",
        "ucfTrainTestlist/testlist01.txt": "YoYo/v_YoYo_g01_c01.avi\n",
        "UCF-101/YoYo/v_YoYo_g25_c05.avi": None,
    })  # fmt: skip
    train = datasets.load("ucf101", "train", root)
    assert train.classes == ("ApplyEyeMakeup", "YoYo")
    assert listed(train) == [
        ("ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi", "ApplyEyeMakeup"), ("UCF-101/YoYo/v_YoYo_g25_c05.avi", "YoYo")
    ]  # fmt: skip
    pictures(root / "rawframes" / "YoYo" / "v_YoYo_g01_c01", 2)
    assert datasets.load("ucf101", "val", root).items == (Item("rawframes/YoYo/v_YoYo_g01_c01", 1, frames=2),)
    write(root, {"ucfTrainTestlist/trainlist01.txt": "YoYo/v.avi 1\n"})
    with pytest.raises(DataError, match="trainlist01.txt, line 1: .* where YoYo is 2"):
        datasets.load("ucf101", "train", root)


# Lists and folders of one's own


def test_csv_lists_with_numbers_with_names_and_with_cuts(tmp_path):
    root = write(tmp_path, {"train.csv": "a.mp4,0\nb.mp4,1\n", "val.csv": "c.mp4,2\n"})
    train = datasets.load(str(root), "train")
    assert train.name == "csv"
    assert train.classes == ("0", "1", "2")  # every split numbers them alike
    assert train.sided
    assert not datasets.load("csv", "train", root, sided=False).sided
    write(root, {"train.csv": "path,label,start,end\na.mp4,wave,1.5,4\nb.mp4,clap,,\n", "val.csv": "c.mp4,jump\n"})
    train = datasets.load("csv", "train", root)
    assert train.classes == ("clap", "jump", "wave")
    assert train.items == (Item("a.mp4", 2, 1.5, 4.0), Item("b.mp4", 0))
    write(root, {"classes.txt": "wave\njump\nclap\n"})
    assert [item.label for item in datasets.load("csv", "train", root).items] == [0, 2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("b.mp4", "line 2: 'b.mp4' is not `path,label`"),
        ("b.mp4,1,2", "line 2: 'b.mp4,1,2' is not `path,label`"),
        ("b.mp4,-1", "line 2: 'b.mp4,-1' is not a line that ends in a label"),
        ("b.mp4,2", "line 2: 'b.mp4,2' is not within the 2 classes that are named; the largest label is 1"),
    ],
)
def test_a_broken_line_of_a_csv_list_is_named(line, message, tmp_path):
    root = write(tmp_path, {"train.csv": f"a.mp4,0\n{line}\n", "classes.txt": "clap\nwave\n"})
    with pytest.raises(DataError, match="train.csv, ") as error:
        datasets.load("csv", "train", root)
    assert message in str(error.value)


def test_a_cut_that_ends_before_it_starts_and_a_class_that_is_named_twice(tmp_path):
    root = write(tmp_path, {"train.csv": "path,label,start,end\na.mp4,0,4,1\n"})
    with pytest.raises(DataError, match="line 2: .* its end comes after its start"):
        datasets.load("csv", "train", root)
    write(root, {"classes.txt": "wave\nwave\n"})
    with pytest.raises(DataError, match=r"classes.txt, line 2: .* a second time"):
        datasets.load("csv", "train", root)


def test_class_folders(tmp_path):
    root = write(tmp_path, {"train/wave/2.mp4": None, "train/wave/1.mp4": None, "train/wave/notes.txt": None,
                            "val/clap/3.webm": None})  # fmt: skip
    pictures(root / "val" / "wave" / "clip7", 3)
    train, val = (datasets.load(str(root), split) for split in ("train", "val"))
    assert train.name == "folder"
    assert train.classes == val.classes == ("clap", "wave")
    assert train.items == (Item("train/wave/1.mp4", 1), Item("train/wave/2.mp4", 1))
    assert val.items == (Item("val/clap/3.webm", 0), Item("val/wave/clip7", 1, frames=3))
    with pytest.raises(DataError, match="no folder test or testing with class folders.*there: train, val"):
        datasets.load("folder", "test", root)


def test_lists_of_mmaction(tmp_path):
    root = write(tmp_path, {
        "hmdb51_train_list_videos.txt": "some/path/000.mp4 1\nsome/a path/001.mp4 0\n",
        "lists/val.txt": "some/directory-1 163 1\nsome/directory-2 122 2\n",
    })  # fmt: skip
    train = datasets.load("mmaction", "train", root, videos="videos")
    assert train.items == (Item("videos/some/path/000.mp4", 1), Item("videos/some/a path/001.mp4", 0))
    val = datasets.load("mmaction", "val", root)
    assert val.items == (Item("some/directory-1", 1, frames=163), Item("some/directory-2", 2, frames=122))
    write(root, {"lists/val.txt": "some/directory-1 163 1\nsome/directory-2 163 1 3 5\n"})
    with pytest.raises(DataError, match=r"val.txt, line 2: .* is not `folder frames label` \(several labels"):
        datasets.load("mmaction", "val", root)
    write(root, {"ucf101_train_list_videos.txt": "a.mp4 0\n"})
    with pytest.raises(DataError, match="more than one list for train"):
        datasets.load("mmaction", "train", root)
    named = datasets.load("mmaction", "train", root, annotations="ucf101_{split}_list_videos.txt")
    assert listed(named) == [("a.mp4", "0")]


@pytest.mark.parametrize("separator", [" ", ",", ", "])
def test_lists_of_slowfast(separator, tmp_path):
    root = write(tmp_path, {
        "train.csv": f"{tmp_path}/videos/a.mp4{separator}0\nvideos/b c.mp4{separator}3\n",
        "val.csv": f"/elsewhere/d.mp4{separator}4\n",
    })  # fmt: skip
    train = datasets.load("slowfast", "train", root)
    assert train.items == (Item("videos/a.mp4", 0), Item("videos/b c.mp4", 3))
    assert len(train.classes) == 5
    val = datasets.load("slowfast", "val", root)
    assert val.path(val.items[0]) == Path("/elsewhere/d.mp4")


def test_one_file_cannot_be_the_list_of_every_split(tmp_path):
    root = write(tmp_path, {"mine.csv": "a.mp4,0\n", "other/train.csv": "b.mp4,0\n"})
    with pytest.raises(DataError, match=r"one file cannot list every split; .*\{split\}"):
        datasets.load("csv", "train", root, annotations="mine.csv")
    with pytest.raises(DataError, match="annotations=gone: no such file or folder"):
        datasets.load("csv", "train", root, annotations="gone")
    assert datasets.load("csv", "train", root, annotations="other").items == (Item("b.mp4", 0),)


# What a list is worth


def test_the_digest_is_that_of_the_list_wherever_it_lies(tmp_path):
    files = {"train.csv": "a.mp4,0\nb.mp4,1\n", "classes.txt": "clap\nwave\n"}
    here = datasets.load("csv", "train", write(tmp_path / "here", files))
    elsewhere = datasets.load("csv", "train", write(tmp_path / "there", files))
    assert here.digest == elsewhere.digest
    assert len(here.digest) == 64
    for change in (
        {"train.csv": "a.mp4,0\nb.mp4,0\n"}, {"train.csv": "a.mp4,0\nc.mp4,1\n"}, {"classes.txt": "clap\njump\n"},
        {"train.csv": "b.mp4,1\na.mp4,0\n"}, {"train.csv": "path,label,start,end\na.mp4,0,,\nb.mp4,1,0,2\n"},
    ):  # fmt: skip
        assert datasets.load("csv", "train", write(tmp_path / "there", files | change)).digest != here.digest


def test_folders_of_pictures_are_read_in_the_order_of_their_numbers(tmp_path):
    folder = pictures(tmp_path / "clip", 11)
    for index, name in enumerate(sorted(folder.iterdir()), start=1):
        name.rename(folder / f"img_{index}.jpg")  # img_10 sorts before img_2 as text
    (folder / "flow_x_00001.jpg").write_bytes(b"not looked at")
    assert count_frames(folder) == 11
    frames = read_frames(folder, [10, 0, 10])
    assert frames.shape == (3, 6, 8, 3)
    assert frames.dtype == np.uint8
    np.testing.assert_allclose(frames[:, 0, 0, 0], [110, 10, 110], atol=2)
    with pytest.raises(DataError, match="has 11 pictures, none at index 11"):
        read_frames(folder, [11])
    (folder / "img_3.jpg").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"img_3.jpg: cannot be decoded"):
        read_frames(folder, [2])
    with pytest.raises(DataError, match="no folder of pictures"):
        count_frames(tmp_path / "gone")


# Names and lists as they are met in the wild


def test_a_frame_is_told_by_the_number_that_differs(tmp_path):
    for names in ("frame_{}_640x360.jpg", "{}@2x.jpg", "frame{}_of_12.jpg", "x_{}.png", "IMG{}.JPG"):
        folder = tmp_path / names
        folder.mkdir()
        for number in range(1, 13):
            (folder / names.format(number)).touch()
        (folder / "poster.jpg").touch()  # no frame
        (folder / ("._" + names.format(1))).touch()  # a copy to a Mac leaves these
        assert picture_names(folder) == [names.format(number) for number in range(1, 13)]
    (folder / "thumb_3.jpg").touch()
    with pytest.raises(DataError, match=r"IMG1.JPG and thumb_3.jpg are named in two ways"):
        picture_names(folder)


def test_pictures_beside_videos_hide_nothing(tmp_path):
    """Thumbnails as download programs leave them, and a stray picture above all classes."""
    for name in ("clap/a001.mp4", "clap/a001.jpg", "wave/b002.mp4", "cover_001.jpg"):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / name).touch()
    write(tmp_path, {"train.csv": "label,youtube_id,time_start,time_end\n"})
    files_there = Found(tmp_path)
    assert files_there.file("a001") == "train/clap/a001.mp4"
    assert files_there.file("b002") == "train/wave/b002.mp4"
    assert [item.path for item in datasets.load("folder", "train", tmp_path).items] == [
        "train/clap/a001.mp4", "train/wave/b002.mp4",
    ]  # fmt: skip


def test_hidden_files_are_not_listed(tmp_path):
    for name in ("run/a.mp4", "run/._a.mp4", "run/.ipynb_checkpoints/a-checkpoint.mp4", "walk/b.mp4"):
        (tmp_path / "val" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "val" / name).touch()
    assert [item.path for item in datasets.load("folder", "val", tmp_path).items] == ["val/run/a.mp4", "val/walk/b.mp4"]
    write(tmp_path, {"wave_test_split1.txt": "w.avi 1\n", "._wave_test_split1.txt": "x.avi 1\n",
                     "my_train_list_videos.txt": "a.mp4 0\n", "._my_train_list_videos.txt": "a.mp4 0\n"})  # fmt: skip
    assert datasets.load("hmdb51", "train", tmp_path).classes == ("wave",)
    assert len(datasets.load("mmaction", "train", tmp_path)) == 1


@pytest.mark.parametrize("head", ["video,category", "path,class", "file,label", "filename,label"])
def test_a_header_in_other_words_is_understood(head, tmp_path):
    numbers = datasets.load("csv", "train", write(tmp_path, {"train.csv": f"{head}\na.mp4,2\nb.mp4,10\n"}))
    assert listed(numbers) == [("a.mp4", "2"), ("b.mp4", "10")]
    names = datasets.load("csv", "train", write(tmp_path, {"train.csv": f"{head}\na.mp4,run\nb.mp4,walk\n"}))
    assert names.classes == ("run", "walk")


def test_a_line_that_no_reading_fits_is_refused_with_its_number(tmp_path):
    for name, file, text, message in (
        ("csv", "train.csv", "what,ever\na.mp4,0\nb.mp4,1\n", "line 1: .* all lines below it are; a header must name"),
        ("mmaction", "train.txt", "a.mp4 0\nv.mp4 1 2\n", "line 2: .* with one label"),
        ("slowfast", "train.csv", "v.mp4,1,2\n", "line 1: .* with one label"),
        ("kinetics400", "val.csv", "a b.mp4 1 2\n", "line 1: .* with one label"),
    ):
        with pytest.raises(DataError, match=message):
            datasets.load(name, file.partition(".")[0], write(tmp_path / name, {file: text}))


def test_folders_of_pictures_may_have_dots_and_spaces_and_videos_any_name(tmp_path):
    root = write(tmp_path, {"train.txt": "2021.05.03_clip 5 0\nmy clip 7 1\n", "val.txt": "# 1.mp4 0\na\x85b.mp4 1\n"})
    assert datasets.load("mmaction", "train", root).items == (
        Item("2021.05.03_clip", 0, frames=5), Item("my clip", 1, frames=7),
    )  # fmt: skip
    assert datasets.load("mmaction", "val", root).items == (Item("# 1.mp4", 0), Item("a\x85b.mp4", 1))


@pytest.mark.parametrize("name", ["kinetics400", "slowfast", "csv"])
def test_three_readers_of_one_format_agree(name, tmp_path):
    root = write(tmp_path, {"val.csv": "val/air drumming/x y.mp4,2\nval/arm wrestling/z.mp4,7\n"})
    items = datasets.load(name, "val", root).items
    assert items == (Item("val/air drumming/x y.mp4", 2), Item("val/arm wrestling/z.mp4", 7))


def test_a_name_in_another_encoding_is_walked_and_shown(tmp_path, capsys):
    good = render(tmp_path / "clips" / "val" / "run" / "a.mp4")
    odd = os.fsencode(good.parent) + b"/\xc4\xe3.mp4"
    with open(odd, "wb") as file:
        file.write(good.read_bytes())
    with open(odd[:-4] + b"2.mp4", "wb"):
        pass
    dataset = datasets.load("folder", "val", tmp_path / "clips")
    assert len(dataset.digest) == 64
    out = tmp_path / "found.json"
    assert main(["check", str(tmp_path / "clips"), "split=val", "workers=0", "clips=0", f"out={out}"]) == 1
    assert "good        2 of 3" in capsys.readouterr().out
    assert json.loads(out.read_text())["splits"]["val"]["files"][0]["path"] == r"val/run/\xc4\xe32.mp4"


# The walk


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """Class folders with good, missing, empty, cut off and other files."""
    root = tmp_path_factory.mktemp("damaged")
    good = render(root / "videos" / "good.mp4")
    render(root / "videos" / "other.mp4", shift=5)
    content = good.read_bytes()
    (root / "videos" / "cut.mp4").write_bytes(content[:-200])
    (root / "videos" / "twin.mp4").write_bytes(content)
    (root / "videos" / "empty.mp4").write_bytes(b"")
    (root / "videos" / "text.mp4").write_text("this is no video\n" * 9)
    pictures(root / "frames" / "whole", 3)
    pictures(root / "frames" / "few", 2)
    train = dict(zip("good other gone cut empty text".split(), (0, 1, 0, 0, 0, 0), strict=True))
    lines = [f"videos/{name}.mp4,{label}\n" for name, label in train.items()]
    write(root, {
        "train.csv": "".join([*lines, lines[0]]),
        "val.csv": "videos/twin.mp4,0\nvideos/other.mp4,1\nvideos/other.mp4,2\n",
        "classes.txt": "clap\nwave\njump\nnever\n",
        "frames.csv": "",
    })  # fmt: skip
    return root


@pytest.mark.parametrize("whole", [False, True])
def test_the_walk_finds_what_is_wrong(damaged, whole, tmp_path, capsys):
    out = tmp_path / "found.json"
    status = main(
        ["check", str(damaged), "workers=0", f"whole={str(whole).lower()}", "clips=2", "show=2", f"out={out}"]
    )
    printed, written = capsys.readouterr().out, json.loads(out.read_text())
    assert status == 1
    assert written["complete"]
    train, val = written["splits"]["train"], written["splits"]["val"]
    assert train["problems"] == {"missing": 1, "empty": 1, "undecodable": 1, "truncated": 1}
    wrong = {Path(file["path"]).stem: file["problem"] for file in train["files"]}
    assert wrong == {"gone": "missing", "empty": "empty", "text": "undecodable", "cut": "truncated"}
    assert train["good"] == 3
    assert train["frames"]["median"] == 12
    assert train["sizes"] == {"64x48": 3}
    assert train["repeated"] == {"videos/good.mp4": 2}
    assert train["balance"] == {"classes": 4, "min": 0, "median": 0.5, "max": 6, "empty": ["jump", "never"]}
    assert val["leaks"] == ["videos/other.mp4"]
    assert [Path(twin).stem for twin in val["same_content"][0]] == ["good", "twin"]
    assert val["absent_in_train"] == ["jump"]
    assert written["estimate"]["clips"] == 2
    assert written["problems"] == 4
    for text in ("truncated: videos/cut.mp4: the file lacks 200 of its bytes", "and 2 more", "estimate: ", "n = 2",
                 "a leak: 1 path also in train", "4 problems"):  # fmt: skip
        assert text in printed


def test_a_clean_data_set_is_reported_as_clean(damaged, tmp_path, capsys):
    root = write(
        tmp_path, {"train.csv": f"{damaged}/videos/good.mp4,0\n", "val.csv": f"{damaged}/videos/other.mp4,0\n"}
    )
    assert main(["check", "csv", f"root={root}", "sided=false", "workers=1", "clips=0"]) == 0
    printed = capsys.readouterr().out
    assert "no problems, 0 warnings" in printed
    assert "estimate" not in printed
    assert "never flipped" not in printed


def test_how_fast_training_would_be_fed_is_a_table(damaged, tmp_path, capsys):
    root = write(
        tmp_path, {"train.csv": f"{damaged}/videos/good.mp4,0\n", "val.csv": f"{damaged}/videos/other.mp4,0\n"}
    )
    out = tmp_path / "found.json"
    words = ["check", "csv", f"root={root}", "sided=false", "workers=0", "clips=0", "frames=4", "loading=2"]
    assert main([*words, f"out={out}"]) == 0
    printed = capsys.readouterr().out
    (row,) = json.loads(out.read_text())["loading"]
    assert row["workers"] == 0
    assert row["clips_per_second"] > 0
    assert "\n\n| workers | clips a second | epoch of 1 clips, s |" in printed
    assert "Loaded as for training: clips of 4x2 frames" in printed


@pytest.mark.parametrize("workers, counts", [(0, [0]), (1, [0, 1]), (4, [0, 1, 2, 4]), (6, [0, 1, 2, 4, 6])])
def test_loading_is_tried_with_twice_as_many_processes_each_time(workers, counts, monkeypatch):
    monkeypatch.setattr(throughput, "TrainingClips", lambda *about, **more: None)
    monkeypatch.setattr(throughput, "loaded", lambda source, keys, workers: iter(range(keys.last)))
    rows = throughput.loading(range(3), frames=4, stride=2, clips=5, workers=workers, say=lambda text: None)
    assert [row["workers"] for row in rows] == counts


def test_leaks_of_lists_that_cut_are_seconds_in_common(tmp_path):
    head = "path,label,start,end\n"
    root = write(tmp_path, {"train.csv": f"{head}a.mp4,0,0,4\nb.mp4,0,0,4\n",
                            "val.csv": f"{head}a.mp4,0,4,8\nb.mp4,0,3,8\n"})  # fmt: skip
    train, val = (datasets.load("csv", split, root) for split in ("train", "val"))
    assert check.leaks(train, val) == ["b.mp4"]


def test_the_check_prints_what_is_there_of_what_is_listed(damaged, capsys):
    """The columns of MultiTrain's Table 1: a missing file and an empty one are not there."""
    assert main(["check", str(damaged), "workers=0", "clips=0"]) == 1
    told = capsys.readouterr().out
    assert "| data set | train, videos | train, available, % | val, videos | val, available, % |" in told
    assert "| 5 | 71.4 | 3 | 100.0 |" in told


def test_a_part_that_lies_outside_of_its_file(damaged):
    job = check.Job(str(damaged / "videos" / "good.mp4"), Item("good.mp4", 0, 2.0, 4.0), False)
    look = check.look_at(job)
    assert (look.problem, look.reason) == ("outside", "labelled from 2 s, but it lasts 1.00 s")


def test_a_list_of_nothing_is_an_error(tmp_path):
    root = write(tmp_path, {"train.csv": "path,label\n"})
    with pytest.raises(DataError, match="csv train in .*: lists no videos"):
        datasets.load("csv", "train", root)


def test_options_of_the_data_set_are_given_to_the_check(damaged, tmp_path, capsys):
    lists = write(tmp_path, {"train_of_mine": f"{damaged}/videos/good.mp4,0\n"})
    arguments = [
        f"root={damaged}",
        "annotations=" + str(lists / "{split}_of_mine"),
        "workers=0",
        "clips=1",
        "split=train",
    ]
    assert main(["check", "slowfast", *arguments]) == 0
    assert main(["check", "slowfast", *(entry.replace("annotations", "data.annotations") for entry in arguments)]) == 0
    assert main(["check", "slowfast", *arguments, "sided=perhaps"]) == 2
    assert "sided='perhaps' is not true or false" in capsys.readouterr().err


def test_folders_of_pictures_are_walked(damaged, tmp_path, capsys):
    root = write(tmp_path, {"train.txt": "frames/whole 3 0\nframes/few 3 0\nframes/gone 3 1\n"})
    (root / "frames").symlink_to(damaged / "frames")
    assert main(["check", "mmaction", f"root={root}", "split=train", "workers=0"]) == 1
    printed = capsys.readouterr().out
    assert "truncated: frames/few: holds 2 of 3 pictures" in printed
    assert "missing: frames/gone" in printed


def test_a_file_that_brings_the_decoder_down_is_named_and_the_walk_goes_on(damaged, monkeypatch):
    work = [check.Job(str(damaged / "videos" / name), Item(name, 0), False) for name in ("good.mp4", "gone.mp4")]
    work.insert(1, check.Job(str(damaged / "videos" / "text.mp4"), Item("text.mp4", 0), False))
    monkeypatch.setattr(check, "BATCH", 2)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), str(ROOT)]))
    monkeypatch.setattr(check, "_look_at_all", crashing_looks)
    monkeypatch.setattr(check, "look_at", crashing_look)
    by_place = dict(check.looks(work, workers=1))
    assert by_place[0].problem is None
    assert by_place[1].problem == "crash"
    assert by_place[2].problem == "missing"


def crashing_look(job):
    """Runs in a worker: ends it for one file, as a decoder does that reads where it must not."""
    if "text" in job.path:
        os._exit(11)
    from harness.datasets.check import look_at

    return look_at(job)


def crashing_looks(batch):
    return [crashing_look(job) for job in batch]


def test_an_interrupted_walk_prints_what_it_found(damaged, tmp_path, monkeypatch, capsys):
    look_at, report, seen = check.look_at, check.report, []

    def interrupted_look(job):
        seen.append(job)
        if len(seen) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return look_at(job)

    def interrupted_report(*arguments):
        os.kill(os.getpid(), signal.SIGINT)  # an impatient user
        return report(*arguments)

    monkeypatch.setattr(check, "look_at", interrupted_look)
    monkeypatch.setattr(check, "report", interrupted_report)
    before = signal.getsignal(signal.SIGINT)
    assert main(["check", str(damaged), "workers=0", f"out={tmp_path / 'found.json'}"]) == 130
    assert signal.getsignal(signal.SIGINT) == before
    printed, written = capsys.readouterr().out, json.loads((tmp_path / "found.json").read_text())
    assert "looked at   3 of 7" in printed
    assert "missing: videos/gone.mp4" in printed
    assert "interrupted; so far: 1 problem, " in printed
    assert not written["complete"]


def test_time_left_is_told_now_and_then(damaged):
    told, seconds, out = [], iter(range(0, 10000, 10)), StringIO()
    walk = check.Walk(datasets.load("csv", "train", damaged))
    check.walk(walk, False, 0, told.append)
    assert told[2].startswith("train: 3 of 7 looked at, 1 problem, about ")
    assert len(told) == 7
    with line(Console(file=out), every=30, clock=lambda: next(seconds)) as say:
        for text in told:
            say(text)
    assert [progress[:11] for progress in out.getvalue().splitlines()] == ["train: 1 of", "train: 4 of", "train: 7 of"]


def test_wrong_commands_have_status_2(tmp_path, capsys):
    for arguments, message in (
        (["chck"], "unknown command 'chck'"),
        (["check"], "name the data set first"),
        (["check", "root=x"], "name the data set first"),
        (["check", "ucf10"], "did you mean 'ucf101'"),
        (["check", "ucf101", f"root={tmp_path}"], "no classInd.txt"),
        (["check", "ucf101", f"root={tmp_path}", "fold=4"], "allowed: 1, 2, 3"),
        (["check", "ucf101", f"rot={tmp_path}"], "did you mean 'root'"),
        (
            ["check", "ucf101", f"root={tmp_path}", "split=validation"],
            "split=validation is not all or train, val",
        ),
        (["check", "ucf101", f"root={tmp_path}", f"out={tmp_path}"], "a folder; name a file in it"),
    ):
        assert main(arguments) == 2, arguments
        assert message in capsys.readouterr().err


def test_the_list_and_the_help(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    for name in datasets.names():
        assert f"\n{name}\n" in f"\n{printed}"
    assert main(["check", "--help"]) == 0
    assert "whole (false)" in capsys.readouterr().out


# Real data


@pytest.mark.skipif(not GESTURES.is_dir(), reason=f"needs {GESTURES}, which is not part of the project")
def test_real_gestures_are_listed_and_decode():
    train, val = (datasets.load(str(GESTURES), split) for split in ("train", "val"))
    assert (len(train), len(val)) == (1142, 241)
    assert train.classes == val.classes == tuple((GESTURES / "classes.txt").read_text().split())
    assert not check.leaks(train, val)
    looked_at = [look for _, look in check.looks(check.jobs(val, whole=False)[::48], workers=0)]
    assert [look.problem for look in looked_at] == [None] * len(looked_at)
    assert {(look.facts.frames, look.facts.width, look.facts.height) for look in looked_at} == {(48, 128, 128)}
