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
from records.terminal import until_closed


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


def picture(scores: dict[str, Any], file: Path = Path("confusion.png")) -> bytes:
    """The confusion matrix as the bytes of such a file; the same scores give the same. Raises: ValueError."""
    counts, classes = counted(scores)
    from reports import confusion_figure  # matplotlib takes a second: a slip is answered before

    return confusion_figure.picture(scores, counts, classes, file)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m reports.confusion", description=__doc__.partition("\n\n")[0])
    parser.add_argument("scores", type=Path, metavar="SCORES.json", help="what an evaluation wrote")
    parser.add_argument("figure", type=Path, metavar="OUT.png", help="the picture to write, or OUT.svg, OUT.pdf")
    options = parser.parse_args(arguments)
    try:
        print(write_bytes(picture(read(options.scores), options.figure), options.figure))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(until_closed(main))
