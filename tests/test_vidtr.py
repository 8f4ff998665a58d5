"""VidTr: weight for weight the published code, and the counts of the sheet."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from test_backbones import on_meta
from test_goldens import DTYPES, FOLDER, _facts, _with_prefix, needs_goldens
from test_scheme_goldens import check as check_scheme
from test_scheme_goldens import plain
from test_vivit import SIZES, check
from torch.testing import assert_close

import backbones
from attention_zoo import Grid
from backbones.columnar import JOINT, ColumnarConfig
from backbones.vidtr import CrossAttention, VidtrConfig

NAMES = {"nv_stem": "conv_stem", "coder.": "encoder.", ".weight": "fc.weight", ".bias": "fc.bias", "s_s": "cls_s"}


def whole(name: str) -> str:
    """The golden's names of gradients lack their beginnings."""
    start = next(start for start in NAMES if name.startswith(start))
    return NAMES[start] + name[len(start) :]


@needs_goldens
@pytest.mark.parametrize("kernel", ["reference", "sdpa"])
@pytest.mark.parametrize("precision", DTYPES)
def test_vidtr_equals_released_code(precision, kernel):
    facts, data = _facts("vidtr"), load_file(FOLDER / "vidtr.data.safetensors")
    c = facts["config"]
    config = VidtrConfig(
        width=c["d_model"], num_heads=c["nhead"], depth=c["num_encoder_layers"], patch=c["patch_size"],
        clip=[c["temporal_size"], 28, 28], mlp_ratio=c["dim_feedforward"] / c["d_model"], activation=c["activation"],
    )  # fmt: skip
    model = backbones.create(config, c["num_classes"], kernel=kernel)
    report = backbones.load_checkpoint(model, FOLDER / "vidtr.weights.safetensors")
    assert (report.layout, report.complete) == ("VidTr", True)
    model.to(DTYPES[precision]).eval()
    clip = data["input"].to(DTYPES[precision]).requires_grad_()
    golden = {"output": data["output.f64"], "probe": data["probe"], "input.l2": data["grad.input.l2.f64"]}
    golden |= {f"param.{whole(k[:-4])}": v for k, v in _with_prefix(data, "grad.param.").items()}
    check(model, clip, model(clip), golden, facts, precision)


@needs_goldens
@pytest.mark.parametrize("kernel", ["reference", "sdpa"])
@pytest.mark.parametrize("precision", DTYPES)
def test_attention_with_class_row_and_column(precision, kernel):
    facts = _facts("vidtr_attention")
    golden, weights = (load_file(FOLDER / f"vidtr_attention.{part}.safetensors") for part in ("data", "weights"))
    t, h, w = facts["config"]["grid"]
    module = CrossAttention(facts["config"]["dim"], facts["config"]["num_heads"], Grid(t, h, w), None, kernel).double()
    module.load_state_dict(plain(weights, "dual_token."))
    module.to(DTYPES[precision])
    own = {name: value for name, value in golden.items() if "dual_token" in name}

    def forward(x):
        grid = x.transpose(0, 1).unflatten(1, (1 + t, 1 + h * w))
        head = torch.cat([grid[:, 0, :1], grid[:, 1:, 0], grid[:, 0, 1:]], 1)
        y, head = module(grid[:, 1:, 1:].unflatten(2, (h, w)), head)
        row = torch.cat([head[:, :1], head[:, 1 + t :]], 1)[:, None]
        rest = torch.cat([head[:, 1 : 1 + t, None], y.flatten(2, 3)], 2)
        return torch.cat([row, rest], 1).flatten(1, 2).transpose(0, 1)

    check_scheme(
        forward, "dual_token", own, facts, precision, input="input.dual_token", probe="probe.dual_token",
        parameters=module,
    )  # fmt: skip


@pytest.mark.parametrize(("name", "linear"), [("small", 150.6), ("medium", 284.4), ("large", 552.2)])
def test_costs(name, linear):
    """The sheet has the linear maps of the blocks; published are 89, 179 and 351 G, about the MLPs of the map alone."""
    model = on_meta(f"vidtr_{name}", 400)
    rows, d = model.clip.t + 1, 768
    assert round(12 * rows * 197 * 12 * d**2 / 1e9, 1) == linear
    products = 12 * 2 * rows * 197 * (rows + 197) * d
    assert model.macs() == 12 * rows * 197 * 12 * d**2 + products + model.embed.macs() + d * 400
    mlps = {"small": 88.8, "medium": 177.6, "large": 355.1}[name]
    assert round(12 * model.clip.t * 196 * 8 * d**2 / 1e9, 1) == mlps


@pytest.mark.parametrize("everywhere", [False, True])
def test_positions_of_other_clips(everywhere):
    model = backbones.create(VidtrConfig(**SIZES | dict(patch=[1, 8, 8]), positions_in_all=everywhere), 5).eval()
    for clip in (torch.randn(2, 3, 4, 24, 32), torch.randn(2, 3, 6, 40, 24), torch.randn(2, 3, 1, 8, 8)):
        assert_close(model(clip)[:1], model(clip[:1]), rtol=1e-4, atol=1e-5)
    assert [len(block.attention.shared) for block in model.column] == [1, int(everywhere)]


def test_vidtr_starts_from_an_image_model():
    """Each row of the grid has the image's positions, each class token starts as the image's."""
    sizes = SIZES | dict(patch=[1, 8, 8])
    image = backbones.create(ColumnarConfig(**JOINT, **sizes | dict(clip=[1, 24, 32]), position="space"), 7)
    model = backbones.create(VidtrConfig(**sizes), 5)
    report = backbones.inflate(image.state_dict(), model)
    assert set(report.fresh) == {"classifier.weight", "classifier.bias"}
    assert torch.equal(model.column[1].attention.qkv.weight, image.column[1].attention[0].qkv.weight)
    assert torch.equal(model.position.positions(4, 3, 4)[3], image.position.space[0])
    assert (model.position.frames == image.position.class_token).all()


def test_what_is_not_vidtr_is_refused():
    config = VidtrConfig(**SIZES | dict(patch=[1, 8, 8]))
    with pytest.raises(ValueError, match="VidTr has"):
        replace(config, blocks=[["full"]])
    with pytest.raises(ValueError, match="class_token 'none'|VidTr has its own"):
        replace(config, position="space")
