"""How fast training would be fed: clips a second of the training loader, augmentation included, by processes."""

from __future__ import annotations

import time
from collections.abc import Callable

from harness.clips.loading import Keys, TrainingClips, loaded
from harness.datasets import DataSet
from harness.spec.clip import Augmentation
from harness.spec.sampling import Sampling
from reports.text import significant, table_lines

AHEAD = 4  # clips that each process has loaded before they are asked for


def loading(
    dataset: DataSet, frames: int, stride: int, clips: int, workers: int, say: Callable[[str], None]
) -> list[dict[str, float]]:
    """Clips a second with no process beside this one, with one, two, four and so on up to `workers`.

    Each is of `clips` clips, after those that were loaded while the processes began.

    Raises: LoadingError, where processes cannot begin or hardly any clip decodes.
    """
    rows = []
    for count in sorted({0, workers, *(2**n for n in range(workers.bit_length()) if 2**n < workers)}):
        say(f"loading {clips} clips with {count} processes")
        before = 1 + AHEAD * count
        keys = Keys(len(dataset), batch=1, micro=1, seed=0, first=0, last=before + clips)
        source = TrainingClips(dataset, Sampling(frames=frames, stride=stride), Augmentation(), seed=0)
        for number, _ in enumerate(loaded(source, keys, workers=count), start=1):
            if number == before:
                start = time.perf_counter()
        rows.append({"workers": count, "clips_per_second": clips / (time.perf_counter() - start)})
    return rows


def lines(rows: list[dict[str, float]], videos: int, frames: int, stride: int) -> list[str]:
    """The table for people, and how it was taken."""
    table = table_lines(
        rows,
        [
            ("workers", lambda row: str(row["workers"])),
            ("clips a second", lambda row: significant(row["clips_per_second"])),
            (f"epoch of {videos} clips, s", lambda row: significant(videos / row["clips_per_second"])),
        ],
    )
    size = Augmentation().size
    return [
        "",
        *table.splitlines(),
        "",
        f"Loaded as for training: clips of {frames}x{stride} frames, decoded, cropped and resized to {size}x{size}.",
    ]
