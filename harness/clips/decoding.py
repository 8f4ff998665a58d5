"""Frames of video files by number: decord where it gives the right ones, PyAV everywhere else.

decord 0.6.0 is wrong without a word in many files. It returns frames some places off where it seeks to a keyframe that
later frames do not start afresh from (open groups of pictures, the default of x265 and of MPEG-4; intra refresh), and
in containers without exact times (AVI, MPEG, WMV). It returns frames that an edit list hides, and of several video
streams the one that ffmpeg finds best. So a file's packets are read first, without decoding them: they say how many
frames there are, at which time each is shown, and from which keyframes decoding may start. Only a file where all of
this is in order, and where decord sees the same times, goes to decord.

PyAV finds frames of the same file by their times, and counts them from the start where the container has no exact ones.
So one file gives the same pictures to the bit (RGB, turned for display), whichever of the two is installed. decord
enlarges the colour planes of interlaced and 10-bit pictures in another way, so these are PyAV's as well.

A frame that is asked for and does not decode is a `VideoError`, never a black picture or another frame. PyAV also says
where the decoder made up what it could not read, and such a frame is an error with all that may build on it; decord
does not say so. `probe(path, whole=True)` decodes every frame with PyAV and refuses such a file. Changed bits that
still mean something to the decoder are found by nobody.
"""

from __future__ import annotations

import hashlib
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import numpy as np

from harness.packages import late

Container = Stream = Packet = Frame = Any  # those of PyAV, which is imported late

ELSE = "or leave clip out to use the built-in sample"
NO_DECORD = "decord is not installed"
NO_STREAM = "no video stream, perhaps only sound"
REENCODE = "re-encode it (`ffmpeg -i INPUT -c:v libx264 -pix_fmt yuv420p OUTPUT.mp4`) or use another file"
EXACT = {"mov", "mp4", "matroska", "webm"}  # containers with the time of each frame and an index to seek by
KEPT = 0.9  # of the length that Matroska promises in its header, a second aside
SAME_TIME = 1e-3  # seconds that two decoders' times of one frame may differ by (Matroska counts milliseconds)


class VideoError(ValueError):
    """A video that cannot be used; the message names the file and the way out."""


@dataclass(frozen=True)
class VideoFacts:
    """What is known of a video file, and which decoder reads it."""

    frames: int  # that the file holds, whatever its header promises
    fps: float | None  # on average
    width: int  # after rotation, as is height
    height: int
    rotation: int  # degrees that frames are turned by, counter-clockwise: 0, 90, 180, 270
    codec: str
    duration: float | None  # seconds
    decoder: str  # "decord 0.6.0" or "PyAV 18.1.0"
    fallback: str | None = None  # why not decord
    damage: str | None = None  # what is known to be missing from the file
    mirrored: bool = False  # whether frames are turned upside down before they are rotated


@dataclass(frozen=True)
class _Layout:
    """What the packets of a video stream say, in the order in which frames are shown."""

    stream: int  # its number in the container
    promised: int  # frames, by the header; 0 where it says nothing
    facts: VideoFacts
    times: tuple[int, ...] = ()  # of each frame, in units of the stream; empty where they cannot be relied on
    seconds: tuple[float, ...] = ()  # the same in seconds from the first frame
    starts: tuple[tuple[int, int], ...] = ()  # (frame, time to seek to) of keyframes that decoding may start from
    distrust: str | None = None  # why decord would not give the right frames


