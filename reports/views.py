"""Accuracy against the views of a test: the points of one model, those that papers print, and their table."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reports import accuracy, paper_table
from reports.table import AblationTable, Row
from reports.text import MISSING, significant, table_lines


@dataclass(frozen=True)
class Point:
    """The top-1 accuracy of one test, in percent, with its 95 % interval where it has one."""

    clips: int
    crops: int
    top1: float
    low: float | None = None
    high: float | None = None
    source: str | None = None  # of a published point

    @property
    def views(self) -> int:
        return self.clips * self.crops


@dataclass(frozen=True)
class Curve:
    """All tests of one model; `macs_per_view` is None where the cost of a view is not known."""

    title: str
    points: tuple[Point, ...]
    macs_per_view: float | None = None
    published: tuple[Point, ...] = ()

    @property
    def crops(self) -> list[int]:
        return sorted({point.crops for point in self.points})


def points(by_views: Sequence[dict[str, Any]]) -> tuple[Point, ...]:
    """The tests of an evaluation, sorted by crops, then clips. Raises: ValueError naming the entry that lacks what."""
    tests = []
    for entry in by_views:
        try:
            whole = (int(entry["clips"]), int(entry["crops"]))
            tests.append(Point(*whole, *(float(entry[key]) for key in ("top1", "low", "high"))))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{entry!r} is no test; expected clips, crops, top1, low and high as numbers") from error
    if not tests:
        raise ValueError("there are no tests to show; expected a list of clips, crops, top1, low and high")
    return tuple(sorted(tests, key=lambda point: (point.crops, point.clips)))


def published(model: str, data: str) -> tuple[Point, ...]:
    """The points that the papers' tables print for a model on a data set: ("DualFormer-S", "diving48")."""
    distinct: dict[tuple, Point] = {}
    for name in paper_table.names():
        table = paper_table.load(name)
        for row in table.rows:
            views = re.fullmatch(r"(\d+)x(\d+)", str(row.settings.get("test_views")))
            if not views or re.sub(r"\s*\(.*\)$", "", row.name) != model:
                continue
            for column in accuracy.printed_columns(data):
                value = row.cells.get(column)
                if column != "top1" and isinstance(value, int | float):
                    point = Point(int(views[1]), int(views[2]), value, source=f"{row.name}, {table.table}")
                    distinct.setdefault((point.clips, point.crops, value), point)
    return tuple(distinct.values())


def markdown(curve: Curve) -> str:
    """A table of all tests of one model, the published points beside them."""
    columns = [(key, lambda point, key=key: str(getattr(point, key))) for key in ("clips", "crops", "views")]
    if curve.macs_per_view:
        columns.append(("GMACs of all views ↓", lambda point: significant(point.views * curve.macs_per_view / 1e9)))
    columns.append(("top-1 ↑, % (95 % interval)", lambda p: f"{p.top1:.1f} ({p.low:.1f}–{p.high:.1f})"))
    if curve.published:
        columns.append(("top-1 ↑, %, published", lambda point: _printed(curve, point)))
    return table_lines(curve.points, columns)


def _printed(curve: Curve, point: Point) -> str:
    printed = [test for test in curve.published if (test.clips, test.crops) == (point.clips, point.crops)]
    return "; ".join(f"{test.top1} ({test.source})" for test in printed) or MISSING


def curves(table: AblationTable, name: str) -> list[Curve]:
    """One curve for each row whose accuracy was also taken over parts of its views (`by_views` in the details)."""
    drawn = []
    for row in table.rows:
        measured = row.measurement(name)
        tests = measured.details.get("by_views") if measured and measured.samples else None
        if tests:
            data = accuracy.data_of(table, name)
            printed = () if accuracy.is_built_in(table, name) else published(_model(row), data)
            wrong = accuracy.learning_text(measured)
            title = f"{row.name}, {wrong}" if wrong else row.name
            drawn.append(Curve(title, points(tests), accuracy.macs_per_view(row, name), printed))
    return drawn


def _model(row: Row) -> str:
    """What the papers call the model of a row."""
    if row.published is None:
        return row.name
    return str(row.published.settings.get("model") or re.sub(r"\s*\(.*\)$", "", row.published.name))


def summary(table: AblationTable, name: str) -> str:
    """What the most views of each row buy over the fewest; empty where views were not tested."""
    texts = []
    for curve in curves(table, name):
        few, many = (choose(curve.points, key=lambda point: point.views) for choose in (min, max))
        beyond = "" if few.low <= many.top1 <= few.high else ", beyond the interval of the first"
        views = f"from {few.clips}x{few.crops} to {many.clips}x{many.crops} views"
        texts.append(f"{few.top1:.1f} to {many.top1:.1f} % {views}{beyond} ({curve.title})")
    return f"more views (clips x crops) at test time: {'; '.join(texts)}" if texts else ""


def section(table: AblationTable, name: str) -> list[str]:
    """The parts of a report on testing views; none where no row has them."""
    drawn = curves(table, name)
    if not drawn:
        return []
    parts = ["##### What more views at test time buy"]
    for curve in drawn:
        parts += [f"{curve.title}:", markdown(curve)]
    parts.append(
        "All of a row's tests come from one set of predictions: the probabilities of the views are averaged, so the "
        "points of a row share their errors. The intervals are those of a share of the test videos."
    )
    return parts
