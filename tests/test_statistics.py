"""Intervals cover what they should, rounds carry their own variation, and noise is not called a difference."""

import numpy as np
import pytest
from flat import flat
from hypothesis import given
from hypothesis import strategies as st

from reports.statistics import (
    Interval,
    Ratio,
    by_round,
    by_visit,
    held,
    median_interval,
    noise_floor,
    paired_ratio_interval,
)
from reports.statistics import ratio_interval as independent_ratio

POSITIVE = st.floats(0.1, 1e6)
ROUNDS = st.dictionaries(st.integers(1, 5), st.lists(POSITIVE, min_size=1, max_size=12).map(tuple), min_size=1)


def drawn(generator, rounds=3, n=8, level=100.0, between=0.0, within=0.02):
    levels = level * np.exp(between * generator.standard_normal(rounds))
    return {i + 1: tuple(one * np.exp(within * generator.standard_normal(n))) for i, one in enumerate(levels)}


@given(ROUNDS)
def test_an_interval_holds_its_median_and_is_made_of_its_samples(rounds):
    pooled = [sample for samples in rounds.values() for sample in samples]
    one = median_interval(rounds)
    assert one.value == np.median(pooled)
    assert min(pooled) <= one.low <= one.value <= one.high <= max(pooled)
    assert one == median_interval(dict(rounds))


@given(ROUNDS, st.floats(0.1, 10))
def test_a_ratio_follows_its_scale_and_is_1_to_itself(rounds, scale):
    scaled = {number: tuple(scale * sample for sample in samples) for number, samples in rounds.items()}
    for ratio in (paired_ratio_interval(scaled, rounds), independent_ratio(scaled, rounds)):
        assert ratio.value == pytest.approx(scale)
        assert ratio.low <= ratio.value <= ratio.high
    assert not independent_ratio(rounds, rounds).excludes(1)


def test_a_single_sample_has_no_width():
    assert median_interval({1: (5.0,)}) == Interval(5.0, 5.0, 5.0)
    assert not median_interval({1: (5.0,)}).wide


def test_a_wide_interval_is_told_from_a_narrow_one():
    assert Interval(100, 94, 105).wide
    assert not Interval(100, 96, 105).wide


def test_variation_between_rounds_widens_the_interval():
    """Forty samples of one slow process and forty of a fast one say little about the next process."""
    generator = np.random.default_rng(0)
    split = {1: tuple(generator.normal(100, 1, 40)), 2: tuple(generator.normal(120, 1, 40))}
    mixed = {1: tuple(sample for samples in split.values() for sample in samples)}
    assert median_interval(split).high > 118
    assert median_interval(split).low < 102
    assert median_interval(split).width >= median_interval(mixed).width


@pytest.mark.parametrize("between", [0.0, 0.05])
def test_intervals_of_equal_cases_mostly_hold_1(between):
    """About 95 of 100 A/A ratios should; three rounds are few, so somewhat less is allowed for."""
    generator = np.random.default_rng(1)
    pairs = [[drawn(generator, between=between) for _ in range(2)] for _ in range(100)]
    assert sum(not independent_ratio(*pair).excludes(1) for pair in pairs) >= 85
    same = sum(not paired_ratio_interval(*pair).excludes(1) for pair in pairs)
    assert same >= (65 if between else 85)  # three ratios are all on one side of 1 in a quarter of such cases
    floors = [noise_floor(pair, common_drift=True) for pair in pairs]
    seen = [Ratio(paired_ratio_interval(*pair), floor) for pair, floor in zip(pairs, floors, strict=True)]
    assert sum(not ratio.distinguishable for ratio in seen) >= 90  # which the noise floor mends


def test_a_drift_of_the_machine_falls_out_of_paired_ratios_and_of_the_floor():
    generator = np.random.default_rng(2)
    drift = {1: 1.0, 2: 1.3, 3: 0.8}
    cases = [
        {n: tuple(level * drift[n] * np.exp(0.005 * generator.standard_normal(8))) for n in drift}
        for level in (100, 110, 150, 200, 300)
    ]
    ratio = paired_ratio_interval(cases[1], cases[0])
    assert ratio.value == pytest.approx(1.1, rel=0.01)
    assert ratio.width < 0.03
    assert independent_ratio(cases[1], cases[0]).width > 0.3
    assert noise_floor(cases, common_drift=True) < 0.02
    assert noise_floor(cases, common_drift=False) > 0.5
    assert Ratio(ratio, noise_floor(cases, common_drift=True)).distinguishable


