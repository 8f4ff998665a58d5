"""Walking a data set before a long run: every listed video is looked at, and what is wrong is counted and listed.

Each file is opened, which reads it once, and its first, middle and last frame are decoded; `whole=true` decodes every
frame, which also finds damage in between. MP4, MOV and AVI files say how long they should be, which is compared.
Files are opened in processes of their own: one that brings its decoder down is named like any other.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness.clips.decoding import VideoError, VideoFacts, open_video, probe
from harness.clips.reading import opened
from harness.datasets import DataError, DataSet, Item, readable
from harness.datasets.frames import picture_names, read_frames
from harness.processes import pool
from harness.progress import duration
from harness.spec.sampling import Sampling, training_indices

PROBLEMS = {
    "missing": "no such file or folder",
    "unreadable": "there, but this user may not read it",
    "empty": "0 bytes, or a folder without pictures",
    "undecodable": "not a video, or damaged so that it does not open",
    "truncated": "opens, but some of its frames do not decode, or it is shorter than it says",
    "outside": "the labelled seconds lie outside of the file",
    "crash": "brings the decoder down",
}
BATCH = 8  # files a worker is given at a time
HEAD, WHOLE = 1 << 16, -1  # how many bytes are read to tell files of one size apart
PICTURES_AT_ONCE = 32


class Job(NamedTuple):
    """What a worker is told about one item."""

    path: str
    item: Item
    whole: bool


@dataclass(frozen=True)
class Look:
    """What was found at one item: `problem` is a key of `PROBLEMS`, or None where all is well; `facts` once opened."""

    problem: str | None = None
    reason: str = ""
    bytes: int = 0
    facts: VideoFacts | None = None


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
        if job.item.frames is not None:
            return _look_at_pictures(job)
        if path.is_dir():
            return Look("undecodable", "a folder, where the list has a video; a list that says frames reads pictures")
        if not os.access(path, os.R_OK):
            return Look("unreadable", PROBLEMS["unreadable"], size)
        return _look_at_video(job, size) if size else Look("empty", "0 bytes")
    except (FileNotFoundError, NotADirectoryError):
        return Look("missing", PROBLEMS["missing"])
    except OSError as error:
        possible = error.errno != errno.ENAMETOOLONG  # no file can have such a name
        return Look("unreadable" if possible else "missing", error.strerror or str(error))
    except Exception as error:  # whatever a library raises about a file is a fact about that file, and ends no walk
        return Look("undecodable", f"{type(error).__name__}: {_plain(error, job.path)}")


def _look_at_video(job: Job, size: int) -> Look:
    short = missing_bytes(job.path)
    early = f"the file lacks {short} of its bytes" if short else ""
    facts = None
    try:
        with open_video(job.path) as video:
            facts = video.facts
            if facts.damage:
                return Look("truncated", facts.damage, size, facts)
            video.read(sorted({0, len(video) // 2, len(video) - 1}))
            facts = video.facts  # decord may have failed on the way
        if job.whole:
            probe(job.path, whole=True)
    except VideoError as error:
        return Look("truncated" if facts or short else "undecodable", early or _plain(error, job.path), size, facts)
    if short:
        return Look("truncated", early, size, facts)
    outside = _outside(job.item, facts)
    return Look("outside" if outside else None, outside, size, facts)


def _outside(item: Item, facts: VideoFacts) -> str:
    """Why the listed seconds are not in the file; nothing where they are."""
    if item.start is None and item.end is None:
        return ""
    if not facts.fps:
        return "only a part is listed, in seconds, but the file states no frame rate"
    last = facts.frames / facts.fps if facts.duration is None else facts.duration
    return f"labelled from {item.start:g} s, but it lasts {last:.2f} s" if (item.start or 0) >= last else ""


def _look_at_pictures(job: Job) -> Look:
    folder = Path(job.path)
    if not folder.is_dir():
        return Look("undecodable", "a file, where the list has a folder of pictures", folder.stat().st_size)
    try:
        names = picture_names(folder)
    except DataError as error:
        return Look("empty", _plain(error, job.path))
    total, size = len(names), sum((folder / name).stat().st_size for name in names)
    facts = VideoFacts(total, None, 0, 0, 0, "pictures", None, "Pillow")
    if total < job.item.frames:
        return Look("truncated", f"holds {total} of {job.item.frames} pictures", size, facts)
    parts = [sorted({0, total // 2, total - 1})]
    if job.whole:
        parts = [range(first, min(first + PICTURES_AT_ONCE, total)) for first in range(0, total, PICTURES_AT_ONCE)]
    try:
        for part in parts:
            height, width = read_frames(folder, part).shape[1:3]
    except DataError as error:
        return Look("undecodable", _plain(error, job.path), size, facts)
    return Look(None, "", size, replace(facts, width=width, height=height))


def missing_bytes(path: str | Path) -> int:
    """How many bytes an MP4, MOV or AVI file lacks by what its own headers say; 0 for other files and whole ones."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(12)
        if head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"AVIX"):
            return max(0, int.from_bytes(head[4:8], "little") + 8 - size)
        if head[4:8] not in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            return 0
        position = 0
        while position + 8 <= size:
            file.seek(position)
            head = file.read(16)
            length = int.from_bytes(head[:4], "big")
            if length == 1:
                length = int.from_bytes(head[8:16], "big")
            if length == 0 or length < 8:  # up to the end of the file, or not a box
                return 0
            position += length
    return max(0, position - size)


