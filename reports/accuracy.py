"""Accuracy measured here: what it is, how sure it is, and whether it orders the rows as the paper does.

A measurement of the kind `scored` holds one top-1 accuracy per seed; its details name budget, data, clip and the
controls. Intervals are those of shares (`records.means`): of a mean over seeds, or of the videos of a single run, which
says so. Small models on the built-in data are never set against published accuracies;
what is asked of them is the sign of a difference: does the row that the paper calls better come out better here? That
is tested against the baseline row by the paired t test over seeds, with Holm's rule over the rows. A training that did
not learn, or was still learning at its end, is never a plain figure (`learning`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from statistics import fmean
from typing import TYPE_CHECKING, Any

from records import means, power
from records.intervals import Interval
from records.learning import NOT_LEARNT, QUICK_MODE, UNFINISHED, trouble
from records.means import Paired
from records.power import recorded_words
from records.record import Measurement
from records.visits import by_seed, seed_by_seed
from reports import verdict
from reports.text import counted
from reports.verdict import Verdict

if TYPE_CHECKING:
    from reports.table import AblationTable, Row

CONTROLS = {"shuffled": "frames shuffled", "single": "a single frame"}

CONFIRMED = "confirmed"
CONTRADICTED = "contradicted"
NOT_DISTINGUISHABLE = "not distinguishable at this scale"
NO_PUBLISHED_ORDERING = "no published ordering"
ONE_SEED = "one seed: no test"
NOT_TESTED = "not tested"
DECIDED = (CONFIRMED, CONTRADICTED, NOT_DISTINGUISHABLE)
SIGNIFICANT = power.SIGNIFICANT

SAME = {"data_digest": "data", "videos": "test videos", "epochs": "epochs", "stem": "stem"}
"""Details that a row and its baseline have in common, or there is no test."""
PUBLISHED_COLUMNS = {"kinetics400": ("k400_top1", "top1"), "kinetics600": ("k600_top1",)}
PUBLISHED_DATA = {"kinetics-400": "kinetics400", "kinetics-600": "kinetics600"}


def budget(table: AblationTable, name: str) -> str:
    """How much was spent on training, in a word: `quick`, `proxy`, `full`."""
    return str(next(iter(said(table, name, "budget")), "unnamed budget"))


def effort(table: AblationTable, name: str) -> str:
    """The budget, and that training did not start from random weights, where it did not."""
    return f"{budget(table, name)}, warm start" if any(said(table, name, "initial")) else budget(table, name)


def names(table: AblationTable) -> list[str]:
    """The accuracies that were asked for in any row: the built-in data first, budgets from small to large."""
    return sorted_names(measured for row in table.measured for measured in row.record.measurements.values())


def sorted_names(measurements: Iterable[Measurement]) -> list[str]:
    """Of some measurements those of accuracies by their names, each once, in the order of `names`."""
    scored: dict[str, dict[str, Any]] = {}
    for measurement in measurements:
        if measurement.kind == "scored":
            scored.setdefault(measurement.name, measurement.details)

    def place(name: str) -> tuple:
        details = scored[name]
        size = [details.get(key) or 1 for key in ("epochs", "frames", "size", "width_factor")]
        built_in = bool(details.get("built_in"))
        return not built_in, "" if built_in else str(details.get("data")), math.prod(size) * size[2], name

    return sorted(scored, key=place)


def reason(row: Row, name: str) -> str:
    """Why a row has no such accuracy."""
    if row.record is None or row.measurement(name) is not None:
        return row.reason(name)
    return f"its accuracy {name} was not asked for in this run"


@dataclass(frozen=True)
class Accuracy:
    """A percentage, its 95 % interval, and where the interval comes from: several seeds, or the videos of one run."""

    interval: Interval | None
    value: float
    seeds: int
    videos: int | None

    @property
    def over_seeds(self) -> bool:
        return self.seeds > 1

    def __str__(self) -> str:
        seeds = f"n={self.seeds}" if self.over_seeds else "one seed"
        if self.interval is None:
            return f"{self.value:.1f} ({seeds})"
        return f"{self.value:.1f} ({self.interval.low:.1f}–{self.interval.high:.1f}, {seeds})"


def accuracy(measured: Measurement | None, samples: Sequence[float] | None = None) -> Accuracy | None:
    """The accuracy that a measurement holds, or that another list of one percentage per seed does.

    None where there are no samples. One seed without a number of videos has no interval.
    """
    if measured is None:
        return None
    samples = [sample for sample in (measured.samples if samples is None else samples) if sample is not None]
    if not samples:
        return None
    videos = measured.details.get("videos")
    if len(samples) > 1 and videos:
        shares = [sample / 100 for sample in samples]
        interval = means.mean_share_interval(shares, videos, len(samples) * videos).percent
    elif len(samples) > 1:
        interval = means.mean_interval(samples)
    elif videos:
        interval = means.share_interval(samples[0] / 100, videos).percent
    else:
        return Accuracy(None, samples[0], 1, None)
    return Accuracy(interval, fmean(samples), len(samples), videos)


def figure(row: Row, measured: Measurement) -> tuple[int | float | None, Interval | None]:
    """What a measurement of a row comes to, an accuracy or anything else, and its interval where it has one."""
    if measured.kind != "scored":
        return row.value(measured.name), row.interval(measured.name) if measured.ran else None
    estimate = accuracy(measured)
    return (estimate.value, estimate.interval) if estimate else (None, None)


def cost_of_order(measured: Measurement | None, control: str) -> Paired | None:
    """How many percentage points the control lies below the same weights given the frames in order; None below two
    seeds."""
    pairs = seed_by_seed(by_seed(measured), by_seed(measured, control))
    return means.paired(*zip(*pairs, strict=True), _step(measured)) if len(pairs) > 1 else None


def _step(measured: Measurement) -> float:
    """One video of the test set in percentage points; 0 where their number is not known."""
    videos = measured.details.get("videos")
    return 100 / videos if videos else 0.0


@dataclass(frozen=True)
class Learning:
    """Accuracy on the clips of the last tenth of the trainings, in percent, and what is the matter with them, by
    seed."""

    train: float
    troubles: dict[Any, str]
    seeds: int

    def __str__(self) -> str:
        """`has not learnt (train 12 %)`, `2 of 3 seeds: unfinished (train 64 %)`; empty where all is well."""
        if not self.troubles:
            return ""
        counts = {word: list(self.troubles.values()).count(word) for word in learning_words(self.troubles.values())}
        parts = [word if n == self.seeds else f"{n} of {self.seeds} seeds: {word}" for word, n in counts.items()]
        return f"{', '.join(parts)} (train {self.train:.0f} %)"


def learning_words(troubles: Iterable[str]) -> list[str]:
    """Each trouble once, the worst first."""
    return [word for word in (QUICK_MODE, NOT_LEARNT, UNFINISHED) if word in troubles]


def learning(measured: Measurement | None) -> Learning | None:
    """Whether the trainings behind an accuracy learnt; None for records of before that was kept."""
    curves = by_seed(measured, "train_curve")
    if not curves:
        return None
    clips, chance = by_seed(measured, "train_clips"), by_seed(measured, "chance")
    cut = measured.details.get("steps") is not None
    troubles = {
        seed: QUICK_MODE if cut else trouble(curve, clips[seed], chance[seed]) for seed, curve in curves.items()
    }
    ends = fmean(curve[-1] for curve in curves.values())
    return Learning(ends, {seed: word for seed, word in troubles.items() if word}, len(curves))


def learning_word(measured: Measurement | None) -> str | None:
    """For data: "learnt", or the troubles of any of the seeds; None where nothing is known."""
    learnt = learning(measured)
    return ("; ".join(learning_words(learnt.troubles.values())) or "learnt") if learnt else None


def learning_text(measured: Measurement | None) -> str:
    """What is the matter with the trainings of a row, in words; empty where nothing is, or nothing is known."""
    return str(learning(measured) or "")


@dataclass(frozen=True)
class Ordering:
    """A row against the baseline: the paired difference in percentage points, and what became of the paper's order.

    `p` is the two-sided p of the row alone, `p_holm` that among all tested rows, which decides. `reason` says why
    there is no test. `more` is how many further seeds would tell the difference, were it what it seems (None: more than
    can be counted, or none are lacking).
    """

    kind: str
    published: Decimal | None = None
    difference: Paired | None = None
    p_holm: float | None = None
    reason: str | None = None
    more: int | None = None

    @property
    def distinguishable(self) -> bool:
        return self.p_holm is not None and self.p_holm < SIGNIFICANT

    @property
    def direction(self) -> str:
        """Where the row lies here, in words."""
        if self.difference is None:
            return ""
        if not self.distinguishable:
            return NOT_DISTINGUISHABLE
        return "higher here" if self.difference.interval.value > 0 else "lower here"


def orderings(table: AblationTable, name: str) -> dict[str, Ordering]:
    """By the name of the row, the ordering of each row that has this accuracy and a baseline that has it too."""
    tests: dict[str, Paired] = {}
    result: dict[str, Ordering] = {}
    column = published_column(table, name)
    for row in table.rows:
        base = table.baseline_of(row)
        if base is None or base is row or row.value(name) is None or base.value(name) is None:
            continue
        ours, theirs = row.measurement(name), base.measurement(name)
        published = _published_difference(row, base, column)
        reason = _not_alike(ours, theirs)
        pairs = seed_by_seed(by_seed(ours), by_seed(theirs))
        if reason:
            result[row.name] = Ordering(NOT_TESTED, published, reason=reason)
        elif len(pairs) < 2:
            alone = len(ours.samples) < 2 or len(theirs.samples) < 2
            few = None if alone else "the row and the baseline have fewer than two seeds in common"
            result[row.name] = Ordering(ONE_SEED if alone else NOT_TESTED, published, reason=few)
        else:
            tests[row.name] = means.paired(*zip(*pairs, strict=True), _step(ours))
            result[row.name] = Ordering("", published)
    common = power.pooled([test.differences for test in tests.values()])
    for row_name, p in zip(tests, means.holm([test.p for test in tests.values()]), strict=True):
        published, test = result[row_name].published, tests[row_name]
        judged = _judged(test, p, published)
        needed = power.seeds_for(abs(test.interval.value), common, len(tests)) if p >= SIGNIFICANT and common else None
        more = max(1, needed - len(test.differences)) if needed else None
        result[row_name] = Ordering(judged, published, test, p, more=more)
    return result


def more_words(ordering: Ordering) -> str:
    """How many seeds a difference that was not told would take, in words."""
    if ordering.difference is None or ordering.distinguishable:
        return ""
    if ordering.more is None:
        return f"only more than {power.MOST} seeds would tell a difference so small"
    return (
        f"about {ordering.more} more {'seed' if ordering.more == 1 else 'seeds'} would tell it, were it what it seems"
    )


def _judged(test: Paired, p: float, published: Decimal | None) -> str:
    if not published:  # nothing printed, or the same accuracy for both
        return NO_PUBLISHED_ORDERING
    if p >= SIGNIFICANT:
        return NOT_DISTINGUISHABLE
    return CONFIRMED if (test.interval.value > 0) == (published > 0) else CONTRADICTED


def _published_difference(row: Row, base: Row, column: str | None) -> Decimal | None:
    printed = [side.printed(column) for side in (row, base)] if column else [None]
    return None if None in printed else Decimal(str(printed[0])) - Decimal(str(printed[1]))


def _not_alike(ours: Measurement, theirs: Measurement) -> str | None:
    """Why two rows may not be compared, in words."""
    for measured, whose in ((ours, "the row"), (theirs, "the baseline")):
        progress = learning(measured)
        if progress and {NOT_LEARNT, QUICK_MODE} & set(progress.troubles.values()):
            return f"not tested: {whose} {progress}"
    for key, words in SAME.items():
        values = [measurement.details.get(key) for measurement in (ours, theirs)]
        if values[0] != values[1]:
            return f"not tested: {words} {_in_short(values[0])} here, {_in_short(values[1])} in the baseline"
    return None


def _in_short(value: Any) -> str:
    """A digest by its first letters, those of the parts of a data set by part."""
    return (
        ", ".join(f"{part} {_in_short(digest)}" for part, digest in value.items())
        if isinstance(value, dict)
        else str(value)[:12]
    )


def published_column(table: AblationTable, name: str) -> str | None:
    """The printed accuracy that an accuracy is held against: of the same data, else the paper's main one."""
    data = data_of(table, name)
    same_data = next((column for column in printed_columns(data) if table.publishes(column)), None)
    return same_data or next((column for column in ("top1", "k400_top1") if table.publishes(column)), None)


