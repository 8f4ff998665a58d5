"""The rendered clips on disk: made once, by several processes, resumable, whole or not there.

<cache>/motion-v1/train/<class>/0007.mp4     every file is renamed into place when it is whole
<cache>/motion-v1/train.csv                  `path,label`, so that the folder can also be given as a data set itself
<cache>/motion-v1/train.json                 what each clip shows; written last, so it says that the split is whole
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from harness.datasets import DataError
from harness.motion import photographs
from harness.motion.drawing import pictures
from harness.motion.encoding import encode
from harness.motion.scenes import REPERTOIRES, Repertoire, Scene, scene
from harness.processes import pool
from harness.progress import line
from records import provenance
from records.record import write_bytes, write_json, write_text

FORMAT = 3  # raised whenever a pixel, a name or a label changes: other clips then lie in another folder
SEED = 20211208
SPLIT_NUMBERS = {"train": 0, "val": 1, "test": 2}
PARALLEL = 16  # processes at most


@dataclass(frozen=True)
class Version:
    """The numbers of one rendered data set. Clips are square; both classes of a pair show the same scenes."""

    name: str
    size: int  # pixels
    frames: int
    rate: int  # pictures per second
    train: int  # clips of each class, as `val` and `test`
    val: int
    test: int
    scenes: str = "twelve"  # of REPERTOIRES

    @property
    def repertoire(self) -> Repertoire:
        return REPERTOIRES[self.scenes]

    def clips(self, split: str) -> int:
        return {"train": self.train, "val": self.val, "test": self.test}[split]


VERSIONS = {
    version.name: version
    for version in (
        Version("motion_small", size=32, frames=16, rate=8, train=200, val=30, test=50, scenes="eight"),
        Version("motion", size=64, frames=32, rate=16, train=84, val=20, test=30),
        Version("motion_large", size=128, frames=48, rate=24, train=500, val=50, test=100),
    )
}


def folder(version: Version, cache: str | Path | None = None) -> Path:
    """Where a rendered data set lies: in `cache`, else in $ATTENTION_ZOO_DATA, else in outputs/data."""
    place = Path(cache or os.environ.get("ATTENTION_ZOO_DATA") or Path("outputs") / "data")
    return place.expanduser() / f"{version.name}-v{FORMAT}"


def specification(version: Version, split: str) -> dict:
    """All that decides the pixels and labels of a split, apart from the photographs themselves."""
    numbers = asdict(version)
    del numbers["scenes"]  # the classes say as much
    return {
        "format": FORMAT,
        "seed": SEED,
        "split": split,
        **numbers,
        "classes": list(version.repertoire.classes),
        "photographs": list(photographs.PHOTOGRAPHS[split]),
    }


def drawn_scene(version: Version, split: str, pair: int, number: int) -> Scene:
    """Scene `number` of a pair of classes. The same on every machine."""
    seed = np.random.SeedSequence([SEED, SPLIT_NUMBERS[split], pair, number])
    random, repertoire = np.random.Generator(np.random.PCG64(seed)), version.repertoire
    return scene(repertoire.pairs[pair], split, random, version.size, version.frames, repertoire.calm)


def clip_path(version: Version, split: str, label: int, number: int) -> str:
    """Where a clip lies in the folder of its version."""
    return f"{split}/{version.repertoire.classes[label]}/{number:04d}.mp4"


def render_scene(version: Version, split: str, pair: int, number: int, root: Path) -> tuple[str, ...]:
    """Write the two clips of a scene: as drawn, and played backwards. Returns the photographs that they show."""
    drawn = drawn_scene(version, split, pair, number)
    forward = pictures(drawn, version.size)
    for label, played in ((2 * pair, forward), (2 * pair + 1, forward[::-1])):
        stream = io.BytesIO()
        encode(played, stream, version.rate, quality=22)
        write_bytes(stream.getvalue(), root / clip_path(version, split, label, number))
    return drawn.photographs


def ready(
    version: Version, split: str, cache: str | Path | None = None, say: Callable[[str], None] | None = None
) -> dict:
    """The manifest of a split that is whole on disk; what is missing is rendered first.

    Raises: DataError, where the folder holds other clips than this version's, or rendering fails.
    """
    if say is None:
        with line() as say:
            return ready(version, split, cache, say)
    root, expected = folder(version, cache), specification(version, split)
    try:
        manifest = _whole(root, split, expected)
        if manifest is not None:  # without a lock, so that a folder that may only be read will do
            return manifest
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / f".{split}.lock")
        try:
            acquired = lock.acquire(timeout=0.2)
        except Timeout:
            say(f"{version.name}: another process renders the {split} clips; waiting for it")
            acquired = lock.acquire()
        with acquired:
            return _whole(root, split, expected) or _render(version, split, root, expected, say)
    except OSError as error:
        raise DataError(
            f"{root}: the clips of {version.name} cannot be read or written there ({error}); give another folder with "
            "cache=FOLDER, or set ATTENTION_ZOO_DATA"
        ) from error


def _whole(root: Path, split: str, expected: dict) -> dict | None:
    """The manifest, if all of its clips are there at the size that they were written with. Raises: DataError."""
    manifest = _read(root / f"{split}.json")
    if manifest is None:
        return None
    different = [name for name, value in expected.items() if manifest.get(name) != value]
    if different:
        name = different[0]
        raise DataError(
            f"{root} holds other clips than this version makes ({split}.json: {name} is {manifest.get(name)!r}, here "
            f"it is {expected[name]!r}); remove the folder to render it anew, or give another one with cache=FOLDER"
        )
    return manifest if all(_size(root / clip["path"]) == clip["bytes"] for clip in manifest["clips"]) else None


def _read(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(
            f"{path}: not a manifest ({error}); remove the file, its clips are then checked again"
        ) from error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _render(version: Version, split: str, root: Path, expected: dict, say: Callable[[str], None]) -> dict:
    """Render what is missing, by processes side by side, then write the lists. The caller holds the lock."""
    old = _read(root / f"{split}.json")
    sizes = {clip["path"]: clip["bytes"] for clip in old["clips"]} if old else {}
    expected = {**expected, "pixels": photographs.digest(split)}
    expected["digest"] = hashlib.sha256(json.dumps(expected, sort_keys=True).encode()).hexdigest()
    if old and old["digest"] != expected["digest"]:
        raise DataError(
            f"{root}: some {split} clips are missing, and the photographs of scikit-image are no longer those that the "
            "rest was made from; remove the folder to render it anew, or give another one with cache=FOLDER"
        )
    begun = root / f".{split}.begun"  # for which specification the clips without a manifest were made
    if begun.exists() and begun.read_text(encoding="utf-8") != expected["digest"]:
        raise DataError(
            f"{root} holds part of another version's {split} clips; remove the folder, or give cache=FOLDER"
        )
    write_text(expected["digest"], begun)
    for abandoned in (root / split).glob("*/.*.part"):  # of a run that was killed
        abandoned.unlink(missing_ok=True)
    classes = version.repertoire.classes
    scenes = [(pair, number) for number in range(version.clips(split)) for pair in range(len(classes) // 2)]
    missing = [key for key in scenes if not _has(version, root, split, key, sizes)]
    pictures = _in_processes(version, split, root, missing, say) if missing else {}
    for key in scenes:
        if key not in pictures:
            pictures[key] = drawn_scene(version, split, *key).photographs
    clips = [
        {
            "path": clip_path(version, split, label, number),
            "label": label,
            "class": classes[label],
            "range": version.repertoire.pairs[label // 2].range,
            "photographs": list(pictures[label // 2, number]),
            "bytes": _size(root / clip_path(version, split, label, number)),
        }
        for label in range(len(classes))
        for number in range(version.clips(split))
    ]
    write_text("".join(f"{name}\n" for name in classes), root / "classes.txt")
    write_text("".join(f"{clip['path']},{clip['label']}\n" for clip in clips), root / f"{split}.csv")
    manifest = {**expected, "clips": clips}
    write_json(manifest, root / f"{split}.json")
    begun.unlink()
    return manifest


def _has(version: Version, root: Path, split: str, key: tuple[int, int], sizes: dict[str, int]) -> bool:
    """Whether both clips of a scene are there, at the size that an earlier manifest gives."""
    pair, number = key
    paths = [clip_path(version, split, label, number) for label in (2 * pair, 2 * pair + 1)]
    written = {path: _size(root / path) for path in paths}
    return all(size > 0 and sizes.get(path, size) == size for path, size in written.items())


def _in_processes(
    version: Version, split: str, root: Path, scenes: list[tuple[int, int]], say: Callable[[str], None]
) -> dict[tuple[int, int], tuple[str, ...]]:
    """Render scenes in processes of their own. Returns the photographs of each. Raises: DataError."""
    start, total = time.monotonic(), 2 * len(scenes)
    pictures: dict[tuple[int, int], tuple[str, ...]] = {}
    say(f"{version.name}: rendering {total} {split} clips into {root} (once)")
    try:
        with pool(max(1, min(provenance.usable_cores(), PARALLEL, len(scenes) // 8))) as workers:
            running = {workers.submit(render_scene, version, split, *scene, root): scene for scene in scenes}
            for done in as_completed(running):
                pictures[running[done]] = done.result()
                remaining = (time.monotonic() - start) / len(pictures) * (len(scenes) - len(pictures))
                say(f"{version.name}: {2 * len(pictures)} of {total} {split} clips, about {remaining:.0f} s left")
    except (OSError, BrokenExecutor) as error:  # a full disk above all, or a process that was killed
        raise DataError(
            f"{root}: rendering stopped after {2 * len(pictures)} of {total} clips: {type(error).__name__}: {error}; "
            "what is whole is kept, so the same command goes on from there; cache=FOLDER or ATTENTION_ZOO_DATA give "
            "another place"
        ) from error
    return pictures
