"""A report as Markdown, CSV and LaTeX, from the rows of one ablation: measurements say themselves what they are."""

import json
import shlex
from decimal import Decimal
from typing import Any

from records.record import Quantity
from reports import accuracy, accuracy_section, counting, exponents, roofline, shares, statistics, verdict
from reports.statistics import Interval, Ratio
from reports.table import NOT_YET, AblationTable, Row
from reports.text import (
    MISSING,
    Columns,
    Notes,
    counted,
    heading,
    sentence,
    shown,
    significant,
    table_csv,
    table_lines,
    table_tex,
    unit,
)
from reports.verdict import Verdict

PUBLISHED_COUNTS = {"flops": "macs", "params": "params"}  # a published column: the count that it is set against
FACTS = ("device", "dtype", "kernel", "operators", "mode", "batch", "threads", "clip", "commit")
PUBLISHED = {"flops": "published_flops_g", "params": "published_params_m"}  # the CSV's names, with the unit
HEADINGS = {"operators": "attention operator"}  # of the facts that are not called by their own name
NOT_DISTINGUISHABLE = "not distinguishable"
IN_MAIN_TABLE = 3  # of what was timed and sized; the others have a table of their own
LAUNCH_BOUND = 0.9  # of the time of a run on a GPU: the host was busy launching for so long
ROUGH = f"the interval is wider than {statistics.WIDE:.0%} of the median: take it as rough"
FINITE = {"finite_logits": "outputs were", "finite_loss": "loss was"}  # details that say so, and of what


def report(table: AblationTable, figures: dict[str, str]) -> str:
    """The whole report; `figures` maps the file name of each figure to its caption."""
    notes = Notes()
    drawn = [_links(figures)]
    if "scaling.png" in figures and (fitted := exponents.section(table, notes)):
        drawn.append(f"{fitted}\n\nThe same [as CSV]({exponents.FILE}).")
    main = table_lines(table.rows, main_columns(table, notes))
    parts = [f"# {table.question}", "\n".join(f"- {line}" for line in summary(table)), circumstances(table)]
    parts += [*drawn, main, _legend(table), accuracy_section.section(table, notes)]
    parts += [_further(table, notes), roofline.section(table, notes), _precision(table)]
    if notes.texts:
        parts.append(
            "## Notes\n\n" + "\n".join(f"{i}. {sentence(text)}" for i, text in enumerate(notes.texts, start=1))
        )
    if table.paper:
        parts.append(_published(table))
    if table.warnings:
        parts.append("## Warnings\n\n" + "\n".join(f"- {sentence(text)}" for text in table.warnings))
    parts.append(_again(table))
    return "\n\n".join(part for part in parts if part) + "\n"


def summary(table: AblationTable) -> list[str]:
    """What became of the published costs, what the measurements say, and what the accuracies do."""
    return [line for line in (_verdict_line(table), _measured_line(table), *accuracy_section.summary(table)) if line]


def verdict_counts(table: AblationTable) -> dict[str, int]:
    """How many published cost cells got each verdict."""
    kinds = [v.kind for v in table.verdicts()]
    return {kind: kinds.count(kind) for kind in verdict.VERDICTS if kind in kinds}


def ordering_counts(table: AblationTable) -> dict[str, int]:
    """How many of the paper's orders were confirmed, contradicted or not told, on the built-in data's largest budget.

    Other data and smaller budgets judge the same orders; they stand in the report itself.
    """
    own = [name for name in accuracy.names(table) if accuracy.is_built_in(table, name)]
    found = [counts for name in own if (counts := accuracy.verdict_counts(accuracy.orderings(table, name).values()))]
    return found[-1] if found else {}


def _verdict_line(table: AblationTable) -> str:
    if table.paper is None:
        return "An ablation of our own: no paper prints these costs."
    counts = verdict_counts(table)
    if not counts:
        return f"{table.paper.table} of the paper prints accuracies but no costs of these rows; all costs are measured."
    fits = sum(
        v.kind == verdict.EXPLAINED for row in table.rows if row.fit for v in (row.verdict_flops, row.verdict_params)
    )
    words = {
        verdict.REPRODUCED: "reproduced to the printed precision",
        verdict.EXPLAINED: f"explained by settings that the paper does not state ({fits} of them fits)",
        verdict.PUBLISHED_ONLY: "published only (no model here stands for the row)",
    }
    said = [f"{n} {words.get(kind, kind)}" for kind, n in counts.items()]
    return f"Of {counted(sum(counts.values()), 'published cost figure')}: {', '.join(said)}."