def printed_columns(data: str) -> tuple[str, ...]:
    """Under which names the papers' tables print the top-1 accuracy of a data set."""
    return PUBLISHED_COLUMNS.get(data, (f"{data}_top1",))


def data_of(table: AblationTable, name: str) -> str:
    """The data set behind an accuracy, or those of its rows."""
    return " and ".join(said(table, name, "data")) or "unnamed data"


def is_built_in(table: AblationTable, name: str) -> bool:
    """Whether the data came with the project, so that no paper has a figure for it."""
    return bool(next(iter(said(table, name, "built_in")), False))


def judge_full(table: AblationTable, row: Row, name: str) -> Verdict:
    """The published accuracy of a row against the one measured at full scale: reproduced where the interval holds it.

    The interval is widened by half of the last printed digit. Rows of another data set, width or clip than the
    published ones are not compared, with the reason.
    """
    column, measured = full_column(table, name), row.measurement(name)
    printed = row.printed(column) if column else None
    if printed is None:
        return verdict.NOTHING_PUBLISHED
    if row.published_only:
        return Verdict(verdict.PUBLISHED_ONLY)
    estimate = accuracy(measured)
    if row.comparable is not True:
        return Verdict(verdict.NOT_COMPARED, str(row.comparable or "not the published setting"))
    if estimate is None:
        return Verdict(verdict.NOT_COMPARED, reason(row, name))
    if estimate.interval is None:
        return Verdict(verdict.NOT_COMPARED, "one run without its number of videos has no interval")
    smaller = not_full(row, measured)
    if smaller:
        return Verdict(verdict.NOT_COMPARED, smaller)
    half = Decimal(1).scaleb(Decimal(str(printed)).as_tuple().exponent) / 2
    holds = estimate.interval.low - float(half) <= printed <= estimate.interval.high + float(half)
    return Verdict(verdict.REPRODUCED if holds else verdict.NOT_REPRODUCED)


