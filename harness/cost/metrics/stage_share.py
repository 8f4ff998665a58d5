"""Milliseconds of a forward pass stage by stage, and the most memory that the process held in each.

Beside `activations`, which has the multiply-adds of each stage. A pass is stopped at the ends of each stage, so the
shares are meant to be read and not the milliseconds.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn

from harness.cost import memory
from harness.cost.metrics import register
from harness.cost.stages import REST, stages_of
from harness.cost.workload import Workload
from records.record import Measurement, Quantity

STAGE_TIME = Quantity("stage_time", "shared", "pass, stage by stage", "ms")
PASSES = 2  # of time, in each round


@register("stage_share", STAGE_TIME, timed=True, order=7, seconds=lambda quick: 2.0)
def stage_share(workload: Workload) -> list[Measurement]:
    """Passes for the time, then one for the memory, which is slower."""
    if workload.case.compile or workload.case.graph:
        reason = "compiled or recorded code has no stages to tell apart; use compile=false, graph=false"
        return [STAGE_TIME.absent(reason)]
    if not workload.eager.blocks():
        return [STAGE_TIME.absent("public code shows no blocks")]

    with torch.inference_mode():
        workload.eager(workload.input)
        passes = [_timed(workload) for _ in range(PASSES)]
        peaks = _peaks(workload)
    middle = {stage: sorted(times[stage] for times in passes)[PASSES // 2] for stage in passes[0]}
    details = {"parts_ms": middle, "peak_bytes": peaks, **workload.what_ran()}
    return [STAGE_TIME.of([sum(times.values()) for times in passes], details)]


def _timed(workload: Workload) -> dict[str, float]:
    """Milliseconds of each stage and of the rest, in one pass."""
    times: dict[str, float] = {}
    began: list[float] = []

    def now() -> float:
        workload.synchronize()
        return time.perf_counter() * 1e3

    def leave(stage: str) -> None:
        times[stage] = times.get(stage, 0.0) + now() - began.pop()

    start = now()
    with _at_stages(workload.eager, lambda stage: began.append(now()), leave):
        workload.eager(workload.input)
    return times | {REST: max(0.0, now() - start - sum(times.values()))}


def _peaks(workload: Workload) -> dict[str, int]:
    """The most bytes held in each stage above what was held before the pass: of the allocator, or resident."""
    on_cuda, peaks = workload.device.type == "cuda", {}
    watches: list[memory.Peak] = []

    def enter(stage: str) -> None:
        if on_cuda:
            torch.cuda.reset_peak_memory_stats(workload.device)
        else:
            watches.append(memory.Peak().__enter__())

    def leave(stage: str) -> None:
        if on_cuda:
            held = torch.cuda.max_memory_allocated(workload.device)
        else:
            watch = watches.pop()
            watch.__exit__(None, None, None)
            held = watch.bytes
        peaks[stage] = max(peaks.get(stage, 0), held - before)

    with contextlib.nullcontext() if on_cuda else memory.freed_at_once():
        memory.release()
        before = torch.cuda.memory_allocated(workload.device) if on_cuda else memory.resident()
        with _at_stages(workload.eager, enter, leave):
            workload.eager(workload.input)
    return peaks


@contextlib.contextmanager
def _at_stages(model: nn.Module, enter: Callable[[str], None], leave: Callable[[str], None]) -> Iterator[None]:
    """While open, both are called with the stage around each of its modules."""
    modules = dict(model.named_modules())
    with contextlib.ExitStack() as hooks:
        for stage, names in stages_of(model).items():
            for name in names:
                hooks.enter_context(modules[name].register_forward_pre_hook(lambda *_, stage=stage: enter(stage)))
                hooks.enter_context(modules[name].register_forward_hook(lambda *_, stage=stage: leave(stage)))
        yield
