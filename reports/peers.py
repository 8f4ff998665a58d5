"""Our models beside other implementations of the same scheme: the records that `python -m benchmarks.peers` writes into
`peers/` below a machine's folder, as a table of its page of costs.

Each ratio is theirs over ours, of times the median over pairs of runs; above 1 ours is faster, or smaller.
"""

from pathlib import Path

from records.record import Measurement, Record, RecordError, read_record, record_paths
from reports import markdown, table
from reports.markdown import NOT_DISTINGUISHABLE
from reports.statistics import Interval
from reports.text import MISSING, Notes, counted, sentence, significant, table_lines

FOLDER = "peers"
MIB = 2**20
SIDES = ("theirs", "ours")
HEADING = "## Against other implementations"
HOW = (
    "Each row sets our model beside another implementation of its scheme with the same weights and the same clip, in "
    "one process, in turn: transformers and torchvision as published; the released code of DualFormer needs an "
    "mmaction that no current torch runs, so its layout was written again here, with plain softmax. A ratio is theirs "
    "over ours, the median over pairs of runs: above 1 "
    "ours is faster, or smaller. In brackets: the interval of that median, how sure it is to hold it, and the number "
    f"of pairs; where it holds 1, the ratio is {NOT_DISTINGUISHABLE}. After them: the medians of both, theirs / ours. "
    "Memory is that of a training step, one sample of each side, in a process of its own. On a CPU the C library maps "
    "tensors above 32 MiB afresh each time, which costs a program that makes many of them up to half of its time; rows "
    "with freed memory kept show both sides without it."
)


def load(folder: Path) -> tuple[list[Record], list[str]]:
    """The comparisons of a machine, by scheme, and what is wrong with files that cannot be read."""
    found, broken = [], []
    for path in record_paths(folder / FOLDER):
        try:
            found.append(read_record(path))
        except RecordError as error:
            broken.append(str(error))
    return sorted(found, key=_place), broken


def _place(record: Record) -> tuple:
    case = record.case
    ran = bool(case.get("compile")), case["dtype"] != "float32", case["dtype"]
    return (
        case["scheme"],
        *ran,
        case.get("allocator", ""),
        case["frames"],
        case["size"],
        case["batch_size"],
        record.case_id,
    )


def machine(record: Record) -> str:
    """Hardware and torch, in the words of the measurements that name their machine themselves."""
    source = record.provenance
    torch = (source.get("packages") or {}).get("torch") or source.get("torch")
    if record.case["device"].startswith("cuda"):
        return f"{source.get('gpu') or 'unknown GPU'}, torch {torch}"
    return f"{source.get('cpu')}, {(source.get('cores') or {}).get('usable')} cores, torch {torch}"


def section(records: list[Record]) -> str:
    """What was compared, in one table with its footnotes; empty where nothing was."""
    if not records:
        return ""
    notes = Notes()
    columns = [
        ("scheme", _scheme),
        ("set beside", lambda one: one.case["peer"]),
        ("clip", lambda one: "{frames}x{size}x{size}".format(**one.case)),
        ("batch", lambda one: str(one.case["batch_size"])),
        ("dtype", lambda one: one.case["dtype"]),
        ("ours runs", lambda one: "compiled" if one.case.get("compile") else "eager"),
        ("forward ↑", lambda one: _times(one, "forward", notes)),
        ("training step ↑", lambda one: _times(one, "training", notes)),
        ("memory of a step ↑", lambda one: _memory(one, notes)),
    ]
    places = list(dict.fromkeys(map(_where, records)))
    if len(places) > 1:
        columns.append(("measured on", _where))
    columns.append(("commit", lambda one: table.facts(one)["commit"]))
    parts = [HEADING, _how(records, places), table_lines(records, columns)]
    parts += ["\n".join(f"{n}. {sentence(text)}" for n, text in enumerate(notes.texts, start=1))]
    return "\n\n".join(part for part in parts if part)


def _how(records: list[Record], places: list[str]) -> str:
    text = HOW
    if any(one.case.get("compile") for one in records):
        text += " Compiled is ours alone, and frozen; theirs runs as it is."
    differences = [one.get("difference").value for one in records if _ran(one) and not one.get("difference").missing]
    if differences:
        text += f" That the outputs agree was checked first: they differ by at most {max(differences):.1e}."
    return text + (f"\n\nMeasured on: {places[0]}." if len(places) == 1 else "")


def _where(record: Record) -> str:
    threads = "" if record.case["device"].startswith("cuda") else f", {counted(record.case['threads'], 'thread')}"
    return machine(record) + threads


def _scheme(record: Record) -> str:
    """With what sets its case apart from the usual one: fewer blocks, another kernel."""
    said = [record.case["scheme"]]
    if record.case.get("depth") is not None:
        said.append(f"depth {record.case['depth']}")
    if record.case.get("kernel", "auto") != "auto":
        said.append(f"kernel {record.case['kernel']}")
    if record.case.get("allocator", "default") != "default":
        said.append("freed memory kept")
    return ", ".join(said)


def _times(record: Record, mode: str, notes: Notes) -> str:
    ratio = record.get(f"{mode}_speedup")
    if ratio is None or ratio.missing:
        return _missing(record, ratio, notes)
    found = Interval(ratio.median, *ratio.details["interval"])
    sure = f"{100 * ratio.details['coverage']:.1f} %, {counted(len(ratio.samples), 'pair')}"
    text = f"{significant(found.value)} ({significant(found.low)}–{significant(found.high)}, {sure})"
    text += "" if found.excludes(1) else f", {NOT_DISTINGUISHABLE}"
    return f"{text}; {_both(record, f'{mode}_latency', 1)} ms" + markdown.wide(found, notes)


def _memory(record: Record, notes: Notes) -> str:
    ratio = record.get("training_memory_ratio")
    if ratio is None or ratio.missing:
        return _missing(record, ratio, notes)
    return f"{significant(ratio.value)}; {_both(record, 'training_memory', MIB)} MiB"


def _both(record: Record, name: str, scale: int) -> str:
    return " / ".join(significant(record.get(f"{name}_{side}").median / scale) for side in SIDES)


def _missing(record: Record, measured: Measurement | None, notes: Notes) -> str:
    if measured is not None:
        return MISSING + notes.mark(measured.missing)
    if not _ran(record):
        difference = record.get("difference")
        said = difference.missing or f"the outputs differ by {difference.value:.1e}, which is too much"
        return MISSING + notes.mark(f"nothing was timed: {said}")
    return MISSING + notes.mark("not asked for")


def _ran(record: Record) -> bool:
    """Whether the outputs agreed, so that something was measured."""
    return set(record.measurements) > {"difference"}
