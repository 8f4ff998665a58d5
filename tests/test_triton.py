"""Programs of Triton, run by its interpreter on a CPU against float64, each test in a process of its own: the
interpreter is chosen before a program is defined. Formats are float32 and float16; the interpreter multiplies the bits
of bfloat16.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(
    find_spec("triton") is None, reason="Triton is not installed: pip install triton==3.6.0"
)

DEPTHWISE = """
import torch
from torch.nn.functional import conv3d
from attention_zoo._depthwise_triton import depthwise

for dtype, tolerance in ((torch.float32, 1e-5), (torch.float16, 1e-2)):
    for (b, t, h, w, d), kernel in (((2, 3, 2, 5, 7), (3, 3, 3)), ((1, 2, 2, 37, 70), (1, 3, 1))):
        for residual, biased in ((True, True), (False, False)):
            torch.manual_seed(0)
            x, weight, bias = torch.randn(b, t, h, w, d), torch.randn(d, 1, *kernel) / 3, torch.randn(d)
            ours = [value.to(dtype).requires_grad_() for value in (x, weight, bias)]
            exact = [value.detach().double().requires_grad_() for value in ours]
            y = depthwise(ours[0], ours[1], ours[2] if biased else None, residual)
            padding = [n // 2 for n in kernel]
            first, taps, offset = exact[0].permute(0, 4, 1, 2, 3), exact[1], exact[2] if biased else None
            wanted = conv3d(first, taps, offset, padding=padding, groups=d)
            wanted = wanted.permute(0, 2, 3, 4, 1) + (exact[0] if residual else 0)
            g = torch.randn(wanted.shape).to(dtype)
            used = slice(None) if biased else slice(2)
            pairs = zip([y, *torch.autograd.grad(y, ours[used], g)],
                        [wanted, *torch.autograd.grad(wanted, exact[used], g.double())], strict=True)
            for got, want in pairs:
                assert got.dtype == dtype, got.dtype
                assert (got.double() - want).abs().max() <= tolerance * want.abs().max(), (dtype, kernel, residual)
print("agree")
"""


BLOCKS = """
import torch
from attention_zoo._pooling_triton import block_sums
from attention_zoo.cpu.depthwise import convolved

for seed, (shape, block) in enumerate((((2, 2, 4, 6, 7), (2, 2, 3)), ((1, 2, 4, 40, 70), (1, 4, 4)),
                                       ((1, 3, 3, 2, 20), (3, 1, 2)))):
    dtype, tolerance = ((torch.float32, 1e-5), (torch.float16, 1e-2))[seed % 2]
    torch.manual_seed(seed)
    ours = [torch.randn(size).to(dtype).requires_grad_() for size in (shape, (shape[-1], 1, *block), (shape[-1],))]
    exact = [value.detach().double().requires_grad_() for value in ours]
    used = slice(3 - seed % 2)  # with and without a bias
    y = block_sums(*(ours[used] + [None])[:3])
    x, *more = exact[used]
    wanted = convolved(x, *(more + [None])[:2], stride=None)
    g = torch.randn(wanted.shape).to(dtype)
    pairs = zip([y, *torch.autograd.grad(y, ours[used], g)],
                [wanted, *torch.autograd.grad(wanted, exact[used], g.double())], strict=True)
    for got, want in pairs:
        assert got.dtype == dtype, got.dtype
        assert (got.double() - want).abs().max() <= tolerance * want.abs().max(), (shape, block)
print("agree")
"""


FEW_KEYS = """
import random
import torch
from attention_zoo.kernels import _few_keys
from attention_zoo.kernels._few_keys import few_keys_attend, pyramid_attend
from attention_zoo.kernels.reference import reference
from attention_zoo.sequence import heads, joined

_few_keys.QUERIES, _few_keys.KEYS = 32, 16  # several tiles even of few tokens
for seed in range(6):
    draw = random.Random(seed)
    dtype, tolerance = ((torch.float32, 1e-5), (torch.float16, 1e-2))[seed % 2]
    torch.manual_seed(seed)
    b, n, s, m, c = draw.randint(1, 2), draw.randint(3, 70), draw.randint(1, 40), draw.choice((1, 2, 4)), 16
    linear = [torch.nn.Linear(m * c, m * c).to(dtype) for _ in "qo"]
    exact = [torch.nn.Linear(m * c, m * c).double() for _ in "qo"]
    for ours, theirs in zip(linear, exact, strict=True):
        theirs.load_state_dict(ours.state_dict())
    x, k, v = torch.randn(b, n, m * c).to(dtype), torch.randn(b, m, s, c).to(dtype), torch.randn(b, m, s, c).to(dtype)
    with torch.no_grad():
        (q,) = heads(exact[0](x.double()), 1, m)
        wanted = exact[1](joined(reference(q, k.double(), v.double(), None)))
        y = pyramid_attend(x, linear[0].weight, linear[0].bias, k, v, linear[1].weight, linear[1].bias)
        alone = few_keys_attend(x, k, v)
        (q,) = heads(x.double(), 1, m)
        wanted_alone = joined(reference(q, k.double(), v.double(), None))
    for got, want in ((y, wanted), (alone, wanted_alone)):
        assert got.dtype == dtype
        error = (got.double() - want).abs().max() / want.abs().max()
        assert error <= tolerance, (seed, error)
    if n <= 40:  # as a scheme calls it: a width that is no power of two goes without the linear maps
        from attention_zoo.kernels import triton as kernel
        with torch.no_grad():
            assert torch.equal(kernel.few_keys(x, linear[0], k, v, linear[1]), y)
            narrow = [torch.nn.Linear(48, 48).to(dtype) for _ in "qo"]
            x, k, v = (torch.randn(size).to(dtype) for size in ((b, n, 48), (b, 3, s, c), (b, 3, s, c)))
            (q,) = heads(narrow[0](x), 1, 3)
            wanted = narrow[1](joined(reference(q.double(), k.double(), v.double(), None)).to(dtype))
            torch.testing.assert_close(kernel.few_keys(x, narrow[0], k, v, narrow[1]), wanted, rtol=0, atol=tolerance)
print("agree")
"""


def interpreted(program, *arguments, interpret="1"):
    environment = {**os.environ, "TRITON_INTERPRET": interpret, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-W", "ignore", "-c", program, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.endswith("agree\n"), done.stderr[-3000:]


WINDOWS = """
import itertools, random, sys
import torch
from attention_zoo import Grid
from attention_zoo.kernels import triton as kernel
from attention_zoo.kernels import _windows
from attention_zoo.windows import RelativeBias, Tiling, _on_the_map, window_attention

first, count, gradients = map(int, sys.argv[1:])
_windows.QUERIES, _windows.BIAS_PROGRAMS = 16, 8  # several tiles and parts even where windows are small

def agree(got, wanted, tolerance, *case):
    assert got.isfinite().all(), case
    error = (got.double() - wanted).abs().max().item() / wanted.abs().max().item()
    assert error <= tolerance, (error, *case)

for seed in range(first, first + count):
    draw = random.Random(seed)
    grid = Grid(draw.randint(1, 3), draw.randint(2, 5), draw.randint(2, 5))
    window = Grid(draw.randint(1, 3), draw.randint(2, 4), draw.randint(2, 4))
    shift = tuple(draw.randint(0, size - 1) for size in window)
    padding = "masked" if gradients else draw.choice(("masked", "attended"))
    tiling = Tiling.fitted(grid, window, shift, padding)
    dtype, tolerance = ((torch.float32, 1e-5), (torch.float16, 1e-2))[seed % 2]
    torch.manual_seed(seed)
    qkv, proj = torch.nn.Linear(32, 96).to(dtype), torch.nn.Linear(32, 32).to(dtype)
    bias = RelativeBias(window, 2).to(dtype) if draw.random() < 0.7 else None
    if bias is not None:
        torch.nn.init.normal_(bias.table)
    x = torch.randn(draw.randint(1, 2), *grid, 32).to(dtype)
    case = (seed, tiling, bias is not None)
    exact = [None if part is None else part.double() for part in map(__import__("copy").deepcopy, (qkv, proj, bias))]
    with torch.set_grad_enabled(bool(gradients)):
        mapped = qkv(x.requires_grad_(bool(gradients)))
        y = proj(_on_the_map(kernel.windows, mapped, qkv.bias, 2, tiling, bias))
        x64 = x.detach().double().requires_grad_(bool(gradients))
        wanted = window_attention(x64, exact[0], exact[1], 2, tiling, exact[2], kernel="reference", scheme="any")
    assert y.dtype == dtype
    agree(y, wanted, tolerance, *case)
    if gradients:
        probe = torch.randn(wanted.shape).to(dtype)
        ours = [x, qkv.weight, *([] if bias is None else [bias.table])]
        theirs = [x64, exact[0].weight, *([] if bias is None else [exact[2].table])]
        got = torch.autograd.grad(y, ours, probe, retain_graph=True)
        again = torch.autograd.grad(y, ours, probe)
        for one, other, want in zip(got, again, torch.autograd.grad(wanted, theirs, probe.double()), strict=True):
            assert one.equal(other), case  # the same in every run
            agree(one, want, 3 * tolerance, *case)
print("agree")
"""


@pytest.mark.parametrize("gradients", [0, 1], ids=["forward", "backward"])
def test_windows_on_the_map(gradients):
    """Some drawn tilings, shifts and paddings; many more in the slow test."""
    interpreted(WINDOWS, 0, 4, gradients)


@pytest.mark.slow
@pytest.mark.parametrize("gradients", [0, 1], ids=["forward", "backward"])
def test_windows_of_many_tilings_on_the_map(gradients):
    interpreted(WINDOWS, 100, 40, gradients)


def test_many_queries_of_few_keys():
    interpreted(FEW_KEYS)


def test_sums_of_blocks_and_their_gradients():
    interpreted(BLOCKS)


def test_shapes_and_counts_are_known_without_data():
    interpreted(META, interpret="0")


def test_depthwise_convolution_and_its_gradients():
    interpreted(DEPTHWISE)


META = """
import torch
from torch.utils.flop_counter import FlopCounterMode
from attention_zoo import Grid
from attention_zoo._pooling_triton import block_sums
from attention_zoo.kernels._few_keys import few_keys_attend, pyramid_attend
from attention_zoo.kernels._windows import window_attend
from attention_zoo.windows import Tiling
from attention_zoo._depthwise_triton import depthwise

def empty(*shape, **options):
    return torch.empty(shape, device="meta", requires_grad="dtype" not in options, **options)

tiling = Tiling.fitted(Grid(4, 6, 8), Grid(2, 3, 4), (1, 1, 2))
qkv, bias, order = empty(2, 4, 6, 8, 96), empty(2, 24, 24), empty(tiling.count, dtype=torch.int32)
pairs = 2 * tiling.count * 24 * 24 * 32
with FlopCounterMode(display=False) as counter:
    y, sums = window_attend(qkv, None, bias, order, 1, 2, list(tiling.padded), list(tiling.window), [1, 1, 2], True)
    assert (y.shape, sums.shape) == ((2, 4, 6, 8, 32), (2, 4, 6, 8, 2))
    assert counter.get_total_flops() == 4 * pairs
    of_qkv, of_bias = torch.autograd.grad(y, (qkv, bias), torch.empty_like(y))
    assert (of_qkv.shape, of_bias.shape) == (qkv.shape, bias.shape)
    assert counter.get_total_flops() == 14 * pairs
x, k, w, b = empty(2, 50, 32), empty(2, 2, 7, 16), empty(32, 32), empty(32)
for run, flops in ((lambda: pyramid_attend(x, w, b, k, k, w, b), 4 * 100 * 32 * (32 + 7)),
                   (lambda: few_keys_attend(x, k, k), 4 * 100 * 32 * 7)):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        assert run().shape == x.shape
    assert counter.get_total_flops() == flops
maps, taps = empty(2, 4, 6, 8, 32), empty(32, 1, 3, 3, 3)
for y in (depthwise(maps, taps, b, True), block_sums(maps, empty(32, 1, 2, 3, 4), b)):
    (of_maps,) = torch.autograd.grad(y, maps, torch.empty_like(y))
    assert of_maps.shape == maps.shape
print("agree")
"""

COMPILED = """
import re, subprocess, sys, tempfile
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

def compiled(program, pointers, constants, capability, warps=4, **numbers):
    names = program.arg_names
    signature = {name: pointers.get(name) or numbers.get(name) or "constexpr" for name in names}
    aligned = {(number,): [["tt.divisibility", 16]] for number, name in enumerate(names) if name in pointers}
    source = ASTSource(program, signature, constants, aligned)
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32),
                            options={"num_warps": warps, "num_stages": 2})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"]); file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True)
        sass = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True).stdout
    usage = said.stdout + said.stderr
    print(program.__name__, capability, " ".join(re.findall("(?:REG|STACK|SHARED):[0-9]+", usage)))
    assert "STACK:0 " in usage and "LOCAL:0 " in usage, usage  # nothing that did not fit into registers
    return sass
