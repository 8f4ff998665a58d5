"""HMDB-51: short clips of movies and web videos, 51 actions, three official splits.

Source: https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database/: `test_train_splits.rar` with
`<class>_test_split<1, 2 or 3>.txt` (`<file>.avi <0, 1 or 2>`: 1 is training, 2 is testing, 0 is not used in this split)
and `hmdb51_org.rar` with `<class>/<file>.avi`. There is no validation split: val and test are both the official test
list.
"""

from __future__ import annotations

import re
from pathlib import Path

from harness.datasets import DataError, DataSet, register
from harness.datasets.files import ANNOTATION_FOLDERS, Found, bad, lines, located
from harness.datasets.frames import stem

SOURCE = "https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database/"
FOLDERS = ("testTrainMulti_7030_splits", "test_train_splits", *ANNOTATION_FOLDERS)


@register(
    "hmdb51",
    needs="<class>_test_split1.txt to 3 (in testTrainMulti_7030_splits/, annotations/ or the root) and "
    "<class>/<file>.avi, or folders of pictures <class>/<file>/",
)
def hmdb51(
    split: str, root: Path, *, fold: int = 1, annotations: str | None = None, videos: str | None = None
) -> DataSet:
    """HMDB-51: 51 actions, 3 570 training and 1 530 test clips in each of three splits (`fold`)."""
    if fold not in (1, 2, 3):
        raise DataError(f"fold={fold}; allowed: 1, 2, 3")
    lists = _lists(root, split, fold, annotations)
    mark = "1" if split == "train" else "2"
    files, items = Found(root, videos), []
    for label, (name, path) in enumerate(lists.items()):
        for number, line in lines(path):
            parts = line.rsplit(None, 1)
            if len(parts) != 2 or parts[1] not in ("0", "1", "2"):
                raise bad(path, number, line, "`<file>.avi <0, 1 or 2>`")
            if parts[1] == mark:
                expected = f"{videos + '/' if videos else ''}{name}/{parts[0]}"
                items.append(located(files, root, stem(parts[0]), label, expected, (name,)))
    return DataSet("hmdb51", split, root, tuple(items), tuple(lists), source=SOURCE)


def _lists(root: Path, split: str, fold: int, annotations: str | None) -> dict[str, Path]:
    """The split file of each class, classes in the order of the alphabet. Raises: DataError."""
    places = [root / folder for folder in FOLDERS]
    if annotations is not None:
        base = Path(annotations).expanduser()
        places = [base if base.is_absolute() or base.is_dir() else root / base]
    for place in places:
        pattern = re.compile(rf"([^.].*)_test_split{fold}\.txt")
        by_class = {match[1]: path for path in place.glob("*.txt") if (match := pattern.fullmatch(path.name))}
        if by_class:
            return dict(sorted(by_class.items()))
    raise DataError(
        f"hmdb51 {split}: no <class>_test_split{fold}.txt in {', '.join(map(str, places[:4]))}; get them from {SOURCE} "
        "(test_train_splits.rar), or say where they lie with annotations=FOLDER"
    )
