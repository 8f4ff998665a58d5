"""A report as Markdown and LaTeX, from the rows of one ablation: measurements say themselves what they are.

It answers first: a sentence with the figure that decides, one table of at most seven columns, one picture. All other
columns, pictures and texts follow as details.
"""

import shlex
from decimal import Decimal
from functools import partial
from itertools import chain
from statistics import median_low

import numpy as np

from records.intervals import WIDE
from records.record import Measurement, Quantity
from records.visits import OUTDATED, taken
from reports import (
    accuracy,
    accuracy_section,
    budgets,
    counting,
    exponents,
    probes,
    roofline,
    shares,
    sparsity,
    stages,
    statistics,
    text,
    verdict,
)
from reports.paper_table import PaperRow, PaperTable
from reports.statistics import Ratio
from reports.table import FACTS, NOT_YET, PARTIAL, AblationTable, Row
from reports.text import (
    MISSING,
    ROW,
    Columns,
    Notes,
    counted,
    heading,
    linked,
    listed,
    rounded,
    sentence,
    shown,
    significant,
    table_cells,
    table_tex,
    tables,
    unit,
)
from reports.verdict import Verdict

PUBLISHED_COUNTS = {"flops": "macs", "params": "params"}  # a published column: the count that it is set against
HEADINGS = {"operators": "attention operator"}  # of the facts that are not called by their own name
NOT_DISTINGUISHABLE = "not distinguishable"
LAUNCH_BOUND = 0.9  # of the time of a run on a GPU: the host was busy launching for so long
ROUGH = f"the interval is wider than {WIDE:.0%} of the median: take it as rough"
FINITE = {"finite_logits": "outputs were", "finite_loss": "loss was"}  # details that say so, and of what
QUANTILES = (50, 90, 99)
OF_A_VISIT = {  # title and scale of what a visit says beside its samples; a scale of None marks a count
    "compile_seconds": ("compilation, s", 1), "graphs": ("compiled graphs", None),
    "graph_breaks": ("graph breaks", None), "compiled_before": ("graphs from a cache", None),
    "reserved_bytes": ("reserved, MiB", 2**20), "nvml_bytes": ("held by the driver, MiB", 2**20),
}  # fmt: skip
AROUND = {  # what else was seen while a series was timed: the detail, its key, and title
    ("card", "sm_mhz"): "clock of the card, MHz", ("card", "celsius"): "temperature of the card, °C",
    ("card", "watts"): "power of the card, W", ("beside", "foreign_cores"): "cores that other programs used",
    ("beside", "stolen_cores"): "cores that the host took", ("beside", "celsius"): "temperature of the processor, °C",
}  # fmt: skip
PARTS = {"parts_ms": ("ms", 1), "parts_bytes": ("MiB", 2**20)}


def report(table: AblationTable, figures: dict[str, str]) -> str:
    """The whole report; `figures` maps the file name of each figure to its caption."""
    notes = Notes()
    pictures = [f"![{caption}]({name})" for name, caption in figures.items()]
    main, more = main_and_more(table, notes)
    fitted = exponents.section(table, notes) if "scaling.png" in figures else ""
    details = [*pictures[1:], *more, f"{fitted}\n\nThe same [as CSV]({exponents.FILE})." if fitted else ""]
    details += [_runs(table), shares.note(table), stages.section(table), accuracy_section.section(table, notes)]
    details += [probes.section(table), roofline.section(table, notes), budgets.section(table), _precision(table)]
    details = [part for part in details if part]
    parts = [f"# {table.question}", "\n".join(f"- {line}" for line in summary(table)), circumstances(table)]
    parts += [*main, *pictures[:1], _legend(table), "## Details" if details else "", *details]
    page, footnotes = notes.numbered("\n\n".join(part for part in parts if part))
    parts = [page, "## Notes\n\n" + "\n".join(footnotes) if footnotes else ""]
    if table.paper:
        parts.append(_published(table))
    parts += map(_further, table.further)
    if table.warnings:
        parts.append("## Warnings\n\n" + "\n".join(f"- {sentence(text)}" for text in table.warnings))
    return "\n\n".join(part for part in [*parts, again(table)] if part) + "\n"


