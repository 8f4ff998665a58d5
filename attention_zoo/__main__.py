"""`python -m attention_zoo`: the schemes, the kernels, and which of them run on this machine."""

from __future__ import annotations

import inspect
import platform

import torch

from attention_zoo import kernels, options_of, schemes


def main() -> None:
    print(f"attention schemes (torch {torch.__version__}, Python {platform.python_version()})")
    for name in schemes.names():
        print(f"  {name:<16} {_summary(schemes.get(name))}")
        for option, default in options_of(name).items():
            print(f"  {'':<16}   {option} = {default!r}")
    for device in ("cpu", "cuda"):
        print(f"\nkernels on {device}{_device_note(device)}")
        for name in kernels.names():
            print(f"  {name:<16} {_availability(name, device)}")
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


if __name__ == "__main__":
    main()
