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
from reports import accuracy, means, statistics
from reports.markdown import NOT_DISTINGUISHABLE, ratio_text
from reports.statistics import Interval, Ratio
from reports.table import AblationTable, Row, facts, visits
from reports.text import UNITS, counted, nearest, table_lines

COMMAND = "python -m harness.compare"
FAIL_ON = {
    "slower": "a timing that is slower beyond noise, or that B could not take",
    "larger": "more memory beyond noise, or memory that B could not measure",
    "counts": "an exact count that is worse, or that differs where neither is better",
    "accuracy": "an accuracy that is lower by the paired test over seeds; of one seed: whose interval lies lower",
}
NOT_OF_THE_CASE = ("device", "threads")  # never matched
LOOSELY = ("dtype", "kernel", "compile")  # not matched where no case is the same in them
GENERATION = "cpu generation"
TOLD = ("device", GENERATION, "torch", "dtype", "kernel", "operators", "mode", "threads", "clip", "commit")
WHAT_RAN = ("kernel", "operators")
WORSE = {"timed": "slower", "sized": "larger", "shared": "slower", "counted": "counts", "scored": "accuracy"}  # by kind
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
    timings: list[Line] = field(default_factory=list)
    lost: list[Line] = field(default_factory=list)
    only: dict[str, list[str]] = field(default_factory=lambda: {"A": [], "B": []})
    circumstances: dict[str, dict[tuple[str, str], list[str]]] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)
    agreements: list[Agreement] = field(default_factory=list)
    matched: int = 0
    same_counts: int = 0

    def worse(self, fail_on: Iterable[str] = FAIL_ON) -> list[Line]:
        """What fails a comparison under some words of `FAIL_ON`."""
        return [line for line in (*self.timings, *self.counts, *self.lost) if line.worse in fail_on]


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
        found = compare(*map(load, folders))
    except (CompareError, RecordError) as error:
        print(f"error: {error}\n`{COMMAND} --help` explains the options.", file=sys.stderr)
        return 2
    if sys.stdout.isatty():
        _show(found, folders, Console(highlight=False))
    else:
        print(markdown(found, *map(str, folders)), end="")
    worse = found.worse(fail_on)
    for line in worse:
        said = f"{line.ablation}, {line.row}, {line.name}: {line.before} -> {line.after}"
        print(f"failed on {line.worse}: {said}", file=sys.stderr)
    return int(bool(worse))


def parse(argv: list[str]) -> tuple[list[Path], list[str]]:
    """The two folders and what to fail on. Raises: CompareError naming the argument and what is allowed."""
    folders, fail_on = [], []
    for argument in argv:
        key, equals, value = argument.partition("=")
        if equals and key.isidentifier() and not Path(argument).exists():
            if key != "fail_on":
                raise CompareError(f"unknown option {key!r}; {nearest(key, ['fail_on'])}")
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
    return folders, fail_on


def load(folder: Path) -> dict[str, AblationTable]:
    """The measured rows of each ablation in a folder, in its order; quick runs are not among them.

    Raises: CompareError for a folder without any, RecordError for a manifest or record that cannot be read.
    """
    if not folder.is_dir():
        raise CompareError(f"{folder} is not a folder; give an ablation's folder or one that holds several")
    found = [folder] if (folder / MANIFEST).is_file() else ablation_folders(folder)
    if not found:
        raise CompareError(
            f"no records in {folder}: neither {MANIFEST} nor a folder with one; is it an outputs folder?"
        )
    tables = {}
    for one in found:
        manifest = read_manifest(one)
        rows = tuple(
            Row(entry["row"], record=read_record(path), baseline=entry.get("baseline"))
            for entry in manifest["rows"]
            if (path := one / f"{entry.get('case_id')}.json").is_file()
        )
        name = manifest["name"] if one == folder else one.relative_to(folder).as_posix()
        tables[name] = AblationTable(name, manifest["question"], rows)
    return tables