def summary(table: AblationTable) -> list[str]:
    """The answer: what costs least, what the accuracies do, what became of the published costs; what ran goes first."""
    lines = [*accuracy_section.summary(table), *probes.summary(table), _tolerance_line(table), _verdict_line(table)]
    lines.insert(0 if costs(table) else len(lines), _cost_line(table))
    return [line for line in [*sparsity.summary(table), *lines, _absent_line(table)] if line]


def _checked(table: AblationTable) -> list[tuple[float, Row, Measurement]]:
    """What was held against an exact result: its share of the tolerance, the largest first."""
    shares = [
        (measured.value / tolerance, row, measured)
        for row in table.measured
        for measured in row.record.measurements.values()
        if measured.samples and (tolerance := measured.details.get("tolerance"))
    ]
    return sorted(shares, key=lambda shared: -shared[0])


def _tolerance_line(table: AblationTable) -> str:
    """How many errors are within what rounding may give, and which comes nearest to it or lies furthest beyond."""
    checked = _checked(table)
    if not checked:
        return ""
    share, row, worst = checked[0]
    wrong = sum(bool(measured.details.get("wrong")) for _, _, measured in checked)
    counts = f"{len(checked) - wrong} of {counted(len(checked), 'error')} are within what rounding may give"
    error = f"{worst.title} {shown(worst)} {unit(worst)[0]}"
    return f"{counts}; largest for its tolerance: {row.name}, {error} ({share:.2g} times)."


def _verdict_line(table: AblationTable) -> str:
    if table.paper is None:
        return ""
    counts = verdict.counts(table.verdicts())
    if not counts:
        return f"{table.paper.table} of the paper prints accuracies but no costs of these rows; all costs are measured."
    fits = sum(v.kind == verdict.EXPLAINED for row in table.rows if row.fit for v in table.verdicts(row))
    words = {
        verdict.REPRODUCED: "reproduced to the printed precision",
        verdict.EXPLAINED: f"explained by settings that the paper does not state ({fits} of them fits)",
        verdict.PUBLISHED_ONLY: "published only (no model here stands for the row)",
    }
    clauses = [f"{n} {words.get(kind, kind)}" for kind, n in counts.items()]
    return f"Of {counted(sum(counts.values()), 'published cost figure')}: {', '.join(clauses)}."


def _cost_line(table: AblationTable) -> str:
    """Which row needs least of the first cost, and whether rows can be told from their baselines."""
    if not table.measured:
        return "Nothing has been measured yet."
    name = next((n for n in costs(table) if table.has(n)), "macs")
    ratios = [(row, ratio) for row in table.rows if isinstance(ratio := table.ratio(row, name), Ratio)]
    ratios = [] if table.quick else ratios  # its few samples tell nothing apart
    if table.mixed and not ratios:
        name = "macs"
    measured = sorted((row for row in table.rows if row.value(name)), key=lambda row: row.value(name))
    if not measured:
        return ""
    quantity = measured[0].measurement(name)
    title = quantity.title[:1].upper() + quantity.title[1:]
    ends = ((row.name, row.measurement(name)) for row in (measured[0], measured[-1]))
    (cheapest, least), (costliest, most) = ((row, f"{shown(m)} {unit(m)[0]}") for row, m in ends)
    span = least if least == most else f"{least} ({cheapest}) to {most} ({costliest})"
    parts = [span] if name == "macs" or not table.mixed else []
    if has_ratio(quantity) and ratios:
        parts.append(_against_baseline(sorted(ratios, key=lambda pair: pair[0].value(name))))
    return f"{title}: {'; '.join(parts)}."


