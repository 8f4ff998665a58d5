"""`python -m attention_zoo`: the schemes, the kernels, and which of them run on this machine.

`python -m attention_zoo check NAME ...` runs the laws on schemes, also of other packages; exit status 1 if one is
broken, 2 if the command is wrong. `python -m attention_zoo draw NAME` makes a picture of what one token attends to,
`gallery` one of all schemes with the page that explains it, and `speedup NAME` says whether a block-sparse kernel can
make a scheme fast.
"""

from __future__ import annotations

import pkgutil
import sys
from typing import Any

from attention_zoo import UnknownName, declared
from attention_zoo._settings import counting, drawing, end_quietly, showing

USAGE = """python -m attention_zoo                every scheme with its options and defaults; the kernels that run here
python -m attention_zoo check NAME     whether it obeys the laws, also one of another package; several names too
python -m attention_zoo draw NAME      what one token attends to, as a picture: grid=8x14x14 query=3,7,7 out=FILE.png;
                                       beside it the mask of all pairs; where tokens choose, those of clip=FILE.npy
python -m attention_zoo gallery        the picture of all schemes, and the page that explains it
python -m attention_zoo speedup NAME   whether a block-sparse kernel can make it fast: grid=16x56x56 block=64
Options of the scheme go after the name: 'window=[5,5,5]'."""


# What reads a command, and what then loads torch and matplotlib for it, which takes longer than the listing.
PICTURES = {
    "draw": (drawing, "_draw:draw"),
    "gallery": (showing, "_gallery:gallery"),
    "speedup": (counting, "_speedup:speedup"),
}


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status. What a command says wrong is refused before torch is loaded."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        match arguments:
            case []:
                _at("_listing:listing")()
            case ["-h" | "--help"]:
                print(USAGE)
            case ["check", _, *_]:
                for name in arguments[1:]:
                    declared.options_of(name)
                return _at("_listing:checked")(arguments[1:])
            case ["draw" | "gallery" | "speedup" as word, *command]:
                read, work = PICTURES[word]
                read(command)
                print(_at(work)(command))
            case command:
                raise ValueError(f"{' '.join(command)!r} is no command; there are:\n{USAGE}")
    except (UnknownName, ImportError, ValueError, OSError) as error:  # the last: nothing can be written there
        print(f"error: {error}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"error: too large for this machine's memory ({error}); give a smaller grid=", file=sys.stderr)
        return 1
    return 0


def _at(function: str) -> Any:
    return pkgutil.resolve_name(f"attention_zoo.{function}")


if __name__ == "__main__":
    end_quietly()
    raise SystemExit(main())
