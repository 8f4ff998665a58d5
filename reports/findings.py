"""What our own counts say against, or of, the printed costs: `python -m reports.findings outputs` writes `findings.md`.

A paragraph for each cell that a count contradicts, or that it gives only by a rule of its own or with a setting that
the paper does not state, with the arithmetic from the records; then what others counted of models that are not here.
"""

import argparse
import json
import re
import shlex
import sys
from decimal import Decimal
from pathlib import Path

from records.record import ablation_folders, write_text
from records.terminal import until_closed
from reports import counting, verdict
from reports.paper_table import PaperTable
from reports.table import UNREADABLE, AblationTable, Row, load, tell_unusable
from reports.text import escape, linked, rounded, sentence
from reports.verdict import Verdict

PAGE = "findings.md"


def page(tables: list[AblationTable]) -> str:
    """The findings of all tables: by paper, its numbered tables first, and what two ablations ask of one together."""
    sections: dict[tuple[str, bool, str], list[str]] = {}
    cited: dict[str, str] = {}
    for table in tables:
        if table.paper is None:
            continue
        paper, name = table.paper.paper, table.paper.table
        texts = sections.setdefault((paper, not name.startswith("Table"), name), [heading(table.paper)])
        texts += [paragraph for row in table.rows for paragraph in paragraphs(table, row)]
        cited |= {line: "" for row in table.rows if (line := recounted(row))}
    parts = [
        "# Findings",
        "What the printed costs are, where our own counts contradict or explain them. A paragraph of each cell: what "
        "is printed, what we count by the rule that its authors used and by others, why; then the command that counts "
        "the row again.",
    ]
    parts += [text for _, texts in sorted(sections.items()) if len(texts) > 1 for text in texts]
    if cited:
        parts += ["## Recounted elsewhere", "No model here stands for these rows; the counts are cited.", *cited]
    return "\n\n".join(parts) + "\n"


def heading(paper: PaperTable) -> str:
    """`## DualFormer, Table 1: ...` and the paper; of a paper whose title begins with no name, the table alone."""
    name = re.match(r"(\w+): ", paper.paper)
    place = f"{name[1]}, {paper.table}" if name else paper.table[:1].upper() + paper.table[1:]
    return f"## {place}: {paper.title}\n\n{linked(paper.paper)}."


def paragraphs(table: AblationTable, row: Row) -> list[str]:
    """One for each printed cell of a row with something to say."""
    if row.record is None or row.published is None or row.comparable is not True:
        return []
    texts, command = [], again(table, row)
    if remarkable(row.verdict_flops, row.counting != table.paper.counting):
        printed = f"{row.printed('flops')} G"
        texts.append(_paragraph(row, "operations", printed, _operations(row), row.verdict_flops, command))
    if remarkable(row.verdict_params, row.params_count != table.paper.params_count):
        printed = f"{row.printed('params')} M"
        texts.append(_paragraph(row, "parameters", printed, _parameters(row), row.verdict_params, command))
    for column in table.celled:
        cell, judged = table.cell(row, column)
        if remarkable(judged):
            count = format(cell.shown, "f") if isinstance(cell.shown, Decimal) else str(cell.shown)
            words = f"Our count: {count}" + (f", from {cell.exact}." if cell.exact else ".")
            texts.append(_paragraph(row, column.replace("_", " "), str(row.printed(column)), words, judged, command))
    return texts


def remarkable(judged: Verdict, own_rule: bool = False) -> bool:
    """Whether a cell is contradicted or explained, or comes out by another rule than its table's."""
    kinds = (verdict.NOT_REPRODUCED, verdict.EXPLAINED, *([verdict.REPRODUCED] if own_rule else []))
    return judged.kind in kinds


def _paragraph(row: Row, quantity: str, printed: str, arithmetic: str, judged: Verdict, command: str) -> str:
    notes = [sentence(note) for note in (row.explanation, row.note, row.published.note) if note]
    says = f"**{escape(row.name)}, {quantity}: {printed} printed, {judged}.** {arithmetic}"
    return " ".join([says, *dict.fromkeys(notes), f"Again: `{command}`."])


def _operations(row: Row) -> str:
    """The figure of one view, and what each rule would print."""
    views, printed = row.views, Decimal(str(row.printed("flops")))
    sentences = [f"{printed} / {views} = {_short(printed / views)} G a view."] if views and views > 1 else []
    by_rule: dict[str, list[str]] = {}
    for rule in counting.RULES:
        count = counting.operations(rule, row.count)
        if count is None or not views:
            continue
        total = row.printed_by(count)
        per_view = f"{rounded(count, 10**9, 2)}"
        text = f"{format(total, 'f')} G" + (f" ({views} × {per_view})" if views > 1 else f" ({per_view})")
        by_rule.setdefault(text, []).append(counting.WORDS[rule])
    rule_words = counting.WORDS.get(row.counting)
    for text, words in by_rule.items():
        if rule_words in words:
            sentences.append(f"By {rule_words} we count {text}.")
    others = [f"{' or '.join(words)}: {text}" for text, words in by_rule.items() if rule_words not in words]
    return " ".join([*sentences, f"By other rules: {'; '.join(others)}."] if others else sentences)


def _parameters(row: Row) -> str:
    counts = [("with the classifier", row.value("params_with_classifier")), ("without it", row.value("params"))]
    counted = [f"{count:,} {words}" for words, count in counts if count is not None]
    return f"We count {', '.join(counted)}."


def recounted(row: Row) -> str | None:
    """A count that others made of a model that is not here, beside the printed one."""
    cited = row.published.recounted if row.published else None
    if not cited or row.record is not None:
        return None
    views = row.views or 1
    per_view = _short(Decimal(str(row.printed("flops"))) / views)
    printed = f"{row.printed('flops')} G" + (f", {per_view} G for each of {views} views," if views > 1 else "")
    count = f"{cited.get('flops')} G and {cited.get('params')} M {cited.get('how', '')}"
    says = f"**{escape(row.name)}.** Printed: {printed} and {row.printed('params')} M."
    parts = [says, f"Recounted elsewhere, not here: {count} ({cited['source']})."]
    return " ".join([*parts, sentence(row.published.note)] if row.published.note else parts)


def again(table: AblationTable, row: Row) -> str:
    """The command that counts a row anew, with those that its cells are set against."""
    parts = [part for spec in row.cells.values() for part in (spec.get("of"), spec.get("over")) if part]
    names = [row.name.partition(" · ")[0], *(part["row"] for part in parts if "row" in part)]
    named = json.dumps([*dict.fromkeys(names)], ensure_ascii=False, separators=(",", ":"))
    words = [f"ablation={table.name.partition('/')[0]}", f"rows={named}", "metrics=[params,macs]"]
    return f"python -m harness.run {shlex.join(words)}"


def _short(value: Decimal) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def build(outputs: Path) -> Path:
    """Write the page beside the ablations' folders. Raises: RecordError, PaperTableError."""
    return write_text(page([load(folder) for folder in ablation_folders(outputs)]), outputs / PAGE)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m reports.findings", description=__doc__.partition("\n\n")[0])
    parser.add_argument("outputs", type=Path, help="the folder that holds the ablations' folders")
    outputs = parser.parse_args(arguments).outputs
    if not outputs.is_dir():
        print(f"error: {outputs} is not a folder; give the one that holds the ablations' folders", file=sys.stderr)
        return 2
    try:
        print(build(outputs))
        return int(tell_unusable(ablation_folders(outputs)))
    except UNREADABLE as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(until_closed(main))