def _measured_line(table: AblationTable) -> str:
    if not table.measured:
        return "Nothing has been measured yet."
    said = []
    first = costs(table)[:1]
    titles = {"macs": ("G multiply-adds per view", 10**9)}
    titles |= {n: (f"{unit(q)[0]} {q.title}", unit(q)[1]) for n in first if (q := table.quantities()[n])}
    for name, (words, scale) in titles.items():
        rows = [row for row in table.rows if row.value(name) is not None]
        if not rows or (name in first and table.mixed):
            continue
        low, high = min(rows, key=lambda row: row.value(name)), max(rows, key=lambda row: row.value(name))
        least, most = (significant(row.value(name) / scale) for row in (low, high))
        span = f"{least}" if least == most else f"{least} ({low.name}) to {most} ({high.name})"
        said.append(f"{span} {words}")
    absent = [row for row in table.rows if row.record is None and not row.published_only]
    line = f"Measured: {'; '.join(said)}." if said else ""
    return line + (f" {counted(len(absent), 'row')} not measured{_how(table, absent)}." if absent else "")


def _how(table: AblationTable, absent: list[Row]) -> str:
    """The way to the rows that have no record yet; nothing where something else is the matter with them."""
    if not any(row.missing == NOT_YET for row in absent):
        return ""
    left_out = any(word.startswith("rows=") for word in table.arguments)
    return f": the command at the end{' without its `rows=...`' if left_out else ''} measures what has no record yet"


def circumstances(table: AblationTable) -> str:
    """On what the rows were measured: one line for what they share, a warning where they differ."""
    found = table.facts()
    if not found:
        return ""
    timed = "device" in found
    said = []
    for key in FACTS:
        if len(found.get(key, [])) == 1:
            named = key in ("kernel", "operators", "batch", "threads", "clip", "commit")
            said.append(f"{HEADINGS.get(key, key)} {found[key][0]}" if named else found[key][0])
    differ = [key for key in FACTS if len(found.get(key, [])) > 1]
    start = "Measured on: " if timed else "Counted without running (no timings in these records): "
    line = start + ", ".join(said) + "." if said else ""
    if differ:
        line += f" The rows differ in {', '.join(HEADINGS.get(key, key) for key in differ)}: see those columns."
    if timed and table.mixed:
        line += " Latency and memory of rows that differ there must not be compared."
    return line.strip() + (f"\n{sentence(table.size_note)}" if table.size_note else "")


def tex(table: AblationTable) -> str:
    """The main table for a paper."""
    notes = Notes()
    columns = main_columns(table, notes)
    for row in table.rows:  # a cell may add a footnote
        for _, cell in columns:
            cell(row)
    return table_tex(table.rows, columns, notes)


def main_columns(table: AblationTable, notes: Notes) -> Columns:
    """What the paper prints beside what was counted, the first costs that were measured, accuracies, circumstances."""
    columns: Columns = [("row", lambda row: _name(row, notes))]
    columns += _cost_columns(table, notes)
    columns += measured_columns(table, costs(table)[:IN_MAIN_TABLE], notes, count=True)
    for column in printed(table):
        heading = f"{_printed_title(column)}, {table.paper.units[column]}, published"
        columns.append((heading, lambda row, column=column: _published_cell(row, column)))
    columns += accuracy_section.main_columns(table, notes)
    return columns + differing_columns(table)


def costs(table: AblationTable) -> list[str]:
    """What costs time or memory, then what else was timed or sized, in the order of the records."""
    kinds = ("timed", "sized")
    own = {name: q for name, q in table.quantities().items() if q.kind in kinds}
    return sorted(own, key=lambda name: (not has_ratio(own[name]), kinds.index(own[name].kind)))


