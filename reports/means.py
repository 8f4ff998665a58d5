"""How sure a mean over a few seeds is, how sure a share of videos is, and whether two means differ.

A mean over seeds has Student's t interval: with three seeds it is about two and a half times as wide as the normal
one. A share of one run's videos has Wilson's interval. Two rows trained with the same seeds are compared by the paired
t test, and where several rows are compared with one, Holm's rule keeps the chance of any wrong finding at 5 %.

The t distribution is computed here, from the incomplete beta function by its continued fraction; tests hold it to
published tables. Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.5.8 and 26.7.1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist, fmean, stdev

from reports.statistics import CONFIDENCE, Interval


def two_sided_p(t: float, degrees: int) -> float:
    """The chance of a t at least this far from 0, either way, where there is no difference.

    Raises: ValueError where there is no degree of freedom.
    """
    if degrees < 1:
        raise ValueError(f"{degrees} degrees of freedom; at least 1, that is two samples, are needed")
    if math.isinf(t):
        return 0.0
    return _incomplete_beta(degrees / 2, 0.5, degrees / (degrees + t * t))


@lru_cache
def t_quantile(share: float, degrees: int) -> float:
    """The t below which a share of the distribution lies, found by bisection: `t_quantile(0.975, 2)` is 4.303.

    Raises: ValueError unless the share is between 0 and 1 and there is a degree of freedom.
    """
    if not 0 < share < 1:
        raise ValueError(f"a quantile at {share}; allowed: between 0 and 1, both excluded")
    if share < 0.5:
        return -t_quantile(1 - share, degrees)
    tail = 2 * (1 - share)
    low, high = 0.0, 1.0
    while two_sided_p(high, degrees) > tail:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if two_sided_p(middle, degrees) > tail else (low, middle)
    return (low + high) / 2


def mean_interval(samples: Sequence[float], least_deviation: float = 0.0) -> Interval:
    """The mean of two samples or more with its 95 % t interval; a smaller deviation than `least_deviation` counts as
    that. Raises: ValueError with fewer than two samples."""
    mean, error = _mean_and_error(samples, least_deviation)
    half = t_quantile((1 + CONFIDENCE) / 2, len(samples) - 1) * error
    return Interval(mean, mean - half, mean + half)


def share_interval(share: float, trials: int) -> Interval:
    """A share of independent trials, from 0 to 1, with its 95 % interval.

    Source: Wilson, Probable Inference, the Law of Succession, and Statistical Inference, JASA 22, 1927.
    Raises: ValueError unless the share is from 0 to 1 and there are trials.
    """
    if not 0 <= share <= 1 or trials < 1:
        raise ValueError(f"a share of {share} of {trials} trials; allowed: a share from 0 to 1 of at least one trial")
    z2 = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) ** 2
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = math.sqrt(z2 * (share * (1 - share) / trials + z2 / (4 * trials * trials))) / (1 + z2 / trials)
    low, high = max(0.0, middle - half), min(1.0, middle + half)  # sums round
    return Interval(share, min(share, low), max(share, high))


@dataclass(frozen=True)
class Paired:
    """The mean of differences over pairs with its 95 % interval, and the two-sided p of the paired t test."""

    interval: Interval
    p: float
    pairs: int


def paired(ours: Sequence[float], theirs: Sequence[float], step: float = 0.0) -> Paired:
    """The difference of two rows over seeds in common, given in the same order.

    `step` is the smallest difference that can be seen (one video of the test set): differences that are all alike to
    the video are no proof that they would be so in truth, so their deviation counts as that of rounding to a step.

    Raises: ValueError with fewer than two pairs.
    """
    differences = [one - other for one, other in zip(ours, theirs, strict=True)]
    least = step / math.sqrt(12)
    mean, error = _mean_and_error(differences, least)
    t = mean / error if error else (math.inf if mean else 0.0)
    return Paired(mean_interval(differences, least), two_sided_p(t, len(differences) - 1), len(differences))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values of several tests, raised so that below 0.05 any wrong finding among them has a chance of 5 %.

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 6, 1979.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _mean_and_error(samples: Sequence[float], least_deviation: float) -> tuple[float, float]:
    """The mean and its standard error."""
    if len(samples) < 2:
        raise ValueError(f"{len(samples)} sample(s); a mean has an interval from two samples on")
    return fmean(samples), max(stdev(samples), least_deviation) / math.sqrt(len(samples))


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast below this point; above, by symmetry
        return 1 - _incomplete_beta(b, a, 1 - x)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    tiny = 1e-300
    c, d = 1.0, 1 / _away_from_zero(1 - (a + b) * x / (a + 1), tiny)
    fraction = d
    for m in range(1, 1000):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away_from_zero(1 + numerator * d, tiny)
            c = _away_from_zero(1 + numerator / c, tiny)
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return math.exp(front) * fraction / a


def _away_from_zero(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny
