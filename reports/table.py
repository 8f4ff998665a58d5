"""The rows of one ablation: what a paper printed beside what was measured, each published cost with its verdict.

`load(folder)` reads the manifest, the records that it names and the paper's table; everything that cannot be used
is kept as a warning or a reason, nothing is dropped in silence. The text and figures of a report are made from
these rows alone.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from records import falling
from records.record import Measurement, Record, RecordError, outputs_of, read_manifest, read_record, record_paths
from records.visits import OUTDATED, taken
from reports import counting, paper_table, statistics, verdict
from reports.cells import Cell, cell
from reports.paper_table import NOT_STATED, PaperRow, PaperTable, PaperTableError
from reports.statistics import Interval, Ratio, Spread
from reports.text import unit
from reports.verdict import Verdict

UNREADABLE = (RecordError, PaperTableError)
NOT_YET = "not measured yet"
WHAT_RAN = ("device", "dtype", "kernel", "operators", "mode", "batch", "threads")  # as in Row.circumstances
FACTS = (*WHAT_RAN, "clip", "commit")
PARTIAL = ("metrics", "rows", "rounds", "force")  # words that make a part of the records, or make them anew
OPERATOR_WORDS = {  # part of an operator's name: what the field calls it; the first that fits
    "cudnn": "cuDNN", "flash": "flash", "efficient_attention": "memory-efficient", "fmha_cutlass": "memory-efficient",
    "attention_math": "math", "softmax": "math (explicit softmax)", "flex_attention": "flex", "window_attend": "Triton",
    "pyramid_attend": "Triton", "few_keys_attend": "Triton", "chunked_attention": "chunks",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line of a report. `record` is None where only the paper has the row, or where `missing` says why."""

    name: str
    published: PaperRow | None = None
    record: Record | None = None
    missing: str | None = None
    explanation: str | None = None
    fit: bool = False
    note: str | None = None
    comparable: bool | str = True
    baseline: str | None = None
    dial: str | None = None  # the row of the ablation that this one is a point of, where it is turned
    cells: dict[str, dict[str, Any]] = field(default_factory=dict)  # of printed columns, see reports/cells.py
    default_views: int | None = None
    default_counting: str | None = None
    default_params_count: str | None = None
    precision: dict[str, dict[str, int]] = field(default_factory=dict)
    spreads: dict[str, Spread] = field(default_factory=dict)  # by measurement, of all rows of the table

    @property
    def published_only(self) -> bool:
        """Whether no model here stands for this row of the paper."""
        return self.record is None and self.missing is None

    @property
    def views(self) -> int | None:
        return self.published.views if self.published else self.default_views

    @property
    def counting(self) -> str | None:
        """The rule by which this row's operations are counted; None where no paper's table is in play."""
        return self.published.counting if self.published else self.default_counting

    @property
    def params_count(self) -> str | None:
        return self.published.params_count if self.published else self.default_params_count

    def measurement(self, name: str) -> Measurement | None:
        return self.record.get(name) if self.record else None

    def value(self, name: str) -> int | float | None:
        """The measured value, or None where there is none (see `reason`)."""
        measured = self.measurement(name)
        return measured.value if measured and measured.samples else None

    def count(self, name: str) -> int | float | None:
        """A value, or a part of the multiply-adds that is written down with them."""
        value, macs = self.value(name), self.measurement("macs")
        return macs.details.get(name) if value is None and macs else value

    def reason(self, name: str) -> str:
        """Why there is no value of `name`."""
        if self.published_only:
            return "published only: no model here stands for this row"
        measured = self.measurement(name)
        return (measured.missing if measured else self.missing) or f"{name} was not asked for in this run"

    def interval(self, name: str) -> Interval | None:
        """The median of a measurement with its interval, or None where there are no samples."""
        measured = self.measurement(name)
        if measured is None or not measured.samples:
            return None
        return statistics.median_interval(visits(self, name), self.spreads.get(name))

    def unfinished(self, name: str) -> str | None:
        """What is still lacking of a measurement that has samples, in words."""
        measured = self.measurement(name)
        if measured is None or not measured.samples:
            return None
        done, planned = len(taken(measured)), measured.rounds_wanted
        if done >= planned:
            return None
        reasons = dict.fromkeys(measured.failed_rounds.values())
        return f"{done} of {planned} rounds measured so far" + (f": {'; '.join(reasons)}" if reasons else "")

    def circumstances(self, name: str) -> dict[str, str]:
        """What must be the same before this measurement is set against another row's, in words."""
        if self.record is None or (measured := self.measurement(name)) is None:
            return {}
        alone = replace(self.record, measurements={name: measured})
        return {key: value for key, value in facts(alone).items() if key in WHAT_RAN}

    def printed(self, column: str) -> int | float | None:
        """A published cell, or a setting that is printed with the row."""
        return (self.published.settings | self.published.cells).get(column) if self.published else None

    @property
    def macs_by_authors_rule(self) -> int | None:
        """Operations of one view, counted as the table's authors did."""
        return counting.operations(self.counting, self.count)

    @property
    def authors_flops(self) -> Decimal | None:
        """The measured operations as the table would print them, in G."""
        if self.macs_by_authors_rule is None or not self.views:
            return None
        return self.printed_by(self.macs_by_authors_rule)

    def printed_by(self, count: int) -> Decimal:
        """What the table would print for `count` operations of one view, in G."""
        total = self.precision.get("flops", {}).get("total_decimals")
        return verdict.printed_flops(count, self.views, self.decimals("flops", "per_view_decimals"), total)

    @property
    def authors_params_exact(self) -> int | None:
        """Parameters with or without the classifier, as the table counts them."""
        return self.value("params_with_classifier" if self.params_count == "with_classifier" else "params")

    @property
    def authors_params(self) -> Decimal | None:
        """The measured parameters as the table would print them, in M."""
        count = self.authors_params_exact
        return None if count is None else verdict.printed_params(count, self.decimals("params", "decimals", default=1))

    def decimals(self, column: str, key: str, default: int = 0) -> int:
        return self.precision.get(column, {}).get(key, default)

    @property
    def verdict_flops(self) -> Verdict:
        unknown = None
        if self.counting not in counting.RULES:
            unknown = "the counting rule of the published row is not known"
        elif not self.views:
            unknown = "the number of views behind the published figure is not known"
        return self._judge("flops", self.authors_flops, unknown, "macs")

    @property
    def verdict_params(self) -> Verdict:
        unknown = "whether the paper counts the classifier is not known" if self.params_count == NOT_STATED else None
        return self._judge("params", self.authors_params, unknown, "params")

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """Of its printed costs, by column."""
        return {"flops": self.verdict_flops, "params": self.verdict_params}

    def _judge(self, column: str, measured: Decimal | None, unknown: str | None, source: str) -> Verdict:
        return verdict.judge(
            self.printed(column),
            measured,
            explanation=self.explanation,
            comparable=self.comparable,
            not_comparable=unknown,
            missing=None if measured is not None else self.reason(source),
            model_here=not self.published_only,
        )

    def facts(self) -> dict[str, str]:
        """The circumstances of this row's measurements that must agree before two rows are compared, in words."""
        return facts(self.record) if self.record else {}


