"""A cost that falls while the clip grows: no model works so, a machine that was busy with something else does."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import permutations
from typing import Any

from records.record import Record, canonical

LEAST = 0.1  # the part of the smaller clip's median by which the larger one's must lie below it


def falling(records: Iterable[Record]) -> list[tuple[Record, Record, str]]:
    """Pairs of cases that differ in the clip alone, the smaller one first, with the measurement in which it costs more.

    Compared are durations and memory of one machine.
    """
    alike: dict[str, list[Record]] = {}
    for record in records:
        alike.setdefault(_but_for_clip(record.case), []).append(record)
    return [
        (small, large, name)
        for group in alike.values()
        for small, large in permutations(group, 2)
        if _larger(small.case["clip"], large.case["clip"])
        for name, before in small.measurements.items()
        if (after := large.get(name)) and before.ran and before.better == "lower" and before.samples and after.samples
        if before.unit in ("ms", "bytes") and before.said("machine") == after.said("machine")
        if after.median < (1 - LEAST) * before.median
    ]


def warning(small: Record, large: Record, name: str) -> str:
    """What is wrong, and what to do about it."""
    values = [f"{record.row} {record.get(name).median:.4g} {record.get(name).unit}" for record in (large, small)]
    row = small.row.partition(" · ")[0]  # what `rows=` knows; it is measured at all points of the axes
    row = row if row.replace("_", "").isalnum() else json.dumps(row, ensure_ascii=False)
    return (
        f"{name} falls while the clip grows: {values[0]}, but {values[1]}. A busy machine does that, no model: measure "
        f"that row again with force=true 'rows=[{row}]'"
    )


def _larger(small: dict[str, Any], large: dict[str, Any]) -> bool:
    sizes = [(clip["frames"], clip["size"]) for clip in (small, large)]
    return sizes[0] != sizes[1] and all(a <= b for a, b in zip(*sizes, strict=True))


def _but_for_clip(case: dict[str, Any]) -> str:
    config = {key: value for key, value in case.get("config", {}).items() if key != "clip"}
    return canonical({**case, "row": "", "clip": None, "config": config})
