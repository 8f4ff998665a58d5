"""Which kernels `auto` should be on which card, as records have it: `python -m reports.faster` writes the list.

A kernel enters for a card, a number format and a scheme where every pair of records that differ in the kernel alone,
of models with that scheme, says that it is faster, beyond noise.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from records.record import ablation_folders, canonical, write_text
from records.terminal import until_closed
from reports import statistics
from reports.table import UNREADABLE, AblationTable, Row, load, schemes, tell_unusable, visits

LIST = Path(__file__).parents[1] / "attention_zoo" / "kernels" / "faster.json"
KERNELS = {"triton": {"forward": ("local_window", "shifted_window", "global_pyramid"),
                      "backward": ("local_window", "shifted_window")}}  # fmt: skip
"""What the programs of a kernel are for."""
USUAL = ("auto", "sdpa")
METRICS = {"latency": False, "training_latency": True}


@dataclass(frozen=True)
class PairVerdict:
    """What one pair of records says."""

    of: tuple[str, str, str, bool, str]  # card, number format, scheme, with gradients, kernel
    faster: bool
    place: str


def entries(tables: Iterable[AblationTable]) -> list[dict[str, Any]]:
    """The list, with the records that it rests on."""
    by_setting: dict[tuple, list[PairVerdict]] = {}
    for table in tables:
        for statement in pairs(table):
            by_setting.setdefault(statement.of, []).append(statement)
    keys = ("device", "dtype", "scheme", "backward", "kernel")
    return [
        {**dict(zip(keys, of, strict=True)), "records": sorted({entry.place for entry in verdicts})}
        for of, verdicts in sorted(by_setting.items())
        if all(entry.faster for entry in verdicts)
    ]


def pairs(table: AblationTable) -> Iterator[PairVerdict]:
    """What each row with a special kernel says, beside the row that differs in that alone."""
    for row in table.measured:
        case = row.record.case
        usual = next((plain for plain in table.measured if case["kernel"] in KERNELS and _differ(plain, row)), None)
        if usual is None or table.quick or not str(case["device"]).startswith("cuda"):
            continue
        for name, backward in METRICS.items():
            for card in row.measurement(name).said("gpu") if row.value(name) and usual.value(name) else ():
                spreads = table.spreads(name, common_drift=True)
                pair = [visits(side, name) for side in (row, usual)]
                ratio = statistics.ratio(*pair, "timed", *(spreads.get(side.name) for side in (row, usual)))
                place = f"{table.place}/{row.record.case_id}.json"
                for scheme in KERNELS[case["kernel"]]["backward" if backward else "forward"]:
                    if scheme in schemes(case):
                        faster = ratio.distinguishable and ratio.interval.value < 1
                        yield PairVerdict((card, case["dtype"], scheme, backward, case["kernel"]), faster, place)


def _differ(usual: Row, row: Row) -> bool:
    """Whether two rows ran the same but for the kernel, and the first one the usual kernel."""
    plain, special = ({**side.record.case, "row": "", "kernel": ""} for side in (usual, row))
    return usual.record.case["kernel"] in USUAL and canonical(plain) == canonical(special)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m reports.faster", description=__doc__.partition("\n\n")[0])
    parser.add_argument("results", nargs="?", type=Path, default=Path("results"), help="the folder of all devices")
    parser.add_argument("--out", type=Path, default=LIST, help="the list (the one that `auto` reads)")
    options, tables, wrong = parser.parse_args(arguments), [], False
    devices = sorted(path for path in options.results.glob("*") if path.is_dir())
    for folder in (folder for device in devices for folder in ablation_folders(device)):
        wrong |= tell_unusable([folder])
        try:
            tables.append(load(folder))
        except UNREADABLE as error:
            print(error, file=sys.stderr)
    if not tables:  # an empty list would take every kernel away that records know as faster
        slip = f"error: {options.results} holds no readable records; give the folder that holds the devices' folders"
        print(slip, file=sys.stderr)
        return 2
    print(write_text(json.dumps(entries(tables), indent=1) + "\n", options.out))
    return int(wrong)


if __name__ == "__main__":
    sys.exit(until_closed(main))
