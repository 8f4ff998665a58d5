"""Intervals cover what they should, rounds carry their own variation, and noise is not called a difference."""

import re

import numpy as np
import pytest
from flat import flat
from hypothesis import given
from hypothesis import strategies as st

from records import visits
from reports import statistics
from reports.statistics import Interval, by_visit, median_interval, noise_floor, spreads

POSITIVE = st.floats(0.1, 1e6)
ROUNDS = st.dictionaries(st.integers(1, 5), st.lists(POSITIVE, min_size=1, max_size=12).map(tuple), min_size=1)


def drawn(generator, rounds=3, n=8, level=100.0, between=0.0, within=0.02):
    levels = level * np.exp(between * generator.standard_normal(rounds))
    return {i + 1: tuple(median * np.exp(within * generator.standard_normal(n))) for i, median in enumerate(levels)}


def ratio(rounds, baseline, cases=None, kind="timed", **more):
    known = spreads(cases or {"ours": rounds, "theirs": baseline}, common_drift=bool(set(rounds) & set(baseline)))
    return statistics.ratio(rounds, baseline, kind, known.get("ours"), known.get("theirs"), **more)


@given(ROUNDS)
def test_an_interval_holds_its_median(rounds):
    pooled = [sample for samples in rounds.values() for sample in samples]
    interval = median_interval(rounds)
    assert interval.value == np.median(pooled)
    assert interval.low <= interval.value <= interval.high
    assert interval == median_interval(dict(rounds))


@given(ROUNDS, st.floats(0.1, 10))
def test_a_ratio_follows_its_scale_and_is_1_to_itself(rounds, scale):
    scaled = {number: tuple(scale * sample for sample in samples) for number, samples in rounds.items()}
    interval = ratio(scaled, rounds).interval
    assert interval.value == pytest.approx(scale)
    assert interval.low <= interval.value <= interval.high
    assert not ratio(rounds, rounds).distinguishable


def test_a_single_sample_has_no_width():
    assert median_interval({1: (5.0,)}) == Interval(5.0, 5.0, 5.0)
    assert not median_interval({1: (5.0,)}).wide


def test_a_wide_interval_is_told_from_a_narrow_one():
    assert Interval(100, 89, 110).wide
    assert not Interval(100, 91, 110).wide


def test_variation_between_rounds_widens_the_interval():
    """Forty samples of one slow process and forty of a fast one say little about the next process."""
    generator = np.random.default_rng(0)
    split = {1: tuple(generator.normal(100, 1, 40)), 2: tuple(generator.normal(120, 1, 40))}
    assert median_interval(split).high > 118
    assert median_interval(split).low < 102


def test_the_interval_is_students_by_hand():
    """Medians 100, 110 and 121: logarithms in steps of 0.0953, deviation 0.0953, t of two degrees 4.3027."""
    interval = median_interval({1: (100.0,), 2: (110.0,), 3: (121.0,)})
    assert interval.high / 110 == pytest.approx(np.exp(4.302653 * np.log(1.1) / 3**0.5), rel=1e-6)
    assert interval.low * interval.high == pytest.approx(110**2)


def test_rows_that_vary_alike_share_their_spread_and_a_disturbed_one_has_its_own():
    generator = np.random.default_rng(4)
    cases = {str(n): drawn(generator, rounds=5, between=0.05) for n in range(8)}
    known = spreads(cases)
    assert len({id(spread) for spread in known.values()}) == 1
    assert known["0"].degrees == 8 * 4
    assert known["0"].deviation == pytest.approx(0.05, rel=0.3)
    cases["wild"] = {1: (50.0,), 2: (100.0,), 3: (300.0,), 4: (20.0,), 5: (100.0,)}
    cases["once"] = {1: (100.0,)}
    disturbed = spreads(cases)
    assert disturbed["0"] == known["0"] == disturbed["once"]
    assert disturbed["wild"].deviation > 0.5
    assert median_interval(cases["wild"], disturbed["wild"]).width > 1 > median_interval(cases["0"], known["0"]).width
    assert noise_floor(cases, common_drift=False) == noise_floor({n: cases[n] for n in known}, common_drift=False)


def test_a_drift_of_the_machine_falls_out_of_paired_ratios_and_of_the_floor():
    generator = np.random.default_rng(2)
    drift = {1: 1.0, 2: 1.3, 3: 0.8}
    cases = {
        name: {n: tuple(level * drift[n] * np.exp(0.005 * generator.standard_normal(8))) for n in drift}
        for name, level in (("theirs", 100), ("ours", 110), ("c", 150), ("d", 200), ("e", 300))
    }
    paired = ratio(cases["ours"], cases["theirs"], cases)
    assert paired.interval.value == pytest.approx(1.1, rel=0.01)
    assert paired.interval.width < 0.03
    assert paired.distinguishable
    assert noise_floor(cases, common_drift=True) < 0.02
    assert noise_floor(cases, common_drift=False) > 0.3
    other_day = {("friday", n): samples for n, samples in cases["ours"].items()}
    assert not ratio(other_day, cases["theirs"]).paired
    assert ratio(other_day, cases["theirs"]).interval.width > 0.3


