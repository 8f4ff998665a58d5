"""Walking a data set before a long run: every listed video is looked at, and what is wrong is counted and listed.

Each file is opened, which reads it once, and its first, middle and last frame are decoded; `whole=true` decodes every
frame, which also finds damage in between. MP4, MOV and AVI files say how long they should be, which is compared.
Files are opened in processes of their own: one that brings its decoder down is named like any other.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harness.datasets import DataError, DataSet, Item
from harness.processes import pool
from harness.progress import duration

PROBLEMS = {
    "missing": "no such file or folder",
    "unreadable": "there, but this user may not read it",
    "empty": "0 bytes, or a folder without pictures",
    "undecodable": "not a video, or damaged so that it does not open",
    "truncated": "opens, but some of its frames do not decode, or it is shorter than it says",
    "outside": "the labelled seconds lie outside of the file",
    "crash": "brings the decoder down",
}
FACTS = ("frames", "fps", "duration", "width", "height", "codec", "decoder", "fallback")  # of an opened video
BATCH = 8  # files a worker is given at a time
HEAD = 1 << 16  # bytes by which files of one size are told apart


@dataclass(frozen=True)
class Job:
    """What a worker is told about one item."""

    path: str
    frames: int | None
    start: float | None
    end: float | None
    whole: bool


@dataclass(frozen=True)
class Look:
    """What was found at one item: `problem` is a key of `PROBLEMS`, or None where all is well."""

    problem: str | None = None
    reason: str = ""
    bytes: int = 0
    frames: int | None = None
    fps: float | None = None
    duration: float | None = None
    width: int | None = None
    height: int | None = None
    codec: str | None = None
    decoder: str | None = None
    fallback: str | None = None


@dataclass
class Walk:
    """One split as far as it was walked: looks in the order of `dataset.items`, None where the walk did not come."""

    dataset: DataSet
    looks: list[Look | None] = field(init=False)

    def __post_init__(self) -> None:
        self.looks = [None] * len(self.dataset.items)

    @property
    def seen(self) -> list[tuple[Item, Look]]:
        return [(item, look) for item, look in zip(self.dataset.items, self.looks, strict=True) if look is not None]

    @property
    def problems(self) -> list[tuple[Item, Look]]:
        return [(item, look) for item, look in self.seen if look.problem]


def look_at(job: Job) -> Look:
    """Opens one item as a run would, and says what is wrong with it. Never raises for the item's sake."""
    path = Path(job.path)
    try:
        size = path.stat().st_size
        if job.frames is not None:
            return _look_at_pictures(job)
        if path.is_dir():
            return Look("undecodable", "a folder, where the list has a video; a list that says frames reads pictures")
        if not os.access(path, os.R_OK):
            return Look("unreadable", PROBLEMS["unreadable"], size)
        return _look_at_video(job, size) if size else Look("empty", "0 bytes")
    except (FileNotFoundError, NotADirectoryError):
        return Look("missing", PROBLEMS["missing"])
    except OSError as error:
        return Look("unreadable", error.strerror or str(error))
    except Exception as error:  # whatever a library raises about a file is a fact about that file, and ends no walk
        return Look("undecodable", f"{type(error).__name__}: {_plain(error, job.path)}")


