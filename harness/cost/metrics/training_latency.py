"""Milliseconds of one training step: forward in train mode, cross-entropy, backward, AdamW, gradients freed."""

from __future__ import annotations

import time
from statistics import median

import torch

from harness.cost.metrics import register
from harness.cost.workload import Workload, compiled
from records.record import Measurement, Quantity

TRAINING_LATENCY = Quantity("training_latency", "timed", "training step", "ms", "lower")


@register("training_latency", TRAINING_LATENCY, timed=True, order=1, process="training")
def training_latency(workload: Workload) -> list[Measurement]:
    """Every sample after the warm-up is a whole step; the medians of its three parts are details.

    Raises: KernelUnavailable, where the case's kernel has no backward pass.
    """
    step = workload.training
    start = time.perf_counter()
    step()  # compiles, if the case says so
    workload.synchronize()
    first = time.perf_counter() - start
    runs, warm_up = workload.time(*step.phases.values())
    finite = bool(torch.isfinite(step.loss))
    ran = workload.operators(step.eagerly) | workload.device_kernels(step)
    parts = [[end - begin for begin, end in zip((0.0, *run), run, strict=False)] for run in runs]
    details = {
        **ran,
        "compile": workload.case.compile,
        **({"weights": "float32, autocast"} if workload.case.mixed else {}),
        "parts_ms": {name: median(part) for name, part in zip(step.phases, zip(*parts, strict=True), strict=True)},
        "optimizer": step.optimizer_text,
        "finite_loss": finite,
        **warm_up,
        **workload.what_ran(),
    }
    if workload.case.compile:
        details |= {"compile_seconds": round(first, 3), **compiled()}
    return [TRAINING_LATENCY.of((run[-1] for run in runs), details)]
