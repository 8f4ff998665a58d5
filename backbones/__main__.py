"""`python -m backbones`: every model with its cost; `describe NAME` draws one, `convert` rewrites a checkpoint.

Nothing is downloaded: the listing says where the authors publish weights, and `convert` reads a file that is there.
"""

from __future__ import annotations

import pkgutil
import sys
from pathlib import Path

from rich.console import Console

import backbones
from attention_zoo import UnknownName
from attention_zoo._settings import end_quietly
from backbones.files import CheckpointError, check_file

USAGE = """python -m backbones                          every model: its size, costs and input, source, licence
python -m backbones describe NAME            its stages
python -m backbones convert FILE NAME OUT    a checkpoint of a known layout, as OUT.safetensors under our names"""


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 done, 2 a wrong command, which is refused before torch is loaded."""
    arguments = sys.argv[1:] if arguments is None else arguments
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=200)
    try:
        match arguments:
            case [] | ["describe", _]:
                for name in arguments[1:]:
                    backbones.config(name)
            case ["convert", file, name, _]:
                backbones.config(name)
                check_file(Path(file))
            case ["-h" | "--help"]:
                print(USAGE)
                return 0
            case _:
                raise ValueError(f"{' '.join(arguments)!r} is no command; there are:\n{USAGE}")
        word, *names = arguments or ["listing"]
        pkgutil.resolve_name(f"backbones.listing:{word}")(*names, console)
    except CheckpointError as error:
        print(f"error: {error.for_commands()}\n  `python -m backbones` lists the models", file=sys.stderr)
        return 2
    except (UnknownName, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    end_quietly()
    raise SystemExit(main())
