"""A run that has to end at some time: what no longer fits is left out and said, and the next run goes on there."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

GRACE_SECONDS = 40.0


class OutOfTime(Exception):
    """The deadline passed in the middle of something that can be stopped and gone on with."""


@dataclass
class Deadline:
    """`at` is a time of `time.monotonic()`, and what is being measured then may take `grace` seconds more. `left_out`
    says, one text each, what the time did not suffice for.
    """

    at: float
    grace: float = GRACE_SECONDS
    left_out: list[str] = field(default_factory=list)

    @classmethod
    def after(cls, seconds: float, grace: float = GRACE_SECONDS) -> Deadline:
        return cls(time.monotonic() + seconds, grace)

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
        return self.left <= -self.grace

    def limit(self, seconds: float) -> float:
        """How long something that begins now may take, itself limited to so many seconds."""
        return max(1.0, min(seconds, self.left + self.grace))
