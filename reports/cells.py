"""Printed cells beyond operations and parameters of a row: ratios, shares, other counts, and stages of a model.

An ablation says for each such column how it comes about, in a row's entry `cells`:

    flops_ratio: {of: {row: Swin-B, by: fvcore, views: 12}, over: {by: fvcore, views: 4}, decimals: 1}
    mlp_share: {of: {count: mlp_macs}, over: {count: macs}, as: percent, decimals: -1}
    trainable_params: {of: {count: trainable_params}, unit: 1000000, decimals: 0}
    channels: {stage: 1, is: channels}

`of` and `over` are counts of this row or of another one: a measurement's name, or operations `by` a rule of
`reports.counting`, times `views`; or a number that is `printed` for a model that is not here. `as` is ratio (without a
word), percent, or saving: percent that are gone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from math import prod
from typing import Any

from records.record import Record
from reports import counting
from reports.text import rounded

KEYS = ("of", "over", "as", "unit", "decimals", "stage", "is")
COUNT_KEYS = ("row", "count", "by", "views", "printed")
FORMS = ("ratio", "percent", "saving")


@dataclass(frozen=True)
class Cell:
    """What stands against a printed cell: `shown` in its form and precision, `exact` in words; or why there is none."""

    shown: Any = None
    exact: str | None = None
    missing: str | None = None


def check(spec: Mapping[str, Any], rows: list[str]) -> None:
    """Raises: ValueError naming what is wrong with a cell's entry; `rows` are the names of the ablation's rows."""
    wrong = [key for key in spec if key not in KEYS]
    if wrong:
        raise ValueError(f"unknown key {wrong[0]!r}; allowed: {', '.join(KEYS)}")
    if ("stage" in spec) == ("of" in spec):
        raise ValueError("a cell has either `of`, a count, or `stage`, a number from 1")
    if "stage" in spec and spec.get("is") not in STAGES:
        raise ValueError(f"is: {spec.get('is')!r}; allowed: {', '.join(STAGES)}")
    if spec.get("as", "ratio") not in FORMS:
        raise ValueError(f"as: {spec['as']!r}; allowed: {', '.join(FORMS)}")
    for key in ("of", "over"):
        part = spec.get(key, {"count": ""})
        wrong = [name for name in part if name not in COUNT_KEYS]
        if wrong or sum(name in part for name in ("count", "by", "printed")) != 1:
            raise ValueError(f"{key}: {dict(part)}; it has `count`, `by` or `printed`, and may have `row` and `views`")
        if "by" in part and part["by"] not in counting.RULES:
            raise ValueError(f"{key}.by: {part['by']!r}; allowed: {', '.join(counting.RULES)}")
        if part.get("row", rows[0]) not in rows:
            raise ValueError(f"{key}.row: {part['row']!r} is no row here; allowed: {', '.join(rows)}")


def cell(spec: Mapping[str, Any], row: Any, rows: Mapping[str, Any]) -> Cell:
    """The cell of a `row` of a report, one of `rows` by name."""
    if "stage" in spec:
        if row.record is None:
            return Cell(missing=row.missing)
        params = row.record.get("params")
        sizes = params.details.get("sizes") if params else None
        if sizes is None:
            return Cell(missing="its record holds no sizes of stages: metrics=[params] measures them")
        return Cell(STAGES[spec["is"]](row.record, sizes, spec["stage"] - 1))
    top, below = (_count(spec[key], row, rows) if key in spec else 1 for key in ("of", "over"))
    if not top or not below:
        return Cell(missing="a count that it is made of was not measured")
    value = Decimal(top) / Decimal(below)
    if spec.get("as") in ("percent", "saving"):
        value = 100 * (value if spec["as"] == "percent" else 1 - value)
    value /= spec.get("unit", 1)
    words = f"{top:,} / {below:,}" if "over" in spec else f"{top:,}"
    words = f"{words}, the first as printed" if "printed" in spec["of"] else words
    return Cell(rounded(value, 1, spec.get("decimals", 0)), words)


def _count(part: Mapping[str, Any], row: Any, rows: Mapping[str, Any]) -> int | None:
    if "printed" in part:
        return part["printed"]
    source = rows[part["row"]] if "row" in part else row
    count = counting.operations(part["by"], source.count) if "by" in part else source.count(part["count"])
    return None if count is None else count * part.get("views", 1)


# What a stage of a model is, from the config and the sizes in its record; stages count from 0 here.


def _clip(record: Record) -> tuple[int, int, int]:
    clip = record.case["clip"]
    return clip["frames"], clip["size"], clip["size"]


def _patch(record: Record, sizes: dict, stage: int) -> list[int]:
    """Tokens of the map before, frames and pixels at first, that one token joins."""
    before = _clip(record) if stage == 0 else sizes["tokens"][stage - 1]
    return [a // b for a, b in zip(before, sizes["tokens"][stage], strict=True)]


def _output(record: Record, sizes: dict, stage: int) -> str:
    axes = zip("THW", _clip(record), sizes["tokens"][stage], strict=True)
    return ", ".join(f"{axis}/{a // b}" for axis, a, b in axes)


def _shape(record: Record, sizes: dict, stage: int) -> str:
    """`96x16x56x56`; stage -1 is the clip itself."""
    whole = (record.case["config"]["in_channels"], *_clip(record))
    return "x".join(map(str, whole if stage < 0 else (sizes["widths"][stage], *sizes["tokens"][stage])))


def _option(name: str, option: str, record: Record, stage: int) -> Any:
    """An option of the first scheme of a stage that has it."""
    config = record.case["config"]
    entries = [config["attention"].get(key, {}) for key in config["stages"][stage]]
    return next((entry[option] for entry in entries if entry.get("scheme") == name), None)


def _scales(record: Record, sizes: dict, stage: int) -> Any:
    scales = _option("global_pyramid", "scales", record, stage)
    return "whole" if scales == ["whole"] else sorted(scales)


def _keys(record: Record, sizes: dict, stage: int) -> int:
    """Tokens of all pooled maps: what a query of the pyramid meets."""
    scales = _option("global_pyramid", "scales", record, stage)
    return sum(prod(sizes["tokens"][stage] if scale == "whole" else scale) for scale in scales)


STAGES: dict[str, Callable[[Record, dict, int], Any]] = {
    "channels": lambda record, sizes, stage: sizes["widths"][stage],
    "pairs": lambda record, sizes, stage: sizes["blocks"][stage] // 2,
    "blocks": lambda record, sizes, stage: f"MViTv2 Block x{sizes['blocks'][stage]}",
    "patch": _patch,
    "window": lambda record, sizes, stage: _option("local_window", "window", record, stage),
    "scales": _scales,
    "keys": _keys,
    "tokens": lambda record, sizes, stage: prod(sizes["tokens"][stage]),
    "fewer": lambda record, sizes, stage: round(prod(sizes["tokens"][stage]) / _keys(record, sizes, stage)),
    "output": _output,
    "shape": _shape,
}
