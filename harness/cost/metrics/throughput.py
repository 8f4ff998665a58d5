"""Clips per second, from the same runs as the latency."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.cost.metrics import register
from records.record import Measurement

if TYPE_CHECKING:
    from harness.cost.workload import Workload


@register("throughput", {"throughput": ("clips/s", "higher")}, timed=True, order=2)
def throughput(workload: Workload) -> list[Measurement]:
    """One sample per timed batch: its clips divided by its time; no two batches overlap."""
    series = workload.series
    samples = tuple(workload.case.batch_size * 1000 / milliseconds for milliseconds in series.samples)
    return [Measurement("throughput", "clips/s", "higher", samples, details=series.details)]
