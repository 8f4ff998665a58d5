"""How sure a median is, and whether two of them differ: intervals from raw samples, without assuming a distribution.

Samples come in rounds. Each round is a process of its own and visits every case once, so samples of one round resemble
each other more than samples of two. The intervals therefore come from a bootstrap in two steps: rounds are drawn with
replacement, then samples within each round drawn. The same samples give the same interval.

Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, Ch. 13 (percentile intervals); Davison and
Hinkley, Bootstrap Methods and their Application, 1997, Sec. 3.8 (drawing groups, then within them).
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from records.record import Measurement, Visit

RESAMPLES = 1000
CONFIDENCE = 0.95
WIDE = 0.10  # an interval wider than this share of its median is marked
ASSUMED_FLOOR = 0.10  # where no case has two rounds: medians of one process drift by about that much between runs
ASSUMED_FLOOR_OF_MEMORY = 0.01  # load does not move it: ten times what rounds on a CPU were seen to differ by
# By how much the median range of two and of three rounds is widened: of nine equal cases that vary by 5 % between
# rounds, then 10 % and 5 % of pairs are told apart by the floor alone (simulated). From four rounds on fewer are.
FEW = {2: 2.6, 3: 1.3}
ONCE = 1.35  # a single round varies so much more than that: 1.96 * 2**0.5 over 1.3 * 1.588, the median range of three
LEAST_FLOOR = 0.01  # what rounds differ by in one run is less than what runs differ by, in memory above all
FEWEST_FOR_DRIFT = 4  # so many cases must share their rounds before their common drift is told from their noise

Rounds = Mapping[Hashable, tuple[float, ...]]
"""Samples by the number of their round, or by the run and the number."""


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

    def excludes(self, value: float) -> bool:
        return not self.low <= value <= self.high


@dataclass(frozen=True)
class Ratio:
    """One median over another, with the noise floor below which no difference counts."""

    interval: Interval
    floor: float
    paired: bool = True  # whether medians of the same run and round were set against each other
    once: bool = False  # whether both are single samples, which have no interval

    @property
    def distinguishable(self) -> bool:
        """Whether the interval leaves 1 out and the ratio is further from 1, either way, than the noise floor."""
        value = self.interval.value
        return self.interval.excludes(1) and max(value, 1 / value) - 1 > self.floor


def by_round(measurement: Measurement) -> Rounds:
    """The samples of each round."""
    return _samples_by(measurement, lambda visit: visit.round)


def by_visit(measurement: Measurement) -> Rounds:
    """The samples of each round under the run that took it and its number.

    Rounds of two measurements were interleaved, and may be paired, only where run and number are the same.
    """
    return _samples_by(measurement, lambda visit: (visit.run, visit.round))


def _samples_by(measurement: Measurement, key: Callable[[Visit], Hashable]) -> Rounds:
    rounds: dict[Hashable, tuple[float, ...]] = {}
    for visit in sorted(measurement.visits, key=lambda visit: visit.round):
        rounds[key(visit)] = (*rounds.get(key(visit), ()), *visit.samples)
    return rounds


def median_interval(rounds: Rounds) -> Interval:
    """The median of all samples and its 95 % interval."""
    pooled = [sample for samples in rounds.values() for sample in samples]
    return _interval(float(np.median(pooled)), _medians(tuple(map(tuple, rounds.values())), seed=0))


def ratio_interval(rounds: Rounds, baseline: Rounds) -> Interval:
    """The median of `rounds` over the median of `baseline`, the two measured independently of each other.

    Raises: ValueError where the baseline's median is 0.
    """
    value, base = median_interval(rounds).value, median_interval(baseline).value
    if base == 0:
        raise ValueError("a ratio to a median of 0")
    first = _medians(tuple(map(tuple, rounds.values())), seed=0)
    second = _medians(tuple(map(tuple, baseline.values())), seed=1)
    return _interval(value / base, first / second)


def paired_ratio_interval(rounds: Rounds, baseline: Rounds) -> Interval:
    """The median over the rounds of one median over the other: what slows a whole round leaves it alone.

    Only rounds that both have count. Raises: ValueError where there is none, or a median of the baseline is 0.
    """
    shared = sorted(set(rounds) & set(baseline), key=str)
    if not shared:
        raise ValueError(f"no round in common: {sorted(rounds)} and {sorted(baseline)}")
    if not all(np.median(baseline[number]) for number in shared):
        raise ValueError("a ratio to a median of 0")
    value = np.median([np.median(rounds[number]) / np.median(baseline[number]) for number in shared])
    within = np.stack([_medians((rounds[n],), seed=0) / _medians((baseline[n],), seed=1) for n in shared])
    generator = np.random.default_rng(2)
    drawn = generator.integers(len(shared), size=(RESAMPLES, len(shared)))
    return _interval(float(value), np.median(within[drawn, generator.integers(RESAMPLES, size=drawn.shape)], axis=1))


def assumed_floor(kind: str) -> float:
    """The noise floor of a measurement of which no case has two rounds."""
    return ASSUMED_FLOOR_OF_MEMORY if kind == "sized" else ASSUMED_FLOOR


def held(floor: float | None, kind: str, *, paired: bool, rounds: int) -> float:
    """The floor that a ratio of medians over so many rounds is held to, from what `noise_floor` found or did not.

    One round says less than several, and medians that were not taken in turn differ by the drift of the machine too.
    """
    if floor is None:
        return assumed_floor(kind)
    floor = max(floor * (ONCE if rounds == 1 else 1.0), LEAST_FLOOR)
    return floor if paired and rounds > 1 else max(floor, assumed_floor(kind))


def noise_floor(cases: Sequence[Rounds], *, common_drift: bool) -> float | None:
    """The A/A variation: by how much the same case differs from itself between rounds, as a share of its median.

    For each case the largest median of a round over the smallest, less 1, widened for few rounds (`FEW`); the floor is
    the median of that over all cases with two rounds or more, None where there is none. It is about the 95 % range of
    the ratio of two medians over so many rounds that are truly equal. `common_drift=True` first takes out of each round
    what moved all its cases alike (from four cases on), since ratios within a round do not see it either; leave it in
    to compare two runs.
    """
    several = [{n: float(np.median(samples)) for n, samples in case.items()} for case in cases if len(case) > 1]
    several = [case for case in several if all(case.values())]
    if not several:
        return None
    alike = [case for case in several if set(case) == set(several[0])]
    if common_drift and len(alike) >= FEWEST_FOR_DRIFT:
        typical = [float(np.median(list(case.values()))) for case in alike]
        level = {n: np.median([case[n] / t for case, t in zip(alike, typical, strict=True)]) for n in alike[0]}
        several = [{n: value / level.get(n, 1.0) for n, value in case.items()} for case in several]
    return float(np.median([FEW.get(len(c), 1.0) * (max(c.values()) / min(c.values()) - 1) for c in several]))


@lru_cache(maxsize=1024)
def _medians(groups: tuple[tuple[float, ...], ...], seed: int) -> np.ndarray:
    """Medians of resamples: as many groups as there are, drawn with replacement, then as many samples of each."""
    generator = np.random.default_rng(seed)
    values = [np.asarray(group, dtype=float) for group in groups]
    drawn = np.sort(generator.integers(len(values), size=(RESAMPLES, len(values))), axis=1)
    sizes = {len(one) for one in values}
    if len(sizes) == 1:
        chosen = drawn[:, :, None], generator.integers(*sizes, size=(*drawn.shape, *sizes))
        return np.median(np.stack(values)[chosen].reshape(RESAMPLES, -1), axis=1)[generator.permutation(RESAMPLES)]
    medians = []
    for chosen, count in zip(*np.unique(drawn, axis=0, return_counts=True), strict=True):
        samples = [values[g][generator.integers(len(values[g]), size=(count, len(values[g])))] for g in chosen]
        medians.append(np.median(np.concatenate(samples, axis=1), axis=1))
    return generator.permutation(np.concatenate(medians))  # else two series would meet in the order of their rounds


def _interval(value: float, resampled: np.ndarray) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, (tail, 1 - tail))
    return Interval(value, min(float(low), value), max(float(high), value))
