"""Which recorded rows were made by code that has changed since: `python -m reports.stale results`.

A record names its commit, a report prints it; whether it still holds is a question to the repository, and its answer
changes with every commit, so it stands in no report. Of each table this prints the commits of its rows, how many files
of models and measuring differ from them now, and which of these are of the row's own schemes.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from records.provenance import ROOT, UNKNOWN
from records.record import MANIFEST
from records.terminal import until_closed
from reports import table
from reports.table import AblationTable, Row
from reports.text import MISSING, counted, listed, table_lines

ROOMS = ("attention_zoo", "backbones", "harness/cost")  # what a number of a record can depend on


@cache
def changed_since(commit: str) -> tuple[str, ...] | None:
    """Files of these rooms that differ from a commit, local changes included; None where git knows no such commit."""
    command = ["git", "-C", str(ROOT), "diff", "--name-only", commit, "--", *ROOMS]
    done = subprocess.run(command, capture_output=True, text=True)
    return None if done.returncode else tuple(done.stdout.split())


def commits(row: Row) -> tuple[str, ...]:
    """The commits that the numbers of a row come from."""
    if row.record is None:
        return ()
    measured = row.record.measurements.values()
    named = [commit for m in measured if m.samples for commit in m.said("commit")]
    return tuple(dict.fromkeys(str(commit) for commit in named or [row.record.provenance.get("commit") or UNKNOWN]))


def lines(of: AblationTable) -> list[list[str]]:
    """For the rows of the same commits: table, rows, commits, files changed since, and those of their schemes."""
    by_commits: dict[tuple[str, ...], list[Row]] = {}
    for row in of.measured:
        by_commits.setdefault(commits(row), []).append(row)
    return [_line(of, rows, names) for names, rows in by_commits.items()]


def _line(of: AblationTable, rows: list[Row], names: tuple[str, ...]) -> list[str]:
    changes = [changed_since(name) for name in names]
    cells = [of.name, listed([row.name for row in rows]), " / ".join(name[:10] for name in names)]
    if None in changes:
        return [*cells, "unknown commit", MISSING]
    files = {file for change in changes for file in change}
    own = {f"attention_zoo/{scheme}.py" for row in rows for scheme in table.schemes(row.record.case)} & files
    return [*cells, str(len(files)), listed(sorted(Path(file).stem for file in own), "scheme") or MISSING]


def said(tables: Iterable[AblationTable]) -> tuple[str, int]:
    """The table as text, and how many of its lines are stale."""
    rows = [line for of in tables for line in lines(of)]
    stale = sum(line[3] != "0" for line in rows)
    titles = ("table", "rows", "commit", "files changed since", "schemes changed since")
    columns = [(title, lambda line, place=place: line[place]) for place, title in enumerate(titles)]
    verdict = f"{stale} of {counted(len(rows), 'line')} are of code that has changed since"
    way_out = "; python -m harness.run ablation=NAME force=true out=FOLDER measures again" if stale else ""
    return "\n".join([table_lines(rows, columns), "", f"{verdict}{way_out}"]) if rows else "no records", stale


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m reports.stale", description=__doc__.partition("\n\n")[0])
    parser.add_argument("folder", type=Path, help="a folder of results, such as results or outputs")
    folder = parser.parse_args(arguments).folder
    if not folder.is_dir():
        parser.error(f"{folder} is no folder; name one that holds records, such as results or outputs")
    folders = sorted(path.parent for path in folder.rglob(MANIFEST))
    text, stale = said(table.load(path) for path in folders)
    print(text)
    return int(table.tell_unusable(folders) or stale > 0)


if __name__ == "__main__":
    sys.exit(until_closed(main))
