"""`python -m benchmarks.peers`: DualFormer-T of `ablation=peers`, under the name that scripts for the first minutes on
a GPU call it by. Of their options, `modes` are metrics, few `pairs` the quick mode, and `depth` has no counterpart.
"""

import sys

from harness import run

ROWS = ["ablation=peers", "rows=['DualFormer-T, released layout','DualFormer-T, ours']", "vary.allocator=[default]"]
MODES = {"forward": "latency", "training": "training_latency"}
DROPPED, CLIP = ("pairs=", "depth=", "modes="), ("frames=", "size=")


def main(argv: list[str]) -> int:
    """The exit status of the run."""
    words = [f"clip.{word}" if word.startswith(CLIP) else word for word in argv if not word.startswith(DROPPED)]
    modes = next(
        (word.partition("=")[2].strip("[]").split(",") for word in argv if word.startswith("modes=")), [*MODES]
    )
    metrics = ",".join(MODES[mode] for mode in modes)
    few = any(word in ("pairs=1", "pairs=2") for word in argv)
    return run.main([*ROWS, f"metrics=[{metrics}]", "quick=true" if few else "rounds=2", *words])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