def _plain(error: Exception, path: str) -> str:
    text, path = readable(str(error)), readable(path)
    for prefix in (f"clip={path}: ", f"{path}: "):
        text = text.removeprefix(prefix)
    return text.partition("; re-encode")[0].replace(path, "the file")[:300]


def jobs(dataset: DataSet, whole: bool) -> list[Job]:
    return [Job(str(dataset.path(item)), item, whole) for item in dataset.items]


def looks(work: Sequence[Job], workers: int) -> Iterator[tuple[int, Look]]:
    """Every job's look with its place, as they come. With 0 workers in this process, one after the other."""
    if workers == 0:
        for place, job in enumerate(work):
            yield place, look_at(job)
        return
    waiting = deque(range(first, min(first + BATCH, len(work))) for first in range(0, len(work), BATCH))
    while waiting:
        running: dict[Future, range] = {}
        with pool(workers) as processes:
            try:
                while waiting or running:
                    while waiting and len(running) < 3 * workers:
                        running[processes.submit(_look_at_all, [work[place] for place in waiting[0]])] = waiting[0]
                        waiting.popleft()  # not before: a broken pool takes nothing
                    for done in wait(running, return_when=FIRST_COMPLETED).done:
                        answers = done.result()
                        yield from zip(running.pop(done), answers, strict=True)
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
    return {readable(path): count for (path, _, _), count in counts.items() if count > 1}


def leaks(train: DataSet, tested: DataSet) -> list[str]:
    """Paths of the training list that another split lists too, with seconds in common where lists cut them."""
    cuts: dict[str, list[Item]] = defaultdict(list)
    for item in train.items:
        cuts[item.path].append(item)
    return sorted({item.name for item in tested.items if any(_overlap(item, cut) for cut in cuts.get(item.path, ()))})


def _overlap(a: Item, b: Item) -> bool:
    infinity = float("inf")
    first, last = max(a.start or 0, b.start or 0), min(a.end or infinity, b.end or infinity)
    return first < last


def same_content(train: Walk, tested: Walk) -> list[tuple[str, str]]:
    """Pairs of a training video and one of another split, differently named, with the same bytes."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for item, look in train.seen:
        if look.bytes and item.frames is None:
            by_size[look.bytes].append(train.dataset.path(item))

    @cache
    def digest(path: Path, length: int) -> str:
        try:
            with path.open("rb") as file:
                return hashlib.sha256(file.read(length)).hexdigest()
        except OSError:  # gone since it was looked at: equal to no other
            return str(path)

    pairs = []
    for item, look in tested.seen:
        mine = tested.dataset.path(item)
        for theirs in by_size.get(look.bytes, ()) if item.frames is None else ():
            # Most files of one size differ in their first bytes already; only then is the whole read.
            if theirs != mine and all(digest(mine, length) == digest(theirs, length) for length in (HEAD, WHOLE)):
                pairs.append((readable(str(theirs)), readable(str(mine))))
                break
    return pairs


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Smallest, 5 %, median, 95 % and largest of some values; None without any."""
    if not values:
        return None
    names = ("min", "p5", "median", "p95", "max")
    return dict(zip(names, (float(v) for v in np.quantile(values, (0, 0.05, 0.5, 0.95, 1))), strict=True))