def full_column(table: AblationTable, name: str) -> str | None:
    """The printed column that an accuracy at full scale stands beside; None for any other accuracy."""
    if is_built_in(table, name) or not any(said(table, name, "published_recipe")):
        return None
    data = data_of(table, name)
    stated = {str(row.published.settings.get("dataset", "")).lower() for row in table.rows if row.published is not None}
    data_sets = {PUBLISHED_DATA.get(name) for name in stated}
    for column in printed_columns(data):
        if table.publishes(column) and (column != "top1" or data_sets <= {None, data}):
            return column
    return None


def not_full(row: Row, measured: Measurement) -> str | None:
    """How a run at full scale is smaller than the row it belongs to."""
    if measured.details.get("width_factor", 1) != 1:
        return f"trained at width factor {measured.details['width_factor']}"
    if measured.details.get("depth") is not None:
        return f"trained with at most {measured.details['depth']} blocks a stage"
    clip = row.record.case.get("clip") or {}
    for key in ("frames", "size"):
        trained, nominal = measured.details.get(key), clip.get(key)
        if trained is not None and nominal is not None and trained != nominal:
            return f"trained with {key} {trained}, the row has {nominal}"
    return None


def macs_per_view(row: Row, name: str) -> float | None:
    """Multiply-adds of one view of the model that was trained: as stated with the accuracy, else the row's own where
    the row itself was trained."""
    measured = row.measurement(name)
    stated = measured.details.get("macs")
    return stated if stated is not None else None if not_full(row, measured) else row.value("macs")


