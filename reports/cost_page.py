"""What attention costs on one machine, on one page: `python -m reports.cost_page results/<device>`.

Writes `cost.md` beside the folders of the ablations: which scheme is cheapest at which clip size, then each table in
short with its plots. Everything comes from the records below the folder; the same files give the same bytes.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from reports import figure, roofline, statistics, table
from reports.paper_table import PaperTableError
from reports.record import MANIFEST, Measurement, RecordError, write_text
from reports.statistics import Interval
from reports.table import AblationTable, Row
from reports.text import MISSING

PAGE = "cost.md"
SCHEMES = ("scaling", "attention_schemes")  # the ablations whose rows are schemes on clips of several sizes
COSTS = {"latency": "latency", "peak_memory": "peak memory", "energy": "energy"}
EXPECTED = (RecordError, PaperTableError)


@dataclass(frozen=True)
class Column:
    """One column of the short tables: its heading, the measurements that it needs, the text of a row's cell."""

    heading: str
    needs: tuple[str, ...]
    cell: Callable[[Row], str]


def build(folder: str | Path) -> Path:
    """Write the page of one machine's folder. Raises: RecordError where it holds no ablation with a measured cost."""
    folder = Path(folder)
    tables, broken = [], []
    for path in sorted(folder.glob(f"*/{MANIFEST}")):
        try:
            tables.append(table.load(path.parent))
        except EXPECTED as error:
            broken.append(f"{path.parent.name}: {str(error).replace(f'{folder}/', '')}")
    timed = [one for one in tables if any(one.has(name) for name in (*COSTS, "training_latency", "time_total"))]
    if not timed:
        raise RecordError(f"no timed record below {folder}; `python -m harness.run ablation=scaling` writes some")
    machines = list(dict.fromkeys(row.facts()["device"] for one in timed for row in one.measured if _timed(row)))
    parts = [f"# What attention costs on {' and '.join(machines)}"]
    if len(machines) > 1:
        parts.append("The records come from several machines. Nothing below is compared across them.")
    parts += cheapest(timed)
    parts += [_section(one, folder) for one in timed]
    parts.append("↓ lower is better, ↑ higher is better. ±: the interval is wider than 10 % of the median.")
    if broken:
        parts.append("## Not shown\n\n" + "\n".join(f"- {reason}" for reason in broken))
    parts.append(f"Rebuild: `python -m reports.cost_page {_named(folder)}`")
    return write_text("\n\n".join(parts) + "\n", folder / PAGE)


def cheapest(tables: list[AblationTable]) -> list[str]:
    """For each clip size on which several schemes were measured alike, which is cheapest: a text and a table."""
    of_schemes = sorted((one for one in tables if one.name in SCHEMES), key=lambda one: SCHEMES.index(one.name))
    points: dict[tuple, dict[str, Row]] = {}
    for one in of_schemes:
        for row in one.measured:
            if _timed(row) and row.record.case.get("clip"):
                points.setdefault(_circumstances(row), {}).setdefault(figure.scheme_of(row), row)
    points = {key: rows for key, rows in points.items() if len(rows) > 1}
    if not points:
        return []
    floors = {name: [floor for one in of_schemes if (floor := one.floor(name)) is not None] for name in COSTS}
    floors = {name: max(found, default=statistics.ASSUMED_FLOOR) for name, found in floors.items()}
    parts = ["## Which scheme is cheapest"]
    for settings in dict.fromkeys(key[:-2] for key in points):
        keys = sorted((key for key in points if key[:-2] == settings), key=lambda key: (key[-1] ** 2 * key[-2], key))
        ranked = {name: {key: ranking(points[key], name, floors[name]) for key in keys} for name in COSTS}
        ranked = {name: by_key for name, by_key in ranked.items() if any(by_key.values())}
        parts.append(f"{settings[0]}: {', '.join(settings[1:])}.")
        parts.append(" ".join(_in_words(COSTS[name], by_key) for name, by_key in ranked.items()))
        parts.append(_ranking_table(keys, ranked))
    parts.append(
        "Schemes are named together where their difference is within its 95 % interval or the noise of the machine; "
        "the first has the least median. All stand in one skeleton: embeddings, MLP and position encoding are part of "
        "each figure."
    )
    return parts


