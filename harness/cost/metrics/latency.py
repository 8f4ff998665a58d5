"""Milliseconds of one forward pass of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.cost.metrics import register
from records.record import Measurement

if TYPE_CHECKING:
    from harness.cost.workload import Workload


@register("latency", {"latency": ("ms", "lower")}, timed=True, order=1)
def latency(workload: Workload) -> list[Measurement]:
    """Every sample after the warm-up: wall clock on the CPU, events on CUDA."""
    series = workload.series
    return [Measurement("latency", "ms", "lower", series.samples, details=series.details)]
