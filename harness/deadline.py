"""A run that has to end at some time: what no longer fits is left out and said, and the next run goes on there."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

GRACE_SECONDS = 40.0  # what is being measured at the end may take so much longer


class OutOfTime(Exception):
    """The deadline passed in the middle of something that can be stopped and gone on with."""


@dataclass
class Deadline:
    """`at` is a time of `time.monotonic()`. `left_out` says, one text each, what the time did not suffice for."""

    at: float
    left_out: list[str] = field(default_factory=list)

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        return cls(time.monotonic() + seconds)

    @classmethod
    def never(cls) -> Deadline:
        return cls(math.inf)

    @property
    def left(self) -> float:
        """Seconds; below 0 once it has passed."""
        return self.at - time.monotonic()

    @property
    def passed(self) -> bool:
        return self.left <= 0

    @property
    def overrun(self) -> bool:
        """Whether what was going on at the end has had all the time that `limit` gives."""
        return self.left <= -GRACE_SECONDS

    def limit(self, seconds: float) -> float:
        """How long something that begins now may take, itself limited to so many seconds."""
        return max(1.0, min(seconds, self.left + GRACE_SECONDS))
