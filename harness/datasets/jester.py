"""Jester: hand gestures in front of a webcam, distributed as folders of pictures at 12 a second.

Source: https://www.qualcomm.com/developer/software/jester-dataset: `jester-v1-labels.csv` (one class name a line),
`jester-v1-train.csv` and `jester-v1-validation.csv` (`id;class name`), `jester-v1-test.csv` (ids alone), and
`20bn-jester-v1/<id>/00001.jpg` onwards. The later download names the lists `labels.csv`, `train.csv` and so on, with
`test-answers.csv`.

Left and right are part of the classes: `sided`, with pairs of classes in `mirror`.
"""

from __future__ import annotations

from pathlib import Path

from harness.datasets import DataSet, register
from harness.datasets.files import Found, bad, class_names, find, located, rows
from harness.datasets.something_something_v2 import mirrored

SOURCE = "https://www.qualcomm.com/developer/software/jester-dataset"
FILES = {"train": "train.csv", "val": "validation.csv", "test": "test-answers.csv"}


@register(
    "jester",
    needs="jester-v1-labels.csv, jester-v1-train.csv, jester-v1-validation.csv (in the root, labels/ or annotations/; "
    "also without jester-v1-; test-answers.csv for split=test) and 20bn-jester-v1/<id>/00001.jpg ..., or <id>.mp4 or "
    ".webm",
)
def jester(split: str, root: Path, *, annotations: str | None = None, videos: str | None = None) -> DataSet:
    """Jester: 27 hand gestures, 118 562 training and 14 787 validation videos, as folders of pictures."""
    dataset = f"jester {split}"
    classes = class_names(find(root, _names("labels.csv"), dataset, SOURCE, annotations))
    labels = {name: label for label, name in enumerate(classes)}
    path = find(root, _names(FILES[split]), dataset, SOURCE, annotations)
    files = Found(root, videos)
    items = []
    for number, row in rows(path, ";"):
        if len(row) != 2 or not row[0]:
            raise bad(path, number, ";".join(row), "`id;class name`")
        if row[1] not in labels:
            raise bad(path, number, ";".join(row), f"one of the {len(classes)} classes of the labels file")
        items.append(located(files, root, row[0], labels[row[1]], f"{videos or '20bn-jester-v1'}/{row[0]}"))
    return DataSet("jester", split, root, tuple(items), classes, sided=True, mirror=mirrored(classes), source=SOURCE)


def _names(name: str) -> list[str]:
    return [f"jester-v1-{name}", name]
