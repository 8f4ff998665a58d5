"""Diving-48: competition dives that differ in take-off, somersaults, twists and position; scenes give nothing away.

Source: http://www.svcl.ucsd.edu/projects/resound/dataset.html, labels V2 (October 2020): `Diving48_V2_train.json` and
`Diving48_V2_test.json` (lists of objects `vid_name`, `label`, `start_frame`, `end_frame`), `Diving48_vocab.json` (48
lists of four attributes; the label is the place in that list), and the videos `rgb/<vid_name>.mp4`. Each file is one
dive, cut already, so start and end are not used. There is no validation split: val and test are both the official test
list.
"""

from __future__ import annotations

from pathlib import Path

from harness.datasets import DataError, DataSet, Item, register
from harness.datasets.files import Found, find, located, read_json

SOURCE = "http://www.svcl.ucsd.edu/projects/resound/dataset.html"


@register(
    "diving48",
    needs="Diving48_V2_train.json, Diving48_V2_test.json, Diving48_vocab.json (in the root or annotations/) and "
    "rgb/<vid_name>.mp4, or a folder of pictures <vid_name>/",
)
def diving48(split: str, root: Path, *, annotations: str | None = None, videos: str | None = None) -> DataSet:
    """Diving-48, labels V2: 48 kinds of dives, about 15 000 training and 2 000 test videos."""
    listing = f"Diving48_V2_{'train' if split == 'train' else 'test'}.json"
    path = find(root, (listing,), f"diving48 {split}", SOURCE, annotations)
    classes = _classes(find(root, ("Diving48_vocab.json",), f"diving48 {split}", SOURCE, annotations))
    files = Found(root, videos)
    items: list[Item] = []
    for index, entry in enumerate(read_json(path, list), start=1):
        if not isinstance(entry, dict) or not {"vid_name", "label"} <= entry.keys():
            raise DataError(f"{path}, entry {index}: {str(entry)[:80]} is not an object with `vid_name` and `label`")
        label = entry["label"]
        if type(label) is not int or not 0 <= label < len(classes):
            raise DataError(f"{path}, entry {index}: label {label!r}; allowed: 0 to {len(classes) - 1}")
        if not isinstance(entry["vid_name"], str):
            raise DataError(f"{path}, entry {index}: vid_name {entry['vid_name']!r} is not a text")
        name = entry["vid_name"]
        items.append(located(files, root, name, label, f"{videos or 'rgb'}/{name}.mp4"))
    return DataSet("diving48", split, root, tuple(items), classes, source=SOURCE)


def _classes(path: Path) -> tuple[str, ...]:
    vocabulary = read_json(path, list)
    if not vocabulary or not all(isinstance(entry, list) for entry in vocabulary):
        raise DataError(f"{path}: is not a list with one list of attributes for each class")
    return tuple(" ".join(str(attribute) for attribute in entry) for entry in vocabulary)