@dataclass(frozen=True)
class Ranking:
    """Who is cheapest on one clip: the best first, then those that cannot be told from it; and the costliest."""

    best: tuple[str, ...]
    value: str
    worst: str
    times: float
    absent: tuple[str, ...]


def ranking(rows: dict[str, Row], name: str, floor: float) -> Ranking | None:
    """None where fewer than two schemes have a value."""
    known = {scheme: row.measurement(name) for scheme, row in rows.items() if row.value(name) is not None}
    if len(known) < 2:
        return None
    absent = tuple(scheme for scheme, row in rows.items() if (one := row.measurement(name)) and one.missing)
    best, *others = sorted(known, key=lambda scheme: known[scheme].median)
    level = [scheme for scheme in others if not _ratio(known[scheme], known[best], floor).distinguishable]
    worst = others[-1]
    return Ranking((best, *level), _quantity(known[best]), worst, known[worst].median / known[best].median, absent)


def _ratio(one: Measurement, other: Measurement, floor: float) -> statistics.Ratio:
    ours, theirs = statistics.by_round(one), statistics.by_round(other)
    same_run = one.details.get("commit") == other.details.get("commit") and set(ours) & set(theirs)
    ratio = statistics.paired_ratio_interval if same_run else statistics.ratio_interval
    return statistics.Ratio(ratio(ours, theirs), floor)


def _in_words(words: str, by_key: dict[tuple, Ranking | None]) -> str:
    """One sentence: each winner with its clips."""
    clips: dict[tuple[str, ...], list[str]] = {}
    for key, ranked in by_key.items():
        if ranked:
            clips.setdefault(tuple(sorted(ranked.best)), []).append(_clip(key))
    if len(clips) == 1:
        return f"Least {words} at every size: {_listed(next(iter(clips)))}."
    return f"Least {words}: {'; '.join(f'{_listed(winners)} at {_listed(at)}' for winners, at in clips.items())}."


