"""Laws that every registered attention scheme obeys, and equivalences with slow versions of themselves (`oracles.py`).

The laws are in `attention_zoo.laws`; they run on every name in the registry and on a scheme that only this file knows,
as a third party would write it. A scheme that draws options (`OPTIONS`) is tried with these, any other with its
`example`.
"""

import oracles
import pytest
import torch
from einops import rearrange
from fvcore.nn import FlopCountAnalysis
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

import attention_zoo
import attention_zoo.windows
from attention_zoo import Grid, schemes, sequence
from attention_zoo.laws import LAWS, Case, example, noise
from attention_zoo.windows import Tiling, _order, labels, slabs

THIRD_PARTY = "frame_mean"
NAMES = [*schemes.names(), THIRD_PARTY]


class FrameMean(nn.Module):
    """Every token becomes a linear map of the mean of its frame: the least that the contract asks for."""

    example = dict(scale=2.0)

    def __init__(self, dim, num_heads, grid, *, scale=1.0, kernel="auto"):
        super().__init__()
        self.grid, self.scale, self.kernel = grid, scale, kernel
        self.map = nn.Linear(dim, dim)

    def forward(self, x):
        return self.scale * self.map(x).mean((2, 3), keepdim=True).expand_as(x)

    def macs(self):
        return self.grid.tokens * self.map.in_features * self.map.out_features

    def reach(self):
        frame = torch.arange(self.grid.t).repeat_interleave(self.grid.h * self.grid.w)
        return frame[:, None] == frame


@pytest.fixture(autouse=True, scope="module")
def third_party():
    """Registers it as its author would, and leaves the registry as it was for the tests of other files."""
    before = dict(schemes._entries)
    attention_zoo.register(THIRD_PARTY)(FrameMean)
    yield
    schemes._entries.clear()
    schemes._entries.update(before)


# Drawing cases ------------------------------------------------------------------------------------------------------

grids = st.builds(Grid, st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))
windows = st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(1, 7))


@st.composite
def shifted_window_options(draw):
    window = draw(windows)
    shift = draw(st.sampled_from(["none", "half"]) | st.tuples(*(st.integers(0, n - 1) for n in window)))
    padding, clipped = draw(st.sampled_from(["masked", "attended"])), draw(st.sampled_from(["geometric", "published"]))
    return dict(window=window, shift=shift, padding=padding, clipped_bias=clipped)


@st.composite
def global_pyramid_options(draw):
    scales = draw(st.lists(st.just("whole") | windows, min_size=1, max_size=3))
    branch = st.sampled_from(["single", "staged", "factorised"])
    branches = draw(st.just("released") | branch | st.lists(branch, min_size=len(scales), max_size=len(scales)))
    return dict(scales=scales, downsample=draw(st.sampled_from(["dwconv", "conv", "avgpool"])), branches=branches)


OPTIONS = {
    "local_window": st.fixed_dictionaries(dict(window=windows, relative_bias=st.booleans())),
    "shifted_window": shifted_window_options(),
    "global_pyramid": global_pyramid_options(),
    "divided": st.fixed_dictionaries(dict(fc=st.booleans())),
}


@st.composite
def cases(draw, name):
    num_heads = draw(st.integers(1, 3))
    options = draw(OPTIONS[name]) if name in OPTIONS else schemes.get(name).example
    grid = draw(grids)
    prefix = draw(st.sampled_from([0, grid.t])) if getattr(schemes.get(name), "takes_prefix", False) else 0
    return Case(name, grid, num_heads, num_heads * draw(st.integers(3, 5)), options, prefix)


# Laws ---------------------------------------------------------------------------------------------------------------


def check_macs_equal_fvcore(case):
    with torch.no_grad():
        analysis = FlopCountAnalysis(case.build().float(), tuple(x.float() for x in case.inputs()))
        counts = analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).by_operator()
    norms = counts["layer_norm"] + counts["batch_norm"]  # fvcore's rule counts these; macs() does not
    assert sum(counts.values()) - norms == (case.build().macs(case.prefix) if case.prefix else case.build().macs())


