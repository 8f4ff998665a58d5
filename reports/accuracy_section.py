"""Accuracy in a report: columns of the main table, the section on ordering and controls, columns of the CSV.

The text says what a reader needs to take each figure for what it is: on which data, how large the clip and the model
were, how many seeds, and what the interval covers.
"""

from statistics import fmean
from typing import Any

from records.intervals import Interval
from records.learning import NOT_LEARNT, STEEP, UNFINISHED
from records.means import Paired
from reports import accuracy, views
from reports.accuracy import Ordering
from reports.table import AblationTable, Row
from reports.text import MISSING, ROW, Columns, Notes, counted, sentence, table_lines

BASELINE = Ordering(MISSING)  # of the row that the others are set against
ONE_RUN = (
    "one seed: the interval is Wilson's over the test videos of that run, and leaves out how far another seed would "
    "move it"
)


def main_columns(table: AblationTable, notes: Notes) -> list[Columns]:
    """One column for each accuracy, with the verdict where it stands beside a published one."""
    blocks: list[Columns] = []
    for name in accuracy.names(table):
        mark = notes.mark(f"measured here on {accuracy.setting(table, name)}")
        heading = f"top-1 ↑, %, measured, {accuracy.effort(table, name)}: mean (95 % interval){mark}"
        blocks.append([(heading, lambda row, name=name: value(table, row, name, notes))])
        if accuracy.full_column(table, name):
            blocks[-1].append(
                ("top-1, verdict", lambda row, name=name: accuracy.judge_full(table, row, name).cell(notes))
            )
    return blocks


def value(table: AblationTable, row: Row, name: str, notes: Notes) -> str:
    """An accuracy with its interval and seeds; what sets it apart from the others stands in a footnote."""
    estimate = accuracy.accuracy(row.measurement(name))
    if estimate is None:
        return MISSING if row.published_only else MISSING + notes.mark(accuracy.reason(row, name))
    measured = row.measurement(name)
    text = str(estimate) + ("" if estimate.over_seeds else notes.mark(ONE_RUN))
    wrong, twin = accuracy.learning_text(measured), measured.details.get("same_network_as")
    covered = min(accuracy.by_seed(measured, "coverage").values(), default=1)
    remarks = [
        f"{100 * covered:.1f} % of the test videos could be decoded; the others count as wrong" if covered < 1 else "",
        f"the same network as {twin} at this size: trained once for both" if twin else "",
        accuracy.unfinished(measured),
        accuracy.differs(table, row, name),
    ]
    marks = [notes.mark(remark) for remark in remarks if remark]
    return "".join([text, f": **{wrong}**" if wrong else "", *marks])


def legend(table: AblationTable, published: bool) -> str:
    """What the accuracies of the main table are and are not."""
    names = accuracy.names(table)
    if not names:
        return "Accuracies are published, not measured here." if published else ""
    beside = [name for name in names if accuracy.full_column(table, name)]
    apart = [name for name in names if name not in beside]
    sentences = []
    if published:
        sentences.append("Accuracies are published where their heading says so, the others measured here.")
    if published and apart:
        sentences.append(
            "Those of a smaller setting are not to be compared with the published ones: their order is, further down."
        )
    if beside:
        sentences.append(
            "At full scale a published accuracy counts as reproduced where the measured interval holds it, give or "
            "take half of its last digit."
        )
    return " ".join(sentences)


def section(table: AblationTable, notes: Notes) -> str:
    """All that the records say about accuracy beside the main table's column; empty where none was measured."""
    parts = [part for name in accuracy.names(table) for part in _accuracy_part(table, name, notes)]
    return "\n\n".join(["### Accuracy measured here", *parts]) if parts else ""


def _accuracy_part(table: AblationTable, name: str, notes: Notes) -> list[str]:
    measured = [row for row in table.rows if row.value(name) is not None]
    if not measured:
        reasons = dict.fromkeys(accuracy.reason(row, name) for row in table.measured if row.measurement(name))
        return [f"#### On {accuracy.setting(table, name)}", f"No accuracy: {'; '.join(reasons)}."]
    parts = [f"#### On {accuracy.setting(table, name)}", _how(table, name)]
    parts += _ordering_part(table, name, measured, notes)
    parts += _controls_part(table, name, measured)
    parts += _further_part(name, measured)
    parts += views.section(table, name)
    return parts


