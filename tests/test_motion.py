"""The built-in data set: what is drawn, that classes differ in time alone, and that rendering is whole or not there."""

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from harness import datasets
from harness.clips.decoding import open_video
from harness.datasets import DataError, motion
from harness.datasets.__main__ import main
from harness.datasets.sheet import contact_sheet
from harness.motion import photographs, store
from harness.motion.drawing import pictures
from harness.motion.encoding import encode
from harness.motion.scenes import REPERTOIRES, scene

ROOT = Path(__file__).parents[1]
TINY = store.Version("motion_tiny", size=16, frames=8, rate=8, train=2, val=1, test=1)
CALM = replace(TINY, name="motion_calm", scenes="eight")
STANDARD = store.VERSIONS["motion"]
CLASSES = STANDARD.repertoire.classes
PAIRS = list(
    dict.fromkeys(pair for repertoire in REPERTOIRES.values() for pair in repertoire.pairs)
)  # some stand in both
EACH_PAIR = pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.forward + "-" + str(PAIRS.index(pair)))
# sha256 of the first training scene of each pair of `motion`, and then of `motion_small`. Whoever changes a pixel
# raises store.FORMAT too.
DRAWN = {3: "09d180a2f3d6b829e15c51a465050754c83177d0b07525367ad54c23b99ecb30"}


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    monkeypatch.setattr(store, "PARALLEL", 1)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    cache = tmp_path_factory.mktemp("data")
    return cache, store.ready(TINY, "train", cache, lambda text: None)


def decoded(path):
    with open_video(path) as video:
        return video.read(range(len(video)))


def drawn(version, split, pair, number):
    return pictures(store.drawn_scene(version, split, pair, number), version.size)


def test_the_pixels_of_this_format():
    total = hashlib.sha256()
    for version in (STANDARD, store.VERSIONS["motion_small"]):
        for pair in range(len(version.repertoire.pairs)):
            total.update(drawn(version, "train", pair, 0).tobytes())
    assert DRAWN == {store.FORMAT: total.hexdigest()}, "raise store.FORMAT, then note the new digest here"


def test_no_photograph_is_in_two_splits():
    names = [name for split in datasets.SPLITS for name in photographs.PHOTOGRAPHS[split]]
    assert len(names) == len(set(names))
    for split, version in itertools.product(datasets.SPLITS, (TINY, CALM)):
        for pair in range(len(version.repertoire.pairs)):
            shown = store.drawn_scene(version, split, pair, 0).photographs
            assert set(shown) <= set(photographs.PHOTOGRAPHS[split])
            assert len(shown) >= 2  # never an object before its own photograph