class Video:
    """An open video file: `len(video)` frames, of which `read` gives any. A context manager.

    It belongs to the process (and thread) that opened it. `facts` change when decord fails later on: PyAV then reads
    on, and `facts.fallback` has the reason.
    """

    def __init__(self, path: Path, layout: _Layout, facts: VideoFacts, reader: Any = None):
        self.path, self.facts, self._layout, self._reader, self._closed = path, facts, layout, reader, False

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self.facts.frames

    @property
    def seconds(self) -> np.ndarray | None:
        """When each frame is shown, in seconds from the first one; None where the file does not say. In files of a
        variable frame rate this is not the number of the frame over `facts.fps`."""
        return np.array(self._layout.seconds) if len(self._layout.seconds) == len(self) else None

    def close(self) -> None:
        self._reader, self._closed = None, True

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """The frames with these numbers, in this order: uint8 `n h w 3`, RGB, turned for display.

        Numbers may repeat and stand in any order; what is not needed for them is not decoded.
        Raises: VideoError naming the file and the frame that does not decode; IndexError for a number out of range;
        ValueError after `close`.
        """
        if self._closed:
            raise ValueError(f"{self.path}: the video is closed; open it again")
        wrong = [index for index in indices if not 0 <= index < len(self)]
        if wrong:
            raise IndexError(f"{self.path}: there is no frame {wrong[0]}; allowed: 0 to {len(self) - 1}")
        distinct = sorted(set(map(int, indices)))
        if not distinct:
            return np.empty((0, self.facts.height, self.facts.width, 3), np.uint8)
        pictures = self._read(distinct)
        place = {index: place for place, index in enumerate(distinct)}
        return pictures if distinct == list(indices) else pictures[[place[index] for index in indices]]

    def _read(self, numbers: list[int]) -> np.ndarray:
        if self._reader is not None:
            try:
                pictures = self._reader.get_batch(numbers).asnumpy()
                if pictures.shape[1:3] != (self.facts.height, self.facts.width):
                    raise VideoError(f"its frames are {pictures.shape[2]}x{pictures.shape[1]}")
                return pictures
            except Exception as error:  # whatever its C side reports: PyAV says whether the frame can be had
                self._reader = None
                why = f"decord could not read the file: {_first_line(error, self.path)}"
                self.facts = replace(self.facts, decoder=_pyav_name(), fallback=why)
        return _read_frames(self.path, self._layout, self.facts, numbers)


def open_video(path: str | Path, pyav: bool = False) -> Video:
    """Open a video file to read frames from it.

    By decord where it can be relied on and by PyAV elsewhere; `facts.fallback` says why. `pyav` insists on PyAV, for
    comparison.

    Raises: VideoError naming the file, when it is missing, empty, without a video stream, or when its header or first
    frame cannot be read.
    """
    path = Path(path).expanduser().absolute()
    check_file(path)
    layout = _named_errors(path, lambda: _layout(path))
    if pyav:
        return Video(path, layout, layout.facts)
    try:
        decord = late("decord")
    except ImportError:
        return Video(path, layout, replace(layout.facts, fallback=NO_DECORD))
    if layout.distrust:
        return Video(path, layout, replace(layout.facts, fallback=layout.distrust))
    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
    except Exception as error:  # as in `Video._read`
        why = f"decord could not read the file: {_first_line(error, path)}"
        return Video(path, layout, replace(layout.facts, fallback=why))
    difference = _difference(reader, layout)
    if difference:
        return Video(path, layout, replace(layout.facts, fallback=difference))
    return Video(path, layout, replace(layout.facts, decoder=f"decord {decord.__version__}"), reader)


def check_file(path: str | Path) -> None:
    """Raises: VideoError, when there is no readable file with something in it."""
    path = Path(path).expanduser()
    if not path.exists():
        raise VideoError(f"{path}: no such file; check the path")
    if not path.is_file():
        raise VideoError(f"{path}: a folder or device, not a video file; give the file itself")
    if not os.access(path, os.R_OK):
        raise VideoError(f"{path}: not readable by this user; change its permissions or copy it")
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: the file is empty (0 bytes); fetch or export it again")


def check_clip(path: str | Path) -> None:
    """Raises: VideoError, when there is no readable file whose first frame decodes."""
    try:
        check_file(path)
        probe(path)
    except VideoError as error:
        raise VideoError(f"clip={error}, {ELSE}") from None