def _against_baseline(ratios: list[tuple[Row, Ratio]]) -> str:
    """How the cheapest of the rows that can be told from the baseline stands to it, and how many can."""
    bases = list(dict.fromkeys(row.baseline for row, _ in ratios))
    base = bases[0] if len(bases) == 1 else "their baselines"
    different = [(row, ratio) for row, ratio in ratios if ratio.distinguishable]
    if not different:
        return f"no row can be told from {base} beyond noise"
    best, ratio = different[0] if len(bases) == 1 else min(different, key=lambda pair: pair[1].interval.value)
    share = f"all {len(different)}" if len(different) == len(ratios) else f"{len(different)} of {len(ratios)}"
    best_in_words = f"{best.name} needs {ratio_text(ratio)} times as much as {best.baseline}"
    return f"{best_in_words}, and {share} rows can be told from {base}" if len(ratios) > 1 else best_in_words


def _absent_line(table: AblationTable) -> str:
    """The rows without a record, with the way to them where they were only not measured yet."""
    absent: dict[str, list[str]] = {}
    for row in table.rows:
        if row.missing:
            absent.setdefault(row.missing, []).append(row.name)
    sentences = []
    for reason, names in absent.items():
        way = " (the command at the end measures them)" if reason == NOT_YET else ""
        sentences.append(f"{sentence(reason)[:-1]}: {listed(names)}{way}.")
    return " ".join(sentences)


def circumstances(table: AblationTable) -> str:
    """On what the rows were measured: one line for what they share, a warning where they differ."""
    facts = table.facts()
    if not facts:
        return ""
    timed = "device" in facts
    shared = []
    for key in (key for key in FACTS if len(facts.get(key, [])) == 1):
        named = key in ("kernel", "operators", "batch", "threads", "clip", "commit")
        shared.append(f"{HEADINGS.get(key, key)} {facts[key][0]}" if named else facts[key][0])
    differ = [key for key in FACTS if len(facts.get(key, [])) > 1]
    start = "Measured on: " if timed else "Counted without running (no timings in these records): "
    start = "Trained here, nothing timed: " if probes.names(table) and not timed else start
    start = "Computed here, nothing timed: " if _checked(table) and not timed else start
    line = start + ", ".join(shared) + "." if shared else ""
    if differ:
        line += f" The rows differ in {', '.join(HEADINGS.get(key, key) for key in differ)}: see those columns."
    if timed and table.mixed:
        line += " Latency and memory of rows that differ there must not be compared."
    return line.strip() + (f"\n{sentence(table.size_note)}" if table.size_note else "")


def tex(page: str) -> str:
    """Every table of a page for a paper, to be taken in by `\\input`: below its heading, with the footnotes that it has
    where those of the page stand.
    """
    parts, heading, noted = ["% needs the package booktabs"], "", 1
    for part in page.split("\n\n"):
        if part.startswith("#"):
            heading = part.lstrip("# ")
        elif part.startswith("In all rows: "):
            parts.append(f"% {text.tex(part)}")
        elif part.startswith("| "):
            head, *rows = table_cells(part)
            columns = [(title, lambda row, place=place: row[place]) for place, title in enumerate(head)]
            parts.append(f"% {text.tex(heading)}\n{table_tex(rows, columns)}")
        elif part.startswith("1. "):  # the footnotes of all since the last ones
            marked, notes = "\n\n".join(parts[noted:]), [line.split(". ", 1) for line in part.splitlines()]
            below = [rf"\par\footnotesize [{n}] {text.tex(words)}" for n, words in notes if f" [{n}]" in marked]
            if below:
                parts[-1] += "\n" + "\n".join(below)
            noted = len(parts)
    return "\n\n".join(parts) + "\n"


def _rows(table: AblationTable) -> list[Row]:
    """The rows that have something to show: the others are named in a sentence."""
    return [row for row in table.rows if not row.missing]


def main_and_more(table: AblationTable, notes: Notes) -> tuple[list[str], list[str]]:
    """The parts of a report up to its first table, which has the columns that answer, and the tables of all others."""
    rows = _rows(table)
    parts = tables(rows, ("row", lambda row: _name(row, notes)), groups(table, notes))
    starts = [place for place, part in enumerate(parts) if part.startswith("| ")]
    end = starts[1] if len(starts) > 1 else len(parts)
    return parts[:end], parts[end:]