CHECKS = [*LAWS, check_macs_equal_fvcore]
KNOWN_FAILURES: dict[tuple[str, str], str] = {}  # (scheme, check): reason


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("name", NAMES)
def test_law(name, check, request):
    if reason := KNOWN_FAILURES.get((name, check.__name__)):
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))

    @given(cases(name))
    def law(case):
        check(case)

    law()


@pytest.mark.parametrize("name", NAMES)
def test_laws_hold_on_the_example(name):
    for check in CHECKS:
        check(example(name))


@pytest.mark.parametrize("kernel", ("reference", "auto"))
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_may_be_empty(name, kernel):
    case = example(name)
    prefixes = (0, case.grid.t) if getattr(schemes.get(name), "takes_prefix", False) else (0,)
    for prefix in prefixes:
        module = attention_zoo.build(name, case.dim, case.num_heads, case.grid, kernel=kernel, **case.options)
        state = {key: tensor.clone() for key, tensor in module.state_dict().items()}
        inputs = [torch.empty(0, *case.grid, case.dim, requires_grad=True)]
        inputs += [torch.empty(0, prefix, case.dim, requires_grad=True)] * bool(prefix)
        y = module.train()(*inputs)
        parts = (y,) if isinstance(y, torch.Tensor) else y
        sum(part.sum() for part in parts).backward()
        assert all(p.grad is None or not p.grad.any() for p in module.parameters())  # none moves, and none is nan
        assert inputs[0].grad.shape == inputs[0].shape
        with torch.no_grad():
            again = module.eval()(*inputs)
        expected = [(0, *module.out_grid, module.out_dim), (0, prefix, module.out_dim)]
        for parts in (y, again):
            shapes = [tuple(part.shape) for part in ((parts,) if isinstance(parts, torch.Tensor) else parts)]
            assert shapes == expected[: len(inputs)]
        for key, tensor in module.state_dict().items():  # running statistics too
            assert torch.equal(tensor, state[key]), key


# Windows ------------------------------------------------------------------------------------------------------------


def dense(module, x, **how):
    """The oracle on each clip of x (b, t, h, w, d), with the weights of `module`."""
    clips = (oracles.self_attention(clip.flatten(0, 2), module, module.num_heads, **how) for clip in x)
    return torch.stack([clip.reshape(x.shape[1:]) for clip in clips])


def same_weights(module, source):
    """Loads what the two have in common and lets nothing of `module` go unset, except a bias table, which is zeroed."""
    missing, _ = module.load_state_dict(source.state_dict(), strict=False)
    assert set(missing) <= {"bias.table"}
    for name in missing:
        module.get_parameter(name).data.zero_()
    return module


@given(cases("full"), st.tuples(*[st.integers(0, 3)] * 3))
def test_window_as_large_as_the_grid_is_full_attention(case, more):
    full, x = case.build(), case.clips(2)
    window = tuple(n + extra for n, extra in zip(case.grid, more, strict=True))
    for name in ("local_window", "shifted_window"):
        module = same_weights(Case(name, case.grid, case.num_heads, case.dim, dict(window=window)).build(), full)
        assert_close(module(x), full(x), rtol=1e-9, atol=1e-9)
        assert module.macs() == full.macs()
        assert module.reach().all()


@given(cases("full"))
def test_full_attention_is_dense_attention(case):
    module, x = case.build(), case.clips(2)
    assert_close(module(x), dense(module, x), rtol=1e-9, atol=1e-9)


@given(cases("local_window"))
def test_local_window_is_dense_attention_under_its_mask(case):
    module, x = case.build(), case.clips(2)
    bias = oracles.offset_bias(module.bias.table, module.window, case.grid) if case.options["relative_bias"] else None
    y = dense(module, x, allowed=oracles.windows_allowed(case.grid, module.window), bias=bias)
    assert_close(module(x), y, rtol=1e-9, atol=1e-9)


