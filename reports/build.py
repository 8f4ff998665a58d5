"""Make the report of an ablation from its folder, from files alone: `python -m reports.build outputs/pyramid_scales
outputs/kinetics`.

Writes `report.md`, `table.csv` and the figures into each folder, then beside the folders `report.md`, the list of
all ablations, and `cost.md`, the page of costs, where something was timed (`reports/cost_page.py`). The same files
give the same bytes.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from records.record import MANIFEST, RecordError, ablation_folders, outputs_of, write_text
from reports import cost_page, exponents, figures, markdown, table
from reports.paper_table import PaperTableError

EXPECTED = (RecordError, PaperTableError)
FORMAT = "write each figure also as SVG or PDF; format=svg without hyphens is the same"


def build(folder: str | Path, formats: Sequence[str] = ()) -> list[Path]:
    """Write the report of one ablation, its figures as PNG and in `formats`, and return the files written.

    Raises: RecordError, PaperTableError or KeyError naming what is wrong with manifest, table or figure.
    """
    folder = Path(folder)
    rows = table.load(folder)
    written, captions = figures.write(rows, folder, formats)
    if "scaling.png" in captions:
        written.append(write_text(exponents.to_csv(rows), folder / exponents.FILE))
    else:
        (folder / exponents.FILE).unlink(missing_ok=True)
    written.append(write_text(markdown.table_csv(rows), folder / "table.csv"))
    written.append(write_text(markdown.report(rows, captions), folder / "report.md"))
    return written


def build_index(outputs: str | Path) -> Path:
    """Write `<outputs>/report.md`: every ablation below `outputs`, its question and the verdicts of its costs.

    And the page of costs, which the list names, where there is anything for it.
    """
    outputs = Path(outputs)
    tables, broken = [], {}
    for folder in ablation_folders(outputs):
        try:
            tables.append(table.load(folder))
        except EXPECTED as error:
            broken[folder.relative_to(outputs).as_posix()] = str(error).replace(f"{outputs}/", "")
    page = cost_page.build(outputs).name if cost_page.has_content(tables) else None
    return write_text(markdown.index(tables, broken, page), outputs / "report.md")


def _ablations(folder: Path) -> list[Path]:
    """The ablations in a folder, itself and anywhere below it; where there are none, the folder, which says so."""
    return sorted(path.parent for path in folder.rglob(MANIFEST)) or [folder]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m reports.build", description=__doc__.partition("\n\n")[0])
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="an ablation's folder, such as outputs/pyramid_scales, or one that holds such folders",
    )
    parser.add_argument("--format", choices=("svg", "pdf"), action="append", default=[], help=FORMAT)
    words = [f"--{word}" if word.startswith("format=") else word for word in arguments or sys.argv[1:]]
    asked, failed = parser.parse_args(words), False
    folders = [found for given in asked.folders for found in _ablations(given)]
    for folder in folders:
        try:
            for path in build(folder, asked.format):
                print(path)
        except (*EXPECTED, KeyError, OSError) as error:
            print(f"{folder}: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
            failed = True
    for outputs in dict.fromkeys(outputs_of(folder) for folder in folders if (folder / MANIFEST).is_file()):
        print(build_index(outputs))
        if (outputs / cost_page.PAGE).is_file():
            print(outputs / cost_page.PAGE)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
