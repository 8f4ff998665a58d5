"""The figures of a report, by name: the same rows give the same bytes.

Each file of this folder is a figure of its name. Its `draw(table)` returns the figure and the sentence that stands for
it where it cannot be seen, or None where the records hold nothing to draw; `reports/drawing.py` has what all share.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from records import figures
from records.record import write_bytes
from reports import accuracy
from reports.table import AblationTable
from reports.text import nearest

if TYPE_CHECKING:
    from reports.drawing import Drawing

names = figures.names


def wanted(table: AblationTable) -> list[str]:
    """The figures of a report: those that the ablation names, or its costs if any; its accuracies where it has some."""
    costs = ["cost"] if table.named("timed", "sized") else []
    return list(dict.fromkeys([*(table.figures or costs), *(["accuracy_cost"] if accuracy.names(table) else [])]))


def draw(name: str, table: AblationTable, formats: Iterable[str] = ("png",)) -> Drawing | None:
    """Draw one figure; None where the records hold nothing to draw. Raises: KeyError with the nearest name."""
    if name not in names():
        raise KeyError(f"unknown figure {name!r}; {nearest(name, names())}")
    from reports import drawing  # matplotlib takes a second, and who reads names alone draws nothing

    with drawing.styled():
        drawn = importlib.import_module(f"reports.figures.{name}").draw(table)
        return None if drawn is None else drawing.rendered(*drawn, formats)


def write(table: AblationTable, folder: Path, formats: Iterable[str] = ()) -> tuple[list[Path], dict[str, str]]:
    """Write the figures of a report as PNG and in `formats`; the files, and the captions by the names of the PNG.

    Files of figures that these records do not make any more are deleted. Raises: KeyError with the nearest name.
    """
    drawings = {name: draw(name, table, dict.fromkeys(("png", *formats))) for name in wanted(table)}
    drawn = {name: drawing for name, drawing in drawings.items() if drawing}
    files = {folder / f"{name}.{kind}": data for name, drawing in drawn.items() for kind, data in drawing.files.items()}
    for old in (folder / f"{name}.{kind}" for name in names() for kind in ("png", "svg", "pdf")):
        if old not in files:
            old.unlink(missing_ok=True)
    for path, data in files.items():
        write_bytes(data, path)
    return list(files), {f"{name}.png": drawing.caption for name, drawing in drawn.items()}
