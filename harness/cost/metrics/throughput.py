"""Clips per second, from the same runs as the latency."""

from __future__ import annotations

from harness.cost.metrics import register
from harness.cost.workload import Workload
from records.record import Measurement, Quantity

THROUGHPUT = Quantity("throughput", "timed", "throughput", "clips/s", "higher")


@register("throughput", THROUGHPUT, timed=True, order=2)
def throughput(workload: Workload) -> list[Measurement]:
    """One sample per timed batch: its clips divided by its time; no two batches overlap."""
    series = workload.series
    clips = 1000 * workload.case.batch_size
    return [THROUGHPUT.of((clips / milliseconds for milliseconds in series.samples), series.details)]
