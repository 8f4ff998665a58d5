"""How long one case is sampled: enough for a median that stands, within what a run may take."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil


@dataclass(frozen=True)
class Effort:
    """How long to sample: `samples` and `seconds` at least, but not beyond `budget` seconds once there are `fewest`."""

    samples: int = 20
    seconds: float = 3.0
    budget: float = 10.0
    fewest: int = 10  # two in each of five rounds: rounds differ by more than the samples of one do
    warm_up_seconds: float = 2.0

    @property
    def quick(self) -> bool:
        """Whether all is only tried out."""
        return self.warm_up_seconds < 1

    def split(self, rounds: int) -> Effort:
        """The effort of one of several rounds that together are this one; the warm-up is each process's own."""
        return replace(
            self,
            samples=ceil(self.samples / rounds),
            seconds=self.seconds / rounds,
            budget=self.budget / rounds,
            fewest=ceil(self.fewest / rounds),
        )

    def enough(self, samples: int, elapsed: float) -> bool:
        return (samples >= self.samples and elapsed >= self.seconds) or (
            samples >= self.fewest and elapsed >= self.budget
        )


CPU = Effort()
CUDA = Effort(samples=50, seconds=1.4, budget=30.0, fewest=10, warm_up_seconds=10.0)
QUICK = Effort(samples=3, seconds=0.0, budget=1.0, fewest=3, warm_up_seconds=0.2)


def effort_for(device: str, quick: bool) -> Effort:
    if quick:
        return QUICK
    return CUDA if device.startswith("cuda") else CPU
