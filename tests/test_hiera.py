"""Hiera: mask units are windows, the block that pools lags by one stage, and all equals the released code."""

import json

import pytest
import torch
from safetensors.torch import load_file
from test_goldens import DTYPES, FLOAT64, FOLDER, _error, needs_goldens
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import attention_zoo
import backbones
from attention_zoo import Grid
from attention_zoo.laws import noise, randomised
from backbones.configs.hiera import HieraConfig
from backbones.hiera import PooledUnits, pooled


def small(**changes):
    of_golden = dict(depths=(1, 2, 2, 1), width=8, clip=(8, 64, 64), mlp_ratio=2.0, dropout=0.0, drop_path=0.0)
    return HieraConfig(**(of_golden | changes))


@needs_goldens
@pytest.mark.parametrize("precision", DTYPES)
def test_model_equals_the_released_code(precision):
    facts = json.loads((FOLDER / "hiera.json").read_text())
    golden = load_file(FOLDER / "hiera.data.safetensors")
    model = backbones.create(small(), 5)
    assert backbones.load_checkpoint(model, FOLDER / "hiera.weights.safetensors").complete
    model.to(DTYPES[precision]).eval()
    seen = {}
    for stage, block in enumerate((0, 2, 4, 5)):
        model.column[block].register_forward_hook(lambda m, i, y, s=stage: seen.update({f"stage{s}": y.map.detach()}))
    clip = golden["input"].to(DTYPES[precision]).requires_grad_()
    y = model(clip)
    (y * golden["probe"].to(y.dtype)).sum().backward()
    stated = facts["tolerance"]
    allowed = {"output": stated["output_float32"], "grad": stated["grad_float32"]}
    allowed = dict.fromkeys(allowed, FLOAT64) if precision == "f64" else allowed
    assert _error(y.detach(), golden["output.logits.f64"]) <= allowed["output"]
    assert {name: _error(x, golden[f"intermediate.{name}.f64"]) <= allowed["output"] for name, x in seen.items()} == {
        f"stage{stage}": True for stage in range(4)
    }
    names = {"patch_embed": "embed", "attn": "attention", "pos_embed_spatial": "position.space"}
    names |= {"pos_embed_temporal": "position.time", "blocks": "column"}
    held = 0
    for key, expected in golden.items():
        if key.startswith("grad.param."):
            name = key.removeprefix("grad.param.").removesuffix(".f64")
            for theirs, ours in names.items():
                name = name.replace(theirs, ours)
            if name.startswith("column") and name.split(".")[2] == "proj":
                name = name.replace(".proj.", ".skip.proj.")
            assert _error(model.get_parameter(name).grad, expected) <= allowed["grad"], name
            held += 1
    assert held == 30
    assert _error(clip.grad.double().norm()[None], golden["grad.input.l2.f64"]) <= allowed["grad"]


def test_a_mask_unit_without_pooling_is_a_window():
    """The blocks that do not pool are `local_window` itself; one that pools sees the same box."""
    grid, unit = Grid(2, 8, 4), Grid(1, 4, 4)
    local = randomised(attention_zoo.build("local_window", 6, 2, grid, window=unit, kernel="reference"))
    units = PooledUnits(6, 6, 2, grid, unit, "reference").double()
    units.load_state_dict(local.state_dict())
    x = noise(1, *grid, 6)
    x = x[:, :, ::2, ::2].repeat_interleave(2, 2).repeat_interleave(2, 3)  # equal where queries are pooled together
    assert_close(units(x), local(x)[:, :, ::2, ::2], rtol=1e-9, atol=1e-9)
    assert torch.equal(
        units.reach(), local.reach()[[(t * 8 + h) * 4 + w for t in (0, 1) for h in (0, 2, 4, 6) for w in (0, 2)]]
    )


def test_pooling_takes_the_largest_of_two_by_two():
    x = noise(1, 2, 4, 6, 3)
    expected = torch.nn.functional.max_pool2d(x.permute(0, 1, 4, 2, 3).flatten(0, 1), 2).unflatten(0, (1, 2))
    assert torch.equal(pooled(x), expected.permute(0, 1, 3, 4, 2))


def test_the_block_that_pools_attends_as_the_stage_before_it():
    model = backbones.create(small(), 0)
    kinds = [(type(b.attention).__name__, getattr(b.attention, "unit", ())) for b in model.column]
    assert kinds == [
        ("LocalWindowAttention", ()),
        ("PooledUnits", (1, 8, 8)),
        ("LocalWindowAttention", ()),
        ("PooledUnits", (1, 4, 4)),
        ("FullAttention", ()),
        ("PooledUnits", None),
    ]
    assert [tuple(model.column[block].attention.window) for block in (0, 2)] == [(1, 8, 8), (1, 4, 4)]


@pytest.mark.parametrize(("name", "millions"), [("hiera_base_16f", 51.5), ("hiera_large_16f", 213)])
def test_named_models_have_their_published_size(name, millions):
    """Table 5 of the paper prints 51 M and 213 M parameters with the classifier."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = backbones.create(name, 400, kernel="reference").eval()
        model(torch.empty(1, 3, *model.clip))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)
    assert counter.get_total_flops() == 2 * model.macs()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(clip=(8, 60, 64)), r"unit \(1, 8, 8\) does not divide the map \(4, 15, 16\).*multiples of \(2, 32, 32\)"),
        (dict(unit=(1, 4, 4)), r"unit \(1, 4, 4\) cannot be halved in height and width 3 times"),
        (
            dict(attention={"G": {"scheme": "full"}}),
            r"attention \['G'\] is no kind of block here; allowed: local_window",
        ),
    ],
)
def test_configs_that_cannot_be_say_why(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_a_clip_of_other_size_must_be_whole_units():
    model = backbones.create(small(), 0).eval()
    assert model(torch.zeros(1, 3, 4, 96, 64)).shape == (1, 64)
    with pytest.raises(ValueError, match=r"is no multiple of the mask unit \(1, 8, 8\)"):
        model(torch.zeros(1, 3, 4, 72, 64))
