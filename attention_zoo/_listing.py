"""What `python -m attention_zoo` says of schemes and kernels: all of them, and whether some obey the laws."""

from __future__ import annotations

import inspect
import platform
import sys

import torch

import attention_zoo.laws as laws
from attention_zoo import UnknownName, kernels, options_of, schemes


def checked(names: list[str]) -> int:
    """Says of each scheme whether it obeys the laws. Returns the exit status."""
    status = 0
    for name in names:
        try:
            broken = laws.check(name)
        except (UnknownName, ImportError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        print(broken or f"{name} obeys all {len(laws.LAWS)} laws")
        status = 1 if broken else status
    return status


def listing() -> None:
    print(f"attention schemes (torch {torch.__version__}, Python {platform.python_version()})")
    width = max(map(len, [*schemes.names(), *kernels.names()]))
    for name in schemes.names():
        print(f"  {name:<{width}} {_summary(schemes.get(name))}")
        for option, default in options_of(name).items():
            print(f"  {'':<{width}}   {option} = {default!r}")
    for device in ("cpu", "cuda"):
        print(f"\nkernels on {device}{_device_note(device)}")
        for name in kernels.names():
            print(f"  {name:<{width}} {_availability(name, device)}")
    print(f"\nkernel=auto stands for {kernels.resolve('auto', 'cpu', torch.float32)}")


def _summary(scheme: type) -> str:
    """The first line of the scheme's module docstring."""
    text = inspect.getdoc(inspect.getmodule(scheme)) or inspect.getdoc(scheme) or ""
    return text.splitlines()[0] if text else ""


def _device_note(device: str) -> str:
    if device == "cuda":
        return f" ({torch.cuda.get_device_name()})" if torch.cuda.is_available() else " (no CUDA device here)"
    return f" ({torch.get_num_threads()} threads)"


def _availability(name: str, device: str) -> str:
    if device == "cuda" and not torch.cuda.is_available():
        return f"needs {kernels.registry.get(name).needs}; not available: no CUDA device here"
    if reason := kernels.missing(name, device, torch.float32):
        return f"not available: {reason}"
    reason = kernels.missing(name, device, torch.float32, backward=True)
    return f"forward only: {reason}" if reason else "forward and backward"
