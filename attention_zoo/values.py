"""What values may be, of a scheme's options and of a model's fields; each check gives it back. Raises: ValueError."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from attention_zoo.registry import nearest


def integer(name: str, value: Any, *, least: int = 1) -> int:
    if not whole(value) or value < least:
        raise ValueError(f"{name} {value!r} is not a whole number from {least} on")
    return value


def whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def number(name: str, value: Any, *, zero: bool, below: float = math.inf) -> float:
    """A number above zero, or zero itself where that is allowed."""
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if not numeric or not (0 <= value < below) or (value == 0 and not zero):
        limit = "" if below == math.inf else f" and below {below:g}"
        raise ValueError(f"{name} {value!r} is not a number {'at least' if zero else 'above'} 0{limit}")
    return float(value)


def boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} {value!r} is not true or false")
    return value


def choice(name: str, value: Any, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise ValueError(f"unknown {name} {value!r}; {nearest(str(value), allowed)}")
    return value