def groups(table: AblationTable, notes: Notes) -> list[Columns]:
    """All columns, the first that answer: the first cost, accuracies, published beside counted; then all others."""
    quantities, cost_names = table.quantities(), costs(table)
    blocks = [sparsity.columns(table, notes), measured_columns(table, cost_names[:1], notes, count=True)]
    blocks += accuracy_section.main_columns(table, notes)
    blocks += [
        probes.columns(table, notes),
        *_count_columns(table, notes),
        *(_cell_columns(table, column, notes) for column in table.celled),
    ]
    blocks += [measured_columns(table, [name], notes) for name in cost_names[1:]]
    for column in printed(table):
        title = f"{_printed_title(column)}, {table.paper.units[column]}, published"
        blocks.append([(title, lambda row, column=column: _published_cell(row, column))])
    others = [n for kind in ("shared", "counted") for n, q in quantities.items() if q.kind == kind]
    others = [n for n in others if quantities[n].better != "none" and n not in PUBLISHED_COUNTS.values()]
    blocks += [measured_columns(table, [name], notes) for name in others]
    return [*blocks, budgets.memory_columns(table), shares.columns(table), differing_columns(table)]


def costs(table: AblationTable) -> list[str]:
    """What costs time or memory, then what else was timed or sized, in the order of the records."""
    kinds = ("timed", "sized")
    quantities = {name: q for name, q in table.quantities().items() if q.kind in kinds}
    return sorted(quantities, key=lambda name: (not has_ratio(quantities[name]), kinds.index(quantities[name].kind)))


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
    units, others = (table.paper.units if table.paper else ()), {*PUBLISHED_COUNTS, *table.celled}
    columns = [column for column in units if column not in others]
    return [column for column in columns if any(isinstance(row.printed(column), int | float) for row in table.rows)]


def _printed_title(column: str) -> str:
    """`k400_top1` as K400 top-1."""
    first, *rest = column.replace("top1", "top-1").replace("top5", "top-5").split("_")
    first = first.upper() if any(map(str.isdigit, first)) and len(first) < 8 and "-" not in first else first
    return " ".join([first, *rest]) + (" ↑" if "top-" in column.replace("top", "top-") else "")


def differing_columns(table: AblationTable) -> Columns:
    """A column for each circumstance in which the rows differ, as `circumstances` promises."""
    differ = (key for key in FACTS if len(table.facts().get(key, [])) > 1)
    return [(HEADINGS.get(key, key), lambda row, key=key: row.facts().get(key, MISSING)) for key in differ]


def _count_columns(table: AblationTable, notes: Notes) -> list[Columns]:
    """Operations and parameters: published and measured with the verdict where the paper prints them, else alone."""
    views = sorted({row.views for row in table.rows if row.views})
    over = counted(views[0], "view") if len(views) == 1 else "all views"
    blocks: list[Columns] = []
    for column, title, plain_title, measured in (
        ("flops", f"GFLOPs ↓, {over}", "GMACs ↓, one view", _flops),
        ("params", "params ↓, M", "params ↓, M", _params),
    ):
        name = PUBLISHED_COUNTS[column]

        def against(row: Row, column=column, name=name, measured=measured) -> str:
            cell = _judged(measured(row, notes), row, row.verdicts[column], notes)
            return cell + budgets.mark(table, row, name, notes)

        def alone(row: Row, name=name) -> str:
            return spread(row, name, notes, count=False) + budgets.mark(table, row, name, notes)

        if table.publishes(column):
            published = (f"{title}, published", lambda row, column=column: _published_cell(row, column))
            blocks.append([published, (f"{title}, measured", against)])
        elif table.asked(name):
            blocks.append([(plain_title, alone)])
    return blocks


def _cell_columns(table: AblationTable, column: str, notes: Notes) -> Columns:
    """A further printed column, in the rows that stand for it, and what the models give with the verdict."""

    def published(row: Row) -> str:
        return _published_cell(row, column) if column in row.cells or row.published_only else MISSING

    def measured(row: Row) -> str:
        cell, judged = table.cell(row, column)
        if column not in row.cells or cell.missing:
            return MISSING + (notes.mark(cell.missing) if cell.missing else "")
        text = f"{cell.shown:f}" if isinstance(cell.shown, Decimal) else str(cell.shown)
        return _judged(text + (f" ({cell.exact})" if cell.exact else ""), row, judged, notes)

    title = f"{_printed_title(column)}, {table.paper.units.get(column, 'as printed')}"
    return [(f"{title}, published", published), (f"{title}, measured", measured)]


