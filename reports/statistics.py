"""How sure a median is, and whether two of them differ, from how much rounds differ.

Each round is a process of its own and visits every case once. Samples of one process resemble each other, so what is
repeated is the round: its value is the median of its samples. The logarithms of these values are taken as normal, with
one standard deviation for all rows of a table, which many rows estimate well even from few rounds. With it, `s`, a
median over n rounds has the interval of Student's t, e^(t s sqrt(1/n)) either way, a ratio of two e^(t s sqrt(2/n)),
and the same number is the noise floor, from which on a difference counts. A row that varies more than the others,
beyond what chance does, has its own deviation and leaves that of the others alone.

tests/test_statistics.py simulates how often such an interval holds the truth, and how often a difference is found.

Source: Box, Hunter and Hunter, Statistics for Experimenters, 2nd ed., Sec. 4.2 (pooled deviation, blocks); Cochran, The
Distribution of the Largest of a Set of Estimated Variances, Annals of Eugenics 11, 1941; Welch, Biometrika 34, 1947.
"""

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import special

from records.intervals import CONFIDENCE, Interval, t_quantile
from records.record import Measurement

LEAST_FLOOR = 0.01  # what rounds differ by in one run is less than what runs differ by, in memory above all
ASSUMED_FLOORS = {  # where no case has two rounds, or the two were not taken in turn
    "timed": 0.10,  # medians of one process drift by about that much between runs
    "sized": LEAST_FLOOR,  # load does not move it
}
FEWEST_FOR_DRIFT = 4  # so many cases must share their rounds before their common drift is told from their noise
UNLIKE = 0.001  # a row is apart from the others where chance makes its variance as large in so few tables
HOLDS = "93 to 95 times of 100"  # simulated by tests/test_statistics.py

Rounds = Mapping[Hashable, tuple[float, ...]]
"""Samples by the number of their round, or by the run and the number."""


@dataclass(frozen=True)
class Ratio:
    """One median over another, with the noise floor below which no difference counts.

    `paired` says whether the two were measured in turn in one run. `once`: no row of the table has two rounds, so that
    the floor is assumed, and the interval is no more than that.
    """

    interval: Interval
    floor: float
    paired: bool = True
    once: bool = False

    @property
    def distinguishable(self) -> bool:
        """Whether the interval, which reaches as far as the noise floor at least, leaves 1 out."""
        return self.interval.excludes(1)


@dataclass(frozen=True)
class Spread:
    """The standard deviation of the logarithm of a round's median, and the degrees of freedom it is known from."""

    deviation: float
    degrees: float

    def reach(self, rounds: int, other: "Spread | None" = None, others: int = 0) -> float:
        """By what factor less 1 a median over `rounds`, or its ratio to an `other` one, may lie away from the truth."""
        error, degrees = self.deviation**2 / rounds, self.degrees
        if other is self:
            error += error * rounds / others
        elif other is not None:
            theirs = other.deviation**2 / others
            if error + theirs:
                degrees = (error + theirs) ** 2 / (error**2 / degrees + theirs**2 / other.degrees)
            error += theirs
        return math.expm1(t_quantile((1 + CONFIDENCE) / 2, degrees) * math.sqrt(error))


def by_visit(measurement: Measurement) -> Rounds:
    """The samples of each round under the run that took it and its number.

    Rounds of two measurements were interleaved, and may be paired, only where run and number are the same.
    """
    rounds: dict[Hashable, tuple[float, ...]] = {}
    for visit in sorted(measurement.visits, key=lambda visit: visit.round):
        key = visit.run, visit.round
        rounds[key] = (*rounds.get(key, ()), *visit.samples)
    return rounds


