"""What the probes say: accuracies against a dial, held against what the reach of a scheme allows.

A measurement of the kind `probed` has one visit for each seed, whose details hold the accuracy at each value of the
dial, easy ones first, and the accuracies of the tenths of its training. Of a query whose answer lies within reach all
can be right, of one whose answer does not only chance: that line is the closed form. Where a scheme stays far below it,
its reach says yes and the probe says no.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import Any

from records import means
from records.intervals import Interval
from records.learning import trouble
from records.record import Measurement
from reports import accuracy
from reports.table import AblationTable, Row
from reports.text import MISSING, ROW, Columns, Notes, counted, listed, table_lines

HALF = 0.5  # of the way from chance to what is allowed: below it a value of the dial counts as failed
LEARNABLE = 95.0  # percent that full attention has at the easy end of a question, or the question proves nothing
OUT_OF_REACH = "out of reach"
NEAR_NONE = 10.0  # percent of the queries within reach, up to which nothing is there to be learnt


@dataclass(frozen=True)
class Point:
    """One value of a dial: accuracy over seeds, and the percentage of queries within reach."""

    value: float
    accuracy: Interval
    reach: float
    chance: float

    def __str__(self) -> str:
        return f"{self.accuracy.value:.0f} ({self.accuracy.low:.0f}–{self.accuracy.high:.0f})"

    @property
    def allowed(self) -> float:
        """The accuracy of a scheme that uses all that it reaches, and guesses the rest."""
        return self.chance + (100 - self.chance) * self.reach / 100

    @property
    def fails(self) -> bool:
        return self.accuracy.value < self.chance + HALF * (100 - self.chance)

    @property
    def blind(self) -> bool:
        """Whether reach says yes, to some queries at least, and the probe, with its interval, says no."""
        return self.reach >= NEAR_NONE and self.accuracy.high < self.chance + HALF * (self.allowed - self.chance)

    @property
    def leaks(self) -> bool:
        """Whether the probe says yes where reach says no: then the stated reach is wrong."""
        return self.reach == 0 and self.accuracy.low > self.chance + 0.1 * (100 - self.chance)


def names(table: AblationTable) -> list[str]:
    return table.named("probed")


def points(measured: Measurement | None) -> list[Point]:
    """Accuracies at the values of a dial with 95 % intervals, over seeds and maps."""
    if measured is None or not measured.samples:
        return []
    by_seed = measured.of_visits("by_dial")
    tested = measured.details["tested"]
    answered = []
    for place, value in enumerate(measured.details["values"]):
        samples = [seed[place] for seed in by_seed]
        if len(samples) > 1:  # all seeds are asked about the same maps, so that their number is the most that is known
            share = means.mean_share_interval([sample / 100 for sample in samples], tested, tested)
        else:
            share = means.share_interval(samples[0] / 100, tested)
        interval = Interval(fmean(samples), 100 * share.low, 100 * share.high)
        answered.append(Point(value, interval, measured.details["reach"][place], measured.details["chance"]))
    return answered


def trained(measured: Measurement) -> tuple[float, str | None]:
    """The accuracy at the end of the trainings, over all seeds, and what is the matter with them, in words."""
    curve = [fmean(part) for part in zip(*measured.of_visits("curve"), strict=True)]
    return curve[-1], trouble(curve, measured.details["last_maps"] * len(measured.visits), measured.details["chance"])


def training_word(measured: Measurement) -> str:
    """For data: what became of the trainings behind a probe."""
    return OUT_OF_REACH if out_of_reach(measured) else trained(measured)[1] or "learnt"


def training_text(measured: Measurement) -> str:
    """What is the matter with the training behind a probe or any other accuracy, in words; empty where nothing is."""
    curves = measured.of_visits("curve")
    if measured.kind != "probed" or not curves or not all(curves):
        return accuracy.learning_text(measured) if measured.kind == "scored" else ""
    if out_of_reach(measured):
        return OUT_OF_REACH
    end, wrong = trained(measured)
    return f"{wrong} (train {end:.0f} %)" if wrong else ""


def out_of_reach(measured: Measurement) -> bool:
    """Whether nothing of a question can be learnt, at any value of its dial."""
    return max(measured.details["reach"]) < NEAR_NONE


def columns(table: AblationTable, notes: Notes) -> Columns:
    """A column for each question: accuracy where the dial is easiest, and the value from which on it fails."""
    quantities = table.quantities()
    return [(f"{quantities[name].title} ↑, %", lambda row, name=name: _cell(row, name, notes)) for name in names(table)]


def _cell(row: Row, name: str, notes: Notes) -> str:
    measured = row.measurement(name)
    answered = points(measured)
    if not answered:
        return MISSING + notes.mark(row.reason(name))
    failed = next((point for point in answered if point.fails), None)
    text = f"{answered[0]}, all" if failed is None else f"{answered[0]}, fails at {failed.value:g}"
    end, wrong = trained(measured)
    if any(point.blind for point in answered):
        text = f"**{text}: blind**"
    elif out_of_reach(measured):
        return f"{text}: {OUT_OF_REACH}"
    return text + (f": {wrong} (train {end:.0f})" if wrong else "")


def findings(table: AblationTable) -> list[str]:
    """Where reach and probe disagree, one line for each row and question."""
    quantities, lines = table.quantities(), []
    for row, name in product(table.measured, names(table)):
        answered = points(row.measurement(name))
        blind, leaking = [p for p in answered if p.blind], [p for p in answered if p.leaks]
        for some, says in ((blind, "reach says yes, the probe no"), (leaking, "reach says no, the probe yes")):
            places = ", ".join(f"{p.value:g} ({_of_allowed(p)})" for p in some)
            dial = row.measurement(name).details["dial"] if some else ""
            lines += [f"{row.name}, {quantities[name].title}: {says} at {places} {dial}"] if some else []
    return lines


def _of_allowed(point: Point) -> str:
    allowed = f", {point.allowed:.0f} % allowed" if 0 < point.reach < 100 else ""
    return f"{point.accuracy.value:.0f} %{allowed}"


@dataclass(frozen=True)
class Controls:
    """What proves the questions: by name of the question, the accuracy of full attention at the easy end, and the
    largest lower end of an interval of a row that reaches nothing, with chance."""

    oracle: dict[str, float]
    nothing: dict[str, tuple[float, float]]

    @property
    def unlearnt(self) -> list[str]:
        """Questions that full attention, which reaches all, does not learn: no failure in them says anything."""
        return [name for name, value in self.oracle.items() if value < LEARNABLE]

    @property
    def given_away(self) -> list[str]:
        """Questions that can be answered without their answer within reach."""
        return [name for name, (low, chance) in self.nothing.items() if low > chance]


def controls(table: AblationTable) -> Controls:
    """Of the rows that were measured: those of full attention alone, and those that reach nothing of a question."""
    oracle, nothing = {}, {}
    for name in names(table):
        measured = [m for row in table.measured if (m := row.measurement(name)) and m.samples]
        full = [points(m)[0].accuracy.value for m in measured if set(m.details["blocks"]) == {"full"}]
        oracle |= {name: max(full)} if full else {}
        blind = [point for m in measured if not max(m.details["reach"]) for point in points(m)]
        nothing |= {name: (max(p.accuracy.low for p in blind), blind[0].chance)} if blind else {}
    return Controls(oracle, nothing)


def _controls_text(table: AblationTable) -> str:
    held, titles = controls(table), table.quantities()
    clauses = []
    if held.oracle:
        least = min(held.oracle, key=held.oracle.__getitem__)
        passed = len(held.oracle) - len(held.unlearnt)
        clauses.append(
            f"full attention, which reaches all, has {LEARNABLE:g} % or more at the easy end of {passed} of "
            f"{len(held.oracle)} questions (least: {titles[least].title}, {held.oracle[least]:.0f} %)"
        )
    if held.nothing:
        passed = len(held.nothing) - len(held.given_away)
        asked = counted(len(held.nothing), "question")
        clauses.append(f"rows that reach nothing of a question are at chance in {passed} of {asked}")
    clauses += [f"**{titles[name].title} is not learnt even so: its failures say nothing**" for name in held.unlearnt]
    clauses += [f"**{titles[name].title} can be answered without attention**" for name in held.given_away]
    return f"Controls: {'; '.join(clauses)}." if clauses else ""


def summary(table: AblationTable) -> list[str]:
    """What was learnt, in a line."""
    if not names(table):
        return []
    answers = {row.name: [points(row.measurement(name)) for name in names(table)] for row in table.measured}
    passed = [row for row, every in answers.items() if all(of and not any(p.fails for p in of) for of in every)]
    asked = [row.measurement(name) for row in table.measured for name in names(table)]
    seeds = {len(measured.visits) for measured in asked if measured is not None} - {0}
    over = counted(max(seeds, default=0), "seed") + (
        " of a short training; the full form decides" if table.quick else ""
    )
    pairs = counted(len(findings(table)), "pair")
    return [
        f"Probes ({over}): every question is answered to the end of its dial by {listed(passed) or 'no row'}; reach "
        f"and probe disagree in {pairs} of row and question. {_controls_text(table)}".strip()
    ]


def section(table: AblationTable) -> str:
    """Findings, then for each question a table of accuracies against its dial with the closed form beside them."""
    questions = names(table)
    if not questions:
        return ""
    disagreements = findings(table)
    parts = ["## Where reach and probe disagree", "\n".join(f"- {line}." for line in disagreements) or "Nowhere."]
    parts.append(
        "A probe is two blocks of a scheme with all else the same, trained on one question about maps of tokens; the "
        "answer is read at the marked token. In the main table: accuracy at the easy end of the dial with its 95 % "
        "interval, and the first value at which it is not halfway from chance to 100 %. In the tables below, after "
        "the bar: the percentage of what the answers depend on that lies within reach of two blocks, in closed form. "
        f"Reach and probe disagree where {NEAR_NONE:g} % or more lie within reach and the accuracy, with its "
        "interval, is not halfway from chance to what this allows; and where nothing lies within reach and the "
        "accuracy, with its interval, is more than a tenth of the way above chance."
    )
    options = _options(table)
    parts += [f"Schemes with options are probed with these alone; others may see more or less: {options}."] * bool(
        options
    )
    for name in questions:
        example = next(m for row in table.measured if (m := row.measurement(name)) and m.samples)
        details = example.details
        parts.append(f"### {example.title[:1].upper()}{example.title[1:]}")
        parts.append(
            f"{details['asks'][:1].upper()}{details['asks'][1:]} Maps of {'x'.join(map(str, details['grid']))} tokens, "
            f"chance {details['chance']:g} %; {details['trained']}; {details['tested']} maps a value."
        )
        parts.append(table_lines(table.measured, _dial_columns(name, example)))
    return "\n\n".join(parts)


def _options(table: AblationTable) -> str:
    """The options of each row's schemes, where the rows are schemes; those along a dial have them in their names."""
    of_rows = {}
    for row in table.measured:
        measured = next((m for name in names(table) if (m := row.measurement(name)) and m.samples), None)
        if measured is not None and not row.dial:
            of_rows |= {row.name: [block for block in dict.fromkeys(measured.details["blocks"]) if "{" in block]}
    return "; ".join(
        f"{row}: {', '.join(f'`{block}`' for block in blocks)}" for row, blocks in of_rows.items() if blocks
    )