def _look_at_video(job: Job, size: int) -> Look:
    from harness.clips.decoding import VideoError, open_video, probe

    short = missing_bytes(job.path)
    early = f"the file lacks {short} of its bytes" if short else ""
    opened: dict[str, Any] = {}
    try:
        with open_video(job.path) as video:
            opened = {name: getattr(video.facts, name) for name in FACTS}
            if video.facts.damage:
                return Look("truncated", video.facts.damage, size, **opened)
            video.read(sorted({0, len(video) // 2, len(video) - 1}))
            opened = {name: getattr(video.facts, name) for name in FACTS}  # decord may have failed on the way
        if job.whole:
            probe(job.path, whole=True)
    except VideoError as error:
        return Look("truncated" if opened or short else "undecodable", early or _plain(error, job.path), size, **opened)
    if short:
        return Look("truncated", early, size, **opened)
    last = opened["duration"]
    if last is None and opened["fps"]:
        last = opened["frames"] / opened["fps"]
    if (job.start is not None or job.end is not None) and not opened["fps"]:
        return Look("outside", "only a part is listed, in seconds, but the file states no frame rate", size, **opened)
    if last is not None and job.start is not None and job.start >= last:
        return Look("outside", f"labelled from {job.start:g} s, but it lasts {last:.2f} s", size, **opened)
    return Look(None, "", size, **opened)


def _look_at_pictures(job: Job) -> Look:
    from harness.datasets.frames import picture_names, read_frames

    folder = Path(job.path)
    if not folder.is_dir():
        return Look("undecodable", "a file, where the list has a folder of pictures", folder.stat().st_size)
    try:
        names = picture_names(folder)
    except DataError as error:
        return Look("empty", _plain(error, job.path))
    size = sum((folder / name).stat().st_size for name in names)
    if job.frames is not None and len(names) < job.frames:
        return Look("truncated", f"holds {len(names)} of {job.frames} pictures", size, len(names))
    try:
        total = len(names)
        for first in range(0, total if job.whole else 1, 32):
            indices = range(first, min(first + 32, total)) if job.whole else sorted({0, total // 2, total - 1})
            pictures = read_frames(folder, indices)
    except DataError as error:
        return Look("undecodable", _plain(error, job.path), size, len(names))
    height, width = pictures.shape[1:3]
    return Look(None, "", size, len(names), width=width, height=height, codec="pictures", decoder="Pillow")


def missing_bytes(path: str | Path) -> int:
    """How many bytes an MP4, MOV or AVI file lacks by what its own headers say; 0 for other files and whole ones."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(12)
        if head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"AVIX"):
            return max(0, int.from_bytes(head[4:8], "little") + 8 - size)
        if head[4:8] not in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            return 0
        at = 0
        while at + 8 <= size:
            file.seek(at)
            head = file.read(16)
            length = int.from_bytes(head[:4], "big")
            if length == 1:
                length = int.from_bytes(head[8:16], "big")
            if length == 0 or length < 8:  # up to the end of the file, or not a box
                return 0
            at += length
    return max(0, at - size)


def _plain(error: Exception, path: str) -> str:
    text = str(error)
    for prefix in (f"clip={path}: ", f"{path}: "):
        text = text.removeprefix(prefix)
    return text.partition("; re-encode")[0].replace(path, "the file")[:300]


def jobs(dataset: DataSet, whole: bool) -> list[Job]:
    return [Job(str(dataset.path(item)), item.frames, item.start, item.end, whole) for item in dataset.items]


def looks(work: Sequence[Job], workers: int) -> Iterator[tuple[int, Look]]:
    """Every job's look with its place, as they come. With 0 workers in this process, one after the other."""
    if workers == 0:
        for place, job in enumerate(work):
            yield place, look_at(job)
        return
    left = deque(range(first, min(first + BATCH, len(work))) for first in range(0, len(work), BATCH))
    while left:
        running: dict[Future, range] = {}
        with pool(workers) as processes:
            try:
                while left or running:
                    while left and len(running) < 3 * workers:
                        running[processes.submit(_look_at_all, [work[place] for place in left[0]])] = left[0]
                        left.popleft()  # not before: a broken pool takes nothing
                    for done in wait(running, return_when=FIRST_COMPLETED).done:
                        found = done.result()
                        yield from zip(running.pop(done), found, strict=True)
            except BrokenExecutor:
                suspects = [place for batch in running.values() for place in batch]
                for place in suspects:
                    yield place, _look_alone(work[place])


def _look_at_all(batch: Sequence[Job]) -> list[Look]:
    return [look_at(job) for job in batch]


def _look_alone(job: Job) -> Look:
    """One job in a process of its own, so that a crash is this file's."""
    try:
        with pool(1) as process:
            return process.submit(look_at, job).result()
    except BrokenExecutor:
        return Look("crash", PROBLEMS["crash"])


def balance(dataset: DataSet) -> dict[str, Any]:
    """Videos per class: the smallest, median and largest number, and which classes have none."""
    counts = Counter(item.label for item in dataset.items)
    numbers = sorted(counts.get(label, 0) for label in range(len(dataset.classes)))
    return {
        "classes": len(dataset.classes),
        "min": numbers[0],
        "median": float(np.median(numbers)),
        "max": numbers[-1],
        "empty": [name for label, name in enumerate(dataset.classes) if not counts.get(label)],
    }


def repeated(dataset: DataSet) -> dict[str, int]:
    """Paths that are listed more than once in one split with the same cut, and how often."""
    counts = Counter((item.path, item.start, item.end) for item in dataset.items)
    return {path: count for (path, _, _), count in counts.items() if count > 1}


def leaks(train: DataSet, other: DataSet) -> list[str]:
    """Paths of the training list that another split lists too, with seconds in common where lists cut them."""
    cuts: dict[str, list[Item]] = defaultdict(list)
    for item in train.items:
        cuts[item.path].append(item)
    return sorted({item.path for item in other.items if any(_overlap(item, one) for one in cuts.get(item.path, ()))})


def _overlap(a: Item, b: Item) -> bool:
    infinity = float("inf")
    first, last = max(a.start or 0, b.start or 0), min(a.end or infinity, b.end or infinity)
    return first < last


def same_content(train: Walk, other: Walk) -> list[tuple[str, str]]:
    """Pairs of a training video and one of another split, differently named, with the same bytes."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for item, look in train.seen:
        if look.bytes and item.frames is None:
            by_size[look.bytes].append(train.dataset.path(item))
    pairs = []
    digests: dict[tuple[Path, int | None], str] = {}
    for item, look in other.seen:
        if item.frames is not None or look.bytes not in by_size:
            continue
        mine = other.dataset.path(item)
        for theirs in by_size[look.bytes]:
            if theirs != mine and all(
                _digest(mine, length, digests) == _digest(theirs, length, digests) for length in (HEAD, None)
            ):
                pairs.append((str(theirs), str(mine)))
                break
    return pairs


def _digest(path: Path, length: int | None, known: dict[tuple[Path, int | None], str]) -> str:
    if (path, length) not in known:
        try:
            with path.open("rb") as file:
                if length is None:
                    known[path, length] = hashlib.file_digest(file, "sha256").hexdigest()
                else:
                    known[path, length] = hashlib.sha256(file.read(length)).hexdigest()
        except OSError:  # gone since it was looked at: equal to no other
            known[path, length] = str(path)
    return known[path, length]


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Smallest, 5 %, median, 95 % and largest of some values; None without any."""
    if not values:
        return None
    names = ("min", "p5", "median", "p95", "max")
    return dict(zip(names, (float(v) for v in np.quantile(values, (0, 0.05, 0.5, 0.95, 1))), strict=True))


def decoding_seconds(walk: Walk, frames: int, stride: int, clips: int) -> list[float]:
    """Seconds to open and decode one training clip each of some good videos, in this process, evenly drawn."""
    from harness.clips.decoding import VideoError, open_video
    from harness.datasets.frames import read_frames
    from harness.spec.sampling import Sampling, training_indices

    good = [item for item, look in walk.seen if look.problem is None]
    if not good:
        return []
    sampling, random = Sampling(frames=frames, stride=stride), np.random.default_rng(0)
    chosen = [good[place] for place in sorted({int(place) for place in np.linspace(0, len(good) - 1, clips + 1)})]
    seconds = []
    for item in chosen:
        path = walk.dataset.path(item)
        start = time.perf_counter()
        try:
            if item.frames is not None:
                read_frames(path, training_indices(item.frames, sampling, random))
            else:
                with open_video(path) as video:
                    video.read(training_indices(len(video), sampling, random))
        except (VideoError, DataError):  # counted by the walk where it looked; here it would only bend the time
            continue
        seconds.append(time.perf_counter() - start)
    return seconds[1:] or seconds  # the first one loads the decoder


class Progress:
    """How far the walk is and about how long the rest takes: a line that is overwritten, or one every half minute."""

    def __init__(self, total: int, what: str, stream: Any = None, clock: Callable[[], float] = time.monotonic):
        self.total, self.what, self.clock = total, what, clock
        self.stream = sys.stderr if stream is None else stream
        self.done = self.problems = 0
        self.begun = self.said = clock()
        self.live = self.stream.isatty()

    def step(self, problem: bool) -> None:
        self.done, self.problems = self.done + 1, self.problems + problem
        now = self.clock()
        if now - self.said >= (0.5 if self.live else 30) and self.done < self.total:
            self.said = now
            left = (now - self.begun) / self.done * (self.total - self.done)
            line = f"{self.what}: {self.done} of {self.total} looked at, {_count(self.problems, 'problem')}"
            line += f", about {duration(left)} left"
            print(f"\r{line:<100}" if self.live else line, end="" if self.live else "\n", file=self.stream, flush=True)

    def end(self) -> None:
        if self.live:
            print(f"\r{'':<100}\r", end="", file=self.stream, flush=True)


def walk(one: Walk, whole: bool, workers: int, progress: Progress) -> None:
    """Looks at every item and writes what it finds into the walk, so that an interrupted one keeps what it has."""
    try:
        for place, look in looks(jobs(one.dataset, whole), workers):
            one.looks[place] = look
            progress.step(bool(look.problem))
    finally:
        progress.end()


def report(
    walks: Sequence[Walk], complete: bool, estimate: dict[str, Any] | None, frames: int, stride: int
) -> dict[str, Any]:
    """Everything that was found, as plain data: what `out=` writes and `text` shows."""
    train = next((one for one in walks if one.dataset.split == "train"), None)
    splits, warnings = {}, []
    for one in walks:
        split = one.dataset.split
        splits[split] = _split_report(one, frames * stride)
        doubled = repeated(one.dataset)
        splits[split]["repeated"] = doubled
        if doubled:
            warnings.append(
                f"{split}: {_count(len(doubled), 'path')} listed more than once, for instance {next(iter(doubled))}"
            )
        empty = splits[split]["balance"]["empty"]
        if empty:
            warnings.append(f"{split}: {_count(len(empty), 'class')} without a video: {_some(empty)}")
        if train is not None and one is not train:
            known = {item.label for item in train.dataset.items}
            absent = sorted({item.label for item in one.dataset.items} - known)
            splits[split]["absent_in_train"] = [one.dataset.classes[label] for label in absent]
            if absent:
                names = splits[split]["absent_in_train"]
                warnings.append(f"{split}: {_count(len(absent), 'class')} that train does not have: {_some(names)}")
            splits[split]["leaks"] = leaks(train.dataset, one.dataset)
            splits[split]["same_content"] = same_content(train, one)
            shared, twins = leaks(train.dataset, one.dataset), same_content(train, one)
            splits[split]["leaks"], splits[split]["same_content"] = shared, twins
            if shared:
                warnings.append(
                    f"{split}: a leak: {_count(len(shared), 'path')} also in train, for instance {shared[0]}"
                )
            if twins:
                files = f"{_count(len(twins), 'file')} with the bytes of a training file"
                warnings.append(f"{split}: a leak: {files}, for instance {twins[0][1]} = {twins[0][0]}")
    first = walks[0].dataset
    return {
        "name": first.name, "root": str(first.root), "source": first.source, "sided": first.sided, "complete": complete,
        "splits": splits, "warnings": warnings, "estimate": estimate,
        "problems": sum(sum(split["problems"].values()) for split in splits.values()),
    }  # fmt: skip


def _split_report(one: Walk, span: int) -> dict[str, Any]:
    seen = one.seen
    good = [look for _, look in seen if look.problem is None]
    kinds = Counter(look.problem for _, look in seen if look.problem)
    return {
        "digest": one.dataset.digest,
        "listed": len(one.dataset.items),
        "looked_at": len(seen),
        "good": len(good),
        "problems": {kind: kinds[kind] for kind in PROBLEMS if kinds[kind]},
        "files": [{"path": item.path, "problem": look.problem, "reason": look.reason} for item, look in one.problems],
        "balance": balance(one.dataset),
        "bytes": sum(look.bytes for _, look in seen),
        "seconds": spread([look.duration for look in good if look.duration is not None]),
        "frames": spread([look.frames for look in good if look.frames is not None]),
        "shorter_than_clip": sum(1 for look in good if look.frames is not None and look.frames < span),
        "one_frame": sum(1 for look in good if look.frames == 1),
        "clip_span": span,
        "sizes": _common(f"{look.width}x{look.height}" for look in good if look.width),
        "frame_rates": _common(f"{look.fps:.4g}" for look in good if look.fps),
        "codecs": _common(look.codec for look in good if look.codec),
        "decoders": _common(look.decoder for look in good if look.decoder),
        "fallbacks": sum(1 for _, look in seen if look.fallback),
        "fallback_reasons": _common(_kind(look.fallback) for _, look in seen if look.fallback),
    }


def _kind(reason: str) -> str:
    """A reason without what differs from file to file, so that equal ones can be counted."""
    return re.sub(r"\d+", "n", reason.partition(":")[0])


def _common(values: Any) -> dict[str, int]:
    return dict(Counter(values).most_common())


def text(found: dict[str, Any], show: int) -> str:
    """The report for people: a few lines a split, the first `show` problems, warnings, the estimate, a verdict."""
    lines = [f"{found['name']} in {found['root']}"]
    if found["sided"]:
        lines.append("left and right matter here (or nobody said otherwise: sided): clips are not flipped")
    for name, split in found["splits"].items():
        classes = split["balance"]
        lines += [
            "",
            f"{name}: {split['listed']} videos in {classes['classes']} classes "
            f"(min {classes['min']}, median {classes['median']:g}, max {classes['max']} a class), "
            f"digest {split['digest'][:12]}",
        ]
        if split["looked_at"] < split["listed"]:
            lines.append(f"  looked at   {split['looked_at']} of {split['listed']}")
        lines.append(f"  good        {split['good']} of {split['looked_at']}, {split['bytes'] / 2**30:.2f} GiB in all")
        lines += [f"  {kind:<11} {count}  ({PROBLEMS[kind]})" for kind, count in split["problems"].items()]
        for key, unit in (("seconds", "s"), ("frames", "frames")):
            if split[key]:
                values = " / ".join(f"{value:.4g}" for value in split[key].values())
                lines.append(f"  length      {values} {unit} (min / 5 % / median / 95 % / max)")
        if split["shorter_than_clip"]:
            few = f"with fewer than the {split['clip_span']} frames of a clip's span"
            lines.append(f"  short       {split['shorter_than_clip']} {few}")
        if split["one_frame"]:
            lines.append(f"  one frame   {split['one_frame']}")
        for key, label in (
            ("sizes", "sizes"),
            ("frame_rates", "frames/s"),
            ("codecs", "codecs"),
            ("decoders", "decoders"),
        ):
            if split[key]:
                lines.append(f"  {label:<11} {_counts(split[key])}")
        if split["fallbacks"]:
            lines.append(
                f"  not decord  {split['fallbacks']} are read by PyAV instead: {_counts(split['fallback_reasons'])}"
            )
        lines += [f"    {file['problem']}: {file['path']}: {file['reason']}" for file in split["files"][:show]]
        if len(split["files"]) > show:
            lines.append(f"    ... and {len(split['files']) - show} more (out=FILE.json lists all)")
    lines.append("")
    lines += [f"warning: {warning}" for warning in found["warnings"]]
    if found["estimate"]:
        lines.append(estimate_text(found["estimate"]))
    problems, warnings = found["problems"], len(found["warnings"])
    start = "no problems" if not problems else _count(problems, "problem")
    verdict = f"{start}, {_count(warnings, 'warning')}"
    lines.append(verdict if found["complete"] else f"interrupted; so far: {verdict}")
    return "\n".join(lines)


def estimate(seconds: Sequence[float], videos: int, workers: int, frames: int, stride: int) -> dict[str, Any] | None:
    """About how long the decoding of one epoch takes, from the mean of a few clips; None without any."""
    if not seconds:
        return None
    mean = float(np.mean(seconds))
    return {
        "clips": len(seconds), "frames": frames, "stride": stride, "seconds_per_clip": mean,
        "median_seconds_per_clip": float(np.median(seconds)), "videos": videos, "workers": max(1, workers),
        "epoch_seconds": mean * videos / max(1, workers),
    }  # fmt: skip


def estimate_text(found: dict[str, Any]) -> str:
    return (
        f"estimate: decoding one epoch of {found['videos']} videos takes about {duration(found['epoch_seconds'])} with "
        f"{_count(found['workers'], 'worker')} (clips of {found['frames']}x{found['stride']} frames, "
        f"{found['seconds_per_clip'] * 1000:.0f} ms each, mean of n = {found['clips']} in one process, from files read "
        "just before; augmentation and training come on top)"
    )


def _count(number: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _counts(values: dict[str, int], most: int = 4) -> str:
    shown = [f"{value} ({count})" for value, count in list(values.items())[:most]]
    return ", ".join(shown) + (f" and {len(values) - most} more" if len(values) > most else "")
