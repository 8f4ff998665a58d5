"""`python -m harness.sanity`: the step `equivalence` of the suite `gpu`, under the name that scripts for the first
minutes on a GPU call it by. Of their options `seconds` is dropped: the suite bounds the step.
"""

import sys

from harness import run

STEP = ["suite=gpu", "steps=[equivalence]"]


def main(argv: list[str]) -> int:
    """The exit status of the step: 1 where a result is wrong."""
    return run.main([*STEP, *(word for word in argv if not word.startswith("seconds="))])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