@dataclass(frozen=True)
class AblationTable:
    """All that a report is made of."""

    name: str  # as its folder is called, that of another setting below that of the ablation
    question: str
    rows: tuple[Row, ...]
    paper: PaperTable | None = None
    metrics: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()
    size_note: str | None = None
    warnings: tuple[str, ...] = ()
    quick: bool = False
    growth: dict[str, dict[str, list[int]]] = field(default_factory=dict)  # of schemes, see reports/exponents.py
    arguments: tuple[str, ...] = ()  # the words of the command that made the records
    place: str = "outputs"  # the folder, as it is called from the repository
    further: tuple[PaperTable, ...] = ()  # printed on the same question, of what is neither counted nor measured here

    def __post_init__(self):
        names = dict.fromkeys(name for row in self.measured for name, m in row.record.measurements.items() if m.ran)
        spreads = {name: self.spreads(name) for name in names}
        rows = (
            replace(row, spreads={name: by_row[row.name] for name, by_row in spreads.items() if row.name in by_row})
            for row in self.rows
        )
        object.__setattr__(self, "rows", tuple(rows))

    @property
    def measured(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.record is not None)

    def quantities(self) -> dict[str, Measurement]:
        """What was measured in any row, with or without success, by name: a measurement says what it is of."""
        by_name: dict[str, Measurement] = {}
        for row in self.measured:
            for name, measured in row.record.measurements.items():
                by_name.setdefault(name, measured)
        return by_name

    def named(self, *kinds: str) -> list[str]:
        """What was measured with success of some kinds, kind by kind, in the order of the records."""
        kind_of = {name: quantity.kind for name, quantity in self.quantities().items() if self.has(name)}
        return [name for kind in kinds for name in kind_of if kind_of[name] == kind]

    def titled(self, name: str) -> tuple[str, float]:
        """What a quantity is called, with its unit, and what its values are divided by to be in it."""
        quantity = self.quantities()[name]
        words, scale = unit(quantity)
        return f"{quantity.title}, {words.partition(',')[0]}", scale

    def has(self, name: str) -> bool:
        """Whether any row has a value of `name`."""
        return any(row.value(name) is not None for row in self.rows)

    def asked(self, name: str) -> bool:
        """Whether `name` was measured in any row, with or without success."""
        return any(row.measurement(name) is not None for row in self.rows)

    def publishes(self, column: str) -> bool:
        return any(row.printed(column) is not None for row in self.rows)

    def baseline_of(self, row: Row) -> Row | None:
        return next((candidate for candidate in self.rows if candidate.name == row.baseline), None)

    def spreads(self, name: str, *, common_drift: bool = False) -> dict[str, Spread]:
        """By row, how much rounds of a measurement differ; empty where no row has two."""
        rounds = {row.name: samples for row in self.rows if (samples := visits(row, name))}
        return statistics.spreads(rounds, common_drift=common_drift)

    def floor(self, name: str) -> float | None:
        """The noise floor of a measurement, from the rounds of all rows, 1 % at least; None where no row has two."""
        return statistics.noise_floor({row.name: samples for row in self.rows if (samples := visits(row, name))})

    def ratio(self, row: Row, name: str) -> Ratio | str | None:
        """A measurement over its baseline's; a reason where both have samples and yet no ratio; None where not.

        Medians of rounds in common are set against each other, so that a drift of the machine falls out. Rows that were
        not measured in turn, by one run, have none in common: theirs is the ratio of two independent medians.
        """
        base = self.baseline_of(row)
        if base is None or base is row or row.value(name) is None or base.value(name) is None:
            return None
        ours, theirs = row.circumstances(name), base.circumstances(name)
        for key in ("device", "threads"):
            if ours.get(key) != theirs.get(key):
                return f"no ratio: measured with {key} {ours.get(key)}, the baseline with {theirs.get(key)}"
        pair = [visits(member, name) for member in (row, base)]
        if not all(map(all, pair[1].values())):
            return "no ratio: the baseline is 0"
        paired = bool(set(pair[0]) & set(pair[1]))
        spreads = self.spreads(name, common_drift=paired)
        return statistics.ratio(*pair, row.measurement(name).kind, spreads.get(row.name), spreads.get(base.name))

    def ran_differently(self, row: Row, name: str) -> str | None:
        """How a row and its baseline ran, where they ran different things."""
        base = self.baseline_of(row)
        if base is None or base is row:
            return None
        ours, theirs = row.circumstances(name), base.circumstances(name)
        differing = [
            f"{key} {ours[key]} here, {theirs[key]} in the baseline"
            for key in WHAT_RAN
            if key in ours and key in theirs and ours[key] != theirs[key]
        ]
        return "; ".join(differing) or None

    def verdicts(self, of: Row | None = None) -> list[Verdict]:
        """The verdicts of all published cost cells, row by row; or of those of one row."""
        rows = [of] if of else self.rows
        every = (v for row in rows for v in (*row.verdicts.values(), *(self.cell(row, c)[1] for c in self.celled)))
        return [judged for judged in every if judged.kind is not None]

    @property
    def celled(self) -> list[str]:
        """The printed columns that rows say how to make, in the paper's order."""
        named = dict.fromkeys(column for row in self.rows for column in row.cells)
        units = list(self.paper.units) if self.paper else []
        return [*(column for column in units if column in named), *(column for column in named if column not in units)]

    def cell(self, row: Row, column: str) -> tuple[Cell, Verdict]:
        """What stands against a printed cell, and the verdict on it; a row without one has only the paper's."""
        printed = row.printed(column)
        if column not in row.cells:
            only_there = row.published_only and printed is not None
            return Cell(), Verdict(verdict.PUBLISHED_ONLY if only_there else None)
        shown = cell(row.cells[column], row, {sibling.name: sibling for sibling in self.rows})
        return shown, verdict.judge(
            printed,
            shown.shown,
            explanation=row.explanation,
            comparable=row.comparable,
            missing=shown.missing,
            model_here=not row.published_only,
        )

    @property
    def mixed(self) -> bool:
        """Whether timings of different circumstances stand in the table, so that no two rows are compared."""
        facts = self.facts()
        return any(len(facts.get(key, [])) > 1 for key in ("device", "dtype", "kernel", "mode", "batch", "threads"))

    def facts(self) -> dict[str, list[str]]:
        """Every circumstance with the values it takes, in the order of the rows; more than one value needs a column."""
        circumstances: dict[str, list[str]] = {}
        for row in self.measured:
            for key, value in row.facts().items():
                values = circumstances.setdefault(key, [])
                if value not in values:
                    values.append(value)
        return circumstances


