"""Published numbers as data: one YAML file per table of a paper, each number as it was printed.

A file states the paper, the place, the unit of every column, the rule by which its authors counted operations and
the precision to which they printed. Names in `units` are the printed columns; whatever else a row holds are its
settings (input, pre-training, test views).
"""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from reports import counting
from reports.text import nearest

FOLDER = Path(__file__).parent / "paper_tables"
NOT_STATED = "not_stated"
PARAMS_COUNTS = ("with_classifier", "without_classifier", NOT_STATED)
_TABLE_KEYS = (
    "paper", "table", "title", "source", "units", "counting", "precision", "params_count", "views", "settings",
    "notes", "rows",
)  # fmt: skip
_ROW_KEYS = ("row", "views", "counting", "params_count", "note", "precision", "recounted")
_PRECISION_KEYS = ("decimals", "per_view_decimals", "total_decimals")
_RECOUNTED_KEYS = ("flops", "params", "how", "source")


class PaperTableError(ValueError):
    """A table that does not exist or whose file cannot be used; the message names it."""


@dataclass(frozen=True)
class PaperRow:
    """One printed row. `views` is the number of views that the printed operations cover, None where it is not known.

    `precision` is the table's where the row prints as the table does. `recounted` cites a count that others made of a
    model that is not here: `flops` of one view in G and `params` in M, `how` and `source`; it is never a measurement.
    """

    name: str
    cells: dict[str, Any]
    views: int | None
    counting: str
    params_count: str
    settings: dict[str, Any] = field(default_factory=dict)
    note: str | None = None
    precision: dict[str, dict[str, int]] = field(default_factory=dict)
    recounted: dict[str, Any] | None = None


@dataclass(frozen=True)
class PaperTable:
    """One published table with its source, units, counting rule and printed precision."""

    name: str
    paper: str
    table: str
    title: str
    source: str
    units: dict[str, str]
    counting: str
    precision: dict[str, dict[str, int]]
    params_count: str
    views: int | None
    notes: tuple[str, ...]
    rows: tuple[PaperRow, ...]

    def row(self, name: str) -> PaperRow:
        """A row by its printed name. Raises: PaperTableError with the nearest name."""
        for row in self.rows:
            if row.name == name:
                return row
        raise PaperTableError(
            f"paper table {self.name} has no row {name!r}; {nearest(name, [r.name for r in self.rows])}"
        )


def names() -> list[str]:
    """The tables at hand, alphabetically."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str, folder: Path | None = None) -> PaperTable:
    """A published table by name, one of ours or a file in `folder`, where an ablation that is not one of ours has it.

    Raises: PaperTableError with the nearest name, or what is wrong with the file.
    """
    if folder is not None and (folder / f"{name}.yaml").is_file():
        return read(folder / f"{name}.yaml")
    return _ours(name)


@cache
def _ours(name: str) -> PaperTable:
    if name not in names():
        raise PaperTableError(f"unknown paper table {name!r}; {nearest(name, names())}")
    return read(FOLDER / f"{name}.yaml")


def read(path: Path) -> PaperTable:
    """Read and validate one table. Raises: PaperTableError naming file, row and entry."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PaperTableError(f"{path.name} cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise PaperTableError(f"{path.name}: expected entries such as paper and rows, found {type(raw).__name__}")
    for key in raw:
        if key not in _TABLE_KEYS:
            raise PaperTableError(f"{path.name}: unknown entry {key!r}; {nearest(str(key), _TABLE_KEYS)}")
    lacking = [key for key in ("paper", "table", "title", "source", "units", "rows") if not raw.get(key)]
    if lacking:
        raise PaperTableError(f"{path.name} lacks {', '.join(lacking)}")
    units, rows = raw["units"], raw["rows"]
    if not isinstance(units, dict) or not all(isinstance(unit, str) and unit for unit in units.values()):
        raise PaperTableError(f"{path.name}: units must give a unit for every printed column")
    reserved = sorted(set(units) & set(_ROW_KEYS))
    if reserved:
        raise PaperTableError(f"{path.name}: {reserved[0]!r} cannot be a printed column; it is an entry of every row")
    defaults = {
        "views": raw.get("views"),
        "counting": raw.get("counting", NOT_STATED),
        "params_count": raw.get("params_count", NOT_STATED),
    }
    table = PaperTable(
        name=path.stem,
        units=units,
        precision=_precision(raw.get("precision") or {}, units, path.name),
        notes=tuple(raw.get("notes") or ()),
        rows=tuple(_row(row, units, defaults, raw.get("settings") or {}, path.name) for row in rows),
        **{key: raw[key] for key in ("paper", "table", "title", "source")},
        **defaults,
    )
    row_names: set[str] = set()
    for row in table.rows:
        if row.name in row_names:
            raise PaperTableError(f"{path.name}: two rows are called {row.name!r}; give each its own name")
        row_names.add(row.name)
    return table


def _row(raw: Any, units: dict[str, str], defaults: dict[str, Any], shared: dict[str, Any], file: str) -> PaperRow:
    if not isinstance(raw, dict) or not isinstance(raw.get("row"), str):
        raise PaperTableError(f"{file}: a row without a name: {raw!r}")
    where = f"{file}, row {raw['row']!r}"
    stated = {key: raw.get(key, default) for key, default in defaults.items()}
    if stated["counting"] not in (*counting.RULES, NOT_STATED):
        raise PaperTableError(f"{where}: counting; {nearest(str(stated['counting']), (*counting.RULES, NOT_STATED))}")
    if stated["params_count"] not in PARAMS_COUNTS:
        raise PaperTableError(f"{where}: params_count; {nearest(str(stated['params_count']), PARAMS_COUNTS)}")
    views = stated["views"]
    if views is not None and (isinstance(views, bool) or not isinstance(views, int) or views < 1):
        raise PaperTableError(
            f"{where}: views is {views!r}; allowed: a whole number from 1, or null where it is not known"
        )
    cells = {key: raw[key] for key in units if key in raw}
    for key in ("flops", "params"):
        value = cells.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise PaperTableError(f"{where}: {key} is {value!r}; expected a number as printed, or null")
    settings = {key: value for key, value in raw.items() if key not in units and key not in _ROW_KEYS}
    recounted = raw.get("recounted")
    if recounted is not None:
        for key in recounted:
            if key not in _RECOUNTED_KEYS:
                raise PaperTableError(f"{where}: recounted.{key}; {nearest(str(key), _RECOUNTED_KEYS)}")
        if not recounted.get("source"):
            raise PaperTableError(f"{where}: recounted lacks its source")
    return PaperRow(
        raw["row"],
        cells,
        settings=shared | settings,
        note=raw.get("note"),
        precision=_precision(raw.get("precision") or {}, units, where),
        recounted=recounted,
        **stated,
    )


def _precision(raw: Any, units: dict[str, str], file: str) -> dict[str, dict[str, int]]:
    for column, entry in raw.items():
        if column not in units:
            raise PaperTableError(f"{file}: precision of {column!r}; {nearest(str(column), units)}")
        for key, value in entry.items():
            if key not in _PRECISION_KEYS:
                raise PaperTableError(f"{file}: precision.{column}.{key}; {nearest(str(key), _PRECISION_KEYS)}")
            if isinstance(value, bool) or not isinstance(value, int):
                raise PaperTableError(f"{file}: precision.{column}.{key} is {value!r}; expected a whole number")
    return raw
