"""Which differences between rows a number of seeds can tell, and how many seeds a difference takes.

A row is compared with the baseline by the paired t test over seeds, with Holm's rule over the rows. The smallest
difference is the one that this test finds `POWER` of the times; of several rows all are asked what Holm asks of the
first. The spread is the standard deviation over seeds of the differences.

Source: Cohen, Statistical Power Analysis for the Behavioral Sciences, 2nd ed., 1988, Sec. 2.3 (paired samples); the
distribution of t where there is a difference is the noncentral one.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import variance

from scipy import special

from records.intervals import t_quantile

POWER = 0.8
SIGNIFICANT = 0.05
MOST = 1000  # seeds; more are not counted


def smallest_difference(spread: float, seeds: int, tests: int = 1) -> float:
    """In the unit of the spread; infinite with a single seed, which no test is made of."""
    if seeds < 2:
        return math.inf
    critical = t_quantile(1 - SIGNIFICANT / max(1, tests) / 2, seeds - 1)
    return float(special.nctdtrinc(seeds - 1, 1 - POWER, critical)) * spread / math.sqrt(seeds)


def seeds_for(difference: float, spread: float, tests: int = 1) -> int | None:
    """The fewest seeds with which a difference is found; None where they are more than `MOST`."""
    if difference <= 0 or smallest_difference(spread, MOST, tests) > difference:
        return None
    low, high = 1, MOST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if smallest_difference(spread, middle, tests) <= difference else (middle, high)
    return high


def pooled(differences: Sequence[Sequence[float]], least: float = 0.0) -> float | None:
    """The spread that several rows' differences share; None where none has two seeds. Not below `least`."""
    known = [(len(of_row) - 1, variance(of_row)) for of_row in differences if len(of_row) > 1]
    degrees = sum(n for n, _ in known)
    return max(least, math.sqrt(sum(n * v for n, v in known) / degrees)) if degrees else None


def recorded_words(recorded: Mapping[str, float]) -> str:
    """What the default row of a budget came to over the seeds that its file records; empty where it records none."""
    if "top1" not in recorded:
        return ""
    return (
        f"over {recorded['seeds']:g} seeds, in the committed record, the default model comes to "
        f"{recorded['top1']:.1f} %, and a row varies by {recorded['spread']:.1f} points over seeds"
    )
