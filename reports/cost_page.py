"""What attention costs on one machine, on one page: `python -m reports.cost_page results/<device>`.

Writes `cost.md` beside the folders of the ablations: which scheme is cheapest at which clip size, then each table in
short with its plots. `cost.tex` holds its tables for a paper. Everything comes from the records below the folder; the
same files give the same bytes.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from records.intervals import WIDE, Interval
from records.record import RecordError, ablation_folders, write_text
from records.terminal import until_closed
from reports import exponents, figures, markdown, statistics, table
from reports.markdown import NOT_DISTINGUISHABLE
from reports.table import AblationTable, Row
from reports.text import MISSING, Notes, counted, significant, unit
from reports.text import tables as tables_of

PAGE, TABLES = "cost.md", "cost.tex"


def build(folder: str | Path) -> Path:
    """Write the page of one machine's folder. Raises: RecordError where it holds no ablation with a measured cost."""
    folder = Path(folder)
    tables, broken = table.load_all(ablation_folders(folder), folder)
    timed = [ablation for ablation in tables.values() if is_timed(ablation)]
    if not timed:
        raise RecordError(f"no timed record below {folder}; `python -m harness.run ablation=scaling` writes some")
    devices = [row.facts().get("device") for ablation in timed for row in ablation.measured]
    machines = [device for device in dict.fromkeys(devices) if device is not None]
    parts = [f"# What attention costs on {' and '.join(machines)}"]
    if len(machines) > 1:
        parts.append("The records come from several machines. Nothing below is compared across them.")
    parts += [_floors(timed), *cheapest(timed)]
    parts += [_section(ablation, folder) for ablation in timed]
    parts.append(
        "↓ lower is better, ↑ higher is better. In brackets: 95 % intervals of the medians; they hold the true median "
        f"{statistics.HOLDS} (simulated)."
    )
    if broken:
        parts.append("## Not shown\n\n" + "\n".join(f"- {name}: {reason}" for name, reason in broken.items()))
    parts.append(f"Rebuild: `python -m reports.cost_page {shlex.quote(table.place(folder))}`")
    page = "\n\n".join(part for part in parts if part) + "\n"
    write_text(markdown.tex(page), folder / TABLES)
    return write_text(page, folder / PAGE)


def is_timed(ablation: AblationTable) -> bool:
    return any(_timed(row) for row in ablation.measured)


def _floors(tables: list[AblationTable]) -> str:
    """One line: from which difference on this machine tells two rows apart."""
    text = markdown.floors_in_words({title: _floor(tables, name) for name, title in _costs(tables).items()})
    if len(tables) > 1 and "A/A" in text:
        text += " Of several tables the largest, which decides the ranking; the ratios of a table are held to its own."
    return text


def _floor(tables: list[AblationTable], name: str) -> float | None:
    """The largest noise floor of any table; None where no row of any of them has two rounds."""
    return max((floor for ablation in tables if (floor := ablation.floor(name)) is not None), default=None)


def _costs(tables: list[AblationTable]) -> dict[str, str]:
    """What was measured of time and memory, less of which is better: name and title."""
    costs = {name: ablation.quantities()[name] for ablation in tables for name in ablation.named("timed", "sized")}
    timed_first = sorted(costs.values(), key=lambda quantity: quantity.kind != "timed")
    return {quantity.name: quantity.title for quantity in timed_first if markdown.has_ratio(quantity)}


def _clips_of_a_scheme(ablation: AblationTable) -> int:
    """On how many clips a table has the same scheme: where on several, its rows are schemes and clips."""
    clips: dict[str, set[tuple]] = {}
    for row in ablation.measured:
        clips.setdefault(exponents.scheme_of(row), set()).add(tuple((row.record.case.get("clip") or {}).items()))
    return max(map(len, clips.values()), default=0)