def further(table: AblationTable) -> list[str]:
    """What the main table has no column for: costs beyond its first, parts of a whole, and other counts."""
    quantities = table.quantities()
    kinds = ("shared", "counted")
    others = [n for kind in kinds for n, q in quantities.items() if q.kind == kind and q.better != "none"]
    return [*costs(table)[IN_MAIN_TABLE:], *(name for name in others if name not in PUBLISHED_COUNTS.values())]


def has_ratio(quantity: Quantity) -> bool:
    """Whether it is set against the baseline's: what costs time or memory."""
    return quantity.kind in ("timed", "sized") and quantity.better == "lower"


def measured_columns(table: AblationTable, names: list[str], notes: Notes, *, count: bool = False) -> Columns:
    """A column for each measurement, and one of its ratios to the baseline where it is a cost; `count` samples in the
    first."""
    columns: Columns = []
    for name in names:
        quantity = table.quantities()[name]
        counts = count and not columns
        title = heading(quantity) + (": median (95 % interval, n)" if counts else "")
        columns.append((title, lambda row, name=name, counts=counts: spread(row, name, notes, count=counts)))
        if has_ratio(quantity):
            columns += ratio_columns(table, name, notes)
    return columns


def printed(table: AblationTable) -> list[str]:
    """The columns of the paper that hold numbers and are not set against counts: its accuracies above all."""
    own = [column for column in (table.paper.units if table.paper else ()) if column not in PUBLISHED_COUNTS]
    return [column for column in own if any(isinstance(row.printed(column), int | float) for row in table.rows)]


def _printed_title(column: str) -> str:
    """`k400_top1` as K400 top-1."""
    first, *rest = column.replace("top1", "top-1").replace("top5", "top-5").split("_")
    first = first.upper() if any(map(str.isdigit, first)) and len(first) < 8 and "-" not in first else first
    return " ".join([first, *rest]) + (" ↑" if "top-" in column.replace("top", "top-") else "")


def differing_columns(table: AblationTable) -> Columns:
    """A column for each circumstance in which the rows differ, as `circumstances` promises."""
    columns: Columns = []
    found = table.facts()
    for key in FACTS:
        if len(found.get(key, [])) > 1:
            columns.append((HEADINGS.get(key, key), lambda row, k=key: row.facts().get(k, MISSING)))
    return columns


def _cost_columns(table: AblationTable, notes: Notes) -> Columns:
    """Operations and parameters: published, measured and verdict where the paper prints them, else measured alone."""
    columns: Columns = []
    if table.publishes("flops"):
        views = sorted({row.views for row in table.rows if row.views})
        over = f"{counted(views[0], 'view')}" if len(views) == 1 else "all views"
        columns += [
            (f"GFLOPs ↓, {over}, published", lambda row: _published_cell(row, "flops")),
            (f"GFLOPs ↓, {over}, measured", lambda row: _flops(row, notes)),
            ("GFLOPs, verdict", lambda row: _verdict(row, row.verdict_flops, notes)),
        ]
    elif table.asked("macs"):
        columns.append(("GMACs ↓, one view", lambda row: plain(row, "macs", 10**9, notes, decimals=3)))
    if table.publishes("params"):
        columns += [
            ("params ↓, M, published", lambda row: _published_cell(row, "params")),
            ("params ↓, M, measured", lambda row: _params(row, notes)),
            ("params, verdict", lambda row: _verdict(row, row.verdict_params, notes)),
        ]
    elif table.asked("params"):
        columns.append(("params ↓, M", lambda row: plain(row, "params", 10**6, notes, decimals=3)))
    return columns


def _name(row: Row, notes: Notes) -> str:
    text = row.name
    said = [row.note, row.published.note if row.published else None, _recounted(row)]
    if row.explanation and verdict.EXPLAINED not in (row.verdict_flops.kind, row.verdict_params.kind):
        said.append(_explanation(row))
    for note in said:
        text += notes.mark(note) if note else ""
    return text


def _recounted(row: Row) -> str | None:
    """What others counted of a model that is not here, as a citation."""
    cited = row.published.recounted if row.published else None
    if not cited:
        return None
    counts = [f"{cited[key]} {unit}" for key, unit in (("flops", "G a view"), ("params", "M")) if key in cited]
    return f"Recounted elsewhere, not here: {', '.join(counts)}{_how_counted(cited)} ({cited['source']})"


