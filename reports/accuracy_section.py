"""Accuracy in a report: columns of the main table, the section on ordering and controls, columns of the CSV.

The text says what a reader needs to take each figure for what it is: on which data, how large the clip and the model
were, how many seeds, and what the interval covers.
"""

from statistics import fmean
from typing import Any

from reports import accuracy, verdict, views
from reports.accuracy import Ordering
from reports.means import Paired
from reports.statistics import Interval
from reports.table import AblationTable, Row
from reports.text import MISSING, Columns, Notes, counted, sentence, table_lines

ONE_RUN = (
    "one seed: the interval is Wilson's over the test videos of that run, and leaves out how far another seed would "
    "move it"
)


def main_columns(table: AblationTable, notes: Notes) -> list[Columns]:
    """One column for each accuracy, with the verdict where it stands beside a published one."""
    made: list[Columns] = []
    for name in accuracy.names(table):
        mark = notes.mark(f"measured here on {accuracy.setting(table, name)}")
        heading = f"top-1 ↑, %, measured, {accuracy.budget(table, name)}: mean (95 % interval){mark}"
        made.append([(heading, lambda row, name=name: value(table, row, name, notes))])
        if accuracy.full_column(table, name):
            made[-1].append(("top-1, verdict", lambda row, name=name: _verdict(table, row, name, notes)))
    return made


def value(table: AblationTable, row: Row, name: str, notes: Notes) -> str:
    """An accuracy with its interval and seeds; what sets it apart from the others stands in a footnote."""
    found = accuracy.accuracy(row.measurement(name))
    if found is None:
        return MISSING if row.published_only else MISSING + notes.mark(accuracy.reason(row, name))
    text = str(found) + ("" if found.over_seeds else notes.mark(ONE_RUN))
    odd = accuracy.differs(table, row, name)
    covered = accuracy.by_seed(row.measurement(name), "coverage").values()
    if covered and min(covered) < 1:
        text += notes.mark(f"{100 * min(covered):.1f} % of the test videos could be decoded; the others count as wrong")
    twin = row.measurement(name).details.get("same_network_as")
    text += notes.mark(f"the same network as {twin} at this size: trained once for both") if twin else ""
    lacking = accuracy.unfinished(row.measurement(name))
    text += notes.mark(lacking) if lacking else ""
    return text + (notes.mark(odd) if odd else "")


def _verdict(table: AblationTable, row: Row, name: str, notes: Notes) -> str:
    judged = accuracy.judge_full(table, row, name)
    if judged.kind is None:
        return MISSING
    if judged.kind == verdict.NOT_REPRODUCED:
        return f"**{judged.kind}**"
    return judged.kind + (notes.mark(judged.reason) if judged.reason else "")


def legend(table: AblationTable, published: bool) -> str:
    """What the accuracies of the main table are and are not."""
    found = accuracy.names(table)
    if not found:
        return "Accuracies are published, not measured here." if published else ""
    beside = [name for name in found if accuracy.full_column(table, name)]
    apart = [name for name in found if name not in beside]
    said = []
    if published:
        said.append("Accuracies are published where their heading says so, the others measured here.")
    if published and apart:
        said.append(
            "Those of a smaller setting are not to be compared with the published ones: their order is, further down."
        )
    if beside:
        said.append(
            "At full scale a published accuracy counts as reproduced where the measured interval holds it, give or "
            "take half of its last digit."
        )
    return " ".join(said)


def section(table: AblationTable, notes: Notes) -> str:
    """All that the records say about accuracy beside the main table's column; empty where none was measured."""
    parts = [part for name in accuracy.names(table) for part in _of_one(table, name, notes)]
    return "\n\n".join(["### Accuracy measured here", *parts]) if parts else ""


def _of_one(table: AblationTable, name: str, notes: Notes) -> list[str]:
    known = [row for row in table.rows if row.value(name) is not None]
    if not known:
        reasons = dict.fromkeys(accuracy.reason(row, name) for row in table.measured if row.measurement(name))
        return [f"#### On {accuracy.setting(table, name)}", f"No accuracy: {'; '.join(reasons)}."]
    parts = [f"#### On {accuracy.setting(table, name)}", _how(table, name)]
    parts += _ordering_part(table, name, known, notes)
    parts += _controls_part(table, name, known, notes)
    parts += _further_part(table, name, known)
    parts += views.section(table, name)
    return parts


