"""The rows of an ablation as data: `table.csv`, one line per row, and `results.csv`, one line per row and measurement.

The columns of `results.csv` are `LONG`, and stay what they are within a schema; docs/measuring.md says what each holds.
"""

import json
from decimal import Decimal
from typing import Any

from records.record import Measurement, Quantity
from reports import accuracy, accuracy_section, probes, roofline, sparsity
from reports.markdown import NOT_DISTINGUISHABLE, PUBLISHED_COUNTS, has_ratio
from reports.statistics import Ratio
from reports.table import FACTS, AblationTable, Row
from reports.text import table_csv

SCHEMA = 2
LONG = (
    "schema", "ablation", "row", "case_id", "measurement", "kind", "unit", "better", "value", "low", "high", "samples",
    "visits", "missing", "baseline", "ratio", "ratio_low", "ratio_high", "verdict", "noise_floor", "published",
    "published_unit", "published_verdict", "training", *FACTS,
)  # fmt: skip
PUBLISHED = {"flops": "published_flops_g", "params": "published_params_m"}  # the CSV's names, with the unit


def long_csv(tables: list[AblationTable]) -> str:
    """Every measurement of every row of some ablations."""
    lines = [
        _long_line(table, row, measured)
        for table in tables
        for row in table.measured
        for measured in row.record.measurements.values()
    ]
    return table_csv(lines, LONG)


def _long_line(table: AblationTable, row: Row, measured: Measurement) -> dict[str, Any]:
    name = measured.name
    line = {"schema": SCHEMA, "ablation": table.name, "row": row.name, "case_id": row.record.case_id}
    line |= {key: getattr(measured, key) for key in ("kind", "unit", "better", "missing")} | {"measurement": name}
    line |= {"samples": len(measured.samples), "visits": len(measured.visits), "baseline": row.baseline}
    line |= {key: row.facts().get(key) for key in FACTS}
    line["value"], interval = accuracy.figure(row, measured)
    if measured.kind == "probed" and measured.samples:
        line["training"] = probes.training_word(measured)
    if measured.kind == "scored":
        line["training"] = accuracy.learning_word(measured)
        column, judged = accuracy.full_column(table, name), accuracy.judge_full(table, row, name)
    else:
        column = next((column for column, count in PUBLISHED_COUNTS.items() if count == name), None)
        judged = row.verdicts.get(column)
    line |= {"low": interval.low, "high": interval.high} if interval else {}
    if column and row.printed(column) is not None:
        line |= {"published": row.printed(column), "published_unit": table.paper.units[column]}
        line["published_verdict"] = str(judged)
    return line | ratio_cells(table, row, measured)


def ratio_cells(table: AblationTable, row: Row, quantity: Quantity) -> dict[str, Any]:
    """A cost against that of the baseline; empty for what is no cost."""
    if not has_ratio(quantity):
        return {}
    ratio = table.ratio(row, quantity.name)
    if not isinstance(ratio, Ratio):
        return {"verdict": ratio}
    interval = ratio.interval
    verdict = ("higher" if interval.value > 1 else "lower") if ratio.distinguishable else NOT_DISTINGUISHABLE
    ends = {"ratio": interval.value, "ratio_low": interval.low, "ratio_high": interval.high}
    return ends | {"verdict": verdict, "noise_floor": ratio.floor}


def csv(table: AblationTable) -> str:
    """One line per row: what was published, every measurement with intervals, ratios and verdicts, circumstances.

    A measurement has its name as column, in the unit of its records.
    """
    orderings = {name: accuracy.orderings(table, name) for name in accuracy.names(table)}
    rows = [
        _csv_row(table, row)
        | roofline.csv_row(table, row)
        | accuracy_section.csv_row(table, row, orderings)
        | probes.csv_row(table, row)
        | sparsity.csv_row(table, row)
        for row in table.rows
    ]
    columns = [column for row in rows for column in row if column not in (*FACTS, "case_id", "missing")]
    return table_csv(rows, [*columns, *FACTS, "case_id", "missing"])


def _csv_row(table: AblationTable, row: Row) -> dict[str, Any]:
    notes = [note for note in (row.note, row.published.note if row.published else None) if note]
    measured = row.record.measurements if row.record else {}
    columns = {column for sibling in table.rows if sibling.published for column in sibling.published.cells}
    cells = {
        "row": row.name,
        "views": row.views,
        **{name: row.printed(column) for column, name in PUBLISHED.items()},
        "measured_flops_g": row.authors_flops,
        "measured_params_m": row.authors_params,
        "verdict_flops": str(row.verdict_flops),
        "verdict_params": str(row.verdict_params),
        "macs_by_authors_rule": row.macs_by_authors_rule,
        "counting": row.counting,
        "params_count": row.params_count,
        **{f"published_{column}": _csv_cell(row.printed(column)) for column in sorted(columns - PUBLISHED.keys())},
        "note": "; ".join(notes),
        "explanation": row.explanation,
        "fit": _csv_cell(row.fit) if row.explanation else None,
        "comparable": _csv_cell(row.comparable),
        "baseline": row.baseline,
    }
    for column in table.celled:
        cell, judged = table.cell(row, column)
        text = str(cell.shown) if isinstance(cell.shown, Decimal) else _csv_cell(cell.shown)
        cells |= {f"measured_{column}": text, f"verdict_{column}": str(judged)}
    for name, quantity in table.quantities().items():
        if quantity.kind not in ("scored", "probed"):  # whose cells are of their sections
            cells |= _csv_measured(table, row, name, quantity)
    absent = [f"{name}: {measurement.missing}" for name, measurement in measured.items() if measurement.missing]
    cells |= {key: row.facts().get(key) for key in FACTS}
    cells |= {"case_id": row.record.case_id if row.record else None}
    return cells | {"missing": row.missing or "; ".join(absent) or None}


def _csv_measured(table: AblationTable, row: Row, name: str, quantity: Quantity) -> dict[str, Any]:
    if quantity.kind == "counted":
        return {name: row.value(name)}
    interval, cells = row.interval(name), {name: row.value(name)}
    cells |= dict.fromkeys((f"{name}_low", f"{name}_high", f"{name}_n", f"{name}_rounds"))
    if interval:
        samples, visits = row.measurement(name).samples, row.measurement(name).visits
        cells |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
        cells |= {f"{name}_n": len(samples), f"{name}_rounds": len(visits)}
    if has_ratio(quantity):
        ratio = ratio_cells(table, row, quantity)
        names = {"verdict": "ratio_verdict"}
        for key in ("ratio", "ratio_low", "ratio_high", "verdict", "noise_floor"):
            cells[f"{name}_{names.get(key, key)}"] = ratio.get(key)
    return cells


def _csv_cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict | bool) else value
