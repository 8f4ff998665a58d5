"""MViT and MViTv2: weight for weight the released code, and the counts of its model zoo."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from math import prod

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

import attention_zoo
import backbones
from attention_zoo import Grid
from backbones.configs.multiscale import MultiscaleConfig
from backbones.layouts import renamed
from backbones.multiscale import RELEASED
from tests.test_goldens import DTYPES, FLOAT64, FOLDER, _error

GOLDENS = ("mvit_v1", "mvit_v1_stride_kernels", "mvit_v2")
golden = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no goldens in {FOLDER}")


def config_of(c):
    bounds = [0, *(block for block, _ in c["dim_mul"]), c["depth"]]
    return MultiscaleConfig(
        depths=[after - before for before, after in zip(bounds, bounds[1:], strict=False)],
        width=c["embed_dim"],
        num_heads=c["num_heads"],
        key_stride=c["pool_kv_stride_adaptive"],
        pool_kernel=c["pool_kvq_kernel"],
        widen="attention" if c["dim_mul_in_att"] else "mlp",
        pool_queries=len(c["pool_q_stride"]) == c["depth"],
        residual=c["residual_pooling"],
        position="separable" if c["use_abs_pos"] else "relative",
        clip=(c["frames"], c["crop"], c["crop"]),
    )


def facts_of(name):
    return json.loads((FOLDER / f"{name}.json").read_text())


@golden
@pytest.mark.parametrize("kernel", ["reference", "sdpa"])
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("name", GOLDENS)
def test_model_equals_released_code(name, precision, kernel):
    data, facts = load_file(FOLDER / f"{name}.data.safetensors"), facts_of(name)
    model = backbones.create(config_of(facts["config"]), facts["config"]["num_classes"], kernel=kernel)
    report = backbones.load_checkpoint(model, FOLDER / f"{name}.weights.safetensors")
    assert report.complete
    assert not report.ignored
    model.to(DTYPES[precision]).eval()
    seen = {}
    parts = {"patch_embed": model.embed, "final_norm": model.norm}
    parts |= {f"block{i}": block for i, block in enumerate(model.blocks().values())}
    for key, part in parts.items():
        part.register_forward_hook(lambda m, i, y, key=key: seen.update({key: getattr(y, "x", y).detach()}))
    clip = data["input"].to(DTYPES[precision]).requires_grad_()
    logits = model(clip)
    output = logits.softmax(-1)  # the released model ends so in evaluation
    probe = data["probe"] if precision == "f32" else unrounded_probe(model, output, data)
    (output * probe).sum().backward()
    seen |= {"logits": logits.detach(), "patch_embed": seen["patch_embed"].flatten(1, 3)}

    stated = re.search(r"<= (\S+) x max .* intermediates, (\S+) for gradients", facts["tolerance"]["float32"])
    forward, backward = (float(stated[1]), float(stated[2])) if precision == "f32" else (FLOAT64, FLOAT64)
    assert _error(output.detach(), data[f"output.{precision}"]) <= forward
    wanted = {key.removeprefix("intermediate.")[:-4] for key in data if key.startswith("intermediate.")}
    assert wanted == seen.keys()
    for key, tensor in seen.items():  # stored in float32 alone
        assert _error(tensor, data[f"intermediate.{key}.f32"]) <= float(stated[1]), key
    assert _error(clip.grad, data["grad.input.f64"]) <= backward
    for key in (key for key in data if key.startswith("grad.param.")):
        gradient = model.get_parameter(RELEASED.rename(key[len("grad.param.") : -len(".f64")])).grad
        assert _error(gradient, data[key]) <= backward, key


def unrounded_probe(model, output, data):
    """The float64 probe of the golden's gradients; stored is its rounding to float32 (see test_goldens)."""
    name = "blocks.1.attn.qkv.weight"
    parameter = model.get_parameter(RELEASED.rename(name))
    rows = [torch.autograd.grad(o, parameter, retain_graph=True)[0].flatten() for o in output.flatten()]
    # Scores that are shares add up to one: probes that differ by a constant give the same gradients.
    columns = torch.cat([torch.stack(rows, 1), output.new_full((1, output.numel()), 1.0)])
    wanted = torch.cat([data[f"grad.param.{name}.f64"].flatten(), data["probe"].double().sum()[None]])
    return torch.linalg.lstsq(columns, wanted[:, None]).solution[:, 0].view_as(output)


@pytest.mark.parametrize(
    ("name", "millions", "giga"),
    [
        ("mvit_base_16f", 36.611, 70.80),
        ("mvit_base_32f", 36.611, 170.37),
        ("mvit_base_64f", 36.613, 455.88),
        ("mvit_base24_32f", 53.115, 236.31),
        ("mvit_v2_small_16f", 34.538, 64.46),
        ("mvit_v2_base_32f", 51.230, 225.17),
    ],
)
def test_costs_of_the_sheet(name, millions, giga):
    """Parameters and multiply-adds of a view with 400 classes; the latter by fvcore's rule: 5 an element of a norm."""
    with torch.device("meta"):
        model = backbones.create(name, 400, kernel="reference").eval()
        normed = []
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.register_forward_hook(lambda m, i, y: normed.append(y.numel()))
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, *model.clip))
    assert counter.get_total_flops() == 2 * model.macs()
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 3) == millions
    assert round((model.macs() + 5 * sum(normed)) / 1e9, 2) == giga