def cheapest(tables: list[AblationTable]) -> list[str]:
    """For each clip size on which several schemes were measured alike, which is cheapest: a text and a table."""
    varying = [ablation for ablation in tables if _clips_of_a_scheme(ablation) > 1]
    varying.sort(key=_clips_of_a_scheme, reverse=True)
    costs = _costs(varying)
    points: dict[tuple, dict[str, Row]] = {}
    for ablation in varying:
        for row in ablation.measured:
            if _timed(row) and row.record.case.get("clip"):
                points.setdefault(_circumstances(row), {}).setdefault(exponents.scheme_of(row), row)
    schemes = list(dict.fromkeys(scheme for rows in points.values() for scheme in rows))
    points = {key: rows for key, rows in points.items() if len(rows) > 1}
    if not points:
        return []
    floors = {name: _floor(varying, name) for name in costs}
    parts = ["## Which scheme is cheapest"]
    for settings in dict.fromkeys(key[:-2] for key in points):
        keys = sorted((key for key in points if key[:-2] == settings), key=lambda key: (key[-1] ** 2 * key[-2], key))
        ranked = {name: {key: ranking(points[key], name, floors[name], schemes) for key in keys} for name in costs}
        ranked = {name: by_key for name, by_key in ranked.items() if any(by_key.values())}
        parts.append(f"{settings[0]}: {', '.join(settings[1:])}.{_what_ran({key: points[key] for key in keys})}")
        parts.append(" ".join(_in_words(costs[name], by_key) for name, by_key in ranked.items()))
        parts.append(_ranking_table(keys, ranked, costs))
    parts.append(
        "Schemes named together cannot be told apart: their ratio is closer to 1 than the noise floor, or its 95 % "
        "interval holds 1; the first has the least median. In brackets in the table: 95 % intervals of the winner's "
        "median and of the ratio to it; without brackets: single samples, or no difference between samples; rough: the "
        f"interval is wider than {WIDE:.0%} of the figure. All stand in one skeleton: embeddings, MLP "
        "and position encoding are part of each figure, and the weights of peak memory, so that a scheme with more "
        "parameters needs more of it at every size."
    )
    return parts


@dataclass(frozen=True)
class Ranking:
    """Who is cheapest on one clip: the best first, then those that cannot be told from it; and the costliest."""

    best: tuple[str, ...]
    value: str
    worst: str
    times: str
    absent: tuple[str, ...]  # measured, without a value
    untried: tuple[str, ...]  # not measured on this clip, though on others
    floor: float  # below it nothing is told apart
    assumed: bool  # whether the floor could not be measured

    @property
    def cells(self) -> tuple[str, str]:
        """What stands in the table: the best with the value, and the worst with who is absent."""
        lost = {"no value": self.absent, "not measured": self.untried}
        clauses = [f"; {why}: {', '.join(schemes)}" for why, schemes in lost.items() if schemes]
        return f"{', '.join(self.best)}: {self.value}", f"{self.worst}: {self.times} times as much{''.join(clauses)}"

    @property
    def tie(self) -> str:
        """Why several are named; nothing where one is."""
        if len(self.best) == 1:
            return ""
        assumed = " (assumed)" if self.assumed else ""
        return f", {NOT_DISTINGUISHABLE} below {self.floor:.1%}{assumed}".replace(".0%", "%")


def ranking(rows: dict[str, Row], name: str, floor: float | None, schemes: Sequence[str] = ()) -> Ranking | None:
    """The `schemes` that have a row on this clip by their cost; None where fewer than two have a value."""
    measured = {scheme: row for scheme, row in rows.items() if row.value(name)}
    if len(measured) < 2:
        return None
    absent = tuple(scheme for scheme, row in rows.items() if (lost := row.measurement(name)) and lost.missing)
    untried = tuple(scheme for scheme in schemes if scheme not in {*measured, *absent})
    best, *others = sorted(measured, key=lambda scheme: measured[scheme].value(name))
    ratios = {scheme: table.ratio_of(measured[scheme], measured[best], name) for scheme in others}
    level = [scheme for scheme in others if not ratios[scheme].distinguishable]
    least = max(ratio.floor for ratio in ratios.values())
    times = _with_interval(ratios[others[-1]].interval)
    words, scale = unit(measured[best].measurement(name))
    value = _with_interval(measured[best].interval(name), scale, f" {words}")
    return Ranking((best, *level), value, others[-1], times, absent, untried, least, floor is None)


def _with_interval(interval: Interval, scale: float = 1, unit: str = "") -> str:
    value, low, high = (significant(bound / scale) for bound in (interval.value, interval.low, interval.high))
    rough = ", rough" if interval.wide else ""
    return f"{value}{unit}" + (f" ({low}–{high}{rough})" if interval.low < interval.high else "")