def visits(row: Row, name: str) -> statistics.Rounds:
    """The samples of a measurement by run and round."""
    measured = row.measurement(name)
    return statistics.by_visit(measured) if measured else {}


def ratio_of(row: Row, base: Row, name: str, least: float | None = None) -> Ratio:
    """A median over that of any other row, of this table or another, each with the spread of its own."""
    pair, spreads = (visits(row, name), visits(base, name)), (row.spreads.get(name), base.spreads.get(name))
    return statistics.ratio(*pair, row.measurement(name).kind, *spreads, least)


def load(folder: str | Path) -> AblationTable:
    """Read one ablation's folder.

    A record that is not there or cannot be read leaves its row without measurements and with the reason; files that no
    row of the manifest names are listed as warnings.

    Raises: RecordError for a manifest, PaperTableError for a table, that cannot be used.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    setting = manifest.get("setting")
    paper = paper_table.load(manifest["table"], folder) if manifest.get("table") else None
    warnings: list[str] = []
    rows = [_row(entry, folder, paper, warnings) for entry in manifest["rows"]]
    if paper and manifest.get("published_rows") == "all":
        rows = _with_all_published(rows, paper)
    named = {f"{entry.get('case_id')}.json" for entry in manifest["rows"]}
    stray = [path.name for path in record_paths(folder) if path.name not in named]
    if stray:
        warnings.append(
            f"not in this table, because no row of {folder.name}/ablation.json names them: {', '.join(stray)}"
        )
    name = f"{manifest['name']}/{folder.resolve().name}" if setting else manifest["name"]
    quick = outputs_of(folder.resolve()).name == "quick"
    if not quick:  # whose few samples say nothing of the kind
        warnings += [falling.warning(*pair) for pair in falling.falling(row.record for row in rows if row.record)]
    return AblationTable(
        name=name,
        question=f"{manifest['question']} With {setting}" if setting else manifest["question"],
        rows=tuple(rows),
        paper=paper,
        metrics=tuple(manifest.get("metrics") or ()),
        figures=tuple(manifest.get("figures") or ()),
        size_note=manifest.get("size_note"),
        warnings=tuple(warnings),
        quick=quick,
        growth=manifest.get("growth") or {},
        arguments=tuple(manifest.get("arguments") or ()),
        place=place(folder, f"quick/{name}" if quick else name),
        further=tuple(map(paper_table.load, manifest.get("further") or ())),
    )


def load_all(folders: Iterable[Path], below: Path) -> tuple[dict[Path, AblationTable], dict[str, str]]:
    """The tables that can be read and what is wrong with the others, by their folders as seen from `below`."""
    tables, broken = {}, {}
    for folder in folders:
        try:
            tables[folder.relative_to(below)] = load(folder)
        except UNREADABLE as error:
            broken[folder.relative_to(below).as_posix()] = str(error).replace(f"{below}/", "")
    return tables, broken


def tell_unusable(folders: Iterable[Path]) -> bool:
    """Say on the standard error which records cannot be used, such as one whose closed form contradicts its count.

    Returns whether there are any: a reader does without them and ends with status 1.
    """
    texts = []
    for path in (path for folder in folders for path in record_paths(folder)):
        try:
            read_record(path)
        except RecordError as error:
            texts.append(str(error))
    for text in texts:
        print(f"error: {text}", file=sys.stderr)
    return bool(texts)


def place(folder: Path, name: str | None = None) -> str:
    """The folder as it is called from a clone: from `results` or `outputs` on, without folders of this machine."""
    parts = folder.resolve().parts
    start = max((n for n, part in enumerate(parts) if part in ("results", "outputs")), default=None)
    return "/".join(parts[start:]) if start is not None else f"outputs/{name or parts[-1]}"


def _row(entry: dict[str, Any], folder: Path, paper: PaperTable | None, warnings: list[str]) -> Row:
    published = paper.row(entry["published"]) if paper and entry.get("published") else None
    record = missing = None
    if entry.get("case_id"):
        path = folder / f"{entry['case_id']}.json"
        if not path.is_file():
            missing = NOT_YET
        else:
            try:
                record = read_record(path)
            except RecordError as error:
                missing = f"its record {path.name} cannot be read"
                warnings.append(str(error).replace(str(path), path.name))
    elif published is None:
        missing = "the manifest names no case for this row"
    return Row(
        name=entry["row"],
        published=published,
        record=record,
        missing=missing,
        explanation=entry.get("explanation"),
        fit=bool(entry.get("fit")),
        note=entry.get("note"),
        comparable=entry.get("comparable", True),
        baseline=entry.get("baseline"),
        dial=entry.get("dial"),
        cells=entry.get("cells") or {},
        **_defaults(paper, published),
    )


def _defaults(paper: PaperTable | None, published: PaperRow | None) -> dict[str, Any]:
    if paper is None:
        return {}
    return {
        "default_views": paper.views,
        "default_counting": paper.counting,
        "default_params_count": paper.params_count,
        "precision": paper.precision | (published.precision if published else {}),
    }


def _with_all_published(rows: list[Row], paper: PaperTable) -> list[Row]:
    """`rows` in the order of the paper's table, the others of it published only; own rows follow their neighbour."""
    after: dict[str | None, list[Row]] = {}
    place = None
    for row in rows:
        place = row.published.name if row.published else place
        after.setdefault(place, []).append(row)
    ordered = after.get(None, [])
    for published in paper.rows:
        ordered += after.get(published.name) or [Row(published.name, published, **_defaults(paper, published))]
    return ordered