def compare(first: dict[str, AblationTable], second: dict[str, AblationTable]) -> Comparison:
    """Set the second run against the first."""
    found = Comparison()
    for name in dict.fromkeys([*first, *second]):
        for side, ours, theirs in (("A", first, second), ("B", second, first)):
            if name in ours and name not in theirs:
                found.only[side].append(f"{name} (all {len(ours[name].rows)} rows)")
    matched: dict[str, list[tuple[Row, Row]]] = {}
    for name in first:
        if name in second:
            matched[name], only = match(first[name].rows, second[name].rows)
            for side, rows in zip("AB", only, strict=True):
                found.only[side] += [f"{name}: {row}" for row in rows]
    pairs = [pair for rows in matched.values() for pair in rows]
    found.matched = len(pairs)
    found.floors = _floors(run[name] for name in matched for run in (first, second))
    for ablation, rows in matched.items():
        for name, floor in found.floors.items():
            agreement = _agreement((first[ablation], second[ablation]), rows, name, floor)
            if agreement.pairs or agreement.baselines:
                found.agreements.append(agreement)
    for one, other in pairs:
        _circumstances(found, one.record, other.record)
        for name in dict.fromkeys([*one.record.measurements, *other.record.measurements]):
            _set_against(found, one, other, name)
    return found


def match(first: Sequence[Row], second: Sequence[Row]) -> tuple[list[tuple[Row, Row]], tuple[list[str], list[str]]]:
    """Pairs of rows with the same case in the order of the first run, and the names of those that have no partner."""
    partners: dict[int, Row] = {}
    left = list(second)
    for loosely in (False, True):
        rest = [row for row in first if id(row) not in partners]
        for row in rest:
            key = _key(row.record, loosely)
            same = [other for other in left if _key(other.record, loosely) == key]
            if len(same) == 1 and sum(_key(other.record, loosely) == key for other in rest) == 1:
                partners[id(row)] = same[0]
                left.remove(same[0])
    pairs = [(row, partners[id(row)]) for row in first if id(row) in partners]
    return pairs, ([row.name for row in first if id(row) not in partners], [row.name for row in left])


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
            rounds = {row.name: of for row in table.rows if (of := visits(row, name))}
            floor = statistics.noise_floor(rounds, common_drift=False)
            floor = statistics.ASSUMED_FLOORS.get(kind, statistics.LEAST_FLOOR) if floor is None else floor
            floors[name] = max(floors.get(name, 0.0), floor)
    return floors


def _agreement(tables: Sequence[AblationTable], pairs: list[tuple[Row, Row]], name: str, floor: float) -> Agreement:
    """Judge one measurement; a pair is one row in both runs."""
    found = Agreement(tables[0].name, name)
    both = [pair for pair in pairs if all((m := row.measurement(name)) and m.samples and m.ran for row in pair)]
    _judge_order(found, both, floor)
    _judge_ratios(found, tables, both, floor)
    return found


def _judge_order(found: Agreement, both: list[tuple[Row, Row]], floor: float) -> None:
    alike: dict[str, list[tuple[Row, list[Interval]]]] = {}
    for pair in both:
        intervals = [_reach(row.interval(found.name), floor, found.name, row) for row in pair]
        alike.setdefault(canonical([_point(row, found.name) for row in pair]), []).append((pair[0], intervals))
    for (one, ours), (other, theirs) in (two for rows in alike.values() for two in combinations(rows, 2)):
        found.pairs += 1
        runs = list(zip(ours, theirs, strict=True))
        orders = [_order(*run) for run in runs]
        found.apart += all(orders)
        if all(orders) and orders[0] != orders[1]:
            unit = one.measurement(found.name).unit
            said = [f"{_spread(a, unit)} {'<' if a.value < b.value else '>'} {_spread(b, unit)}" for a, b in runs]
            found.reversed.append((f"{one.name} and {other.name}", *said))


def _judge_ratios(found: Agreement, tables: Sequence[AblationTable], both: list[tuple[Row, Row]], floor: float) -> None:
    for pair in both:
        row, baseline = pair[0].name, pair[0].baseline
        ratios = [_to_baseline(table, row, found.name, floor) for table, row in zip(tables, pair, strict=True)]
        if None in ratios or baseline != pair[1].baseline:
            continue
        found.baselines.append(baseline)
        found.mutual += not (ratios[0].excludes(ratios[1].value) or ratios[1].excludes(ratios[0].value))
        values = sorted(ratio.value for ratio in ratios)
        if _order(*ratios) and values[1] > values[0] * (1 + floor):  # below the floor nothing is told apart
            found.outside.append((f"{row} / {baseline}", *map(_spread, ratios)))