def test_one_disturbed_case_does_not_set_the_floor():
    cases = [dict.fromkeys((1, 3, 4), (100.0,)) | {2: (101.0,)} for _ in range(4)] + [{1: (100.0,), 2: (200.0,)}]
    assert noise_floor(cases, common_drift=False) == pytest.approx(0.01)


@pytest.mark.parametrize("rounds", [2, 3, 4])
def test_few_rounds_tell_no_more_equal_cases_apart_than_many(rounds):
    """The range of two rounds is small by chance more often than that of three; the floor makes up for it."""
    generator = np.random.default_rng(3)
    told = 0
    for _ in range(400):
        cases = [{n: (float(np.exp(0.05 * generator.standard_normal())),) for n in range(rounds)} for _ in range(9)]
        floor = held(noise_floor(cases, common_drift=True), "timed", paired=True, rounds=rounds)
        value = np.median([cases[0][n][0] / cases[1][n][0] for n in range(rounds)])
        told += max(value, 1 / value) - 1 > floor
    assert told <= 0.15 * 400


@pytest.mark.parametrize(
    ("found", "kind", "paired", "rounds", "floor"),
    [
        (None, "timed", True, 1, 0.10),
        (None, "sized", False, 1, 0.01),
        (0.05, "timed", True, 3, 0.05),
        (0.002, "sized", True, 3, 0.01),  # never less
        (0.05, "timed", False, 3, 0.10),  # not in turn: at least what is assumed
        (0.08, "timed", True, 1, 0.108),  # one round says less
        (0.03, "timed", True, 1, 0.10),
    ],
)
def test_the_floor_that_a_ratio_is_held_to(found, kind, paired, rounds, floor):
    assert held(found, kind, paired=paired, rounds=rounds) == pytest.approx(floor)


def test_without_two_rounds_there_is_no_floor():
    assert noise_floor([{1: (1.0, 2.0)}, {}], common_drift=True) is None
    assert noise_floor([], common_drift=False) is None


@pytest.mark.parametrize(
    ("interval", "floor", "distinguishable"),
    [
        (Interval(1.2, 1.1, 1.3), 0.05, True),
        (Interval(1.2, 0.9, 1.5), 0.05, False),
        (Interval(1.04, 1.03, 1.05), 0.05, False),
        (Interval(0.97, 0.96, 0.98), 0.05, False),
        (Interval(0.9, 0.88, 0.92), 0.05, True),
    ],
)
def test_a_difference_counts_beyond_interval_and_floor(interval, floor, distinguishable):
    assert Ratio(interval, floor).distinguishable is distinguishable


def test_ratios_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="no round in common"):
        paired_ratio_interval({1: (1.0,)}, {2: (1.0,)})
    for ratio in (paired_ratio_interval, independent_ratio):
        with pytest.raises(ValueError, match="median of 0"):
            ratio({1: (1.0,)}, {1: (0.0,)})


def test_samples_are_told_apart_by_their_rounds():
    details = {"rounds": [2, 1, 2]}
    assert by_round(flat("x", "ms", samples=(1, 2, 3), details=details)) == {1: (2,), 2: (1, 3)}
    assert by_round(flat("x", "ms", samples=(1, 2, 3))) == {1: (1, 2, 3)}
    assert by_round(flat("x", "ms", missing="why")) == {}


def test_rounds_of_two_runs_are_told_apart():
    def measured(*runs):
        visits = [{"round": number, **({"run": run} if run else {})} for number, run in enumerate(runs, start=1)]
        details = {"rounds": [1, 2, 2], "visits": visits}
        return by_visit(flat("latency", "ms", "lower", (1.0, 2.0, 3.0), details=details, run="before"))

    assert measured("a", "b") == {("a", 1): (1.0,), ("b", 2): (2.0, 3.0)}
    assert measured("a", None) == {("a", 1): (1.0,), ("before", 2): (2.0, 3.0)}
    assert measured(None, None) == {("before", 1): (1.0,), ("before", 2): (2.0, 3.0)}
    assert paired_ratio_interval(measured("a", "b"), measured("c", "b")).value == 1
    with pytest.raises(ValueError, match="no round in common"):
        paired_ratio_interval(measured("a", "a"), measured("b", "b"))