"""

SM = """
from attention_zoo._pooling_triton import _sum_blocks, _sum_taps as _sum_block_taps
from attention_zoo._depthwise_triton import _convolve, _sum_taps
sizes = dict(T=16, H=56, W=56, D=64, KT=3, KH=3, KW=3, TOKENS=32, CHANNELS=64)
for capability in (80, 90):
    compiled(_convolve, dict(X="*bf16", TAPS="*bf16", BIAS="*bf16", Y="*bf16"),
             dict(sizes, RESIDUAL=True, BIASED=True), capability)
    compiled(_sum_taps, dict(X="*bf16", G="*bf16", SUMS="*fp32"), sizes, capability)
    sizes_of_blocks = dict(H=56, W=56, D=64, BT=2, BH=8, BW=8, BLOCKS=8, CHANNELS=64)
    compiled(_sum_blocks, dict(X="*bf16", TAPS="*bf16", BIAS="*bf16", Y="*bf16"),
             dict(sizes_of_blocks, BIASED=True), capability)
    compiled(_sum_block_taps, dict(X="*bf16", G="*bf16", SUMS="*fp32"), sizes_of_blocks, capability)
print("agree")
"""

SM_WINDOWS = """
from attention_zoo.kernels import _windows
from attention_zoo.kernels._windows import _attend, _bias_gradients, _key_gradients, _query_gradients
sizes = dict(T=16, H=56, W=56, PT=16, PH=56, PW=56, WT=8, WH=7, WW=7, ST=4, SH=3, SW=3, HEADS=3, C=32,
             QUERIES=_windows.QUERIES, KEYS=_windows.KEYS)