def facts(record: Record) -> dict[str, str]:
    """Device, dtype, kernel, operators, mode, batch, threads, clip and commit of a record, in words.

    The first seven only where something was timed; a record whose timings come from different runs names all of them.
    Kernel and operators only where attention ran: a large matrix product has neither.
    """
    case, measured = record.case, [m for m in record.measurements.values() if m.samples]
    ran = [m for m in measured if m.ran]
    tried = ran or any(m.missing and m.ran for m in record.measurements.values())
    words: dict[str, str] = {}
    if ran:
        words["device"] = _recorded(ran, record, "machine") or str(case.get("device"))
        words["dtype"] = str(case.get("dtype"))
        words |= _kernel(ran, case) | _operators(ran)
        words["mode"] = "compiled" if case.get("compile") else "eager"
        if case.get("mixed"):
            words["dtype"] += " (training: autocast over float32)"
        if case.get("graph"):
            words["mode"] += ", as a CUDA graph"
        if case.get("forms") == "pytorch":
            words["mode"] += ", PyTorch's own forms"
        words["batch"] = str(case.get("batch_size"))
        if not str(case.get("device")).startswith("cuda"):
            words["threads"] = _recorded(ran, record, "threads") or "default"
    clip, source = case.get("clip") or {}, (record.provenance.get("clip") or {}).get("source")
    if clip and not (measured and all(m.kind == "probed" for m in measured)):  # whose maps of tokens are no clips
        length = "1 frame" if clip.get("frames") == 1 else f"{clip.get('frames')} frames at stride {clip.get('stride')}"
        size = f"{length}, {clip.get('size')}x{clip.get('size')} pixels"
        words["clip"] = size + (f" ({source})" if tried and source else "")
    words["commit"] = _commits(measured, record)
    return words


