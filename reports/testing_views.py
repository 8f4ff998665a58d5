"""Accuracy against the views of a test, with their cost (Fig. 5 of the DualFormer paper): one figure and its table.

`python -m reports.testing_views scores.json OUT.png` draws from what an evaluation writes; or from any list of
{clips, crops, top1, low, high}, or an object with such a list as `by_views` (or `views`) and, where known,
`macs_per_view`, `title`, `model` and `data`. The last two find the points that a paper prints. The table is printed as
Markdown.
"""

import argparse
import json
import sys
from pathlib import Path

from records.record import RecordError, write_bytes
from records.terminal import until_closed
from reports.views import Curve, markdown, points, published


def read(path: Path) -> Curve:
    """The curve that a file holds. Raises: RecordError naming the file and what is wrong with it."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        raw = {"views": raw} if isinstance(raw, list) else raw
        printed = published(raw["model"], raw["data"]) if raw.get("model") and raw.get("data") else ()
        title = str(raw.get("title") or raw.get("model") or raw.get("facts", {}).get("model") or path.stem)
        tests = raw["by_views"] if "by_views" in raw else raw["views"]
        return Curve(title, points(tests), raw.get("macs_per_view"), printed)
    except (OSError, UnicodeDecodeError, ValueError, KeyError, AttributeError, TypeError) as error:
        reason = f"no entry {error}" if isinstance(error, KeyError) else error
        raise RecordError(f"{path} cannot be read as tests with several views: {reason}") from error


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m reports.testing_views", description=__doc__.partition("\n\n")[0])
    parser.add_argument("views", type=Path, metavar="SCORES.json", help="an evaluation's scores, or a list of tests")
    parser.add_argument("figure", type=Path, metavar="OUT.png", help="the figure to write, or OUT.svg, OUT.pdf")
    options = parser.parse_args(arguments)
    try:
        curve = read(options.views)
        from reports.figures import testing_views  # matplotlib takes a second: a slip is answered before

        print(write_bytes(testing_views.picture(curve, options.views.name, options.figure), options.figure))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"\n{markdown(curve)}")
    return 0


if __name__ == "__main__":
    sys.exit(until_closed(main))