def _judged(cell: str, row: Row, judged: Verdict, notes: Notes) -> str:
    """A measured count with what became of the published one."""
    if judged.kind is None or row.published_only or cell.startswith(MISSING):
        return cell
    if judged.kind == verdict.EXPLAINED:
        return f"{cell}, explained{' (fit)' if row.fit else ''}" + notes.mark(_explanation(row))
    return f"{cell}, {judged.cell(notes, 'not compared: ')}"


def _name(row: Row, notes: Notes) -> str:
    text = row.name
    remarks = [row.note, row.published.note if row.published else None, _recounted(row)]
    if row.explanation and verdict.EXPLAINED not in (row.verdict_flops.kind, row.verdict_params.kind):
        remarks.append(_explanation(row))
    for note in remarks:
        text += notes.mark(note) if note else ""
    return text


def _recounted(row: Row) -> str | None:
    """What others counted of a model that is not here, as a citation."""
    cited = row.published.recounted if row.published else None
    if not cited:
        return None
    counts = [f"{cited[key]} {unit}" for key, unit in (("flops", "G a view"), ("params", "M")) if key in cited]
    how = [cited["how"]] if cited.get("how") else []
    return f"Recounted elsewhere, not here: {', '.join([*counts, *how])} ({cited['source']})"


def _explanation(row: Row) -> str:
    fit = "; it was found by searching settings for the printed number, so it is a fit, not a confirmation"
    return f"{row.explanation}. The paper does not state this setting{fit if row.fit else ''}"


def _published_cell(row: Row, column: str) -> str:
    value = row.printed(column)
    return MISSING if value is None else str(value)


def _flops(row: Row, notes: Notes) -> str:
    exact, printed = row.macs_by_authors_rule, row.authors_flops
    if exact is None or printed is None:
        if row.value("macs") is not None:
            return f"{rounded(row.value('macs'), 10**9, 2)} per view (multiply-adds)"
        return missing_cell(row, "macs", notes)
    per_view = rounded(exact, 10**9, max(2, row.decimals("flops", "per_view_decimals") + 2))
    over_views = f"{row.views} × {per_view}" if row.views != 1 else str(per_view)
    return f"{printed:f} ({over_views})" if row.comparable is True else over_views


def _params(row: Row, notes: Notes) -> str:
    exact, printed = row.authors_params_exact, row.authors_params
    return missing_cell(row, "params", notes) if exact is None else f"{printed:f} ({exact:,})"


def spread(row: Row, name: str, notes: Notes, *, count: bool = True) -> str:
    """A median with its interval; what makes it less sure than others stands in a footnote."""
    measured, interval = row.measurement(name), row.interval(name)
    if measured is None or interval is None:
        return missing_cell(row, name, notes)
    value, low, high = (shown(measured, bound) for bound in (measured.value, interval.low, interval.high))
    n = f"n={len(measured.samples)}" if count else ""
    has_interval = measured.ran and (name in row.spreads or len(measured.visits) > 1)
    inside = ", ".join(part for part in (f"{low}–{high}" if has_interval else "", n) if part)
    disturbed = measured.of_visits("disturbed")
    words = " and ".join(dict.fromkeys(word for causes in disturbed for word in causes or ()))
    rounds = f"{sum(map(bool, disturbed))} of {len(disturbed)} visits"
    steps, bound = measured.said("step"), measured.details.get("bound", "memory")
    remarks = {  # and whether they hold
        ROUGH: interval.wide,
        **{f"{OUTDATED}: {why}; force=true measures it again": True for why in measured.said(OUTDATED)},
        "the time had not settled when the warm-up ended: take it as rough": False in measured.said("settled"),
        f"disturbed in {rounds}, where {words}: take it as rough": any(disturbed),
        "the host was busy launching for most of this time: the device alone may be faster": (
            max(measured.said("launch_share"), default=0) > LAUNCH_BOUND
        ),
        **dict.fromkeys(measured.said("holds"), True),
        f"taken for {' and '.join(steps)}, minutes before the others": bool(steps),
        f"larger batches may fit: the search ended with this: {bound}": bound != "memory",
    }
    for detail, subject in FINITE.items():
        failed = f"the {subject} not finite (nan or infinity): the cost of a computation that failed"
        remarks[failed] = False in measured.said(detail)
    marks = [notes.mark(remark) for remark, holds in remarks.items() if holds]
    unfinished = row.unfinished(name)
    return "".join([f"{value} ({inside})" if inside else value, *marks, notes.mark(unfinished) if unfinished else ""])