def said(table: AblationTable, name: str, key: str) -> list[Any]:
    """The values that an entry of the details takes over the rows, each once."""
    values = [value for m in _measurements(table, name) for value in m.said(key)]
    return [value for place, value in enumerate(values) if value not in values[:place]]


def circumstances(table: AblationTable, names: Collection[str]) -> dict[str, list[str]]:
    """What stands at the foot of a figure of these accuracies: all of their trainings, nothing of what rows cost."""
    facts = {
        word: list(dict.fromkeys(str(value) for name in names for value in said(table, name, key)))
        for key, word in {"machine": "device", "dtype": "dtype", "batch_size": "batch", "commit": "commit"}.items()
    }
    sizes = [(m.details.get("frames"), m.details.get("size")) for name in names for m in _measurements(table, name)]
    clips = dict.fromkeys(f"{frames} frames, {size}x{size} pixels" for frames, size in sizes if frames and size)
    facts["commit"] = list(dict.fromkeys(commit[:10] for commit in facts["commit"]))
    return facts | {"clip": list(clips), "mode": [], "threads": []}


def _measurements(table: AblationTable, name: str) -> Iterable[Measurement]:
    return [m for row in table.measured if (m := row.measurement(name))]


def data_words(table: AblationTable, name: str) -> str:
    """The data set as a heading names it."""
    data = data_of(table, name)
    return f"built-in data ({data})" if is_built_in(table, name) else data