@pytest.mark.parametrize("grid", [Grid(3, 6, 8), Grid(2, 7, 5)])
@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize("relative", [False, True])
def test_strides_leave_a_smaller_map(grid, prefix, relative):
    """Grid, width, count and reach where queries are pooled with a stride and the width changes."""
    options = dict(query_kernel=(3, 3, 3), query_stride=(1, 2, 2), key_stride=(1, 2, 2), out_dim=24, residual=True)
    scheme = attention_zoo.build("pooling", 12, 2, grid, kernel="reference", relative=relative, **options).double()
    x = torch.randn(2, *grid, 12, dtype=torch.float64, requires_grad=True)
    head = torch.randn(2, prefix, 12, dtype=torch.float64, requires_grad=True) if prefix else None
    with FlopCounterMode(display=False) as counter:
        result = scheme(x, head) if prefix else scheme(x)
    maps = result[0] if prefix else result
    assert maps.shape == (2, *scheme.out_grid, scheme.out_dim)
    assert counter.get_total_flops() == 2 * 2 * scheme.macs(prefix)
    whole = torch.cat([result[1], maps.flatten(1, 3)], 1) if prefix else maps.flatten(1, 3)
    reach = scheme.reach(prefix)
    assert reach.shape == (whole.shape[1], prefix + grid.tokens)
    for place in (0, prefix, whole.shape[1] - 1):
        gradients = torch.autograd.grad(whole[0, place].sum(), [x] if head is None else [head, x], retain_graph=True)
        flows = torch.cat([g[0].flatten(0, -2).abs().sum(-1) > 0 for g in gradients])
        torch.testing.assert_close(flows, reach[place])


def test_other_clips_resize_tables():
    """Tables of another length and positions of another grid are interpolated, so a clip of another size runs."""
    model = backbones.create(replace(MultiscaleConfig(depths=(1, 1)), width=16, clip=Grid(4, 32, 32)), 5).eval()
    assert model(torch.randn(1, 3, 8, 48, 64)).shape == (1, 5)
    model = backbones.create(MultiscaleConfig((1, 1), width=16, clip=Grid(4, 32, 32), position="separable"), 5).eval()
    assert model(torch.randn(1, 3, 8, 48, 64)).shape == (1, 5)


def test_without_class_token_the_map_is_averaged():
    config = MultiscaleConfig((1, 1), width=16, clip=Grid(4, 32, 32), class_token=False)
    model = backbones.create(config, 0).eval()
    clip = torch.randn(2, 3, *config.clip)
    torch.testing.assert_close(model(clip), model.norm(model.tokens(clip).map).mean((1, 2, 3)))
    assert model.tokens(clip).map.shape[1:4] == tuple(config.describe()["tokens"][-1])


IMAGE = dict(clip=(1, 32, 32), patch=(1, 4, 4), patch_kernel=(1, 7, 7), pool_kernel=(1, 3, 3))


@pytest.mark.parametrize("without_time", [False, True], ids=["ours", "as released for images"])
@pytest.mark.parametrize("position", ["relative", "separable"])
def test_a_still_clip_gives_what_the_image_model_gives(position, without_time):
    """By MViTv2's rule: central frames, and tables of time that make no difference. A class token would weigh all
    frames together as much as one, so there is none here.
    """
    video = MultiscaleConfig(
        (1, 1), width=16, clip=(8, 32, 32), class_token=False, position=position, key_stride=(1, 4, 4)
    )
    image = backbones.create(video.changed(IMAGE), 5).double().eval()
    model = backbones.create(video, 5).double().eval()
    for parameter in image.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    state = dict(image.state_dict())
    if without_time:
        state = {name: t for name, t in state.items() if not name.endswith((".tables.t", "position.time"))}
        if position == "separable":
            image.position.time.data.zero_()
    report = backbones.inflate(state, model)
    assert report.complete
    assert {"embed.proj.weight", "column.0.attention.pool_k.weight"} < set(report.inflated)
    assert not model.embed.proj.weight[:, :, [0, 2]].any()
    picture = torch.randn(2, 3, 1, 32, 32).double()
    torch.testing.assert_close(model(picture.expand(-1, -1, 8, -1, -1)), image(picture))


def test_what_cannot_start_a_multiscale_model_is_named():
    video = MultiscaleConfig((1, 1), width=16, clip=(4, 32, 32), position="separable")
    model = backbones.create(video, 5)
    state = dict(backbones.create(video.changed(IMAGE), 7).state_dict())
    assert backbones.inflate(state, model).fresh == ("classifier.weight", "classifier.bias")
    state["embed.proj.weight"] = state["embed.proj.weight"][..., :5]
    del state["norm.bias"]
    with pytest.raises(backbones.CheckpointError) as error:
        backbones.inflate(state, model)
    assert "1 missing (in the model, not in the image model): norm.bias" in str(error.value)
    assert "embed.proj.weight 16x3x1x7x5 in the image model, 16x3x3x7x7 here" in str(error.value)
    with pytest.raises(backbones.CheckpointError, match="is a video model already; leave inflate out"):
        backbones.inflate(dict(model.state_dict()), model)


def test_released_names_are_all_known():
    """A state dict under the released names of a model becomes ours, key by key."""
    model = backbones.create(MultiscaleConfig((1, 1), width=16, clip=Grid(4, 32, 32), position="separable"), 5)
    ours = model.state_dict()
    released = {
        "cls_token": "class_token.token",
        "pos_embed_class": "position.of_class",
        "blocks.0.attn.norm_k.weight": "column.0.attention.pool_k.norm.weight",
        "blocks.1.mlp.fc1.bias": "column.1.mlp.fc1.bias",
        "blocks.1.proj.weight": "column.1.skip.proj.weight",
        "pos_embed_spatial": "position.space",
    }
    translated = renamed({name: ours[new] for name, new in released.items()}, [RELEASED])
    assert translated.tensors.keys() == set(released.values())
    assert prod(ours["position.space"].shape) == 8 * 8 * 16
