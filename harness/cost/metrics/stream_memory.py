"""Bytes that a model needs at its peak while a clip is played to it, weights included and the clip left out.

A model with `stream()` takes frame after frame and keeps its state; any other needs what a pass over the whole window
needs, `peak_memory`.
"""

from __future__ import annotations

from harness.cost.metrics import register
from harness.cost.metrics.peak_memory import measured
from harness.cost.metrics.stream_latency import playing, streams, unable
from harness.cost.workload import Workload
from records.record import Measurement, Quantity

STREAM_MEMORY = Quantity("stream_memory", "sized", "peak memory while a clip is played", "bytes", "lower")


@register("stream_memory", STREAM_MEMORY, timed=True, order=0, process="stream", once=True)
def stream_memory(workload: Workload) -> list[Measurement]:
    """Runs before the other metric of its process, since it must see the process without a model."""
    streamed = streams(workload)
    reason = unable(workload) if streamed else None
    if reason:
        return [STREAM_MEMORY.absent(reason, details={"streamed": streamed} | workload.surroundings())]
    return measured(workload, STREAM_MEMORY, _played if streamed else None, {"streamed": streamed})


def _played(workload: Workload) -> None:
    stream, frames = playing(workload)
    for frame in frames:
        stream(frame)
