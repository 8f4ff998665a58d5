"""A case made ready to run: its clip as a tensor, its model with weights, and one timed series that several metrics
share.

What a time is made of, and what is done about it. A program waits for one of three things: arithmetic (products of
matrices, at so many multiply-adds a second), memory (bytes read and written, at so many a second), or whoever launches
the next operator (Python and the framework, some microseconds each). Which of them it is depends on the shapes, so a
ratio of times at one clip says little about another. On top of that the machine has a state. Clocks fall when a chip
was idle and rise under load, or fall when it is hot: runs are thrown away until their time stands still. Caches hold
what was used last, so a second pass over the same numbers is faster than any real one: on a GPU the cache is
overwritten between runs, on a CPU a clip's tensors are larger than it. The allocator maps large blocks afresh or
keeps them, which can be half of a CPU's time: `harness.cost.memory` fixes which. And a GPU works while Python runs
ahead: its times are taken by events on the device, ten runs at a time, and the wait at the end tells whether the device
or the launching was the slower one. The rest is the day: other programs, where memory happens to lie. It differs from
process to process, which is why a case is visited several times, in turn with the others, and why the raw samples are
kept.

Lives in the measuring process (`harness.cost.child`). What is expensive is made on first use, so that a metric can look
at the process before the model is there.
"""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._inductor.config
import torch.profiler
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from attention_zoo import fastest, kernels
from harness.clips.transforms import normalise
from harness.cost import beside, card, memory
from harness.cost.build import build
from harness.cost.facts import of_torch
from harness.cost.training_step import TrainingStep, targets
from harness.spec.case import Case
from harness.spec.effort import Effort
from records import provenance

WINDOW = 6  # runs that a warm-up is judged by
STEADY = 0.05  # a warm-up has settled when the median of its last three runs is this close to that of the three before
FLUSH_BYTES = 256 * 2**20  # larger than the L2 cache of any card of today: written between runs, which then start cold
ATTENTION = re.compile(r"attention|attn|flash|fmha|sdpa|flex|softmax|cutlassF", re.IGNORECASE)  # in a kernel's name
CAPTURE_WARM_UP = 3  # passes: libraries choose their code and take their workspaces before anything is recorded
NAMED = 3  # of the longest running kernels, where no name is of attention

TOGETHER_MS = 1000.0  # runs are launched in tens, but not for longer than about this without a look at the clock

Run = tuple[float, ...]
"""Milliseconds from the start of one run to the end of each of its phases."""


@dataclass(frozen=True)
class Series:
    """Milliseconds of each forward pass, and how they were taken."""

    samples: tuple[float, ...]
    details: dict[str, Any]


