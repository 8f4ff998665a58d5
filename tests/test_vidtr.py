"""VidTr: weight for weight the published code, and the counts of the sheet."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from test_backbones import on_meta
from test_goldens import DTYPES, FOLDER, _facts, _with_prefix, needs_goldens
from test_scheme_goldens import check as check_scheme
from test_scheme_goldens import of_separable, plain
from test_vivit import SIZES, check
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import backbones
from attention_zoo import Grid, Tokens
from backbones.configs.columnar import JOINT, ColumnarConfig
from backbones.configs.vidtr import VidtrConfig
from backbones.vidtr import CompactAttention, CrossAttention, KeptFrames

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

    def forward(x):
        grid = x.transpose(0, 1).unflatten(1, (1 + t, 1 + h * w))
        head = torch.cat([grid[:, 0, :1], grid[:, 1:, 0], grid[:, 0, 1:]], 1)
        y, head = module(grid[:, 1:, 1:].unflatten(2, (h, w)), head)
        row = torch.cat([head[:, :1], head[:, 1 + t :]], 1)[:, None]
        rest = torch.cat([head[:, 1 : 1 + t, None], y.flatten(2, 3)], 2)
        return torch.cat([row, rest], 1).flatten(1, 2).transpose(0, 1)

    check_scheme(
        forward, "dual_token", of_separable(golden, "dual_token"), facts, precision, input="input.dual_token",
        probe="probe.dual_token", parameters=module,
    )  # fmt: skip


@needs_goldens
@pytest.mark.parametrize("kernel", ["reference", "sdpa"])
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("case", ["no_token", "compact_drop2"])
def test_attention_of_the_compact_variant(case, precision, kernel):
    """Class token and frames that are kept, per head and place, as in the released code."""
    facts = _facts("vidtr_attention")
    golden, weights = (load_file(FOLDER / f"vidtr_attention.{part}.safetensors") for part in ("data", "weights"))
    grid, dim, heads = Grid(*facts["config"]["grid"]), facts["config"]["dim"], facts["config"]["num_heads"]
    module = CompactAttention(dim, heads, grid, 2 * case.startswith("compact"), None, kernel).double()
    module.load_state_dict(plain(weights, f"{case}."))
    module.to(DTYPES[precision])
    own = of_separable(golden, case)

    def forward(x):
        x = x.transpose(0, 1)
        y, head = module(x[:, 1:].unflatten(1, tuple(grid)), x[:, :1])
        return torch.cat([head, y.flatten(1, 3)], 1).transpose(0, 1)

    check_scheme(forward, case, own, facts, precision, input=f"input.{case}", probe=f"probe.{case}", parameters=module)
    if module.drop:
        kept = module.kept.transpose(0, 1).flatten(0, 2)  # heads, clips, places
        assert torch.equal(kept, golden["kept_frames.compact_drop2"].to(kept.dtype))


def test_the_way_around_keeps_the_same_frames():
    """Each head's channels of a place are those of the frames that its queries kept, in their order."""
    torch.manual_seed(0)
    attention = CompactAttention(6, 2, Grid(5, 2, 3), drop=2)
    x, head = torch.randn(2, 5, 2, 3, 6), torch.randn(2, 1, 6)
    attention(x, head)
    around = KeptFrames(attention)(Tokens.of_map(x).of(x, head), None)
    assert torch.equal(around.head, head)
    for clip, m, place in ((0, 0, 0), (1, 1, 5), (1, 0, 3)):
        frames, (h, w) = attention.kept[clip, m, place], divmod(place, 3)
        assert frames.tolist() == sorted(set(frames.tolist()))
        assert torch.equal(around.map[clip, :, h, w, 3 * m : 3 * m + 3], x[clip, frames, h, w, 3 * m : 3 * m + 3])


@pytest.mark.parametrize(("name", "frames"), [("small", [8, 6, 4, 2]), ("medium", [16, 8, 4, 2])])
def test_the_compact_variant_has_fewer_frames_from_stage_to_stage(name, frames):
    """Published are 39 G for the small one, by the sheet's rule for the others: its MLPs alone."""
    model = on_meta(f"vidtr_compact_{name}", 400)
    assert [tokens[0] for tokens in model.config.sizes()["tokens"]] == frames
    assert [len(block.residuals()) for block in model.blocks().values()] == [2] * 12
    with FlopCounterMode(display=False) as counter, torch.device("meta"), torch.no_grad():
        backbones.create(f"vidtr_compact_{name}", 400, kernel="reference")(torch.empty(1, 3, *model.clip))
    assert counter.get_total_flops() == 2 * model.macs()
    tokens = sum(block.out_grid.tokens for block in model.blocks().values())
    assert round(tokens * 8 * 768**2 / 1e9) == {"small": 39, "medium": 44}[name]


def test_compact_models_of_other_sizes():
    sizes = SIZES | dict(patch=[1, 8, 8], depth=3, drop_layers=[1], drop_frames=[2])
    model = backbones.create(VidtrConfig(**sizes), 5).eval()
    for clip in (torch.randn(2, 3, 4, 24, 32), torch.randn(2, 3, 6, 40, 24), torch.randn(2, 3, 1, 8, 8)):
        assert_close(model(clip)[:1], model(clip[:1]), rtol=1e-4, atol=1e-5)
    image = backbones.create(ColumnarConfig(**JOINT, **sizes_of_image(sizes), position="space"), 7)
    report = backbones.inflate(image.state_dict(), model)
    assert set(report.fresh) == {"classifier.weight", "classifier.bias"}
    assert torch.equal(model.position.table[:, -12:], image.position.space[:, 1:])
    small = backbones.config("vidtr_compact_small").shrunk(0.1, 1, (4, 32, 32))
    assert (small.depth, small.drop_layers, small.drop_frames) == (3, (1,), (1,))
    for wrong, message in ({"drop_frames": [4]}, "none of the 4 time steps"), ({"drop_layers": [3]}, "all from 1 to 2"):
        with pytest.raises(ValueError, match=message):
            VidtrConfig(**sizes | wrong)


def sizes_of_image(sizes: dict) -> dict:
    return {name: sizes[name] for name in ("width", "num_heads", "depth", "patch")} | {"clip": [1, 24, 32]}


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
