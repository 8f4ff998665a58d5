"""Which frames make a clip: worked examples of the published rules, computed by hand, and what holds for any video."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.spec import sampling
from harness.spec.reader import typed
from harness.spec.sampling import Sampling, reordered, training_indices

KINDS = st.sampled_from(get_args(sampling.Kind))
TOTALS = st.integers(1, 400)
RATES = st.sampled_from([None, 15.0, 25.0, 29.97, 60.0])


def seeded(seed=0):
    return np.random.default_rng(seed)


# dense: spans of frames x stride (DualFormer, Video Swin)


@pytest.mark.parametrize(
    "total,frames,stride,clips,starts",
    [
        # span 64 of 300: g = (300 - 64 + 1) / 4 = 59.25; floors of 29.625, 88.875, 148.125, 207.375
        (300, 32, 2, 4, [29, 88, 148, 207]),
        (300, 32, 2, 1, [118]),  # 237 / 2 = 118.5
        (64, 32, 2, 4, [0, 0, 0, 0]),  # as long as the span: g = 1/4, all floors 0
        (67, 32, 2, 4, [0, 1, 2, 3]),  # g = 1: 0.5, 1.5, 2.5, 3.5
        (63, 32, 2, 4, [0, 0, 0, 0]),  # shorter
        (16, 4, 2, 3, [1, 4, 7]),  # g = 3: 1.5, 4.5, 7.5
        (17, 4, 2, 3, [1, 5, 8]),  # g = 10/3: 1.67, 5 exactly, 8.33
    ],
)
def test_dense_views(total, frames, stride, clips, starts):
    views = sampling.test_indices(total, Sampling(frames, stride), clips)
    assert [view[0] for view in views] == starts
    assert views == [[(start + stride * i) % total for i in range(frames)] for start in starts]


def test_dense_clips_past_the_end_wrap_around():
    assert sampling.test_indices(5, Sampling(4, 2), 2) == [[0, 2, 4, 1]] * 2
    assert training_indices(5, Sampling(4, 2), seeded()) == [0, 2, 4, 1]
    assert training_indices(1, Sampling(3, 2), seeded()) == [0, 0, 0]


def test_dense_training_starts_are_uniform_and_reach_both_ends():
    """20 frames, span 8: starts 0 to 12, each with probability 1/13."""
    random, draws = seeded(), 13000
    clips = [training_indices(20, Sampling(4, 2), random) for _ in range(draws)]
    assert all(np.diff(clip).tolist() == [2, 2, 2] for clip in clips)
    counts = np.bincount([clip[0] for clip in clips])
    assert len(counts) == 13  # 20 - 8 is reached, and nothing beyond
    deviation = ((counts - draws / 13) ** 2 / (draws / 13)).sum()
    assert deviation < 32.9  # chi-square with 12 degrees of freedom is larger once in 1000 times


@pytest.mark.parametrize("total", [64, 63, 10])
def test_dense_training_clips_of_short_videos_start_at_0(total):
    assert {training_indices(total, Sampling(32, 2), seeded(seed))[0] for seed in range(20)} == {0}


def test_one_frame_more_than_the_span_gives_two_starts():
    assert {training_indices(65, Sampling(32, 2), seeded(seed))[0] for seed in range(40)} == {0, 1}


# uniform: one frame of each segment (Video Swin on Something-Something)


def test_uniform_views():
    # segments of (21 - 1) / 4 = 5 frames: boundaries 0 5 10 15 20, midpoints by integer division 2 7 12 17
    assert sampling.test_indices(21, Sampling(4, kind="uniform"), 1) == [[2, 7, 12, 17]]
    # 8 frames: segments of 1.75: 0 1.75 3.5 5.25 7 are rounded (halves to even) to 0 2 4 5 7; midpoints 1 3 4 6
    assert sampling.test_indices(8, Sampling(4, kind="uniform"), 1) == [[1, 3, 4, 6]]
    # 3 frames: segments of 0.5: 0 0.5 1 1.5 2 are rounded to 0 0 1 2 2; midpoints 0 0 1 2
    assert sampling.test_indices(3, Sampling(4, kind="uniform"), 1) == [[0, 0, 1, 2]]
    # two views (ours) divide each segment of 5 in three: 0 + 5 // 3, 0 + 10 // 3
    assert sampling.test_indices(21, Sampling(4, kind="uniform"), 2) == [[1, 6, 11, 16], [3, 8, 13, 18]]


def test_uniform_training_reaches_both_boundaries_of_each_segment():
    random, seen = seeded(), [set() for _ in range(4)]
    for _ in range(300):
        for place, index in enumerate(training_indices(21, Sampling(4, kind="uniform"), random)):
            seen[place].add(index)
    assert seen == [set(range(low, low + 6)) for low in (0, 5, 10, 15)]


# linspace: even distances (TimeSformer)


def test_linspace_views():
    # span 8 x 4 = 32 of 100 frames at 30 fps: from 0 to 31 in steps of 31/7 = 4.43
    assert sampling.test_indices(100, Sampling(8, 4, "linspace"), 1) == [[0, 4, 8, 13, 17, 22, 26, 31]]
    # two views: the second starts at 68 / 2 = 34
    assert sampling.test_indices(100, Sampling(8, 4, "linspace"), 2)[1] == [34, 38, 42, 47, 51, 56, 60, 65]
    # at 15 fps the span is 16: from 0 to 15 in steps of 15/7 = 2.14
    assert sampling.test_indices(100, Sampling(8, 4, "linspace"), 1, fps=15.0) == [[0, 2, 4, 6, 8, 10, 12, 15]]
    # shorter than the span: the last frame again
    assert sampling.test_indices(10, Sampling(4, 4, "linspace"), 2) == [[0, 5, 9, 9]] * 2


def test_linspace_training_starts_reach_both_ends():
    """20 frames, span 8: real starts in [0, 12), so whole ones from 0 to 11."""
    random = seeded()
    clips = [training_indices(20, Sampling(4, 2, "linspace"), random) for _ in range(4000)]
    assert {clip[0] for clip in clips} == set(range(12))
    assert max(clip[-1] for clip in clips) == 18


# what holds for any video


@given(
    total=TOTALS, frames=st.integers(1, 40), stride=st.integers(1, 5), clips=st.integers(1, 10), kind=KINDS, fps=RATES
)
def test_any_view_and_clip_is_of_frames_that_there_are(total, frames, stride, clips, kind, fps):
    rule = Sampling(frames, stride, kind)
    views = sampling.test_indices(total, rule, clips, fps)
    assert len(views) == clips
    for indices in (*views, training_indices(total, rule, seeded(total), fps)):
        assert len(indices) == frames
        assert all(type(index) is int and 0 <= index < total for index in indices)
        if kind != "dense" or total >= frames * stride:
            assert indices == sorted(indices)


@given(total=TOTALS, frames=st.integers(1, 40), stride=st.integers(1, 5), clips=st.integers(1, 10))
def test_dense_views_are_spread_alike_over_the_video(total, frames, stride, clips):
    span = frames * stride
    starts = [view[0] for view in sampling.test_indices(total, Sampling(frames, stride), clips)]
    if total <= span:
        assert set(starts) == {0}
        return
    assert starts == sorted(starts)
    assert starts[-1] + span <= total
    gaps = np.diff(starts)
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1
    assert abs(starts[0] - (total - span - starts[-1])) <= 1  # as much before the first view as after the last


@given(total=TOTALS, frames=st.integers(1, 40), seed=st.integers(0, 100))
def test_uniform_clips_take_one_frame_of_each_segment(total, frames, seed):
    edges = np.round(np.arange(frames + 1) * ((total - 1) / frames))
    for indices in (
        training_indices(total, Sampling(frames, kind="uniform"), seeded(seed)),
        *sampling.test_indices(total, Sampling(frames, kind="uniform"), 3),
    ):
        assert (edges[:-1] <= indices).all()
        assert (indices <= edges[1:]).all()


@given(total=TOTALS, kind=KINDS, seed=st.integers(0, 100))
def test_the_generator_decides_alone(total, kind, seed):
    rule = Sampling(8, 3, kind)
    assert training_indices(total, rule, seeded(seed)) == training_indices(total, rule, seeded(seed))


# orders


@given(indices=st.lists(st.integers(0, 99), min_size=1, max_size=40), seed=st.integers(0, 100))
def test_orders(indices, seed):
    random = seeded(seed)
    assert reordered(indices, "ordered", random) == indices
    assert reordered(indices, "single", random) == [indices[len(indices) // 2]] * len(indices)
    assert random.integers(1 << 30) == seeded(seed).integers(1 << 30)  # neither of them drew
    shuffled = reordered(indices, "shuffled", seeded(seed))
    assert sorted(shuffled) == sorted(indices)
    assert shuffled == reordered(indices, "shuffled", seeded(seed))


def test_every_permutation_is_drawn():
    random = seeded()
    assert len({tuple(reordered([5, 6, 7], "shuffled", random)) for _ in range(200)}) == 6


# wrong input


@pytest.mark.parametrize(
    "wrong,message",
    [
        (dict(kind="densely"), "sampling: kind is 'densely'; did you mean 'dense'"),
        (dict(frames=0), "sampling: frames is 0, not a whole number from 1"),
        (dict(stride=1.5), "sampling: stride is 1.5, not a whole number from 1"),
        (dict(frames=True), "sampling: frames is True"),
    ],
)
def test_impossible_rules_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        typed(Sampling, wrong, "sampling")


def test_impossible_videos_and_orders_are_refused():
    with pytest.raises(ValueError, match="a video with 0 frames has no clip"):
        training_indices(0, Sampling(), seeded())
    with pytest.raises(ValueError, match="clips is 0; allowed: 1 or more"):
        sampling.test_indices(100, Sampling(), 0)
    with pytest.raises(ValueError, match="unknown order 'reversed'; allowed: ordered, shuffled, single"):
        reordered([1], "reversed", seeded())