@given(cases("shifted_window"))
def test_shifted_window_is_dense_attention_under_its_mask_and_bias(case):
    module, x = case.build(), case.clips(2)
    window, shift = oracles.fit(case.grid, module.window, module.shift)
    padded = oracles.whole_windows(case.grid, window)
    attended = case.options["padding"] == "attended"
    grid = padded if attended else case.grid
    if case.options["clipped_bias"] == "published":
        bias = oracles.published_bias(module.bias.table, module.window, grid, window, shift)
    else:
        bias = oracles.offset_bias(module.bias.table, module.window, grid)
    if attended:
        x_seen = torch.stack([oracles.padded_clip(clip, padded) for clip in x])
    else:
        x_seen = x
    y = dense(module, x_seen, allowed=oracles.windows_allowed(grid, window, shift), bias=bias)
    t, h, w = case.grid
    assert_close(module(x), y[:, :t, :h, :w], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("padding", ["masked", "attended"])
@pytest.mark.parametrize("grid", [Grid(4, 10, 5), Grid(3, 7, 6)])
def test_shifted_window_of_a_larger_window(grid, padding):
    window, half = (2, 5, 4), (1, 2, 2)
    module = Case("shifted_window", grid, 2, 6, dict(window=window, padding=padding)).build(kernel="sdpa")
    assert module.shift == half
    seen = oracles.whole_windows(grid, window) if padding == "attended" else grid
    x = noise(2, *grid, 6)
    x_seen = torch.stack([oracles.padded_clip(clip, seen) for clip in x])
    bias = oracles.offset_bias(module.bias.table, window, seen)
    y = dense(module, x_seen, allowed=oracles.windows_allowed(seen, window, half), bias=bias)
    assert_close(module(x), y[:, : grid.t, : grid.h, : grid.w], rtol=1e-9, atol=1e-9)


SIZES = st.tuples(st.integers(1, 7), st.integers(1, 12), st.integers(1, 12))


@pytest.mark.parametrize("name", ["shifted_window", "local_window"])
@pytest.mark.parametrize("grid", [Grid(5, 7, 9), Grid(3, 7, 5)])
def test_windows_with_a_mask_each_are_those_of_slabs(grid, name, monkeypatch):
    """As on a GPU: one call for all that forbid something, or several where their masks are large."""
    module = attention_zoo.build(name, 8, 2, grid, window=(2, 3, 2)).double()
    x = torch.randn(3, *grid, 8, dtype=torch.float64, requires_grad=True)
    wanted = module(x)
    (of_x,) = torch.autograd.grad(wanted.square().sum(), x)
    calls = []
    attend = sequence.attend
    monkeypatch.setattr(sequence, "attend", lambda *a, **k: calls.append(len(a[0])) or attend(*a, **k))
    monkeypatch.setattr(attention_zoo.windows, "_by_mask", attention_zoo.windows._launches)
    for most, launches in ((attention_zoo.windows.MASK_BYTES, 2), (1, None)):
        monkeypatch.setattr(attention_zoo.windows, "MASK_BYTES", most)
        del calls[:]
        y = module(x)
        assert_close(y, wanted)
        assert_close(torch.autograd.grad(y.square().sum(), x)[0], of_x)
        assert len(calls) == (launches or 1 + (sum(calls) - calls[0]) // 3)


@given(SIZES, st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)), st.data())
def test_windows_of_a_slab_forbid_the_same_pairs(grid, window, data):
    """Windows are attended to slab by slab, each with the mask of its first window."""
    shift = tuple(data.draw(st.integers(0, n - 1)) for n in window)
    padding = data.draw(st.sampled_from(["masked", "attended"]))
    tiling = Tiling.fitted(Grid(*grid), Grid(*window), shift, padding)
    label, order = labels(tiling), _order(tiling, torch.device("cpu"))
    assert torch.equal(order.sort().values, torch.arange(tiling.count))
    for slab, numbers in zip(slabs(tiling), order.split([slab.count for slab in slabs(tiling)]), strict=True):
        same = label[numbers][:, :, None] == label[numbers][:, None]
        assert torch.equal(same, same[:1].expand_as(same))
        assert slab.forbids or same.all()


@given(cases("local_window"))
def test_no_shift_and_no_bias_is_local_window(case):
    local = case.build(relative_bias=False)
    options = dict(window=case.options["window"], shift="none")
    module = same_weights(Case("shifted_window", case.grid, case.num_heads, case.dim, options).build(), local)
    assert_close(module(case.clips(2)), local(case.clips(2)), rtol=1e-9, atol=1e-9)


