"""What the schemes of today must obey beyond the laws of `test_schemes.py`: where one of them is another one."""

import subprocess
import sys

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_schemes import CHECKS, Case, dense, noise
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import attention_zoo
from attention_zoo import Grid, blocks, gathered, neighborhood
from attention_zoo._draw import _read, draw, pairs
from attention_zoo.cpu import boxes
from attention_zoo.factorised_dot_product import over_space, over_time
from attention_zoo.linear import rotations, turned
from attention_zoo.projected import projected

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


@given(GRIDS, neighborhoods(), st.sampled_from([0, 1, 32, 10**6]))
def test_windows_in_boxes_are_the_windows(grid, options, gather):
    """What neighbours see of the box that they share is each one's own window, however many share it."""
    module = scheme("neighborhood", grid, **options)
    key = module._key(grid)
    cost, boxes.GATHER = boxes.GATHER, gather
    try:
        buckets = neighborhood.halos(*key)
    finally:
        boxes.GATHER = cost
    seen = torch.zeros(grid.tokens, grid.tokens, dtype=torch.bool)
    for queries, keys, *allowed in buckets:
        for row, of_row in zip(queries, keys, strict=True):
            assert len(set(row)) == len(row)
            every = allowed[0] if allowed else torch.ones(len(row), len(of_row), dtype=torch.bool)
            seen[torch.from_numpy(row)[:, None], torch.from_numpy(of_row)] = torch.as_tensor(every)
    assert torch.equal(seen, module.reach())
    every_query = torch.cat([torch.from_numpy(queries).flatten() for queries, *_ in buckets])
    assert torch.equal(every_query.sort().values, torch.arange(grid.tokens))