def _how(table: AblationTable, name: str) -> str:
    epochs, recipes, digests, videos, views, numbers, machines = (
        accuracy.said(table, name, key)
        for key in ("epochs", "recipe", "data_digest", "videos", "views", "seed", "machine")
    )
    digest = f" (digest {'; '.join(map(_digest, digests))})" if digests else ""
    text = f"Trained on {accuracy.data_words(table, name)}{digest}"
    text += f" for {_joined(epochs)} epoch{'' if epochs == [1] else 's'}" if epochs else ""
    text += f" by the recipe {_joined(recipes)}" if recipes else ""
    text += f", tested on {_joined(videos)} videos" if videos else ""
    text += f" with {_joined(views)} views (clips x crops)." if views else "."
    if numbers:
        text += f" Seed{'s' if len(numbers) > 1 else ''} {_joined(numbers)}: a seed sets initial weights and the order "
        text += "of the clips, the same order for all rows."
    decoders = {name for one in accuracy.said(table, name, "trained_with") for name in one.get("decoders", {})}
    text += f" Test videos decoded by {_decoded(table, name, sorted(decoders))}." if decoders else ""
    return text + (f" Machine: {'; '.join(machines)}." if machines else "")


def _decoded(table: AblationTable, name: str, decoders: list[str]) -> str:
    """How many of the test videos each decoder read, in the run with most and the one with fewest where they differ."""
    runs = [one["decoders"] for one in accuracy.said(table, name, "trained_with") if one.get("decoders")]
    words = []
    for decoder in decoders:
        counts = [of_run.get(decoder, 0) for of_run in runs]
        least, most = min(counts), max(counts)
        words.append(f"{decoder} ({most})" if least == most else f"{decoder} ({least} to {most})")
    return ", ".join(words)


def _digest(of_data: Any) -> str:
    """The digest of one list of videos, or those of the lists for training and test."""
    if isinstance(of_data, dict):
        return ", ".join(f"{split} {str(one)[:10]}" for split, one in of_data.items())
    return str(of_data)[:10]


def _joined(values: list[Any]) -> str:
    return ", ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in values)


def _ordering_part(table: AblationTable, name: str, known: list[Row], notes: Notes) -> list[str]:
    found = accuracy.orderings(table, name)
    if not found:
        return []
    bases = list(dict.fromkeys(row.baseline for row in known if row.name in found))
    base = bases[0] if len(bases) == 1 else "the baseline"
    columns: Columns = [("row", lambda row: row.name)]
    columns += [
        (f"top-1 less that of {base}, points (95 % interval)", lambda row: _difference(table, row, found)),
        ("p, after Holm", lambda row: _p(found.get(row.name))),
        ("published difference, points", lambda row: _published(found.get(row.name))),
        ("the paper's order", lambda row: _kind(found.get(row.name), notes)),
    ]
    lines = ["##### Is the paper's order confirmed?", table_lines(known, columns)]
    tested = [one for one in found.values() if one.difference]
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


def _difference(table: AblationTable, row: Row, found: dict[str, Ordering]) -> str:
    if table.baseline_of(row) is row:
        return "0 (baseline)"
    one = found.get(row.name)
    return _points(one.difference) if one and one.difference else MISSING


def _points(one: Paired | None) -> str:
    if one is None:
        return MISSING
    found = one.interval
    return f"{_signed(found.value)} ({_signed(found.low)} to {_signed(found.high)})"


def _signed(points: float) -> str:
    text = f"{points:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def _p(one: Ordering | None) -> str:
    if one is None or one.p_holm is None:
        return MISSING
    return "< 0.001" if one.p_holm < 0.001 else f"{one.p_holm:.3f}" if one.p_holm < 0.1 else f"{one.p_holm:.2f}"


def _published(one: Ordering | None) -> str:
    if one is None or one.published is None:
        return MISSING
    return _signed(float(one.published))


def _kind(one: Ordering | None, notes: Notes) -> str:
    if one is None:
        return MISSING
    if one.kind == accuracy.CONTRADICTED:
        return f"**{one.kind}**"
    if one.kind == accuracy.NO_PUBLISHED_ORDERING:
        return f"{one.kind}; {one.direction}"
    return one.kind + (notes.mark(one.reason) if one.reason else "")


def _controls_part(table: AblationTable, name: str, known: list[Row], notes: Notes) -> list[str]:
    measured = [row.measurement(name) for row in known]
    tried = [control for control in accuracy.CONTROLS if any(accuracy.by_seed(one, control) for one in measured)]
    if not tried:
        return []
    columns: Columns = [("row", lambda row: row.name)]
    columns.append(("top-1, %, frames in order", lambda row: str(accuracy.accuracy(row.measurement(name)))))
    for control in tried:
        words = accuracy.CONTROLS[control]
        columns.append((f"top-1, %, {words}", lambda row, c=control: _control(row, name, c)))
    for control in tried:
        columns.append(
            (
                f"lost with {accuracy.CONTROLS[control]}, points (95 % interval)",
                lambda row, c=control: _points(accuracy.cost_of_order(row.measurement(name), c)),
            )
        )
    means = [f"{m:.1f} % with {accuracy.CONTROLS[key]}" for key, m in accuracy.control_means(known, name).items()]
    text = (
        "The same weights are tested again on what has lost its order in time (the frames of each clip shuffled) or "
        "has no time at all (the middle frame repeated). Over the rows the mean is "
        f"{fmean(fmean(row.measurement(name).samples) for row in known):.1f} % in order, {', '.join(means)}."
    )
    return ["##### Does the data need time?", table_lines(known, columns), text + _chance(table, name)]


