"""How sure a mean over a few seeds is, how sure a share of videos is, and whether two means differ.

A mean over seeds has Student's t: with three seeds its interval is about two and a half times as wide as the normal
one. A share of one run's videos has Wilson's interval; a mean of shares over seeds has Wilson's with as many trials as
give it Student's width, so that no end of it has to be cut at 100 %. Two rows trained with the same seeds are compared
by the paired t test, and where several rows are compared with one, Holm's rule keeps the chance of any wrong finding at
5 %.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy import special

from records.intervals import CONFIDENCE, Interval, t_quantile


def two_sided_p(t: float, degrees: float) -> float:
    """The chance of a t at least this far from 0, either way, where there is no difference."""
    return float(2 * special.stdtr(degrees, -abs(t)))


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
    return _wilson(share, trials)


def mean_share_interval(shares: Sequence[float], trials: int, most: int) -> Interval:
    """The mean of two shares or more, one for each seed, of `trials` each, with its 95 % interval.

    Wilson's interval, with as many trials as make a binomial share as uncertain as Student's t says that the mean is,
    and no more than `most`. Simulated (shares of 400 videos that vary as a beta distribution, means of 13 to 99.5 %, 3
    to 8 seeds), it holds the truth 94.1 to 98.4 times of 100 and is as wide as Student's; Student's cut at 100 % holds
    it 91.1 to 95.2 times. tests/test_accuracy_reports.py repeats it.

    Source: Korn and Graubard, Confidence Intervals for Proportions with Small Expected Number of Positive Counts
    Estimated from Survey Data, Survey Methodology 24, 1998 (who take Clopper and Pearson's: wider, 95.0 to 99.5).
    """
    mean, error = _mean_and_error(shares, 1 / trials / math.sqrt(12))
    mean = min(1.0, max(0.0, mean))  # sums round
    if mean * (1 - mean) < 1e-12:  # no seed has a miss, or a hit: what is known is that of one test set
        return _wilson(round(mean), trials)
    z, t = float(special.ndtri((1 + CONFIDENCE) / 2)), t_quantile((1 + CONFIDENCE) / 2, len(shares) - 1)
    return _wilson(mean, min(mean * (1 - mean) * (z / (t * error)) ** 2, most))


def _wilson(share: float, trials: float) -> Interval:
    z2 = float(special.ndtri((1 + CONFIDENCE) / 2)) ** 2
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = math.sqrt(z2 * (share * (1 - share) / trials + z2 / (4 * trials * trials))) / (1 + z2 / trials)
    low, high = max(0.0, middle - half), min(1.0, middle + half)  # sums round
    return Interval(share, min(share, low), max(share, high))


@dataclass(frozen=True)
class Paired:
    """The mean of differences over pairs with its 95 % interval, and the two-sided p of the paired t test."""

    interval: Interval
    p: float
    differences: tuple[float, ...]


def paired(ours: Sequence[float], theirs: Sequence[float], step: float = 0.0) -> Paired:
    """The difference of two rows over seeds in common, given in the same order.

    `step` is the smallest difference that can be seen (one video of the test set): differences that are all alike to
    the video are no proof that they would be so in truth, so their deviation counts as that of rounding to a step.

    Raises: ValueError with fewer than two pairs.
    """
    differences = [our - their for our, their in zip(ours, theirs, strict=True)]
    least = step / math.sqrt(12)
    mean, error = _mean_and_error(differences, least)
    t = mean / error if error else (math.inf if mean else 0.0)
    return Paired(mean_interval(differences, least), two_sided_p(t, len(differences) - 1), tuple(differences))


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
