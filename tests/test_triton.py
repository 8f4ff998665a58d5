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
from backbones._depthwise_triton import depthwise

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


def interpreted(program, interpret="1"):
    environment = {**os.environ, "TRITON_INTERPRET": interpret, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.endswith("agree\n"), done.stderr[-3000:]


WINDOWS = """
import itertools
import torch
from attention_zoo import Grid, build
from attention_zoo.kernels import triton as kernel
from attention_zoo.kernels import _windows
from attention_zoo.windows import Tiling, _on_the_map, window_attention
from attention_zoo.windows import RelativeBias

torch.manual_seed(0)
cases = [
    (Grid(3, 5, 6), (2, 3, 4), (1, 1, 2), "masked", True),
    (Grid(3, 5, 6), (2, 3, 4), (1, 1, 2), "attended", True),
    (Grid(4, 6, 8), (2, 3, 4), (0, 0, 0), "masked", False),
    (Grid(2, 5, 5), (8, 5, 4), (4, 2, 2), "masked", True),
]
for number, (grid, window, shift, padding, biased) in enumerate(cases):
    tiling = Tiling.fitted(grid, Grid(*window), shift, padding)
    dtype, tolerance = ((torch.float32, 1e-5), (torch.float16, 1e-2))[number % 2]
    qkv, proj = torch.nn.Linear(32, 96).to(dtype), torch.nn.Linear(32, 32).to(dtype)
    bias = RelativeBias(Grid(*window), 2).to(dtype) if biased else None
    if bias is not None:
        torch.nn.init.normal_(bias.table)
    x = torch.randn(2, *grid, 32).to(dtype)
    with torch.no_grad():
        y = proj(_on_the_map(kernel.windows, qkv(x), qkv.bias, 2, tiling, bias))
        exact = [None if part is None else part.double() for part in (qkv, proj, bias)]
        wanted = window_attention(x.double(), exact[0], exact[1], 2, tiling, exact[2], kernel="reference")
    assert y.dtype == dtype
    assert (y.double() - wanted).abs().max() <= tolerance * wanted.abs().max(), (grid, shift, padding)
print("agree")
"""


def test_windows_on_the_map():
    interpreted(WINDOWS)


def test_depthwise_convolution_and_its_gradients():
    interpreted(DEPTHWISE)


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
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"]); file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True)
        sass = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True).stdout
    usage = said.stdout + said.stderr
    print(program.__name__, capability, " ".join(re.findall("(?:REG|STACK|SHARED):[0-9]+", usage)))
    assert "STACK:0 " in usage, usage  # nothing that did not fit into registers
    return sass
"""

SM = """
from backbones._depthwise_triton import _convolve, _sum_taps
sizes = dict(T=16, H=56, W=56, D=64, KT=3, KH=3, KW=3, TOKENS=32, CHANNELS=64)
for capability in (80, 90):
    compiled(_convolve, dict(X="*bf16", TAPS="*bf16", BIAS="*bf16", Y="*bf16"),
             dict(sizes, RESIDUAL=True, BIASED=True), capability)
    compiled(_sum_taps, dict(X="*bf16", G="*bf16", SUMS="*fp32"), sizes, capability)
print("agree")
"""

SM_WINDOWS = """
from attention_zoo.kernels._windows import _attend
sizes = dict(T=16, H=56, W=56, PT=16, PH=56, PW=56, WT=8, WH=7, WW=7, ST=4, SH=3, SW=3, HEADS=3, C=32, HIDDEN=True,
             QUERIES=64, KEYS=64)
pointers = dict(QKV="*bf16", PADDING="*bf16", BIAS="*bf16", WINDOWS="*i32", Y="*bf16")
for capability, instruction in ((80, "HMMA"), (90, "HGMMA")):
    for mixed, biased in ((False, False), (True, True)):
        constants = dict(sizes, MIXED=mixed, BIASED=biased)
        sass = compiled(_attend, pointers, constants, capability, clips="i32", scale="fp32")
        assert instruction in sass, capability  # tensor cores
print("agree")
"""


@pytest.mark.slow
@pytest.mark.parametrize("program", [SM, SM_WINDOWS], ids=["depthwise", "windows"])
def test_programs_compile_without_spills_for_cards_of_today(program):
    interpreted(COMPILED + program, interpret="0")