def _control(row: Row, name: str, control: str) -> str:
    measured = row.measurement(name)
    found = accuracy.accuracy(measured, list(accuracy.by_seed(measured, control).values()))
    return str(found) if found else MISSING


def _chance(table: AblationTable, name: str) -> str:
    classes = accuracy.said(table, name, "classes")
    return f" Guessing among {classes[0]} classes gives {100 / classes[0]:.1f} %." if len(classes) == 1 else ""


FURTHER = {  # details of an accuracy: heading, factor
    "top5": ("top-5 ↑, %", 1),
    "mean_class": ("mean over classes ↑, %", 1),
    "coverage": ("decoded, % of the test videos", 100),
    "seconds": ("training and test, s per seed", 1),
}


def _further_part(table: AblationTable, name: str, known: list[Row]) -> list[str]:
    """Other figures of the same runs; what all rows have alike at its best (coverage 1) is said in a sentence."""
    columns: Columns = [("row", lambda row: row.name)]
    text = ""
    for key, (heading, factor) in FURTHER.items():
        values = [value for row in known for value in accuracy.by_seed(row.measurement(name), key).values()]
        if key == "coverage" and values and min(values) == 1:
            text = "Every test video could be decoded."
        elif values:
            columns.append((heading, lambda row, key=key, factor=factor: _mean_of(row, name, key, factor)))
    if any(row.measurement(name).details.get("params") for row in known):
        columns.append(("params of the trained model, M", lambda row: _params(row, name)))
    several = any(len(row.measurement(name).samples) > 1 for row in known)
    table_ = [table_lines(known, columns)] if len(columns) > 1 else []
    head = [f"##### The same runs in other figures{' (means over seeds)' if several else ''}"] if table_ else []
    return [*head, *table_, *([text] if text else [])]


def _mean_of(row: Row, name: str, key: str, factor: float) -> str:
    values = accuracy.by_seed(row.measurement(name), key).values()
    if not values:
        return MISSING
    return f"{factor * fmean(values):.0f}" if key == "seconds" else f"{factor * fmean(values):.1f}"


def _params(row: Row, name: str) -> str:
    count = row.measurement(name).details.get("params")
    return MISSING if count is None else f"{count / 1e6:.2f}"


def summary(table: AblationTable) -> list[str]:
    """One sentence for each accuracy."""
    return [sentence(line) for name in accuracy.names(table) if (line := accuracy.summary(table, name))]


def csv_row(table: AblationTable, row: Row, orderings: dict[str, dict[str, Ordering]]) -> dict[str, Any]:
    """The cells of one row; `orderings` by the name of the accuracy, then of the row."""
    cells: dict[str, Any] = {}
    for name in accuracy.names(table):
        measured, found = row.measurement(name), accuracy.accuracy(row.measurement(name))
        one = orderings[name].get(row.name)
        details = measured.details if measured else {}
        kind = None if found is None or found.interval is None else "seeds" if found.over_seeds else "videos"
        cells |= {
            name: found.value if found else None,
            **_ends(name, found.interval if found else None),
            f"{name}_interval": kind,
            f"{name}_seeds": found.seeds if found else None,
            **{f"{name}_{key}": details.get(key) for key in ("videos", "data", "frames", "size", "width_factor")},
            f"{name}_epochs": details.get("epochs"),
            **{f"{name}_{key}": _mean(measured, key) for key in ("top5", "mean_class", "coverage", *accuracy.CONTROLS)},
            **_csv_ordering(name, one),
        }
        if accuracy.full_column(table, name):
            cells[f"{name}_verdict"] = str(accuracy.judge_full(table, row, name))
    return cells


def _ends(name: str, interval: Interval | None) -> dict[str, float | None]:
    return {f"{name}_low": interval.low if interval else None, f"{name}_high": interval.high if interval else None}


def _mean(measured: Any, key: str) -> float | None:
    values = list(accuracy.by_seed(measured, key).values())
    return fmean(values) if values else None


def _csv_ordering(name: str, one: Ordering | None) -> dict[str, Any]:
    test = one.difference if one else None
    return {
        f"{name}_difference": test.interval.value if test else None,
        **_ends(f"{name}_difference", test.interval if test else None),
        f"{name}_p": test.p if test else None,
        f"{name}_p_holm": one.p_holm if one else None,
        f"{name}_published_difference": one.published if one else None,
        f"{name}_ordering": one.kind if one else None,
    }
