"""Clips come out the same however they are loaded; broken files are replaced and counted, or are an error."""

import math
import signal
from dataclasses import replace
from fractions import Fraction

import numpy as np
import psutil
import pytest
import torch
from training_runs import CLASSES, data_set, moving_square, recipe

from harness import datasets
from harness.clips import loading
from harness.clips.decoding import VideoError, open_video
from harness.clips.loading import (
    Keys,
    LoadingError,
    TestClips,
    TrainingClips,
    collated,
    loaded,
    preload,
)
from harness.spec.clip import Augmentation
from harness.spec.recipe import Testing
from harness.spec.sampling import Sampling

SAMPLING, AUGMENTATION, TESTING = recipe().sampling, recipe().augmentation, Testing(clips=2, crops=3, resize=34)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return data_set(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def training(folder):
    return datasets.load(str(folder), "train")


def clips_of(dataset, **changes):
    return TrainingClips(dataset, **{"sampling": SAMPLING, "augmentation": AUGMENTATION, "seed": 5} | changes)


def same(first, other):
    assert first.keys() == other.keys()
    for key, value in first.items():
        torch.testing.assert_close(value, other[key], rtol=0, atol=0) if isinstance(value, torch.Tensor) else None
        assert isinstance(value, torch.Tensor) or value == other[key], key


def test_an_epoch_takes_every_clip_once_in_its_own_order():
    keys = Keys(count=12, batch=4, micro=2, seed=3, first=0, last=6)
    assert len(keys) == len(list(keys)) == 12
    first, second = ([key for part in list(keys)[start : start + 6] for key in part] for start in (0, 6))
    assert {epoch for epoch, _ in first} == {0}
    assert {epoch for epoch, _ in second} == {1}
    assert sorted(index for _, index in first) == sorted(index for _, index in second) == list(range(12))
    assert [index for _, index in first] != [index for _, index in second]


def test_what_does_not_fill_a_batch_is_left_out():
    keys = Keys(count=11, batch=4, micro=4, seed=3, first=0, last=4)
    assert keys.steps_per_epoch == 2
    assert [epoch for part in keys for epoch, _ in part] == [0] * 8 + [1] * 8


def test_processes_share_the_micro_batches_of_one():
    whole = list(Keys(12, 8, 2, 3, 0, 3))
    first, second = (list(Keys(12, 8, 2, 3, 0, 3, rank, 2)) for rank in (0, 1))
    assert [part for pair in zip(first, second, strict=True) for part in pair] == whole


def test_a_run_goes_on_where_it_stopped():
    assert list(Keys(12, 4, 2, 3, 4, 9)) == list(Keys(12, 4, 2, 3, 0, 9))[8:]


def test_a_clip_follows_from_seed_epoch_and_index(training):
    first = clips_of(training)
    again, other = clips_of(training), clips_of(training, seed=6)
    shape = (3, SAMPLING.frames, AUGMENTATION.size, AUGMENTATION.size)
    for key in ((0, 3), (1, 3), (0, 7)):
        assert first[key]["clip"].shape == shape
        assert first[key]["clip"].dtype == torch.uint8
        same(first[key], again[key])
        assert not torch.equal(first[key]["clip"], other[key]["clip"])
    assert not torch.equal(first[0, 3]["clip"], first[1, 3]["clip"])


def test_worker_processes_load_what_this_one_loads(training):
    keys = Keys(len(training), 4, 2, 1, 0, 4)
    alone = list(loading.loaded(clips_of(training), keys))
    decoded = preload(training, AUGMENTATION.resize, shared=True)
    shared = list(loading.loaded(clips_of(training, preloaded=decoded), keys, workers=2))
    assert len(alone) == len(shared) == 8
    for batch, other in zip(alone, shared, strict=True):
        same(batch, other)


@pytest.mark.parametrize("resize", [36, 24, None])
@pytest.mark.parametrize(("order", "smooth"), [("ordered", False), ("shuffled", False), ("single", True)])
def test_clips_from_memory_equal_decoded_ones(training, resize, order, smooth):
    augmentation = replace(AUGMENTATION, resize=resize, antialias=smooth)
    decoded = preload(training, resize, antialias=smooth)
    assert all(isinstance(place, loading.Place) for place in decoded.places)
    for key in ((0, 0), (3, 5), (1, 11)):
        same(
            clips_of(training, augmentation=augmentation, order=order)[key],
            clips_of(training, augmentation=augmentation, order=order, preloaded=decoded)[key],
        )
    decoded = preload(training, TESTING.resize, antialias=smooth)
    for index in (0, 4):
        files = TestClips(training, SAMPLING, TESTING, 32, order=order, antialias=smooth)
        memory = TestClips(training, SAMPLING, TESTING, 32, order=order, preloaded=decoded)
        assert files[index]["views"].shape == (6, 3, 4, 32, 32)
        same(files[index], memory[index])


def test_views_are_ordered_by_clip_then_crop(training):
    clips = TestClips(training, SAMPLING, TESTING, 32)
    assert clips.views == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    one_crop = TestClips(training, SAMPLING, Testing(clips=2, crops=1, resize=34), 32)
    assert one_crop.views == [(0, 0), (1, 0)]


def test_a_loader_of_test_clips_gives_every_video(training):
    clips = TestClips(training, SAMPLING, TESTING, 32)
    samples = [sample[0] for sample in loaded(clips, [[i] for i in range(len(clips))], list)]
    assert [sample["index"] for sample in samples] == list(range(12))
    assert [sample["label"] for sample in samples] == [item.label for item in training.items]


@pytest.fixture
def broken(tmp_path):
    """Three of twelve training videos are damaged or missing."""
    data_set(tmp_path, val=1)
    (tmp_path / "videos" / "train002.mp4").write_bytes(b"no video at all")
    (tmp_path / "videos" / "train005.mp4").write_bytes(b"")
    (tmp_path / "videos" / "train007.mp4").unlink()
    return datasets.load(str(tmp_path), "train")


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_broken_video_is_replaced_in_training_and_missed_in_testing(broken, in_memory):
    decoded = preload(broken, 36) if in_memory else None
    clips = clips_of(broken, preloaded=decoded)
    samples = [clips[0, index] for index in range(12)]
    replaced = [index for index, sample in enumerate(samples) if sample["replaced"]]
    assert replaced == [2, 5, 7]
    for index in replaced:
        assert samples[index]["index"] not in replaced
        assert samples[index]["failed"][0] == index
        assert samples[index]["label"] == broken.items[samples[index]["index"]].label
        same(samples[index], clips_of(broken)[0, index])
    batch = collated(samples)
    assert batch["replaced"].sum() == 3
    assert {2, 5, 7} <= set(batch["failed"])
    tests = TestClips(broken, SAMPLING, TESTING, 32, preloaded=decoded and preload(broken, 34))
    for index, name in ((2, "train002"), (5, "train005"), (7, "train007")):
        assert isinstance(tests[index]["views"], str)
        assert name in tests[index]["views"]


def test_where_nothing_can_be_decoded_training_ends(tmp_path):
    dataset = datasets.load(str(data_set(tmp_path, train=6, val=1)), "train")
    for item in dataset.items:
        dataset.path(item).write_bytes(b"broken")
    with pytest.raises(LoadingError, match=r"11 clips .* harness.datasets check csv root="):
        clips_of(dataset)[0, 0]


def test_preloading_what_does_not_fit_is_refused_early(training, monkeypatch):
    memory = psutil.virtual_memory()
    monkeypatch.setattr(loading.psutil, "virtual_memory", lambda: memory._replace(available=100_000))
    with pytest.raises(LoadingError, match=r"preload=true needs about .* GiB .* preload=false"):
        preload(training, 36)


def test_preloading_counts_the_processes_of_the_machine(training, monkeypatch):
    memory, needed = psutil.virtual_memory(), sum(math.prod(place.shape) for place in preload(training, 36).places)
    room = memory._replace(available=int(2 * needed / loading.SHARE_OF_MEMORY))
    monkeypatch.setattr(loading.psutil, "virtual_memory", lambda: room)
    preload(training, 36)
    with pytest.raises(LoadingError, match=r"videos, in each of 16 processes\), but memory has"):
        preload(training, 36, processes=16)


def test_clips_are_not_flipped_where_sides_matter_unless_the_recipe_exchanges_labels(training):
    moving = [index for index, item in enumerate(training.items) if CLASSES[item.label] == "right"]
    augmentation = Augmentation(size=32, resize=36, crop="center", flip=1.0)
    plain = clips_of(replace(training, sided=False), augmentation=augmentation)
    sided = clips_of(replace(training, sided=True), augmentation=augmentation)
    pairs = replace(training, sided=True, mirror={0: 1, 1: 0})
    mirrored = clips_of(pairs, augmentation=replace(augmentation, mirror=True))
    for index in moving:
        same(sided[0, index], clips_of(pairs, augmentation=augmentation)[0, index])
        same(sided[0, index], clips_of(replace(pairs, mirror=None), augmentation=mirrored.augmentation)[0, index])
        torch.testing.assert_close(plain[0, index]["clip"], sided[0, index]["clip"].flip(-1))
        torch.testing.assert_close(mirrored[0, index]["clip"], sided[0, index]["clip"].flip(-1))
        assert (sided[0, index]["label"], mirrored[0, index]["label"]) == (1, 0)
    (down, *_) = (index for index, item in enumerate(training.items) if CLASSES[item.label] == "down")
    same(mirrored[0, down], sided[0, down])  # without a partner


def test_a_mirror_takes_its_share_of_the_clips(training):
    augmentation = Augmentation(size=32, resize=36, crop="center", flip=0.5, mirror=True)
    (index, *_) = (index for index, item in enumerate(training.items) if CLASSES[item.label] == "right")
    clips = clips_of(replace(training, sided=True, mirror={0: 1, 1: 0}), augmentation=augmentation)
    labels = [clips[epoch, index]["label"] for epoch in range(60)]
    assert 15 < labels.count(0) < 45
    assert labels == [clips[epoch, index]["label"] for epoch in range(60)]


def test_only_the_listed_part_is_read(training):
    """Rendered at 10 frames per second: 0.2 to 0.6 s are the frames 2 to 5."""
    item = replace(training.items[0], start=0.2, end=0.6)
    with loading.opened(training, training.items[0]) as (total, fps, read, decoder):
        assert fps == pytest.approx(10)
        whole = read(range(total))
        assert decoder().startswith(("decord", "PyAV"))
    with loading.opened(training, item) as (total, _, read, _):
        assert total == 4
        np.testing.assert_array_equal(read(range(4)), whole[2:6])
    with pytest.raises(VideoError, match=r"train000.*9.* s, holds none of its 8 frames"):
        with loading.opened(training, replace(item, start=9.0, end=10.0)):
            pass


@pytest.mark.parametrize(
    ("start", "end", "frames"),
    [
        (0.0, 0.4, [0, 1, 2, 3]),
        (None, 0.8, [0, 1, 2, 3, 4]),  # the fifth is shown from 0.4 to 0.9 s
        (0.4, 1.9, [4, 5, 6]),
        (1.0, None, [5, 6, 7]),
        (0.5, 0.6, [4]),  # lies within one frame
    ],
)
def test_parts_of_a_variable_frame_rate_are_cut_by_time(tmp_path, start, end, frames):
    """Ten frames a second for five frames, then two: the average would cut other ones."""
    import av

    times = [0, 100, 200, 300, 400, 900, 1400, 1900]
    path = tmp_path / "variable.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 40, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time, picture in zip(times, moving_square("right", 3, len(times)), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    item = datasets.Item(path.name, 0, start, end)
    dataset = datasets.DataSet("cut", "train", tmp_path, (item,), ("right",))
    with open_video(path) as video:
        np.testing.assert_allclose(video.seconds, np.array(times) / 1000)
        whole = video.read(range(len(times)))
    with loading.opened(dataset, item) as (total, _, read, _):
        np.testing.assert_array_equal(read(range(total)), whole[frames])


def test_uniform_sampling_of_a_short_video(training):
    clip = clips_of(training, sampling=Sampling(frames=16, kind="uniform"))[0, 0]["clip"]
    assert clip.shape[1] == 16


class Full(torch.utils.data.Dataset):
    """Fails as PyTorch does where /dev/shm is full."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")


def test_a_worker_without_shared_memory_is_one_line_with_the_way_out():
    with pytest.raises(loading.LoadingError, match=r"No space left on device .*/dev/shm.*workers= ") as caught:
        list(loading.loaded(Full(), [[0]], list, workers=1))
    assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeError, match="unable to allocate"):  # not of a worker: a fault of its own
        list(loading.loaded(Full(), [[0]], list))


def test_views_are_in_shared_memory_before_they_are_queued(training):
    """What fails in the queue's own thread reaches nobody, and the reader waits for ever."""
    clips = loading.TestClips(training, Sampling(frames=4), Testing(clips=2, crops=1, resize=32), 32)
    (sample,) = loading.loaded(clips, [[0]], shared_alone, workers=1)
    assert sample["in_worker"]
    assert sample["was_shared"]


def shared_alone(samples):
    sample = loading.shared(samples[0])
    told = {"in_worker": torch.utils.data.get_worker_info() is not None, "was_shared": sample["views"].is_shared()}
    return sample | told


@pytest.mark.skipif(loading.CONTEXT != "forkserver", reason="elsewhere each loader starts by itself")
def test_the_process_that_loaders_are_forked_from_never_hears_ctrl_c(monkeypatch):
    """While it loads torch that would end it, and the run with an error."""
    heard = []
    monkeypatch.setattr(loading.forkserver, "ensure_running", lambda: heard.append(signal.getsignal(signal.SIGINT)))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    loading._context()
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler
    assert heard == [signal.SIG_IGN]
