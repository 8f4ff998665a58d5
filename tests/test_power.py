"""What a number of seeds can tell is said before a sweep starts; seeds=auto takes as many as a difference needs."""

import math

import numpy as np
import pytest

from harness.accuracy import power as planned
from harness.accuracy.setup import Setup
from harness.spec import budget, case
from harness.spec.budget import Training
from harness.spec.case import Settings
from harness.spec.reader import UsageError
from records import means, power
from records.record import Quantity, Record, Visit

TOP1 = Quantity("top1_quick", "scored", "top-1", "percent", "higher")


@pytest.mark.parametrize(("difference", "seeds"), [(1.0, 10), (0.5, 34), (2.0, 5)])
def test_seeds_of_a_paired_test_are_those_of_the_textbook(difference, seeds):
    """Cohen's tables: a standardised difference of 0.5 takes 34 pairs, of 1 takes 10, at 80 % and 5 % two-sided."""
    assert power.seeds_for(difference, 1.0) == seeds
    assert power.smallest_difference(1.0, seeds) <= difference < power.smallest_difference(1.0, seeds - 1)


def test_the_smallest_difference_is_found_eight_times_of_ten():
    random, seeds = np.random.default_rng(0), 8
    difference = power.smallest_difference(2.0, seeds)
    drawn = random.normal(difference, 2.0, (600, seeds))
    assert 0.75 < np.mean([means.paired(differences, [0.0] * seeds).p < 0.05 for differences in drawn]) < 0.85


def test_what_cannot_be_told_at_all():
    assert power.smallest_difference(1.0, 1) == math.inf
    assert power.seeds_for(0.0, 1.0) is power.seeds_for(0.001, 1.0) is None
    assert power.pooled([[1.0], []]) is None
    assert power.pooled([[1.0, 3.0], [0.0, 4.0]]) == pytest.approx(math.sqrt((2 + 8) / 2))


def plan_of(seeds, samples=None, ablation="", **asked):
    """The seeds that a plan comes to for three rows, with what it says; `samples` of each row are their records."""
    setup = Setup(budget.load("quick"), Training(accuracy="quick", seeds=seeds, **asked), ablation)
    entries = case.resolve(case.load("position_encoding"), Settings())

    def read(entry):
        if not samples:
            return None
        values = samples[[sibling.case.row for sibling in entries].index(entry.case.row)]
        visits = tuple(Visit((v,), details={"seed": n, "seconds": 30.0}) for n, v in enumerate(values))
        measured = TOP1.of([0.0], {"videos": 400})
        measured = type(measured)(**vars(measured) | {"visits": visits})
        return Record("x", "position_encoding", entry.case.row, {}, {"top1_quick": measured})

    made, told = planned.settled(setup, entries, read, slots=2)
    return made.training.seeds, told


VARIED = [[80.0, 82.0, 84.0], [80.0, 84.0, 82.0], [81.0, 82.0, 80.0]]  # differences vary by about 2.6 points


def test_auto_seeds_are_as_many_as_a_difference_takes_in_the_time_there_is():
    three, told = plan_of("auto", VARIED)
    assert len(three) > 6
    assert "of its records" in told
    assert "400 test videos" in told
    six, _ = plan_of("auto", VARIED, difference=6.0)
    assert 3 <= len(six) < len(three)
    few, told = plan_of("auto", VARIED, within=3.0)  # 3 minutes of 2 slots: 12 trainings of 30 s, 4 for each of 3 rows
    assert few == (0, 1, 2, 3)
    assert f"within=3 minutes allows no more, 3 points take {len(three)}" in told
    with pytest.raises(UsageError, match="give within=3 or more"):
        plan_of("auto", VARIED, within=1.0)


def test_without_records_the_budget_says_how_much_seeds_vary():
    recorded = budget.load("quick").recorded
    assert set(recorded) == {"spread", "videos", "seconds", "top1", "seeds"}
    told = plan_of((0, 1, 2))[1]
    assert "as recorded for accuracy=quick" in told
    assert "as recorded for scheme_accuracy" in plan_of((0, 1, 2), ablation="scheme_accuracy")[1]
    assert f"over 8 seeds, in the committed record, the default model comes to {recorded['top1']} %" in told
    assert "committed record" not in plan_of((0, 1, 2), epochs=1.0)[1]  # another recipe has another spread
    assert "one seed" in plan_of((0,))[1]
    with pytest.raises(UsageError, match="train with seeds"):
        plan_of("auto", data="clips")
