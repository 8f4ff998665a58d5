"""DualPath: weight for weight the (repaired) released code, and the counts of its sheet."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import backbones
from backbones.configs.dualpath import SPATIAL, DualPathConfig
from backbones.dualpath import CLIP, frame_sinusoid, frameset
from backbones.parts import through
from harness.training.start import initialise
from tests.test_goldens import DTYPES, FLOAT64, FOLDER, _error

golden = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no goldens in {FOLDER}")
TINY = {"width": 24, "num_heads": 2, "depth": 2, "clip": [16, 32, 32], "bottleneck": 4, "projection": 8}


def golden_model(name, kernel):
    c = json.loads((FOLDER / f"{name}.json").read_text())["config"]
    size, patch = c["input_resolution"], c["patch_size"]
    config = DualPathConfig(
        width=c["width"],
        num_heads=c["heads"],
        depth=c["layers"],
        patch=(1, patch, patch),
        clip=(c["frames"], size, size),
        bottleneck=c["adapter_bottleneck"],
        projection=c["output_dim"],
    )
    model = backbones.create(config, c["num_classes"], kernel=kernel)
    report = backbones.load_checkpoint(model, FOLDER / f"{name}.weights.safetensors")
    assert report.complete
    return model.eval(), load_file(FOLDER / f"{name}.data.safetensors")


@golden
@pytest.mark.parametrize("kernel", ["reference", "sdpa"])
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("name", ["dualpath_16f", "dualpath_48f"])
def test_model_equals_released_code(name, precision, kernel):
    model, data = golden_model(name, kernel)
    dtype = DTYPES[precision]
    model.to(dtype)
    assert_close(model.position.numbers.float(), data["temporal_positional_embedding"], rtol=0, atol=4e-6)
    model.position.numbers = data["temporal_positional_embedding"].to(dtype)  # rounded as there
    pictures = data["frameset.f32"].to(dtype).requires_grad_()
    mosaics, frames = (part.transpose(0, 1)[None] for part in pictures.split([len(pictures) - SPATIAL, SPATIAL]))
    seen = {}
    for i, block in enumerate(model.column):
        block.register_forward_hook(lambda m, x, y, i=i: seen.update({i: m.apart(y)}))
    output = model.scores(through(model.column, model.of_pictures(frames, mosaics), model))
    probe = data["probe"] if precision == "f32" else unrounded_probe(model, output, data)
    (output * probe).sum().backward()
    forward, backward = (2e-5, 1e-4) if precision == "f32" else (FLOAT64, FLOAT64)
    assert _error(output.detach(), data[f"output.{precision}"]) <= forward
    for i, (of_mosaics, of_frames) in seen.items():
        both = torch.cat([of_mosaics.x, of_frames.x]).transpose(0, 1)
        assert _error(both.detach(), data[f"intermediate.block{i}.f32"]) <= 2e-5
    assert pictures.grad.double().norm().item() == pytest.approx(data["grad.frameset.l2.f64"].item(), rel=backward)
    for key in (key for key in data if key.startswith("grad.param.")):
        name = CLIP.rename("visual." + key[len("grad.param.") : -len(".f64")])
        assert _error(model.get_parameter(name).grad, data[key]) <= backward, key


def unrounded_probe(model, output, data):
    """The float64 probe of the golden's gradients; stored is its rounding to float32 (see test_goldens)."""
    name = "transformer.resblocks.0.s_adapter_mlp.down_proj.weight"
    parameter = model.get_parameter(CLIP.rename(f"visual.{name}"))
    rows = [torch.autograd.grad(o, parameter, retain_graph=True)[0].flatten() for o in output.flatten()]
    wanted = data[f"grad.param.{name}.f64"].flatten()
    return torch.linalg.lstsq(torch.stack(rows, 1), wanted[:, None]).solution[:, 0].view_as(output)


@golden
def test_mosaics_are_made_as_released():
    data = load_file(FOLDER / "dualpath_16f.data.safetensors")
    frames, mosaics = frameset(data["input"])
    pictures = torch.cat([mosaics[0].transpose(0, 1), frames[0].transpose(0, 1)])
    assert_close(pictures, data["frameset.f32"], rtol=0, atol=1e-5)


def test_a_mosaic_without_shrinking_shows_every_frame():
    clip = torch.randn(2, 3, 32, 4, 6)
    frames, mosaics = frameset(clip, shrink=1)
    assert_close(frames, clip[:, :, ::4])
    assert mosaics.shape == (2, 3, 2, 16, 24)
    assert_close(mosaics[:, :, 1, 8:12, 18:24], clip[:, :, 16 + 2 * 4 + 3])


def test_numbers_of_frames_stand_under_each_patch():
    """Of 16x16 patches, 4x4 show one frame: its number is an angle."""
    sinusoid = frame_sinusoid(2, DualPathConfig(clip=(16, 256, 256)).mosaic_grid, 8)
    assert sinusoid.shape == (2, 257, 8)
    of_cells = sinusoid[:, 1:].unflatten(1, (4, 4, 4, 4))[:, :, 1, :, 2].flatten(1, 2)
    assert_close(of_cells[0, :, 0], torch.arange(1, 17).float().sin())
    assert_close(of_cells[1, :, 1], torch.arange(17, 33).float().cos())
    assert_close(sinusoid[:, 0], torch.tensor([0.0, 1.0] * 4).expand(2, -1))


