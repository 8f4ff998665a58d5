"""What a measuring process does: one case, metric after metric. Loaded once, by the process that the others are forked
from (`harness.cost.process`).
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from attention_zoo import cpu, kernels, schemes
from attention_zoo.kernels import KernelUnavailable
from backbones.family import families
from harness import precision
from harness.cost import memory, metrics
from harness.cost.build import unavailable
from harness.cost.workload import Workload
from harness.spec.case import Case
from harness.spec.effort import Effort
from records.record import Measurement

for registry in (kernels, schemes, metrics, families):
    registry.names()  # loads what they name here, so that no fork has to


@dataclass(frozen=True)
class Request:
    """A case, the timed metrics that are wanted of it, the file of its decoded clip, and which visit of it this is."""

    case: Case
    metrics: list[str]
    clip: str
    effort: Effort
    machine: str
    time_limit: float
    round: int = 1


def answer(request: Request) -> Iterator[tuple[str, list[Measurement]]]:
    """Yields each metric's name and measurements, up to one after which another process has to go on."""
    case = request.case
    chosen = sorted((metrics.get(name) for name in request.metrics), key=lambda metric: metric.order)
    details = {"machine": request.machine}
    reason = unavailable(case.device, case.dtype, case.kernel)
    if reason is not None:
        for metric in chosen:
            yield metric.name, metric.missing(reason, retry=False, details=details)
        return
    with contextlib.ExitStack() as held:  # entered and dropped, they would end at once
        held.enter_context(precision.exact())
        if case.forms == "pytorch":
            held.enter_context(cpu.off())
        yield from _measured(request, chosen, details)


def _measured(
    request: Request, chosen: list[metrics.Metric], details: dict[str, str]
) -> Iterator[tuple[str, list[Measurement]]]:
    case, reason = request.case, None
    if case.threads:
        torch.set_num_threads(case.threads)
    torch.backends.cudnn.benchmark = False
    if torch.device(case.device).index is not None:  # events are recorded where the current device works
        torch.cuda.set_device(case.device)
    memory.keep_freed(case.allocator)
    workload = Workload(case, request.clip, request.effort, request.machine, request.time_limit, request.round)
    free = memory.limit() if workload.device.type == "cpu" else None
    for metric in chosen:
        if reason is not None:  # what one metric lacked, memory or support, the next would lack too
            yield metric.name, metric.missing(reason, retry=False, details=details)
            continue
        try:
            yield metric.name, metric.run(workload)
        except Exception as error:
            why, retry = _reason(error, free)
            if retry:
                traceback.print_exc()
            yield metric.name, metric.missing(why, retry=retry, details=details)
            if context_lost(error):  # whatever comes after it in this process would fail with its words
                return
            reason = None if retry else why


def context_lost(error: Exception) -> bool:
    """Whether CUDA is of no more use to this process, as after an access to memory that is not there."""
    text = str(error)
    return ("CUDA error" in text or "cudaError" in text) and not memory.ran_out(error)


def unsupported(error: Exception) -> str:
    """Why a case cannot be measured here, in words."""
    return f"not supported: {' '.join(str(error).split())[:200]}"


def _reason(error: Exception, free: int | None) -> tuple[str, bool]:
    """Why there is no number, and whether another try could give one."""
    text = " ".join(str(error).split())
    if memory.ran_out(error):
        size = text.partition("ried to allocate ")[2].split(".  ")[0].split(" Error")[0].split(". ")[0]
        if size.endswith(" bytes"):
            size = f"{int(size.removesuffix(' bytes')) / 2**30:.1f} GiB"
        sizes = [f"one piece of {size}"] if size else []
        sizes += [f"{free / 2**30:.1f} GiB were free"] if free else []
        return "out of memory" + (f": {', '.join(sizes)}" if sizes else ""), False
    if isinstance(error, KernelUnavailable | NotImplementedError) or "not implemented for" in text:
        return unsupported(error), False
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        on = " on flex, which compiles itself; run it with compile=false" if "flex_attention" in text else ""
        return f"torch.compile failed{on}: {text.partition(' Set TORCHDYNAMO_VERBOSE')[0][:300]}", False
    return f"{type(error).__name__}: {text[:300]}", True