def file_digest(path: str | Path) -> str:
    """sha256 of a file's bytes."""
    with Path(path).expanduser().open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def probe(path: str | Path, whole: bool = False) -> VideoFacts:
    """The facts of a video file from its packets and first frame; with `whole`, also that every frame decodes.

    Raises: VideoError naming the file, as `open_video` does; with `whole` also when the file ends too early, or a frame
    does not decode or is damaged, naming the first such frame.
    """
    with open_video(path) as video:
        facts = video.facts
        if whole:
            _named_errors(video.path, lambda: _check_every_frame(video))
        return facts


# What a file holds, read from its packets


def _layout(path: Path) -> _Layout:
    """Reads every packet of the video stream, and decodes the first frame.

    Raises: VideoError without the file's name; whatever PyAV raises.
    """
    with _opened(path) as container:
        cover = late("av").stream.Disposition.attached_pic
        streams = [stream for stream in container.streams.video if not stream.disposition & cover]
        if not streams:
            raise VideoError(NO_STREAM)
        stream = streams[0]
        first = _first_frame(container, stream)
        rotation = round(getattr(first, "rotation", 0) / 90) * 90 % 360
        facts = VideoFacts(
            frames=0,
            fps=float(stream.average_rate) if stream.average_rate else None,
            width=first.height if rotation % 180 else first.width,
            height=first.width if rotation % 180 else first.height,
            rotation=rotation,
            codec=stream.codec_context.name,
            duration=_duration(container, stream),
            decoder=_pyav_name(),
            mirrored=_mirrored(first),
        )
        layout = _Layout(stream.index, _promised(stream), facts)
        if not EXACT & set(container.format.name.split(",")):
            why = f"{container.format.name} files have no exact index of frames, and decord returns wrong ones"
            return replace(_counted(path, layout), distrust=why)
    with _opened(path) as container:
        layout = _timed(container, container.streams[layout.stream], layout)
    if not layout.times:
        return _counted(path, layout)
    if len(streams) > 1:
        return replace(layout, distrust="decord does not always take the first of several video streams")
    if layout.facts.mirrored:
        return replace(layout, distrust="it is shown mirrored, which decord does not do")
    if first.interlaced_frame or first.format.components[0].bits > 8 or not _enlarged_alike(first):
        kinds = "interlaced and 10-bit pictures, odd heights and rare formats"
        return replace(layout, distrust=f"decord enlarges the colours of {kinds} otherwise")
    return layout


def _enlarged_alike(frame: Frame) -> bool:
    """Whether both libraries enlarge its colour planes alike: with all rows, or in the usual format and even height."""
    sides = (frame.format.chroma_width(16), frame.format.chroma_height(16))
    return sides[1] == 16 or (sides == (8, 8) and frame.height % 2 == 0)