def medians(visits: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Of each part that visits name, the median of those that have it."""
    parts: dict[str, list[float]] = {}
    for part, amount in (entry for visit in visits for entry in visit.items()):
        parts.setdefault(part, []).append(amount)
    return {part: float(np.median(amounts)) for part, amounts in parts.items()}


def value(rounds: Rounds) -> float:
    """The median of all samples."""
    return float(np.median([sample for samples in rounds.values() for sample in samples]))


def spreads(cases: Mapping[str, Rounds], *, common_drift: bool = False) -> dict[str, Spread]:
    """The spread of each case that has samples: one for all that vary alike, its own for a case that varies more.

    Empty where no case has two rounds with medians above 0. `common_drift=True` first takes out of each round what
    moved all its cases alike (from four cases on): ratios within a round do not see it.
    """
    logs = {
        name: {key: math.log(np.median(samples)) for key, samples in rounds.items()}
        for name, rounds in cases.items()
        if rounds and all(np.median(samples) > 0 for samples in rounds.values())
    }
    several = {name: levels for name, levels in logs.items() if len(levels) > 1}
    variances, lost = {}, {}
    drift = _drift(several) if common_drift else {}
    for name, levels in several.items():
        shared = set(levels) <= drift.keys()
        residuals = [level - (drift[key][0] if shared else 0.0) for key, level in levels.items()]
        alike = drift[next(iter(levels))][1] if shared else 0
        lost[name] = (len(levels) - 1) * (1 - 1 / alike if alike else 1)  # drift takes one row's worth of freedom
        variances[name] = float(np.sum(np.square(residuals - np.mean(residuals)))) / lost[name]
    noisy = {}
    while len(variances) > 1 and (noisiest := _unlike(variances, lost)):
        noisy[noisiest] = Spread(math.sqrt(variances.pop(noisiest)), lost[noisiest])
    if not variances:
        return {}
    degrees = sum(lost[name] for name in variances)
    pooled = Spread(math.sqrt(sum(lost[name] * variances[name] for name in variances) / degrees), degrees)
    return {name: noisy.get(name, pooled) for name in logs}


def _drift(cases: Mapping[str, Mapping[Hashable, float]]) -> dict[Hashable, tuple[float, int]]:
    """By round, what moved alike the cases that share all their rounds, and how many they are; empty where few do."""
    groups: dict[frozenset, list[Mapping[Hashable, float]]] = {}
    for logs in cases.values():
        groups.setdefault(frozenset(logs), []).append(logs)
    drift = {}
    for keys, alike in groups.items():
        if len(alike) >= FEWEST_FOR_DRIFT:
            means = [np.mean(list(logs.values())) for logs in alike]
            moved = {
                key: np.median([logs[key] - mean for logs, mean in zip(alike, means, strict=True)]) for key in keys
            }
            drift |= {key: (float(level), len(alike)) for key, level in moved.items()}
    return drift


def _unlike(variances: Mapping[str, float], degrees: Mapping[str, float]) -> str | None:
    """The case with the largest variance, where by Cochran's test it is not one of the others."""
    total = sum(variances.values())
    largest = max(variances, key=lambda name: variances[name])
    if not total:
        return None
    k, freedom = len(variances), float(np.mean([degrees[name] for name in variances]))
    f = special.fdtri(freedom, (k - 1) * freedom, 1 - UNLIKE / k)
    return largest if variances[largest] / total > 1 / (1 + (k - 1) / f) else None


def median_interval(rounds: Rounds, spread: Spread | None = None) -> Interval:
    """The median of all samples with its 95 % interval; without a spread that of its own rounds, or none of one."""
    spread = spread or spreads({"": rounds}).get("")
    middle = value(rounds)
    return _around(middle, _centre(rounds), spread.reach(len(rounds))) if spread else Interval(middle, middle, middle)


def ratio(
    rounds: Rounds,
    baseline: Rounds,
    kind: str,
    ours: Spread | None,
    theirs: Spread | None,
    least: float | None = None,
) -> Ratio:
    """The median of `rounds` over that of `baseline`, with its interval and floor, `least` at least.

    Over rounds in common it is the median of their ratios: what slows a whole round leaves it alone. Two that were not
    taken in turn differ by the drift of the machine too: their floor is the assumed one at least.

    Raises: ValueError where the baseline's median is 0.
    """
    shared = sorted(set(rounds) & set(baseline), key=str)
    if shared:
        rounds, baseline = ({key: visits[key] for key in shared} for visits in (rounds, baseline))
    if not all(np.median(samples) for samples in baseline.values()):
        raise ValueError("a ratio to a median of 0")
    times = value(rounds) / value(baseline)
    if shared:
        times = float(np.median([np.median(rounds[key]) / np.median(baseline[key]) for key in shared]))
    assumed = ASSUMED_FLOORS.get(kind, LEAST_FLOOR)
    least = least or (LEAST_FLOOR if shared else assumed)
    if ours is None or theirs is None:
        floor = max(least, assumed)
        return Ratio(_around(times, times, floor), floor, bool(shared), once=True)
    floor = max(least, ours.reach(len(rounds), theirs, len(baseline)))
    return Ratio(_around(times, _centre(rounds) / _centre(baseline), floor), floor, bool(shared))


def _centre(rounds: Rounds) -> float:
    """What Student's t speaks of: the geometric mean of the rounds' medians. The median shown lies close to it."""
    medians = [float(np.median(samples)) for samples in rounds.values()]
    return math.exp(np.mean(np.log(medians))) if all(medians) else 0.0


def _around(value: float, centre: float, reach: float) -> Interval:
    """From so many times smaller than the centre to so many times larger, the value included."""
    return Interval(value, min(value, centre / (1 + reach)), max(value, centre * (1 + reach)))


def noise_floor(cases: Mapping[str, Rounds], *, common_drift: bool = True) -> float | None:
    """From which difference on two rows of a table count as different, as a share; None where no row has two rounds.

    Of two rows that vary as most do, with as many rounds as most have; 1 % at least.
    """
    estimated = spreads(cases, common_drift=common_drift)
    if not estimated:
        return None
    counts = [len(cases[name]) for name in estimated]
    rounds = max(set(counts), key=lambda count: (counts.count(count), count))
    pooled = min(estimated.values(), key=lambda spread: spread.deviation)
    return max(LEAST_FLOOR, pooled.reach(rounds, pooled, rounds))