def decoding_seconds(walk: Walk, frames: int, stride: int, clips: int) -> list[float]:
    """Seconds to open and decode one training clip each of some good videos, in this process, evenly drawn."""
    good = [item for item, look in walk.seen if look.problem is None]
    sampling, random = Sampling(frames=frames, stride=stride), np.random.default_rng(0)
    seconds = []
    for place in sorted({int(place) for place in np.linspace(0, len(good) - 1, clips + 1)} if good else ()):
        start = time.perf_counter()
        try:
            with opened(walk.dataset, good[place]) as source:
                source.read(training_indices(source.total, sampling, random))
        except VideoError:  # counted by the walk where it looked; here it would only bend the time
            continue
        seconds.append(time.perf_counter() - start)
    return seconds[1:] or seconds  # the first one loads the decoder


def walk(walk: Walk, whole: bool, workers: int, say: Callable[[str], None]) -> None:
    """Looks at every item and writes what it finds into the walk, so that an interrupted one keeps what it has."""
    begun, total, problems = time.monotonic(), len(walk.looks), 0
    for done, (place, look) in enumerate(looks(jobs(walk.dataset, whole), workers), 1):
        walk.looks[place] = look
        problems += bool(look.problem)
        remaining = duration((time.monotonic() - begun) / done * (total - done))
        say(f"{walk.dataset.split}: {done} of {total} looked at, {_count(problems, 'problem')}, about {remaining} left")


def report(
    walks: Sequence[Walk], complete: bool, estimate: dict[str, Any] | None, frames: int, stride: int
) -> dict[str, Any]:
    """Everything that was found, as plain data: what `out=` writes and `text` shows."""
    train = next((walk for walk in walks if walk.dataset.split == "train"), None)
    splits, warnings = {}, []
    for walk in walks:
        name, dataset = walk.dataset.split, walk.dataset
        splits[name] = facts = _split_report(walk, frames * stride)
        causes = [
            (facts["repeated"], "{} listed more than once, for instance {first}", "path"),
            (facts["balance"]["empty"], "{} without a video: {some}", "class"),
        ]
        if train is not None and walk is not train:
            absent = {item.label for item in dataset.items} - {item.label for item in train.dataset.items}
            facts["absent_in_train"] = [dataset.classes[label] for label in sorted(absent)]
            facts["leaks"] = leaks(train.dataset, dataset)
            facts["same_content"] = same_content(train, walk)
            twins = [f"{mine} = {theirs}" for theirs, mine in facts["same_content"]]
            causes += [
                (facts["absent_in_train"], "{} that train does not have: {some}", "class"),
                (facts["leaks"], "a leak: {} also in train, for instance {first}", "path"),
                (twins, "a leak: {} with the bytes of a training file, for instance {first}", "file"),
            ]
        for cases, wording, noun in causes:
            if cases:
                sentence = wording.format(_count(len(cases), noun), first=next(iter(cases)), some=_some(list(cases)))
                warnings.append(f"{name}: {sentence}")
    first = walks[0].dataset
    return {
        "name": first.name, "root": str(first.root), "source": first.source, "sided": first.sided, "complete": complete,
        "splits": splits, "warnings": warnings, "estimate": estimate,
        "problems": sum(sum(split["problems"].values()) for split in splits.values()),
    }  # fmt: skip


def _split_report(walk: Walk, span: int) -> dict[str, Any]:
    dataset, looked_at = walk.dataset, walk.seen
    good = [look.facts for _, look in looked_at if look.problem is None]
    kinds = Counter(look.problem for _, look in looked_at if look.problem)
    fallbacks = [look.facts.fallback for _, look in looked_at if look.facts and look.facts.fallback]
    return {
        "digest": dataset.digest,
        "listed": len(dataset.items),
        "looked_at": len(looked_at),
        "good": len(good),
        "available": len(looked_at) - kinds["missing"] - kinds["empty"],
        "problems": {kind: kinds[kind] for kind in PROBLEMS if kinds[kind]},
        "files": [{"path": item.name, "problem": look.problem, "reason": look.reason} for item, look in walk.problems],
        "balance": balance(dataset),
        "repeated": repeated(dataset),
        "bytes": sum(look.bytes for _, look in looked_at),
        "seconds": spread([facts.duration for facts in good if facts.duration is not None]),
        "frames": spread([facts.frames for facts in good]),
        "shorter_than_clip": sum(facts.frames < span for facts in good),
        "one_frame": sum(facts.frames == 1 for facts in good),
        "clip_span": span,
        "sizes": _common(f"{facts.width}x{facts.height}" for facts in good),
        "frame_rates": _common(f"{facts.fps:.4g}" for facts in good if facts.fps),
        "codecs": _common(facts.codec for facts in good),
        "decoders": _common(facts.decoder for facts in good),
        "fallbacks": len(fallbacks),
        # A reason without what differs from file to file, so that equal ones can be counted.
        "fallback_reasons": _common(re.sub(r"\d+", "n", reason.partition(":")[0]) for reason in fallbacks),
    }


