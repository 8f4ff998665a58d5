"""One of the processes that render: a line of JSON on its input says which scenes, a line of its output tells of each.

It ends with whoever started it: when nobody reads its output any more, or when its input closes.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from pathlib import Path

from harness.motion.store import Version, render_scene


def main() -> int:
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    version, root = Version(**order["version"]), Path(order["root"])
    try:
        for pair, number in order["scenes"]:
            shown = render_scene(version, order["split"], pair, number, root)
            print(pair, number, *shown, flush=True)
    except BrokenPipeError:
        os._exit(1)
    except OSError as error:  # a full disk above all: one line says it better than a traceback
        with contextlib.suppress(OSError):
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