def _kernel(ran: list[Measurement], case: dict[str, Any]) -> dict[str, str]:
    """The kernels that measurements name; what the case asked for where none does, yet the model itself ran."""
    named = list(dict.fromkeys(str(kernel) for m in ran for kernel in m.said("kernel")))
    if named:  # `auto` takes plain softmax for short sequences on a CPU, which the kernel that it names does not
        chosen = " (auto)" if any("auto" in m.said("kernel_requested") for m in ran if m.said("kernel")) else ""
        return {"kernel": " / ".join(named) + chosen}
    return {} if all("kernel" in m.details for m in ran) else {"kernel": str(case.get("kernel"))}


def _operators(ran: list[Measurement]) -> dict[str, str]:
    """What really computed the attention, such as "flash"; where measurements differ in it, with their titles."""
    by_words: dict[str, list[str]] = {}
    for measured in ran:
        names = {str(name) for operators in measured.said("operators") for name in operators}
        kernels = {str(name) for recorded in measured.said("device_kernels") for name in recorded}
        # What the device says is of the timed program itself; operators are those of the eager one.
        names = {name for name in kernels if operator_words(name) != name} or names
        if names:
            words = " + ".join(dict.fromkeys(operator_words(name) for name in sorted(names)))
            by_words.setdefault(words, []).append(measured.title)
    if len(by_words) < 2:
        return {"operators": next(iter(by_words))} if by_words else {}
    return {"operators": "; ".join(f"{words} ({', '.join(titles)})" for words, titles in by_words.items())}