def _timed(container: Container, stream: Stream, layout: _Layout) -> _Layout:
    """The layout with the times of all frames and the keyframes to start from; unchanged where times are missing.

    A frame may be decoded from a keyframe when what is decoded from there on is also shown from there on, and when the
    keyframe makes decoders forget what came before (for H.264, `is_keyframe` marks places of gradual refresh as well).
    """
    shows, refreshes = _shown_by(stream), _refreshed_by(stream)
    packets = [
        (packet.pts, packet.is_keyframe, refreshes(packet) if packet.is_keyframe else False, shows(packet))
        for packet in container.demux(stream)
        if packet.size  # demux ends with an empty one
    ]
    times = sorted(pts for pts, *_, displayed in packets if displayed and pts is not None)
    complete = bool(packets) and all(pts is not None for pts, *_ in packets)
    if not complete or not times or len(set(times)) < len(times):
        return replace(layout, distrust="its frames have no times, or share them")
    distrust = None
    if len(times) < len(packets):
        distrust = "an edit list or the codec hides some of its frames, which decord would return"
    later = list(accumulate((pts for pts, *_ in reversed(packets)), min))[::-1]  # least time from each packet on
    earlier = [times[0] - 1, *accumulate((pts for pts, *_ in packets), max)]  # greatest time before each packet
    starts = []
    for place, (pts, key, refreshed, _) in enumerate(packets):
        if not key:
            continue
        if pts == later[place] and (place == 0 or (refreshed and earlier[place] < pts)):
            starts.append((np.searchsorted(times, pts).item(), pts))
        else:
            distrust = distrust or "it has keyframes that do not start afresh, where decord returns the wrong frames"
    if not packets[0][1]:
        distrust = distrust or "it does not start with a keyframe"
    damage = None
    if layout.promised > len(packets):
        damage = f"the header promises {layout.promised} frames, the file holds {len(packets)}"
        distrust = distrust or damage
    base = float(stream.time_base)
    lasts, promised = (times[-1] - times[0]) * base, _promised_seconds(stream)
    if damage is None and promised and lasts < KEPT * promised - 1:
        damage = f"the header promises {promised:.1f} s, the file holds {lasts:.1f} s"
    return replace(
        layout,
        facts=replace(layout.facts, frames=len(times), damage=damage, fps=_rate(times, base, layout.facts.fps)),
        times=tuple(times),
        seconds=tuple((time - times[0]) * base for time in times),
        starts=tuple(starts),
        distrust=distrust,
    )


def _rate(times: list[int], base: float, stated: float | None) -> float | None:
    """Frames per second: what is stated where the times bear it out within a tenth, else what they come to. Some
    containers state what a camera was set to, whatever it recorded."""
    seconds = (times[-1] - times[0]) * base
    counted = (len(times) - 1) / seconds if seconds > 0 else stated
    return stated if stated and counted and abs(counted - stated) <= stated / 10 else counted


def _counted(path: Path, layout: _Layout) -> _Layout:
    """The layout with the number of frames that decode from the start."""
    state = path.stat()
    frames, damage = _count(path, layout.stream, state.st_size, state.st_mtime_ns)
    if not frames:
        raise VideoError(damage or "no frames")
    return replace(layout, facts=replace(layout.facts, frames=frames, damage=damage))


@lru_cache(maxsize=1 << 16)  # in training a file is opened once an epoch, and its frames need counting once
def _count(path: Path, stream: int, _size: int, _changed: int) -> tuple[int, str | None]:
    frames = 0
    try:
        with _opened(path) as container:
            for _ in _decoded(container, container.streams[stream]):
                frames += 1
    except Exception as error:  # the file ends here, as far as it can be used
        return frames, f"frame {frames} does not decode: {_first_line(error, path)}"
    return frames, None


def _promised(stream: Stream) -> int:
    """How many packets the file's index has; only indices that stand in the header (MP4) can promise too many."""
    index = getattr(stream, "index_entries", None) if "mov" in stream.container.format.name.split(",") else None
    return len(index) if index is not None else 0


def _promised_seconds(stream: Stream) -> float | None:
    """How long the stream lasts by the tag that Matroska has for each, as in 00:00:04.000000000."""
    match = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))
    return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3]) if match else None


def _duration(container: Container, stream: Stream) -> float | None:
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / 1e6 if container.duration else None


def _shown_by(stream: Stream) -> Callable[[Packet], bool]:
    """Says whether a packet's frame is shown: an edit list may hide it, and VP8 has packets that are never shown."""
    if stream.codec_context.codec.canonical_name == "vp8":
        return lambda packet: not packet.is_discard and bool(memoryview(packet)[0] & 0x10)  # RFC 6386, section 9.1
    return lambda packet: not packet.is_discard


