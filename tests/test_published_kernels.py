"""Kernels of other packages that compute a whole rule: what they are called with is what they document.

None of them is installed here. In place of each stands a function that refuses what it refuses and then computes, pair
by pair, what it is asked for; a scheme must give the same with it as with the reference.
"""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_modern_schemes import box
from test_schemes import Case, noise
from torch.testing import assert_close

from attention_zoo import Grid, kernels
from attention_zoo.kernels import KernelUnavailable, fastvideo, natten, spargeattn

PACKAGES = {"natten": natten._na3d, "fastvideo": fastvideo._block_sparse_attn, "spargeattn": spargeattn._block_sparse}


def softmax_attention(q, k, v, allowed):
    """(b, m, n, c) with a table of pairs that broadcasts; a query without a key finds nothing."""
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~allowed, -torch.inf)
    return scores.softmax(-1).nan_to_num() @ v


def na3d(query, key, value, kernel_size, stride=1, dilation=1, is_causal=False):
    """natten 0.21.7: tensors (batch, t, h, w, heads, channels); checks as in natten/utils/checks.py."""
    grid = Grid(*query.shape[1:4])
    assert query.ndim == 6
    assert query.shape == key.shape == value.shape
    for n, k, s, d in zip(grid, kernel_size, stride, dilation, strict=True):
        assert 2 <= k
        assert k * d <= n
        assert 1 <= s <= k
    assert all(isinstance(flag, bool) for flag in is_causal)
    allowed = box(grid, dict(window=kernel_size, stride=stride, dilation=dilation, causal=is_causal))
    q, k, v = (x.flatten(1, 3).transpose(1, 2) for x in (query, key, value))
    return softmax_attention(q, k, v, allowed).transpose(1, 2).unflatten(1, tuple(grid))


def in_blocks(mask, queries, keys):
    """A table of blocks as one of tokens."""
    return mask.bool().repeat_interleave(queries, 2).repeat_interleave(keys, 3)


