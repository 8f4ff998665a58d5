"""Whether there is a file of weights to read: told before torch, which reads it, is loaded."""

from __future__ import annotations

import difflib
from pathlib import Path

STAND_INS = {  # what is at times saved under the name of a file, by its first bytes
    b"version https://git-lfs": "a pointer of Git LFS to one; fetch it with `git lfs pull`",
    b"<": "a web page; copy or download it again, with an account where its source asks for one",
}
LARGEST_HEADER = 100_000_000  # bytes, of safetensors


class CheckpointError(ValueError):
    """A file that is no checkpoint, or one that does not fit the model; the message names the file and the remedy."""

    def for_commands(self) -> str:
        """The message without the remedy that only programs have."""
        return "\n".join(line for line in str(self).splitlines() if "strict=False" not in line)


def check_file(path: Path) -> None:
    """Raises: CheckpointError, FileNotFoundError."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the checkpoint file in it")
    if not path.exists():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else None
        close = difflib.get_close_matches(path.name, siblings or [], n=1)
        hint = f"did you mean {path.with_name(close[0])}?" if close else "check the path"
        where = "" if siblings is not None else f" (nor a folder {path.parent})"
        raise FileNotFoundError(f"there is no checkpoint {path}{where}; {hint}")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes); copy or download it again")


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do, or has their name and does not begin as PyTorch's do."""
    with path.open("rb") as file:
        first = file.read(64)
    for start, what in STAND_INS.items():
        if first.lstrip().startswith(start):
            raise CheckpointError(f"{path} is not a readable checkpoint but {what}")
    if first[8:9] == b"{" and int.from_bytes(first[:8], "little") <= LARGEST_HEADER:
        return True
    return path.suffix == ".safetensors" and not first.startswith((b"PK", b"\x80"))