def setting(table: AblationTable, name: str) -> str:
    """Data set, budget, frames x size, how much smaller the models were, seeds: what a heading has to say."""
    parts = [data_words(table, name), budget(table, name)]
    frames, size, width, depth = (said(table, name, key) for key in ("frames", "size", "width_factor", "depth"))
    if frames and len(size) == 1:
        long = f"{frames[0]}" if len(frames) == 1 else f"{min(frames)}–{max(frames)}"
        parts.append(f"{long}x{size[0]}x{size[0]}")
    if len(width) == 1:
        parts.append("full width" if width[0] == 1 else f"width factor {width[0]:g}")
    if len(depth) == 1:
        parts.append(f"at most {depth[0]} blocks a stage")
    if said(table, name, "stem") == ["convolutions"]:
        parts.append("a stem of convolutions")
    counts = {len(m.samples) for m in _measurements(table, name) if m.samples}
    if counts:
        low, high = min(counts), max(counts)
        parts.append(f"{low}–{high} seeds" if low != high else f"{low} seed{'' if low == 1 else 's'}")
    return ", ".join(parts)


def unfinished(measured: Measurement) -> str | None:
    """Which of the wanted seeds are lacking, in words."""
    done, planned = measured.said("seed"), measured.details.get("wanted_seeds") or []
    lacking = [seed for seed in planned if seed not in done]
    if not measured.samples or not lacking:
        return None
    failed = measured.details.get("failed") or {}
    reasons = dict.fromkeys(failed[str(seed)] for seed in lacking if str(seed) in failed)
    return f"{len(done)} of {len(planned)} seeds trained so far" + (f": {'; '.join(reasons)}" if reasons else "")


def differs(table: AblationTable, row: Row, name: str) -> str | None:
    """In what the accuracy of a row was measured otherwise than that of other rows, in words."""
    measured = row.measurement(name)
    words = {"frames": "frames", "size": "size", "width_factor": "width factor", "recipe": "recipe"} | SAME
    differing = [
        f"{words[key]} {_in_short(measured.details.get(key, 'not stated'))}"
        for key in words
        if len(said(table, name, key)) > 1
    ]
    return f"trained with {', '.join(differing)}, other rows otherwise" if differing else None


def control_means(rows: Iterable[Row], name: str) -> dict[str, float]:
    """The mean over rows and seeds of each control that was tried."""
    by_control = {key: [by_seed(row.measurement(name), key).values() for row in rows] for key in CONTROLS}
    return {key: fmean(fmean(seeds) for seeds in values if seeds) for key, values in by_control.items() if any(values)}


def verdict_counts(orderings: Iterable[Ordering]) -> dict[str, int]:
    """How many rows got each of the three answers."""
    kinds = [ordering.kind for ordering in orderings]
    return {kind: kinds.count(kind) for kind in DECIDED if kind in kinds}


