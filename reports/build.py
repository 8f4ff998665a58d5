"""Make the report of an ablation from its folder, from files alone: `python -m reports.build outputs/pyramid_scales
outputs/kinetics`.

Writes `report.md`, `table.csv`, `table.tex` and the figures into each folder, then beside the folders `report.md`, the
list of all ablations, `results.csv`, all figures of all of them, and `cost.md`, the page of costs, where something was
timed (`reports/cost_page.py`), and `index.html`, all of it as a page to explore (`reports/explore.py`), which for
`results` is one page of all machines. The same files give the same bytes.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from records.record import MANIFEST, ablation_folders, outputs_of, write_text
from records.terminal import until_closed
from reports import cost_page, data, explore, exponents, figures, index, markdown, table

FORMAT = "write each figure also as SVG or PDF; format=svg without hyphens is the same"


def build(folder: str | Path, formats: Sequence[str] = ()) -> list[Path]:
    """Write the report of one ablation, its figures as PNG and in `formats`, and return the files written.

    Raises: RecordError, PaperTableError or KeyError naming what is wrong with manifest, table or figure.
    """
    folder = Path(folder)
    rows = table.load(folder)
    files, captions = figures.write(rows, folder, formats)
    if "scaling.png" in captions:
        files.append(write_text(exponents.to_csv(rows), folder / exponents.FILE))
    else:
        (folder / exponents.FILE).unlink(missing_ok=True)
    page = markdown.report(rows, captions)
    texts = {"table.csv": data.csv(rows), "table.tex": markdown.tex(page), "report.md": page}
    return [*files, *(write_text(text, folder / name) for name, text in texts.items())]


def build_all(folders: Iterable[Path], formats: Sequence[str] = ()) -> Iterator[tuple[Path, list[Path], str | None]]:
    """Build each folder's report; what goes wrong with one, in words, does not keep the others from theirs."""
    for folder in folders:
        try:
            yield folder, build(folder, formats), None
        except Exception as error:  # of any kind: a report that fails is told of, and the next one is made
            expected = isinstance(error, (*table.UNREADABLE, OSError, KeyError))
            text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
            yield folder, [], text if expected else f"{type(error).__name__}: {text}"


def build_index(outputs: str | Path) -> Path:
    """Write `<outputs>/report.md`: every ablation below `outputs`, its question and the verdicts of its costs.

    And what the list names: `results.csv`, and the page of costs where there is anything for it. Its table stands in
    `table.tex`, too.
    """
    outputs = Path(outputs)
    by_folder, broken = table.load_all(ablation_folders(outputs), outputs)
    tables = list(by_folder.values())
    page = cost_page.build(outputs).name if any(map(cost_page.is_timed, tables)) else None
    write_text(data.long_csv(tables), outputs / "results.csv")
    explored = os.path.relpath(explore.top(outputs) / explore.PAGE, outputs)
    listed = index.index(tables, broken, page, explored, table.place(outputs))
    write_text(markdown.tex(listed), outputs / "table.tex")
    return write_text(listed, outputs / "report.md")


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
    options, failed = parser.parse_args(words), []
    folders = [folder for place in options.folders for folder in _ablations(place)]
    for folder, files, failure in build_all(folders, options.format):
        for path in files:
            print(path)
        if failure:
            print(f"{folder}: {failure}", file=sys.stderr)
        if table.tell_unusable([folder]) or failure:
            failed.append(folder.name)
    if failed and len(folders) > 1:
        print(f"{len(failed)} of {len(folders)} reports failed: {', '.join(failed)}", file=sys.stderr)
    every = dict.fromkeys(outputs_of(folder) for folder in folders if (folder / MANIFEST).is_file())
    for outputs in every:
        print(build_index(outputs))
        if (outputs / cost_page.PAGE).is_file():
            print(outputs / cost_page.PAGE)
    for whole in dict.fromkeys(explore.top(outputs) for outputs in every):
        print(explore.build(whole))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(until_closed(main))
