"""What this machine can do at best, measured beside each case: the rates of a large matrix product and a large copy.

In the dtype, on the device and with the threads of the case. Reports set the rates of a model against them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from harness.cost.metrics import register
from harness.cost.workload import Workload
from records.record import Measurement, Quantity

SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices
COPIED = {"cpu": 256 * 2**20, "cuda": 2**30}  # bytes; larger than any cache
QUICK_SIDE, QUICK_COPIED = 512, 16 * 2**20
REPEATS, FEWEST, SECONDS = 9, 3, 5.0
WARM_UP_SECONDS = 0.5  # of products: behind other metrics a GPU's clock has fallen, and a low ceiling flatters a model
MATMUL = Quantity("matmul_ceiling", "timed", "matmul ceiling", "MAC/s", "higher")
COPY = Quantity("copy_ceiling", "timed", "copy ceiling", "bytes/s", "higher")


@register("ceilings", MATMUL, COPY, timed=True, order=7, seconds=lambda quick: 2.0)
def ceilings(workload: Workload) -> list[Measurement]:
    """The dtype, device and threads are those of the case. A copy reads and writes each byte: it counts twice."""
    quick = workload.effort.quick
    kind = workload.device.type
    side = QUICK_SIDE if quick else SIDE[kind]
    size = (QUICK_COPIED if quick else COPIED[kind]) // workload.dtype.itemsize
    generator = torch.Generator(workload.device).manual_seed(workload.case.seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=workload.device, dtype=workload.dtype)

    with torch.inference_mode():
        a, b, product = random(side, side), random(side, side), random(side, side)
        start = time.perf_counter()
        while not quick and time.perf_counter() - start < WARM_UP_SECONDS:
            torch.mm(a, b, out=product)
            workload.synchronize()
        multiply = _seconds(lambda: torch.mm(a, b, out=product), workload)
        source, target = random(side, size // side), random(side, size // side)
        copy = _seconds(lambda: target.copy_(source), workload)
    moved = 2 * source.numel() * source.element_size()
    surroundings = {"kernel": None, **workload.surroundings()}  # no attention runs here
    done = (MATMUL, side**3, multiply, f"product of two {side}x{side} matrices")
    moved = (COPY, moved, copy, f"copy of {moved // 2} bytes, read and written")
    return [
        quantity.of((work / s for s in seconds), {"how": how, "best": work / min(seconds), **surroundings})
        for quantity, work, seconds, how in (done, moved)
    ]


def _seconds(work: Callable[[], object], workload: Workload) -> list[float]:
    """Of each repetition after two that are not counted; fewer of them where one takes long."""

    def on_cpu() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    def on_cuda() -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    timed = on_cuda if workload.device.type == "cuda" else on_cpu
    timed(), timed()
    times: list[float] = []
    while len(times) < FEWEST or (len(times) < REPEATS and sum(times) < SECONDS):
        times.append(timed())
    return times
