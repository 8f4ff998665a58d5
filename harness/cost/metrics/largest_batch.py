"""The largest batch that fits into memory, and the throughput at it: forward only, and in training.

The memory of the first batches gives a line; the search goes on at 90 % of where it meets what there is. From there
the batch is raised until it no longer fits, then the gap is halved until it is 3 % of the batch or one clip. What does
not fit fails inside of the process, which on the CPU may take most of the memory that is free (`harness.cost.memory`).
The search has a time budget; what stopped it is in the details, and a batch found by a search that ran out of time is a
lower bound. The case's own batch size plays no part.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from attention_zoo import windows
from harness.cost import memory
from harness.cost.metrics import get, register
from harness.cost.training_step import targets
from harness.cost.workload import Workload
from records.record import Measurement, Quantity

MOST = 4096  # clips; no table needs more
BUDGETS = 9  # the search may take so many times the budget of the timed series of one visit,
SEARCH = 30.0  # seconds that one takes on a GPU, for a plan
SHARE = 0.4  # and so much of the time limit: loading comes before it, the timing of what it found behind it
PRECISION = 1 / 32  # a step of a search costs seconds, and libraries plan anew for every batch
FEWEST = 3  # runs of the batch that was found
PROBED = 4  # the batch behind which memory is predicted: a model's weights no longer hide what a clip adds
NEAR = 0.9  # of the predicted batch: allocators lose some

FORWARD = (
    Quantity("largest_batch", "sized", "largest batch", "clips", "higher"),
    Quantity("largest_batch_throughput", "timed", "throughput at the largest batch", "clips/s", "higher"),
)
TRAINING = tuple(replace(q, name=f"training_{q.name}", title=f"{q.title} in training") for q in FORWARD)


@dataclass(frozen=True)
class Found:
    """The largest batch that ran, the smallest that did not fit (None: none was met), and what ended the search."""

    largest: int
    too_large: int | None
    bound: str
    tried: tuple[int, ...]


def search(
    attempt: Callable[[int], float | None],
    seconds: float,
    most: int = MOST,
    precision: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
    predict: Callable[[], int | None] = lambda: None,
) -> Found | None:
    """The largest batch that fits, by doubling and bisection to `precision`; None where not even 1 does.

    `predict` may name, once a batch of `PROBED` has run, a larger one that should fit: the search goes on there, in
    steps of an eighth of it and then of twice the one before. `attempt` gives the seconds that a batch takes, or None
    where it does not fit. One that by the time of the last would end beyond `seconds` is not tried. An attempt beyond a
    batch of 1 that raises ends the search with its reason.
    """
    start, tried, largest, too_large, per_clip, step = clock(), [], 0, None, 0.0, 0
    while largest < most and (too_large is None or too_large - largest > max(1, precision * largest)):
        near = predict() if largest == PROBED and not step and too_large is None else None
        if too_large is not None:
            size = (largest + too_large) // 2
        elif near is not None and near > 2 * largest:
            size, step = near, max(1, near // 8)
        elif step:
            size, step = largest + step, 2 * step
        else:
            size = max(1, 2 * largest)
        size = min(most, size)
        if tried and clock() - start + per_clip * size > seconds:
            return Found(largest, too_large, f"time budget of {seconds:g} s", tuple(tried))
        tried.append(size)
        try:
            duration = attempt(size)
        except Exception as error:
            if not largest:
                raise
            reason = f"a batch of {size} failed: {' '.join(str(error).split())[:200] or type(error).__name__}"
            return Found(largest, too_large, reason, tuple(tried))
        if duration is not None:
            largest, per_clip = size, duration / size
        elif size == 1:
            return None
        else:
            too_large = size
    bound = "memory" if too_large is not None else f"cap of {most} clips"
    return Found(largest, too_large, bound, tuple(tried))


@register(
    "largest_batch", *FORWARD, timed=True, order=8, process="largest_batch", once=True, seconds=lambda quick: SEARCH
)
def largest_batch(workload: Workload) -> list[Measurement]:
    """Of forward passes in inference mode."""

    def prepare(size: int) -> Callable[[], Any]:
        clips = workload.batch(size)
        return lambda: workload.eager(clips)

    with torch.inference_mode():
        return _measured(workload, "largest_batch", prepare)


@register(
    "training_largest_batch",
    *TRAINING,
    timed=True,
    order=9,
    process="training_largest_batch",
    once=True,
    seconds=lambda quick: SEARCH,
)
def training_largest_batch(workload: Workload) -> list[Measurement]:
    """Of training steps, with the optimizer's state in memory.

    Raises: KernelUnavailable, where the case's kernel has no backward pass.
    """
    workload.case = replace(workload.case, batch_size=1)
    step = workload.training
    step.first()

    def prepare(size: int) -> Callable[[], Any]:
        step.loss = None  # with it goes what a failed step kept
        step.free_gradients()
        step.clips, step.targets = workload.batch(size).to(step.clips.dtype), targets(workload.case, size)
        return step

    return _measured(workload, "training_largest_batch", prepare)


def predicted(peaks: dict[int, int], room: int | None) -> int | None:
    """The batch at 90 % of where the line through the two largest ones that ran meets the memory; None without a line.

    `peaks` are bytes by batch, `room` those that this process may hold.
    """
    if room is None or len(peaks) < 2:
        return None
    (fewer, low), (more, high) = sorted(peaks.items())[-2:]
    per_clip = (high - low) / (more - fewer)
    return int(NEAR * (more + (room - high) / per_clip)) if per_clip > 0 else None


def _measured(workload: Workload, name: str, prepare: Callable[[int], Callable[[], Any]]) -> list[Measurement]:
    details = workload.what_ran()
    metric = get(name)
    if workload.case.compile or workload.case.graph:
        reason = "a compiled or recorded model would be made anew for batch after batch; use compile=false, graph=false"
        return metric.missing(reason, retry=False, details=details)
    peaks: dict[int, int] = {}
    passes = 2 if workload.device.type == "cuda" else 1  # libraries take their workspaces in the first

    def attempt(size: int) -> float | None:
        try:
            run = prepare(size)
            with memory.peak(workload.device) as peak:
                for _ in range(2 if size == 1 else passes):  # the first of all is slower than any other
                    start = time.perf_counter()
                    run()
                    workload.synchronize()
                    duration = passes * (time.perf_counter() - start)
            peaks[size] = peak.bytes
        except Exception as error:
            if not memory.ran_out(error):
                raise
            duration = None  # memory is freed below: until here the error keeps what the pass held
        run = None
        _free(workload)
        return duration

    workload.hold_flush()  # once memory is full there would be no room for it
    seconds = min(BUDGETS * workload.effort.budget, SHARE * workload.time_limit)
    room = memory.room(workload.device)
    result = search(attempt, seconds, precision=PRECISION, predict=lambda: predicted(peaks, room))
    if result is None:
        return metric.missing("out of memory at a batch of 1", retry=False, details=details)
    details |= {"bound": result.bound, "smallest_too_large": result.too_large, "tried": list(result.tried)}
    batch, throughput = metric.measures.values()
    measured = [batch.of([result.largest], details)]
    try:
        workload.effort = replace(workload.effort, fewest=min(FEWEST, workload.effort.fewest))
        runs, warm_up = workload.time(prepare(result.largest))
    except Exception as error:  # of any kind: the batch that was found is not lost with it
        failed = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        why = "out of memory" if memory.ran_out(error) else failed
        reason = f"{why} when a batch of {result.largest}, which fitted once, was repeated"
        return [*measured, throughput.absent(reason, details=details)]
    details = details | warm_up | {"batch_size": result.largest}
    return [*measured, throughput.of((result.largest * 1000 / run[-1] for run in runs), details)]


def _free(workload: Workload) -> None:
    windows.forget_constants()  # some are made for each batch
    gc.collect()
    if workload.device.type == "cuda":
        torch.cuda.empty_cache()
