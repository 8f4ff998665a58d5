"""The memory of this process: how much it holds, at most held and may hold, and what becomes of freed blocks.

All of it is for the measuring process on the CPU. What only Linux or only glibc can do is left out elsewhere, and the
measurement says how it was taken.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch

from harness.cost import card

if sys.platform == "linux":
    import resource

Result = TypeVar("Result")

SHARE = 0.9  # of what is free: the rest keeps the machine alive
OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "Cannot allocate memory",
    "bad_alloc",
    "could not create a memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
)
NO_ENGINE = "unable to find an engine"  # cuDNN's words for a convolution it has no code for, and for no memory left
FULL = 0.02  # of a card free, below which they mean memory
COMPILERS_OWN = "on the CPU the memory of the compiler cannot be told from the model's"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def limit() -> int | None:
    """Let this process fail rather than the machine swap: its data may grow by most of what is free.

    Returns the free bytes, or None where no limit can be set.
    """
    if sys.platform != "linux":
        return None
    free = min([psutil.virtual_memory().available, *_control_group_free()])
    used = _status("VmData")
    allowed = used + int(free * SHARE)
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    allowed = allowed if hard == resource.RLIM_INFINITY else min(allowed, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, hard))
    return free


def room(device: torch.device) -> int | None:
    """Bytes that this process may hold at most: of the device, or resident under `limit`; None where nothing says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    if sys.platform != "linux":
        return None
    allowed = resource.getrlimit(resource.RLIMIT_DATA)[0]
    return None if allowed == resource.RLIM_INFINITY else allowed - _status("VmData") + resident()


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out; libraries say so in several ways."""
    text = " ".join(str(error).split())
    if NO_ENGINE in text.lower() and torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return free < FULL * total
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or any(sign in text for sign in OUT_OF_MEMORY)


def _control_group_free() -> list[int]:
    """What a container's limit leaves, where there is one (control groups version 2, then 1)."""
    for folder, limit_file, usage_file, cache in (
        ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with contextlib.suppress(OSError, ValueError, StopIteration):
            most = int(Path(folder, limit_file).read_text())
            usage = int(Path(folder, usage_file).read_text())
            lines = Path(folder, "memory.stat").read_text().splitlines()
            reclaimable = next(int(line.split()[1]) for line in lines if line.startswith(f"{cache} "))
            return [max(0, most - usage + reclaimable)]
    return []


_thresholds = (32 * 2**20, 64 * 2**20)  # glibc's own largest thresholds: larger blocks are mapped afresh


def keep_freed(allocator: str = "default") -> None:
    """Let freed blocks be used again, as glibc does by itself once some were freed; fixed, so that it never varies.

    With "keep" blocks of any size are: no tensor below 2 GiB is mapped afresh, which a program that makes many large
    ones would spend up to half of its time on.
    """
    global _thresholds
    if allocator == "keep":
        _thresholds = (2**31 - 1, 2**31 - 1)
    _mallopt(M_MMAP_THRESHOLD, _thresholds[0])
    _mallopt(M_TRIM_THRESHOLD, _thresholds[1])


@contextlib.contextmanager
def freed_at_once() -> Iterator[None]:
    """Give freed blocks back at once, so that what is resident is what is in use.

    Without this the peak of one model differs by a fifth from run to run, with it by a hundredth; a third slower.
    """
    _mallopt(M_MMAP_THRESHOLD, 64 * 2**10)
    try:
        yield
    finally:
        keep_freed()


def _mallopt(parameter: int, value: int) -> None:
    if sys.platform == "linux":
        function = getattr(ctypes.CDLL(None), "mallopt", None)  # not every C library has it
        if function is not None:
            function(parameter, value)


def release() -> None:
    """Give memory that is free by now back to the system, where the C library can be asked to."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def resident() -> int:
    """Bytes of this process that are in memory now."""
    return _status("VmRSS") if sys.platform == "linux" else psutil.Process().memory_info().rss


class Peak:
    """The largest resident set while a block runs: `bytes`, and `how` it was seen."""

    def __enter__(self) -> Peak:
        self._reset = sys.platform == "linux" and _reset_high_water_mark()
        self.how = "high-water mark of the resident set" if self._reset else "resident set sampled every 2 ms"
        self.bytes, self._stop = resident(), threading.Event()
        if not self._reset:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self.bytes = max(self.bytes, resident())

    def __exit__(self, *exception) -> None:
        if self._reset:
            self.bytes = _status("VmHWM")
            return
        self._stop.set()
        self._thread.join()
        self.bytes = max(self.bytes, resident())


def growth(prepare: Callable[[], Result], run: Callable[[], object]) -> tuple[int, dict[str, Any], Result]:
    """The most that the resident set grows from just before `prepare` while `run` goes on, how it was seen, and what
    was prepared, whose own peak does not count."""
    with freed_at_once():
        release()
        baseline = resident()
        prepared = prepare()
        release()
        with Peak() as usage:
            run()
    return max(0, usage.bytes - baseline), {"how": usage.how, "baseline_bytes": baseline}, prepared


def allocated(device: torch.device, run: Callable[[], object]) -> tuple[int, dict[str, Any]]:
    """The peak of torch's allocator on CUDA in the second of two runs, and how it was seen: libraries take their
    workspaces in the first."""
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
    details = {"how": "peak of torch's allocator", "reserved_bytes": torch.cuda.max_memory_reserved(device)}
    return torch.cuda.max_memory_allocated(device), details | card.memory(device)


@contextlib.contextmanager
def peak(device: torch.device) -> Iterator[Peak]:
    """The most that is held while a block runs, as `bytes` of the result: of the device's allocator, or resident."""
    if device.type != "cuda":
        with Peak() as usage:
            yield usage
        return
    torch.cuda.reset_peak_memory_stats(device)
    usage = Peak()
    yield usage
    usage.bytes = torch.cuda.max_memory_reserved(device)


def _status(field: str) -> int:
    with open("/proc/self/status") as lines:
        for line in lines:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise KeyError(f"/proc/self/status has no {field}")


def _reset_high_water_mark() -> bool:
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:  # some containers do not allow it
        return False
    return True
