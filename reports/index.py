"""The list of all ablations of an outputs folder: questions, verdicts, and how many published costs were tried.

A published cost is counted once, however many tables hold the model: distinct are figures of other models or clips, and
of rows that no model here stands for, those of another row of a paper.
"""

import shlex
from collections.abc import Iterator

from records.record import canonical
from reports import accuracy, paper_table, verdict
from reports.table import AblationTable, Row
from reports.text import MISSING, Columns, counted, sentence, table_lines

TRIED = (verdict.REPRODUCED, verdict.EXPLAINED, verdict.NOT_REPRODUCED)


def distinct(tables: list[AblationTable]) -> dict[tuple, str]:
    """By model, clip, column and printed figure, the verdict of each published cost that was tried."""
    verdicts: dict[tuple, str] = {}
    for _, row, column, kind in _tried(tables):
        verdicts.setdefault((_model(row), column, row.printed(column)), kind)
    return verdicts


def _tried(tables: list[AblationTable]) -> Iterator[tuple[AblationTable, Row, str, str]]:
    """Each published cost that was tried, with its column and what became of it."""
    for table in tables:
        for row in table.measured:
            for column, judged in row.verdicts.items():
                if judged.kind in TRIED:
                    yield table, row, column, judged.kind


def _model(row: Row) -> str:
    """What is counted of a row: its model and, since operations depend on it, its clip."""
    case = row.record.case
    clip = {key: value for key, value in (case.get("clip") or {}).items() if key in ("frames", "size")}
    return canonical({"config": case.get("config"), "family": case.get("family"), "clip": clip})


def not_tried(tables: list[AblationTable]) -> tuple[int, int]:
    """How many cost cells the tables of papers hold, and how many of them no row here was held against."""
    cells = {
        (name, row.name, column)
        for name in paper_table.names()
        for row in paper_table.load(name).rows
        for column in ("flops", "params")
        if row.cells.get(column) is not None
    }
    tried = {(table.paper.name, row.published.name, column) for table, row, column, _ in _tried(tables)}
    return len(cells), len(cells - tried)


def ordering_counts(table: AblationTable) -> dict[str, int]:
    """How many of the paper's orders were confirmed, contradicted or not told, on the built-in data's largest budget.

    Other data and smaller budgets judge the same orders; they stand in the report itself.
    """
    names = [name for name in accuracy.names(table) if accuracy.is_built_in(table, name)]
    tallies = [accuracy.verdict_counts(accuracy.orderings(table, name).values()) for name in names]
    return next((tally for tally in reversed(tallies) if tally), {})


def index(tables: list[AblationTable], broken: dict[str, str], costs: str | None, explore: str, where: str) -> str:
    """The page; `broken` maps a folder to what is wrong with it, `costs` is the file name of the page of costs, if any,
    `explore` the path of the page to explore, `where` the folder as it is called from a clone."""
    orders = {table.name: ordering_counts(table) for table in tables}
    columns: Columns = [
        ("ablation", lambda table: f"[{table.name}]({table.name}/report.md)"),
        ("question", lambda table: table.question),
        ("rows", lambda table: f"{len(table.measured)} of {sum(not row.published_only for row in table.rows)}"),
    ]
    counts = {table.name: verdict.counts(table.verdicts()) for table in tables}
    for kind in TRIED:
        columns.append((kind, lambda t, kind=kind: str(counts[t.name].get(kind, 0)) if t.paper else MISSING))
    if any(orders.values()):
        columns.append((f"order {', '.join(accuracy.DECIDED)}", lambda table: _orders(orders[table.name])))
    kinds = list(distinct(tables).values())
    by_kind = ", ".join(f"{kinds.count(kind)} {kind}" for kind in TRIED)
    cells, untried = not_tried(tables)
    sentences = [
        f"Of {counted(len(kinds), 'distinct published cost figure')} (operations and parameters) that were tried: "
        f"{by_kind}. The same model in several tables is counted once; a line below counts what its own table holds.",
        f"The papers' tables at hand print {cells} cost figures; {untried} of them were not attempted: no model here "
        "stands for the row, or what the paper counts is not known.",
    ]
    sentences = sentences if kinds else []  # a folder in which nothing is set against a paper
    if any(orders.values()):
        sentences.append(
            "Orders are published differences in accuracy to a baseline, held against small models trained here, by "
            "paired tests over seeds."
        )
    parts = ["# Ablations", " ".join(sentences), table_lines(tables, columns)]
    parts.append("[All figures as one table](results.csv): a line for each row and measurement.")
    parts.append(f"[The same to explore]({explore}): one page for a browser, in which axes, rows and order are chosen.")
    parts += [f"[What attention costs here]({costs}): all that was timed, on one page."] if costs else []
    if broken:
        listed = "\n".join(f"- {name}: {sentence(reason)}" for name, reason in broken.items())
        parts += ["## Not listed", listed]
    parts.append(f"Rebuild: `python -m reports.build {shlex.quote(where)}`")
    return "\n\n".join(part for part in parts if part) + "\n"


def _orders(counts: dict[str, int]) -> str:
    return " / ".join(str(counts.get(kind, 0)) for kind in accuracy.DECIDED) if counts else MISSING