def _how(table: AblationTable, name: str) -> str:
    epochs, recipes, digests, videos, views, numbers, machines = (
        accuracy.said(table, name, key)
        for key in ("epochs", "recipe", "data_digest", "videos", "views", "seed", "machine")
    )
    digest = f" (digest {'; '.join(map(_digest, digests))})" if digests else ""
    text = f"Trained on {accuracy.data_words(table, name)}{digest}"
    if epochs == ["auto"]:
        trained = accuracy.said(table, name, "epochs_trained")
        text += f" until the curve was flat or the time was up ({min(trained):g} to {max(trained):g} epochs)"
    else:
        text += f" for {_joined(epochs)} epoch{'' if epochs == [1] else 's'}" if epochs else ""
    text += f" by the recipe {_joined(recipes)}" if recipes else ""
    text += f", tested on {_joined(videos)} videos" if videos else ""
    text += f" with {_joined(views)} views (clips x crops)." if views else "."
    if numbers:
        text += f" Seed{'s' if len(numbers) > 1 else ''} {_joined(numbers)}: a seed sets initial weights and the order "
        text += "of the clips, the same order for all rows."
    decoded = _decoded(accuracy.said(table, name, "trained_with"))
    text += f" Test videos decoded by {decoded}." if decoded else ""
    return text + (f" Machine: {'; '.join(machines)}." if machines else "")


def _decoded(trainings: list[dict[str, Any]]) -> str:
    """How many of the test videos each decoder read, in the run with most and the one with fewest where they differ."""
    runs = [training["decoders"] for training in trainings if training.get("decoders")]
    counts = {decoder: [run.get(decoder, 0) for run in runs] for decoder in sorted(set().union(*runs))}
    spans = {decoder: dict.fromkeys((min(read), max(read))) for decoder, read in counts.items()}
    return ", ".join(f"{decoder} ({' to '.join(map(str, span))})" for decoder, span in spans.items())


def _digest(digests: Any) -> str:
    """The digest of one list of videos, or those of the lists for training and test."""
    if isinstance(digests, dict):
        return ", ".join(f"{split} {str(digest)[:10]}" for split, digest in digests.items())
    return str(digests)[:10]


def _joined(values: list[Any]) -> str:
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def _ordering_part(table: AblationTable, name: str, measured: list[Row], notes: Notes) -> list[str]:
    orderings = accuracy.orderings(table, name)
    if not orderings:
        return []
    bases = list(dict.fromkeys(row.baseline for row in measured if row.name in orderings))
    base = bases[0] if len(bases) == 1 else "the baseline"
    cells = [
        (f"top-1 less that of {base}, points (95 % interval)", _difference),
        ("p, after Holm", lambda ordering: _p(ordering.p_holm)),
        ("published difference, points", lambda o: MISSING if o.published is None else _signed(float(o.published))),
        ("the paper's order", lambda ordering: _kind(ordering, notes)),
    ]
    columns = [(title, lambda row, cell=cell: cell(orderings.get(row.name, BASELINE))) for title, cell in cells]
    compared = [row for row in measured if row.name in orderings or table.baseline_of(row) is row]
    lines = ["##### Is the paper's order confirmed?", table_lines(compared, [ROW, *columns])]
    tested = [ordering for ordering in orderings.values() if ordering.difference]
    if tested:
        lines.append(
            "Differences are taken seed by seed. The intervals are Student's t of each row alone; p is two-sided, of "
            f"the paired t test, raised by Holm's rule over {counted(len(tested), 'tested row')}. Below "
            f"{accuracy.SIGNIFICANT} a row differs from {base} by more than chance, and its order is "
            f"{accuracy.CONFIRMED} where the difference has the published sign, {accuracy.CONTRADICTED} where it has "
            "the other. What is not distinguishable at this scale may well differ at full scale. The seeds share one "
            "test set: intervals do not cover how far another test set would move them."
        )
    return lines