def _how_counted(cited: dict[str, Any]) -> str:
    return f", {cited['how']}" if cited.get("how") else ""


def _explanation(row: Row) -> str:
    kind = (
        "The paper does not state this setting; it was found by searching settings for the printed number, so it is a "
        "fit, not a confirmation"
        if row.fit
        else "The paper does not state this setting"
    )
    return f"{row.explanation}. {kind}"


def _verdict(row: Row, judged: Verdict, notes: Notes) -> str:
    if judged.kind is None:
        return MISSING
    if judged.kind == verdict.EXPLAINED:
        return ("explained (fit)" if row.fit else "explained") + notes.mark(_explanation(row))
    if judged.kind == verdict.NOT_REPRODUCED:
        return f"**{judged.kind}**"
    return judged.kind + (notes.mark(f"not compared: {judged.reason}") if judged.reason else "")


def _published_cell(row: Row, column: str) -> str:
    value = row.printed(column)
    return MISSING if value is None else str(value)


def _flops(row: Row, notes: Notes) -> str:
    exact, shown = row.macs_by_authors_rule, row.authors_flops
    if exact is None or shown is None:
        if row.value("macs") is not None:
            return f"{verdict.rounded(row.value('macs'), 10**9, 2)} per view (multiply-adds)"
        return missing_cell(row, "macs", notes)
    per_view = verdict.rounded(exact, 10**9, max(2, row.decimals("flops", "per_view_decimals") + 2))
    over_views = f"{row.views} × {per_view}" if row.views != 1 else str(per_view)
    return f"{_number(shown)} ({over_views})" if row.comparable is True else over_views


def _params(row: Row, notes: Notes) -> str:
    exact, shown = row.authors_params_exact, row.authors_params
    return missing_cell(row, "params", notes) if exact is None else f"{_number(shown)} ({exact:,})"


def spread(row: Row, name: str, notes: Notes, *, count: bool = True) -> str:
    """A median with its interval; what makes it less sure than others stands in a footnote."""
    measured, interval = row.measurement(name), row.interval(name)
    if measured is None or interval is None:
        return missing_cell(row, name, notes)
    value, low, high = (shown(measured, one) for one in (measured.value, interval.low, interval.high))
    n = f"n={len(measured.samples)}" if count else ""
    known = measured.ran and (name in row.spreads or len(measured.visits) > 1)
    inside = ", ".join(part for part in (f"{low}–{high}" if known else "", n) if part)
    text = (f"{value} ({inside})" if inside else value) + wide(interval, notes)
    if False in measured.said("settled"):
        text += notes.mark("the time had not settled when the warm-up ended: take it as rough")
    if max(measured.said("launch_share"), default=0) > LAUNCH_BOUND:
        text += notes.mark("the host was busy launching for most of this time: the device alone may be faster")
    if measured.details.get("bound", "memory") != "memory":
        text += notes.mark(f"larger batches may fit: the search ended with this: {measured.details['bound']}")
    for detail, what in FINITE.items():
        if False in measured.said(detail):
            text += notes.mark(f"the {what} not finite (nan or infinity): the cost of a computation that failed")
    unfinished = row.unfinished(name)
    return text + (notes.mark(unfinished) if unfinished else "")


def wide(interval: Interval, notes: Notes) -> str:
    """The mark of an interval that says little."""
    return notes.mark(ROUGH) if interval.wide else ""


def ratio_columns(table: AblationTable, name: str, notes: Notes) -> Columns:
    """The column of ratios to the baseline, where the ablation names one that is measured."""
    bases = [base for row in table.rows if (base := table.baseline_of(row)) and base.value(name) is not None]
    if not bases:
        return []
    one = bases[0].name if len({base.name for base in bases}) == 1 else "the baseline"
    return [
        (
            f"{table.quantities()[name].title} ↓ / {one}: ratio (95 % interval)",
            lambda row: _ratio(table, row, name, notes),
        )
    ]