@given(GRIDS, neighborhoods())
def test_neighborhood_gives_the_same_whether_somebody_counts_or_not(grid, options):
    module, x = scheme("neighborhood", grid, **options), noise(2, *grid, 6)
    with FlopCounterMode(display=False) as counter:
        counted = module(x)
    assert counter.get_total_flops() == 4 * module.macs()
    assert_close(module(x), counted, rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module")
def spans():
    """Any run of tokens, however short, is attended to as a slice."""
    least, gathered.SPAN = gathered.SPAN, 1
    gathered._made.cache_clear()
    yield
    gathered.SPAN = least
    gathered._made.cache_clear()


@given(GRIDS, neighborhoods(), st.booleans())
def test_whole_spans_of_tokens_give_the_same_without_a_copy(spans, grid, options, whole_frames):
    if whole_frames:
        options |= dict(window=(options["window"][0], 9, 9), dilation=(1, 1, 1), causal=(False,) * 3)
        rule = neighborhood.halos
        tables = gathered.tables(torch.device("cpu"), rule, *scheme("neighborhood", grid, **options)._key(grid))
        assert all(bucket.spans for bucket in tables.buckets)
    module, x = scheme("neighborhood", grid, **options), noise(2, *grid, 6)
    with torch.inference_mode():
        sliced = module(x)
    assert_close(sliced, module(x).detach(), rtol=1e-9, atol=1e-9)


@given(GRIDS)
def test_neighborhood_of_one_place_is_time_only(grid):
    same(scheme("neighborhood", grid, window=(grid.t, 1, 1)), scheme("time_only", grid), grid)


@given(GRIDS, st.tuples(*[st.sampled_from([1, 3, 5])] * 3))
def test_a_window_of_odd_length_is_centred_away_from_the_borders(grid, window):
    seen = scheme("neighborhood", grid, window=window).reach()
    at = torch.tensor(oracles.coordinates(grid))
    half = torch.tensor(window) // 2
    inner = ((at >= half) & (at < torch.tensor(grid) - half)).all(1)
    near = ((at[:, None] - at).abs() <= half).all(-1)
    assert torch.equal(seen[inner], near[inner])


# Sliding tile -------------------------------------------------------------------------------------------------------


@st.composite
def sliding_tiles(draw):
    return dict(tile=draw(SIZES), window=draw(SIZES))


def in_tiles(grid, tile, window):
    """The rule as it is published, for a grid of whole tiles: clamped centre, half the window on both sides."""
    at = [[n // size for n, size in zip(token, tile, strict=True)] for token in oracles.coordinates(grid)]
    count = [n // size for n, size in zip(grid, tile, strict=True)]

    def allowed(a, b, n, k):
        centre = min(max(a, k // 2), n - 1 - k // 2)
        return abs(centre - b) <= k // 2

    return torch.tensor([[all(map(allowed, i, j, count, window)) for j in at] for i in at])


@given(st.tuples(*[st.integers(1, 4)] * 3), st.tuples(*[st.integers(1, 2)] * 3), st.tuples(*[st.integers(1, 4)] * 3))
def test_sliding_tile_is_the_published_mask_and_neighborhood_in_tiles(count, tile, window):
    grid = Grid(*count).times(Grid(*tile))
    module = scheme("sliding_tile", grid, tile=tile, window=window)
    # Where twice half a window is as long as the axis the published clamp leaves tiles out; released ones never are.
    if all(k // 2 * 2 + 1 <= n or k >= 2 * n for k, n in zip(window, count, strict=True)):
        assert torch.equal(module.reach(), in_tiles(grid, tile, window))
    odd = (min(k + 1 - k % 2, n) for k, n in zip(window, count, strict=True))
    same_window = Grid(*odd).times(Grid(*tile))
    plain = scheme("neighborhood", grid, window=same_window, stride=tile)
    assert torch.equal(module.reach(), plain.reach())
    assert module.macs() == plain.macs()
    same(module, plain, grid)


@given(st.tuples(*[st.integers(1, 3)] * 3), st.tuples(*[st.integers(1, 3)] * 3))
def test_sliding_tile_that_sees_all_tiles_is_full_and_one_tile_local_window(count, tile):
    grid = Grid(*count).times(Grid(*tile))
    same(scheme("sliding_tile", grid, tile=tile, window=count), scheme("full", grid), grid)
    same(scheme("sliding_tile", grid, tile=tile, window=(1, 1, 1)), scheme("local_window", grid, window=tile), grid)


def test_windows_for_another_number_of_heads_are_refused():
    with pytest.raises(ValueError, match="3 windows for 2 heads; give one for each head"):
        scheme("sliding_tile", Grid(2, 4, 4), window=[[1, 1, 1]] * 3)


# Video sparse -------------------------------------------------------------------------------------------------------

SHARES = st.sampled_from([0.05, 0.2, 0.5, 1.0])


@st.composite
def video_sparses(draw):
    return dict(tile=draw(SIZES), keep=draw(SHARES))


def split_weights(module, **zero):
    """The weights of `full` inside of a scheme that has more."""
    return {name: value for name, value in module.state_dict().items() if name.startswith(("qkv", "proj."))}


@given(GRIDS, SIZES)
def test_video_sparse_of_all_tiles_without_gate_is_full(grid, tile):
    module, full = scheme("video_sparse", grid, tile=tile, keep=1.0), scheme("full", grid)
    torch.nn.init.zeros_(module.gate.weight)
    torch.nn.init.zeros_(module.gate.bias)
    full.load_state_dict(split_weights(module))
    x = noise(2, *grid, 6)
    assert_close(module(x), full(x), rtol=1e-9, atol=1e-9)


@given(GRIDS, SIZES)
def test_video_sparse_of_all_tiles_is_full_and_the_coarse_result_through_its_gate(grid, tile):
    module, full, x = scheme("video_sparse", grid, tile=tile, keep=1.0), scheme("full", grid), noise(2, *grid, 6)
    full.load_state_dict(split_weights(module))
    q, k, v = (oracles.rows(module.qkv, part, 3)(x.flatten(1, 3)) for part in range(3))
    tiles = [torch.from_numpy(members) for members in blocks.tiles_of(grid, grid.clipped(Grid(*tile)))]
    q, k, v = (torch.stack([part[:, members].mean(1) for members in tiles], 1) for part in (q, k, v))
    coarse = torch.empty(2, grid.tokens, 6, dtype=x.dtype)
    for head in (slice(0, 3), slice(3, 6)):
        means = (q[..., head] @ k[..., head].mT / 3**0.5).softmax(-1) @ v[..., head]
        for number, members in enumerate(tiles):
            coarse[:, members, head] = means[:, number, None]
    gated = (coarse.view_as(x) * module.gate(x)) @ module.proj.weight.T
    assert_close(module(x), full(x) + gated, rtol=1e-9, atol=1e-9)


@given(GRIDS)
def test_the_coarse_result_of_one_tile_is_the_mean_value(grid):
    module, full, x = scheme("video_sparse", grid, tile=tuple(grid)), scheme("full", grid), noise(1, *grid, 6)
    full.load_state_dict(split_weights(module))
    value = oracles.rows(module.qkv, 2, 3)(x).mean((1, 2, 3), keepdim=True)
    coarse = (value * module.gate(x)) @ module.proj.weight.T
    assert_close(module(x), full(x) + coarse, rtol=1e-9, atol=1e-9)


@given(st.tuples(*[st.integers(1, 3)] * 3), SIZES, SHARES, st.randoms())
def test_video_sparse_follows_a_permutation_inside_of_its_tiles(count, tile, keep, random):
    tile = Grid(*(min(size, 3) for size in tile))
    grid = Grid(*count).times(tile)
    module, x = scheme("video_sparse", grid, tile=tile, keep=keep), noise(1, *grid, 6)
    order = torch.arange(grid.tokens)
    for members in blocks.tiles_of(grid, tile):
        shuffled = list(members)
        random.shuffle(shuffled)
        order[torch.from_numpy(members)] = torch.tensor(shuffled)
    moved = module(x.flatten(1, 3)[:, order].view_as(x)).flatten(1, 3)
    assert_close(moved, module(x).flatten(1, 3)[:, order], rtol=1e-9, atol=1e-9)


@given(GRIDS, video_sparses())
def test_video_sparse_is_dense_attention_in_its_selection_and_between_tiles(grid, options):
    module, x = scheme("video_sparse", grid, **options), noise(2, *grid, 6)
    torch.nn.init.zeros_(module.gate.weight)
    torch.nn.init.zeros_(module.gate.bias)
    assert_close(module(x), in_selection(module, x), rtol=1e-9, atol=1e-9)


def in_selection(module, x):
    """Dense attention of each head under the selection that the module reports."""
    y = []
    for clip, selected in zip(x, module.selection(x), strict=True):
        bias = torch.zeros(selected.shape, dtype=x.dtype).masked_fill(~selected, -torch.inf)
        y.append(oracles.self_attention(clip.flatten(0, 2), module, module.num_heads, bias=bias).reshape(clip.shape))
    return torch.stack(y)


# Blocks chosen by pooled scores -------------------------------------------------------------------------------------


@st.composite
def block_topks(draw):
    """Options whose number of chosen blocks does not depend on the clip."""
    options = dict(rule="sparge", keep=draw(SHARES), query_block=draw(st.integers(1, 40)))
    return options | dict(key_block=draw(st.integers(1, 40)), tile=draw(st.none() | SIZES))


@st.composite
def any_block_topks(draw):
    options = draw(block_topks()) | dict(rule=draw(st.sampled_from(["sparge", "sla", "nabla", "xattention"])))
    if options["rule"] in ("nabla", "xattention"):
        options["threshold"] = draw(SHARES)
    if options["rule"] == "xattention":
        options["stride"] = draw(st.integers(1, 4))
        options |= {side: options["stride"] * draw(st.integers(1, 8)) for side in ("query_block", "key_block")}
    if options["rule"] == "nabla":
        options["own_block"] = draw(st.booleans())
    if options["rule"] == "sparge":
        options["threshold"] = draw(st.none() | SHARES)
        options["similarity"] = draw(st.none() | st.sampled_from([-0.5, 0.0, 0.3]))
    return options


@given(GRIDS, any_block_topks())
def test_block_topk_is_dense_attention_in_its_selection(grid, options):
    module, x = scheme("block_topk", grid, **options), noise(2, *grid, 6)
    selected = module.selection(x)
    if options["rule"] == "sla":  # may choose nothing, and then finds nothing
        expected = in_selection(module, x) if selected.any(-1).all() else module.proj.bias.expand_as(x)
    else:
        assert selected.any(-1).all()
        expected = in_selection(module, x)
    assert_close(module(x), expected, rtol=1e-9, atol=1e-9)


@given(GRIDS, block_topks(), st.sampled_from(["sparge", "sla", "nabla", "xattention"]))
def test_block_topk_that_keeps_all_is_full(grid, options, rule):
    options |= dict(rule=rule, keep=1.0, stride=1, threshold=1.0 if rule in ("nabla", "xattention") else None)
    module = scheme("block_topk", grid, **options)
    same(module, scheme("full", grid), grid)


@given(GRIDS, block_topks(), st.sampled_from(["sparge", "sla"]))
def test_a_constant_added_to_all_keys_changes_no_choice(grid, options, rule):
    module, x = scheme("block_topk", grid, **(options | dict(rule=rule))), noise(1, *grid, 6)
    before, y = module.chosen(x), module(x)
    module.qkv.bias.data[6:12] += noise(6, seed=9)
    assert torch.equal(module.chosen(x), before)
    assert_close(module(x), y, rtol=1e-9, atol=1e-9)


def flows(module, x):
    """Where the gradient of each token of the only clip goes; and where the scheme says that it may."""
    x, n = x.requires_grad_(), x[0, ..., 0].numel()
    per_token = module(x).reshape(n, -1) @ noise(x.shape[-1], seed=2)
    (gradient,) = torch.autograd.grad(per_token, x, torch.eye(n, dtype=x.dtype), is_grads_batched=True)
    return (gradient.reshape(n, n, -1) != 0).any(-1)


def check_gradient_flows_inside_reach(case):
    """All that a ReLU leaves: it may shut tokens off."""
    module = case.build()
    assert not (flows(module, case.clips()) & ~module.reach()).any()


def check_gradient_flows_to_what_was_chosen_alone(case):
    """Where the choice is known and not all of it need matter: a query over the mean of one block has no gradient."""
    module, x = case.build(), case.clips()
    seen = module.selection(x)[0].any(0) | torch.eye(case.grid.tokens, dtype=torch.bool)
    assert module.reach().all()
    assert not (flows(module, x) & ~seen).any()


def check_gradient_flows_inside_the_selection(case):
    """The form of "reach is where gradient flows" for choices made from content: reach is all, a choice no gradient."""
    module, x = case.build(), case.clips()
    selected = module.selection(x)[0].any(0)
    several = selected.sum(-1, keepdim=True) > 1  # over a single key the softmax gives the query no gradient
    own = torch.eye(case.grid.tokens, dtype=torch.bool) & several
    assert module.reach().all()
    assert torch.equal(flows(module, x), selected | own)


def test_options_that_cannot_be_are_refused():
    for options, message in (
        (dict(keep=0.0), "keep 0.0 and threshold None must be shares"),
        (dict(rule="xattention", stride=8, query_block=12, key_block=20), "allowed: the divisors of 4"),
        (dict(rule="topk"), "rule 'topk' is not one of sparge, sla, nabla, xattention"),
    ):
        with pytest.raises(ValueError, match=message):
            scheme("block_topk", Grid(2, 4, 4), **options)


def counted(module, x):
    """Multiply-adds of one clip, of what really ran on it."""
    with FlopCounterMode(display=False) as counter:
        module(x)
    return counter.get_total_flops() / 2


@given(GRIDS, any_block_topks())
def test_where_content_decides_the_count_is_that_of_the_blocks_chosen(grid, options):
    """macs() says the most; what runs are the scores and the chosen blocks, padding of a short last one included."""
    module, x = scheme("block_topk", grid, **options), noise(1, *grid, 6)
    queries, keys = module.cuts(Grid(*x.shape[1:4]), x.device)
    per_block = (module.chosen(x)[0] * queries.sizes[:, None]).sum().item() * keys.slots
    most = module._kept(keys.count) if module._static() else keys.count
    assert counted(module, x) == module.macs() - 2 * 6 * grid.tokens * most * keys.slots + 2 * 3 * per_block
    if not keys.ragged:
        assert per_block == module.selection(x).sum()


@given(GRIDS)
def test_of_equal_blocks_the_first_are_chosen(grid):
    for rule in ("sparge", "sla"):
        module = scheme("block_topk", grid, rule=rule, keep=0.5, query_block=5, key_block=3)
        torch.nn.init.zeros_(module.qkv.weight)  # else rounding decides
        torch.nn.init.zeros_(module.qkv.bias)
        chosen = module.chosen(noise(1, *grid, 6))
        kept = chosen[0, 0, 0].sum()
        assert chosen[..., :kept].all()
        assert not chosen[..., kept:].any()


# Radial -------------------------------------------------------------------------------------------------------------


@st.composite
def radials(draw):
    options = dict(rule=draw(st.sampled_from(["released", "paper"])), sink=draw(st.booleans()))
    options |= dict(block=draw(st.integers(1, 12)), decay=draw(st.sampled_from([0.2, 1.0, 2.0])))
    return options | dict(threshold=draw(st.none() | st.sampled_from([1, 4, 128])))


@given(GRIDS, radials())
def test_radial_is_dense_attention_under_its_mask(grid, options):
    module, x = scheme("radial", grid, **options), noise(2, *grid, 6)
    assert module.reach().any(-1).all()
    assert_close(module(x), dense(module, x, allowed=module.reach().double()), rtol=1e-9, atol=1e-9)
    assert module.macs() == 4 * grid.tokens * 36 + 2 * 6 * int(module.reach().sum())


@given(GRIDS, st.booleans())
def test_radial_of_the_paper_pair_by_pair(grid, sink):
    places = grid.h * grid.w

    def allowed(i, p, j, q):
        distance = abs(i - j)
        spread = 2 ** int(torch.tensor(float(max(distance, 1))).log2().floor())
        near = abs(p - q) + 1 <= places / spread if spread <= places else False
        far = p == q and spread > places and distance % -(-spread // places) == 0
        return near or far or (sink and j == 0)

    tokens = [(t, h * grid.w + w) for t, h, w in oracles.coordinates(grid)]
    expected = torch.tensor([[allowed(i, p, j, q) for j, q in tokens] for i, p in tokens])
    assert torch.equal(scheme("radial", grid, rule="paper", sink=sink).reach(), expected)


@given(GRIDS)
def test_radial_of_wide_frames_is_full_and_of_narrow_ones_space_only(grid):
    if (grid.h * grid.w).bit_length() >= (grid.t - 1).bit_length():  # at the largest distance the base is 1 at least
        assert scheme("radial", grid, block=1, threshold=1, decay=1e6).reach().all()
    narrow = scheme("radial", grid, block=grid.h * grid.w, threshold=10**6, sink=False)
    same(narrow, scheme("space_only", grid), grid)


@given(GRIDS, st.sampled_from(["released", "paper"]))
def test_radial_without_a_sink_is_symmetric_where_blocks_round_nothing(grid, rule):
    reach = scheme("radial", grid, rule=rule, sink=False, block=1).reach()
    assert torch.equal(reach, reach.T)


# Linear -------------------------------------------------------------------------------------------------------------


@st.composite
def linears(draw):
    return dict(norm=draw(st.booleans()))


@given(GRIDS, linears(), st.randoms())
def test_linear_attention_follows_a_permutation_of_the_tokens(grid, options, random):
    module, x = scheme("linear", grid, **options), noise(2, *grid, 6)
    order = list(range(grid.tokens))
    random.shuffle(order)
    moved = x.flatten(1, 3)[:, order].view_as(x)
    assert_close(module(moved).flatten(1, 3), module(x).flatten(1, 3)[:, order], rtol=1e-9, atol=1e-9)


@given(GRIDS, linears())
def test_linear_attention_is_a_weighted_mean_of_values(grid, options):
    module, x = scheme("linear", grid, **options), noise(1, *grid, 6)
    q, k, v = (oracles.rows(module.qkv, part, 3)(x[0].flatten(0, 2)) for part in range(3))
    if options["norm"]:
        q, k = (
            part / (part.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight
            for part, norm in ((q, module.norm_q), (k, module.norm_k))
        )
    heads = []
    for part in (slice(0, 3), slice(3, 6)):
        weights = q[:, part].clamp(min=0) @ k[:, part].clamp(min=0).T
        heads.append(weights @ v[:, part] / (weights.sum(1, keepdim=True) + 1e-15))
    assert_close(module(x)[0].flatten(0, 2), module.proj(torch.cat(heads, 1)), rtol=1e-9, atol=1e-9)


@given(st.integers(1, 3), st.integers(0, 2))
def test_rotary_positions_turn_with_the_offset_alone(length, start):
    angles = rotations(Grid(6, 2, 2), 8, torch.device("cpu")).view(6, 2, 2, 4)
    q, k = noise(1, 1, 1, 8), noise(1, 1, 1, 8, seed=1)
    products = [
        (turned(q, angles[t, 0, 1][None]) * turned(k, angles[t + length, 1, 1][None])).sum() for t in (0, start)
    ]
    assert_close(*products)


@st.composite
def sparse_linears(draw):
    options = dict(keep=draw(SHARES), feature=draw(st.sampled_from(["softmax", "elu"])))
    return options | dict(query_block=draw(st.integers(1, 40)), key_block=draw(st.integers(1, 40)))


@given(GRIDS, sparse_linears())
def test_untrained_sparse_linear_is_its_selection(grid, options):
    module, x = scheme("sparse_linear", grid, **options), noise(2, *grid, 6)
    module.reset_parameters()
    sparse = scheme("block_topk", grid, rule="sla", **{k: v for k, v in options.items() if k != "feature"})
    sparse.load_state_dict(split_weights(module))
    assert torch.equal(module.chosen(x), sparse.chosen(x))
    assert_close(module(x), sparse(x), rtol=1e-9, atol=1e-9)


# Mixture of blocks --------------------------------------------------------------------------------------------------


@st.composite
def mixtures(draw):
    """Options whose number of chosen chunks does not depend on the clip."""
    chunk = [draw(st.none() | st.just(size)) for size in draw(SIZES)]
    return dict(chunk=chunk, topk=draw(st.integers(1, 5)))


@st.composite
def any_mixtures(draw):
    options = draw(mixtures()) | dict(scope=draw(st.sampled_from(["query_head", "head_global", "overall", "block"])))
    if options["scope"] == "block" or draw(st.booleans()):
        options["threshold"] = draw(SHARES)
    return options


@given(GRIDS, any_mixtures())
def test_mixture_of_blocks_is_dense_attention_in_its_selection(grid, options):
    module, x = scheme("mixture_of_blocks", grid, **options), noise(2, *grid, 6)
    assert module.selection(x).diagonal(dim1=2, dim2=3).all()  # the own chunk always
    assert_close(module(x), in_selection(module, x), rtol=1e-9, atol=1e-9)


@given(GRIDS, any_mixtures())
def test_a_mixture_gives_the_same_chunk_by_chunk(grid, options):
    module, x = scheme("mixture_of_blocks", grid, **options), noise(2, *grid, 6)
    attention_zoo.use_kernel(module, "sdpa")
    with torch.inference_mode():
        by_chunk = module(x)
    assert_close(by_chunk, module(x).detach(), rtol=1e-9, atol=1e-9)


@given(GRIDS, any_mixtures())
def test_the_count_of_a_mixture_is_that_of_the_chunks_chosen(grid, options):
    module, x = scheme("mixture_of_blocks", grid, **options), noise(1, *grid, 6)
    _, keys = module.cuts(Grid(*x.shape[1:4]), x.device)
    static = module.threshold is None and module.scope == "query_head"
    most = min(module.topk, keys.count) if static else keys.count
    chosen = module.chosen(x).sum().item() * keys.slots
    assert counted(module, x) == module.macs() - 2 * 6 * grid.tokens * most * keys.slots + 2 * 3 * chosen


@given(GRIDS, SIZES, st.sampled_from(["query_head", "head_global", "overall"]))
def test_mixture_of_one_block_is_local_window_and_of_all_full(grid, chunk, scope):
    own = scheme("mixture_of_blocks", grid, chunk=chunk, topk=1, scope=scope)
    same(own, scheme("local_window", grid, window=chunk), grid)
    same(scheme("mixture_of_blocks", grid, chunk=chunk, topk=1000, scope=scope), scheme("full", grid), grid)


# Pyramid sparse -----------------------------------------------------------------------------------------------------

RISING = st.lists(st.floats(0, 1), min_size=4, max_size=4).map(sorted)


@st.composite
def pyramids(draw):
    sizes = dict(query_block=draw(st.integers(1, 40)), key_block=8 * draw(st.integers(1, 4)))
    return sizes | dict(ratios=draw(RISING), tile=draw(st.integers(1, 8)))


def pooled_attention(module, x):
    """Dense attention of one clip over tokens that are replaced by means, as the levels that the module reports say."""
    n, (queries, keys), levels = x[0, ..., 0].numel(), module._sizes(x[0, ..., 0].numel()), module.levels(x)[0]
    q, k, v = (oracles.rows(module.qkv, part, 3)(x[0].flatten(0, 2)) for part in range(3))
    k, v = (torch.cat([part, part[-1:].expand(-n % keys, -1)]) for part in (k, v))
    heads = []
    for m, head in enumerate((slice(0, 3), slice(3, 6))):
        rows = []
        for i in range(n):
            scores, values = [], []
            for j, level in enumerate(levels[m, i // queries].tolist()):
                if level:
                    block = slice(j * keys, (j + 1) * keys if level > 1 else min((j + 1) * keys, n))
                    mean = [part[block, head].unflatten(0, (-1, level)).mean(1) for part in (k, v)]
                    scores.append(mean[0] @ q[i, head] / 3**0.5 + torch.tensor(float(level)).log())
                    values.append(mean[1])
            rows.append(torch.cat(scores).softmax(0) @ torch.cat(values))
        heads.append(torch.stack(rows))
    return module.proj(torch.cat(heads, 1)).view_as(x)


@settings(max_examples=20)
@given(GRIDS, pyramids(), st.sampled_from(["topk", "threshold"]), st.none() | st.tuples(*[st.floats(-1, 1)] * 3))
def test_pyramid_sparse_is_attention_over_means(grid, options, mode, similarity):
    module, x = scheme("pyramid_sparse", grid, mode=mode, similarity=similarity, **options), noise(1, *grid, 6)
    assert module.selection(x).any(-1).all()
    assert_close(module(x), pooled_attention(module, x), rtol=1e-6, atol=1e-6)  # log of 2 in float32 above


@given(GRIDS, pyramids(), st.none() | st.tuples(*[st.floats(-1, 1)] * 3))
def test_the_count_of_a_pyramid_by_share_is_that_of_its_levels(grid, options, similarity):
    module, x = scheme("pyramid_sparse", grid, mode="threshold", similarity=similarity, **options), noise(1, *grid, 6)
    (queries, keys), levels = module._sizes(grid.tokens), module.levels(x)[0]
    sizes = torch.tensor([min(queries, grid.tokens - i * queries) for i in range(levels.shape[1])])
    chosen = (torch.where(levels > 0, keys // levels.clamp(min=1), 0) * sizes[:, None]).sum().item()
    assert counted(module, x) == module.macs() - 2 * 6 * grid.tokens * levels.shape[2] * keys + 2 * 3 * chosen


@given(GRIDS, pyramids())
def test_pyramid_sparse_without_pooling_is_full(grid, options):
    same(scheme("pyramid_sparse", grid, **(options | dict(ratios=[1.0] * 4))), scheme("full", grid), grid)


@given(st.integers(1, 3), st.sampled_from([[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1], [0.3, 0.5, 0.7, 1]]))
def test_pyramid_sparse_of_equal_tokens_is_full_at_any_level(count, ratios):
    grid = Grid(count, 4, 4)
    module, full = (scheme(name, grid, **how) for name, how in (
        ("pyramid_sparse", dict(ratios=ratios, key_block=16, query_block=8, tile=2)), ("full", {})))  # fmt: skip
    full.load_state_dict(module.state_dict())
    x = noise(1, count, 1, 1, 6).expand(1, *grid, 6)
    assert (module.levels(x) > 0).all()
    assert_close(module(x), full(x), rtol=1e-9, atol=1e-9)


# Factorised forms ---------------------------------------------------------------------------------------------------


@given(GRIDS)
def test_factorised_dot_product_is_dense_attention_by_halves_of_the_heads(grid):
    module, x = scheme("factorised_dot_product", grid), noise(2, *grid, 6)
    at = oracles.coordinates(grid)
    place = torch.tensor([[a[1:] == b[1:] for b in at] for a in at])
    frame = torch.tensor([[a[0] == b[0] for b in at] for a in at])
    bias = torch.zeros(2, *place.shape, dtype=x.dtype).masked_fill(~torch.stack([place, frame]), -torch.inf)
    expected = [oracles.self_attention(clip.flatten(0, 2), module, 2, bias=bias).view(clip.shape) for clip in x]
    assert_close(module(x), torch.stack(expected), rtol=1e-9, atol=1e-9)


@given(GRIDS)
def test_factorised_dot_product_of_one_frame_gives_values_by_half_of_its_heads(grid):
    grid = grid._replace(t=1)
    module, x = scheme("factorised_dot_product", grid), noise(1, *grid, 6)
    module.proj.weight.data.copy_(torch.eye(6))
    module.proj.bias.data.zero_()
    assert_close(module(x)[..., :3], oracles.rows(module.qkv, 2, 3)(x)[..., :3], rtol=1e-9, atol=1e-9)


@given(GRIDS)
def test_the_halves_of_a_factorised_dot_product_swapped_are_its_heads_permuted(grid):
    module, x = scheme("factorised_dot_product", grid), noise(2, *grid, 6)
    q, k, v = projected(x, module.qkv, 2)
    halves = [
        over(*(part[:, :, head] for part in (q, k, v)), grid.t, kernel="reference")
        for over, head in ((over_space, slice(0, 1)), (over_time, slice(1, 2)))
    ]
    swapped = module.proj(torch.cat(halves, 2).flatten(2)).view_as(x)
    heads = torch.tensor([3, 4, 5, 0, 1, 2])
    rows = torch.cat([heads, heads + 6, heads + 12])
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    weights["qkv.weight"], weights["qkv.bias"] = weights["qkv.weight"][rows], weights["qkv.bias"][rows]
    weights["proj.weight"] = weights["proj.weight"][:, heads]
    module.load_state_dict(weights)
    assert_close(module(x), swapped, rtol=1e-9, atol=1e-9)


@given(GRIDS)
def test_separable_of_one_frame_is_space_only_and_of_one_place_full(grid):
    for size, other in ((grid._replace(t=1), "space_only"), (Grid(grid.t, 1, 1), "full")):
        same(scheme("separable", size), scheme(other, size), size)


@given(GRIDS)
def test_separable_is_two_dense_attentions(grid):
    module, x = scheme("separable", grid), noise(1, *grid, 6)
    at = oracles.coordinates(grid)
    masks = [torch.tensor([[a[part] == b[part] for b in at] for a in at]) for part in (slice(1, 3), slice(0, 1))]
    q, k, y = (oracles.rows(module.qkv, part, 3)(x[0].flatten(0, 2)) for part in range(3))
    for mask in masks:
        heads = []
        for head in (slice(0, 3), slice(3, 6)):
            scores = (q[:, head] @ k[:, head].T / 3**0.5).masked_fill(~mask, -torch.inf)
            heads.append(scores.softmax(1) @ y[:, head])
        y = torch.cat(heads, 1)
    assert_close(module(x), module.proj(y).view_as(x), rtol=1e-9, atol=1e-9)


@st.composite
def mixings(draw):
    return dict(segment=draw(st.none() | st.integers(1, 4)))


@given(GRIDS)
def test_space_time_mixing_inside_of_single_frames_is_not_space_only_but_for_no_channel(grid):
    """Without a neighbour the mixed channels are zeros; where too few channels are there, none is mixed."""
    same(scheme("space_time_mixing", grid), scheme("space_only", grid), grid)  # 6 channels, an eighth of which is none
    module = Case("space_time_mixing", grid, 2, 8, dict(segment=1)).build()
    zeroed = Case("space_only", grid, 2, 8, {}).build()
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    for part in ("weight", "bias"):
        for first in (8, 16):  # keys and values, the two channels that come from neighbours
            weights[f"qkv.{part}"][first : first + 2] = 0
    zeroed.load_state_dict(weights)
    x = noise(1, *grid, 8)
    assert_close(module(x), zeroed(x), rtol=1e-9, atol=1e-9)


@given(st.integers(2, 5), st.integers(1, 5), st.integers(1, 3))
def test_space_time_mixing_shifts_channels_of_keys_and_values(t, places, segment):
    grid = Grid(t, 1, places)
    module = Case("space_time_mixing", grid, 2, 8, dict(segment=segment)).build()
    x = noise(1, *grid, 8)[0, :, 0]
    q, k, v = (oracles.rows(module.qkv, part, 3)(x) for part in range(3))
    for i, frame in enumerate(x):
        mixed = []
        for part in (k, v):
            own = part[i].clone()
            own[:, 0] = part[i + 1, :, 0] if i + 1 < t and (i + 1) // segment == i // segment else 0
            own[:, 1] = part[i - 1, :, 1] if i and (i - 1) // segment == i // segment else 0
            mixed.append(own)
        y = oracles.attention(frame, frame, lambda _, i=i: q[i], lambda _, k=mixed[0]: k, lambda _, v=mixed[1]: v,
                              module.proj, 2)  # fmt: skip
        assert_close(module(x[None, :, None])[0, i, 0], y, rtol=1e-9, atol=1e-9)


# Trajectory ---------------------------------------------------------------------------------------------------------


@st.composite
def trajectories(draw):
    approximation = draw(st.sampled_from(["orthoformer", "nystrom"]))
    return dict(
        intended=draw(st.booleans()), landmarks=draw(st.none() | st.integers(1, 70)), approximation=approximation
    )


@given(GRIDS)
def test_trajectory_of_one_frame_is_full(grid):
    module, full = scheme("trajectory", grid._replace(t=1)), scheme("full", grid._replace(t=1))
    full.load_state_dict(split_weights(module))
    x = noise(2, *grid._replace(t=1), 6)
    assert_close(module(x), full(x), rtol=1e-9, atol=1e-9)


@given(st.integers(1, 5))
def test_trajectory_of_one_place_averages_values(t):
    module, x = scheme("trajectory", Grid(t, 1, 1)), noise(1, t, 1, 1, 6)
    value = oracles.rows(module.qkv, 2, 3)(x[0].flatten(0, 2))
    key = oracles.rows(module.proj_kv, 0, 2)
    y = oracles.attention(value, value, module.proj_q, key, lambda weighted: weighted, module.proj, 2)
    assert_close(module(x)[0].flatten(0, 2), y, rtol=1e-9, atol=1e-9)


@given(GRIDS, trajectories())
def test_trajectory_gives_the_same_in_the_order_of_inference(grid, options):
    module, x = scheme("trajectory", grid, **options), noise(2, *grid, 6)
    with torch.inference_mode():
        sooner = module(x)
    assert_close(sooner, module(x.requires_grad_()).detach(), rtol=1e-9, atol=1e-9)


@given(GRIDS)
def test_nystrom_with_a_landmark_for_each_token_is_exact_where_its_inverse_is(grid):
    """Then the share of a query is a row of one and zeros, but for what six steps leave of the inverse."""
    module, x = scheme("trajectory", grid, landmarks=1000, approximation="nystrom"), noise(1, *grid, 6)
    plain = scheme("trajectory", grid)
    plain.load_state_dict(module.state_dict())
    q, k, _ = projected(x, module.qkv, 2)
    along = module._along(q, k, grid.t)
    scores = (along.queries @ along.keys.mT / 3**0.5).softmax(-1)
    assert_close(along.queries.transpose(1, 2), q.view(1, grid.t, -1, 2, 3).transpose(1, 2).flatten(1, 2))
    left = (scores @ along.between - torch.eye(grid.tokens, dtype=x.dtype)).abs().amax().item()
    if left < 1e-9:
        assert_close(module(x), plain(x), rtol=1e-6, atol=1e-6)


@given(GRIDS, st.booleans())
def test_a_class_token_sees_all_and_is_seen_by_none(grid, intended):
    module, full = scheme("trajectory", grid, intended=intended), scheme("full", Grid(1, 1, grid.tokens + 1))
    full.load_state_dict(split_weights(module))
    x, prefix = noise(2, *grid, 6), noise(2, 1, 6, seed=5)
    y, seen = module(x, prefix)
    assert_close(y, module(x), rtol=0, atol=0)
    everything = torch.cat([prefix, x.flatten(1, 3)], 1)[:, None, None]
    assert_close(seen, full(everything)[:, 0, 0, :1], rtol=1e-9, atol=1e-9)
    with FlopCounterMode(display=False) as counter:
        module(x[:1], prefix[:1])
    assert counter.get_total_flops() == 2 * module.macs(1)


# Depthwise relation -------------------------------------------------------------------------------------------------


@given(GRIDS, st.sampled_from([1, 3, 5]))
def test_a_relation_of_the_centre_alone_is_a_linear_map(grid, size):
    module, x = scheme("depthwise_relation", grid, size=size), noise(2, *grid, 6)
    torch.nn.init.zeros_(module.relation.weight)
    torch.nn.init.zeros_(module.relation.bias)
    module.relation.weight.data[:, 0, size // 2, size // 2, size // 2] = 1
    assert_close(module(x), module.proj(module.value(x)), rtol=1e-9, atol=1e-9)


# The laws of every scheme, with drawn options -----------------------------------------------------------------------

OPTIONS = {
    "neighborhood": neighborhoods(),
    "sliding_tile": sliding_tiles(),
    "video_sparse": video_sparses(),
    "block_topk": block_topks(),
    "radial": radials(),
    "linear": linears(),
    "sparse_linear": sparse_linears(),
    "mixture_of_blocks": mixtures(),
    "pyramid_sparse": pyramids(),
    "space_time_mixing": mixings(),
    "trajectory": trajectories(),
    "depthwise_relation": st.fixed_dictionaries(dict(size=st.sampled_from([1, 3, 5]))),
}
FORMS = {
    ("block_topk", "check_reach_is_where_gradient_flows"): check_gradient_flows_inside_the_selection,
    ("mixture_of_blocks", "check_reach_is_where_gradient_flows"): check_gradient_flows_inside_the_selection,
    ("pyramid_sparse", "check_reach_is_where_gradient_flows"): check_gradient_flows_to_what_was_chosen_alone,
    ("linear", "check_reach_is_where_gradient_flows"): check_gradient_flows_inside_reach,
}
NOT_OF_OPTIONS = ("check_every_parameter_gets_gradient",)  # looks at the example


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("name", OPTIONS)
def test_law_with_drawn_options(name, check):
    if check.__name__ in NOT_OF_OPTIONS:
        return
    check = FORMS.get((name, check.__name__), check)

    @settings(max_examples=15)
    @given(GRIDS, OPTIONS[name], st.integers(1, 3), st.integers(3, 5))
    def law(grid, options, num_heads, width):
        check(Case(name, grid, num_heads, num_heads * width, options))

    law()


# Training ---------------------------------------------------------------------------------------------------------


GATHERING = (
    "neighborhood", "sliding_tile", "radial",
    "video_sparse", "block_topk", "mixture_of_blocks", "pyramid_sparse",
)  # fmt: skip


@pytest.mark.parametrize("name", GATHERING)
def test_keys_that_are_gathered_again_give_the_same_gradients(name, monkeypatch):
    module, x = Case(name, Grid(4, 6, 8), 2, 12, attention_zoo.schemes.get(name).example).build(), noise(2, 4, 6, 8, 12)
    gradients, kept = [], []
    for limit in (gathered.KEPT, 1000):
        monkeypatch.setattr(gathered, "KEPT", limit)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda s, sizes=sizes: sizes.append(s.numel()) or s, lambda s: s):
            y = module(x)
        kept.append(sum(sizes))
        gradients.append(torch.autograd.grad((y * noise(*y.shape, seed=4)).sum(), list(module.parameters())))
    assert kept[1] < kept[0]
    for again, once in zip(*gradients, strict=True):
        assert_close(again, once, rtol=1e-9, atol=1e-9)


# Drawing ------------------------------------------------------------------------------------------------------------


def drawn_by(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "attention_zoo", "draw", *arguments], capture_output=True, text=True, check=False
    )


def test_a_picture_is_drawn(tmp_path):
    done = drawn_by("neighborhood", "grid=4x6x8", "query=3,5,7", "window=[2,3,3]", f"out={tmp_path / 'new' / 'n.png'}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "new" / "n.png").read_bytes().startswith(b"\x89PNG")
    assert done.stdout == f"{tmp_path / 'new' / 'n.png'}\n"


def test_a_choice_is_drawn_on_a_clip_of_ones_own(tmp_path):
    """On pixels of which one frame is unlike the others, every token looks at what its own choice is."""
    pixels = np.zeros((8, 12, 16, 3), dtype=np.uint8)
    pixels[4:] = np.random.default_rng(0).integers(0, 255, (4, 12, 16, 3))
    np.save(tmp_path / "clip.npy", pixels)
    grid, options = Grid(4, 6, 8), attention_zoo.schemes.get("block_topk").example
    tokens = _read(tmp_path / "clip.npy", grid, 0)
    assert tokens.shape == (1, *grid, 32)
    assert_close(tokens[0, :2], tokens[0, :1, :1, :1].expand(2, 6, 8, 32))
    assert not torch.equal(
        pairs("block_topk", grid, 0, options)[0].seen, pairs("block_topk", grid, 0, options, tokens)[0].seen
    )
    out = tmp_path / "drawn.png"
    assert draw(["block_topk", "grid=4x6x8", "query_block=16", f"clip={tmp_path / 'clip.npy'}", f"out={out}"]) == out
    for name, array, message in (
        (
            "flat",
            np.zeros((4, 6, 8)),
            "array of 4x6x8, not of frames, height, width and channels with at least the 4x6x8",
        ),
        ("short", np.zeros((3, 6, 8, 1)), "array of 3x6x8x1"),
    ):
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(ValueError, match=message):
            _read(tmp_path / f"{name}.npy", grid, 0)
    with pytest.raises(ValueError, match=r"cannot be read .*numpy\.save"):
        _read(tmp_path / "none.npy", grid, 0)


@pytest.mark.parametrize("name", attention_zoo.schemes.names())
def test_what_is_drawn_is_reach_or_choice(name):
    grid, options = Grid(4, 6, 8), attention_zoo.schemes.get(name).example
    table, how = pairs(name, grid, options=options)
    seen = table.of((1, 2, 3), grid)
    module = attention_zoo.build(name, 32, 4, grid, **options)
    assert seen.shape == tuple(grid)
    if hasattr(module, "selection"):
        assert how.startswith("chose")
        assert 0 < seen.sum() < grid.tokens
    else:
        assert torch.equal(seen.bool().flatten(), module.reach()[(1 * 6 + 2) * 8 + 3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["neighbourhood"], "did you mean 'neighborhood'?"),
        (["full", "query=4,0,0", "grid=4x4x4"], "query [4, 0, 0] is no place of grid (4, 4, 4); allowed: (3, 3, 3)"),
        (["full", "grid=4xax4"], "grid: 'a' is not a number"),
        (["full", "4x4x4"], "say draw NAME, then settings such as grid=8x14x14"),
        (["full", "windows=3"], "full has no option 'windows'"),
        (["--help"], "draw --help: say draw NAME, then"),
        ([], "draw: say draw NAME, then"),
        (["full", "out=full.svg"], "out=full.svg must end in .png"),
        (["full", f"out={__file__}/full.png"], "cannot make its folder"),
    ],
)
def test_what_cannot_be_drawn_says_why(arguments, message):
    with pytest.raises((ValueError, KeyError)) as caught:
        draw(arguments)
    assert message in str(caught.value)


def test_a_wrong_command_makes_no_folder(tmp_path):
    with pytest.raises(ValueError, match="no option 'windows'"):
        draw(["full", "windows=3", f"out={tmp_path / 'new' / 'full.png'}"])
    assert not list(tmp_path.iterdir())


def test_the_command_line_prints_the_error_alone():
    done = drawn_by("nothing")
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown attention scheme 'nothing'")
