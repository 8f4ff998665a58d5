"""The columnar family: TimeSformer equals its reference, costs what its sheet says, and starts from an image model."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file
from test_backbones import counted_macs, norm_elements, on_meta, parameters
from test_goldens import DTYPES, FLOAT64, FOLDER, _error, _facts, _with_prefix, needs_goldens, unrounded_probe
from torch.testing import assert_close

import attention_zoo
import backbones
from attention_zoo import Grid, Tokens
from backbones.checkpoint import translate
from backbones.columnar import DIVIDED_LAYOUT, TRANSFORMERS_LAYOUT, VIT_LAYOUT
from backbones.configs.columnar import DIVIDED, JOINT, SPACE_ONLY, ColumnarConfig

FORMS = {"divided_space_time": DIVIDED, "joint_space_time": JOINT, "space_only": SPACE_ONLY}
GOLDENS = ("timesformer_divided", "timesformer_joint", "timesformer_space_only")
SIZES = dict(width=24, num_heads=3, depth=2, clip=[4, 24, 32], patch=[1, 8, 8])  # height and width differ


def config_of(c: dict) -> ColumnarConfig:
    return ColumnarConfig(
        **FORMS[c["attention_type"]],
        width=c["embed_dim"],
        num_heads=c["num_heads"],
        depth=c["depth"],
        clip=[c["num_frames"], c["img_size"], c["img_size"]],
        patch=[1, c["patch_size"], c["patch_size"]],
        mlp_ratio=c["mlp_ratio"],
    )


def in_their_order(x: Tokens) -> torch.Tensor:
    """Class token, then the tokens of a place at all times; where each frame has a class token, frames as clips."""
    if x.prefix > 1:
        return torch.cat([x.head[:, :, None], x.map.flatten(2, 3)], dim=2).flatten(0, 1)
    return torch.cat([x.head, rearrange(x.map, "b t h w d -> b (h w t) d")], dim=1)


@pytest.mark.parametrize("training", [True, False])
def test_two_linear_maps_in_a_row_are_one(training):
    """With a hook on the second they are run one after the other."""
    scheme = attention_zoo.build("time_only", 8, 2, Grid(3, 4, 5), fc=True).double()
    for parameter in scheme.parameters():
        torch.nn.init.normal_(parameter)
    x, results = torch.randn(2, 3, 4, 5, 8, dtype=torch.float64), []
    for hooked in (False, True):
        called = []
        hook = scheme.fc.register_forward_hook(lambda *_: called.append(1)) if hooked else None  # noqa: B023
        with torch.set_grad_enabled(training):
            y = scheme(x)
        gradients = torch.autograd.grad(y.square().sum(), list(scheme.parameters())) if training else ()
        results.append([y, *gradients])
        assert bool(called) is hooked
        assert hook is None or hook.remove() is None
    assert_close(*results)


@needs_goldens
@pytest.mark.parametrize("kernel", ["reference", "sdpa"])
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("name", GOLDENS)
def test_timesformer_equals_reference(name, precision, kernel):
    """Tolerances of the goldens; intermediate tensors are stored in float32 alone."""
    golden, c, dtype = load_file(FOLDER / f"{name}.data.safetensors"), _facts(name)["config"], DTYPES[precision]
    model = backbones.create(config_of(c), c["num_classes"], kernel=kernel)
    assert backbones.load_checkpoint(model, FOLDER / f"{name}.weights.safetensors").complete
    model.to(dtype).eval()
    layout = DIVIDED_LAYOUT if "divided" in name else VIT_LAYOUT
    second = model(golden["input2"].to(dtype))  # other positions: more frames, larger ones
    seen = {}
    for b, block in enumerate(model.column):
        block.register_forward_hook(lambda m, i, y, b=b: seen.update({f"block{b}": in_their_order(y)}))
    model.embed.register_forward_hook(lambda m, i, y: seen.update(patch_embed=y.flatten(2, 3).flatten(0, 1)))
    model.norm.register_forward_hook(lambda m, i, y: seen.update(final_norm=y))

    clip = golden["input"].to(dtype).requires_grad_()
    output = model(clip)
    gradients = {key: golden[key] for key in golden if key.startswith("grad.param.")}
    ours = {key: model.get_parameter(layout.rename(key[len("grad.param.") : -len(".f64")])) for key in gradients}
    probe = golden["probe"]
    if precision == "f64":
        late = "grad.param.blocks.0.attn.qkv.weight.f64"
        probe = unrounded_probe(output, ours[late], golden[late], probe)
    (output * probe).sum().backward()
    exact = precision == "f64"
    if "space_only" in name:  # of the mean over frames theirs norms all tokens, ours the class token alone
        golden["intermediate.final_norm.f32"] = golden["intermediate.final_norm.f32"][:, 0]
    else:
        grid = model.column[-1].out_grid
        seen["final_norm"] = in_their_order(Tokens(seen["final_norm"], grid, 1))
    parts = [key.split(".")[1] for key in golden if key.startswith("intermediate.")]
    assert set(parts) == seen.keys()
    errors = {
        f"output {precision}": (output, golden[f"output.{precision}"], FLOAT64 if exact else 2e-5),
        "second output": (second, golden[f"output2.{precision}"], FLOAT64 if exact else 2e-5),
        "input": (clip.grad[..., ::3, ::3], golden["grad.input.f64"], FLOAT64 if exact else 1e-4),
        **{key: (seen[key], golden[f"intermediate.{key}.f32"], 2e-5) for key in parts},
        **{key: (p.grad, gradients[key], FLOAT64 if exact else 1e-4) for key, p in ours.items()},
    }
    errors = {key: (_error(a.detach(), b), allowed) for key, (a, b, allowed) in errors.items()}
    assert not {key: error for key, (error, allowed) in errors.items() if not error <= allowed}


@needs_goldens
def test_timesformer_starts_from_an_image_model_as_the_reference_does():
    data, facts = (
        load_file(FOLDER / "timesformer_from_image_vit.data.safetensors"),
        _facts("timesformer_from_image_vit"),
    )
    c = facts["config"]["video"]
    config = ColumnarConfig(
        **DIVIDED,
        width=c["embed_dim"],
        num_heads=c["heads"],
        depth=c["depth"],
        clip=[c["frames"], c["img_size"], c["img_size"]],
        patch=[1, c["patch"], c["patch"]],
        mlp_ratio=c["mlp_ratio"],
    )
    model = backbones.create(config, c["classes"])
    for part in ("video_before", "video_after"):
        state = {DIVIDED_LAYOUT.rename(key): tensor for key, tensor in _with_prefix(data, f"{part}.").items()}
        state = {key: t[:, :, None] if t.ndim == 4 else t for key, t in state.items()}
        if part == "video_before":
            model.load_state_dict(state)
            report = backbones.inflate(_with_prefix(data, "image_vit."), model)
    assert set(report.fresh) == {DIVIDED_LAYOUT.rename(key) for key in facts["unchanged_keys"]}
    for key, tensor in model.state_dict().items():
        assert_close(tensor, state[key], rtol=0, atol=0, msg=key)


@pytest.mark.parametrize(
    ("name", "millions", "giga"),
    [
        ("timesformer_base", 121.566, 196.05),
        ("timesformer_hr", 122.024, 1704.5),
        ("timesformer_l", 121.634, 2382.5),
        ("timesformer_joint_base", 86.112, 179.71),
        ("timesformer_space_only_base", 86.106, 140.65),
    ],
)
def test_costs_of_the_sheet(name, millions, giga):
    """With the classifier of Kinetics-400, and 5 for each element that a LayerNorm writes, as fvcore counts."""
    model = on_meta(name, 400)
    assert round(parameters(model) / 1e6, 3) == millions
    layer_norm, _ = norm_elements(model)
    assert round((model.macs() + 5 * layer_norm) / 1e9, 1 if giga > 1000 else 2) == giga


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_checkpoints_in_the_published_layout(tmp_path, form):
    """`.pyth` files keep the state dict as `model_state`, with a prefix, and 2-D convolutions."""
    model = backbones.create(ColumnarConfig(**form, **SIZES), 5)
    back = [("embed.", "patch_embed."), ("position.space", "pos_embed"), ("position.time", "time_embed")]
    back += [
        ("position.class_token", "cls_token"),
        ("classifier.", "head."),
        ("column.", "blocks."),
        ("mlp_norm", "norm2"),
    ]
    if form is DIVIDED:
        back += [("attention.0.fc", "temporal_fc"), ("attention.0", "temporal_attn"), ("norms.0", "temporal_norm1")]
    back += [(f"{kind}.{i}", to) for kind, to in (("attention", "attn"), ("norms", "norm1")) for i in (0, 1)]
    state = {}
    for key, tensor in model.state_dict().items():
        for ours, theirs in back:
            key = key.replace(ours, theirs)
        state[f"model.{key}"] = tensor[:, :, 0] if tensor.ndim == 5 else tensor
    torch.save({"epoch": 3, "model_state": state}, tmp_path / "timesformer.pyth")
    other = backbones.create(model.config, 5)
    assert backbones.load_checkpoint(other, tmp_path / "timesformer.pyth").complete
    for key, tensor in other.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[key]), key
    backbones.save_checkpoint(model, tmp_path / "own.safetensors")
    again = backbones.from_checkpoint(tmp_path / "own.safetensors").eval()
    clip = torch.randn(1, 3, 4, 24, 32)
    assert_close(again(clip), model.eval()(clip))


def test_the_weights_of_transformers_fill_our_model():
    inside = ["temporal_layernorm", "temporal_attention.attention.qkv", "temporal_attention.output.dense"]
    inside += ["temporal_dense", "layernorm_before", "attention.attention.qkv", "attention.output.dense"]
    inside += ["layernorm_after", "intermediate.dense", "output.dense"]
    linear = ["embeddings.patch_embeddings.projection", "layernorm"]
    linear += [f"encoder.layer.{i}.{part}" for i in range(2) for part in inside]
    names = [f"{part}.{kind}" for part in linear for kind in ("weight", "bias")]
    names += [f"embeddings.{part}" for part in ("cls_token", "position_embeddings", "time_embeddings")]
    ours = set(on_meta(ColumnarConfig(**DIVIDED, **SIZES), 0).state_dict())
    for prefix in ("", "timesformer."):
        translated = translate({prefix + name: torch.zeros(1) for name in names})
        assert translated.layout is TRANSFORMERS_LAYOUT
        assert set(translated.tensors) == ours


def test_initialisation():
    """Truncated normal maps and positions, times at zero; convolutions as PyTorch makes them."""
    torch.manual_seed(0)
    model = backbones.create(ColumnarConfig(**DIVIDED, **SIZES | dict(width=96)), 50)
    for name, value in model.named_parameters():
        if name == "position.time" or ".fc." in name or (name.endswith("bias") and name != "embed.proj.bias"):
            assert not value.any(), name
        elif "norm" in name:
            assert (value == 1).all()
        elif name != "position.class_token" and not name.startswith("embed."):
            assert value.std().item() == pytest.approx(0.02, rel=0.1), name


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_clips_of_other_sizes_and_what_is_computed_again(form):
    model = backbones.create(ColumnarConfig(**form, **SIZES, drop_path=0.0), 5)
    for clip in (torch.randn(2, 3, 4, 24, 32), torch.randn(2, 3, 6, 40, 24), torch.randn(2, 3, 1, 16, 16)):
        assert_close(model(clip)[:1], model(clip[:1]), rtol=1e-4, atol=1e-5)
    assert model(clip).grad_fn is not None
    clip = torch.randn(2, 3, 4, 24, 32)
    kept = torch.autograd.grad(model(clip).square().sum(), list(model.parameters()))
    model.activation_checkpointing = True
    again = torch.autograd.grad(model(clip).square().sum(), list(model.parameters()))
    for a, b in zip(kept, again, strict=True):
        assert_close(a, b)


def test_any_scheme_stands_in_a_column():
    """Without class tokens any scheme does; with them, one that cannot take them is refused by name."""
    entry = {"L": {"scheme": "local_window", "window": [2, 2, 3]}}
    config = ColumnarConfig(attention=entry, blocks=[["L"], ["full", "L"]], class_token="none", **SIZES)
    model = backbones.create(config, 5).eval()
    assert model.macs() == counted_macs(config, 5)
    tokens = model.tokens(torch.randn(2, 3, 4, 24, 32))
    assert (tokens.prefix, tuple(tokens.map.shape)) == (0, (2, 4, 3, 4, 24))
    with pytest.raises(ValueError, match="local_window does not; allowed: .*space_only.*, or class_token"):
        dataclasses.replace(config, class_token="clip")


def test_an_untrained_divided_block_is_a_block_of_space():
    """The map after attention over time starts at zero, in every block."""
    model = backbones.create(ColumnarConfig(**DIVIDED, **SIZES), 5).eval()
    tokens = Tokens(torch.randn(2, 1 + 4 * 3 * 4, 24), model.embed.grid, 1)
    for block in model.column:
        time, *rest = block.residuals()
        assert torch.equal(time(tokens).x, tokens.x)
        assert not torch.equal(rest[0](tokens).x, tokens.x)


def test_shrinking_keeps_a_turn_of_the_pattern():
    config = ColumnarConfig(attention={}, blocks=[["full"], ["space_only"]], clip=[8, 64, 64])
    small = config.shrunk(0.125, 1, (4, 32, 32))
    assert (small.width, small.num_heads, small.depth, tuple(small.clip)) == (96, 2, 2, (4, 32, 32))