def summary(table: AblationTable, name: str) -> str | None:
    """Sentences on an accuracy: what became of the paper's order first; None where nothing was measured."""
    measured = [row for row in table.rows if row.value(name) is not None]
    if not measured:
        return None
    best, least = (choose(measured, key=lambda row: accuracy(row.measurement(name)).value) for choose in (max, min))
    values = [f"{accuracy(row.measurement(name)).value:.1f} % ({row.name})" for row in (least, best)]
    span = f"Top-1 on {setting(table, name)}: {' to '.join(values) if best is not least else values[0]}"
    span += "".join(f", {mean:.1f} % with {CONTROLS[key]}" for key, mean in control_means(measured, name).items())
    wrong = [f"{row.name}, {text}" for row in measured if (text := learning_text(row.measurement(name)))]
    unsound = [f"Not to be taken as they stand: {'; '.join(wrong)}"] * bool(wrong)
    return " ".join(f"{text}." for text in [*_answers(table, name), span, *unsound])


def _answers(table: AblationTable, name: str) -> list[str]:
    """What became of the orders against the baseline; nothing where there are none."""
    judgements = orderings(table, name)
    if not judgements:
        return []
    if all(ordering.kind == ONE_SEED for ordering in judgements.values()):
        return [f"{ONE_SEED[:1].upper()}{ONE_SEED[1:]} of the ordering"]
    counts = verdict_counts(judgements.values())
    judged = {kind: [row for row, ordering in judgements.items() if ordering.kind == kind] for kind in counts}
    if sum(counts.values()) == 1:
        ((kind, (row,)),) = judged.items()
        lacking = f"; {more_words(judgements[row])}" if kind == NOT_DISTINGUISHABLE else ""
        return [f"The one order that the paper prints ({row} against {_bases(table, [row])}) is {kind}{lacking}"]
    if counts:
        words = {
            kind: _lacking(judgements, rows) if kind == NOT_DISTINGUISHABLE else _named(table, rows, name)
            for kind, rows in judged.items()
        }
        verdicts = ", ".join(f"{n} {kind} ({words[kind]})" for kind, n in counts.items())
        base = _bases(table, [row for rows in judged.values() for row in rows])
        return [f"Of the {sum(counts.values())} orders that the paper prints against {base}: {verdicts}"]
    tested = {row: ordering for row, ordering in judgements.items() if ordering.difference}
    if not tested:
        return ["No order could be tested"]
    told = [f"{row} ({o.direction.removesuffix(' here')})" for row, o in tested.items() if o.distinguishable]
    others = [row for row, ordering in tested.items() if not ordering.distinguishable]
    answer = f"{len(told)} of {counted(len(tested), 'row')} can be told from {_bases(table, tested)}"
    answer += f": {'; '.join(told)}" if told else ""
    answer += f"{'. Of the others, ' if told else '; '}{_lacking(judgements, others)}" if others else ""
    return [answer] + ["The paper prints no order of these rows"] * (table.paper is not None)


def _bases(table: AblationTable, rows: Collection[str]) -> str:
    """What rows are held against, in words."""
    bases = {row.baseline for row in table.rows if row.name in rows}
    return bases.pop() if len(bases) == 1 else "their baselines"


def recorded(table: AblationTable, name: str) -> str | None:
    """Where a table of few seeds lies: what the committed record of more seeds holds, as a sentence."""
    words = [recorded_words(values) for values in said(table, name, "recorded")]
    return f"{words[0]}." if words else None


def _lacking(judgements: dict[str, Ordering], rows: list[str]) -> str:
    """How many more seeds would tell rows that were not told from their baseline."""
    more = sorted(ordering.more for row in rows if (ordering := judgements[row]).more)
    beyond, who = len(rows) - len(more), "all" if len(rows) > 1 else "1"
    if not more:
        return f"{who} would take more than {power.MOST} seeds"
    span = f"{more[0]}" if more[0] == more[-1] else f"{more[0]} to {more[-1]}"
    words = f"would take about {span} more {'seed' if more[-1] == 1 else 'seeds'}"
    return f"{len(more)} {words}, {beyond} more than {power.MOST}" if beyond else f"{who} {words}"


def _named(table: AblationTable, rows: list[str], name: str) -> str:
    """Rows in words; what is one network with another of them, and so one test, is said to be so."""
    measured = {row.name: row.measurement(name) for row in table.measured}
    twins = {row: measured[row].details.get("same_network_as") for row in rows}
    return "; ".join(f"{row}, the same network at this size" if twins[row] in rows else row for row in rows)
