"""Every kernel computes the same attention as the reference in float64, forward and backward, or says why it cannot."""

import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import attention_zoo
from attention_zoo import Grid, kernels
from attention_zoo.kernels import SHORT, KernelUnavailable, attend

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in TOLERANCE}

# Batch, heads, queries, keys, channels. Lengths of 64 modulo 128 are where cuDNN's masked backward pass gives NaN.
SHAPES = [(2, 3, 64, 192, 8), (1, 2, 192, 192, 16), (3, 1, 98, 49, 32), (2, 2, 1, 1, 4), (2, 2, 33, 7, 5)]
PUBLISHED = [(1, 4, 3136, 392, 32), (1, 2, 3136, 3136, 32), (8, 4, 392, 392, 32), (2, 2, 64, 64, 32)]


def tensors(shape, bias_shape, masked, seed=0):
    """q, k, v, a bias or None, and a gradient for the output, in float64; at least one key is left to each query."""
    b, m, n, s, c = shape
    generator = torch.Generator().manual_seed(seed)

    def noise(*sizes):
        return torch.randn(*sizes, generator=generator, dtype=torch.float64)

    q, k, v, upstream = noise(b, m, n, c), noise(b, m, s, c), noise(b, m, s, c), noise(b, m, n, c)
    if bias_shape is None:
        return q, k, v, None, upstream
    bias = noise(b if "b" in bias_shape else 1, m if "m" in bias_shape else 1, n, s)
    if masked:
        forbidden = torch.rand(bias.shape, generator=generator) < 0.4
        forbidden[..., : s // 2] = True  # whole blocks of leading keys, which online softmax must survive
        forbidden[..., s // 2] = False
        bias = bias.masked_fill(forbidden, -torch.inf)
    return q, k, v, bias, upstream


def run(kernel, values, dtype, device="cpu", backward=True):
    """The output and, if `backward`, the gradients of q, k, v and bias, as float64 on the CPU."""
    *inputs, upstream = (None if x is None else x.to(device, dtype, copy=True) for x in values)
    given_inputs = [x.requires_grad_(backward) for x in inputs if x is not None]
    with torch.set_grad_enabled(backward):
        y = attend(*inputs, kernel=kernel)
        results = [y, *torch.autograd.grad(y, given_inputs, upstream)] if backward else [y]
    assert y.dtype == dtype
    return [x.detach().to("cpu", torch.float64) for x in results]


def check_agreement(kernel, shape, bias_shape, masked, dtype, device="cpu", backward=True):
    values = tensors(shape, bias_shape, masked)
    rounded = [None if x is None else x.to(dtype).double() for x in values]  # what the kernel under test is given
    expected = run("reference", rounded, torch.float64, device, backward)
    names = ["output", "gradient of q", "gradient of k", "gradient of v", "gradient of bias"]
    for name, got, wanted in zip(names, run(kernel, values, dtype, device, backward), expected, strict=False):
        close = dict(rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        assert_close(got, wanted, **close, msg=lambda text, name=name: f"{name} of {kernel}: {text}")


def need(kernel, device, dtype, backward):
    if reason := kernels.missing(kernel, device, dtype, backward):
        pytest.skip(reason)


biases = st.sampled_from([(None, False), ("", False), ("", True), ("m", True), ("b", True), ("bm", True)])
sizes = st.integers(1, 70)
shapes = st.tuples(st.integers(1, 3), st.integers(1, 4), sizes, sizes, st.integers(1, 40))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("kernel", [name for name in kernels.names() if name not in ("flex", "xformers")])
@given(shape=st.sampled_from(SHAPES) | shapes, bias=biases)
def test_forward_and_backward_agree_with_the_reference(kernel, dtype, shape, bias):
    need(kernel, "cpu", dtype, backward=True)
    check_agreement(kernel, shape, *bias, dtype)


@pytest.mark.parametrize("kernel", ["flex", "xformers"])
def test_kernels_that_compile_or_need_a_gpu_agree_forward(kernel):
    need(kernel, "cpu", torch.float32, backward=False)
    check_agreement(kernel, SHAPES[0], "m", True, torch.float32, backward=False)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bias", [(None, False), ("bm", True)], ids=str)
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_flex_agrees_forward(shape, bias, dtype):
    need("flex", "cpu", dtype, backward=False)
    check_agreement("flex", shape, *bias, dtype, backward=False)


def test_flex_compiles_every_shape_of_a_model(monkeypatch):
    """PyTorch gives up compiling after eight shapes and goes on with the full matrix of scores in memory."""
    from torch.nn.attention.flex_attention import flex_attention

    from attention_zoo.kernels import flex

    need("flex", "cpu", torch.float32, backward=False)
    quick = torch.compile(flex_attention, dynamic=False, backend="eager")
    monkeypatch.setattr(flex, "_compiled", lambda *_: quick)
    torch._dynamo.reset()
    counted = torch._dynamo.utils.counters["frames"]
    counted.clear()
    with torch.no_grad():
        for n in range(16, 28):
            attend(*(torch.randn(1, 1, n, 8) for _ in range(3)), kernel="flex")
    torch._dynamo.reset()
    assert counted["ok"] == 12


@pytest.mark.gpu
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("kernel", kernels.names())
def test_kernels_agree_on_a_gpu(kernel, dtype, backward):
    need(kernel, "cuda", dtype, backward)
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        for shape in (*SHAPES[:3], *PUBLISHED):
            for bias in ((None, False), ("m", False), ("bm", True)):
                check_agreement(kernel, shape, *bias, dtype, "cuda", backward)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32


@pytest.mark.gpu
@pytest.mark.parametrize("name", attention_zoo.schemes.names())
@pytest.mark.parametrize("kernel", kernels.names())
def test_schemes_train_on_a_gpu(kernel, name):
    need(kernel, "cuda", torch.bfloat16, backward=True)
    options = attention_zoo.schemes.get(name).example
    module = attention_zoo.build(name, 64, 2, Grid(4, 6, 8), kernel=kernel, **options).to("cuda", torch.bfloat16)
    x = torch.randn(2, 4, 6, 8, 64, device="cuda", dtype=torch.bfloat16)
    module(x).float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in module.parameters())


def operators(function):
    """The names of the operators that a call runs, those that other operators call included."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    return {event.key for event in profile.key_averages()}


WITH_TABLES = (  # made by numpy, between two graphs
    "neighborhood", "sliding_tile", "radial",
    "video_sparse", "block_topk", "sparse_linear", "mixture_of_blocks", "pyramid_sparse",
)  # fmt: skip
NO_SOFTMAX = ("linear", "depthwise_relation", "recurrent_gate")
FUSED, UNFUSED = "aten::_scaled_dot_product_flash_attention_for_cpu", "aten::_scaled_dot_product_attention_math"


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_a_learned_bias_does_not_cost_the_fused_kernel(off):
    """PyTorch takes its slow path for any bias that requires a gradient, even where gradients are off."""
    q, k, v, bias, _ = tensors((2, 2, 24, 24, 8), "m", masked=False)
    bias.requires_grad_()
    with off():
        ran = operators(lambda: attend(q, k, v, bias, kernel="sdpa"))
    assert FUSED in ran
    assert UNFUSED not in ran


@pytest.mark.parametrize("bias_shape", ["", "m", "b", "bm"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_learned_bias_keeps_no_scores_for_the_backward_pass(bias_shape, dtype):
    dtype = DTYPES[dtype]
    tensors_here = {}
    for kernel in ("reference", "sdpa"):
        *inputs, upstream = tensors((5, 3, 40, 48, 8), bias_shape, masked=True)
        inputs = [x.to(dtype).requires_grad_() for x in inputs]
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x.numel()) or x, lambda x: x):
            y = attend(*inputs, kernel=kernel)
        y.backward(upstream.to(dtype))
        tensors_here[kernel] = [y.detach(), *(x.grad for x in inputs)]
        assert (max(kept) >= 5 * 3 * 40 * 48) == (kernel == "reference" or bias_shape == "bm")  # then the bias itself
    for actual, expected in zip(tensors_here["sdpa"], tensors_here["reference"], strict=True):
        assert_close(actual, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * expected.abs().max().item())


def test_a_learned_bias_is_trained_on_the_fused_kernel():
    q, k, v, bias, _ = (x.float().requires_grad_() for x in tensors((2, 2, 40, 40, 8), "m", masked=False))
    ran = operators(lambda: attend(q, k, v, bias, kernel="sdpa"))
    assert FUSED in ran
    assert UNFUSED not in ran


def test_a_learned_bias_has_its_gradient_under_autocast_too():
    q, k, v, bias, upstream = (x.float() for x in tensors((5, 3, 40, 48, 8), "m", masked=True))
    for leaf in (q, k, v, bias):
        leaf.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = attend(q, k, v, bias, kernel="sdpa")
    assert y.dtype == torch.bfloat16
    y.backward(upstream.bfloat16())
    actual, bias.grad = bias.grad, None
    attend(q, k, v, bias, kernel="reference").backward(upstream)
    assert actual.dtype == torch.float32
    assert_close(actual, bias.grad, rtol=0.05, atol=0.05 * bias.grad.abs().max().item())


@pytest.mark.parametrize("name", [name for name in attention_zoo.schemes.names() if name not in NO_SOFTMAX])
def test_schemes_run_fused(name):
    module = attention_zoo.build(name, 12, 2, Grid(4, 6, 8), **attention_zoo.schemes.get(name).example).eval()
    attention_zoo.use_kernel(module, "sdpa")
    with torch.no_grad():
        ran = operators(lambda: module(torch.randn(2, 4, 6, 8, 12)))
    assert FUSED in ran
    assert UNFUSED not in ran


def test_auto_is_a_kernel_that_can_run():
    for dtype in DTYPES.values():
        name = kernels.resolve("auto", "cpu", dtype, backward=True)
        assert kernels.missing(name, "cpu", dtype, backward=True) is None


def test_a_bias_of_another_dtype_is_taken():
    q, k, v, bias, _ = (x.float() for x in tensors(SHAPES[0], "m", True))
    for kernel in ("reference", "sdpa"):
        assert attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), bias, kernel=kernel).dtype == torch.bfloat16


@pytest.mark.parametrize("name", kernels.names())
def test_an_unavailable_kernel_says_what_it_needs_and_what_there_is(name):
    """On the meta device, where only the reference and sdpa run, and so on every machine."""
    assert kernels.registry.get(name).needs
    reason = kernels.missing(name, "meta", torch.float32)
    if name in ("reference", "sdpa"):
        assert reason is None
        return
    q = torch.empty(1, 1, 4, 4, device="meta")
    with pytest.raises(KernelUnavailable) as caught:
        attend(q, q, q, kernel=name)
    assert reason in str(caught.value)
    assert f"kernel {name!r} cannot run here" in str(caught.value)
    assert "available: reference, sdpa" in str(caught.value)
    assert "kernel='auto'" in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="speaks of a machine without a GPU")
def test_xformers_needs_a_gpu():
    assert "needs a CUDA GPU" in kernels.missing("xformers", "cpu", torch.float32)


def test_flex_has_no_backward_pass_on_cpu():
    q = torch.randn(1, 1, 4, 4, requires_grad=True)
    with pytest.raises(KernelUnavailable, match=r"no backward pass on CPU.*torch\.no_grad\(\)"):
        attend(q, q, q, kernel="flex")
    free, bias = q.detach(), torch.randn(1, 1, 4, 4, requires_grad=True)
    with pytest.raises(KernelUnavailable, match="no backward pass on CPU"):
        attend(free, free, free, bias, kernel="flex")


def test_flex_without_a_compiler_says_so(monkeypatch, tmp_path):
    from attention_zoo.kernels import flex

    monkeypatch.setenv("PATH", str(tmp_path))
    flex._find_compiler.cache_clear()
    try:
        assert "found no C++ compiler" in kernels.missing("flex", "cpu", torch.float32)
    finally:
        flex._find_compiler.cache_clear()


def test_an_xformers_that_does_not_load_is_a_reason(monkeypatch):
    from attention_zoo.kernels import xformers

    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    xformers._operator.cache_clear()
    try:
        reason = kernels.missing("xformers", "cuda", torch.float16)
    finally:
        xformers._operator.cache_clear()
    assert "xformers cannot be imported" in reason
    assert "pip install xformers" in reason


def test_an_xformers_whose_library_does_not_load_says_what_it_needs(monkeypatch):
    """With a torch of CUDA 13 it imports, and every operator refuses."""
    from attention_zoo.kernels import xformers

    library = pytest.importorskip("xformers._cpp_lib")
    for built in (False, True):
        monkeypatch.setattr(library, "_built_with_cuda", built)
        monkeypatch.setattr(library, "_cpp_library_load_exception", OSError("libcudart.so.12: cannot open"))
        xformers._operator.cache_clear()
        reason = kernels.missing("xformers", "cuda", torch.float16)
        xformers._operator.cache_clear()
        assert reason is None if built else "libcudart.so.12, of the package nvidia-cuda-runtime-cu12" in reason


@pytest.fixture
def counted(monkeypatch):
    """The sequences of each call that reaches a kernel `counted`, on CUDA tensors without data."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    sizes = []

    def note(q, k, v, bias):
        assert len(q) == len(k) == len(v)
        assert bias is None or len(bias) in (1, len(q))
        sizes.append(len(q))
        return torch.empty_like(q)

    monkeypatch.setitem(kernels.registry._entries, "counted", kernels.Kernel("counted", note, needs=""))
    with FakeTensorMode():
        yield sizes


def on_cuda(*shape, **options):
    return torch.empty(shape, device="cuda", dtype=torch.bfloat16, **options)


def test_no_launch_on_cuda_has_more_sequences_than_its_grid(counted):
    q = on_cuda(65_600, 1, 16, 16)
    assert attend(q, q, q, kernel="counted").shape == q.shape
    assert counted == [65_535, 65]
    del counted[:]
    attend(q, q, q, on_cuda(65_600, 1, 16, 16), kernel="counted")
    attend(q, q, q, on_cuda(1, 1, 16, 16), kernel="counted")
    assert counted == [65_535, 65] * 2


def test_no_launch_on_cuda_has_offsets_beyond_32_bits(counted):
    q = on_cuda(600, 2, 50_176, 32)
    attend(q, q, q, kernel="counted")
    assert sum(counted) == 600
    assert max(counted) * 2 * 50_176 * 32 < 2**31


def test_the_gradient_of_a_learned_bias_on_cuda_is_not_of_all_sequences(counted):
    q, bias = on_cuda(1024, 3, 392, 32), on_cuda(1, 3, 392, 392, requires_grad=True)
    attend(q, q, q, bias, kernel="counted")
    assert sum(counted) == 1024
    assert max(counted) * bias.numel() * 2 <= 128 * 2**20
    del counted[:]
    with torch.no_grad():
        attend(q, q, q, bias, kernel="counted")
    assert counted == [1024]


@pytest.mark.parametrize("bias_shape", [None, "m", "bm"])
def test_what_is_split_is_the_same(bias_shape, monkeypatch):
    values = tensors((7, 2, 12, 9, 8), bias_shape, masked=bias_shape is not None)
    whole = run("sdpa", values, torch.float64)
    monkeypatch.setattr(kernels, "_at_once", lambda *_: 3)
    assert_close(run("sdpa", values, torch.float64), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.gpu
def test_more_sequences_than_a_grid_on_a_gpu():
    for kernel in kernels.available("cuda", torch.bfloat16):
        check_agreement(kernel, (65_600, 1, 16, 16, 16), None, False, torch.bfloat16, "cuda", backward=False)


def test_use_kernel_reaches_every_scheme_of_a_model():
    model = torch.nn.ModuleList(attention_zoo.build("full", 8, 2, Grid(1, 2, 2)) for _ in range(3))
    assert attention_zoo.use_kernel(model, "reference") is model
    assert [scheme.kernel for scheme in model] == ["reference"] * 3
    with pytest.raises(KeyError, match="did you mean 'sdpa'"):
        attention_zoo.use_kernel(model, "spda")
    assert [scheme.kernel for scheme in model] == ["reference"] * 3


@pytest.mark.slow
@pytest.mark.parametrize("name", attention_zoo.schemes.names())
def test_schemes_compile_into_one_graph(name):
    module = attention_zoo.build(name, 12, 2, Grid(4, 6, 7), **attention_zoo.schemes.get(name).example)
    x = torch.randn(2, 4, 6, 7, 12)
    torch._dynamo.reset()
    y = torch.compile(module, fullgraph=name not in WITH_TABLES)(x)
    assert_close(y, module(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "length, dtype, plain",
    [
        (8, torch.float32, True),
        (SHORT, torch.float64, True),
        (SHORT + 1, torch.float32, False),
        (8, torch.bfloat16, False),
    ],
)
def test_auto_is_plain_softmax_for_sequences_of_a_few_tokens_on_a_cpu(length, dtype, plain):
    q, k, v = (torch.randn(3, 2, length, 8, dtype=dtype) for _ in range(3))
    assert (FUSED not in operators(lambda: attend(q, k, v))) == plain
    assert FUSED in operators(lambda: attend(q, k, v, kernel="sdpa"))
