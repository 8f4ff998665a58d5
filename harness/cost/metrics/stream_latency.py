"""Milliseconds until an answer that takes in one more frame, after as many as the clip has.

A model with `stream()` takes the frame and its state. Any other looks at the whole window again, so that its answer
costs what a clip costs. The frames before are taken in without being timed.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from harness.cost.build import build
from harness.cost.metrics import register
from harness.cost.workload import Workload
from records.record import Measurement, Quantity

STREAM_LATENCY = Quantity("stream_latency", "timed", "latency of an answer after one more frame", "ms", "lower")


@register("stream_latency", STREAM_LATENCY, timed=True, order=1, process="stream")
def stream_latency(workload: Workload) -> list[Measurement]:
    """Every sample after the warm-up. Runs after `stream_memory`, which must see the process without a model."""
    how = {"streamed": streams(workload)}
    if not how["streamed"]:
        return [STREAM_LATENCY.of(workload.series.samples, workload.series.details | how)]
    reason = unable(workload)
    if reason:
        return [STREAM_LATENCY.absent(reason, details=how | workload.surroundings())]
    stream, frames = playing(workload)
    for frame in frames:
        stream(frame)
    runs, warm_up = workload.time(lambda: stream(frames[-1]))
    return [STREAM_LATENCY.of([run[-1] for run in runs], how | warm_up | workload.what_ran())]


def streams(workload: Workload) -> bool:
    """Whether the model of a case takes a clip frame by frame."""
    return hasattr(build(workload.case, device="meta"), "stream")


def unable(workload: Workload) -> str | None:
    """Why the model of a case cannot be streamed as the case wants it."""
    if workload.case.compile or workload.case.graph:
        return "a stream is neither compiled nor a CUDA graph here; use compile=false, graph=false"
    return None


def playing(workload: Workload) -> tuple[Callable[[Tensor], Tensor], tuple[Tensor, ...]]:
    """A fresh stream, and the frames of the clip, each "b c h w"."""
    return workload.eager.stream(), workload.input.unbind(2)