@pytest.mark.parametrize(
    ("name", "giga"),
    [
        ("dualpath_clip_base_16f", 166.9),
        ("dualpath_clip_base_16f_4_adapters", 166.4),
        ("dualpath_clip_base_16f_448", 232.0),
        ("dualpath_clip_base_16f_896", 619.8),
        ("dualpath_clip_base_48f", 204.8),
    ],
)
def test_costs_of_the_sheet(name, giga):
    with torch.device("meta"):
        model = backbones.create(name, 174, kernel="reference").eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, *model.clip))
    assert counter.get_total_flops() == 2 * model.macs()
    assert round(model.macs() / 1e9, 1) == giga


@pytest.mark.parametrize(
    ("name", "trainable", "total"),
    [("dualpath_clip_base_16f", 12.768, 98.81), ("dualpath_clip_base_16f_4_adapters", 10.33, 96.4)],
)
def test_what_learns_is_the_sheets(name, trainable, total):
    """Adapters, head, and as in the released code class token and positions of the image model (174 or 51 classes)."""
    with torch.device("meta"):
        model = backbones.create(name, 174 if total > 97 else 51)
    backbones.learning(model, "adapters")
    learns = sum(p.numel() for p in model.parameters() if p.requires_grad)
    digits = len(str(trainable).partition(".")[2])
    assert round(learns / 1e6, digits) == trainable
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(total, abs=0.05)


def test_adapters_start_without_a_say():
    """The spatial path begins as the image model; attention and MLP of the temporal path add nothing."""
    model = backbones.create("dualpath_clip_base_16f", 0, changes=TINY).eval()
    clip = torch.randn(1, 3, 16, 32, 32)
    before = model(clip)
    for block in model.column:
        for name in ("beside_attention", "beside_mlp"):
            torch.nn.init.normal_(block.adapters[name].down_proj.weight)
    assert_close(model(clip), before)
    block = model.column[0]
    mosaics, _ = block.apart(seen_by(model, block, clip))
    for residual in block.temporal():
        assert_close(residual(mosaics).x, mosaics.x)


def test_an_image_vit_of_timm_loads_all_but_its_classifier(tmp_path):
    """Names and shapes of timm's; what no image model has starts fresh."""
    model = backbones.create("dualpath_in21k_base_16f", 3, changes=TINY | {"projection": 0})
    frozen = {k: v for k, v in model.state_dict().items() if ".adapters." not in k and not k.startswith("classifier")}
    frozen.pop("position.of_mosaic")
    names = {"position.class_token": "cls_token", "position.of_frame": "pos_embed"}
    theirs = {
        names.get(k, k.replace("embed.", "patch_embed.").replace("column.", "blocks.")): v for k, v in frozen.items()
    }
    theirs = {k.replace(".attention.", ".attn."): torch.randn_like(v) for k, v in theirs.items()}
    file = {k: v[None, None] if k == "cls_token" else v[None] if k == "pos_embed" else v for k, v in theirs.items()}
    file["patch_embed.proj.weight"] = file["patch_embed.proj.weight"][:, :, 0]
    file |= {"head.weight": torch.randn(21843, 24), "head.bias": torch.randn(21843)}
    torch.save(file, tmp_path / "vit.pth")
    notes = initialise(model, tmp_path / "vit.pth")
    assert any(f"{len(frozen)} tensors from vit.pth (image ViT (timm))" in note for note in notes)
    assert any("classifier starts fresh" in note for note in notes)
    assert_close(model.position.class_token, theirs["cls_token"])
    assert_close(model.position.of_frame, theirs["pos_embed"])
    assert_close(model.column[1].attention.qkv.weight, theirs["blocks.1.attn.qkv.weight"])
    del file["blocks.1.norm2.weight"]
    torch.save(file, tmp_path / "vit.pth")
    with pytest.raises(backbones.CheckpointError, match=r"column\.1\.norm2\.weight"):
        initialise(model, tmp_path / "vit.pth")


def seen_by(model, block, clip):
    seen = []
    handle = block.register_forward_pre_hook(lambda m, x: seen.append(x[0]))
    model(clip)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip.t": 24}, "24 frames fills no mosaics of 16"),
        ({"shrink": 3}, "shrink 3 is not 1, 2 or 4"),
        ({"patch.t": 2}, r"write \(1, h, w\)"),
    ],
)
def test_what_fits_no_mosaic_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        backbones.config("dualpath_clip_base_16f").changed(changes)


def test_a_clip_of_another_size_is_refused():
    model = backbones.create("dualpath_clip_base_16f", 3, changes=TINY)
    with pytest.raises(ValueError, match="a clip of 16x32x48 fits no mosaics of this model; it takes 16x32x32"):
        model(torch.randn(1, 3, 16, 32, 48))