def _refreshed_by(stream: Stream) -> Callable[[Packet], bool]:
    """Says whether a keyframe's packet resets the decoder, by its first slice.

    Source: ITU-T H.264, table 7-1 (units 1 to 5 are slices, of which 5 is IDR); H.265, table 7-1 (0 to 31; 16 to 21 are
    random access points, whose leading pictures `_timed` looks for). In MP4 and Matroska a length precedes each unit.
    """
    header, codec = stream.codec_context.extradata or b"", stream.codec_context.codec.canonical_name
    if codec == "h264" and "444" in (stream.codec_context.pix_fmt or ""):
        # Old versions of x264 wrote these with a fault that decoders make up for; which version it is stands in the
        # first packet only.
        return lambda packet: False
    if codec == "h264" and len(header) > 4 and header[0] == 1:
        size, slices, good = (header[4] & 3) + 1, range(1, 6), range(5, 6)
        kind = lambda first: first & 0x1F  # noqa: E731
    elif codec == "hevc" and len(header) > 21 and header[0] == 1:
        size, slices, good = (header[21] & 3) + 1, range(0, 32), range(16, 22)
        kind = lambda first: first >> 1 & 0x3F  # noqa: E731
    else:
        return lambda packet: codec not in ("h264", "hevc")

    def refreshes(packet: Packet) -> bool:
        data, place = memoryview(packet), 0
        while place + size < len(data):
            unit = kind(data[place + size])
            if unit in slices:
                return unit in good
            place += size + int.from_bytes(data[place : place + size], "big")
        return False

    return refreshes


def _difference(reader: Any, layout: _Layout) -> str | None:
    """How decord's view of the file differs from what its packets say; None where it does not."""
    if len(reader) != len(layout.times):
        return f"decord counts {len(reader)} frames, the file has {len(layout.times)}"
    seconds = reader.get_frame_timestamp(range(len(reader)))[:, 0]
    if np.abs(seconds - seconds[0] - np.array(layout.seconds)).max() > SAME_TIME:
        return "decord sees its frames at other times"
    return None


# Reading with PyAV


def _opened(path: Path) -> Container:
    # A playlist by the name of a video must not fetch anything.
    container = late("av").open(str(path), options={"protocol_whitelist": "file"})
    for stream in container.streams.video:
        stream.thread_type = "NONE"  # loaders run a process for each core
    return container


def _decoded(container: Container, stream: Stream) -> Iterator[Frame]:
    """Frames from the present place on. Raises: VideoError at the first one that is damaged."""
    for frame in container.decode(stream):
        if frame.is_corrupt:  # the decoder made up what is missing, and the next frames build on it
            raise VideoError("its data is damaged")
        yield frame


def _first_frame(container: Container, stream: Stream) -> Frame:
    try:
        for frame in _decoded(container, stream):
            return frame
    except Exception as error:
        raise VideoError(f"frame 0 does not decode: {error}") from error
    raise VideoError("no frames")


def _mirrored(frame: Frame) -> bool:
    """Whether the file's matrix for display turns pictures over, which no rotation does."""
    matrix = frame.side_data.get(late("av").sidedata.sidedata.Type.DISPLAYMATRIX)
    if matrix is None:
        return False
    a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), np.int32).tolist()
    return a * d - b * c < 0


def _read_frames(path: Path, layout: _Layout, facts: VideoFacts, numbers: list[int]) -> np.ndarray:
    """The frames with these (sorted) numbers, as RGB. Raises: VideoError naming file and first missing one."""
    frames: dict[int, np.ndarray] = {}
    for starts in (layout.starts, ()):  # should the decoder not reach a frame from its keyframe, then from the start
        reason = "the stream ends before it"
        try:
            for index, frame in _frames(path, layout, starts, [index for index in numbers if index not in frames]):
                frames[index] = _picture(frame, facts)
        except Exception as error:  # whatever ffmpeg reports
            reason = _first_line(error, path)
            break
        if len(frames) == len(numbers):
            break
    missing = [index for index in numbers if index not in frames]
    if missing:
        raise VideoError(
            f"{path}: frame {missing[0]} of {facts.frames} cannot be decoded ({reason}), the file may be truncated or "
            f"damaged; {REENCODE}"
        )
    return np.stack([frames[index] for index in numbers])


