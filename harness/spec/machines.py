"""What a run on a known GPU is set to where the command line leaves it open: `machine=h100`."""

from __future__ import annotations

from dataclasses import dataclass

from harness.spec.names import Dtype


@dataclass(frozen=True)
class Machine:
    """Values for the options of these names of `harness.run`."""

    batch_size: int  # clips per forward pass
    time_limit: float  # seconds for one visit to a case
    device: str = "cuda"
    dtype: Dtype = "bfloat16"

    def __str__(self) -> str:
        """As words of the command line."""
        words = f"device={self.device} dtype={self.dtype} batch_size={self.batch_size} time_limit={self.time_limit:g}"
        return f"{words}, clips at each model's own size"  # full size; another would not compare with published costs


MACHINES = {  # 80, 80 and 141 GB; an A100 has about a third of the others' bfloat16 rate
    "a100": Machine(batch_size=8, time_limit=240.0),
    "h100": Machine(batch_size=8, time_limit=120.0),
    "h200": Machine(batch_size=16, time_limit=120.0),
}


def names() -> list[str]:
    return list(MACHINES)
