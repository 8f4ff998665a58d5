"""The figures that an ablation may name: each file of `reports/figures` is one, found without importing any of them.

It stands here because both sides ask: what reads an ablation refuses a name that no file has, what builds its report
draws the others.
"""

from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "reports" / "figures"


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))