def _difference(ordering: Ordering) -> str:
    return "0 (baseline)" if ordering is BASELINE else _points(ordering.difference)


def _points(test: Paired | None) -> str:
    if test is None:
        return MISSING
    interval = test.interval
    return f"{_signed(interval.value)} ({_signed(interval.low)} to {_signed(interval.high)})"


def _signed(points: float) -> str:
    text = f"{points:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def _p(p: float | None) -> str:
    if p is None:
        return MISSING
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def _kind(ordering: Ordering, notes: Notes) -> str:
    if ordering.kind == accuracy.CONTRADICTED:
        return f"**{ordering.kind}**"
    direction = f"; {ordering.direction}" if ordering.kind == accuracy.NO_PUBLISHED_ORDERING else ""
    remarks = (ordering.reason, accuracy.more_words(ordering))
    return f"{ordering.kind}{direction}" + "".join(notes.mark(remark) for remark in remarks if remark)


def _controls_part(table: AblationTable, name: str, rows: list[Row]) -> list[str]:
    over_rows = accuracy.control_means(rows, name)
    tried = {control: words for control, words in accuracy.CONTROLS.items() if control in over_rows}
    if not tried:
        return []
    columns: Columns = [ROW, ("top-1, %, frames in order", lambda row: _plain(row, name))]
    columns += [(f"top-1, %, {words}", lambda row, c=c: _control(row, name, c)) for c, words in tried.items()]
    columns += [
        (f"lost with {words}, points (95 % interval)", lambda row, c=c: _lost(row, name, c))
        for c, words in tried.items()
    ]
    means = [f"{mean:.1f} % with {tried[control]}" for control, mean in over_rows.items()]
    text = (
        "The same weights are tested again on what has lost its order in time (the frames of each clip shuffled) or "
        "has no time at all (the middle frame repeated). Over the rows the mean is "
        f"{fmean(fmean(row.measurement(name).samples) for row in rows):.1f} % in order, {', '.join(means)}."
    )
    classes = accuracy.said(table, name, "classes")
    text += f" Guessing among {classes[0]} classes gives {100 / classes[0]:.1f} %." if len(classes) == 1 else ""
    return ["##### Does the data need time?", table_lines(rows, columns), text]


def _plain(row: Row, name: str) -> str:
    wrong = accuracy.learning_text(row.measurement(name))
    return f"{accuracy.accuracy(row.measurement(name))}" + (f": {wrong}" if wrong else "")


def _control(row: Row, name: str, control: str) -> str:
    measured = row.measurement(name)
    estimate = accuracy.accuracy(measured, list(accuracy.by_seed(measured, control).values()))
    return str(estimate) if estimate else MISSING


def _lost(row: Row, name: str, control: str) -> str:
    return _points(accuracy.cost_of_order(row.measurement(name), control))


LEARNING = (
    "Right at the end of training: of the clips of its last tenth, as they are augmented (of mixed clips the class of "
    f"the first counts), before they are learnt from. A run whose share there may come from guessing {NOT_LEARNT}; one "
    f"whose last fifth is more than {2 * STEEP:g} points (and two standard errors) above the fifth before is "
    f"{UNFINISHED}."
)
FURTHER = {  # details of an accuracy: heading, factor
    "top5": ("top-5 ↑, %", 1),
    "mean_class": ("mean over classes ↑, %", 1),
    "coverage": ("decoded, % of the test videos", 100),
    "seconds": ("training and test, s per seed", 1),
}