def _what_ran(points: dict[tuple, dict[str, Row]]) -> str:
    """Which operator computed the attention; where they differ with the schemes, and with the clips of a scheme that
    has several.
    """
    by_operator: dict[str, dict[str, list[tuple]]] = {}
    for key, rows in points.items():
        for scheme, row in rows.items():
            if operator := row.facts().get("operators"):
                by_operator.setdefault(operator, {}).setdefault(scheme, []).append(key)
    if len(by_operator) == 1:
        return f" Attention operator: {next(iter(by_operator))}."

    def where(scheme: str, keys: list[tuple]) -> str:
        several = sum(scheme in schemes for schemes in by_operator.values()) > 1
        return scheme + (f" (at {_listed([_clip(key) for key in keys])})" if several else "")

    clauses = [
        f"{operator} for {_listed([where(*scheme_and_keys) for scheme_and_keys in schemes_and_keys.items()])}"
        for operator, schemes_and_keys in by_operator.items()
    ]
    return f" Attention operators differ: {'; '.join(clauses)}." if clauses else ""


def _in_words(words: str, by_key: dict[tuple, Ranking | None]) -> str:
    """One sentence: each winner with its clips."""
    clips: dict[str, list[str]] = {}
    for key, ranked in by_key.items():
        if ranked:
            clips.setdefault(_listed(sorted(ranked.best)) + ranked.tie, []).append(_clip(key))
    if len(clips) == 1:
        return f"Least {words} at every size: {next(iter(clips))}."
    clauses = [f"at {_listed(places)} {winners}" for winners, places in clips.items()]
    return f"Least {words}: {'; '.join(clauses)}."


def _ranking_table(keys: list[tuple], ranked: dict[str, dict[tuple, Ranking | None]], costs: dict[str, str]) -> str:
    groups = []
    for name, by_key in ranked.items():
        cells = {key: ranking.cells if ranking else (MISSING, MISSING) for key, ranking in by_key.items()}
        least, most = (lambda key, place=place, cells=cells: cells[key][place] for place in (0, 1))
        groups.append([(f"least {costs[name]}", least), ("most", most)])
    return "\n\n".join(tables_of(keys, ("clip", _clip), groups))


def _clip(key: tuple) -> str:
    return f"{key[-2]}x{key[-1]}x{key[-1]}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]


def _timed(row: Row) -> bool:
    return any(measured.ran and measured.samples for measured in row.record.measurements.values())


def _circumstances(row: Row) -> tuple:
    """What must agree before two rows are compared; the clip comes last."""
    facts, clip = row.facts(), row.record.case["clip"]
    parts = [facts["device"], facts["dtype"], facts["mode"]]
    parts += [f"{key} {facts[key]}" for key in ("kernel", "batch") if key in facts]
    if number := facts.get("threads"):
        parts.append(counted(int(number), "thread") if number.isdigit() else f"{number} threads")
    return (*parts, clip["frames"], clip["size"])


def _section(ablation: AblationTable, folder: Path) -> str:
    """One ablation in short: its answer, under which circumstances, its table, its plots, its footnotes."""
    notes = Notes()
    links = f"[The whole report]({ablation.name}/report.md), [as CSV]({ablation.name}/table.csv)."
    parts = [*markdown.summary(ablation)[:1], markdown.circumstances(ablation)]
    parts += markdown.main_and_more(ablation, notes)[0]
    for name in figures.wanted(ablation):
        if (folder / ablation.name / f"{name}.png").is_file():
            parts.append(f"![{name.replace('_', ' ')}, {ablation.name}]({ablation.name}/{name}.png)")
            parts += [exponents.section(ablation, notes)] if name == "scaling" else []
    waiting = [row for row in ablation.rows if row.missing == table.NOT_YET]
    if waiting:
        parts.append(f"{counted(len(waiting), 'row')} not measured yet: the whole report says how.")
    page, footnotes = notes.numbered("\n\n".join(part for part in [f"## {ablation.question}", links, *parts] if part))
    return "\n\n".join([page, "\n".join(footnotes)] if footnotes else [page])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m reports.cost_page", description=__doc__.partition("\n\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a machine's folder: results/<device>")
    failed = False
    for folder in parser.parse_args(arguments).folders:
        try:
            print(build(folder))
            failed |= table.tell_unusable(ablation_folders(folder))
        except (*table.UNREADABLE, OSError) as error:
            print(f"{folder}: {error}", file=sys.stderr)
            failed = True
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(until_closed(main))
