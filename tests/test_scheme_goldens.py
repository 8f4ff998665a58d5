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
from attention_zoo import linear
from attention_zoo.radial import block_mask

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
    assert "grad.input" in errors, "the golden and this test name other gradients"
    # The input of `radial` is stored rounded to float32, what was computed from it was not.
    exact = FLOAT64 if facts["name"] != "radial" else 5e-7
    assert not {name: e for name, (e, float32) in errors.items() if not e <= (exact if float64 else float32)}


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


@every
@pytest.mark.parametrize("case", names("sta"))
def test_sliding_tile(case, precision, kernel):
    facts, golden, weights = read("sta")
    config, options = facts["config"], facts["config"]["cases"][case]
    window = options["window_in_tiles"] or options["window_in_tiles_per_head"]
    module = built(
        "sliding_tile", config, config["grid"], weights, precision, kernel, tile=config["tile"], window=window
    )
    check(module, case, golden, facts, precision)
    assert torch.equal(module.reach(), unpacked(golden, f"reach.{case}", module.grid.tokens))


@every
@pytest.mark.parametrize("case", names("vsa"))
def test_video_sparse(case, precision, kernel):
    facts, golden, weights = read("vsa")
    config, options = facts["config"], facts["config"]["cases"][case]
    share = options["topk"] / options["blocks"]
    module = built(
        "video_sparse", config, config["grid"], weights, precision, kernel, tile=options["tile"], keep=share - 1e-9
    )
    check(module, case, golden, facts, precision)
    assert torch.equal(module.chosen(golden["input"].to(DTYPES[precision])), golden[f"block_mask.{case}"].bool())


def block_topk_options(rule, BQ=64, BK=64, sim=None, topk=None, cdf=None, ratio=None, S=8, B=None, thr=None, P=None):
    """The options of a case in our names."""
    share = topk or ratio
    return dict(
        rule={"xattn": "xattention"}.get(rule, rule),
        query_block=B or BQ,
        key_block=B or BK,
        similarity=sim,
        threshold=cdf or thr or P,
        stride=S,
        own_block=rule == "nabla",
        **(dict(keep=share) if share else {}),
    )


@every
@pytest.mark.parametrize("case", names("block_topk"))
def test_block_topk(case, precision, kernel):
    facts, golden, weights = read("block_topk")
    options = dict(facts["config"]["cases"][case])
    size = options.pop("input")
    grid = [int(n) for n in size.split("x")]
    module = built("block_topk", facts["config"], grid, weights, precision, kernel, **block_topk_options(**options))
    check(module, case, golden, facts, precision, f"input.{size}", f"probe.{size}")
    chosen = module.chosen(golden[f"input.{size}"].to(DTYPES[precision]))
    assert torch.equal(chosen, golden[f"block_mask.{case}"].bool())


@every
@pytest.mark.parametrize("case", names("radial"))
def test_radial(case, precision, kernel):
    facts, golden, weights = read("radial")
    config, options = facts["config"], facts["config"]["cases"][case]
    how = dict(block=options["block"], decay=options["decay"], sink=options["kind"] == "wan", threshold=128)
    module = built("radial", config, config["grid"], weights, precision, kernel, **how)
    check(module, case, golden, facts, precision)
    assert module.reach().double().mean().item() == pytest.approx(options["density"])


@pytest.mark.parametrize("case", [*read("radial")[0]["config"]["mask_only"]] if FOLDER.is_dir() else [])
def test_radial_masks(case):
    facts, golden, _ = read("radial")
    options = facts["config"]["mask_only"][case]
    mask = block_mask(
        options["frames"], options["tokens_per_frame"], options["block"], options["decay"],
        options["kind"] == "wan", 128, options["sequence_length"],
    )  # fmt: skip
    assert torch.equal(torch.from_numpy(mask), unpacked(golden, f"block_mask.{case}", options["blocks"]))


def check_tokens(module, case, golden, facts, precision, input="input"):
    """A case whose tensors are (b, n, d)."""
    flat = {name: value.unflatten(1, list(module.grid)) if value.ndim == 3 else value for name, value in golden.items()}
    check(module, case, flat, facts, precision, input)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("case", ["relu", "relu_rope"])
def test_linear(case, precision, monkeypatch):
    facts, golden, weights = read("linear_attention")
    monkeypatch.setattr(linear, "rotations", lambda *grid: golden["rope.angle"][0, :, 0])  # the golden's are any
    own = {name.removeprefix(f"{case}."): value for name, value in weights.items() if name.startswith(f"{case}.")}
    ours = {f"qkv.{part}": torch.cat([own.pop(f"to_{x}.{part}") for x in "qkv"]) for part in ("weight", "bias")}
    ours |= {name.replace("to_out.0", "proj"): value for name, value in own.items()}
    video = case == "relu_rope"
    module = built("linear", facts["config"], facts["config"]["grid"], ours, precision, norm=video, rotary=video)
    for part in ("weight", "bias"):
        golden[f"grad.param.proj.{part}.{case}.f64"] = golden.pop(f"grad.param.to_out.0.{part}.{case}.f64")
        joint = [golden.pop(f"grad.param.to_{x}.{part}.{case}.f64") for x in "qkv"]
        golden[f"grad.param.qkv.{part}.{case}.f64"] = torch.cat(joint)
    check_tokens(module, case, golden, facts, precision)


@every
@pytest.mark.parametrize("feature", ["softmax", "elu"])
def test_sparse_linear(feature, precision, kernel):
    facts, golden, weights = read("linear_attention")
    own = {name.removeprefix("sla."): value for name, value in weights.items() if name.startswith("sla.")}
    config = facts["config"]["sla"]
    how = dict(keep=config["ratio"], query_block=config["query_block"], key_block=config["key_block"])
    module = built(
        "sparse_linear", facts["config"], facts["config"]["grid"], own, precision, kernel, feature=feature, **how
    )
    check_tokens(module, f"sla_{feature}", golden, facts, precision, "sla.input")
    x = golden["sla.input"].unflatten(1, list(module.grid)).to(DTYPES[precision])
    assert torch.equal(module.chosen(x), golden["sla.block_mask"].bool())
