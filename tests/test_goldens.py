"""Weight for weight the same as the published implementations: outputs, intermediate tensors and gradients.

The reference values are no part of this repository. They are looked for in `../shared/goldens` beside it, or in the
folder that the environment variable ATTENTION_ZOO_GOLDENS names; without them these tests are skipped.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor

import backbones
from attention_zoo import Grid, Tokens
from attention_zoo.windows import Tiling, bias_rows, labels
from backbones import PyramidConfig
from backbones.layouts import WRAPPED
from backbones.pyramid import DUALFORMER, VIDEO_SWIN

FOLDER = Path(os.environ.get("ATTENTION_ZOO_GOLDENS") or Path(__file__).parents[2] / "shared" / "goldens")
needs_goldens = pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"no goldens in {FOLDER}; ATTENTION_ZOO_GOLDENS names another folder"
)
DUALFORMERS, VIDEO_SWINS = ("dualformer_32f", "dualformer_16f_w477"), ("video_swin_clipped", "video_swin_shift3d")
DTYPES = {"f32": torch.float32, "f64": torch.float64}
FLOAT64 = 1e-9


@pytest.mark.parametrize("kernel", ["reference", "sdpa"])
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("name", DUALFORMERS + VIDEO_SWINS)
def test_model_equals_reference(name, precision, kernel):
    golden, facts = load_file(FOLDER / f"{name}.data.safetensors"), _facts(name)
    tolerance = facts["tolerance"]["float32"]
    model = _model(facts["config"], kernel)
    report = backbones.load_checkpoint(model, FOLDER / f"{name}.weights.safetensors")
    assert report.complete
    assert not report.ignored
    model.to(DTYPES[precision]).eval()

    clip = golden["input"] if "input" in golden else golden["input.A"] * golden["input.B"]
    clip = clip.to(DTYPES[precision]).requires_grad_()
    modules = (_dualformer_modules if name in DUALFORMERS else _video_swin_modules)(model)
    seen: dict[str, Tensor] = {}
    for key, (module, layout) in modules.items():
        module.register_forward_hook(lambda m, i, y, key=key, f=layout: seen.update({key: f(_tensor(y).detach())}))
    output = model(clip)
    probe = golden["probe"] if precision == "f32" else _probe(model, output, facts, golden)
    (output * probe).sum().backward()

    stated = re.search(
        r"<= (\S+) x max abs of the reference for output and intermediates, (\S+) for gradients", tolerance
    )
    float32, gradients = float(stated[1]), float(stated[2])
    wanted = {key.removeprefix("intermediate.")[:-4] for key in golden if key.startswith("intermediate.")}
    assert wanted == seen.keys(), "the golden and this test name other intermediate tensors"
    errors = {"output": _error(output.detach(), golden[f"output.{precision}"])}
    allowed = {"output": float32 if precision == "f32" else FLOAT64}
    for key, tensor in seen.items():  # stored in float32 alone
        errors[key], allowed[key] = _error(tensor, golden[f"intermediate.{key}.f32"]), float32
    for key, gradient in _gradients(model, clip.grad, facts, golden).items():
        errors[key] = _error(gradient, golden[f"grad.{key}.f64"])
        allowed[key] = gradients if precision == "f32" else FLOAT64
    wrong = {key: f"{error:.1e} > {allowed[key]:.0e}" for key, error in errors.items() if not error <= allowed[key]}
    assert not wrong


def _facts(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text())


def _tensor(output: Tensor | Tokens) -> Tensor:
    return output.map if isinstance(output, Tokens) else output


def _error(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return ((actual.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


def unrounded_probe(output: Tensor, parameter: Tensor, gradient: Tensor, stored: Tensor) -> Tensor:
    """The float64 probe that the golden's gradients belong to; `stored` is its rounding to float32, off by up to 6e-8.

    It follows from the gradient of one parameter, which is linear in it, and has to round to the stored one. The other
    gradients are then held to the tolerance of float64.
    """
    rows = [torch.autograd.grad(o, parameter, retain_graph=True)[0].flatten() for o in output.flatten()]
    columns = torch.stack(rows, dim=1)
    scale = columns.norm(dim=0)
    probe = torch.linalg.lstsq(columns / scale, gradient.flatten()[:, None]).solution[:, 0] / scale
    torch.testing.assert_close(probe.float(), stored.flatten(), rtol=0, atol=0)
    return probe.view_as(output)


def _probe(model: torch.nn.Module, output: Tensor, facts: dict, golden: dict) -> Tensor:
    late = "blocks.2.0.attn.qkv.weight" if _layout(facts) is DUALFORMER else "layers.1.downsample.reduction.weight"
    parameter = model.get_parameter(_layout(facts).rename(late))
    return unrounded_probe(output, parameter, golden[f"grad.param.backbone.{late}.f64"], golden["probe"])


def _layout(facts: dict):
    return DUALFORMER if facts["config"]["system"] == "DualFormer" else VIDEO_SWIN


def _gradients(model: torch.nn.Module, of_input: Tensor, facts: dict, golden: dict) -> dict[str, Tensor]:
    steps = re.findall(r"slice\(None, None, (\w+)\)", facts["grad_input_sampling"])
    sampled = of_input[tuple(slice(None, None, None if step == "None" else int(step)) for step in steps)]
    values = {"input": sampled, "input.l2": of_input.double().norm()[None]}
    for key in golden:
        if key.startswith("grad.param."):
            name = key.removeprefix("grad.").removesuffix(".f64")
            values[name] = model.get_parameter(_layout(facts).rename(WRAPPED.sub("", name.removeprefix("param.")))).grad
    return values


def _model(c: dict, kernel: str) -> backbones.Pyramid:
    config = _dualformer_config(c) if "fine_pysizes" in c else _video_swin_config(c)
    return backbones.create(config, c.get("num_classes", 0), kernel=kernel)


def _dualformer_config(c: dict, frames: int | None = None) -> PyramidConfig:
    clip = c["video_size"] if frames is None else [frames, *c["video_sizes"][0][1:]]
    attention, stages = {}, []
    for s, fine in enumerate(c["fine_pysizes"]):
        local = c["local_sizes"][s] if "local_sizes" in c else c["local_size"]
        pooled = [fine, c["coarse_pysizes"][s]] if s < 2 else [fine] if s < 3 else ["whole"]
        attention[f"L{s}"] = {"scheme": "local_window", "window": local}
        attention[f"G{s}"] = {"scheme": "global_pyramid", "scales": pooled}
        stages.append([f"L{s}", f"G{s}"])
    return PyramidConfig(
        attention=attention,
        stages=stages,
        widths=c["embed_dims"],
        num_heads=c["num_heads"],
        depths=c["depths"],
        clip=clip,
        patch=c["patch_size"],
    )


def _video_swin_config(c: dict) -> PyramidConfig:
    shared = dict(scheme="shifted_window", window=c["window_size"], padding="attended", clipped_bias="published")
    count = len(c["depths"])
    return PyramidConfig(
        attention={"W": dict(shared, shift="none"), "S": dict(shared, shift="half")},
        stages=[["W", "S"]] * count,
        widths=[c["embed_dim"] * 2**s for s in range(count)],
        num_heads=c["num_heads"],
        depths=c["depths"],
        clip=c.get("input_shape", [1, 3, 32, 224, 224])[2:],
        patch=c["patch_size"],
        temporal_pooling=[1] * (count - 1),
        downsampling="merge",
        position="none",
    )


def _whole_map(x: Tensor) -> Tensor:
    return rearrange(x, "b t h w d -> b d t h w")


def _dualformer_modules(model: backbones.Pyramid) -> dict:
    """The golden's names, the modules that make these tensors, and how their outputs are sampled there."""

    def tokens(x):
        x = rearrange(x, "b t h w d -> b (t h w) d")
        return x[:, :: 53 if x.shape[1] > 5000 else 7]

    def sampled_map(x):
        x = _whole_map(x)
        return x[:, :, ::2, ::4, ::4] if x.shape[-1] > 7 else x[:, :, ::4]

    def untouched(x):
        return x

    modules = {"backbone_out": (model.norm, _whole_map)}
    for s, stage in enumerate(model.stages):
        attention = stage.blocks[1].attention
        modules[f"patch_embed{s}"] = (stage.embed, tokens)
        modules[f"stage{s}.block0_lw"] = (stage.blocks[0], sampled_map)
        modules[f"stage{s}.peg"] = (stage.position, tokens)
        modules[f"stage{s}.block1.gp_attn_out"] = (attention, tokens)
        modules[f"stage{s}.out"] = (stage.blocks[-1], sampled_map)
        if attention.norm is not None:
            modules[f"stage{s}.block1.fine_prior"] = (attention.priors[0], untouched)
            modules[f"stage{s}.block1.concat_priors_after_norm"] = (attention.norm, untouched)
        if len(attention.priors) > 1:
            modules[f"stage{s}.block1.coarse_prior"] = (attention.priors[1], untouched)
    return modules


