"""Milliseconds of a forward pass by what its operators belong to; beside `operator_macs`, their multiply-adds.

Profiled, so the pass is slower than the one that `latency` times: shares are meant to be read, not the milliseconds.
On the CPU the time of each operator without the operators inside of it; on CUDA the time of the device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from harness.cost.metrics import register
from harness.cost.operators import group, groups_of
from harness.cost.workload import Workload
from records.groups import GROUPS
from records.record import Measurement, Quantity

TOTAL = "time_total"
MEASURES = (
    *(Quantity(f"time_{group}", "shared", f"time in {group}", "ms", "lower") for group in GROUPS),
    Quantity(TOTAL, "shared", "profiled pass", "ms", "lower"),
)
PASSES = 2  # in each round: a pass that something disturbed is then one of six in three processes
MARK, WHOLE = "module ", "whole pass"


@register("operator_share", *MEASURES, timed=True, order=6, seconds=lambda quick: 2.0)
def operator_share(workload: Workload) -> list[Measurement]:
    """A few profiled passes after one that is not; the groups of each sum to its total."""
    if workload.case.compile or workload.case.graph:
        reason = "compiled or recorded code has no operators to tell apart; use compile=false, graph=false"
        return [quantity.absent(reason) for quantity in MEASURES]
    samples: dict[str, list[float]] = {quantity.name: [] for quantity in MEASURES}
    with torch.inference_mode():
        workload.eager(workload.input)
        workload.synchronize()
        for _ in range(PASSES):
            for name, milliseconds in _one_pass(workload).items():
                samples[name].append(milliseconds)
    details = {
        "how": "torch.profiler: time of each operator without those inside of it"
        + (", on the device" if workload.device.type == "cuda" else ""),
        **workload.what_ran(),
    }
    return [quantity.of(samples[quantity.name], details) for quantity in MEASURES]


def _one_pass(workload: Workload) -> dict[str, float]:
    """Milliseconds by measurement name."""
    on_device = workload.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_device else [])
    inside = groups_of(workload.eager)
    with profile(activities=activities, acc_events=True) as profiler, _marked(workload.eager, inside):
        with record_function(WHOLE):
            workload.eager(workload.input)
        workload.synchronize()
    times = {quantity.name: 0.0 for quantity in MEASURES}
    for event in profiler.events():
        if event.device_type.name != "CPU":
            continue
        if event.name == WHOLE:
            times[TOTAL] = (event.device_time_total if on_device else event.cpu_time_total) / 1e3
        name = _module(event)
        if name is not None:
            duration = event.self_device_time_total if on_device else event.self_cpu_time_total
            kind = "rest" if event.name.startswith((MARK, WHOLE)) else group(inside[name], event.name)
            times[f"time_{kind}"] += duration / 1e3
    return times


def _module(event) -> str | None:
    """The name of the module in which an event happened, or None outside of the pass."""
    while event is not None:
        if event.name.startswith(MARK):
            return event.name.removeprefix(MARK)
        if event.name == WHOLE:
            return ""
        event = event.cpu_parent
    return None


@contextlib.contextmanager
def _marked(model: nn.Module, inside: dict[str, str]) -> Iterator[None]:
    """While open, the profile shows which module runs, where its group is not that of the module around it.

    The parts of an MLP are all in one group and get no hooks, nor do linear maps of a scheme, whose operators are known
    by name: with hooks on them another program would be profiled than is timed.
    """
    open_marks = []

    def enter(name: str) -> None:
        open_marks.append(record_function(MARK + name))
        open_marks[-1].__enter__()

    with contextlib.ExitStack() as hooks:
        for name, module in model.named_modules():
            parent = inside[name.rpartition(".")[0]]
            if name and (inside[name] == parent or (parent == "attention" and isinstance(module, nn.Linear))):
                continue
            hooks.enter_context(module.register_forward_pre_hook(lambda *_, name=name: enter(name)))
            hooks.enter_context(module.register_forward_hook(lambda *_: open_marks.pop().__exit__(None, None, None)))
        yield