def test_the_floor_does_not_grow_with_the_rounds():
    generator = np.random.default_rng(3)
    tables = {rounds: [drawn_table(generator, rounds) for _ in range(30)] for rounds in (3, 5, 9)}
    floors = {rounds: np.mean([noise_floor(cases) for cases in of]) for rounds, of in tables.items()}
    assert floors[3] > 1.2 * floors[5] > 1.2 * floors[9]


def drawn_table(generator, rounds, samples=2, heavy=False, levels=(100, 125, 100, 110, 150, 200, 300)):
    """The committed samples' own noise: 5 to 8 % between rounds, 4 to 5 % within one, rows differing in both.

    `heavy` has tails as of Student's t with 4 degrees of freedom, and the same variance.
    """

    def noise(size):
        return generator.standard_t(4, size) / 2**0.5 if heavy else generator.standard_normal(size)

    cases = {}
    for name, level in zip("abcdefg", levels, strict=True):
        of_rounds = level * np.exp(generator.uniform(0.05, 0.08) * noise(rounds))
        within = generator.uniform(0.04, 0.05)
        cases[name] = {n: tuple(of_rounds[n] * np.exp(within * noise(samples))) for n in range(rounds)}
    return cases


@pytest.mark.slow
@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize(("rounds", "samples", "expected"), [(3, 3, 0.87), (visits.ROUNDS, 2, 0.95), (9, 1, 0.97)])
def test_intervals_hold_the_truth_as_often_as_reports_say(rounds, samples, expected, heavy):
    """400 tables: 95 of 100 intervals hold the truth, a true difference of 25 % is found, none where there is none."""
    generator = np.random.default_rng(rounds)
    held, ratios_held, told, alike_told = [], [], [], []
    for _ in range(400):
        cases = drawn_table(generator, rounds, samples, heavy)
        total, paired = spreads(cases), spreads(cases, common_drift=True)
        for name, level in zip(cases, (100, 125, 100, 110, 150, 200, 300), strict=True):
            held.append(not median_interval(cases[name], total[name]).excludes(level))
        of = {n: statistics.ratio(cases[n], cases["a"], "timed", paired[n], paired["a"]) for n in "bc"}
        ratios_held.append(not of["b"].interval.excludes(1.25))
        told.append(of["b"].distinguishable)
        alike_told.append(of["c"].distinguishable)
    stated = [int(number) / 100 for number in re.findall(r"\b(\d\d)\b", statistics.HOLDS)]
    assert min(stated) - 0.015 <= np.mean(held) <= max(stated) + 0.02
    assert np.mean(ratios_held) >= 0.92
    assert np.mean(told) >= expected
    assert np.mean(alike_told) <= 0.07


@pytest.mark.parametrize(
    ("kind", "paired", "floor"),
    [("timed", True, 0.10), ("sized", True, 0.01), ("timed", False, 0.10), ("sized", False, 0.01)],
)
def test_the_floor_of_single_rounds_is_assumed(kind, paired, floor):
    base = {("a", 1): (100.0,)}
    for level, told in ((100 * (1 + 0.9 * floor), False), (100 * (1 + 1.1 * floor), True)):
        single = ratio({("a" if paired else "b", 1): (level,)}, base, kind=kind)
        assert (single.floor, single.once, single.paired, single.distinguishable) == (floor, True, paired, told)


def test_no_floor_is_less_than_what_runs_differ_by():
    same = dict.fromkeys(range(3), (100.0, 100.0))
    assert ratio(dict.fromkeys(range(3), (100.9,)), same).floor == 0.01
    assert not ratio(dict.fromkeys(range(3), (100.9,)), same).distinguishable
    assert ratio(dict.fromkeys(range(3), (101.2,)), same).distinguishable
    apart = {("friday", n): (108.0,) for n in range(3)}
    assert ratio(apart, same).floor == 0.10  # not in turn: at least what is assumed
    assert ratio(apart, same, least=0.01).distinguishable


def test_without_two_rounds_there_is_no_floor():
    assert noise_floor({"a": {1: (1.0, 2.0)}, "b": {}}) is None
    assert noise_floor({}) is None


def test_ratios_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="median of 0"):
        ratio({1: (1.0,)}, {1: (0.0,)})


def test_samples_are_told_apart_by_their_rounds():
    details = {"rounds": [2, 1, 2]}
    assert by_visit(flat("x", "ms", samples=(1, 2, 3), details=details)) == {(None, 1): (2,), (None, 2): (1, 3)}
    assert by_visit(flat("x", "ms", samples=(1, 2, 3))) == {(None, 1): (1, 2, 3)}
    assert by_visit(flat("x", "ms", missing="why")) == {}


def test_rounds_of_two_runs_are_told_apart():
    def measured(*runs):
        visits = [{"round": number, **({"run": run} if run else {})} for number, run in enumerate(runs, start=1)]
        details = {"rounds": [1, 2, 2], "visits": visits}
        return by_visit(flat("latency", "ms", "lower", (1.0, 2.0, 3.0), details=details, run="before"))

    assert measured("a", "b") == {("a", 1): (1.0,), ("b", 2): (2.0, 3.0)}
    assert measured("a", None) == {("a", 1): (1.0,), ("before", 2): (2.0, 3.0)}
    assert measured(None, None) == {("before", 1): (1.0,), ("before", 2): (2.0, 3.0)}