def _video_swin_modules(model: backbones.Pyramid) -> dict:
    modules = {"backbone_out": (model.norm, _whole_map), "patch_embed": (model.stages[0].embed, _whole_map)}
    for s, stage in enumerate(model.stages):
        modules[f"layer{s}.block0"] = (stage.blocks[0], lambda x: x)
        modules[f"layer{s}.block1_shifted"] = (stage.blocks[1], lambda x: x)
        last = s + 1 == len(model.stages)  # there a stage ends with the merging that is ours to the next one
        modules[f"layer{s}.out"] = (stage.blocks[1] if last else model.stages[s + 1].embed, _whole_map)
    return modules


def test_shift_mask_equals_reference():
    golden, c = load_file(FOLDER / "video_swin_shift3d.data.safetensors"), _facts("video_swin_shift3d")["config"]
    tiling = Tiling.fitted(Grid(*c["stages"][0]["map"]), Grid(*c["window_size"]), tuple(c["shift_size"]), "attended")
    label = labels(tiling)
    forbidden = label[:, :, None] != label[:, None]
    torch.testing.assert_close(forbidden, golden["mask.stage0"].bool())


def test_bias_index_equals_reference():
    golden = load_file(FOLDER / "video_swin_shift3d.data.safetensors")["relative_position_index"].long()
    torch.testing.assert_close(_index(Grid(2, 3, 3)), golden)
    golden = load_file(FOLDER / "video_swin_clipped.data.safetensors")["relative_position_index.rows_every_37th"]
    torch.testing.assert_close(_index(Grid(8, 7, 7))[::37], golden.long())