def _ranking_table(keys: list[tuple], ranked: dict[str, dict[tuple, Ranking | None]]) -> str:
    lines = ["| clip | " + " | ".join(f"least {COSTS[name]} | most" for name in ranked) + " |"]
    lines.append("| --- |" + " --- |" * (2 * len(ranked)))
    for key in keys:
        cells = []
        for by_key in ranked.values():
            one = by_key[key]
            cells.append(f"{', '.join(one.best)}: {one.value}" if one else MISSING)
            most = f"{one.worst}: {one.times:.1f} times as much" if one else MISSING
            cells.append(most + (f"; no value: {', '.join(one.absent)}" if one and one.absent else ""))
        lines.append(f"| {_clip(key)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _clip(key: tuple) -> str:
    return f"{key[-2]}x{key[-1]}x{key[-1]}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]


def interval(measured: Measurement) -> Interval:
    return statistics.median_interval(statistics.by_round(measured))


def _timed(row: Row) -> bool:
    return any(row.value(name) is not None for name in COSTS) or row.value("time_total") is not None


def _circumstances(row: Row) -> tuple:
    """What must agree before two rows are compared; the clip comes last."""
    facts, clip = row.facts(), row.record.case["clip"]
    batch = f"batch {facts['batch']}"
    threads = [f"{facts['threads']} threads"] if "threads" in facts else []
    shared = (facts["device"], facts["dtype"], facts["mode"], f"kernel {facts['kernel']}", batch, *threads)
    return (*shared, clip["frames"], clip["size"])


def _section(one: AblationTable, folder: Path) -> str:
    columns = [c for c in COLUMNS if any(all(row.value(name) is not None for name in c.needs) for row in one.rows)]
    lines = [f"## {one.question}", "", f"[The whole report]({one.name}/report.md), [as CSV]({one.name}/table.csv).", ""]
    for name in one.figures:
        if (folder / one.name / f"{name}.png").is_file():
            lines += [f"![{name.replace('_', ' ')}, {one.name}]({one.name}/{name}.png)", ""]
    if one.size_note:
        lines += [one.size_note, ""]
    lines.append("| row | " + " | ".join(column.heading for column in columns) + " |")
    lines.append("| --- |" + " ---: |" * len(columns))
    reasons: list[str] = []
    for row in one.rows:
        if row.published_only:
            continue
        cells = []
        for column in columns:
            absent = next((row.reason(name) for name in column.needs if row.value(name) is None), None)
            if absent is None:
                cells.append(column.cell(row))
                continue
            if absent not in reasons:
                reasons.append(absent)
            cells.append(f"{MISSING} [{reasons.index(absent) + 1}]")
        lines.append(f"| {row.name} | " + " | ".join(cells) + " |")
    if reasons:
        lines += ["", *(f"{number}. {reason}" for number, reason in enumerate(reasons, start=1))]
    return "\n".join(lines)


def _spread(name: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        found = interval(row.measurement(name))
        scale = SCALES[row.measurement(name).unit][0]
        wide = " ±" if found.wide else ""  # explained at the end of the page
        return f"{_digits(found.value / scale)} ({_digits(found.low / scale)}–{_digits(found.high / scale)}){wide}"

    return cell


def _part(kind: str, group: str) -> Callable[[Row], str]:
    return lambda row: f"{100 * figure.shares_of(row, kind)[group]:.0f}"


SCALES = {"ms": (1, "ms"), "bytes": (2**20, "MiB"), "J": (1, "J"), "MAC": (1e9, "GMAC"), "MAC/s": (1e9, "GMAC/s")}


def _quantity(measured: Measurement) -> str:
    scale, unit = SCALES[measured.unit]
    return f"{_digits(measured.value / scale)} {unit}"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


COLUMNS = (
    Column("GMACs ↓, one view", ("macs",), lambda row: f"{row.value('macs') / 1e9:.2f}"),
    Column("latency ↓, ms: median (95 % interval)", ("latency",), _spread("latency")),
    Column("training step ↓, ms", ("training_latency",), _spread("training_latency")),
    Column("peak memory ↓, MiB", ("peak_memory",), lambda row: _digits(row.value("peak_memory") / 2**20)),
    Column("energy ↓, J per clip", ("energy",), lambda row: _digits(row.value("energy"))),
    Column("GMAC/s ↑", ("macs", "latency"), lambda row: _digits(roofline.achieved(row) / 1e9)),
    Column("of the ceiling ↑, %", ("macs", "latency", "matmul_ceiling"), lambda row: _of_ceiling(row)),
    Column(
        "ceiling: matrix product, GMAC/s", ("matmul_ceiling",), lambda row: _digits(row.value("matmul_ceiling") / 1e9)
    ),
    Column("ceiling: copy, GB/s", ("copy_ceiling",), lambda row: _digits(row.value("copy_ceiling") / 1e9)),
    Column("MLP, % of multiply-adds", ("macs_mlp",), _part("macs", "mlp")),
    Column("MLP, % of time", ("time_mlp",), _part("time", "mlp")),
    Column("attention products, % of multiply-adds", ("macs_attention",), _part("macs", "attention")),
    Column("attention products, % of time", ("time_attention",), _part("time", "attention")),
)


def _of_ceiling(row: Row) -> str:
    share = roofline.share(row)
    return MISSING if share is None else f"{100 * share:.0f}"


def _named(folder: Path) -> str:
    """The folder as it is called from the repository, without folders of this machine."""
    resolved = folder.resolve()
    return f"{resolved.parent.name}/{resolved.name}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m reports.cost_page", description=__doc__.partition("\n\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a machine's folder: results/<device>")
    failed = False
    for folder in parser.parse_args(arguments).folders:
        try:
            print(build(folder))
        except (*EXPECTED, OSError) as error:
            print(f"{folder}: {error}", file=sys.stderr)
            failed = True
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