def ratio_columns(table: AblationTable, name: str, notes: Notes) -> Columns:
    """The column of ratios to the baseline, where the ablation names one that is measured."""
    bases = [base for row in table.rows if (base := table.baseline_of(row)) and base.value(name) is not None]
    if not bases:
        return []
    base_name = bases[0].name if len({base.name for base in bases}) == 1 else "the baseline"
    title = f"{table.quantities()[name].title} ↓ / {base_name}: ratio (95 % interval)"
    return [(title, lambda row: _ratio(table, row, name, notes))]


def _ratio(table: AblationTable, row: Row, name: str, notes: Notes) -> str:
    if table.baseline_of(row) is row:
        return "1 (baseline)" if row.value(name) is not None else MISSING
    ratio = table.ratio(row, name)
    if ratio is None:  # of a pair, the one may name the other as its baseline and have none itself
        is_base = row.value(name) is not None and any(other.baseline == row.name for other in table.measured)
        return "1 (baseline)" if is_base else MISSING
    if isinstance(ratio, str):
        return MISSING + notes.mark(ratio)
    differs = table.ran_differently(row, name)
    remarks = {
        ROUGH: ratio.interval.wide,
        f"different things ran: {differs}": differs,
        "the two were not measured in turn in one run: the ratio is of two independent medians": not ratio.paired,
    }
    return ratio_text(ratio) + "".join(notes.mark(remark) for remark, holds in remarks.items() if holds)


def ratio_text(ratio: Ratio) -> str:
    """A ratio with its interval, and whether it says anything."""
    interval = ratio.interval
    text = significant(interval.value)
    if not ratio.once:
        text += f" ({significant(interval.low)}–{significant(interval.high)})"
    return text if ratio.distinguishable else f"{text}, {NOT_DISTINGUISHABLE}"


def _runs(table: AblationTable) -> str:
    """How each timing spreads, what it is made of, what it took to compile, what was reserved: as far as recorded."""
    blocks: list[Columns] = []
    for name in (name for name, quantity in table.quantities().items() if quantity.kind in ("timed", "sized")):
        figures = {row.name: run_figures(row.measurement(name)) for row in table.rows}
        titles = dict.fromkeys(chain.from_iterable(figures.values()))
        blocks.append([(title, partial(_figure_of, figures, title)) for title in titles])
    parts = tables(_rows(table), ROW, blocks)
    return "\n\n".join(["### How the runs spread", *parts]) if parts else ""


def run_figures(measured: Measurement | None) -> dict[str, float]:
    """What the visits of a measurement say beside its median: quantiles of what was timed, parts, compilation."""
    if measured is None or not measured.samples:
        return {}
    (words, scale), figures = unit(measured), {}
    if measured.kind == "timed" and has_ratio(measured) and len(measured.samples) > 1:
        for share in QUANTILES:
            figures[f"{measured.title}, p{share}, {words}"] = float(np.percentile(measured.samples, share)) / scale
    for key, (words, scale) in PARTS.items():
        for part, amount in statistics.medians(measured.said(key)).items():
            figures[f"{measured.title}: {str(part).replace('_', ' ')}, {words}"] = amount / scale
    for key, (words, scale) in OF_A_VISIT.items():
        if values := measured.said(key):
            figures[f"{measured.title}: {words}"] = float(np.median(values)) / scale if scale else median_low(values)
    for (detail, key), words in AROUND.items() if has_ratio(measured) else ():
        seen = [state.get("after", state) for state in measured.said(detail)]
        if values := [state[key] for state in seen if key in state]:
            figures[f"{measured.title}: {words}"] = float(np.median(values))
    return figures


