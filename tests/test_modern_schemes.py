"""What the schemes of today must obey beyond the laws of `test_schemes.py`: where one of them is another one."""

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_schemes import CHECKS, Case, dense, noise
from torch.testing import assert_close

from attention_zoo import Grid

GRIDS = st.builds(Grid, st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))
SIZES = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))
FLAGS = st.tuples(st.booleans(), st.booleans(), st.booleans())


def same(a, b, grid, weights=None):
    """Both give the same on a clip, with the weights of b."""
    a.load_state_dict(weights or b.state_dict())
    x = noise(1, *grid, a.dim, seed=3)
    assert_close(a(x), b(x), rtol=1e-9, atol=1e-9)


def scheme(name, grid, **options):
    return Case(name, grid, 2, 6, options).build()


# Neighborhood -------------------------------------------------------------------------------------------------------


@st.composite
def neighborhoods(draw):
    window = draw(SIZES)
    stride = tuple(draw(st.integers(1, n)) for n in window)
    dilation = draw(st.tuples(*[st.integers(1, 3)] * 3))
    return dict(window=window, stride=stride, dilation=dilation, causal=draw(FLAGS))


def axis_allowed(i, j, length, window, stride, dilation, causal):
    """The rule for one query and one key of an axis, as the specification says it."""
    if i % dilation != j % dilation:
        return False
    a, b, n = i // dilation, j // dilation, -(-(length - i % dilation) // dilation)
    k = min(window, n)
    s = min(stride, k)
    first = a // s * s
    if causal:
        return b <= a and b > min(first + s - 1, n - 1) - k
    start = min(max(min(first + s // 2, n - 1) - k // 2, 0), n - k)
    return start <= b < start + k


def box(grid, options):
    """The rule for every pair of tokens."""
    at = oracles.coordinates(grid)
    rules = [
        (grid[axis], *(options[name][axis] for name in ("window", "stride", "dilation", "causal"))) for axis in range(3)
    ]
    return torch.tensor([[all(axis_allowed(i[a], j[a], *rules[a]) for a in range(3)) for j in at] for i in at])


@given(GRIDS, neighborhoods())
def test_neighborhood_is_dense_attention_under_its_mask(grid, options):
    module, x, allowed = scheme("neighborhood", grid, **options), noise(2, *grid, 6), box(grid, options)
    assert torch.equal(module.reach(), allowed)
    assert_close(module(x), dense(module, x, allowed=allowed.double()), rtol=1e-9, atol=1e-9)
    assert module.macs() == 4 * grid.tokens * 36 + 2 * 6 * int(allowed.sum())


@given(GRIDS, SIZES, st.tuples(*[st.integers(0, 2)] * 3))
def test_neighborhood_as_long_as_the_axes_is_full_attention(grid, stride, more):
    window = tuple(n + extra for n, extra in zip(grid, more, strict=True))
    stride = tuple(map(min, stride, window))
    module, full = scheme("neighborhood", grid, window=window, stride=stride), scheme("full", grid)
    same(module, full, grid)
    assert module.macs() == full.macs()


@given(SIZES, st.tuples(*[st.integers(1, 3)] * 3))
def test_neighborhood_in_blocks_is_local_window(window, count):
    grid = Grid(*count).times(Grid(*window))
    module, local = (
        scheme("neighborhood", grid, window=window, stride=window),
        scheme("local_window", grid, window=window),
    )
    assert torch.equal(module.reach(), local.reach())
    same(module, local, grid)


@given(GRIDS)
def test_neighborhood_of_one_frame_is_space_only(grid):
    same(scheme("neighborhood", grid, window=(1, grid.h, grid.w)), scheme("space_only", grid), grid)


@given(st.integers(1, 3), st.integers(0, 3))
def test_neighborhood_moves_with_the_clip_by_multiples_of_the_stride(stride, steps):
    grid = Grid(1, 1, 24)
    module, x = scheme("neighborhood", grid, window=(1, 1, 5), stride=(1, 1, stride)), noise(1, 1, 1, 24, 6)
    moved = module(x.roll(stride * steps, dims=3))
    inner = slice(6 + stride * steps, 18)  # away from the borders, before and after
    assert_close(moved[..., inner, :], module(x).roll(stride * steps, dims=3)[..., inner, :], rtol=1e-9, atol=1e-9)


# The laws of every scheme, with drawn options -----------------------------------------------------------------------

OPTIONS = {"neighborhood": neighborhoods()}
NOT_OF_OPTIONS = ("check_every_parameter_gets_gradient",)  # looks at the example


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("name", OPTIONS)
def test_law_with_drawn_options(name, check):
    if check.__name__ in NOT_OF_OPTIONS:
        return

    @settings(max_examples=15)
    @given(GRIDS, OPTIONS[name], st.integers(1, 3), st.integers(3, 5))
    def law(grid, options, num_heads, width):
        check(Case(name, grid, num_heads, num_heads * width, options))

    law()