class Workload:
    """The model and input of one case on its device."""

    def __init__(
        self,
        case: Case,
        clip: str | Path,
        effort: Effort,
        machine: str,
        time_limit: float = math.inf,
        round: int = 1,
    ):
        self.case, self.effort, self.machine, self.round = case, effort, machine, round
        self.device, self.dtype = torch.device(case.device), getattr(torch, case.dtype)
        self.clip_file, self.time_limit = clip, time_limit
        self.compile_seconds: float | None = None
        self._flush: Tensor | None = None

    @cached_property
    def input(self) -> Tensor:
        return self.batch(self.case.batch_size)

    def batch(self, size: int) -> Tensor:
        """The decoded clip, once per element of a batch."""
        clip = normalise(np.load(self.clip_file)).to(self.device, self.dtype)
        return clip.expand(size, *clip.shape).contiguous()

    @cached_property
    def eager(self) -> nn.Module:
        return build(self.case)

    @cached_property
    def model(self) -> Callable[[Tensor], Tensor]:
        """The model as it is measured: compiled and called once, and a CUDA graph of it, if the case says so."""
        model: Callable[[Tensor], Tensor] = self.eager
        if self.case.compile:
            start = time.perf_counter()
            model = frozen(self.eager, self.input)
            self.synchronize()
            self.compile_seconds = time.perf_counter() - start
        return captured(model, self.input) if self.case.graph else model

    @cached_property
    def training(self) -> TrainingStep:
        """A step of training on a model of its own, so that no other metric meets trained weights.

        Raises: KernelUnavailable, where the case's kernel has no backward pass.
        """
        if self.case.graph:
            raise NotImplementedError("a step of training is no CUDA graph here; use graph=false")
        kernels.resolve(self.case.kernel, self.device, self.dtype, backward=True)
        case, clips = self.case, self.input
        if case.mixed and self.dtype not in (torch.bfloat16, torch.float16):
            raise NotImplementedError(f"autocast to {case.dtype}; use dtype=bfloat16 or float16, or mixed=false")
        model = build(replace(case, dtype="float32") if case.mixed else case)
        return TrainingStep(
            model,
            clips.float() if case.mixed else clips,
            targets(case, case.batch_size),
            compiled=case.compile,
            narrow=self.dtype if case.mixed else None,
        )

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
        model, clips = self.model, self.input
        scores: Tensor | None = None

        def run() -> None:
            nonlocal scores
            scores = model(clips)

        with torch.inference_mode():
            runs, warm_up = self.time(run)
        with torch.no_grad():
            ran = self.operators(lambda: self.eager(clips)) | self.device_kernels(lambda: model(clips))
        details = {
            **ran,
            **({"ways": ways} if (ways := fastest.chosen()) else {}),
            "compile": self.case.compile,
            "finite_logits": bool(torch.isfinite(scores).all()),
            **warm_up,
            **self.what_ran(),
        }
        if self.compile_seconds is not None:
            details |= {"compile_seconds": round(self.compile_seconds, 3), "frozen": True, **compiled()}
        if self.case.graph:
            details["graph"] = True
        return Series(tuple(run[-1] for run in runs), details)

    def operators(self, run: Callable[[], Tensor]) -> dict[str, list[str]]:
        """The attention operators that the dispatcher sees in a pass of its own, in the first of the visits alone: they
        follow from shapes, and a pass of a large model takes as long as a sample.

        Taken after the times, which are not lost where it runs out of memory.
        """
        return {"operators": self._observed(run)} if self.round == 1 else {}

    def _observed(self, run: Callable[[], Tensor]) -> list[str]:
        if self.kernel == "flex":  # compiled by itself, below the level at which operators are seen
            return ["flex_attention"]
        log = _OperatorLog()
        try:
            with log:
                run()
        except Exception as error:
            if not memory.ran_out(error):
                raise
            return ["not observed: out of memory"]
        operators = sorted(name for name in log.names if "attention" in name or "flash" in name)
        if any("softmax" in name and "log_softmax" not in name for name in log.names):
            operators.append("explicit softmax")  # in some of the blocks only, where fused operators stand before it
        return operators or ["none"]

    def device_kernels(self, run: Callable[[], Any]) -> dict[str, list[str]]:
        """What the device itself says that it ran in one pass of the timed program, on CUDA; empty elsewhere.

        Unlike the operators of the eager model this is so of compiled programs and of flex too.
        """
        if self.device.type != "cuda":
            return {}
        try:
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
                run()
                self.synchronize()
        except Exception as error:
            if not memory.ran_out(error):
                raise
            return {"device_kernels": ["not observed: out of memory"]}
        return {"device_kernels": _attention_kernels(profiler.events())}

    def what_ran(self) -> dict[str, Any]:
        """The kernel of the model, asked for and chosen, and `surroundings`; part of every measurement of a model."""
        return {"kernel_requested": self.case.kernel, "kernel": self.kernel, **self.surroundings()}

    def surroundings(self) -> dict[str, Any]:
        """Where this process measures; part of every timed measurement."""
        return {"machine": self.machine, "started": provenance.now(), **of_torch(self.case.device)}

    def time(self, *phases: Callable[[], Any]) -> tuple[list[Run], dict[str, Any]]:
        """Warm up until the time has settled, then take samples for as long as the effort says.

        Each run calls the phases in turn and is the milliseconds from its start to the end of each; the last is its
        whole time. Returns the runs after the warm-up, and how the warm-up went.
        """
        return self._cuda_runs(phases) if self.device.type == "cuda" else self._cpu_runs(phases)

    def _cpu_runs(self, phases: Sequence[Callable[[], Any]]) -> tuple[list[Run], dict[str, Any]]:
        effort, warm_up = self.effort, []

        def once() -> Run:
            start, ends = time.perf_counter_ns(), []
            for phase in phases:
                phase()
                ends.append((time.perf_counter_ns() - start) / 1e6)
            return tuple(ends)

        start = time.perf_counter()
        while not _settled(warm_up) and (len(warm_up) < 2 or time.perf_counter() - start < effort.warm_up_seconds):
            warm_up.append(once())
        runs = []
        start = time.perf_counter()
        with beside.Watch() as watch:
            while not effort.enough(len(runs), time.perf_counter() - start):
                runs.append(once())
        # A warm-up of fewer runs than the rule looks at, of a slow model, is judged with the first samples, if they do.
        judged = [*warm_up, *runs][: max(len(warm_up), WINDOW)]
        settled = {"settled": _settled(judged)} if len(judged) >= WINDOW else {}
        return runs, {"warm_up": len(warm_up), **settled, **watch.details}

    def _cuda_runs(self, phases: Sequence[Callable[[], Any]]) -> tuple[list[Run], dict[str, Any]]:
        """Events around each phase, the L2 cache overwritten between runs, one wait for up to ten of them.

        `launch_share` is 1 less what the device still had to do once the host had launched all runs, as a share of one
        run. Near 1 the device waited for the host, and the times are those of Python and of launches. The time of the
        launches themselves would not tell: with a thousand of them ahead of the device the host waits too.
        """
        effort, flush, before = self.effort, self.hold_flush(), card.state(self.device)
        waits = []  # milliseconds, after each group of runs

        def some(count: int) -> list[Run]:
            events = []
            for _ in range(count):
                marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(phases) + 1)]
                flush.zero_()
                marks[0].record()
                for phase, end in zip(phases, marks[1:], strict=True):
                    phase()
                    end.record()
                events.append(marks)
            launched = time.perf_counter()
            self.synchronize()
            waits.append(1e3 * (time.perf_counter() - launched))
            return [tuple(begin.elapsed_time(end) for end in ends) for begin, *ends in events]

        start = time.perf_counter()
        warm_up = some(1)
        while (spent := time.perf_counter() - start) < 1 or (not _settled(warm_up) and spent < effort.warm_up_seconds):
            warm_up += some(_together(warm_up))
        runs, together = [], _together(warm_up)
        del waits[:]
        start = time.perf_counter()
        while not effort.enough(len(runs), time.perf_counter() - start):
            runs += some(together)
        share, after = (
            1 - statistics.median(waits) / statistics.median(run[-1] for run in runs),
            card.state(self.device),
        )
        return runs, {
            "warm_up": len(warm_up),
            "settled": _settled(warm_up),
            "l2_flush_bytes": flush.numel(),
            "launch_share": round(max(0.0, share), 3),
            "card": {"before": before, "after": after},
            "disturbed": card.disturbed(before, after),
        }

    def hold_flush(self) -> Tensor | None:
        """What is written over the L2 cache between runs on CUDA, allocated now at the latest."""
        if self._flush is None and self.device.type == "cuda":
            cache = torch.cuda.get_device_properties(self.device).L2_cache_size
            self._flush = torch.empty(max(FLUSH_BYTES, 2 * cache), dtype=torch.int8, device=self.device)
        return self._flush