def _point(row: Row, name: str) -> list[Any]:
    """What rows share before they are ranked, as on the page of costs: there too schemes may run other operators."""
    said = {key: value for key, value in row.circumstances(name).items() if key != "operators"}
    return [said, row.record.case.get("clip")]


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


def _order(one: Interval, other: Interval) -> int:
    """-1 where `one` lies below, 1 where it lies above, 0 where the two overlap."""
    return (one.low > other.high) - (one.high < other.low)


def _set_against(found: Comparison, one: Row, other: Row, name: str) -> None:
    before, after = one.measurement(name), other.measurement(name)
    if before is None or after is None:
        return  # not asked for in one of the runs, which is no change
    where = (one.record.ablation, one.name, name)
    if not before.samples or not after.samples:
        if before.samples or after.samples or before.missing != after.missing:
            worse = WORSE[before.kind] if before.samples else None
            found.lost.append(Line(*where, _text(before), _text(after), worse=worse))
        return
    if not before.ran:
        if before.samples == after.samples:
            found.same_counts += 1
        else:
            verdict, worse = _accuracies(before, after) if before.kind == "scored" else _counts(before, after)
            word = WORSE[before.kind] if worse else None
            found.counts.append(Line(*where, _text(before), _text(after), verdict=verdict, worse=word))
        return
    ratio = None
    if before.median and after.median:
        pair, spreads = (visits(other, name), visits(one, name)), (other.spreads.get(name), one.spreads.get(name))
        ratio = statistics.ratio(*pair, before.kind, *spreads, least=statistics.LEAST_FLOOR)
    verdict, worse = NOT_DISTINGUISHABLE, None
    if ratio is None:
        verdict = "not comparable: a median is 0"
    elif ratio.distinguishable:
        up, down = _directions(before)
        verdict = up if ratio.interval.value > 1 else down
        rose = ratio.interval.value > 1
        if before.better != "none" and rose == (before.better == "lower"):
            worse = WORSE[before.kind]
    ran = _what_ran(before, one.record), _what_ran(after, other.record)
    notes = [f"{key}: {ran[0][key]} → {ran[1][key]}" for key in WHAT_RAN if ran[0].get(key) != ran[1].get(key)]
    notes += [
        f"{side} has {len(statistics.by_round(m))} of {m.rounds_wanted} rounds"
        for side, m in zip("AB", (before, after), strict=True)
        if len(statistics.by_round(m)) < m.rounds_wanted
    ]
    found.timings.append(Line(*where, _text(before), _text(after), ratio, verdict, tuple(notes), worse))


def _directions(measured: Measurement) -> tuple[str, str]:
    """What a ratio above 1 and one below 1 mean."""
    if measured.unit == "ms":
        return "slower", "faster"
    if measured.unit.endswith("/s"):
        return "faster", "slower"
    return ("more", "less") if measured.unit.startswith("bytes") else ("higher", "lower")


def _counts(before: Measurement, after: Measurement) -> tuple[str, bool]:
    """Words, and whether the second is worse: where neither is better by itself, any other number is."""
    rose = after.median > before.median
    return "differs", before.better == "none" or rose == (before.better == "lower")


def _accuracies(before: Measurement, after: Measurement) -> tuple[str, bool]:
    """What two runs of the same seeds say, paired over the seeds they share, and whether the second is worse.

    With one seed no test over seeds is possible: two shares of its videos then differ where their intervals are apart,
    and where nothing says how many videos there were, any lower one is worse.
    """
    ours, theirs = map(accuracy.by_seed, (after, before))
    shared = [seed for seed in ours if seed in theirs]
    if len(shared) < 2:
        text = "differs; no test with fewer than 2 shared seeds"
        videos = [m.details.get("videos") for m in (before, after)]
        if all(videos):
            was, now = (means.share_interval(m.median / 100, n) for m, n in zip((before, after), videos, strict=True))
            return text, now.high < was.low
        return text, after.median < before.median
    found = means.paired([ours[seed] for seed in shared], [theirs[seed] for seed in shared]).interval
    text = f"{found.value:+.1f} points [{found.low:+.1f}, {found.high:+.1f}]"
    apart = found.low > 0 or found.high < 0
    return text if apart else f"{NOT_DISTINGUISHABLE}: {text}", found.high < 0