@given(cases("shifted_window"))
def test_geometric_bias_depends_on_the_offset_alone(case):
    module = case.build(clipped_bias="geometric")
    used, _ = oracles.fit(case.grid, module.window)
    bias = module.bias(Grid(*used))
    assert_close(bias[0], oracles.offset_bias(module.bias.table, module.window, used), rtol=0, atol=0)


def test_published_and_geometric_bias_differ_only_where_space_is_clipped():
    def bias(grid, rule):
        case = Case("shifted_window", grid, 2, 12, dict(window=(4, 3, 3), clipped_bias=rule))
        module = case.build()
        return module.bias(grid.clipped(Grid(4, 3, 3)))

    for grid, same in ((Grid(8, 6, 6), True), (Grid(2, 6, 6), True), (Grid(8, 2, 6), False), (Grid(8, 6, 2), False)):
        assert torch.equal(bias(grid, "published"), bias(grid, "geometric")) is same


def test_padding_is_not_attended_to_unless_asked_for():
    masked, attended = (
        Case("shifted_window", Grid(3, 5, 5), 2, 12, dict(window=(2, 3, 4), padding=padding)).build()
        for padding in ("masked", "attended")
    )
    x = noise(1, 3, 5, 5, 12)
    assert (masked(x) - attended(x)).abs().max() > 1e-3


# Where sizes divide: bit for bit what code without any padding gives ------------------------------------------------


@given(st.tuples(*[st.integers(1, 3)] * 3), st.tuples(*[st.integers(1, 3)] * 3), st.sampled_from(["reference", "sdpa"]))
def test_windows_that_divide_take_the_unpadded_path(count, window, kernel):
    grid = Grid(*count).times(Grid(*window))
    module = Case("local_window", grid, 2, 6, dict(window=window)).build(kernel=kernel).float()
    x = noise(2, *grid, 6, dtype=torch.float32)
    (nt, nh, nw), (wt, wh, ww) = count, window
    q, k, v = rearrange(
        module.qkv(rearrange(x, "b (i t) (j h) (k w) d -> (b i j k) (t h w) d", i=nt, j=nh, k=nw, t=wt, h=wh)),
        "s n (qkv m c) -> qkv s m n c", qkv=3, m=2,
    )  # fmt: skip
    y = module.proj(rearrange(attention_zoo.kernels.attend(q, k, v, kernel=kernel), "s m n c -> s n (m c)"))
    y = rearrange(y, "(b i j k) (t h w) d -> b (i t) (j h) (k w) d", i=nt, j=nh, k=nw, t=wt, h=wh, w=ww)
    assert torch.equal(module(x), y)


@given(st.tuples(*[st.integers(1, 3)] * 3), st.tuples(*[st.integers(1, 3)] * 3), st.sampled_from(["dwconv", "conv"]))
def test_pyramids_that_divide_take_the_unpadded_path(scale, block, downsample):
    grid = Grid(*scale).times(Grid(*block))
    module = Case("global_pyramid", grid, 2, 6, dict(scales=[scale], downsample=downsample)).build().float()
    x = noise(2, *grid, 6, dtype=torch.float32)
    keys = rearrange(x, "b t h w d -> b d t h w")
    if max(block) > 1:
        conv = module.priors[0][0]
        keys = nn.functional.conv3d(keys, conv.weight, conv.bias, block, groups=6 if downsample == "dwconv" else 1)
    keys = rearrange(keys, "b d t h w -> b (t h w) d")
    keys = module.norm(keys) if max(block) > 1 else keys
    q = rearrange(module.q(x), "b t h w (m c) -> b m (t h w) c", m=2)
    k, v = rearrange(module.kv(keys), "b s (kv m c) -> kv b m s c", kv=2, m=2)
    y = rearrange(attention_zoo.kernels.attend(q, k, v, kernel="reference"), "b m n c -> b n (m c)")
    assert torch.equal(module(x), module.proj(y).reshape(x.shape))


# Pyramids -----------------------------------------------------------------------------------------------------------


