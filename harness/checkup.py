"""What a machine has and lacks for measuring and training: findings, with a remedy beside each fault."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import psutil
import torch

from attention_zoo import kernels
from harness.packages import late
from records import provenance, terminal

try:
    import resource
except ImportError:  # on Windows
    resource = None

BUSY = 0.25  # of the cores, by the load of the last minute: more shows in timings
LEAST_DISK, LEAST_SHARED, LEAST_MEMORY = 5 * 2**30, 2**30, 4 * 2**30
LEAST_FILES = 1024  # open at once: workers of a loader pass pictures on through files
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
SHARED = Path("/dev/shm")


@dataclass(frozen=True)
class Finding:
    """`remedy` makes it a fault; without one it is as it should be, or no matter."""

    name: str
    text: str
    remedy: str | None = None


def tell(out: Path) -> int:
    """Returns the exit status: 1 where there is a fault."""
    faults = 0
    for finding in findings(out):
        faults += finding.remedy is not None
        told = [f"{'FAULT' if finding.remedy else 'ok':5}  {finding.name:<11} {finding.text}"]
        told += [f"{'':18} -> {finding.remedy}"] if finding.remedy else []
        print(*terminal.folded(told), sep="\n", flush=True)
    print(f"{faults or 'no'} fault{'' if faults == 1 else 's'}")
    return int(faults > 0)


def findings(out: Path) -> Iterator[Finding]:
    yield from (torch_here(), cuda(), *kernels_here(), decoders(), encoders(), threads(), huge_pages(), governor())
    yield from (load(os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0), memory(), disk(out), writing(out))
    yield from (shared_memory(), open_files())


def torch_here() -> Finding:
    built = torch.version.cuda or torch.version.hip or "none"
    return Finding("torch", f"{torch.__version__}, Python {sys.version.split()[0]}, CUDA of the build: {built}")


def cuda() -> Finding:
    cards = provenance.gpu()
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        nvml = find_spec("pynvml") is not None
        remedy = None if nvml else "clocks, power and other programs are not seen: pip install nvidia-ml-py"
        return Finding("CUDA", ", ".join(names), remedy)
    if not cards:
        return Finding("CUDA", "no NVIDIA card here; device=cpu is what can be measured")
    if torch.version.cuda is None:
        remedy = "install torch with CUDA: pip install --force-reinstall torch, from an index of CUDA builds"
    else:
        remedy = f"look at CUDA_VISIBLE_DEVICES, and whether the driver is as new as CUDA {torch.version.cuda} asks"
    return Finding("CUDA", f"{cards[0]['name']} (driver {cards[0]['driver']}) is not seen by torch", remedy)


def kernels_here() -> Iterator[Finding]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    missing = {name: kernels.missing(name, device, torch.float32) for name in kernels.names()}
    available = [name for name, why in missing.items() if why is None]
    yield Finding("kernels", f"on {device}: {', '.join(available)}")
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    for name, why in missing.items():
        kernel = kernels.registry.get(name)
        lacks = why is not None and not (device == "cpu" and "CUDA" in f"{why} {kernel.needs}")
        if lacks:  # one that is for some schemes alone is in no suite
            remedy = "install what it needs, or leave its rows out: kernel=sdpa"
            yield Finding("kernels", f"{name}: {why}", None if kernel.neighborhood or kernel.blocks else remedy)
    remedy = None if compiler else "install g++, for instance by apt or conda"
    yield Finding("compiler", Path(compiler).name if compiler else "none for C++: compile=true and flex fail", remedy)


def decoders() -> Finding:
    decord = find_spec("decord") is not None
    text = f"PyAV {version('av')}, decord {version('decord') if decord else 'not installed: PyAV reads every video'}"
    return Finding("decoders", text)


def encoders() -> Finding:
    if "libx264" in late("av").codecs_available:
        return Finding("encoders", "libx264")
    return Finding("encoders", "mpeg4 alone: built-in clips differ from those of other machines", "pip install av")


def threads() -> Finding:
    quota, setting = provenance.cpu_quota(), os.environ.get("OMP_NUM_THREADS", "")
    most = provenance.usable_cores()
    limits = f", a quota of {quota:g}" if quota else ""
    text = f"{provenance.default_threads()} by default; {psutil.cpu_count()} cores, {most} usable{limits}"
    if setting.isdigit() and int(setting) > most:
        return Finding("threads", f"OMP_NUM_THREADS={setting} of {most}", f"export OMP_NUM_THREADS={most}")
    return Finding("threads", text)


def huge_pages() -> Finding:
    mode = provenance.huge_pages()
    if mode == "never":
        remedy = "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"
        return Finding("huge pages", "never: new memory costs more than elsewhere", remedy)
    return Finding("huge pages", mode or "not told by this system")


def governor() -> Finding:
    try:
        mode = GOVERNOR.read_text().strip()
    except OSError:
        return Finding("governor", "not told, as in a virtual machine")
    remedy = None if mode == "performance" else "sudo cpupower frequency-set -g performance"
    return Finding("governor", mode, remedy)


def load(last_minute: float) -> Finding:
    cores = psutil.cpu_count() or 1
    text = f"{last_minute:.1f} on {cores} cores in the last minute"
    if last_minute <= BUSY * cores:
        return Finding("load", text)
    return Finding("load", text, "end or wait for what else runs (top shows it): timings beside it are disturbed")


def memory() -> Finding:
    free = psutil.virtual_memory().available
    remedy = "free some, or take smaller clips: frames=8 size=112" if free < LEAST_MEMORY else None
    return Finding("memory", f"{free / 2**30:.1f} GiB free", remedy)


def _standing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def disk(out: Path) -> Finding:
    free = shutil.disk_usage(_standing(out)).free
    remedy = "free some, or write elsewhere: out=FOLDER" if free < LEAST_DISK else None
    return Finding("disk", f"{free / 2**30:.1f} GiB free for {out}", remedy)


def writing(out: Path) -> Finding:
    for place in (_standing(out), Path(tempfile.gettempdir())):
        try:
            with tempfile.TemporaryFile(dir=place):
                continue
        except OSError as error:
            remedy = "choose a folder that you may write: out=FOLDER, or TMPDIR=FOLDER for what passes"
            return Finding("write", f"{place}: {error.strerror}", remedy)
    return Finding("write", f"{out} and the folder for what passes may be written")


def shared_memory() -> Finding:
    if not SHARED.is_dir():
        return Finding("shared", "not told by this system")
    free = shutil.disk_usage(SHARED).free
    remedy = "docker run --shm-size=8g, or workers=0" if free < LEAST_SHARED else None
    return Finding("shared", f"{free / 2**30:.1f} GiB of shared memory for the workers of loaders", remedy)


def open_files() -> Finding:
    if resource is None:
        return Finding("open files", "no limit told by this system")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    unlimited = most == resource.RLIM_INFINITY
    remedy = f"ulimit -n {LEAST_FILES * 4}" if most < LEAST_FILES and not unlimited else None
    return Finding("open files", "unlimited" if unlimited else f"{most} at once", remedy)
