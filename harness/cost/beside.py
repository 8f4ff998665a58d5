"""Whether this process had the machine to itself while it measured: other programs, a host that takes time away, pages
from disk. A time that was taken beside them is marked, and taken again where there is time.
"""

from __future__ import annotations

import os
import time
from typing import Any

import psutil

try:
    import resource
except ImportError:  # on Windows
    resource = None

FOREIGN, STOLEN = 0.1, 0.02  # of all cores, on average: more than a system does by itself
PAGES = 50  # read from disk while the model ran, whose weights and clip had been touched
SHORTEST = 0.5  # seconds: below, the system's clock ticks too coarsely to say anything

PROCESSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal")  # sensors of Intel's, AMD's, ARM's
PROGRAMS, HOST, DISK = "other programs ran", "its host took CPU time away", "pages were read from disk"


class Watch:
    """`details` after a block: load and temperature before and after, what others used meanwhile, in cores on average.

    `disturbed` lists what was beyond its bound, empty where nothing was.
    """

    def __enter__(self) -> Watch:
        self.load, self.celsius = _load(), _celsius()
        self.start = _counters()
        return self

    def __exit__(self, *exception) -> None:
        spent = {name: after - self.start[name] for name, after in _counters().items()}
        self.details = judged(spent, psutil.cpu_count() or 1) | {"load": [self.load, _load()]}
        if self.celsius is not None:
            self.details["beside"] |= {"celsius_before": self.celsius, "celsius": _celsius()}


def judged(spent: dict[str, float], cores: int) -> dict[str, Any]:
    """What counters that rose by `spent` say: `seconds`, and CPU seconds `busy` of all, `own` and `stolen`."""
    seconds = spent["seconds"]
    counters: dict[str, Any] = {"page_faults": int(spent["minor"]), "pages_read": int(spent["major"])}
    disturbed = [DISK] if spent["major"] > PAGES else []
    if seconds >= SHORTEST:
        foreign, stolen = max(0.0, spent["busy"] - spent["own"]) / seconds, spent["stolen"] / seconds
        counters |= {"foreign_cores": round(foreign, 2), "stolen_cores": round(stolen, 2), "cores": cores}
        disturbed = [PROGRAMS] * (foreign > FOREIGN * cores) + [HOST] * (stolen > STOLEN * cores) + disturbed
    return {"beside": counters, "disturbed": disturbed}


def _load() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _celsius() -> float | None:
    """Of the processor's hottest part; None where the system does not tell, as in a virtual machine."""
    sensors = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    return max((part.current for name in PROCESSORS for part in sensors.get(name, ()) if part.current), default=None)


def _counters() -> dict[str, float]:
    """CPU seconds of all programs, of this one with its threads, taken by the host; page faults of this one."""
    every = psutil.cpu_times()
    busy = sum(getattr(every, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))
    usage = resource.getrusage(resource.RUSAGE_SELF) if resource else None
    faults = {"minor": getattr(usage, "ru_minflt", 0), "major": getattr(usage, "ru_majflt", 0)}
    times = {"busy": busy, "own": time.process_time(), "stolen": getattr(every, "steal", 0.0)}
    return {"seconds": time.perf_counter(), **times, **faults}
