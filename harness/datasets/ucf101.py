"""UCF-101: clips of web videos, 101 actions, three official splits.

Source: https://www.crcv.ucf.edu/data/UCF101.php: `ucfTrainTestlist/classInd.txt` (`<number from 1> <class>`),
`trainlist01.txt` to 03 (`<class>/<file>.avi <number>`), `testlist01.txt` to 03 (`<class>/<file>.avi`), and
`UCF-101/<class>/<file>.avi`. There is no validation split: val and test are both the official test list.
"""

from __future__ import annotations

import re
from pathlib import Path

from harness.datasets import DataError, DataSet, register
from harness.datasets.files import ANNOTATION_FOLDERS, Found, bad, class_names, find, lines, located, path_and_label
from harness.datasets.frames import stem

SOURCE = "https://www.crcv.ucf.edu/data/UCF101.php"
FOLDERS = ("ucfTrainTestlist", *ANNOTATION_FOLDERS)


@register(
    "ucf101",
    needs="classInd.txt, trainlist01.txt to 03, testlist01.txt to 03 (in ucfTrainTestlist/, annotations/ or the root) "
    "and <class>/<file>.avi, or folders of pictures <class>/<file>/",
)
def ucf101(
    split: str, root: Path, *, fold: int = 1, annotations: str | None = None, videos: str | None = None
) -> DataSet:
    """UCF-101: 101 actions, about 9 500 training and 3 700 test clips in each of three splits (`fold`)."""
    if fold not in (1, 2, 3):
        raise DataError(f"fold={fold}; allowed: 1, 2, 3")
    dataset = f"ucf101 {split}, fold {fold}"
    classes = class_names(find(root, ("classInd.txt",), dataset, SOURCE, annotations, FOLDERS))
    labels = {name: label for label, name in enumerate(classes)}
    path = find(
        root, (f"{'train' if split == 'train' else 'test'}list{fold:02d}.txt",), dataset, SOURCE, annotations, FOLDERS
    )
    files, items = Found(root, videos), []
    for number, line in lines(path):
        video, label = path_and_label(line, path, number) if re.search(r"[\s,;]\d+$", line) else (line, None)
        name, slash, file = video.replace("\\", "/").partition("/")
        if not slash:
            raise bad(path, number, line, "`<class>/<file>.avi` with or without a number")
        if name not in labels:
            raise bad(path, number, line, f"of one of the {len(classes)} classes of classInd.txt")
        if label is not None and label != str(labels[name] + 1):
            raise bad(path, number, line, f"numbered as in classInd.txt, where {name} is {labels[name] + 1}")
        expected = f"{videos + '/' if videos else ''}{name}/{file}"
        items.append(located(files, root, stem(file), labels[name], expected, (name,)))
    return DataSet("ucf101", split, root, tuple(items), classes, source=SOURCE)