pointers = dict(QKV="*bf16", PADDING="*bf16", BIAS="*bf16", WINDOWS="*i32", Y="*bf16", SUMS="*fp32", G="*bf16",
                MEANS="*fp32", OF_QKV="*bf16", OF_BIAS="*fp32")
numbers = dict(clips="i32", scale="fp32", count="i32")
more = dict.fromkeys((_query_gradients, _key_gradients), {})
more |= {_attend: dict(HIDDEN=True, KEPT=True), _bias_gradients: dict(EACH=147)}
for capability, instruction in ((80, "HMMA"), (90, "HGMMA")):
    for program, own in more.items():
        for mixed, biased in ((False, False), (True, True)):
            constants = dict(sizes, MIXED=mixed, BIASED=biased, **own)
            names = [name for name in program.arg_names if name in pointers]
            constants = {name: value for name, value in constants.items() if name in program.arg_names}
            of = {name: pointers[name] for name in names}
            sass = compiled(program, of, constants, capability, _windows.WARPS, **numbers)
            assert instruction in sass, (program.__name__, capability)  # tensor cores
print("agree")
"""


SM_FEW = """
from attention_zoo.kernels import _few_keys
from attention_zoo.kernels._few_keys import _attend, _attend_to
pointers = dict.fromkeys(("X", "WQ", "BQ", "K", "V", "WO", "BO", "Y", "Q"), "*bf16")
for capability, instruction in ((80, "HMMA"), (90, "HGMMA")):
    for program, heads in ((_attend, 2), (_attend, 4), (_attend_to, 8)):
        of = {name: pointers[name] for name in program.arg_names if name in pointers}
        sizes = dict(S=456, HEADS=heads, C=32, QUERIES=_few_keys.QUERIES, KEYS=_few_keys.KEYS)
        sass = compiled(program, of, sizes, capability, _few_keys.WARPS, n="i32", tiles="i32", scale="fp32")
        assert instruction in sass, (program.__name__, capability)
print("agree")
"""


@pytest.mark.slow
@pytest.mark.parametrize("program", [SM, SM_WINDOWS, SM_FEW], ids=["depthwise", "windows", "few keys"])
def test_programs_compile_without_spills_for_cards_of_today(program):
    interpreted(COMPILED + program, interpret="0")