def pyramid_oracle(module, x, scales, reduce):
    """Dense attention of every token to the pooled maps; reduce(scale index, map) makes a pooled map."""
    y = []
    for clip in x:
        keys = torch.cat([reduce(i, clip).flatten(0, 2) for i in range(len(scales))])
        if module.norm is not None:
            keys = oracles.normed(keys, module.norm)
        q, k, v = oracles.rows(module.q, 0, 1), oracles.rows(module.kv, 0, 2), oracles.rows(module.kv, 1, 2)
        tokens = clip.flatten(0, 2)
        y.append(oracles.attention(tokens, keys, q, k, v, oracles.rows(module.proj, 0, 1), module.num_heads))
    return torch.stack(y).reshape(x.shape)


def block_of(grid, scale):
    """Tokens behind one key, by the definition: the map over the scale, rounded up; a scale is at most the map."""
    scale = grid if scale == "whole" else scale
    return tuple(-(-n // min(n, size)) for n, size in zip(grid, scale, strict=True))


def test_pooled_grids_of_the_published_model():
    """The kernels of the released DualFormer on 32 frames of 224x224: two stages with two scales, one with one."""
    expected = {
        Grid(16, 56, 56): [(2, 8, 8), (1, 7, 7), (4, 2, 2)],
        Grid(16, 28, 28): [(2, 4, 4), (1, 7, 7), (4, 1, 1)],
    }
    for grid, kernels in expected.items():
        with torch.device("meta"):
            module = attention_zoo.build("global_pyramid", 8, 2, grid)
        assert [m.kernel_size for m in module.modules() if isinstance(m, nn.Conv3d)] == kernels
        keys = sum(grid.ceil_div(Grid(*block_of(grid, scale))).tokens for scale in ((8, 7, 7), (4, 4, 4)))
        assert keys == 456
    with torch.device("meta"):
        third = attention_zoo.build("global_pyramid", 8, 2, Grid(16, 14, 14), scales=[(8, 7, 7)])
    assert third.priors[0][0].kernel_size == (2, 2, 2)


@given(cases("full"), st.booleans())
def test_unpooled_pyramid_is_full_attention(case, by_name):
    full = case.build()
    scale = "whole" if by_name else tuple(case.grid)
    module = Case("global_pyramid", case.grid, case.num_heads, case.dim, dict(scales=[scale])).build()
    weights = full.state_dict()
    for part in ("weight", "bias"):
        joint = weights.pop(f"qkv.{part}")
        weights[f"q.{part}"], weights[f"kv.{part}"] = joint[: case.dim], joint[case.dim :]
    module.load_state_dict(weights)
    assert_close(module(case.clips(2)), full(case.clips(2)), rtol=1e-9, atol=1e-9)


@given(cases("global_pyramid"))
def test_mean_pooling_takes_the_mean_of_the_real_tokens(case):
    module, x = case.build(downsample="avgpool"), case.clips(2)
    scales = case.options["scales"]
    y = pyramid_oracle(
        module, x, scales, lambda i, clip: oracles.pooled(clip, block_of(case.grid, scales[i]), oracles.mean)
    )
    assert_close(module(x), y, rtol=1e-9, atol=1e-9)


@given(
    cases("global_pyramid"), st.sampled_from(["dwconv", "conv"]), st.sampled_from(["single", "staged", "factorised"])
)
def test_convolutions_pool_blocks_of_real_tokens(case, downsample, branch):
    module, x = case.build(downsample=downsample, branches=branch), case.clips(2)
    scales = case.options["scales"]

    def reduce(i, clip):
        size = 1
        for step in module.priors[i]:
            if isinstance(step, nn.Conv3d):
                clip = oracles.pooled(clip, step.kernel_size, oracles.convolution(step))
                size *= torch.tensor(step.kernel_size)
            elif isinstance(step, nn.BatchNorm3d):
                clip = oracles.batch_normed(clip, step)
            else:
                assert isinstance(step, nn.ReLU)
                clip = clip.clamp(min=0)
        assert torch.equal(size * torch.ones(3, dtype=int), torch.tensor(block_of(case.grid, scales[i])))
        return clip

    assert_close(module(x), pyramid_oracle(module, x, scales, reduce), rtol=1e-9, atol=1e-9)


# Divided and space-only ---------------------------------------------------------------------------------------------


def joint(case, layer, x):
    """Full attention of the package with the weights of `layer`, over the clips of x."""
    module = attention_zoo.build("full", case.dim, case.num_heads, Grid(*x.shape[1:4]), kernel="reference").double()
    module.load_state_dict(layer.state_dict())
    return module(x)


def values(layer, x):
    """What attention to oneself alone gives: the value, projected."""
    return layer.proj(oracles.rows(layer.qkv, 2, 3)(x))


def mapped(module, r):
    """What attention over time gave, through the linear map of TimeSformer; ViViT's model 3 has none."""
    return r if module.time_fc is None else module.time_fc(r)


def one_frame(case):
    return Case(case.name, case.grid._replace(t=1), case.num_heads, case.dim, case.options)


@given(cases("space_only"))
def test_space_only_is_full_attention_in_each_frame(case):
    module, x = case.build(), case.clips(2)
    frames = [joint(case, module, x[:, t : t + 1]) for t in range(case.grid.t)]
    assert_close(module(x), torch.cat(frames, 1), rtol=1e-9, atol=1e-9)
    assert_close(one_frame(case).build()(x[:, :1]), frames[0], rtol=1e-9, atol=1e-9)


@given(cases("divided"))
def test_divided_attention_of_one_frame_is_a_linear_map_then_space_attention(case):
    module, x = one_frame(case).build(), one_frame(case).clips(2)
    r = mapped(module, values(module.time, x))
    y = r + joint(case, module.space, oracles.normed(x + r, module.space_norm))
    assert_close(module(x), y, rtol=1e-9, atol=1e-9)


@given(cases("divided"))
def test_divided_attention_on_a_single_place_is_time_attention_then_a_linear_map(case):
    case = Case(case.name, Grid(case.grid.t, 1, 1), case.num_heads, case.dim, case.options)
    module, x = case.build(), case.clips(2)
    r = mapped(module, joint(case, module.time, x))
    assert_close(module(x), r + values(module.space, oracles.normed(x + r, module.space_norm)), rtol=1e-9, atol=1e-9)


@given(cases("divided"))
def test_untrained_divided_attention_is_space_only(case):
    case = Case(case.name, case.grid, case.num_heads, case.dim, {"fc": True})
    module, x = case.build(), case.clips(2)
    module.reset_parameters()
    space = Case("space_only", case.grid, case.num_heads, case.dim, {}).build()
    space.load_state_dict(module.space.state_dict())
    assert_close(module(x), space(oracles.normed(x, module.space_norm)), rtol=1e-9, atol=1e-9)


@given(cases("divided"))
def test_divided_attention_is_two_dense_attentions(case):
    module, x = case.build(), case.clips(2)
    at = oracles.coordinates(case.grid)
    same_place = torch.tensor([[a[1:] == b[1:] for b in at] for a in at]).double()
    same_frame = torch.tensor([[a[0] == b[0] for b in at] for a in at]).double()
    for clip, y in zip(x.flatten(1, 3), module(x).flatten(1, 3), strict=True):
        r = mapped(module, oracles.self_attention(clip, module.time, case.num_heads, same_place))
        seen = oracles.normed(clip + r, module.space_norm)
        assert_close(
            y, r + oracles.self_attention(seen, module.space, case.num_heads, same_frame), rtol=1e-9, atol=1e-9
        )


# Other properties ---------------------------------------------------------------------------------------------------


@given(cases("shifted_window"), grids)
def test_windows_do_not_depend_on_the_grid_they_were_built_for(case, grid):
    module = case.build()
    other = Case(case.name, grid, case.num_heads, case.dim, case.options).build()
    other.load_state_dict(module.state_dict())
    x = noise(1, *grid, case.dim)
    assert torch.equal(module(x), other(x))


def test_costs_of_published_blocks():
    """Multiply-adds by hand, for DualFormer-T's first stage: maps of 16x56x56, width 64."""
    n, d = 16 * 56 * 56, 64
    with torch.device("meta"):
        local = attention_zoo.build("local_window", d, 2, Grid(16, 56, 56))
        pyramid = attention_zoo.build("global_pyramid", d, 2, Grid(16, 56, 56))
    assert local.macs() == 4 * n * d * d + 2 * n * 392 * d
    fine = n * d  # every input value is read once by a depthwise convolution whose stride is its kernel
    coarse = n * d + (n // 49) * d
    assert pyramid.macs() == 2 * n * d * d + 2 * 456 * d * d + 2 * n * 456 * d + fine + coarse
