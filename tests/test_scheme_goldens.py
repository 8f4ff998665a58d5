"""Attention schemes, number for number the same as the published implementations: outputs, gradients, who sees whom.

Where the reference values lie, and what happens without them, is said in `test_goldens.py`.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_goldens import DTYPES, FLOAT64, FOLDER, _error, pytestmark  # noqa: F401 (the mark skips this file too)

import attention_zoo

KERNELS = ("reference", "sdpa")


def read(name):
    """What the golden says about itself, its tensors, its weights."""
    facts = json.loads((FOLDER / f"{name}.json").read_text())
    return facts, *(load_file(FOLDER / f"{name}.{part}.safetensors") for part in ("data", "weights"))


def names(golden):
    """The cases of a golden; none where there are no goldens."""
    return list(json.loads((FOLDER / f"{golden}.json").read_text())["config"]["cases"]) if FOLDER.is_dir() else []


def built(scheme, config, grid, weights, precision="f64", kernel="reference", **options):
    module = attention_zoo.build(scheme, config["dim"], config["num_heads"], list(grid), kernel=kernel, **options)
    module.double().load_state_dict(weights)
    return module.to(DTYPES[precision]).eval()


def check(module, case, golden, facts, precision, input="input", probe="probe"):
    """Output and gradients of one case, held to the tolerances of the golden."""
    x = golden[input].to(DTYPES[precision]).requires_grad_()
    y = module(x)
    (y * golden[probe].to(y.dtype)).sum().backward()
    stated, float64 = facts["tolerance"], precision == "f64"
    errors = {"output": (_error(y.detach(), golden[f"output.{case}.f64"]), stated["output_float32"])}
    gradients = {"grad.input": x.grad} | {f"grad.param.{n}": p.grad for n, p in module.named_parameters()}
    for name, gradient in gradients.items():
        if (expected := golden.get(f"{name}.{case}.f64")) is not None:
            errors[name] = _error(gradient, expected), stated["grad_float32"]
    assert len(errors) > 2, "the golden and this test name other gradients"
    assert not {name: e for name, (e, float32) in errors.items() if not e <= (FLOAT64 if float64 else float32)}


def unpacked(golden, name, count):
    return torch.from_numpy(np.unpackbits(golden[name].numpy(), axis=-1, count=count)).bool()


every = pytest.mark.parametrize(
    ("precision", "kernel"), [(precision, kernel) for precision in DTYPES for kernel in KERNELS]
)


@every
@pytest.mark.parametrize("case", names("gna"))
def test_neighborhood(case, precision, kernel):
    facts, golden, weights = read("gna")
    config = facts["config"]
    module = built("neighborhood", config, config["grid"], weights, precision, kernel, **config["cases"][case])
    check(module, case, golden, facts, precision)
    assert torch.equal(module.reach(), unpacked(golden, f"reach.{case}", module.grid.tokens))
