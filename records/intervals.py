"""A figure with the interval that covers it, and the quantiles of Student's t that intervals are made of."""

from __future__ import annotations

from dataclasses import dataclass

from scipy import special

CONFIDENCE = 0.95
WIDE = 0.20  # an interval wider than this share of its figure is marked


@dataclass(frozen=True)
class Interval:
    """A figure with the interval that covers it; `low` and `high` equal it where there is a single sample."""

    value: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """As a share of the figure."""
        return (self.high - self.low) / self.value if self.value else 0.0

    @property
    def wide(self) -> bool:
        return self.width > WIDE

    @property
    def percent(self) -> Interval:
        """Of a share from 0 to 1."""
        return Interval(100 * self.value, 100 * self.low, 100 * self.high)

    def excludes(self, value: float) -> bool:
        return not self.low <= value <= self.high


def t_quantile(share: float, degrees: float) -> float:
    """The t below which a share of Student's distribution lies: `t_quantile(0.975, 2)` is 4.303."""
    return float(special.stdtrit(degrees, share))
