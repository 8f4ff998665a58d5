"""What it takes to play a clip to a model: milliseconds until an answer that takes in one more frame, after as many as
the clip has, and bytes at the peak, weights included and the clip left out.

A model with `stream()` takes the frame and its state. Any other looks at the whole window again, so that its answer
costs what a clip costs. The frames before are taken in without being timed.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from harness.cost.build import build
from harness.cost.metrics import register
from harness.cost.metrics.peak_memory import measured
from harness.cost.workload import Workload
from records.record import Measurement, Quantity

STREAM_MEMORY = Quantity("stream_memory", "sized", "peak memory while a clip is played", "bytes", "lower")
STREAM_LATENCY = Quantity("stream_latency", "timed", "latency of an answer after one more frame", "ms", "lower")


@register("stream_memory", STREAM_MEMORY, timed=True, order=0, process="stream", once=True)
def stream_memory(workload: Workload) -> list[Measurement]:
    """Runs before the other metric of its process, since it must see the process without a model."""
    how = {"streamed": _streams(workload)}
    if not how["streamed"]:
        return measured(workload, STREAM_MEMORY, facts=how)
    reason = _unable(workload)
    if reason:
        return [STREAM_MEMORY.absent(reason, details=how | workload.surroundings())]
    return measured(workload, STREAM_MEMORY, _played, how)


@register("stream_latency", STREAM_LATENCY, timed=True, order=1, process="stream")
def stream_latency(workload: Workload) -> list[Measurement]:
    """Every sample after the warm-up."""
    how = {"streamed": _streams(workload)}
    if not how["streamed"]:
        return [STREAM_LATENCY.of(workload.series.samples, workload.series.details | how)]
    reason = _unable(workload)
    if reason:
        return [STREAM_LATENCY.absent(reason, details=how | workload.surroundings())]
    stream, last = _played(workload)
    runs, warm_up = workload.time(lambda: stream(last))
    return [STREAM_LATENCY.of([run[-1] for run in runs], how | warm_up | workload.what_ran())]


def _streams(workload: Workload) -> bool:
    """Whether the model of a case takes a clip frame by frame."""
    return hasattr(build(workload.case, device="meta"), "stream")


def _unable(workload: Workload) -> str | None:
    """Why the model of a case cannot be streamed as the case wants it."""
    if workload.case.compile or workload.case.graph:
        return "a stream is neither compiled nor a CUDA graph here; use compile=false, graph=false"
    return None


def _played(workload: Workload) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A stream that has seen all frames of the clip, each "b c h w", and the last of them."""
    stream, frames = workload.eager.stream(), workload.input.unbind(2)
    for frame in frames:
        stream(frame)
    return stream, frames[-1]