def _ratio(table: AblationTable, row: Row, name: str, notes: Notes) -> str:
    if table.baseline_of(row) is row:
        return "1 (baseline)" if row.value(name) is not None else MISSING
    ratio = table.ratio(row, name)
    if ratio is None:
        return MISSING
    if isinstance(ratio, str):
        return MISSING + notes.mark(ratio)
    differs = table.ran_differently(row, name)
    marks = notes.mark(f"different things ran: {differs}") if differs else ""
    if not ratio.paired:
        marks += notes.mark("the two were not measured in turn in one run: the ratio is of two independent medians")
    return ratio_text(ratio) + wide(ratio.interval, notes) + marks


def ratio_text(ratio: Ratio) -> str:
    """A ratio with its interval, and whether it says anything."""
    one = ratio.interval
    text = significant(one.value)
    if not ratio.once:
        text += f" ({significant(one.low)}–{significant(one.high)})"
    return text if ratio.distinguishable else f"{text}, {NOT_DISTINGUISHABLE}"


def _further(table: AblationTable, notes: Notes) -> str:
    names = further(table)
    if not names:
        return ""
    columns = [("row", lambda row: row.name), *measured_columns(table, names, notes)]
    parts = ["## Further measurements", table_lines(table.rows, columns), shares.said(table)]
    return "\n\n".join(part for part in parts if part)


def _precision(table: AblationTable) -> str:
    """How medians, intervals and ratios are made, and how far they can be trusted on this machine."""
    quantities = table.quantities()
    timed = [name for name in quantities if quantities[name].kind in ("timed", "sized", "shared") and table.has(name)]
    if not timed:
        return ""
    said = [
        "A round visits every row once, each in a process of its own. In brackets: 95 % intervals of the medians, by "
        "Student's t with one standard deviation between rounds for all rows that vary alike; such an interval holds "
        f"the true median {statistics.HOLDS} (simulated)."
    ]
    repeated = [m for row in table.rows for name in timed if (m := row.measurement(name)) and len(m.samples) > 1]
    if any(len(statistics.by_round(measured)) == 1 for measured in repeated):
        said.append("What has one round in a table without rows of two has no interval: samples of one process say ")
        said[-1] += "nothing of the next."
    compared = [name for name in timed if has_ratio(quantities[name]) and ratio_columns(table, name, Notes())]
    if compared:
        said.append(
            "Ratios are medians over the rounds of one median over the baseline's in that round. A ratio whose "
            f"interval holds 1 is {NOT_DISTINGUISHABLE}; one without an interval is of single rounds, and is so below "
            "the noise floor. " + floors_in_words({quantities[name].title: table.floor(name) for name in compared})
        )
    return "\n\n".join(["## How sure", " ".join(said)])


def floors_in_words(floors: dict[str, float | None]) -> str:
    """One line: the noise floor of each measurement, by its title; None where one is assumed."""
    measured = [f"{title} {floor:.1%}" for title, floor in floors.items() if floor is not None]
    assumed = [title for title, floor in floors.items() if floor is None]
    said = []
    if measured:
        said.append(
            f"Noise floor (A/A): {', '.join(measured)}: from which difference on two rows are told apart, from how "
            "much the rounds of a row differ, without what moved all rows of a round alike; never less than "
            f"{statistics.LEAST_FLOOR:.0%}. Timings that were not taken in turn are held to "
            f"{statistics.ASSUMED_FLOORS['timed']:.0%} at least."
        )
    if assumed:
        said.append(
            f"Noise floor of {', '.join(assumed)}: no row has two rounds, so {statistics.ASSUMED_FLOORS['timed']:.0%} "
            f"is assumed of what is timed and {statistics.ASSUMED_FLOORS['sized']:.0%} of memory."
        )
    return " ".join(said)


def plain(row: Row, name: str, scale: int, notes: Notes, decimals: int) -> str:
    """A count, which has no interval."""
    value = row.value(name)
    return missing_cell(row, name, notes) if value is None else str(verdict.rounded(value, scale, decimals))


def missing_cell(row: Row, name: str, notes: Notes) -> str:
    return MISSING if row.published_only else MISSING + notes.mark(row.reason(name))


