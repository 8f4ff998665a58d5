"""Joules per clip, from the energy counter of the device (NVML, read by the package nvidia-ml-py where installed).

The counter is of the whole device, idle power included, and says nothing of the CPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from harness.cost import card
from harness.cost.metrics import register
from harness.cost.workload import Workload
from records.record import Measurement, Quantity

WINDOWS, SECONDS, QUICK_SECONDS = 3, 2.0, 0.5  # the counter moves in steps of up to a tenth of a second
PAUSE_SECONDS = 0.1  # between waits for the device: waiting after each pass would count idle power between launches
ENERGY = Quantity("energy", "timed", "energy per clip", "J", "lower")
NO_COUNTER = "no energy counter for this device"


@register("energy", ENERGY, timed=True, order=5, once=True, seconds=lambda quick: 1 + WINDOWS * SECONDS)
def energy(workload: Workload) -> list[Measurement]:
    """One sample for each stretch of forward passes without a pause: counted energy divided by clips."""
    read, reason = counter(workload.device)
    if read is None:
        return [ENERGY.absent(reason, details={"machine": workload.machine})]
    model, samples, passes = workload.model, [], []
    least = QUICK_SECONDS if workload.effort.quick else SECONDS
    with torch.inference_mode():
        for _ in range(2):  # the first of all is slower than any other
            start = time.perf_counter()
            model(workload.input)
            workload.synchronize()
        together = max(1, round(PAUSE_SECONDS / (time.perf_counter() - start)))
        for _ in range(WINDOWS):
            begin, start, done = read(), time.perf_counter(), 0
            while time.perf_counter() - start < least:
                for _ in range(together):
                    model(workload.input)
                workload.synchronize()
                done += together
            samples.append((read() - begin) / 1e3 / (done * workload.case.batch_size))
            passes.append(done)
    details = {"how": "NVML energy counter of the whole device", "passes": passes, **workload.what_ran()}
    return [ENERGY.of(samples, details)]


def counter(device) -> tuple[Callable[[], int], None] | tuple[None, str]:
    """A function that reads the device's counter in millijoules, or the reason that there is none."""
    if device.type != "cuda":
        return None, NO_COUNTER
    try:
        nvml, handle = card.handle(device)
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except ImportError:
        return None, f"{NO_COUNTER}: {card.NOT_INSTALLED}"
    except Exception as error:  # NVMLError, whose class is in the package
        return None, f"{NO_COUNTER}: {error}"
    return lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle), None