def operator_words(name: str) -> str:
    """The field's word for an attention operator of the dispatcher; a name without one stays as it is."""
    return next((word for part, word in OPERATOR_WORDS.items() if part in name), name)


def _recorded(measured: list[Measurement], record: Record, key: str) -> str:
    """What the measurements say of their own circumstances, else what their record says."""
    values = [str(value) for m in measured for value in m.said(key) or [record.provenance.get(key)]]
    return " / ".join(dict.fromkeys(value for value in values if value != "None"))


def _commits(measured: list[Measurement], record: Record) -> str:
    """The commits that the numbers come from, in short."""
    sources = [{**m.details, **visit.details} for m in measured for visit in m.visits] or [record.provenance]
    texts = []
    for source in sources:
        commit = str(source.get("commit") or record.provenance.get("commit") or "unknown")
        dirty = source.get("dirty", record.provenance.get("dirty"))
        outdated = f", {OUTDATED}" if source.get(OUTDATED) else ""
        texts.append(commit[:10] + (" with local changes" if dirty else "") + outdated)
    return " / ".join(dict.fromkeys(texts))


def schemes(case: dict[str, Any]) -> list[str]:
    """The attention schemes of a case's blocks, as its config names them."""
    config = case.get("config")
    if not config:
        return [case["scheme"]] if case.get("scheme") else []
    entries = config.get("attention") or {}
    named = [name for part in config.get("stages") or config.get("blocks") or entries for name in _flat(part)]
    return list(dict.fromkeys(entries.get(name, {}).get("scheme", name) for name in named))


def _flat(part: Any) -> Iterator[str]:
    """The names in nested lists."""
    if isinstance(part, str):
        yield part
    elif isinstance(part, list):
        for each in part:
            yield from _flat(each)