def _legend(table: AblationTable) -> str:
    said = ["↓ lower is better, ↑ higher is better."]
    if table.publishes("flops"):
        said.append(
            f"GFLOPs are multiply-adds as the paper counts them{_rules(table)}"
            + ", classifier left out where the rule does not say so. Measured figures are rounded as the paper rounds "
            "(one view to the printed precision, then times the views); the figure in brackets is one view before "
            "rounding."
        )
    elif table.asked("macs"):
        said.append(
            "GMACs are 10^9 multiply-adds of one view without the classifier; norms, softmax and activations count 0."
        )
    if table.publishes("params"):
        counts = {row.params_count for row in table.rows if row.record and row.printed("params") is not None}
        if counts == {"with_classifier"}:
            said.append("Parameters include the classifier, as in the published column.")
        elif counts == {"without_classifier"}:
            said.append("Parameters leave the classifier out, as the published column does.")
        elif counts:
            said.append("Parameters include the classifier in the rows whose published figure does.")
    elif table.asked("params"):
        said.append("Parameters leave the classifier out.")
    said.append(accuracy_section.legend(table, bool(printed(table))))
    if table.paper and any(row.published is None for row in table.rows):
        said.append(f"{MISSING} in a published column or its verdict: the paper prints no such figure.")
    elif table.paper and any(row.published_only for row in table.rows):
        said.append(f"{MISSING}: not printed by the paper, or no model here stands for the row.")
    return " ".join(part for part in said if part)


def _rules(table: AblationTable) -> str:
    """By which rules the rows are counted, the rarer one with the names of its rows."""
    by_rule = {rule: [row.name for row in table.measured if row.counting == rule] for rule in counting.RULES}
    used = sorted((rule for rule in by_rule if by_rule[rule]), key=lambda rule: -len(by_rule[rule]))
    said = [counting.WORDS[rule] + (f" for {', '.join(by_rule[rule])}" if rule != used[0] else "") for rule in used]
    return f", by {', but '.join(said)}" if said else ""


def _published(table: AblationTable) -> str:
    paper = table.paper
    lines = ["## The published table", "", f"{paper.title}: {paper.table}, {paper.paper}. Source: {paper.source}."]
    lines += ["", *(f"- {sentence(note)}" for note in paper.notes)] if paper.notes else []
    return "\n".join(lines)


def _again(table: AblationTable) -> str:
    words = [word for word in table.arguments or (f"ablation={table.name}",) if not word.startswith("metrics=")]
    of_suite = any(word.startswith("suite=") for word in words)  # whose steps say what is measured
    words += [f"metrics=[{','.join(table.metrics)}]"] if table.metrics and not of_suite else []
    trained = accuracy.names(table)
    if trained and not of_suite and not any(word.startswith("accuracy=") for word in words):
        # where metrics are named, it is off unless it is named
        words.append(f"accuracy={accuracy.budget(table, trained[0])}")
    words += ["quick=true"] if table.quick and "quick=true" not in words else []
    what = shlex.join(words)
    folder = f"outputs/{'quick/' if table.quick else ''}{table.name}"
    return (
        "## Make it again\n\n```bash\n"
        f"python -m harness.run {what}  # measures what has no record yet; force=true measures all\n"
        f"python -m reports.build {folder}  # this file, the CSV and the figures, from the records alone\n```"
    )


def _links(figures: dict[str, str]) -> str:
    return "\n\n".join(f"![{caption}]({name})" for name, caption in figures.items())


def csv(table: AblationTable) -> str:
    """One line per row: what was published, every measurement with intervals, ratios and verdicts, circumstances.

    A measurement has its name as column, in the unit of its records.
    """
    orderings = {name: accuracy.orderings(table, name) for name in accuracy.names(table)}
    rows = [
        _csv_row(table, row) | roofline.csv_row(table, row) | accuracy_section.csv_row(table, row, orderings)
        for row in table.rows
    ]
    columns = [column for row in rows for column in row if column not in (*FACTS, "case_id", "missing")]
    return table_csv(rows, [*columns, *FACTS, "case_id", "missing"])


