"""Milliseconds of one forward pass of a batch."""

from __future__ import annotations

from harness.cost.metrics import register
from harness.cost.workload import Workload
from records.record import Measurement, Quantity

LATENCY = Quantity("latency", "timed", "latency", "ms", "lower")


@register("latency", LATENCY, timed=True, order=1)
def latency(workload: Workload) -> list[Measurement]:
    """Every sample after the warm-up: wall clock on the CPU, events on CUDA."""
    return [LATENCY.of(workload.series.samples, workload.series.details)]