def captured(model: Callable[[Tensor], Tensor], clips: Tensor) -> Callable[[Tensor], Tensor]:
    """The launches of a forward pass on these very clips, recorded once and replayed without Python.

    Raises: NotImplementedError, off CUDA.
    """
    if clips.device.type != "cuda":
        raise NotImplementedError(f"a CUDA graph needs device=cuda, not {clips.device.type}; use graph=false")
    side = torch.cuda.Stream(clips.device)
    side.wait_stream(torch.cuda.current_stream(clips.device))
    with torch.cuda.stream(side), torch.inference_mode():
        for _ in range(CAPTURE_WARM_UP):
            model(clips)
    torch.cuda.current_stream(clips.device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.inference_mode():
        scores = model(clips)

    def replay(again: Tensor) -> Tensor:
        assert again is clips, "a graph reads the memory that it was recorded on"
        graph.replay()
        return scores

    return replay


def frozen(model: nn.Module, clips: Tensor) -> Callable[[Tensor], Tensor]:
    """The model compiled for inference on such clips, and called once.

    Frozen: weights become constants of the graph, packed once for the machine.
    """
    compiled = torch.compile(model)
    with torch._inductor.config.patch(freezing=True), torch.inference_mode():
        compiled(clips)
    return compiled


class _OperatorLog(TorchDispatchMode):
    """Notes the names of the operators that reach a backend, of the program as it runs without it."""

    only_watches = True  # to attention_zoo.dispatch

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))


def _attention_kernels(events: Iterable[Any]) -> list[str]:
    """The names of kernels that are of attention; without one, of those that took longest."""
    times: dict[str, float] = {}
    for event in events:
        if event.device_type.name == "CUDA" and not getattr(event, "is_user_annotation", False):
            times[event.name] = times.get(event.name, 0.0) + event.time_range.elapsed_us()
    named = sorted(name for name in times if ATTENTION.search(name))
    longest = sorted(times, key=times.get, reverse=True)[:NAMED]
    return [name[:120] for name in named or longest] or ["none"]


def compiled() -> dict[str, int]:
    """What this process compiled: graphs, the breaks between them, and how many of them were found in a cache which all
    cases of a machine share, whose seconds are not of making them.
    """
    counters = torch._dynamo.utils.counters
    return {
        "graphs": counters["stats"]["unique_graphs"],
        "graph_breaks": sum(counters["graph_break"].values()),
        "compiled_before": counters["inductor"]["fxgraph_cache_hit"],
    }


def _together(runs: list[Run]) -> int:
    """How many runs the device gets before it is waited for: ten, fewer of such that take long."""
    return max(1, min(10, int(TOGETHER_MS / runs[-1][-1])))


def _settled(runs: list[Run]) -> bool:
    """Whether the running median stands still: of the last three runs against the three before."""
    if len(runs) < WINDOW:
        return False
    times = [run[-1] for run in runs[-WINDOW:]]
    before, now = statistics.median(times[: WINDOW // 2]), statistics.median(times[WINDOW // 2 :])
    return abs(now - before) <= STEADY * before
