"""A page to explore: `index.html`, one file that needs no network, with every row of every ablation and machine.

The axes of its plot are chosen there; its table sorts and filters. plotly's own bundle stands in it, packed, so that
the page is a third of the bundle's size; the browser unpacks it. The page is `explore.html`, filled in here. The same
files and the same plotly give the same page, but for how their compression packs it.
"""

import base64
import json
import zlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from records.record import MANIFEST, Measurement, write_text
from reports import accuracy, exponents, probes, table
from reports.table import AblationTable, Row
from reports.text import unit

PAGE = "index.html"
TEMPLATE = Path(__file__).with_suffix(".html")
TOKENS = {"title": "tokens", "unit": "count", "better": "none", "kind": "counted"}


def top(outputs: Path) -> Path:
    """The folder whose page shows an outputs folder: all of `results`, or the outputs folder alone."""
    parents = [*outputs.parents, *outputs.resolve().parents]  # as the folder was named, if that says it
    return next((path for path in parents if path.name == "results"), outputs)


def build(folder: Path) -> Path:
    """Write the page of all ablations below a folder; what cannot be read is named on it."""
    paths = sorted(path.parent for path in folder.rglob(MANIFEST))
    # Quick runs, whose figures say nothing, have a page of their own.
    shown = [path for path in paths if "quick" not in path.relative_to(folder).parts[:-1]]
    tables, broken = table.load_all(shown, folder)
    text = TEMPLATE.read_text(encoding="utf-8")
    for mark, value in (("DATA", _json(data(tables, broken))), ("VERSION", version("plotly")), ("PLOTLY", packed())):
        text = text.replace(f"@{mark}@", value)
    return write_text(text, folder / PAGE)


@lru_cache(1)
def packed() -> str:
    """plotly's bundle as the page holds it: zlib, then base64."""
    package = Path(find_spec("plotly").origin).parent
    return base64.b64encode(zlib.compress((package / "package_data" / "plotly.min.js").read_bytes(), 9)).decode()


def _json(value: Any) -> str:
    """JSON that may stand in a script element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def data(tables: Mapping[Path, AblationTable], broken: Mapping[str, str]) -> dict[str, Any]:
    """Columns by name with what they are, and rows with [value, low, high] of each in the unit that is shown.

    A circumstance is a number: its place among all values that circumstances take, `facts`. `smaller` holds, by
    accuracy, the costs of the model that was trained where that is not the row's own; `training`, what is the matter
    with the training behind one.
    """
    columns: dict[str, dict[str, str]] = {"tokens": TOKENS}
    rows, facts = [], {}
    for where, ablation in tables.items():
        for name, quantity in ablation.quantities().items():
            columns.setdefault(name, _column(quantity))
        for row in ablation.measured:
            numbers = {key: facts.setdefault(value, len(facts)) for key, value in row.facts().items()}
            rows.append(_row(where, ablation, row) | {"facts": numbers})
    reasons = [f"{name}: {reason}" for name, reason in broken.items()]
    return {"columns": columns, "facts": list(facts), "rows": rows, "broken": reasons}


def _column(quantity: Measurement) -> dict[str, str]:
    name = quantity.title
    if quantity.kind == "scored":  # of which there are several by one title
        name = " ".join([name, *(str(quantity.details[key]) for key in ("data", "budget") if key in quantity.details)])
    return {"title": name, "unit": unit(quantity)[0], "better": quantity.better, "kind": quantity.kind}


def _row(where: Path, ablation: AblationTable, row: Row) -> dict[str, Any]:
    tokens = exponents.tokens(row)
    values: dict[str, list] = {"tokens": [tokens]} if tokens else {}
    missing = {}
    for name, measured in row.record.measurements.items():
        if measured.missing:
            missing[name] = measured.missing
        else:
            values[name] = [_short(value) for value in _figures(row, measured)]
    smaller = {
        name: _trained(row, measured)
        for name, measured in row.record.measurements.items()
        if measured.kind == "scored" and measured.samples and accuracy.not_full(row, measured)
    }
    training = {name: text for name, m in row.record.measurements.items() if (text := probes.training_text(m))}
    verdicts = {"macs": str(row.verdict_flops), "params": str(row.verdict_params)}
    return {
        "row": row.name,
        "ablation": ablation.name,
        "folder": where.as_posix(),
        "record": row.record.case_id,
        "model": row.record.case.get("model") or "",
        "schemes": ", ".join(table.schemes(row.record.case)),
        "values": values,
        "smaller": smaller,
        "missing": missing,
        "training": training,
        "verdicts": {key: judged for key, judged in verdicts.items() if judged},
    }


def _trained(row: Row, measured: Measurement) -> dict[str, list[float]]:
    """The costs of the smaller model that an accuracy is of: no other may be set against it."""
    macs, params = accuracy.macs_per_view(row, measured.name), measured.details.get("params")
    counts = {"macs": macs and macs / 1e9, "params": params and params / 1e6}
    return {name: [_short(count)] for name, count in counts.items() if count is not None}


def _figures(row: Row, measured: Measurement) -> Iterator[float]:
    """Value and, where there is one, interval, in the unit that is shown."""
    (_, scale), (value, interval) = unit(measured), accuracy.figure(row, measured)
    yield value / scale
    if interval and interval.high > interval.low:
        yield from (interval.low / scale, interval.high / scale)


def _short(value: float) -> float:
    """Six digits: a page to look at is no place for more."""
    return float(f"{value:.6g}")
