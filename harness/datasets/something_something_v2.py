"""Something-Something V2: people do things with things; what happens is told by motion and order, hardly by looks.

Source: https://www.qualcomm.com/developer/software/something-something-v-2-dataset: `labels.json` (template -> number
as text), `train.json`, `validation.json` (lists of objects with `id`, `label`, `template`, `placeholders`; the class is
the template without its square brackets), `test.json` with `test-answers.csv` (`id;template`), and the videos
`20bn-something-something-v2/<id>.webm`. Older downloads prefix the files with `something-something-v2-`.

Left and right are part of the classes: `sided`. Classes whose names become each other's when left and right are
exchanged are pairs of `mirror` (the pairs that TSM and mmaction2 list by number).
"""

from __future__ import annotations

from pathlib import Path

from harness.datasets import DataError, DataSet, register
from harness.datasets.files import Found, bad, find, located, read_json, rows

SOURCE = "https://www.qualcomm.com/developer/software/something-something-v-2-dataset"
FILES = {"train": "train", "val": "validation", "test": "test"}
OPPOSITES = {"left": "right", "right": "left", "clockwise": "counterclockwise", "counterclockwise": "clockwise"}


@register(
    "something_something_v2",
    needs="labels.json, train.json, validation.json (in the root, labels/ or annotations/; the prefix "
    "something-something-v2- is allowed; test.json with test-answers.csv for split=test) and <id>.webm, or a folder of "
    "pictures <id>/",
)
def something_something_v2(
    split: str, root: Path, *, annotations: str | None = None, videos: str | None = None
) -> DataSet:
    """Something-Something V2: 174 templates of handling things, 168 913 training and 24 777 validation videos."""
    dataset = f"something_something_v2 {split}"
    labels_path = find(root, _names("labels.json"), dataset, SOURCE, annotations)
    classes = _classes(labels_path)
    labels = {name: label for label, name in enumerate(classes)}
    if split == "test":
        listed = _answers(find(root, _names("test-answers.csv"), dataset, SOURCE, annotations))
    else:
        listed = _entries(find(root, _names(f"{FILES[split]}.json"), dataset, SOURCE, annotations))
    files = Found(root, videos)
    items = []
    for place, video, template in listed:
        if template not in labels:
            raise DataError(f"{place}: the template {template!r} is not in {labels_path}; fetch both from one release")
        expected = f"{videos or '20bn-something-something-v2'}/{video}.webm"
        items.append(located(files, root, video, labels[template], expected))
    return DataSet(
        "something_something_v2",
        split,
        root,
        tuple(items),
        classes,
        sided=True,
        mirror=mirrored(classes),
        source=SOURCE,
    )


def mirrored(classes: tuple[str, ...]) -> dict[int, int]:
    """Pairs of classes whose names differ in nothing but left and right (clockwise and counterclockwise)."""
    labels = {name: label for label, name in enumerate(classes)}
    pairs = {}
    for name, label in labels.items():
        words = [_opposite(word) for word in name.split(" ")]
        opposite = labels.get(" ".join(words))
        if opposite is not None and opposite != label:
            pairs[label] = opposite
    return pairs


def _opposite(word: str) -> str:
    opposite = OPPOSITES.get(word.lower(), word)
    return opposite.capitalize() if word[:1].isupper() and opposite.islower() else opposite


def _names(name: str) -> list[str]:
    return [f"something-something-v2-{name}", name]


def _classes(path: Path) -> tuple[str, ...]:
    numbers = read_json(path, dict)
    try:
        ordered = sorted(numbers, key=lambda name: int(numbers[name]))
        ranks = sorted(int(number) for number in numbers.values())
    except (TypeError, ValueError):
        raise DataError(f"{path}: holds something else than templates with their numbers") from None
    if ranks != list(range(len(ranks))) or not ranks:
        raise DataError(f"{path}: the numbers of its {len(ranks)} classes are not 0 to {len(ranks) - 1}")
    return tuple(ordered)


def _entries(path: Path) -> list[tuple[str, str, str]]:
    entries = []
    for index, entry in enumerate(read_json(path, list), start=1):
        if not isinstance(entry, dict) or not {"id", "template"} <= entry.keys():
            raise DataError(f"{path}, entry {index}: {str(entry)[:80]} is not an object with `id` and `template`")
        entries.append((f"{path}, entry {index}", str(entry["id"]), _template(str(entry["template"]))))
    return entries


def _answers(path: Path) -> list[tuple[str, str, str]]:
    entries = []
    for number, row in rows(path, ";"):
        if len(row) != 2:
            raise bad(path, number, ";".join(row), "`id;template`")
        entries.append((f"{path}, line {number}", row[0], _template(row[1])))
    return entries


def _template(text: str) -> str:
    """As the list of classes has it."""
    return text.replace("[", "").replace("]", "").strip()
