"""Milliseconds of one forward pass of a batch, and clips per second by the same runs."""

from __future__ import annotations

from harness.cost.metrics import register
from harness.cost.workload import Workload
from records.record import Measurement, Quantity

LATENCY = Quantity("latency", "timed", "latency", "ms", "lower")
THROUGHPUT = Quantity("throughput", "timed", "throughput", "clips/s", "higher")


@register("latency", LATENCY, timed=True, order=1)
def latency(workload: Workload) -> list[Measurement]:
    """Every sample after the warm-up: wall clock on the CPU, events on CUDA."""
    return [LATENCY.of(workload.series.samples, workload.series.details)]


@register("throughput", THROUGHPUT, timed=True, order=2)
def throughput(workload: Workload) -> list[Measurement]:
    """One sample per timed batch: its clips divided by its time; no two batches overlap."""
    series = workload.series
    clips = 1000 * workload.case.batch_size
    return [THROUGHPUT.of((clips / milliseconds for milliseconds in series.samples), series.details)]
