"""`python -m attention_zoo`: the schemes, the kernels, and which of them run on this machine.

`python -m attention_zoo check NAME ...` runs the laws on schemes, also of other packages; exit status 1 if one is
broken, 2 if the command is wrong. `python -m attention_zoo draw NAME` makes a picture of what one token attends to,
`gallery` one of all schemes with the page that explains it, and `speedup NAME` says whether a block-sparse kernel can
make a scheme fast.
"""

from __future__ import annotations

import inspect
import platform
import sys

import torch

import attention_zoo.laws as laws
from attention_zoo import UnknownName, kernels, options_of, schemes
from attention_zoo._settings import end_quietly

USAGE = """python -m attention_zoo                every scheme with its options and defaults; the kernels that run here
python -m attention_zoo check NAME     whether it obeys the laws, also one of another package; several names too
python -m attention_zoo draw NAME      what one token attends to, as a picture: grid=8x14x14 query=3,7,7 out=FILE.png;
                                       beside it the mask of all pairs; where tokens choose, those of clip=FILE.npy
python -m attention_zoo gallery        the picture of all schemes, and the page that explains it
python -m attention_zoo speedup NAME   whether a block-sparse kernel can make it fast: grid=16x56x56 block=64
Options of the scheme go after the name: 'window=[5,5,5]'."""


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    match sys.argv[1:] if arguments is None else arguments:
        case []:
            listing()
            return 0
        case ["-h" | "--help"]:
            print(USAGE)
            return 0
        case ["check", _, *_] as command:
            return checked(command[1:])
        case ["draw" | "gallery" | "speedup" as word, *command]:
            return printed(word, command)
        case command:
            print(f"error: {' '.join(command)!r} is no command; there are:\n{USAGE}", file=sys.stderr)
            return 2


def checked(names: list[str]) -> int:
    """Says of each scheme whether it obeys the laws."""
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


def printed(word: str, command: list[str]) -> int:
    """Says where a picture is, or what was found out."""
    # matplotlib takes longer to load than the listing to print
    from attention_zoo import _draw, _gallery, _speedup

    commands = {"draw": _draw.draw, "gallery": _gallery.gallery, "speedup": _speedup.speedup}
    try:
        print(commands[word](command))
    except (UnknownName, ValueError, OSError) as error:  # the last: nothing can be written there
        print(f"error: {error}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"error: too large for this machine's memory ({error}); give a smaller grid=", file=sys.stderr)
        return 1
    return 0


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


if __name__ == "__main__":
    end_quietly()
    raise SystemExit(main())
