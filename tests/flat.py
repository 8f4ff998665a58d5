"""Measurements written flat, as records of schema 1 held them: through the reader of those records."""

from typing import Any

from records import schema1
from records.record import Measurement


def flat(*arguments: Any, **more: Any) -> Measurement:
    """`flat("latency", "ms", "lower", samples, details={"rounds": [...]})`."""
    return Measurement(**schema1.measurement(*arguments, **more))
