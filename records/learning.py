"""Did it learn? What the accuracies on the clips that a training sees say about it, beside what it reaches in the test.

A training is cut into parts of as many steps (ten, where it has as many). The clips of each part are answered before
they are learnt from. A last part that is no better than chance has not learnt; one that is still well above the parts
before it is unfinished: the figure of its test says how long it was trained, not what it can do.
"""

from __future__ import annotations

from collections.abc import Sequence

from records.means import share_interval

NOT_LEARNT, UNFINISHED = "has not learnt", "unfinished"
QUICK_MODE = "quick mode, a few steps"  # of a training that was cut short to see whether it runs
STEEP = 5.0  # percentage points gained from one tenth of a training to the next, beyond what chance gives


def trouble(curve: Sequence[float], clips: int, chance: float) -> str | None:
    """What is the matter with a training, in words; None where it learnt and its curve is flat.

    `curve`: percentages of right answers, part by part; `clips` of each part; `chance`: percent right without learning.
    """
    if share_interval(min(1.0, curve[-1] / 100), clips).percent.low <= chance:  # so many may well come from guessing
        return NOT_LEARNT
    return UNFINISHED if climbs(curve, clips) else None


def climbs(curve: Sequence[float], clips: int) -> bool:
    """Whether the last two parts are steeply above the two before them; with few parts, the last above the one before.

    Two parts of `clips` answers each differ by chance: a rise counts from `STEEP` points a part on, and from two
    standard errors of its difference.
    """
    if len(curve) < 2:
        return False
    wide = 2 if len(curve) >= 4 else 1
    late, early = sum(curve[-wide:]) / wide, sum(curve[-2 * wide : -wide]) / wide
    share = (late + early) / 200
    noise = 100 * (2 * share * (1 - share) / (clips * wide)) ** 0.5
    return late - early > max(STEEP * wide, 2 * noise)
