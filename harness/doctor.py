"""What this machine has and lacks for measuring and training: `python -m harness.doctor`, one screen, a remedy beside
each fault.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from harness.spec import options
from harness.spec.options import Work, option


@dataclass(frozen=True)
class Options:
    out: str = option("outputs", "the folder that a run would write to")


COMMAND = options.Command(
    "python -m harness.doctor",
    "Says what this machine has and lacks for measuring and training, with a remedy beside each fault.\n"
    "Exit status: 0 no faults, 1 faults, 2 a wrong command.",
    Options,
    (("out=/data/outputs", "with the disk that a run would write to"),),
    without=None,
)


def main(argv: list[str] | None = None) -> int:
    return options.run(COMMAND, lambda chosen: Work("harness.checkup:tell", (Path(chosen.out),)), argv)


if __name__ == "__main__":
    sys.exit(main())
