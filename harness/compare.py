"""What changed between two runs: `python -m harness.compare A B`.

A and B are folders of records, each one ablation's or a whole outputs folder: before and after a change, or of two
machines. Cases are matched by ablation, row and settings, apart from device, threads and the digest of a video; what is
left is matched without dtype, kernel and compilation too. Exact counts that differ are listed as they are. A timing or
a peak of memory is B's median over A's with a 95 % interval; the two runs are taken as independent, and a ratio whose
interval holds 1, or which is closer to 1 than the noise floor of either run or than 1 %, is not distinguishable. What
differs in machine, versions, number format or in the kernel and operators that ran is told with the rows that it
concerns.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.case import nearest
from harness.options import until_closed
from reports import accuracy, means, statistics
from reports.markdown import NOT_DISTINGUISHABLE, ratio_text
from reports.record import MANIFEST, Measurement, Record, RecordError, canonical, read_manifest, read_record
from reports.statistics import Ratio
from reports.table import facts

COMMAND = "python -m harness.compare"
FAIL_ON = ("nothing", "slower")
NOT_OF_THE_CASE = ("device", "threads")  # never matched
LOOSELY = ("dtype", "kernel", "compile")  # not matched where no case is the same in them
TOLD = ("device", "torch", "dtype", "kernel", "operators", "mode", "threads", "clip", "commit")
WHAT_RAN = ("kernel", "operators")
LEAST_FLOOR = 0.01  # two runs on another day: the rounds of each know nothing of less
MANY = 4  # rows that move alike say more of the machine than of themselves
WORSE = {"ms": ("slower", "faster"), "bytes": ("more", "less")}  # a ratio above 1, below 1


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
    worse: bool = False


@dataclass
class Comparison:
    """All that two runs have to say to each other."""

    counts: list[Line] = field(default_factory=list)
    timings: list[Line] = field(default_factory=list)
    lost: list[Line] = field(default_factory=list)
    only: dict[str, list[str]] = field(default_factory=lambda: {"A": [], "B": []})
    circumstances: dict[str, dict[tuple[str, str], list[str]]] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)
    matched: int = 0
    same_counts: int = 0

    @property
    def slower(self) -> list[Line]:
        """What fails a comparison: timings that are slower beyond noise, and those that B could not measure."""
        return [line for line in (*self.timings, *self.lost) if line.worse]


def main(argv: list[str] | None = None) -> int:
    """Returns 0, 1 when `fail_on=slower` and a row is slower beyond noise, 2 for a wrong command."""
    argv = sys.argv[1:] if argv is None else argv
    if any(argument in ("-h", "--help") for argument in argv):
        print(f"usage: {COMMAND} A B [fail_on=slower]\n\n{__doc__}")
        print("options\n  fail_on=slower  exit with 1 if B is slower in any row, or no longer measured; else always 0")
        print(f"\nexample\n  {COMMAND} results/laptop outputs fail_on=slower\n")
        print("exit status: 0 compared, 1 slower beyond noise and asked to fail on it, 2 the command is wrong")
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
    return 1 if fail_on == "slower" and found.slower else 0


def parse(argv: list[str]) -> tuple[list[Path], str]:
    """The two folders and the option. Raises: CompareError naming the argument and what is allowed."""
    folders, fail_on = [], "nothing"
    for argument in argv:
        key, equals, value = argument.partition("=")
        if equals and key.isidentifier() and not Path(argument).exists():
            if key != "fail_on":
                raise CompareError(f"unknown option {key!r}; {nearest(key, ['fail_on'])}")
            if value not in FAIL_ON:
                raise CompareError(f"unknown fail_on {value!r}; {nearest(value, FAIL_ON)}")
            fail_on = value
        elif argument.startswith("-"):
            raise CompareError(f"unknown flag {argument!r}; allowed: --help, and fail_on=slower")
        else:
            folders.append(Path(argument))
    if len(folders) != 2:
        raise CompareError(f"give two folders of records, A and B; given: {len(folders)}")
    return folders, fail_on


def load(folder: Path) -> dict[str, list[Record]]:
    """The records of each ablation in a folder, in the order of its rows; quick runs are not among them.

    Raises: CompareError for a folder without any, RecordError for a manifest or record that cannot be read.
    """
    if not folder.is_dir():
        raise CompareError(f"{folder} is not a folder; give an ablation's folder or one that holds several")
    found = [folder] if (folder / MANIFEST).is_file() else sorted(p.parent for p in folder.glob(f"*/{MANIFEST}"))
    if not found:
        raise CompareError(
            f"no records in {folder}: neither {MANIFEST} nor a folder with one; is it an outputs folder?"
        )
    records = {}
    for one in found:
        manifest = read_manifest(one)
        paths = [one / f"{row.get('case_id')}.json" for row in manifest["rows"]]
        records[manifest["name"]] = [read_record(path) for path in paths if path.is_file()]
    return records


def compare(first: dict[str, list[Record]], second: dict[str, list[Record]]) -> Comparison:
    """Set the second run against the first."""
    found = Comparison()
    for name in dict.fromkeys([*first, *second]):
        for side, ours, theirs in (("A", first, second), ("B", second, first)):
            if name in ours and name not in theirs:
                found.only[side].append(f"{name} (all {len(ours[name])} rows)")
    pairs = []
    for name in first:
        if name in second:
            matched, only = match(first[name], second[name])
            pairs += matched
            for side, rows in zip("AB", only, strict=True):
                found.only[side] += [f"{name}: {row}" for row in rows]
    found.matched = len(pairs)
    found.floors = _floors(pairs)
    for one, other in pairs:
        _circumstances(found, one, other)
        for name in dict.fromkeys([*one.measurements, *other.measurements]):
            _set_against(found, one, other, name)
    return found


def match(first: list[Record], second: list[Record]) -> tuple[list[tuple[Record, Record]], tuple[list[str], list[str]]]:
    """Pairs of records of the same case in the order of the first run, and the rows that have no partner."""
    partners: dict[int, Record] = {}
    left = list(second)
    for loosely in (False, True):
        rest = [record for record in first if id(record) not in partners]
        for record in rest:
            key = _key(record, loosely)
            same = [other for other in left if _key(other, loosely) == key]
            if len(same) == 1 and sum(_key(other, loosely) == key for other in rest) == 1:
                partners[id(record)] = same[0]
                left.remove(same[0])
    pairs = [(record, partners[id(record)]) for record in first if id(record) in partners]
    return pairs, ([record.row for record in first if id(record) not in partners], [record.row for record in left])


def _key(record: Record, loosely: bool) -> tuple[str, str]:
    dropped = NOT_OF_THE_CASE + (LOOSELY if loosely else ())
    case = {key: value for key, value in record.case.items() if key not in dropped}
    case["clip"] = {key: value for key, value in (case.get("clip") or {}).items() if key != "digest"}
    return record.row, canonical(case)


def _timed(measurement: Measurement) -> bool:
    """Whether it says how the case itself ran here; training for accuracy names its machine too."""
    return "machine" in measurement.details and not accuracy.is_accuracy(measurement.name)


def _floors(pairs: list[tuple[Record, Record]]) -> dict[str, float]:
    """For each measurement the larger noise floor of the two runs, drift included: they do not share it."""
    floors: dict[str, float] = {}
    for side in zip(*pairs, strict=True):
        for name in dict.fromkeys(name for record in side for name in record.measurements):
            there = [m for record in side if (m := record.get(name)) and m.samples and _timed(m)]
            floor = statistics.noise_floor([statistics.by_round(m) for m in there], common_drift=False)
            if there:
                floors[name] = max(floors.get(name, LEAST_FLOOR), statistics.ASSUMED_FLOOR if floor is None else floor)
    return floors


def _set_against(found: Comparison, one: Record, other: Record, name: str) -> None:
    before, after = one.get(name), other.get(name)
    if before is None or after is None:
        return  # not asked for in one of the runs, which is no change
    where = (one.ablation, one.row, name)
    if not before.samples or not after.samples:
        if before.samples or after.samples or before.missing != after.missing:
            worse = bool(before.samples) and _timed(before)
            found.lost.append(Line(*where, _text(before), _text(after), worse=worse))
        return
    if not (_timed(before) or _timed(after)):
        if before.samples == after.samples:
            found.same_counts += 1
        else:
            verdict = _accuracies(before, after) if accuracy.is_accuracy(name) else "differs"
            found.counts.append(Line(*where, _text(before), _text(after), verdict=verdict))
        return
    ratio = None
    if before.median:
        interval = statistics.ratio_interval(statistics.by_round(after), statistics.by_round(before))
        ratio = Ratio(interval, found.floors[name], paired=False) if interval.value else None
    verdict, worse = NOT_DISTINGUISHABLE, False
    if ratio is None:
        verdict = "not comparable: a median is 0"
    elif ratio.distinguishable:
        up, down = WORSE.get(before.unit, ("higher", "lower"))
        if name.endswith("throughput"):
            up, down = "faster", "slower"
        verdict = up if ratio.interval.value > 1 else down
        worse = verdict == "slower"
    ran = _what_ran(before, one), _what_ran(after, other)
    notes = [f"{key}: {ran[0][key]} → {ran[1][key]}" for key in WHAT_RAN if ran[0].get(key) != ran[1].get(key)]
    notes += [
        f"{side} has {len(statistics.by_round(m))} of {m.details['rounds_wanted']} rounds"
        for side, m in zip("AB", (before, after), strict=True)
        if len(statistics.by_round(m)) < m.details.get("rounds_wanted", 1)
    ]
    found.timings.append(Line(*where, _text(before), _text(after), ratio, verdict, tuple(notes), worse))


def _accuracies(before: Measurement, after: Measurement) -> str:
    """What two runs of the same seeds say: the mean difference in points, paired over the seeds they share."""
    ours, theirs = (dict(zip(m.details.get("seeds", ()), m.samples, strict=False)) for m in (after, before))
    shared = [seed for seed in ours if seed in theirs]
    if len(shared) < 2:
        return "differs; no test with fewer than 2 shared seeds"
    found = means.paired([ours[seed] for seed in shared], [theirs[seed] for seed in shared]).interval
    text = f"{found.value:+.1f} points [{found.low:+.1f}, {found.high:+.1f}]"
    return text if found.low > 0 or found.high < 0 else f"{NOT_DISTINGUISHABLE}: {text}"


def _what_ran(measurement: Measurement, record: Record) -> dict[str, str]:
    operators = measurement.details.get("operators")
    return {
        "kernel": str(measurement.details.get("kernel", record.case.get("kernel"))),
        "operators": ", ".join(operators) if isinstance(operators, list) else "not recorded",
    }


def _circumstances(found: Comparison, one: Record, other: Record) -> None:
    """Note under which circumstances the two records differ, with the row."""
    sides = []
    for record in (one, other):
        timed = {name: m for name, m in record.measurements.items() if m.samples and _timed(m)}
        said = facts(replace(record, measurements=timed)) if timed else facts(record)
        versions = {str(m.details["torch"]) for m in timed.values() if m.details.get("torch")}
        if versions:
            said["torch"] = " / ".join(sorted(versions))
        operators = {op for m in timed.values() for op in m.details.get("operators") or ()}
        if operators:
            said["operators"] = ", ".join(sorted(operators))
        sides.append(said)
    for key in TOLD:
        before, after = (said.get(key) for said in sides)
        if before != after and before is not None and after is not None:
            rows = found.circumstances.setdefault(key, {}).setdefault((before, after), [])
            rows.append(f"{one.ablation}: {one.row}")


def _text(measurement: Measurement) -> str:
    """A measurement as a cell: exact where it is exact."""
    if measurement.missing:
        return f"— ({measurement.missing})"
    value = measurement.value
    if measurement.unit == "bytes" and _timed(measurement):
        return f"{value / 2**20:,.0f} MiB"
    return f"{value:,} {measurement.unit}" if isinstance(value, int) else f"{value:.4g} {measurement.unit}"


# what is shown


def _sections(found: Comparison) -> Iterator[tuple[str, list[str], list[tuple[str, ...]]]]:
    """Every table of the comparison: title, headings, rows."""
    if found.timings:
        rows = [_timing(line) for line in found.timings]
        yield "Timings and memory", ["ablation", "row", "measurement", "A", "B", "B / A", "verdict", "notes"], rows
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
    ratio = ratio_text(line.ratio).removesuffix(f", {NOT_DISTINGUISHABLE}") if line.ratio else "—"
    return line.ablation, line.row, line.name, line.before, line.after, ratio, line.verdict, "; ".join(line.notes)


def summary(found: Comparison) -> list[str]:
    """The result in a few sentences."""
    verdicts: dict[str, int] = {}
    for line in found.timings:
        verdicts[line.verdict] = verdicts.get(line.verdict, 0) + 1
    said = [f"{found.matched} cases in both."]
    if found.timings:
        counted = ", ".join(f"{n} {verdict}" for verdict, n in sorted(verdicts.items()))
        said.append(f"Of {len(found.timings)} timings and peaks of memory: {counted}.")
    for name in dict.fromkeys(line.name for line in found.timings):
        ratios = [line.ratio.interval.value for line in found.timings if line.name == name and line.ratio]
        typical = median(ratios) if len(ratios) >= MANY else 1.0
        if max(typical, 1 / typical) - 1 > found.floors[name]:
            words = f"{name.replace('_', ' ')} B / A is {typical:.3g} in the median over all rows"
            said.append(f"The {words}: what moves all rows alike may be the load or the clock of the machine.")
    if found.same_counts or found.counts:
        said.append(f"Exact counts: {found.same_counts} equal, {len(found.counts)} differ.")
    if "device" in found.circumstances:
        said.append("The machines differ: ratios compare machines, not code.")
    if any(key in found.circumstances for key in WHAT_RAN):
        said.append("Different kernels or operators ran: see the notes of the rows.")
    if found.floors:
        floors = ", ".join(f"{name.replace('_', ' ')} {floor:.1%}" for name, floor in found.floors.items())
        said.append(
            f"Noise floors, from how much the same case differs between rounds ({statistics.ASSUMED_FLOOR:.0%} is "
            f"assumed where there is one round): {floors}."
        )
    return said


def markdown(found: Comparison, before: str, after: str) -> str:
    """The comparison as a page of Markdown."""
    parts = ["# What changed", f"A: {before}  \nB: {after}", "\n".join(f"- {line}" for line in summary(found))]
    for title, headings, rows in _sections(found):
        lines = [f"## {title}", "", "| " + " | ".join(headings) + " |", "| --- " * len(headings) + "|"]
        lines += ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
        parts.append("\n".join(lines))
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


if __name__ == "__main__":
    sys.exit(until_closed(main))