def _figure_of(figures: dict[str, dict[str, float]], title: str, row: Row) -> str:
    value = figures[row.name].get(title)
    return MISSING if value is None else str(value) if isinstance(value, int) else significant(value)


def _precision(table: AblationTable) -> str:
    """How medians, intervals and ratios are made, and how far they can be trusted on this machine."""
    quantities = table.quantities()
    timed = [name for name in quantities if quantities[name].kind in ("timed", "sized", "shared") and table.has(name)]
    if not timed:
        return ""
    sentences = [
        "A round visits every row once, each in a process of its own. In brackets: 95 % intervals of the medians, by "
        "Student's t with one standard deviation between rounds for all rows that vary alike; such an interval holds "
        f"the true median {statistics.HOLDS} (simulated)."
    ]
    repeated = [m for row in table.rows for name in timed if (m := row.measurement(name)) and len(m.samples) > 1]
    if any(len(taken(measured)) == 1 for measured in repeated):
        sentences.append(
            "What has one round in a table without rows of two has no interval: samples of one process say nothing of "
            "the next."
        )
    compared = [name for name in timed if has_ratio(quantities[name]) and ratio_columns(table, name, Notes())]
    if compared:
        sentences.append(
            "Ratios are medians over the rounds of one median over the baseline's in that round. A ratio whose "
            f"interval holds 1 is {NOT_DISTINGUISHABLE}; one without an interval is of single rounds, and is so below "
            "the noise floor. " + floors_in_words({quantities[name].title: table.floor(name) for name in compared})
        )
    return "\n\n".join(["### How sure", " ".join(sentences)])


def floors_in_words(floors: dict[str, float | None]) -> str:
    """One line: the noise floor of each measurement, by its title; None where one is assumed."""
    measured = [f"{title} {floor:.1%}" for title, floor in floors.items() if floor is not None]
    assumed = [title for title, floor in floors.items() if floor is None]
    sentences = []
    if measured:
        sentences.append(
            f"Noise floor (A/A): {', '.join(measured)}: from which difference on two rows are told apart, from how "
            "much the rounds of a row differ, without what moved all rows of a round alike; never less than "
            f"{statistics.LEAST_FLOOR:.0%}. Timings that were not taken in turn are held to "
            f"{statistics.ASSUMED_FLOORS['timed']:.0%} at least."
        )
    if assumed:
        sentences.append(
            f"Noise floor of {', '.join(assumed)}: no row has two rounds, so {statistics.ASSUMED_FLOORS['timed']:.0%} "
            f"is assumed of what is timed and {statistics.ASSUMED_FLOORS['sized']:.0%} of memory."
        )
    return " ".join(sentences)


def missing_cell(row: Row, name: str, notes: Notes) -> str:
    return MISSING if row.published_only else MISSING + notes.mark(row.reason(name))


def _legend(table: AblationTable) -> str:
    sentences = ["↓ lower is better, ↑ higher is better."]
    if table.publishes("flops"):
        sentences.append(
            f"GFLOPs are multiply-adds as the paper counts them{_rules(table)}"
            + ", classifier left out where the rule does not say so. Measured figures are rounded as the paper rounds "
            "(one view to the printed precision, then times the views); the figure in brackets is one view before "
            "rounding."
        )
    elif table.asked("macs"):
        sentences.append(
            "GMACs are 10^9 multiply-adds of one view without the classifier; norms, softmax and activations count 0."
        )
    if table.publishes("params"):
        counts = {row.params_count for row in table.rows if row.record and row.printed("params") is not None}
        if counts == {"with_classifier"}:
            sentences.append("Parameters include the classifier, as in the published column.")
        elif counts == {"without_classifier"}:
            sentences.append("Parameters leave the classifier out, as the published column does.")
        elif counts:
            sentences.append("Parameters include the classifier in the rows whose published figure does.")
    elif table.asked("params"):
        sentences.append("Parameters leave the classifier out.")
    sentences.append(accuracy_section.legend(table, bool(printed(table))))
    if table.paper and any(row.published is None for row in table.rows):
        sentences.append(f"{MISSING} in a published column or its verdict: the paper prints no such figure.")
    elif table.paper and any(row.published_only for row in table.rows):
        sentences.append(f"{MISSING}: not printed by the paper, or no model here stands for the row.")
    return " ".join(part for part in sentences if part)


