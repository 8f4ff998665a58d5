"""Video in: which frames are taken, how they are cropped, and what each unusable file is told."""

import sys
import wave

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from moving import moving_scene

from harness import video
from harness.clips import transforms
from harness.spec.clip import MEAN, STD
from harness.spec.sampling import Sampling, test_indices


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return video.sample_clip(tmp_path_factory.mktemp("sample"))


def encode(path, pictures, codec="libx264", rate=30):
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(codec if codec in av.codecs_available else "mpeg4", rate=rate)
        stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


# sampling


def sample_indices(total, frames, stride):
    """Of the one test clip of a video."""
    return test_indices(total, Sampling(frames, stride), clips=1)[0]


@given(total=st.integers(1, 400), frames=st.integers(1, 40), stride=st.integers(1, 5))
def test_the_clip_stands_in_the_middle_and_wraps_around(total, frames, stride):
    indices = sample_indices(total, frames, stride)
    span = frames * stride
    start = int((total - span + 1) / 1 * 0.5) if total >= span else 0  # one clip: gap g, start floor(g/2)
    assert indices == [(start + i * stride) % total for i in range(frames)]
    if total >= span:
        assert indices == sorted(indices)
        assert abs(indices[0] - (total - (indices[0] + span))) <= 1  # as much video before the clip's span as after


@pytest.mark.parametrize(
    "total,frames,stride,expected",
    [(80, 4, 2, [36, 38, 40, 42]), (8, 4, 2, [0, 2, 4, 6]), (5, 4, 2, [0, 2, 4, 1]), (1, 3, 2, [0, 0, 0])],
)
def test_sampled_frames(total, frames, stride, expected):
    assert sample_indices(total, frames, stride) == expected


def test_a_video_without_frames_has_no_clip():
    with pytest.raises(ValueError, match="0 frames"):
        sample_indices(0, 8, 2)


# decoding


def test_a_clip_is_normalised(sample):
    clip = transforms.normalise(video.decode(sample, 4, 3, 48).frames)
    assert clip.shape == (3, 4, 48, 48)
    assert clip.dtype == torch.float32
    pixels = video.decode(sample, 4, 3, 48).frames
    back = clip.permute(1, 2, 3, 0) * torch.tensor(STD) + torch.tensor(MEAN)
    torch.testing.assert_close(back, torch.from_numpy(pixels).float(), atol=1e-3, rtol=0)


def test_the_sample_moves_and_decodes_the_same_twice(sample):
    first, second = video.decode(sample, 8, 2, 64), video.decode(sample, 8, 2, 64)
    assert first.digest == second.digest
    assert first.frames_in_file == 80
    assert first.source == video.SAMPLE
    changed = np.abs(np.diff(first.frames.astype(int), axis=0)).mean(axis=(1, 2, 3))
    assert (changed > 2).all()


def test_the_sample_is_made_once_and_leaves_no_parts(tmp_path):
    path = video.sample_clip(tmp_path)
    before = path.stat().st_mtime_ns
    assert video.sample_clip(tmp_path) == path
    assert path.stat().st_mtime_ns == before
    assert [file.name for file in tmp_path.iterdir()] == [video.SAMPLE]


@pytest.mark.parametrize("height,width", [(48, 96), (96, 48), (48, 48), (31, 77), (200, 210)])
def test_short_side_and_centre_crop(height, width):
    """A picture whose red grows to the right and green downwards: the crop's middle is the picture's."""
    y, x = np.meshgrid(np.linspace(0, 255, height), np.linspace(0, 255, width), indexing="ij")
    picture = np.stack([x, y, 0 * x], axis=-1).astype(np.uint8)
    crop = (
        transforms.test_view(torch.from_numpy(picture)[None], 48, resize=48, crop=0, crops=1)[:, 0]
        .permute(1, 2, 0)
        .numpy()
    )
    assert crop.shape == (48, 48, 3)
    assert crop[..., :2].mean(axis=(0, 1)) == pytest.approx([127, 127], abs=4)
    short = min(height, width)
    assert np.ptp(crop[24, :, 0].astype(int)) == pytest.approx(255 * min(1, short / width), abs=14)
    assert np.ptp(crop[:, 24, 1].astype(int)) == pytest.approx(255 * min(1, short / height), abs=14)