def _what_ran(measurement: Measurement, record: Record) -> dict[str, str]:
    asked = record.case.get("kernel")
    operators = sorted({str(name) for some in measurement.said("operators") for name in some})
    return {
        "kernel": " / ".join(map(str, measurement.said("kernel"))) or str(measurement.details.get("kernel", asked)),
        "operators": ", ".join(operators) or "not recorded",
    }


def _circumstances(found: Comparison, one: Record, other: Record) -> None:
    """Note under which circumstances the two records differ, with the row."""
    sides = []
    for record in (one, other):
        timed = {name: m for name, m in record.measurements.items() if m.samples and m.ran}
        said = facts(replace(record, measurements=timed)) if timed else facts(record)
        versions = {str(version) for m in timed.values() for version in m.said("torch")}
        if versions:
            said["torch"] = " / ".join(sorted(versions))
        operators = {op for m in timed.values() for some in m.said("operators") for op in some}
        if operators:
            said["operators"] = ", ".join(sorted(operators))
        sides.append(said)
    generations = [record.provenance.get("cpu_generation") for record in (one, other)]
    if all(generations) and "device" in sides[0] and sides[0]["device"] == sides[1].get("device"):
        for said, text in zip(sides, _generations(*generations), strict=True):
            said[GENERATION] = text
    for key in TOLD:
        before, after = (said.get(key) for said in sides)
        if before != after and before is not None and after is not None:
            rows = found.circumstances.setdefault(key, {}).setdefault((before, after), [])
            rows.append(f"{one.ablation}: {one.row}")


def _generations(*both: dict[str, Any]) -> list[str]:
    """In what two processors of one name differ; the same words where they do not."""
    differ = [key for key in dict.fromkeys([*both[0], *both[1]]) if both[0].get(key) != both[1].get(key)]
    said = [{key: one.get(key, "not known") for key in differ} for one in both]
    for one in said:
        one.update({key: " ".join(names) or "none" for key, names in one.items() if isinstance(names, list)})
    return [", ".join(f"{key} {value}" for key, value in one.items()) for one in said]


def _spread(interval: Interval, unit: str = "") -> str:
    """With more digits than a report has: what is told here may be a small difference."""
    shown, scale = UNITS.get(unit, (unit, 1))
    value, low, high = (f"{one / scale:.5g}" for one in (interval.value, interval.low, interval.high))
    return f"{value} ({low}–{high}) {shown}".rstrip()


def _text(measurement: Measurement) -> str:
    """A measurement as a cell: exact where it is exact."""
    if measurement.missing:
        return f"— ({measurement.missing})"
    value = measurement.value
    if measurement.unit == "bytes" and measurement.ran:
        return f"{value / 2**20:,.0f} MiB"
    return f"{value:,} {measurement.unit}" if isinstance(value, int) else f"{value:.4g} {measurement.unit}"


# what is shown


def _sections(found: Comparison) -> Iterator[tuple[str, list[str], list[tuple[str, ...]]]]:
    """Every table of the comparison: title, headings, rows."""
    rows = [_timing(line) for line in found.timings if line.verdict != NOT_DISTINGUISHABLE]
    if rows:
        yield "Timings and memory that differ", ["ablation", "row", "measurement", "A", "B", "B / A", "verdict"], rows
    for title, what in (("Rows in another order", "reversed"), ("Ratios that differ", "outside")):
        rows = [(one.ablation, one.name, *said) for one in found.agreements for said in getattr(one, what)]
        if rows:
            yield title, ["ablation", "measurement", "rows", "A", "B"], rows
    for title, lines in (("Exact counts that differ", found.counts), ("Measured in one only", found.lost)):
        if lines:
            rows = [(line.ablation, line.row, line.name, line.before, line.after) for line in lines]
            yield title, ["ablation", "row", "measurement", "A", "B"], rows
    if found.circumstances:
        rows = []
        for key, changes in found.circumstances.items():
            for (before, after), where in changes.items():
                rows.append((key, before, after, "all" if len(where) == found.matched else "; ".join(where)))
        yield "Different circumstances", ["what", "A", "B", "rows"], rows
    if any(found.only.values()):
        yield "Rows in one only", ["in", "ablation: row"], [(s, row) for s, rows in found.only.items() for row in rows]