def _further_part(name: str, rows: list[Row]) -> list[str]:
    """Other figures of the same runs; what all rows have alike at its best (coverage 1) is said in a sentence."""
    columns: Columns = [ROW]
    text = ""
    if any(accuracy.learning(row.measurement(name)) for row in rows):
        columns.append(("train ↑, %: right at the end of training", lambda row: _trained(row, name)))
        text = LEARNING
    for key, (heading, factor) in FURTHER.items():
        values = [value for row in rows for value in accuracy.by_seed(row.measurement(name), key).values()]
        if key == "coverage" and values and min(values) == 1:
            text = f"{text} Every test video could be decoded.".strip()
        elif values:
            columns.append((heading, lambda row, key=key, factor=factor: _mean_of(row, name, key, factor)))
    if any(row.measurement(name).details.get("params") for row in rows):
        columns.append(("params of the trained model, M", lambda row: _params(row, name)))
    several = any(len(row.measurement(name).samples) > 1 for row in rows)
    table_ = [table_lines(rows, columns)] if len(columns) > 1 else []
    head = [f"##### The same runs in other figures{' (means over seeds)' if several else ''}"] if table_ else []
    return [*head, *table_, *([text] if text else [])]


def _trained(row: Row, name: str) -> str:
    learning = accuracy.learning(row.measurement(name))
    if learning is None:
        return MISSING
    return f"{learning.train:.1f}, " + ("learnt" if not learning.troubles else str(learning).rpartition(" (")[0])


def _mean_of(row: Row, name: str, key: str, factor: float) -> str:
    values = accuracy.by_seed(row.measurement(name), key).values()
    if not values:
        return MISSING
    return f"{factor * fmean(values):.0f}" if key == "seconds" else f"{factor * fmean(values):.1f}"


def _params(row: Row, name: str) -> str:
    count = row.measurement(name).details.get("params")
    return MISSING if count is None else f"{count / 1e6:.2f}"


def summary(table: AblationTable) -> list[str]:
    """For each accuracy: what more views buy, where they were tested; what it is; what a record of more seeds says."""
    told = (views.summary, accuracy.summary, accuracy.recorded)
    lines = [line(table, name) for name in accuracy.names(table) for line in told]
    return [sentence(line) for line in lines if line]


def csv_row(table: AblationTable, row: Row, orderings: dict[str, dict[str, Ordering]]) -> dict[str, Any]:
    """The cells of one row; `orderings` by the name of the accuracy, then of the row."""
    cells: dict[str, Any] = {}
    for name in accuracy.names(table):
        measured, estimate = row.measurement(name), accuracy.accuracy(row.measurement(name))
        ordering, learning = orderings[name].get(row.name), accuracy.learning(measured)
        details = measured.details if measured else {}
        kind = None if estimate is None or estimate.interval is None else "seeds" if estimate.over_seeds else "videos"
        cells |= {
            name: estimate.value if estimate else None,
            **_ends(name, estimate.interval if estimate else None),
            f"{name}_interval": kind,
            f"{name}_seeds": estimate.seeds if estimate else None,
            **{f"{name}_{key}": details.get(key) for key in ("videos", "data", "frames", "size", "width_factor")},
            f"{name}_epochs": details.get("epochs"),
            f"{name}_train": learning.train if learning else None,
            f"{name}_training": accuracy.learning_word(measured),
            **{f"{name}_{key}": _mean(measured, key) for key in ("top5", "mean_class", "coverage", *accuracy.CONTROLS)},
            **_csv_ordering(name, ordering),
        }
        if accuracy.full_column(table, name):
            cells[f"{name}_verdict"] = str(accuracy.judge_full(table, row, name))
    return cells


def _ends(name: str, interval: Interval | None) -> dict[str, float | None]:
    return {f"{name}_low": interval.low if interval else None, f"{name}_high": interval.high if interval else None}


def _mean(measured: Any, key: str) -> float | None:
    values = list(accuracy.by_seed(measured, key).values())
    return fmean(values) if values else None


def _csv_ordering(name: str, ordering: Ordering | None) -> dict[str, Any]:
    test = ordering.difference if ordering else None
    return {
        f"{name}_difference": test.interval.value if test else None,
        **_ends(f"{name}_difference", test.interval if test else None),
        f"{name}_p": test.p if test else None,
        f"{name}_p_holm": ordering.p_holm if ordering else None,
        f"{name}_published_difference": ordering.published if ordering else None,
        f"{name}_ordering": ordering.kind if ordering else None,
        f"{name}_more_seeds": ordering.more if ordering else None,
    }