def _rules(table: AblationTable) -> str:
    """By which rules the rows are counted, the rarer one with the names of its rows."""
    by_rule = {rule: [row.name for row in table.measured if row.counting == rule] for rule in counting.RULES}
    used = sorted((rule for rule in by_rule if by_rule[rule]), key=lambda rule: -len(by_rule[rule]))
    rules = [counting.WORDS[rule] + (f" for {', '.join(by_rule[rule])}" if rule != used[0] else "") for rule in used]
    return f", by {', but '.join(rules)}" if rules else ""


def _published(table: AblationTable) -> str:
    paper = table.paper
    parts = ["## The published table", f"{paper.title}: {paper.table}, {linked(paper.paper)}. Source: {paper.source}."]
    parts += ["\n".join(f"- {linked(sentence(note))}" for note in paper.notes)] if paper.notes else []
    return "\n\n".join([*parts, f"To cite it: `python -m reports.cite {paper.name}`."])


def _further(paper: PaperTable) -> str:
    """A table of which nothing is counted or measured here, as it was printed."""
    place = paper.table[:1].upper() + paper.table[1:]
    lines = [f"## {paper.title}, as published"]
    lines += [f"{place}, {linked(paper.paper)}. Source: {paper.source}. Nothing measured here is set beside it."]
    units = {name: "" if kind in ("1", "count", "name") else f", {kind}" for name, kind in paper.units.items()}
    columns = [(name.replace("_", " ") + kind, partial(_as_printed, name)) for name, kind in units.items()]
    lines += tables(paper.rows, ROW, [columns])
    notes = dict.fromkeys([*paper.notes, *(row.note for row in paper.rows if row.note)])
    lines += ["\n".join(f"- {linked(sentence(note))}" for note in notes)] if notes else []
    return "\n\n".join(lines)


def _as_printed(column: str, row: PaperRow) -> str:
    """A cell; of pairs and of entries in words."""
    value = row.cells.get(column)
    if isinstance(value, list):
        return "; ".join(" – ".join(map(str, part)) if isinstance(part, list) else str(part) for part in value)
    if isinstance(value, dict):
        return ", ".join(f"{key}: {part}" for key, part in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return MISSING if value is None else str(value)


def again(table: AblationTable) -> str:
    """The commands that measure and build anew what stands in this folder, whatever the last of several runs was."""
    words = [word for word in table.arguments if word.partition("=")[0] not in (*PARTIAL, "out")]
    words = words or [f"ablation={table.name}"]
    from_suite = any(word.startswith("suite=") for word in words)  # whose steps say what is measured
    words += [f"metrics=[{','.join(table.metrics)}]"] if table.metrics and not from_suite else []
    trained = accuracy.names(table)
    if trained and not from_suite and not any(word.startswith("accuracy=") for word in words):
        # where metrics are named, it is off unless it is named
        words.append(f"accuracy={accuracy.budget(table, trained[0])}")
    words += ["quick=true"] if table.quick and "quick=true" not in words else []
    parent = table.place.removesuffix(f"/{table.name}").removesuffix("/quick")
    words += [f"out={parent}"] if parent != "outputs" and not from_suite else []
    return (
        "## Make it again\n\n```bash\n"
        f"python -m harness.run {shlex.join(words)}  # measures what has no record yet; force=true measures all\n"
        f"python -m reports.build {shlex.quote(table.place)}  # this file, the CSV and the figures, from the records\n"
        "```"
    )
