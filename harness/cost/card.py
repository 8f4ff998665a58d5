"""A GPU as its driver sees it, read by the package nvidia-ml-py where it is installed: a clock that fell, or a program
beside ours, explains a time that nothing else does.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

import torch

from harness.packages import late

NOT_INSTALLED = "the package nvidia-ml-py, which reads it, is not installed"
THROTTLES = {  # bits of nvmlDeviceGetCurrentClocksEventReasons that slow a card down; 1 is idle, 2 a clock that was set
    0x4: "power cap", 0x8: "hardware slowdown", 0x10: "sync boost", 0x20: "software thermal",
    0x40: "hardware thermal", 0x80: "hardware power brake",
}  # fmt: skip
USUAL = "power cap"  # a large model keeps a card at the power that it may take: no reason to measure again
PROGRAMS, ERRORS = "other programs ran on the card", "the card's memory erred"


def handle(device: torch.device) -> tuple[Any, Any]:
    """The package and its handle of a card. Raises: ImportError, or the package's NVMLError.

    By the bus, which numbers devices alike for torch and NVML whatever CUDA_VISIBLE_DEVICES says.
    """
    pynvml = late("pynvml")
    pynvml.nvmlInit()
    properties = torch.cuda.get_device_properties(device)
    bus = f"{properties.pci_domain_id:08x}:{properties.pci_bus_id:02x}:{properties.pci_device_id:02x}.0"
    return pynvml, pynvml.nvmlDeviceGetHandleByPciBusId(bus.encode())


def state(device: torch.device) -> dict[str, Any]:
    """Clocks, power, temperature, what slows it down, memory, its errors, whether it is a part of a card (MIG), and
    other programs; empty off CUDA. What a card does not tell, as parts of one tell no power, is left out.
    """
    if device.type != "cuda":
        return {}
    try:
        nvml, card = handle(device)
    except ImportError:
        return {"unknown": NOT_INSTALLED}
    except Exception as error:  # NVMLError, whose class is in the package
        return {"unknown": str(error)}
    reads = {
        "sm_mhz": lambda: nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_SM),
        "memory_mhz": lambda: nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_MEM),
        "watts": lambda: nvml.nvmlDeviceGetPowerUsage(card) / 1e3,
        "most_watts": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(card) / 1e3,
        "celsius": lambda: nvml.nvmlDeviceGetTemperature(card, nvml.NVML_TEMPERATURE_GPU),
        "slowed_by": lambda: throttles(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(card)),
        "free_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(card).free,
        "held_bytes": lambda: held(nvml.nvmlDeviceGetComputeRunningProcesses(card)),
        "other_programs": lambda: others([running.pid for running in nvml.nvmlDeviceGetComputeRunningProcesses(card)]),
        "errors": lambda: nvml.nvmlDeviceGetTotalEccErrors(
            card, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
        ),
        "part": lambda: bool(nvml.nvmlDeviceGetMigMode(card)[0]),
    }
    values = {}
    for name, read in reads.items():
        with contextlib.suppress(nvml.NVMLError):
            values[name] = read()
    return {name: value for name, value in values.items() if value is not None}


def throttles(bits: int) -> list[str]:
    return [name for bit, name in THROTTLES.items() if bits & bit]


def disturbed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What made a series of times rough, by the states of the card before and after it; empty where nothing did."""
    reasons = dict.fromkeys([*before.get("slowed_by", []), *after.get("slowed_by", [])])
    slowed = [reason for reason in reasons if reason != USUAL]
    words = [f"the card was slowed down ({', '.join(slowed)})"] if slowed else []
    words += [PROGRAMS] * bool(before.get("other_programs") or after.get("other_programs"))
    return words + [ERRORS] * (after.get("errors", 0) > before.get("errors", 0))


def held(running: list[Any]) -> int | None:
    """Bytes that the driver counts for this process, its context and libraries included, which torch does not see.

    Where a container numbers processes otherwise, those of the only one.
    """
    own = [process for process in running if process.pid == os.getpid()] or (running if len(running) == 1 else [])
    return own[0].usedGpuMemory if own else None


def memory(device: torch.device) -> dict[str, int]:
    """The detail `nvml_bytes` of a measurement of memory: what the driver counts now; empty where it tells nothing."""
    size = state(device).get("held_bytes")
    return {} if size is None else {"nvml_bytes": size}


def others(pids: list[int]) -> int:
    """Programs on the card that are not this one, whose number a container may not know."""
    return max(0, len(pids) - 1) if os.getpid() not in pids else len(pids) - 1
