"""Where a number comes from: code, packages, machine and settings, enough to make it again and to see why two runs
differ.

No user name, host name or absolute path goes in: records are meant to be shared.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import re
import secrets
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

import psutil

from records.record import slug

ROOT = Path(__file__).resolve().parent.parent
UNKNOWN = "unknown"
PACKAGES = (
    "attention-zoo", "torch", "numpy", "einops", "xformers", "natten", "fastvideo-kernel", "spas-sage-attn", "fvcore",
    "decord", "av", "safetensors",
)  # fmt: skip
GENERATION = {"family": "cpu family", "model": "model", "stepping": "stepping"}
VECTORS = (
    "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "asimd", "sve", "bf16",
)  # fmt: skip


def collect() -> dict[str, Any]:
    """The provenance that all records of one run share; `run` tells it from every other. Imports torch."""
    return {
        **commit(),
        "run": secrets.token_hex(6),
        "started": now(),
        "packages": packages(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu_model(),
        "cpu_generation": cpu_generation(),
        "cores": {"physical": psutil.cpu_count(logical=False), "logical": psutil.cpu_count(), "usable": usable_cores()}
        | ({"quota": quota} if (quota := cpu_quota()) else {}),
        "huge_pages": huge_pages(),
        "ram_bytes": psutil.virtual_memory().total,
        "gpu": gpu(),
    }


def without_folders(text: str) -> str:
    """A text in which files are named by their last part: a record holds no absolute path of this machine."""
    return re.sub(r"(?<![\w.:/~-])(?:/[^\s/'\":]+)+/", "", text)


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@lru_cache
def commit() -> dict[str, Any]:
    """The commit of the checkout and whether files differ from it; outside of one what ATTENTION_ZOO_COMMIT says, or
    "unknown".
    """
    git = ("git", "--no-optional-locks", "-C", str(ROOT))
    top, head = _output(*git, "rev-parse", "--show-toplevel"), _output(*git, "rev-parse", "--verify", "HEAD")
    if not top or not head or Path(top).resolve() != ROOT:
        return {"commit": os.environ.get("ATTENTION_ZOO_COMMIT") or UNKNOWN, "dirty": None}
    changes = _output(*git, "status", "--porcelain", "--", ":!results", ":!outputs")
    return {"commit": head, "dirty": bool(changes)}


def packages() -> dict[str, str | None]:
    """Installed versions; None where a package is not there."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


@lru_cache
def cpu_model() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return " ".join(line.partition(":")[2].split())
    if sys.platform == "darwin":
        brand = _output("sysctl", "-n", "machdep.cpu.brand_string")
        if brand:
            return brand
    return platform.processor() or platform.machine()


@lru_cache
def cpu_generation() -> dict[str, Any]:
    """What tells processors of one name apart: family, model, stepping and vector instructions, as far as Linux says.

    A virtual machine may report a name such as "AMD EPYC" and no more.
    """
    cpuinfo = Path("/proc/cpuinfo")
    entries: dict[str, str] = {}
    for line in cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else ():
        key, _, value = line.partition(":")
        entries.setdefault(key.strip().lower(), value.strip())  # of the first core
    numbers = {name: entries[key] for name, key in GENERATION.items() if entries.get(key, "").isdigit()}
    flags = (entries.get("flags") or entries.get("features") or "").split()
    return {**{name: int(n) for name, n in numbers.items()}, "vectors": [name for name in VECTORS if name in flags]}


def huge_pages() -> str | None:
    """Whether Linux maps large pages by itself: always, madvise or never. It decides what new memory costs on a CPU."""
    try:
        choices = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return None
    return choices.partition("[")[2].partition("]")[0] or None


def usable_cores() -> int:
    """Cores that this process may keep busy: fewer than there are where it is pinned or its container has a quota."""
    process = psutil.Process()
    cores = len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else psutil.cpu_count() or 1
    return max(1, min(cores, math.ceil(cpu_quota() or cores)))


def cpu_quota(control_groups: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")) -> float | None:
    """Cores' worth of time that a container may use, the least of its control groups' (version 2, then 1); None: all.

    It is neither a number of cores nor an affinity: threads beyond it only wait for each other.
    """
    quotas = []
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = PurePosixPath(path)
        for folder in (group, *group.parents):
            for place in (controllers, "cpu") if controllers else ("",):  # inside of a container its own is the top
                with contextlib.suppress(OSError, ValueError):  # "max", or not there: no limit at this level
                    top = control_groups / place / str(folder).lstrip("/")
                    if controllers:
                        files = (top / "cpu.cfs_quota_us", top / "cpu.cfs_period_us")
                        quota, period = (float(file.read_text()) for file in files)
                    else:
                        quota, period = map(float, (top / "cpu.max").read_text().split())
                    quotas += [quota / period] if quota > 0 else []
    return min(quotas, default=None)


def default_threads() -> int:
    """One thread per physical core (two of one core share its arithmetic), no more than this process may use."""
    return max(1, min(psutil.cpu_count(logical=False) or 1, usable_cores()))


def crowded(**asked: int | None) -> str | None:
    """A warning where more threads, or workers, or jobs, are asked for than this process has cores to run them on."""
    cores = usable_cores()
    many = [f"{word}={count}" for word, count in asked.items() if count is not None and count > cores]
    if not many:
        return None
    return f"warning: {' '.join(many)} on {cores} usable core{'s' * (cores != 1)}: they take turns, which is slower"


@lru_cache
def gpu() -> list[dict[str, str]]:
    """Name, driver and memory of every NVIDIA card; asked of the driver, so that this process opens no CUDA context."""
    if shutil.which("nvidia-smi") is None:
        return []
    lines = _output("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader").splitlines()
    keys = ("name", "driver", "memory")
    return [dict(zip(keys, map(str.strip, line.split(",")), strict=False)) for line in lines if line.count(",") == 2]


@lru_cache
def machine(device: str) -> str:
    """The hardware and software that timings depend on; measurements of two machines must not share a table."""
    torch_version = packages()["torch"]
    if device.startswith("cuda"):
        return f"{_card(device) or 'unknown GPU'}, torch {torch_version}"
    quota = cpu_quota()
    share = f" (a quota of {quota:g})" if quota else ""
    return f"{cpu_model()}, {usable_cores()} cores{share}, torch {torch_version}"


def device_slug(device: str) -> str:
    """A name for this machine's device as a folder, such as "nvidia-h100-80gb-hbm3" or "cpu-amd-epyc-2-cores"."""
    if device.startswith("cuda"):
        return slug(_card(device) or "gpu")
    return slug(f"cpu {cpu_model()} {usable_cores()} cores")


def _card(device: str) -> str | None:
    """The name of the card that "cuda" or "cuda:N" is, as far as the driver says; CUDA may see some of them only."""
    chosen, cards, visible = device.partition(":")[2] or "0", gpu(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        chosen = dict(enumerate(entry.strip() for entry in visible.split(","))).get(int(chosen), "")
    if chosen and not chosen.isdigit():
        return _output("nvidia-smi", "-i", chosen, "--query-gpu=name", "--format=csv,noheader") or None
    return cards[int(chosen)]["name"] if chosen and int(chosen) < len(cards) else None


def _output(*command: str) -> str:
    """What a command prints, or nothing where it is not installed or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