def _dial_columns(name: str, example: Measurement) -> Columns:
    def cell(row: Row, place: int) -> str:
        answered = points(row.measurement(name))
        if not answered:
            return MISSING
        text = f"{answered[place]} / {answered[place].reach:.0f}"
        return f"**{text}**" if answered[place].blind or answered[place].leaks else text

    def learnt(row: Row) -> str:
        measured = row.measurement(name)
        if measured is None or not measured.samples:
            return MISSING
        end, wrong = trained(measured)
        return f"{end:.0f}" + (f", {wrong}" if wrong else "")

    first, *others = (f"{value:g}" for value in example.details["values"])
    titles = [f"{first} {example.details['dial']}", *others]
    dials = [(f"{title} / reach", lambda row, place=place: cell(row, place)) for place, title in enumerate(titles)]
    return [ROW, *dials, ("train ↑, %", learnt)]


def csv_row(table: AblationTable, row: Row) -> dict[str, Any]:
    """Accuracy, interval and reach at each value of each dial."""
    cells: dict[str, Any] = {}
    for name in names(table):
        measured = row.measurement(name)
        for point in points(measured):
            key = f"{name}_{point.value:g}"
            cells |= {key: point.accuracy.value, f"{key}_low": point.accuracy.low, f"{key}_high": point.accuracy.high}
            cells |= {f"{key}_reach": point.reach, f"{key}_blind": str(point.blind).lower()}
        if measured is not None and measured.samples:
            end, wrong = trained(measured)
            cells |= {f"{name}_train": end, f"{name}_training": wrong or "learnt"}
    return cells