def _csv_row(table: AblationTable, row: Row) -> dict[str, Any]:
    notes = [note for note in (row.note, row.published.note if row.published else None) if note]
    measured = row.record.measurements if row.record else {}
    columns = {column for other in table.rows if other.published for column in other.published.cells}
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
        "fit": _bool(row.fit) if row.explanation else None,
        "comparable": _bool(row.comparable) if isinstance(row.comparable, bool) else row.comparable,
        "baseline": row.baseline,
    }
    for name, quantity in table.quantities().items():
        if quantity.kind != "scored":  # whose cells are of the section on accuracy
            cells |= _csv_measured(table, row, name, quantity)
    absent = [f"{name}: {one.missing}" for name, one in measured.items() if one.missing]
    cells |= {key: row.facts().get(key) for key in FACTS}
    cells |= {"case_id": row.record.case_id if row.record else None}
    return cells | {"missing": row.missing or "; ".join(absent) or None}


def _csv_measured(table: AblationTable, row: Row, name: str, quantity: Quantity) -> dict[str, Any]:
    cells: dict[str, Any] = {name: row.value(name)}
    if quantity.kind == "counted":
        return cells
    measured, interval = row.measurement(name), row.interval(name)
    cells |= {f"{name}_low": interval.low, f"{name}_high": interval.high} if interval else {}
    cells |= {f"{name}_n": len(measured.samples), f"{name}_rounds": len(measured.visits)} if interval else {}
    cells = {f"{name}{end}": cells.get(f"{name}{end}") for end in ("", "_low", "_high", "_n", "_rounds")}
    if not has_ratio(quantity):
        return cells
    ratio = table.ratio(row, name)
    found = ratio.interval if isinstance(ratio, Ratio) else None
    verdict = ratio if isinstance(ratio, str) else None
    if found:
        side = "higher" if found.value > 1 else "lower"
        verdict = side if ratio.distinguishable else NOT_DISTINGUISHABLE
    return cells | {
        f"{name}_ratio": found.value if found else None,
        f"{name}_ratio_low": found.low if found else None,
        f"{name}_ratio_high": found.high if found else None,
        f"{name}_ratio_verdict": verdict,
        f"{name}_noise_floor": ratio.floor if found else None,
    }


def _csv_cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict | bool) else value


def _bool(value: bool) -> str:
    return "true" if value else "false"


def index(tables: list[AblationTable], broken: dict[str, str], costs: str | None = None) -> str:
    """The list of all ablations with the verdicts of their costs; `broken` maps a folder to what is wrong with it.

    `costs` is the file name of the page of costs, where there is one.
    """
    orders = {table.name: ordering_counts(table) for table in tables}
    totals = dict.fromkeys(verdict.VERDICTS, 0)
    for table in tables:
        for kind, n in verdict_counts(table).items():
            totals[kind] += n
    ordered = accuracy.DECIDED if any(orders.values()) else ()
    columns: Columns = [
        ("ablation", lambda table: f"[{table.name}]({table.name}/report.md)"),
        ("question", lambda table: table.question),
        (
            "rows measured",
            lambda table: f"{len(table.measured)} of {sum(not row.published_only for row in table.rows)}",
        ),
    ]
    for kind in verdict.VERDICTS[:4]:
        columns.append((kind, lambda t, kind=kind: str(verdict_counts(t).get(kind, 0)) if t.paper else MISSING))
    for kind in ordered:
        cell = lambda t, kind=kind: str(orders[t.name].get(kind, 0)) if orders[t.name] else MISSING  # noqa: E731
        columns.append((f"order {kind}", cell))
    lines = ["# Ablations", "", table_lines(tables, columns)]
    lines += ["", "Numbers under a verdict are published cost figures (operations and parameters)"]
    lines[-1] += f", {sum(totals.values())} in all."
    if totals[verdict.NOT_COMPARED]:
        lines[-1] += f" {counted(totals[verdict.NOT_COMPARED], 'figure')} not compared: the reports say why."
    if any(orders.values()):
        lines[-1] += (
            " Orders are published differences in accuracy to a baseline, held against small models trained here, by "
            "paired tests over seeds."
        )
    if costs:
        lines += ["", f"[What attention costs here]({costs}): all that was timed, on one page."]
    if broken:
        lines += ["", "## Not listed", "", *(f"- {name}: {sentence(reason)}" for name, reason in broken.items())]
    lines += ["", "Rebuild: `python -m reports.build outputs/*/`"]
    return "\n".join(lines) + "\n"


def _number(value: Decimal) -> str:
    return format(value, "f")