def block_sparse_attn(q, k, v, block_map, variable_block_sizes):
    """fastvideo-kernel: (batch, heads, 64 times blocks, channels), of each block so many tokens are real."""
    assert q.shape == k.shape == v.shape
    assert q.shape[2] == 64 * len(variable_block_sizes)
    assert q.shape[3] in (64, 128)
    assert block_map.shape == (*q.shape[:2], q.shape[2] // 64, q.shape[2] // 64)
    assert block_map.dtype == torch.bool
    assert block_map.is_contiguous()
    assert variable_block_sizes.dtype == torch.int32
    real = (torch.arange(64) < variable_block_sizes[:, None]).flatten()
    return softmax_attention(q, k, v, in_blocks(block_map, 64, 64) & real), None


def block_sparse_sage2_attn_cuda(q, k, v, mask_id=None, tensor_layout="HND"):
    """SpargeAttn on other cards than those of compute capability 9.0, but for its rounding."""
    n = q.shape[2]
    assert tensor_layout == "HND"
    assert q.shape == k.shape == v.shape
    assert n >= 128
    assert q.shape[3] in (64, 128)
    assert mask_id.shape == (*q.shape[:2], -(-n // 128), -(-n // 64))
    assert mask_id.dtype == torch.int8
    assert mask_id.is_contiguous()
    return softmax_attention(q, k, v, in_blocks(mask_id, 128, 64)[:, :, :n, :n])


@pytest.fixture
def installed(monkeypatch):
    """The packages, on a machine whose processor they take."""
    monkeypatch.setitem(sys.modules, "natten", SimpleNamespace(HAS_LIBNATTEN=True, na3d=na3d))
    monkeypatch.setitem(sys.modules, "fastvideo_kernel", SimpleNamespace(block_sparse_attn=block_sparse_attn))
    sparge = SimpleNamespace(block_sparse_sage2_attn_cuda=block_sparse_sage2_attn_cuda)
    monkeypatch.setitem(sys.modules, "spas_sage_attn", sparge)
    monkeypatch.setattr(spargeattn, "_block_size", lambda device: (128, 64))
    kernels.names()
    for name, function in PACKAGES.items():
        function.cache_clear()
        anywhere = replace(kernels.registry.get(name), missing=lambda *_: None)
        monkeypatch.setitem(kernels.registry._entries, name, anywhere)
    yield
    for function in PACKAGES.values():
        function.cache_clear()


def same(kernel, name, grid, dim=6, **options):
    """A scheme gives the same output and gradients with the kernel as with the reference."""
    module, x, results = Case(name, grid, 2, dim, options).build(), noise(2, *grid, dim), []
    for used in (kernel, "reference"):
        module.kernel = used
        y = module(x.requires_grad_())
        gradients = torch.autograd.grad((y * noise(*y.shape, seed=4)).sum(), [x, *module.parameters()])
        results.append([y.detach(), *gradients])
    for ours, reference in zip(*results, strict=True):
        assert_close(ours, reference, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        dict(window=(3, 3, 4)),
        dict(window=(2, 4, 5), stride=(1, 3, 5)),
        dict(window=(2, 2, 3), stride=(2, 1, 2), dilation=(1, 3, 2), causal=(True, False, False)),
        dict(window=(9, 9, 9), stride=(1, 7, 9)),  # clipped to the axes
    ],
)
def test_natten_gets_the_neighbourhood(installed, options):
    same("natten", "neighborhood", Grid(3, 6, 7), **options)


@pytest.mark.parametrize("window", [(3, 3, 2), [[1, 3, 1], [3, 1, 3]]])
def test_natten_gets_sliding_tiles(installed, window):
    same("natten", "sliding_tile", Grid(4, 6, 9), tile=(2, 2, 3), window=window)


@pytest.mark.parametrize(
    "options", [dict(window=(1, 3, 3)), dict(window=(2, 3, 3), dilation=(2, 1, 1)), dict(window=(3, 3, 3))]
)
def test_what_natten_refuses_is_said_with_the_way_out(installed, options):
    grid = Grid(1, 6, 6) if options == dict(window=(3, 3, 3)) else Grid(3, 6, 6)
    module = Case("neighborhood", grid, 2, 6, options).build()
    module.kernel = "natten"
    with pytest.raises(KernelUnavailable, match=r"on grid \(\d, 6, 6\); it takes windows of 2 tokens.*kernel='sdpa'"):
        module(noise(1, *grid, 6))


@pytest.mark.parametrize(("grid", "tile"), [((4, 6, 9), (4, 4, 4)), ((2, 5, 4), (2, 4, 4))])  # short tiles, small ones
def test_fastvideo_gets_the_tiles_that_were_chosen(installed, grid, tile):
    same("fastvideo", "video_sparse", Grid(*grid), dim=128, tile=tile, keep=0.4)


def test_spargeattn_gets_the_blocks_that_were_chosen(installed):
    for tile in (None, (2, 4, 4)):  # another order of the tokens; the last block is short in both
        same("spargeattn", "block_topk", Grid(4, 8, 10), dim=128, query_block=128, key_block=64, keep=0.4, tile=tile)
    same("spargeattn", "sparse_linear", Grid(4, 8, 10), dim=128, query_block=128, key_block=64, keep=0.1)  # none chosen


@pytest.mark.parametrize(
    ("kernel", "name", "options", "message"),
    [
        ("fastvideo", "video_sparse", dict(tile=(4, 4, 5)), "blocks of 80 queries and 80 keys"),
        ("fastvideo", "block_topk", dict(query_block=64, key_block=32), "the same for both"),
        ("spargeattn", "block_topk", dict(query_block=64, key_block=64), "blocks of 128 queries and 64 keys on this"),
        ("spargeattn", "video_sparse", dict(tile=(4, 4, 8)), "none but the last short"),
        ("fastvideo", "mixture_of_blocks", dict(chunk=(4, 4, 4)), "the same for both"),
    ],
)
def test_blocks_that_a_kernel_does_not_have_are_said_with_the_way_out(installed, kernel, name, options, message):
    module = Case(name, Grid(4, 8, 10), 2, 128, options).build()
    module.kernel = kernel
    with pytest.raises(KernelUnavailable, match=rf"{kernel}' cannot run here: .*{message}.*kernel='sdpa'"):
        module(noise(1, 4, 8, 10, 128))


def test_other_schemes_have_pytorchs_attention_with_them(installed):
    same("natten", "full", Grid(2, 3, 4))
    same("spargeattn", "neighborhood", Grid(2, 3, 4), window=(1, 3, 3))


def test_auto_takes_none_of_them(installed):
    x = noise(1, 2)
    assert kernels.of_rule("auto", "neighborhood", x) is kernels.of_rule("sdpa", "blocks", x) is None
    assert kernels.of_rule("natten", "neighborhood", x) is natten.neighborhood
    assert kernels.of_rule("natten", "blocks", x) is None


@pytest.mark.parametrize(
    ("name", "package", "remedy"),
    [
        ("natten", "natten", "pip install 'natten>=0.21'"),
        ("fastvideo", "fastvideo_kernel", "pip install 'fastvideo-kernel>=0.3'"),
        ("spargeattn", "spas_sage_attn", "python setup.py install"),
    ],
)
def test_a_package_that_is_not_there_is_a_reason(monkeypatch, name, package, remedy):
    assert "need a CUDA GPU, the tensors are on 'cpu'" in kernels.missing(name, "cpu", torch.bfloat16)
    monkeypatch.setitem(sys.modules, package, None)
    PACKAGES[name].cache_clear()
    try:
        reason = kernels.missing(name, "cuda", torch.bfloat16)
    finally:
        PACKAGES[name].cache_clear()
    assert f"{package} cannot be imported" in reason
    assert remedy in reason


def test_formats_and_passes_that_they_lack_are_reasons(monkeypatch):
    monkeypatch.setattr(natten, "_na3d", lambda: na3d)
    monkeypatch.setattr(fastvideo, "_block_sparse_attn", lambda: block_sparse_attn)
    monkeypatch.setattr(spargeattn, "_block_sparse", lambda: block_sparse_sage2_attn_cuda)
    assert "not float64" in kernels.missing("natten", "cuda", torch.float64)
    assert kernels.missing("natten", "cuda", torch.float32, backward=True) is None
    assert "for bfloat16, not float16" in kernels.missing("fastvideo", "cuda", torch.float16)
    assert kernels.missing("fastvideo", "cuda", torch.bfloat16, backward=True) is None
    assert "for bfloat16 and float16, not float32" in kernels.missing("spargeattn", "cuda", torch.float32)
    assert "no backward pass" in kernels.missing("spargeattn", "cuda", torch.bfloat16, backward=True)


def test_a_natten_without_its_own_kernels_is_a_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "natten", SimpleNamespace(HAS_LIBNATTEN=False))
    natten._na3d.cache_clear()
    try:
        assert "built without its own kernels" in kernels.missing("natten", "cuda", torch.float16)
    finally:
        natten._na3d.cache_clear()
