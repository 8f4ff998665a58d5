"""A GPU as its driver sees it, read by the package nvidia-ml-py where it is installed: a clock that fell, or a program
beside ours, explains a time that nothing else does.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

import torch

NOT_INSTALLED = "the package nvidia-ml-py, which reads it, is not installed"
THROTTLES = {  # bits of nvmlDeviceGetCurrentClocksEventReasons that slow a card down; 1 is idle, 2 a clock that was set
    0x4: "power cap", 0x8: "hardware slowdown", 0x10: "sync boost", 0x20: "software thermal",
    0x40: "hardware thermal", 0x80: "hardware power brake",
}  # fmt: skip


def handle(device: torch.device) -> tuple[Any, Any]:
    """The package and its handle of a card. Raises: ImportError, or the package's NVMLError.

    By the bus, which numbers devices alike for torch and NVML whatever CUDA_VISIBLE_DEVICES says.
    """
    import pynvml

    pynvml.nvmlInit()
    properties = torch.cuda.get_device_properties(device)
    bus = f"{properties.pci_domain_id:08x}:{properties.pci_bus_id:02x}:{properties.pci_device_id:02x}.0"
    return pynvml, pynvml.nvmlDeviceGetHandleByPciBusId(bus.encode())


def state(device: torch.device) -> dict[str, Any]:
    """Clocks, power, temperature, what slows it down, free memory and other programs; empty off CUDA.

    What a card does not tell, as parts of one (MIG) tell no power, is left out.
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
        "other_programs": lambda: others([running.pid for running in nvml.nvmlDeviceGetComputeRunningProcesses(card)]),
    }
    values = {}
    for name, read in reads.items():
        with contextlib.suppress(nvml.NVMLError):
            values[name] = read()
    return values


def throttles(bits: int) -> list[str]:
    return [name for bit, name in THROTTLES.items() if bits & bit]


def others(pids: list[int]) -> int:
    """Programs on the card that are not this one, whose number a container may not know."""
    return max(0, len(pids) - 1) if os.getpid() not in pids else len(pids) - 1
