"""Bytes that a forward pass needs at its peak, weights included.

On CUDA the peak of torch's allocator, input included. On the CPU the growth of the process's resident set from just
before the model is built, input excluded: the process is fresh, and libraries and input are loaded before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from attention_zoo import kernels
from harness.cost import memory
from harness.cost.build import build
from harness.cost.metrics import register
from harness.cost.workload import Workload
from records.record import Measurement, Quantity

PEAK_MEMORY = Quantity("peak_memory", "sized", "peak memory", "bytes", "lower")


@register("peak_memory", PEAK_MEMORY, timed=True, order=0)
def peak_memory(workload: Workload) -> list[Measurement]:
    """Runs before the other timed metrics, since it must see the process without a model."""
    return measured(workload, PEAK_MEMORY)


def measured(
    workload: Workload,
    quantity: Quantity,
    run: Callable[[Workload], object] | None = None,
    facts: dict[str, Any] | None = None,
) -> list[Measurement]:
    """What `run` needs at its peak, by default a forward pass; `facts` go into the details."""
    run, surroundings = run or _forward, (facts or {}) | workload.what_ran()
    on_cuda = workload.device.type == "cuda"
    if not on_cuda and (workload.case.compile or workload.kernel == "flex"):
        cure = "use compile=false" if workload.case.compile else "kernel flex is compiled when it runs; use another"
        reason = f"{memory.COMPILERS_OWN}; {cure}"
        return [quantity.absent(reason, details=surroundings)]
    if on_cuda:
        peak, details = memory.allocated(workload.device, lambda: run(workload))
    else:
        _exercise_libraries(workload)
        # The model is built there: its weights belong to the growth.
        peak, details, _ = memory.growth(lambda: workload.model, lambda: run(workload))
    if workload.case.compile:
        details["holds"] = "the weights are in it twice: as constants of the compiled program, and of the eager model"
    weights = [*workload.eager.parameters(), *workload.eager.buffers()]
    details["weights_bytes"] = sum(t.numel() * t.element_size() for t in weights)
    return [quantity.of([peak], details | surroundings)]


def _forward(workload: Workload) -> None:
    with torch.inference_mode():
        workload.model(workload.input)


def _exercise_libraries(workload: Workload) -> None:
    """Import and run everything once in miniature, so that libraries and threads are there before the baseline."""
    build(workload.case, device="meta")
    with torch.inference_mode():
        x = workload.input[:1, :, :2, :16, :16]
        y = torch.nn.functional.conv3d(x, torch.ones(16, 3, 1, 1, 1, dtype=x.dtype)).flatten(2).mT
        y = torch.nn.functional.gelu(torch.nn.functional.layer_norm(y @ y.mT @ y, (16,)))
        kernels.attend(y[:, None], y[:, None], y[:, None], kernel=workload.case.kernel)