def test_shrinking_keeps_the_mean_of_what_a_pixel_covers():
    random = np.random.default_rng(0)
    picture = random.integers(0, 256, (12, 20, 3), dtype=np.uint8)
    whole = picture.reshape(3, 4, 5, 4, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(photographs.shrunk(picture, 3, 5), whole, atol=0.51)


def test_what_is_stretched_runs_evenly_between_the_old_pixels():
    row = np.array([10, 40, 100], np.uint8)
    picture = np.stack([np.broadcast_to(row, (3, 3))] * 2 + [np.broadcast_to(row[:, None], (3, 3))], axis=2)
    larger = photographs.stretched(picture, 9)
    np.testing.assert_array_equal(larger[4, :, 0], [10, 10, 20, 30, 40, 60, 80, 100, 100])
    np.testing.assert_array_equal(larger[..., 0], larger[..., 2].T)
    assert (photographs.stretched(picture[:1, :1], 5) == picture[0, 0]).all()


def test_a_calm_background_is_far_darker_than_the_rim_of_its_object():
    small = store.VERSIONS["motion_small"]
    for pair, number in itertools.product(range(len(small.repertoire.pairs)), range(10)):
        shown = store.drawn_scene(small, "test", pair, number)
        behind = shown.background.mean(2)
        assert np.mean(shown.objects[0].rim) - behind.max() > 90
        assert abs(np.diff(behind, axis=1)).max() < 8  # from pixel to pixel


@pytest.mark.parametrize("version", [TINY, CALM], ids=lambda version: version.name)
def test_the_second_class_of_a_pair_decodes_to_the_first_backwards(tmp_path, version):
    for pair in range(len(version.repertoire.pairs)):
        store.render_scene(version, "train", pair, 0, tmp_path)
        paths = [tmp_path / store.clip_path(version, "train", 2 * pair + k, 0) for k in (0, 1)]
        forward, backward = map(decoded, paths)
        np.testing.assert_array_equal(backward, forward[::-1])
        assert forward.shape == (version.frames, version.size, version.size, 3)
        assert (forward != forward[::-1]).any()


def test_what_is_decoded_is_what_was_drawn(tmp_path):
    clip = drawn(STANDARD, "test", 1, 0)
    encode(clip, tmp_path / "clip.mp4", quality=22)
    assert abs(decoded(tmp_path / "clip.mp4").astype(int) - clip).mean() < 6


def test_a_mirrored_scene_is_of_the_class_that_the_mirror_names():
    """Seen in a mirror, motions of the mirrored pairs run the other way; the others stay what they are."""
    random = np.random.default_rng(1)
    for shown in REPERTOIRES.values():
        for number, pair in enumerate(shown.pairs):
            assert shown.mirror[2 * number] == 2 * number + pair.mirrored
            assert shown.mirror[2 * number + 1] == 2 * number + 1 - pair.mirrored
    for pair in PAIRS:
        assert direction(pair, pair.script(random, 24)) > 0
        mirrored = [{**moved, "x": 1 - moved["x"], "angle": -moved["angle"]} for moved in pair.script(random, 24)]
        assert (direction(pair, mirrored) < 0) == pair.mirrored


def direction(pair, motions):
    """Above 0 for the forward class of a pair, below for its backward one; read from the motions, as the docstring of
    the class says it."""
    first = motions[0]
    if pair.forward == "move_left":
        return -np.median(np.diff(first["x"]))
    if pair.forward == "move_up":  # y points down
        return -np.median(np.diff(first["y"]))
    if pair.forward == "rotate_clockwise":
        return np.median(np.diff(first["angle"]))
    if pair.forward == "approach":
        return np.median(np.diff(first["radius"]))
    if pair.forward == "round_chases_square":
        by_shape = {moved["shape"]: np.array([moved["x"], moved["y"]]) for moved in motions}
        step = by_shape["round"][:, 1] - by_shape["round"][:, 0]
        return float(step @ (by_shape["square"] - by_shape["round"])[:, 0])
    if pair.forward == "round_square_triangle":
        starts = [np.flatnonzero(moved["seen"] & ~np.roll(moved["seen"], 1))[0] for moved in motions]
        return 1 if (starts[1] - starts[0]) % 24 < (starts[2] - starts[0]) % 24 else -1
    seen, (x, y) = first["seen"], (first["x"] - 0.5, first["y"] - 0.5)
    visits = [index for index in range(24) if seen[index] and not seen[index - 1]]
    return sum(x[a] * y[b] - y[a] * x[b] for a, b in zip(visits, visits[1:] + visits[:1], strict=True))


@EACH_PAIR
def test_a_picture_does_not_tell_its_place_in_time(pair):
    """The state of a scene at a fixed time has the same distribution early and late, so that one picture says nothing
    of the direction of time even to someone who knows its number."""
    random, states = np.random.default_rng(2), []
    for _ in range(400):
        moved = {"seen": np.ones(24), **pair.script(random, 24)[0]}
        values = [
            np.array([moved["radius"][t], moved["seen"][t], moved["x"][t] % 1, moved["y"][t] % 1]) for t in (1, 22)
        ]
        states.append([np.concatenate([value, (value - 0.5) ** 2]) for value in values])
    early, late = np.array(states).transpose(1, 0, 2)
    spread = np.sqrt((early.var(0) + late.var(0)) / 400 + 1e-12)
    assert (abs(early.mean(0) - late.mean(0)) < 4 * spread).all()


def test_the_command_that_shows_a_data_set(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(store.VERSIONS, "motion_small", replace(CALM, name="motion_small"))
    monkeypatch.setenv("ATTENTION_ZOO_DATA", str(tmp_path))
    assert main(["show", "motion_small", f"out={tmp_path / 'sheet.png'}", "frames=2"]) == 0
    assert (tmp_path / "sheet.png").is_file()
    assert main(["show", "motion_small", f"out={tmp_path / 'no' / 'such' / 'folder' / 'x.png'}", "spilt=val"]) == 2
    assert "split" in capsys.readouterr().err
    assert main(["sow", "motion_small"]) == 2
    assert "list, check, show" in capsys.readouterr().err


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair.range == "long"], ids=lambda pair: pair.forward)
def test_a_short_window_of_a_long_range_class_shows_one_event(pair):
    frames, random = 32, np.random.default_rng(3)
    for _ in range(20):
        motions = pair.script(random, frames)
        for start in range(frames):
            window = [(start + offset) % frames for offset in range(frames // 6)]
            shown = {
                (number, float(moved["x"][t]), float(moved["y"][t]))
                for number, moved in enumerate(motions)
                for t in window
                if moved["seen"][t]
            }
            assert len(shown) <= 1


def test_scenes_are_the_same_again_and_differ_from_each_other():
    again = [drawn(TINY, "train", 3, 0).tobytes() for _ in range(2)]
    others = [drawn(TINY, "train", 3, 1), drawn(TINY, "test", 3, 0), drawn(TINY, "train", 2, 0)]
    assert again[0] == again[1]
    assert len({again[0], *(other.tobytes() for other in others)}) == 4


def test_every_size_and_length_can_be_drawn():
    for pair in PAIRS:
        for size, frames, calm in ((16, 1, True), (32, 3, False), (128, 48, False)):
            clip = pictures(scene(pair, "val", np.random.default_rng(5), size, frames, calm), size)
            assert clip.shape == (frames, size, size, 3)
            assert clip.dtype == np.uint8


def test_the_list_of_a_split(rendered, tmp_path):
    cache, manifest = rendered
    dataset = motion.listed(store.folder(TINY, cache), manifest)
    assert dataset.classes == CLASSES
    assert [item.label for item in dataset.items].count(5) == TINY.train
    assert len(dataset) == TINY.train * len(CLASSES)
    assert dataset.sided
    assert all(dataset.path(item).stat().st_size for item in dataset.items)
    assert {clip["range"] for clip in manifest["clips"]} == {"short", "long"}
    small = store.specification(CALM, "train") | {"digest": "", "clips": []}
    assert motion.listed(tmp_path, small).classes == CALM.repertoire.classes
    as_lists = datasets.load("csv", "train", store.folder(TINY, cache))
    assert as_lists.classes == dataset.classes
    assert [(as_lists.path(item), item.label) for item in as_lists.items] == [
        (dataset.path(item), item.label) for item in dataset.items
    ]


def test_what_is_there_is_not_rendered_again(rendered):
    cache, manifest = rendered
    before = {path: path.stat().st_mtime_ns for path in store.folder(TINY, cache).rglob("*.mp4")}
    assert store.ready(TINY, "train", cache, pytest.fail) == manifest
    victims = sorted(before)[:3]
    victims[0].unlink()
    victims[1].write_bytes(b"")
    victims[2].write_bytes(victims[2].read_bytes()[:-7])  # a file of another length than the manifest says
    assert store.ready(TINY, "train", cache, lambda text: None) == manifest
    changed = {path for path, stamp in before.items() if path.stat().st_mtime_ns != stamp}
    assert set(victims) <= changed
    assert len(changed) <= 2 * len(victims)  # their partners, too: a scene is rendered as a whole


def test_other_clips_in_the_folder_are_refused(tmp_path):
    store.ready(replace(TINY, train=1), "train", tmp_path, lambda text: None)
    with pytest.raises(DataError, match="other clips.*train is 1, here it is 2.*remove the folder"):
        store.ready(TINY, "train", tmp_path, lambda text: None)
    (store.folder(TINY, tmp_path) / "train.json").write_text("{")
    with pytest.raises(DataError, match="not a manifest"):
        store.ready(TINY, "train", tmp_path, lambda text: None)


def test_a_killed_render_goes_on(tmp_path):
    """Killed with all of its processes in the middle: no file but whole ones, and the next call makes the rest."""
    version = replace(TINY, name="motion_killed", train=40)
    code = f"""
from harness.motion import store
store.PARALLEL = 1
store.ready(store.Version(**{asdict(version)!r}), "train", {str(tmp_path)!r})"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True
    )
    root = store.folder(version, tmp_path)
    try:
        deadline = time.monotonic() + 300
        while len(list(root.rglob("*.mp4"))) < 20 and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    made = {path: path.stat().st_mtime_ns for path in root.rglob("*.mp4")}
    assert 20 <= len(made) < version.train * len(CLASSES)
    assert not (root / "train.json").exists()
    assert {len(decoded(path)) for path in made} == {version.frames}
    (root / "train" / CLASSES[0] / ".0000.mp4.abc.part").write_bytes(b"left over")
    manifest = store.ready(version, "train", tmp_path, lambda text: None)
    assert len(manifest["clips"]) == version.train * len(CLASSES)
    kept = [path for path, stamp in made.items() if path.stat().st_mtime_ns == stamp]
    assert len(kept) >= len(made) - 1  # one clip of the scene that was cut in half is made again
    assert not list(root.rglob("*.part"))
    assert all(clip["photographs"] for clip in manifest["clips"])


def test_two_at_once_make_one_data_set(tmp_path):
    code = f"""
import json, sys
from harness.motion import store
manifest = store.ready(store.Version(**{asdict(TINY)!r}), "val", {str(tmp_path)!r})
print(json.dumps(manifest["digest"]))"""
    command = dict(cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    two = [subprocess.Popen([sys.executable, "-c", code], **command) for _ in range(2)]
    outputs = [process.communicate() for process in two]
    assert [process.returncode for process in two] == [0, 0], outputs
    assert len({json.loads(out) for out, _ in outputs}) == 1
    assert len(list(store.folder(TINY, tmp_path).rglob("*.mp4"))) == len(CLASSES)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cache=FOLDER"):
        store.ready(TINY, "test", tmp_path / "file", lambda text: None)


def test_a_failing_process_is_reported(tmp_path):
    root = store.folder(TINY, tmp_path)
    (root / store.clip_path(TINY, "test", 0, 0)).mkdir(parents=True)  # a folder where a file must go
    with pytest.raises(DataError, match="rendering stopped after 0 of 12 clips: .*Error"):
        store.ready(TINY, "test", tmp_path, lambda text: None)


def test_the_registered_names(tmp_path, monkeypatch):
    monkeypatch.setitem(store.VERSIONS, "motion", replace(TINY, name="motion"))
    monkeypatch.setenv("ATTENTION_ZOO_DATA", str(tmp_path / "there"))
    assert {"motion_small", "motion", "motion_large"} <= set(datasets.names())
    dataset = datasets.load("motion", "test")
    assert dataset.path(dataset.items[0]).parents[2] == tmp_path / "there" / f"motion-v{store.FORMAT}"
    assert datasets.load("motion", "test", cache=str(tmp_path / "there")).digest == dataset.digest
    with pytest.raises(DataError, match="give one of them"):
        datasets.load("motion", "test", tmp_path, cache=str(tmp_path))


def test_the_contact_sheet(rendered, tmp_path):
    from PIL import Image

    cache, manifest = rendered
    dataset = motion.listed(store.folder(TINY, cache), manifest)
    with Image.open(contact_sheet(dataset, tmp_path / "sheet.png", frames=4, height=20)) as sheet:
        assert sheet.size == (4 * 22, len(CLASSES) * 36)
    with Image.open(contact_sheet(dataset, tmp_path / "few.png", frames=4, height=20, classes=5)) as sheet:
        assert sheet.height == 5 * 36
    with pytest.raises(DataError, match="no clip to show"):
        contact_sheet(replace(dataset, root=tmp_path), tmp_path / "none.png")
