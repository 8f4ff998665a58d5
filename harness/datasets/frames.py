"""What a name in a folder says: which files are videos, which folders are videos of pictures, and in which order.

One rule for every reader: what begins with a dot is hidden (copies of macOS, checkpoints of notebooks), as is what
systems and devices leave behind; a folder is a video where it holds numbered pictures and no video files, whatever its
own name ends in; the number that differs between the names is the frame's.
"""

from __future__ import annotations

import itertools
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from harness.datasets import DataError

VIDEOS = tuple(
    ".mp4 .webm .avi .mkv .mov .m4v .mpg .mpeg .mpe .m2v .wmv .asf .flv .f4v .ts .mts .m2ts .vob .ogv .ogm .3gp .3g2 "
    ".divx .gif".split()
)
HIDDEN = (".", "~$")  # the second: what office programs write beside an open file
PREVIEW = ".gif"  # beside a film of its name
LEFT_BEHIND = {
    "__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information", "__pycache__",
}  # fmt: skip
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
FLOW = ("flow_", "x_", "y_")  # optical flow, where it lies beside the pictures
NUMBER, DECIMAL, WHOLE_OR_DECIMAL = re.compile(r"\d+"), re.compile(r"\d\.\d"), re.compile(r"\d+(?:\.\d+)?")


def visible(folder: str | Path) -> list[os.DirEntry]:
    """What a folder holds, in the order of the alphabet. Raises: OSError."""
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if not entry.name.startswith(HIDDEN) and entry.name not in LEFT_BEHIND]
    return sorted(shown, key=lambda entry: entry.name)


def is_video(name: str) -> bool:
    return name.lower().endswith(VIDEOS)


def videos(names: Iterable[str]) -> list[str]:
    """The videos among the files of a folder, without GIFs that lie beside a film of their name: those are previews."""
    films = [name for name in names if is_video(name)]
    stems = {stem(name) for name in films if not name.lower().endswith(PREVIEW)}
    return [name for name in films if not name.lower().endswith(PREVIEW) or stem(name) not in stems]


def stem(name: str) -> str:
    """The name of a video without its ending; any other as it is."""
    return name.rpartition(".")[0] if is_video(name) else name


def are_frames(names: Iterable[str]) -> bool:
    """Whether a folder with files of these names is one video: thumbnails beside videos are not."""
    names = list(names)
    pictures = (name for name in names if name.lower().endswith(PICTURES))
    return not any(map(is_video, names)) and any(NUMBER.search(name.rpartition(".")[0]) for name in pictures)


def picture_names(folder: str | Path) -> list[str]:
    """The frames of a folder by number (`img_2.jpg` before `img_10.jpg`); optical flow and covers beside are left out.

    Raises: DataError naming the folder, or the pictures of which it is not plain that they are of one video.
    """
    try:
        names = [entry.name for entry in visible(folder) if entry.name.lower().endswith(PICTURES)]
    except OSError as error:
        raise DataError(f"{folder}: no folder of pictures: {error.strerror}") from error
    if not names:
        raise DataError(f"{folder}: holds no pictures ({', '.join(PICTURES)})")
    kinds: dict[str, list[str]] = defaultdict(list)  # by what stands around the numbers
    for name in names:
        kinds[NUMBER.sub("#", name.rpartition(".")[0])].append(name)
    numbered = {kind: members for kind, members in kinds.items() if "#" in kind}
    frames = {kind: members for kind, members in numbered.items() if not kind.startswith(FLOW)} or numbered
    if not frames:
        return names
    if len(frames) > 1:
        first, second = (members[0] for members in list(frames.values())[:2])
        raise DataError(
            f"{folder}: {first} and {second} are named in two ways, so which are the frames is open; leave those of "
            "one video in it"
        )
    (names,) = frames.values()
    texts = {name: name.rpartition(".")[0] for name in names}
    numbers = {name: tuple(map(int, NUMBER.findall(text))) for name, text in texts.items()}
    differ = [place for place, values in enumerate(zip(*numbers.values(), strict=True)) if len(set(values)) > 1]
    ordered = sorted(names, key=lambda name: ([numbers[name][place] for place in differ], name))
    for first, second in itertools.pairwise(ordered):
        if numbers[first] == numbers[second]:
            raise DataError(f"{folder}: {first} and {second} have the same number; leave one of them in it")
    if DECIMAL.search(texts[names[0]]):
        decimals = {name: [float(number) for number in WHOLE_OR_DECIMAL.findall(text)] for name, text in texts.items()}
        others = sorted(names, key=lambda name: (decimals[name], name))
        for first, second in zip(ordered, others, strict=True):
            if first != second:
                raise DataError(
                    f"{folder}: the numbers of {first} and {second} have points, and another order if they are decimal "
                    "numbers; name frames by whole numbers"
                )
    return ordered


def count_frames(folder: str | Path) -> int:
    """How many pictures a folder holds. Raises: DataError naming the folder."""
    return len(picture_names(folder))


def read_frames(folder: str | Path, indices: Sequence[int]) -> np.ndarray:
    """The pictures at `indices` (from 0; repeated and unsorted ones allowed), RGB uint8 "n h w 3".

    Raises: DataError naming the folder or the picture, when one is missing, cannot be decoded or has another size.
    """
    names = picture_names(folder)
    out_of = [index for index in indices if not 0 <= index < len(names)]
    if out_of:
        raise DataError(
            f"{folder}: has {len(names)} pictures, none at index {out_of[0]}; its list promises more frames"
        )
    pictures: dict[int, np.ndarray] = {}
    for index in indices:
        if index in pictures:
            continue
        path = Path(folder) / names[index]
        if path.exists() and not path.is_file():  # a pipe would be waited for without an end
            raise DataError(f"{path}: a folder or device, not a picture")
        try:
            with Image.open(path) as picture:
                pictures[index] = _rgb(picture)
        except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:  # what PIL raises for damaged files
            raise DataError(f"{path}: cannot be decoded: {str(error).replace(str(path), 'the file')}") from error
    shapes = {picture.shape for picture in pictures.values()}
    if len(shapes) > 1:
        sizes = " and ".join(sorted(f"{width}x{height}" for height, width, _ in shapes))
        raise DataError(f"{folder}: pictures of different sizes in one video: {sizes}")
    if not pictures:
        raise DataError(f"{folder}: no index was asked for")
    return np.stack([pictures[index] for index in indices])


def _rgb(picture: Image.Image) -> np.ndarray:
    """uint8 "h w 3", upright as viewers and other libraries show it."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16 bits: Pillow would cut off all above 255 instead of scaling
        grey = (np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.stack([grey] * 3, axis=-1)
    return np.asarray(picture.convert("RGB"))
