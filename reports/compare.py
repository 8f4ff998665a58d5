"""What changed between two runs: `python -m harness.compare A B`.

A and B are folders of records, each one ablation's or a whole outputs folder: before and after a change, or of two
machines. Cases are matched by ablation, row and settings, apart from device, threads and the digest of a video; what is
left is matched without dtype, kernel and compilation too. Exact counts that differ are listed as they are. A timing or
a peak of memory is B's median over A's with a 95 % interval; the two runs are taken as independent, and a ratio whose
interval holds 1, or which is closer to 1 than the noise floor of either run or than 1 %, is not distinguishable. What
differs in machine, versions, number format or in the kernel and operators that ran is told with the rows that it
concerns.

Whether the two runs say the same is judged for each ablation and measurement. Order: of two rows that ran alike on one
clip, and whose 95 % intervals are apart in both runs, the same one is first in both. Ratios to the baseline: the
intervals of the two runs overlap; that each also holds the other's value is counted, not asked for, since of two right
intervals one leaves the other's value out too often. A median of one round has an interval of that round only: it is
taken to reach as far as the noise floor.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from records import means
from records.intervals import Interval
from records.record import (
    MANIFEST,
    Measurement,
    Record,
    RecordError,
    ablation_folders,
    canonical,
    read_manifest,
    read_record,
)
from records.visits import by_seed, seed_by_seed, taken
from reports import probes, statistics
from reports.markdown import NOT_DISTINGUISHABLE, ratio_text
from reports.statistics import Ratio
from reports.table import AblationTable, Row, facts, ratio_of, visits
from reports.text import UNITS, counted, nearest, table_lines

COMMAND = "python -m harness.compare"
SAME_CASES = "two runs have a row in common where ablation, row, model and clip are the same"
FAIL_ON = {
    "slower": "a timing that is slower beyond noise, or that B could not take",
    "larger": "more memory beyond noise, or memory that B could not measure",
    "counts": "an exact count that is worse, or that differs where neither is better",
    "accuracy": "an accuracy that is lower by the paired test over seeds; of one seed: whose interval lies lower",
    "missing": "a row or a measurement that A has and B has not at all",
}
NOT_OF_THE_CASE = ("device", "threads")  # never matched
LOOSELY = ("dtype", "kernel", "compile")  # not matched where no case is the same in them
GENERATION = "cpu generation"
TOLD = ("device", GENERATION, "torch", "dtype", "kernel", "operators", "mode", "threads", "clip", "commit")
WHAT_RAN = ("kernel", "operators")
SCORES = ("scored", "probed")  # kinds of answers, one visit for each seed
WORSE = {"timed": "slower", "sized": "larger", "shared": "slower", "counted": "counts"} | dict.fromkeys(
    SCORES, "accuracy"
)
MANY = 4  # rows that move alike say more of the machine than of themselves


class CompareError(ValueError):
    """A command that cannot be run; the message names the argument or folder, and the way out."""


@dataclass(frozen=True)
class Line:
    """One measurement of one case that both runs have, or that one of them lost."""

    ablation: str
    row: str
    name: str
    before: str
    after: str
    ratio: Ratio | None = None
    verdict: str = ""
    notes: tuple[str, ...] = ()
    worse: str | None = None  # the word of FAIL_ON that fails on it


@dataclass
class Agreement:
    """Whether two runs say the same of one measurement in one ablation; what they do not is in words: rows, A, B."""

    ablation: str
    name: str
    pairs: int = 0  # of rows under equal circumstances
    apart: int = 0  # of them, in both runs
    reversed: list[tuple[str, str, str]] = field(default_factory=list)
    baselines: list[str] = field(default_factory=list)  # of each ratio that both runs have
    mutual: int = 0  # ratios that each lie in the other run's interval
    outside: list[tuple[str, str, str]] = field(default_factory=list)


@dataclass
class Comparison:
    """All that two runs have to say to each other."""

    counts: list[Line] = field(default_factory=list)
    accuracies: list[Line] = field(default_factory=list)
    timings: list[Line] = field(default_factory=list)
    lost: list[Line] = field(default_factory=list)
    missing: list[Line] = field(default_factory=list)  # what B was not asked for, which may be as it should
    only: dict[str, list[str]] = field(default_factory=lambda: {"A": [], "B": []})
    circumstances: dict[str, dict[tuple[str, str], list[str]]] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)
    agreements: list[Agreement] = field(default_factory=list)
    matched: int = 0
    same_counts: int = 0
    same_accuracies: int = 0

    def worse(self, fail_on: Iterable[str] = FAIL_ON) -> list[Line]:
        """What fails a comparison under some words of `FAIL_ON`."""
        lines = (*self.timings, *self.counts, *self.accuracies, *self.lost, *self.missing)
        return [line for line in lines if line.worse in fail_on]


def main(argv: list[str] | None = None) -> int:
    """Returns 0, 1 where B is worse in what `fail_on` names, 2 for a wrong command or record."""
    argv = sys.argv[1:] if argv is None else argv
    if any(argument in ("-h", "--help") for argument in argv):
        print(f"usage: {COMMAND} A B [fail_on=[{','.join(FAIL_ON)}]]\n\n{__doc__}")
        print("options\n  fail_on=WORD, or several as fail_on=[slower,counts]: exit with 1 if in any row B has")
        print("\n".join(f"    {word:<9} {meaning}" for word, meaning in FAIL_ON.items()))
        print(f"\nexample\n  {COMMAND} results/laptop outputs 'fail_on=[{','.join(FAIL_ON)}]'\n")
        print("exit status: 0 compared, 1 worse and asked to fail on it, 2 the command or a record is wrong")
        return 0
    try:
        folders, fail_on = parse(argv)
        comparison = compare(*map(load, folders))
        if fail_on and not comparison.matched:
            raise CompareError(f"no row of {folders[0]} is in {folders[1]} too, so nothing can be judged; {SAME_CASES}")
    except (CompareError, RecordError) as error:
        print(f"error: {error}\n`{COMMAND} --help` explains the options.", file=sys.stderr)
        return 2
    if sys.stdout.isatty():
        _show(comparison, folders, Console(highlight=False))
    else:
        print(markdown(comparison, *map(str, folders)), end="")
    worse = comparison.worse(fail_on)
    for line in worse:
        change = f"{line.ablation}, {line.row}, {line.name}: {line.before} -> {line.after}"
        print(f"failed on {line.worse}: {change}", file=sys.stderr)
    if fail_on and "missing" not in fail_on and comparison.missing:
        left = f"{len(comparison.missing)} rows and measurements of A that B has not"
        print(f"not judged: {left}; fail_on=missing fails on them", file=sys.stderr)
    return int(bool(worse))


def parse(argv: list[str]) -> tuple[list[Path], list[str]]:
    """The two folders and what to fail on. Raises: CompareError naming the argument and what is allowed."""
    folders, fail_on = [], None
    for argument in argv:
        key, equals, value = argument.partition("=")
        if equals and key.isidentifier() and not Path(argument).exists():
            if key != "fail_on":
                raise CompareError(f"unknown option {key!r}; {nearest(key, ['fail_on'])}")
            if fail_on is not None:
                raise CompareError("fail_on is given twice; give it once, as in fail_on=[slower,counts]")
            words = [word.strip() for word in value.removeprefix("[").removesuffix("]").split(",")]
            for word in words:
                if word not in FAIL_ON and word != "nothing":
                    raise CompareError(f"unknown fail_on {word!r}; {nearest(word, list(FAIL_ON))}")
            fail_on = [word for word in words if word in FAIL_ON]
        elif argument.startswith("-"):
            raise CompareError(f"unknown flag {argument!r}; allowed: --help, and fail_on=WORD")
        else:
            folders.append(Path(argument))
    if len(folders) != 2:
        raise CompareError(f"give two folders of records, A and B; given: {len(folders)}")
    return folders, fail_on or []


def load(folder: Path) -> dict[str, AblationTable]:
    """The measured rows of each ablation in a folder, in its order; quick runs are not among them.

    Raises: CompareError for a folder without any, RecordError for a manifest or record that cannot be read.
    """
    if not folder.is_dir():
        raise CompareError(f"{folder} is not a folder; give an ablation's folder or one that holds several")
    folders = [folder] if (folder / MANIFEST).is_file() else ablation_folders(folder)
    if not folders:
        lacks = f"neither {MANIFEST} nor a folder with one"
        raise CompareError(f"no records in {folder}: {lacks}; is it an outputs folder?")
    tables = {}
    for ablation_folder in folders:
        manifest = read_manifest(ablation_folder)
        rows = tuple(
            Row(entry["row"], record=read_record(record_path), baseline=entry.get("baseline"))
            for entry in manifest["rows"]
            if (record_path := ablation_folder / f"{entry.get('case_id')}.json").is_file()
        )
        name = manifest["name"] if ablation_folder == folder else ablation_folder.relative_to(folder).as_posix()
        tables[name] = AblationTable(name, manifest["question"], rows)
    return tables


def compare(first: dict[str, AblationTable], second: dict[str, AblationTable]) -> Comparison:
    """Set the second run against the first."""
    comparison = Comparison()
    for name in dict.fromkeys([*first, *second]):
        for side, ours, theirs in (("A", first, second), ("B", second, first)):
            if name in ours and name not in theirs:
                comparison.only[side].append(f"{name} (all {len(ours[name].rows)} rows)")
                if side == "A":
                    comparison.missing += [_absent(name, row.name) for row in ours[name].rows]
    matched: dict[str, list[tuple[Row, Row]]] = {}
    for name in first:
        if name in second:
            matched[name], only = match(first[name].rows, second[name].rows)
            for side, rows in zip("AB", only, strict=True):
                comparison.only[side] += [f"{name}: {row}" for row in rows]
            comparison.missing += [_absent(name, row) for row in only[0]]
    pairs = [pair for rows in matched.values() for pair in rows]
    comparison.matched = len(pairs)
    comparison.floors = _floors(run[name] for name in matched for run in (first, second))
    for ablation, rows in matched.items():
        for name, floor in comparison.floors.items():
            agreement = _agreement((first[ablation], second[ablation]), rows, name, floor)
            if agreement.pairs or agreement.baselines:
                comparison.agreements.append(agreement)
    for before, after in pairs:
        _circumstances(comparison, before.record, after.record)
        for name in dict.fromkeys([*before.record.measurements, *after.record.measurements]):
            _set_against(comparison, before, after, name)
    return comparison


def _absent(ablation: str, row: str) -> Line:
    return Line(ablation, row, "all measurements", "measured", "no record", worse="missing")


def match(first: Sequence[Row], second: Sequence[Row]) -> tuple[list[tuple[Row, Row]], tuple[list[str], list[str]]]:
    """Pairs of rows with the same case in the order of the first run, and the names of those that have no partner."""
    partners: dict[int, Row] = {}
    unmatched = list(second)
    for loosely in (False, True):
        rest = [row for row in first if id(row) not in partners]
        for row in rest:
            key = _key(row.record, loosely)
            same = [candidate for candidate in unmatched if _key(candidate.record, loosely) == key]
            if len(same) == 1 and sum(_key(candidate.record, loosely) == key for candidate in rest) == 1:
                partners[id(row)] = same[0]
                unmatched.remove(same[0])
    pairs = [(row, partners[id(row)]) for row in first if id(row) in partners]
    return pairs, ([row.name for row in first if id(row) not in partners], [row.name for row in unmatched])


def _key(record: Record, loosely: bool) -> tuple[str, str]:
    dropped = NOT_OF_THE_CASE + (LOOSELY if loosely else ())
    case = {key: value for key, value in record.case.items() if key not in dropped}
    case["clip"] = {key: value for key, value in (case.get("clip") or {}).items() if key != "digest"}
    return record.row, canonical(case)


def _floors(tables: Iterable[AblationTable]) -> dict[str, float]:
    """For each measurement that ran the largest noise floor of a table, drift included: two runs do not share it."""
    floors: dict[str, float] = {}
    for table in tables:
        kinds = {n: m.kind for row in table.measured for n, m in row.record.measurements.items() if m.ran and m.samples}
        for name, kind in kinds.items():
            rounds = {row.name: samples for row in table.rows if (samples := visits(row, name))}
            floor = statistics.noise_floor(rounds, common_drift=False)
            floor = statistics.ASSUMED_FLOORS.get(kind, statistics.LEAST_FLOOR) if floor is None else floor
            floors[name] = max(floors.get(name, 0.0), floor)
    return floors


def _agreement(tables: Sequence[AblationTable], pairs: list[tuple[Row, Row]], name: str, floor: float) -> Agreement:
    """Judge one measurement; a pair is one row in both runs."""
    agreement = Agreement(tables[0].name, name)
    measured = [pair for pair in pairs if all((m := row.measurement(name)) and m.samples and m.ran for row in pair)]
    _judge_order(agreement, measured, floor)
    _judge_ratios(agreement, tables, measured, floor)
    return agreement


def _judge_order(agreement: Agreement, measured: list[tuple[Row, Row]], floor: float) -> None:
    alike: dict[str, list[tuple[Row, list[Interval]]]] = {}
    for pair in measured:
        intervals = [_reach(row.interval(agreement.name), floor, agreement.name, row) for row in pair]
        alike.setdefault(canonical([_point(row, agreement.name) for row in pair]), []).append((pair[0], intervals))
    for (first, ours), (second, theirs) in (two for rows in alike.values() for two in combinations(rows, 2)):
        agreement.pairs += 1
        runs = list(zip(ours, theirs, strict=True))
        orders = [_order(*run) for run in runs]
        agreement.apart += all(orders)
        if all(orders) and orders[0] != orders[1]:
            unit = first.measurement(agreement.name).unit
            texts = [f"{_spread(a, unit)} {'<' if a.value < b.value else '>'} {_spread(b, unit)}" for a, b in runs]
            agreement.reversed.append((f"{first.name} and {second.name}", *texts))


def _judge_ratios(
    agreement: Agreement, tables: Sequence[AblationTable], measured: list[tuple[Row, Row]], floor: float
) -> None:
    for pair in measured:
        row, baseline = pair[0].name, pair[0].baseline
        ratios = [_to_baseline(table, row, agreement.name, floor) for table, row in zip(tables, pair, strict=True)]
        if None in ratios or baseline != pair[1].baseline:
            continue
        agreement.baselines.append(baseline)
        agreement.mutual += not (ratios[0].excludes(ratios[1].value) or ratios[1].excludes(ratios[0].value))
        values = sorted(ratio.value for ratio in ratios)
        if _order(*ratios) and values[1] > values[0] * (1 + floor):  # below the floor nothing is told apart
            agreement.outside.append((f"{row} / {baseline}", *map(_spread, ratios)))


def _point(row: Row, name: str) -> list[Any]:
    """What rows share before they are ranked, as on the page of costs: there too schemes may run other operators."""
    circumstances = {key: value for key, value in row.circumstances(name).items() if key != "operators"}
    return [circumstances, row.record.case.get("clip")]


def _to_baseline(table: AblationTable, row: Row, name: str, floor: float) -> Interval | None:
    base = table.baseline_of(row)
    if base is None or base.value(name) is None or 0 in base.measurement(name).samples:
        return None
    ratio = table.ratio(row, name)
    return _reach(ratio.interval, floor, name, row, base) if isinstance(ratio, Ratio) else None


def _reach(interval: Interval, floor: float, name: str, *rows: Row) -> Interval:
    """An interval; where no round says anything of the next, no narrower than the noise floor."""
    if all(name in row.spreads for row in rows):
        return interval
    value = interval.value
    return Interval(value, min(interval.low, value / (1 + floor)), max(interval.high, value * (1 + floor)))


def _order(first: Interval, second: Interval) -> int:
    """-1 where `one` lies below, 1 where it lies above, 0 where the two overlap."""
    return (first.low > second.high) - (first.high < second.low)


def _set_against(comparison: Comparison, first: Row, second: Row, name: str) -> None:
    before, after = first.measurement(name), second.measurement(name)
    if before is None or after is None:  # not asked for in one of the runs, which is no change
        if before is not None and before.samples:
            lost = Line(first.record.ablation, first.name, name, _text(before), "not measured", worse="missing")
            comparison.missing.append(lost)
        return
    line = Line(first.record.ablation, first.name, name, _text(before), _text(after))
    is_worse = replace(line, worse=WORSE[before.kind])
    if not before.samples or not after.samples:
        if before.samples or after.samples or before.missing != after.missing:
            comparison.lost.append(is_worse if before.samples else line)
    elif before.kind in SCORES and before.samples == after.samples:
        comparison.same_accuracies += 1
    elif before.kind in SCORES:
        verdict, lower = _accuracies(before, after)
        comparison.accuracies.append(replace(is_worse if lower else line, verdict=verdict))
    elif before.ran:
        comparison.timings.append(_timed(line, first, second))
    elif before.samples == after.samples:
        comparison.same_counts += 1
    else:
        comparison.counts.append(is_worse if _is_worse_count(before, after) else line)


def _timed(line: Line, first: Row, second: Row) -> Line:
    """The line of what ran in both, with its ratio and what differs in how it ran."""
    before, after = first.measurement(line.name), second.measurement(line.name)
    ratio, verdict, worse = None, "not comparable: a median is 0", None
    if before.median and after.median:
        ratio = ratio_of(second, first, line.name, statistics.LEAST_FLOOR)
        rose, verdict = ratio.interval.value > 1, NOT_DISTINGUISHABLE
        if ratio.distinguishable:
            verdict = _directions(before)[0 if rose else 1]
            worse = WORSE[before.kind] if before.better == ("lower" if rose else "higher") else None
    ran = _what_ran(before, first.record), _what_ran(after, second.record)
    notes = [f"{key}: {ran[0][key]} → {ran[1][key]}" for key in WHAT_RAN if ran[0].get(key) != ran[1].get(key)]
    notes += [
        f"{side} has {len(taken(m))} of {m.rounds_wanted} rounds"
        for side, m in zip("AB", (before, after), strict=True)
        if len(taken(m)) < m.rounds_wanted
    ]
    return replace(line, ratio=ratio, verdict=verdict, notes=tuple(notes), worse=worse)


def _directions(measured: Measurement) -> tuple[str, str]:
    """What a ratio above 1 and one below 1 mean."""
    if measured.unit == "ms":
        return "slower", "faster"
    if measured.unit.endswith("/s"):
        return "faster", "slower"
    return ("more", "less") if measured.unit.startswith("bytes") else ("higher", "lower")


def _is_worse_count(before: Measurement, after: Measurement) -> bool:
    """Where neither is better by itself, any other number is worse."""
    return before.better == "none" or (after.median > before.median) == (before.better == "lower")


def _accuracies(before: Measurement, after: Measurement) -> tuple[str, bool]:
    """What two runs of the same seeds say, paired over the seeds they share, and whether the second is worse.

    With one seed no test over seeds is possible: two shares of its videos then differ where their intervals are apart,
    and where nothing says how many videos there were, any lower one is worse.
    """
    pairs = seed_by_seed(by_seed(after), by_seed(before))
    if len(pairs) < 2:
        text = "differs; no test with fewer than 2 shared seeds"
        videos = [m.details.get("videos") for m in (before, after)]
        if all(videos):
            old, new = (means.share_interval(m.median / 100, n) for m, n in zip((before, after), videos, strict=True))
            return text, new.high < old.low
        return text, after.median < before.median
    difference = means.paired(*zip(*pairs, strict=True)).interval
    text = f"{difference.value:+.1f} points [{difference.low:+.1f}, {difference.high:+.1f}]"
    apart = difference.low > 0 or difference.high < 0
    return text if apart else f"{NOT_DISTINGUISHABLE}: {text}", difference.high < 0


def _what_ran(measurement: Measurement, record: Record) -> dict[str, str]:
    kernel = record.case.get("kernel")
    operators = sorted({str(name) for some in measurement.said("operators") for name in some})
    return {
        "kernel": " / ".join(map(str, measurement.said("kernel"))) or str(measurement.details.get("kernel", kernel)),
        "operators": ", ".join(operators) or "not recorded",
    }


def _circumstances(comparison: Comparison, before: Record, after: Record) -> None:
    """Note under which circumstances the two records differ, with the row."""
    sides = []
    for record in (before, after):
        timed = {name: m for name, m in record.measurements.items() if m.samples and m.ran}
        circumstances = facts(replace(record, measurements=timed)) if timed else facts(record)
        versions = {str(version) for m in timed.values() for version in m.said("torch")}
        if versions:
            circumstances["torch"] = " / ".join(sorted(versions))
        operators = {op for m in timed.values() for some in m.said("operators") for op in some}
        if operators:
            circumstances["operators"] = ", ".join(sorted(operators))
        sides.append(circumstances)
    generations = [record.provenance.get("cpu_generation") for record in (before, after)]
    if all(generations) and "device" in sides[0] and sides[0]["device"] == sides[1].get("device"):
        for circumstances, text in zip(sides, _generations(*generations), strict=True):
            circumstances[GENERATION] = text
    for key in TOLD:
        change = tuple(side.get(key) for side in sides)
        if change[0] != change[1] and None not in change:
            rows = comparison.circumstances.setdefault(key, {}).setdefault(change, [])
            rows.append(f"{before.ablation}: {before.row}")


def _generations(*sides: dict[str, Any]) -> list[str]:
    """In what two processors of one name differ; the same words where they do not."""
    differ = [key for key in dict.fromkeys([*sides[0], *sides[1]]) if sides[0].get(key) != sides[1].get(key)]
    differing = [{key: generation.get(key, "not known") for key in differ} for generation in sides]
    words = [{key: _joined(value) for key, value in generation.items()} for generation in differing]
    return [", ".join(f"{key} {value}" for key, value in generation.items()) for generation in words]


def _joined(value: Any) -> Any:
    return (" ".join(value) or "none") if isinstance(value, list) else value


def _spread(interval: Interval, unit: str = "") -> str:
    """With more digits than a report has: what is told here may be a small difference."""
    label, scale = UNITS.get(unit, (unit, 1))
    value, low, high = (f"{bound / scale:.5g}" for bound in (interval.value, interval.low, interval.high))
    return f"{value} ({low}–{high}) {label}".rstrip()


def _text(measurement: Measurement) -> str:
    """A measurement as a cell: exact where it is exact."""
    if measurement.missing:
        return f"— ({measurement.missing})"
    value, wrong = measurement.value, probes.training_text(measurement)
    if measurement.unit == "bytes" and measurement.ran:
        return f"{value / 2**20:,.0f} MiB"
    text = f"{value:,} {measurement.unit}" if isinstance(value, int) else f"{value:.4g} {measurement.unit}"
    return text + (f": {wrong}" if wrong else "")


# what is shown


def _sections(comparison: Comparison) -> Iterator[tuple[str, list[str], list[tuple[str, ...]]]]:
    """Every table of the comparison: title, headings, rows."""
    rows = [_timing(line) for line in comparison.timings if line.verdict != NOT_DISTINGUISHABLE]
    if rows:
        yield "Timings and memory that differ", ["ablation", "row", "measurement", "A", "B", "B / A", "verdict"], rows
    for title, key in (("Rows in another order", "reversed"), ("Ratios that differ", "outside")):
        rows = [(of.ablation, of.name, *sides) for of in comparison.agreements for sides in getattr(of, key)]
        if rows:
            yield title, ["ablation", "measurement", "rows", "A", "B"], rows
    if comparison.accuracies:
        rows = [(x.ablation, x.row, x.name, x.before, x.after, x.verdict) for x in comparison.accuracies]
        yield "Accuracies that differ", ["ablation", "row", "accuracy", "A", "B", "B - A, paired over seeds"], rows
    for title, lines in (("Exact counts that differ", comparison.counts), ("Measured in one only", comparison.lost)):
        if lines:
            rows = [(line.ablation, line.row, line.name, line.before, line.after) for line in lines]
            yield title, ["ablation", "row", "measurement", "A", "B"], rows
    if comparison.circumstances:
        rows = []
        for key, changes in comparison.circumstances.items():
            for (before, after), where in changes.items():
                rows.append((key, before, after, "all" if len(where) == comparison.matched else "; ".join(where)))
        yield "Different circumstances", ["what", "A", "B", "rows"], rows
    if any(comparison.only.values()):
        rows = [(side, row) for side, names in comparison.only.items() for row in names]
        yield "Rows in one only", ["in", "ablation: row"], rows


def _timing(line: Line) -> tuple[str, ...]:
    ratio = ratio_text(line.ratio) if line.ratio else "—"
    return line.ablation, line.row, line.name, line.before, line.after, ratio, "; ".join([line.verdict, *line.notes])


def summary(comparison: Comparison) -> list[str]:
    """The result in a few sentences."""
    timings, text = comparison.timings, [f"{comparison.matched} cases in both."]
    if timings:
        verdicts = Counter(line.verdict for line in timings)
        judged = ", ".join(f"{n} {verdict}" for verdict, n in sorted(verdicts.items()))
        text.append(f"Of {len(timings)} timings and peaks of memory: {judged}.")
    level = [line.ratio.interval.value for line in timings if line.ratio and line.verdict == NOT_DISTINGUISHABLE]
    if level:
        text.append(f"What is not distinguishable is not listed: B / A lies from {min(level):.3g} to {max(level):.3g}.")
    for name in dict.fromkeys(line.name for line in timings):
        ratios = [line.ratio.interval.value for line in timings if line.name == name and line.ratio]
        typical = median(ratios) if len(ratios) >= MANY else 1.0
        if max(typical, 1 / typical) - 1 > comparison.floors[name]:
            words = f"{name.replace('_', ' ')} B / A is {typical:.3g} in the median over all rows"
            text.append(f"The {words}: what moves all rows alike may be the load or the clock of the machine.")
    text += [_agreement_text(agreement) for agreement in comparison.agreements]
    if comparison.same_counts or comparison.counts:
        text.append(f"Exact counts: {comparison.same_counts} equal, {len(comparison.counts)} differ.")
    if comparison.same_accuracies or comparison.accuracies:
        lower = sum(line.worse is not None for line in comparison.accuracies)
        differ = f"{len(comparison.accuracies)} differ, {lower} of them lower" if comparison.accuracies else "0 differ"
        text.append(f"Accuracies: {comparison.same_accuracies} equal, {differ}.")
    if "device" in comparison.circumstances:
        text.append("The machines differ: ratios compare machines, not code.")
    if GENERATION in comparison.circumstances:
        text.append("Under one machine's name the processors differ: ratios compare machines, not code.")
    if any(key in comparison.circumstances for key in WHAT_RAN):
        text.append("Different kernels or operators ran: see the notes of the rows.")
    if comparison.floors:
        floors = ", ".join(f"{name.replace('_', ' ')} {floor:.1%}" for name, floor in comparison.floors.items())
        text.append(
            f"Noise floors, from how much the rounds of a row differ (where no row has two, "
            f"{statistics.ASSUMED_FLOORS['timed']:.0%} and of memory {statistics.ASSUMED_FLOORS['sized']:.0%}), "
            f"never less than {statistics.LEAST_FLOOR:.0%}: {floors}."
        )
    return text


def _agreement_text(agreement: Agreement) -> str:
    clauses = []
    if agreement.pairs:
        same = f", {agreement.apart - len(agreement.reversed)} in the same order, {len(agreement.reversed)} reversed"
        order = "" if not agreement.apart else same if agreement.reversed else ", all in the same order"
        pairs = counted(agreement.pairs, "pair")
        clauses.append(f"{agreement.apart} of {pairs} of rows can be told apart in both runs{order}")
    if agreement.baselines:
        names = {name.split(" · ")[0] for name in agreement.baselines}  # a baseline for each clip is one scheme
        baseline = names.pop() if len(names) == 1 else "the baseline"
        ratios = len(agreement.baselines)
        clauses.append(
            f"of {counted(ratios, 'ratio')} to {baseline}, {ratios - len(agreement.outside)} have intervals that "
            f"overlap or differ by less than the noise floor, {agreement.mutual} with each value in the other's "
            "interval"
        )
    return f"{agreement.ablation}, {agreement.name.replace('_', ' ')}: {'; '.join(clauses)}."


def markdown(comparison: Comparison, before: str, after: str) -> str:
    """The comparison as a page of Markdown."""
    parts = ["# What changed", f"A: {before}  \nB: {after}", "\n".join(f"- {line}" for line in summary(comparison))]
    for title, headings, rows in _sections(comparison):
        columns = [(heading, lambda row, place=place: row[place]) for place, heading in enumerate(headings)]
        parts.append(f"## {title}\n\n{table_lines(rows, columns)}")
    return "\n\n".join(parts) + "\n"


def _show(comparison: Comparison, folders: list[Path], console: Console) -> None:
    console.print(f"A: {folders[0]}\nB: {folders[1]}", markup=False)
    for line in summary(comparison):
        console.print(line, markup=False)
    for title, headings, rows in _sections(comparison):
        table = Table(title=title, title_justify="left", box=box.SIMPLE)
        for heading in headings:
            table.add_column(heading, overflow="fold")  # in a narrow terminal no letter is lost
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)