def _common(values: Any) -> dict[str, int]:
    return dict(Counter(values).most_common())


def text(report: dict[str, Any], show: int) -> str:
    """The report for people: a few lines a split, the first `show` problems, warnings, the estimate, a verdict."""
    lines = [f"{report['name']} in {report['root']}"]
    if report["sided"]:
        lines.append("left and right matter here (or nobody said otherwise: sided): clips are not flipped")
    for name, split in report["splits"].items():
        classes = split["balance"]
        lines += [
            "",
            f"{name}: {split['listed']} videos in {classes['classes']} classes "
            f"(min {classes['min']}, median {classes['median']:g}, max {classes['max']} a class), "
            f"digest {split['digest'][:12]}",
        ]
        looked_at, short = split["looked_at"], split["shorter_than_clip"]
        told = [
            ("looked at", f"{looked_at} of {split['listed']}" if looked_at < split["listed"] else ""),
            ("good", f"{split['good']} of {looked_at}, {split['bytes'] / 2**30:.2f} GiB in all"),
            *((kind, f"{count}  ({PROBLEMS[kind]})") for kind, count in split["problems"].items()),
            *(("length", f"{_quantiles(split[key])} {unit} (min / 5 % / median / 95 % / max)")
              for key, unit in (("seconds", "s"), ("frames", "frames")) if split[key]),
            ("short", f"{short} with fewer than the {split['clip_span']} frames of a clip's span" if short else ""),
            ("one frame", split["one_frame"] or ""),
            *((key.replace("_", " "), _counts(split[key])) for key in ("sizes", "frame_rates", "codecs", "decoders")),
            ("not decord", f"{split['fallbacks']} are read by PyAV instead: {_counts(split['fallback_reasons'])}"
             if split["fallbacks"] else ""),
        ]  # fmt: skip
        lines += [f"  {name:<11} {value}" for name, value in told if value]
        lines += [f"    {file['problem']}: {file['path']}: {file['reason']}" for file in split["files"][:show]]
        if len(split["files"]) > show:
            lines.append(f"    ... and {len(split['files']) - show} more (out=FILE.json lists all)")
    lines += ["", *statistics(report), ""]
    lines += [f"warning: {warning}" for warning in report["warnings"]]
    if report["estimate"]:
        lines.append(estimate_text(report["estimate"]))
    problems = _count(report["problems"], "problem") if report["problems"] else "no problems"
    verdict = f"{problems}, {_count(len(report['warnings']), 'warning')}"
    lines.append(verdict if report["complete"] else f"interrupted; so far: {verdict}")
    return "\n".join(lines)


def statistics(report: dict[str, Any]) -> list[str]:
    """The columns of MultiTrain's Table 1: videos that are there, and how many of those listed that are, by split."""
    splits = {name: split for name, split in report["splits"].items() if split["looked_at"]}
    shares = [f"{100 * split['available'] / split['looked_at']:.1f}" for split in splits.values()]
    heads = [f"{name}, videos | {name}, available, %" for name in splits]
    cells = [f"{split['available']} | {share}" for split, share in zip(splits.values(), shares, strict=True)]
    rule = "| --- |" + " ---: | ---: |" * len(splits)
    table = [f"| data set | {' | '.join(heads)} |", rule, f"| {report['name']} | {' | '.join(cells)} |"]
    return table if splits else []


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


def estimate_text(estimate: dict[str, Any]) -> str:
    return (
        f"estimate: decoding one epoch of {estimate['videos']} videos takes about "
        f"{duration(estimate['epoch_seconds'])} with {_count(estimate['workers'], 'worker')} "
        f"(clips of {estimate['frames']}x{estimate['stride']} frames, "
        f"{estimate['seconds_per_clip'] * 1000:.0f} ms each, mean of n = {estimate['clips']} in one process, "
        "from files read just before; augmentation and training come on top)"
    )


def _count(number: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _quantiles(values: dict[str, float]) -> str:
    return " / ".join(f"{value:.4g}" for value in values.values())


def _counts(values: dict[str, int], most: int = 4) -> str:
    parts = [f"{value} ({count})" for value, count in list(values.items())[:most]]
    return ", ".join(parts) + (f" and {len(values) - most} more" if len(values) > most else "")