def test_pyav_takes_over_and_sees_the_same_pixels(sample, monkeypatch):
    expected = video.decode(sample, 6, 2, 56)
    monkeypatch.setitem(sys.modules, "decord", None)  # to import it fails
    fallback = video.decode(sample, 6, 2, 56)
    assert fallback.decoder == f"PyAV {av.__version__}"
    assert fallback.frames_in_file == expected.frames_in_file
    np.testing.assert_array_equal(fallback.frames, expected.frames)


def test_pyav_reads_what_decord_cannot_and_the_clip_says_so(tmp_path, monkeypatch):
    decord = pytest.importorskip("decord", reason="decord is not installed")
    path = encode(tmp_path / "small.mp4", moving_scene(6, 32, 48))
    failing = lambda *_, **__: (_ for _ in ()).throw(RuntimeError("[1:2] /a/b.cc:3: no such codec"))  # noqa: E731
    monkeypatch.setattr(decord, "VideoReader", failing)
    assert "decord could not read" in video.decode(path, 4, 1, 32).decoder


def test_a_short_video_wraps_around(tmp_path):
    path = encode(tmp_path / "short.mp4", moving_scene(5, 48, 64))
    frames = video.decode(path, 8, 1, 32).frames
    np.testing.assert_array_equal(frames[:3], frames[5:])


# unusable files


def wav(path):
    with wave.open(str(path), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(8000))


BROKEN = {
    "missing.mp4": (lambda path: None, "no such file"),
    "folder.mp4": (lambda path: path.mkdir(), "a folder"),
    "empty.mp4": (lambda path: path.write_bytes(b""), "empty (0 bytes)"),
    "text.mp4": (lambda path: path.write_text("not a video at all\n" * 40), "cannot be decoded"),
    "sound.wav": (wav, "no video stream"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_unusable_file_is_named_with_the_way_out(name, tmp_path):
    make, reason = BROKEN[name]
    path = tmp_path / name
    make(path)
    with pytest.raises(video.VideoError) as caught:
        video.decode(path)
    assert name in str(caught.value)
    assert reason in str(caught.value)
    assert ";" in str(caught.value)  # what is wrong; what to do


@pytest.mark.parametrize("kept", [32, 0.3, 0.6, 0.9])
def test_a_truncated_video_is_an_error(kept, sample, tmp_path):
    whole = sample.read_bytes()
    path = tmp_path / "truncated.mp4"
    path.write_bytes(whole[: kept if kept > 1 else int(len(whole) * kept)])
    with pytest.raises(video.VideoError, match=r"truncated.mp4.*truncated or damaged"):
        video.decode(path, 8, 2, 64)


def test_a_video_that_breaks_off_in_the_middle_is_an_error(tmp_path):
    """The index at the end is whole, the pictures before it are not, and later ones are coded from them."""
    path = encode(tmp_path / "damaged.mp4", moving_scene(80, 96, 128))
    whole = bytearray(path.read_bytes())
    begin = whole.index(b"mdat") + 4
    first, last = begin + (len(whole) - begin) // 10, begin + (len(whole) - begin) * 6 // 10
    whole[first:last] = bytes(last - first)
    path.write_bytes(whole)
    with pytest.raises(video.VideoError, match=r"damaged.mp4"):
        video.decode(path, 8, 2, 64)


@pytest.mark.parametrize("bad", [dict(frames=0), dict(stride=0), dict(size=0)])
def test_impossible_clips_are_refused(bad, sample):
    with pytest.raises(ValueError, match="1 or more"):
        video.decode(sample, **bad)
