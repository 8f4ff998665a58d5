"""Which classes are taken for which, as a picture: `python -m reports.confusion scores.json OUT.png`.

The file is what an evaluation writes: an object with `confusion`, the counts of decoded videos by label and answer,
and `classes`, their names; or the result.json of a training, which holds that as `scores`. Rows are labels, columns
answers; a cell is the share of its label's videos in percent. Small matrices show the numbers, larger ones the names
alone, then every n-th name, with a line that says so.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from records.record import RecordError, write_bytes

NUMBERS = 24  # up to so many classes each cell holds its number
NAMES = 70  # up to so many every class is named
LONGEST = 32  # letters of a name
LARGEST = 20  # of the mistakes, listed beside a matrix whose numbers cannot be read


def read(path: Path) -> dict[str, Any]:
    """The scores that a file holds. Raises: RecordError naming the file and what is wrong with it."""
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RecordError(f"{path} cannot be read as scores: {error}") from error
    if isinstance(scores, dict) and isinstance(scores.get("scores"), dict):
        scores = scores["scores"]
    if not isinstance(scores, dict) or "confusion" not in scores:
        raise RecordError(f"{path} holds no confusion matrix; expected an object with confusion and classes")
    try:
        counted(scores)
    except ValueError as error:
        raise RecordError(f"{path}: {error}") from error
    return scores


def counted(scores: dict[str, Any]) -> tuple[np.ndarray, list[str]]:
    """Counts "label answer" and the names of the classes.

    Raises: ValueError where the counts are no square of whole numbers, or the names are not as many.
    """
    try:
        counts = np.array(scores["confusion"])
        square = counts.ndim == 2 and counts.shape[0] == counts.shape[1] > 1
    except ValueError:  # rows of several lengths
        square = False
    if not square or not np.issubdtype(counts.dtype, np.integer) or counts.min() < 0:
        raise ValueError("confusion is no square of counts of two classes or more")
    classes = scores.get("classes") or [row["name"] for row in scores.get("per_class") or ()]
    classes = classes or [str(number) for number in range(len(counts))]
    if len(classes) != len(counts):
        raise ValueError(f"{len(classes)} class names do not fit a confusion matrix of {len(counts)} classes")
    return counts, [str(name) for name in classes]


def shares(counts: np.ndarray) -> np.ndarray:
    """Each cell in percent of the videos of its label; 0 where the label has none."""
    total = counts.sum(axis=1, keepdims=True)
    return np.divide(100.0 * counts, total, out=np.zeros(counts.shape), where=total > 0)


def mistakes(counts: np.ndarray, classes: list[str], most: int = LARGEST) -> list[tuple[str, str, int, int]]:
    """The largest cells off the diagonal: label, answer, how many of how many videos; most videos first."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [divmod(int(place), len(counts)) for place in order]
    return [(classes[i], classes[j], int(wrong[i, j]), int(counts[i].sum())) for i, j in pairs if wrong[i, j]]


def picture(scores: dict[str, Any]) -> bytes:
    """The confusion matrix as the bytes of a PNG; the same scores give the same bytes. Raises: ValueError."""
    counts, classes = counted(scores)
    from reports import confusion_figure, drawing  # matplotlib takes a second: a slip is answered before

    with drawing.styled():
        return drawing.rendered(*confusion_figure.matrix(scores, counts, classes)).png


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m reports.confusion", description=__doc__.partition("\n\n")[0])
    parser.add_argument("scores", type=Path, metavar="SCORES.json", help="what an evaluation wrote")
    parser.add_argument("png", type=Path, metavar="OUT.png", help="the picture to write")
    given = parser.parse_args(arguments)
    try:
        print(write_bytes(picture(read(given.scores)), given.png))
    except (RecordError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