def _index(window: Grid):
    return bias_rows(window, window, "published").reshape(window.tokens, window.tokens)


@pytest.mark.parametrize("frames", [32, 16])
def test_dualformer_inflation_equals_reference(frames):
    data = load_file(FOLDER / "dualformer_inflation.data.safetensors")
    model = backbones.create(_dualformer_config(_facts("dualformer_inflation")["config"], frames), num_classes=0)
    image = _with_prefix(data, "image2d.")
    report = backbones.inflate(image, model, rule="code")
    assert report.complete
    state = model.state_dict()
    golden = {DUALFORMER.rename(key): tensor for key, tensor in _with_prefix(data, f"inflated_{frames}f.").items()}
    assert golden.keys() == {key for key, tensor in state.items() if tensor.ndim == 5}
    for key, tensor in golden.items():
        torch.testing.assert_close(state[key], tensor, rtol=0, atol=0)
    for key, tensor in image.items():  # the rest is copied
        if tensor.ndim != 4:
            torch.testing.assert_close(state[DUALFORMER.rename(key)], tensor, rtol=0, atol=0)
    for key in report.averaging:
        if key.endswith("bias"):
            assert not state[key].any()


def test_paper_rule_differs_in_the_coarse_prior_alone():
    data = load_file(FOLDER / "dualformer_inflation.data.safetensors")
    config = _dualformer_config(_facts("dualformer_inflation")["config"], 16)
    states = {}
    for rule in ("paper", "code"):
        model = backbones.create(config, num_classes=0)
        backbones.inflate(_with_prefix(data, "image2d."), model, rule=rule)
        states[rule] = model.state_dict()
    differ = {key for key, tensor in states["code"].items() if not torch.equal(tensor, states["paper"][key])}
    assert differ == {f"stages.{s}.blocks.1.attention.priors.1.3.weight" for s in (0, 1)}
    for key in differ:  # a mean sums to one; at 16 frames the released constant makes half of it
        assert states["paper"][key][0].sum().item() == 1
        assert states["code"][key][0].sum().item() == 0.5


@pytest.mark.parametrize("case", ["same7", "from5"])
def test_video_swin_inflation_equals_reference(case):
    data = load_file(FOLDER / "video_swin_inflation.data.safetensors")
    config = _video_swin_config(_facts("video_swin_inflation")["config"])
    model = backbones.create(config, num_classes=0)
    image = _with_prefix(data, f"{case}.image2d.")
    image["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
    report = backbones.inflate(image, model, strict=False)  # the golden leaves out what is copied
    assert len(report.inflated) == 5
    assert not report.unexpected
    assert not report.mismatched
    state = model.state_dict()
    patch = data[f"{case}.inflated.patch_embed.proj.weight"]
    torch.testing.assert_close(state["stages.0.embed.proj.weight"], patch, rtol=0, atol=0)
    for key, first in _with_prefix(data, f"{case}.inflated_first_temporal_slice.").items():
        table = state[VIDEO_SWIN.rename(key)]
        exact = {"rtol": 0, "atol": 0} if case == "same7" else {"rtol": 0, "atol": 1e-6 * first.abs().max().item()}
        torch.testing.assert_close(table, first.repeat(15, 1), **exact)


def _with_prefix(data: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in data.items() if key.startswith(prefix)}