def _frames(
    path: Path, layout: _Layout, starts: tuple[tuple[int, int], ...], numbers: list[int]
) -> Iterator[tuple[int, Frame]]:
    """(number, frame) of each of the frames with these `numbers`, as far as they decode."""
    with _opened(path) as container:
        stream = container.streams[layout.stream]
        if not layout.times:
            chosen = set(numbers)
            for index, frame in enumerate(_decoded(container, stream)):
                if index in chosen:
                    yield index, frame
                if index >= numbers[-1]:
                    return
            return
        for start, group in _by_start(numbers, starts):
            if start is not None:
                container.seek(start, stream=stream)
            yield from _until(_decoded(container, stream), {layout.times[index]: index for index in group})


def _by_start(numbers: list[int], starts: tuple[tuple[int, int], ...]) -> Iterator[tuple[int | None, list[int]]]:
    """Groups of frames that one keyframe serves, each with the time to seek to; None where decoding begins with the
    file (also for what stands before the first keyframe)."""
    firsts = [number for number, _ in starts]
    for place, group in groupby(numbers, key=lambda index: bisect_right(firsts, index)):
        yield (starts[place - 1][1] if place > 1 else None), list(group)


def _until(frames: Iterable[Frame], numbers: dict[int, int]) -> Iterator[tuple[int, Frame]]:
    """The frames whose times are keys of `numbers`, each with its number; ends with the last of them."""
    last = max(numbers)
    for frame in frames:
        if frame.pts in numbers:
            yield numbers[frame.pts], frame
        if frame.pts is not None and frame.pts >= last:
            return


def _picture(frame: Frame, facts: VideoFacts) -> np.ndarray:
    _check_size(frame, facts)
    pixels = frame.to_ndarray(format="rgb24")
    return np.rot90(pixels[::-1] if facts.mirrored else pixels, facts.rotation // 90)


def _check_size(frame: Frame, facts: VideoFacts) -> None:
    width, height = (facts.height, facts.width) if facts.rotation % 180 else (facts.width, facts.height)
    if (frame.width, frame.height) != (width, height):
        raise VideoError(f"it is {frame.width}x{frame.height} pixels large, the video's first {width}x{height}")


def _check_every_frame(video: Video) -> None:
    """Raises: VideoError without the file's name; whatever PyAV raises."""
    if video.facts.damage:
        raise VideoError(video.facts.damage)
    decoded = 0
    with _opened(video.path) as container:
        try:
            for frame in _decoded(container, container.streams[video._layout.stream]):
                _check_size(frame, video.facts)
                decoded += 1
        except Exception as error:
            raise VideoError(f"frame {decoded} does not decode: {_first_line(error, video.path)}") from error
    if decoded != len(video):
        raise VideoError(f"{decoded} of {len(video)} frames decode")


# What an error says


def _named_errors(path: Path, work: Callable[[], Any]) -> Any:
    """The result of `work`; whatever it raises becomes a VideoError with the file's name and the way out."""
    try:
        return work()
    except Exception as error:
        if isinstance(error, VideoError) and str(error) == NO_STREAM:
            raise VideoError(f"{path}: {NO_STREAM}; give a video file") from None
        raise VideoError(
            f"{path}: cannot be decoded as a video, it may be truncated or damaged ({_first_line(error, path)}); "
            f"{REENCODE}"
        ) from error


def _first_line(error: Exception, path: Path) -> str:
    """The sentence of a decoder's error, without time, source position, stack trace and path."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    text = re.sub(r"(\[[\d:]+\] )?\S+\.cc:\d+: |\[Errno -?\d+\] ", "", text)
    return text.replace(f": '{path}'", "").replace(str(path), "the file")[:160]


def _pyav_name() -> str:
    return f"PyAV {late('av').__version__}"