def _timing(line: Line) -> tuple[str, ...]:
    ratio = ratio_text(line.ratio) if line.ratio else "—"
    return line.ablation, line.row, line.name, line.before, line.after, ratio, "; ".join([line.verdict, *line.notes])


def summary(found: Comparison) -> list[str]:
    """The result in a few sentences."""
    verdicts: dict[str, int] = {}
    for line in found.timings:
        verdicts[line.verdict] = verdicts.get(line.verdict, 0) + 1
    said = [f"{found.matched} cases in both."]
    if found.timings:
        counted = ", ".join(f"{n} {verdict}" for verdict, n in sorted(verdicts.items()))
        said.append(f"Of {len(found.timings)} timings and peaks of memory: {counted}.")
    level = [line.ratio.interval.value for line in found.timings if line.ratio and line.verdict == NOT_DISTINGUISHABLE]
    if level:
        said.append(f"What is not distinguishable is not listed: B / A lies from {min(level):.3g} to {max(level):.3g}.")
    for name in dict.fromkeys(line.name for line in found.timings):
        ratios = [line.ratio.interval.value for line in found.timings if line.name == name and line.ratio]
        typical = median(ratios) if len(ratios) >= MANY else 1.0
        if max(typical, 1 / typical) - 1 > found.floors[name]:
            words = f"{name.replace('_', ' ')} B / A is {typical:.3g} in the median over all rows"
            said.append(f"The {words}: what moves all rows alike may be the load or the clock of the machine.")
    said += [_agreement_text(one) for one in found.agreements]
    if found.same_counts or found.counts:
        said.append(f"Exact counts: {found.same_counts} equal, {len(found.counts)} differ.")
    if "device" in found.circumstances:
        said.append("The machines differ: ratios compare machines, not code.")
    if GENERATION in found.circumstances:
        said.append("Under one machine's name the processors differ: ratios compare machines, not code.")
    if any(key in found.circumstances for key in WHAT_RAN):
        said.append("Different kernels or operators ran: see the notes of the rows.")
    if found.floors:
        floors = ", ".join(f"{name.replace('_', ' ')} {floor:.1%}" for name, floor in found.floors.items())
        said.append(
            f"Noise floors, from how much the rounds of a row differ (where no row has two, "
            f"{statistics.ASSUMED_FLOORS['timed']:.0%} and of memory {statistics.ASSUMED_FLOORS['sized']:.0%}), "
            f"never less than {statistics.LEAST_FLOOR:.0%}: {floors}."
        )
    return said


def _agreement_text(one: Agreement) -> str:
    said = []
    if one.pairs:
        said.append(f"{one.apart} of {counted(one.pairs, 'pair')} of rows can be told apart in both runs")
        if one.apart:
            same = f"{one.apart - len(one.reversed)} in the same order, {len(one.reversed)} reversed"
            said[-1] += f", {same if one.reversed else 'all in the same order'}"
    if one.baselines:
        names = {name.split(" · ")[0] for name in one.baselines}  # a baseline for each clip is one scheme
        baseline = names.pop() if len(names) == 1 else "the baseline"
        ratios = len(one.baselines)
        said.append(
            f"of {counted(ratios, 'ratio')} to {baseline}, {ratios - len(one.outside)} have intervals that overlap or "
            f"differ by less than the noise floor, {one.mutual} with each value in the other's interval"
        )
    return f"{one.ablation}, {one.name.replace('_', ' ')}: {'; '.join(said)}."


def markdown(found: Comparison, before: str, after: str) -> str:
    """The comparison as a page of Markdown."""
    parts = ["# What changed", f"A: {before}  \nB: {after}", "\n".join(f"- {line}" for line in summary(found))]
    for title, headings, rows in _sections(found):
        columns = [(heading, lambda row, place=place: row[place]) for place, heading in enumerate(headings)]
        parts.append(f"## {title}\n\n{table_lines(rows, columns)}")
    return "\n\n".join(parts) + "\n"


def _show(found: Comparison, folders: list[Path], console: Console) -> None:
    console.print(f"A: {folders[0]}\nB: {folders[1]}", markup=False)
    for line in summary(found):
        console.print(line, markup=False)
    for title, headings, rows in _sections(found):
        table = Table(*headings, title=title, title_justify="left", box=box.SIMPLE)
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)
