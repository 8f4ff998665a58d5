"""A case made ready to run: its clip as a tensor, its model with weights, and one timed series that several metrics
share.

Lives in the measuring process (harness/child.py). What is expensive is made on first use, so that a metric can look at
the process before the model is there.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from attention_zoo import kernels
from harness import provenance
from harness.build import build
from harness.case import Case
from harness.measure import Effort
from harness.video import normalise

STEADY = 0.05  # a warm-up has settled when its last run is this close to the median of its last three
FLUSH_BYTES = 256 * 2**20  # larger than any L2 cache: written between runs, so that each one starts cold


@dataclass(frozen=True)
class Series:
    """Milliseconds of each forward pass, and how they were taken."""

    samples: tuple[float, ...]
    details: dict[str, Any]


class Workload:
    """The model and input of one case on its device."""

    def __init__(self, case: Case, clip: str | Path, effort: Effort, machine: str):
        self.case, self.effort, self.machine = case, effort, machine
        self.device, self.dtype = torch.device(case.device), getattr(torch, case.dtype)
        self.clip_file = clip
        self.compile_seconds: float | None = None

    @cached_property
    def input(self) -> Tensor:
        """The decoded clip, once per element of the batch."""
        clip = normalise(np.load(self.clip_file)).to(self.device, self.dtype)
        return clip.expand(self.case.batch_size, *clip.shape).contiguous()

    @cached_property
    def eager(self) -> nn.Module:
        return build(self.case)

    @cached_property
    def model(self) -> Callable[[Tensor], Tensor]:
        """The model as it is measured: compiled, and called once, if the case says so."""
        if not self.case.compile:
            return self.eager
        start = time.perf_counter()
        compiled = torch.compile(self.eager)
        with torch.inference_mode():
            compiled(self.input)
        self.synchronize()
        self.compile_seconds = time.perf_counter() - start
        return compiled

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @cached_property
    def kernel(self) -> str:
        """The kernel that the case's choice stands for here."""
        return kernels.resolve(self.case.kernel, self.device, self.dtype)

    @cached_property
    def series(self) -> Series:
        """Warm up until the time has settled, then take samples for as long as the effort says."""
        kernel, model = self.kernel, self.model
        operators, logits = self._observe()
        with torch.inference_mode():
            samples, warm_up = self._cuda_runs(model) if self.device.type == "cuda" else self._cpu_runs(model)
        details = {
            "kernel_requested": self.case.kernel,
            "kernel": kernel,
            "operators": operators,
            "compile": self.case.compile,
            "finite_logits": bool(torch.isfinite(logits).all()),
            **warm_up,
            **self.surroundings(),
        }
        if self.compile_seconds is not None:
            details["compile_seconds"] = round(self.compile_seconds, 3)
        return Series(tuple(samples), details)

    def _observe(self) -> tuple[list[str], Tensor]:
        """One forward pass that is not timed: the attention operators that the dispatcher sees, and the logits."""
        log = _OperatorLog()
        # flex is compiled by itself, below the level at which operators are seen, and not under a dispatch mode
        with torch.no_grad(), contextlib.nullcontext() if self.kernel == "flex" else log:
            logits = self.eager(self.input)
        fused = sorted(name for name in log.names if "attention" in name)
        if self.kernel == "flex":
            return ["flex_attention"], logits
        return fused or (["explicit softmax"] if any("softmax" in name for name in log.names) else ["none"]), logits

    def surroundings(self) -> dict[str, Any]:
        """Where this process measures; part of every timed measurement."""
        return {"machine": self.machine, "started": provenance.now(), **provenance.of_torch(self.case.device)}

    def _cpu_runs(self, model: Callable[[Tensor], Tensor]) -> tuple[list[float], dict[str, Any]]:
        effort, warm_up = self.effort, []

        def one() -> float:
            start = time.perf_counter_ns()
            model(self.input)
            return (time.perf_counter_ns() - start) / 1e6

        start = time.perf_counter()
        while not _settled(warm_up) and (len(warm_up) < 2 or time.perf_counter() - start < effort.warm_up_seconds):
            warm_up.append(one())
        samples = []
        start = time.perf_counter()
        while not effort.enough(len(samples), time.perf_counter() - start):
            samples.append(one())
        return samples, {"warm_up": len(warm_up), "settled": _settled(warm_up)}

    def _cuda_runs(self, model: Callable[[Tensor], Tensor]) -> tuple[list[float], dict[str, Any]]:
        """Events around each pass, the L2 cache overwritten between passes, one wait per batch of ten."""
        effort = self.effort
        flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=self.device)

        def ten() -> list[float]:
            pairs = []
            for _ in range(10):
                begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                flush.zero_()
                begin.record()
                model(self.input)
                end.record()
                pairs.append((begin, end))
            self.synchronize()
            return [begin.elapsed_time(end) for begin, end in pairs]

        start = time.perf_counter()
        warm_up = ten()
        while (spent := time.perf_counter() - start) < 1 or (not _settled(warm_up) and spent < effort.warm_up_seconds):
            warm_up += ten()
        samples = []
        start = time.perf_counter()
        while not effort.enough(len(samples), time.perf_counter() - start):
            samples += ten()
        return samples, {"warm_up": len(warm_up), "settled": _settled(warm_up), "l2_flush_bytes": FLUSH_BYTES}


class _OperatorLog(TorchDispatchMode):
    """Notes the names of the operators that reach a backend."""

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))


def _settled(runs: list[float]) -> bool:
    if len(runs) < 3:
        return False
    median = statistics.median(runs[-3:])
    return abs(runs[-1] - median) <= STEADY * median
