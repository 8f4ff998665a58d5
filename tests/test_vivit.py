"""ViViT, X-ViT, VTN and DeiT: weight for weight the published code, and the counts of the sheet."""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_backbones import on_meta, parameters
from test_goldens import DTYPES, FLOAT64, FOLDER, _error, _facts, _with_prefix, needs_goldens
from torch.nn.functional import gelu, interpolate, relu
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import backbones
from attention_zoo import Grid
from backbones.checkpoint import translate
from backbones.configs.columnar import DIVIDED, JOINT, VIVIT_DOT, VIVIT_JOINT, VIVIT_SELF, ColumnarConfig
from backbones.configs.encoders import VIVIT, VTN, XVIT, EncodersConfig
from backbones.encoders import WindowedAttention
from backbones.mlp import Mlp
from backbones.parts import through

SELF = "self_attention_time_space"
SIZES = dict(width=24, num_heads=3, depth=2, clip=[4, 24, 32], patch=[2, 8, 8])


def vivit_of(case: str) -> ColumnarConfig:
    c = _facts("vivit")["config"]
    forms = {"joint": VIVIT_JOINT, "dot_product": VIVIT_DOT, SELF: VIVIT_SELF}
    form = forms.get(case) or VIVIT_SELF | {"blocks": [["space_only", "time_only"]]}
    h, w, t = c["patch_hwt"]
    sizes = dict(width=c["hidden_size"], num_heads=c["num_heads"], depth=c["num_layers"], clip=[6, 12, 20])
    return ColumnarConfig(**form | dict(patch=[t, h, w], mlp_ratio=c["mlp_dim"] / c["hidden_size"]) | sizes)


def in_order(name: str, case: str) -> str:
    """The released names say nothing of the order of time and space: a file of the other one is loaded so."""
    swap = {"_time/": "_space/", "_space/": "_time/"}
    return re.sub("_(time|space)/", lambda m: swap[m[0]], name) if case == "self_attention_space_time" else name


def load(model, name: str, prefix: str, folder, renamed=lambda key: key) -> None:
    """Loads a part of a golden's weights as the checkpoint that it is."""
    weights = _with_prefix(load_file(FOLDER / f"{name}.weights.safetensors"), prefix)
    save_file({renamed(key): tensor.contiguous() for key, tensor in weights.items()}, folder / "part.safetensors")
    report = backbones.load_checkpoint(model, folder / "part.safetensors")
    assert report.complete
    assert not report.ignored


def check(model, clip, output, golden: dict, facts: dict, precision: str, rename=lambda key: key) -> None:
    """Output, the gradient of the input by its norm, those of all parameters, at the tolerances of the golden.

    `golden` has `output`, `probe`, `input.l2` or `input` and the released names of parameters.
    """
    gradients = {key[len("param.") :]: golden[key] for key in golden if key.startswith("param.")}
    exact, tolerance = precision == "f64", facts["tolerance"]
    (output * golden["probe"].to(output.dtype)).sum().backward()
    ours = {name: p.grad.detach() for name, p in model.named_parameters() if p.grad is not None}
    theirs = translate({rename(name): tensor for name, tensor in gradients.items()}, model.config.family)
    errors = {"output": _error(output.detach(), golden["output"]) / (FLOAT64 if exact else tolerance["output_float32"])}
    allowed = FLOAT64 if exact else tolerance["grad_float32"]
    if "input.l2" in golden:
        norm = golden["input.l2"].item()
        errors["input"] = abs(clip.grad.double().norm().item() - norm) / norm / allowed
    else:
        errors["input"] = _error(clip.grad, golden["input"]) / allowed
    for name, tensor in theirs.tensors.items():
        if not tensor.any():  # known to be zero, but for rounding
            errors[name] = ours[name].abs().max().item() / allowed
        else:
            errors[name] = _error(ours[name], tensor.view_as(ours[name])) / allowed
    assert len(gradients) > 10
    assert not {name: error for name, error in errors.items() if not error <= 1}


def of_vivit(data: dict, case: str) -> dict:
    """One model of the golden, for `check`."""
    golden = {"output": data[f"output.{case}.f64"], "probe": data[f"probe.{case}"]}
    golden["input.l2"] = data[f"grad.input.l2.{case}.f64"]
    end = f".{case}.f64"
    golden |= {
        k[len("grad.") : -len(end)]: v for k, v in data.items() if k.startswith("grad.param") and k.endswith(end)
    }
    # An offset of all keys changes nothing: its gradient is zero and not stored.
    return golden | {k.replace("query", "key"): v * 0 for k, v in golden.items() if k.endswith("query/bias")}


@needs_goldens
@pytest.mark.parametrize("kernel", ["reference", "sdpa"])
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("case", ["joint", SELF, "self_attention_space_time", "dot_product"])
def test_vivit_equals_released_code(case, precision, kernel, tmp_path):
    facts, data = _facts("vivit"), load_file(FOLDER / "vivit.data.safetensors")
    model = backbones.create(vivit_of(case), facts["config"]["num_classes"], kernel=kernel)
    load(model, "vivit", f"{case}.", tmp_path, lambda key: in_order(key, case))
    model.to(DTYPES[precision]).eval()
    clip = data["input"].movedim(-1, 1).to(DTYPES[precision]).requires_grad_()
    check(model, clip, model(clip), of_vivit(data, case), facts, precision, lambda key: in_order(key, case))


@needs_goldens
@pytest.mark.parametrize("kernel", ["reference", "sdpa"])
@pytest.mark.parametrize("precision", DTYPES)
def test_factorised_encoder_equals_released_code(precision, kernel, tmp_path):
    facts, data = _facts("vivit"), load_file(FOLDER / "vivit.data.safetensors")
    c = facts["config"]
    h, w, t = c["patch_hwt"]
    config = EncodersConfig(
        **VIVIT | dict(patch=[t, h, w], clip=[6, 12, 20], width=c["hidden_size"], num_heads=c["num_heads"]),
        depth=c["num_layers"], mlp_ratio=c["mlp_dim"] / c["hidden_size"],
        temporal_depth=1, temporal_heads=2, temporal_mlp_ratio=24 / c["hidden_size"],
    )  # fmt: skip
    model = backbones.create(config, c["num_classes"], kernel=kernel)
    load(model, "vivit", "encoder.", tmp_path)
    clip = data["input"].movedim(-1, 1).to(DTYPES[precision]).requires_grad_()
    model.to(DTYPES[precision]).eval()
    check(model, clip, model(clip), of_vivit(data, "encoder"), facts, precision)


@needs_goldens
@pytest.mark.parametrize("kernel", ["reference", "sdpa"])
@pytest.mark.parametrize("precision", DTYPES)
def test_xvit_equals_released_code(precision, kernel, tmp_path):
    facts, data = _facts("xvit"), load_file(FOLDER / "xvit.data.safetensors")
    c = facts["config"]["model"]
    head, sizes = c["temporal_head"], dict(width=c["embed_dim"], num_heads=c["num_heads"], depth=c["depth"])
    config = EncodersConfig(
        **XVIT | sizes | dict(clip=[c["frames"], c["img_size"], c["img_size"]], head_width=head["mlp_dim"]),
        mlp_ratio=c["mlp_ratio"], temporal_heads=head["heads"], temporal_mlp_ratio=head["mlp_ratio"],
    )  # fmt: skip
    model = backbones.create(config, c["num_classes"], kernel=kernel)
    weights = _with_prefix(load_file(FOLDER / "xvit.weights.safetensors"), "model.")
    places = weights["base_model.pos_embed"]  # of 14x14 places, which the published code resizes at each call
    rest = places[:, 1:].unflatten(1, (14, 14)).movedim(-1, 1)
    rest = interpolate(rest.double(), scale_factor=4 / 14, mode="bicubic").flatten(2).mT
    weights["base_model.pos_embed"] = torch.cat([places[:, :1], rest], 1)
    save_file({f"model.{key}": tensor.contiguous() for key, tensor in weights.items()}, tmp_path / "x.safetensors")
    model.to(DTYPES[precision]).eval()
    assert backbones.load_checkpoint(model, tmp_path / "x.safetensors").complete
    clip = data["model.input"].to(DTYPES[precision]).requires_grad_()
    golden = {"output": data["model.output.f64"], "probe": data["model.probe"]}
    golden["input.l2"] = data["model.grad.input.l2.f64"]
    golden |= {key[:-4]: t for key, t in _with_prefix(data, "model.grad.").items() if key.startswith("param.")}
    check(model, clip, model(clip), golden, facts, precision)


@needs_goldens
@pytest.mark.parametrize("kernel", ["reference", "sdpa"])
@pytest.mark.parametrize("precision", DTYPES)
def test_vtn_equals_released_code(precision, kernel, tmp_path):
    """The golden begins where each frame has become one token."""
    facts, data = _facts("vtn_temporal"), load_file(FOLDER / "vtn_temporal.data.safetensors")
    c = facts["config"]
    config = EncodersConfig(
        **VTN | dict(width=c["dim"], num_heads=3, depth=1, clip=[c["frames"], 16, 16], temporal_depth=c["layers"]),
        temporal_heads=c["num_heads"], temporal_mlp_ratio=c["intermediate_size"] / c["dim"],
        window=c["attention_window"][0], max_frames=c["max_position_embeddings"],
    ).changed({"head_width": c["mlp_dim"]})  # fmt: skip
    model = backbones.create(config, c["num_classes"], kernel=kernel)
    report = backbones.load_checkpoint(model, FOLDER / "vtn_temporal.weights.safetensors", strict=False)
    assert not report.unexpected
    assert not report.mismatched
    assert all(name.startswith("frames.") for name in report.missing)
    model.to(DTYPES[precision]).eval()
    frames = data["input"].to(DTYPES[precision]).requires_grad_()
    tokens = model.position(frames[:, :, None, None], data["position_ids"][0].long())
    seen = {"embedding": tokens.x.detach()}
    for i, block in enumerate(model.column):
        block.register_forward_hook(lambda m, i, y, name=f"layer{i}": seen.update({name: y.x.detach()}))
    output = model.scores(through(model.column, tokens, model))
    assert {f"intermediate.{name}.f64" for name in seen} == {name for name in data if name.startswith("intermediate.")}
    allowed = FLOAT64 if precision == "f64" else facts["tolerance"]["output_float32"]
    for name, tensor in seen.items():
        assert _error(tensor, data[f"intermediate.{name}.f64"]) <= allowed, name
    golden = {"output": data["output.f64"], "probe": data["probe"], "input": data["grad.input.f64"]}
    golden |= {k[len("grad.") : -len(".f64")]: v for k, v in data.items() if k.startswith("grad.param")}
    # An offset of all keys changes nothing; what the second block has of frames is not looked at.
    for name, weight in load_file(FOLDER / "vtn_temporal.weights.safetensors").items():
        golden.setdefault(f"param.{name}", torch.zeros_like(weight))
    check(model, frames, output, golden, facts, precision)


@pytest.mark.parametrize(
    ("name", "classes", "millions", "giga"),
    [
        ("vivit_large_16x2", 400, 307.5, 1436.0),
        ("vivit_base_16x2", 400, 89.0, 451.5),
        ("xvit_base_16f", 400, 93.8, 281.1),
        ("vtn_base_250f", 400, 113.5, 4397.0),
        ("deit_tiny", 1000, 5.7, 1.3),
        ("deit_small", 1000, 22.1, 4.6),
        ("deit_base", 1000, 86.6, 17.6),
        ("deit_tiny_distilled", 1000, 5.9, 1.3),
        ("deit_base_distilled", 1000, 87.3, 17.7),
    ],
)
def test_costs(name, classes, millions, giga):
    """Parameters and multiply-adds of a view, as the sheet has them; DeiT's as its paper does."""
    model = on_meta(name, classes)
    assert round(parameters(model) / 1e6, 1) == millions
    assert round(model.macs() / 1e9, 1) == giga


def test_the_printed_parameters_of_vivit_large_fit_another_size():
    """310.8 M stand in the tables, 307.5 M are those of 224 pixels."""
    model = on_meta(backbones.config("vivit_large_16x2").changed({"clip": [32, 320, 320]}), 400)
    assert parameters(model) == 310_850_960


def test_what_vtn_leaves_out():
    """Published are 4218 G: no attention products. Both figures of the sheet are those of another reading of the code:
    4218.6 G map the queries of the class token of all tokens, and 114.0 M have the 1000 classes of ImageNet.
    """
    model, frames, d = on_meta("vtn_base_250f", 400), 250, 768
    products = frames * 12 * 2 * 197**2 * d
    around = sum(min(frames, i + 9) - max(1, i - 9) + 2 for i in range(1, frames + 1))
    products += 3 * 2 * d * (around + frames + 1)
    linear = model.macs() - products
    assert round(linear / 1e9, 1) == 4218.2
    assert round((linear + 3 * frames * d * d) / 1e9, 1) == 4218.6
    assert round(linear / 1e9) == 4218  # as printed; the sheet's would be 4219
    assert round(parameters(model) / 1e6, 2) == 113.50
    assert round(parameters(on_meta("vtn_base_250f", 1000)) / 1e6, 1) == 114.0


def test_what_a_temporal_head_for_each_frame_of_xvit_would_cost():
    """Published are 850 G of three views, 283 each; there is one head for 16 frames, which makes 281.1 G."""
    model = on_meta("xvit_base_16f", 400)
    head = sum(block.macs() for block in model.column) + model.classifier.weight.numel()
    head += sum(part.weight.numel() for part in model.norm.modules() if isinstance(part, torch.nn.Linear))
    assert round(model.frames.macs() / 16e9, 2) == 17.56
    assert round(head / 1e9, 2) == 0.12
    assert round((model.macs() + 15 * head) / 1e9) == 283


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("name", ["ViViT", "TimeSformer"])
def test_models_equal_those_of_transformers(name, precision, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    common = dict(
        image_size=32, num_frames=4, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48,
        num_labels=5, hidden_dropout_prob=0.0,
    )  # fmt: skip
    if name == "ViViT":
        config = transformers.VivitConfig(**common, tubelet_size=[2, 8, 8])
        theirs, form, patch = transformers.VivitForVideoClassification(config), VIVIT_JOINT, [2, 8, 8]
    else:
        config = transformers.TimesformerConfig(**common, patch_size=8)
        theirs, form, patch = transformers.TimesformerForVideoClassification(config), DIVIDED, [1, 8, 8]
    for parameter in theirs.eval().parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    sizes = SIZES | dict(clip=[4, 32, 32], mlp_ratio=2.0, patch=patch)
    ours = backbones.create(ColumnarConfig(**form | sizes), 5).eval()
    report = backbones.load_checkpoint(ours, tmp_path / "theirs.safetensors")
    assert report.layout == f"{name} (transformers)"
    clip = torch.randn(2, 3, 4, 32, 32, dtype=DTYPES[precision])
    theirs, ours = theirs.to(clip.dtype), ours.to(clip.dtype)
    error = _error(ours(clip).detach(), theirs(clip.transpose(1, 2)).logits)
    assert error <= (1e-10 if precision == "f64" else 1e-5)


@pytest.mark.parametrize("prefix", ["vit.", ""])
def test_an_image_vit_of_transformers_is_loaded(prefix, tmp_path):
    """Bare, its names are those of ViViT; the model says which of the two they are."""
    image_config = ColumnarConfig(**JOINT, **SIZES | dict(clip=[1, 24, 32], patch=[1, 8, 8]), position="space")
    image, other = (backbones.create(image_config, 7) for _ in range(2))
    state = {}
    for key, tensor in image.state_dict().items():
        name = key.replace("embed.proj", "embeddings.patch_embeddings.projection")
        name = name.replace("position.class_token", "embeddings.cls_token")
        name = name.replace("position.space", "embeddings.position_embeddings")
        name = re.sub(r"^column\.(\d)\.", r"encoder.layer.\1.", name).replace(
            "attention.0.proj", "attention.output.dense"
        )
        name = name.replace("norms.0", "layernorm_before").replace("mlp_norm", "layernorm_after")
        name = name.replace("mlp.fc1", "intermediate.dense").replace("mlp.fc2", "output.dense")
        name = re.sub("^norm", "layernorm", name)
        names = [name.replace("0.qkv", f"attention.{role}") for role in ("query", "key", "value")]
        parts = tensor.chunk(3) if "qkv" in name else [tensor[:, :, 0] if tensor.ndim == 5 else tensor]
        here = "" if name.startswith("classifier") else prefix
        state |= {here + new: part.contiguous() for new, part in zip(names, parts, strict=False)}
    save_file(state, tmp_path / "vit.safetensors")
    report = backbones.load_checkpoint(other, tmp_path / "vit.safetensors")
    assert (report.layout, report.complete) == ("image ViT (transformers)", True)
    assert_close(other.state_dict(), image.state_dict(), rtol=0, atol=0)


IMAGE = ColumnarConfig(**JOINT, **SIZES | dict(clip=[1, 24, 32], patch=[1, 8, 8]), position="space")
OF_TIMM = (
    ("embed.", "patch_embed."),
    ("position.class_token", "cls_token"),
    ("position.distilled", "dist_token"),
    ("position.space", "pos_embed"),
    ("column.", "blocks."),
    ("attention.0.", "attn."),
    ("norms.0.", "norm1."),
    ("mlp_norm.", "norm2."),
)
OF_TRANSFORMERS = (
    ("embed.proj.", "deit.embeddings.patch_embeddings.projection."),
    ("position.class_token", "deit.embeddings.cls_token"),
    ("position.distilled", "deit.embeddings.distillation_token"),
    ("position.space", "deit.embeddings.position_embeddings"),
    ("column.", "deit.encoder.layer."),
    ("attention.0.proj.", "attention.output.dense."),
    ("norms.0.", "layernorm_before."),
    ("mlp_norm.", "layernorm_after."),
    ("mlp.fc1.", "intermediate.dense."),
    ("mlp.fc2.", "output.dense."),
)


def distilled(kind: str) -> tuple[backbones.Backbone, dict[str, torch.Tensor]]:
    """A small distilled DeiT of ours, and a file of theirs with its weights; of the classifiers those of the file."""
    model = backbones.create(IMAGE.changed({"class_token": "distilled"}), 0).double().eval()
    timm, state = kind == "timm", {}
    for key, tensor in model.state_dict().items():
        for ours, theirs in OF_TIMM if timm else OF_TRANSFORMERS:
            key = key.replace(ours, theirs)
        key = key if timm else re.sub("^norm", "deit.layernorm", key)
        split = not timm and "qkv" in key
        names = [key.replace("attention.0.qkv", f"attention.attention.{role}") for role in ("query", "key", "value")]
        parts = tensor.chunk(3) if split else [tensor[:, :, 0] if tensor.ndim == 5 else tensor]
        state |= {name: part.contiguous() for name, part in zip(names if split else [key], parts, strict=True)}
    for name in ("head", "head_dist") if timm else ("cls_classifier", "distillation_classifier"):
        state |= {f"{name}.weight": torch.randn(7, 24).double(), f"{name}.bias": torch.randn(7).double()}
    return model, state


@pytest.mark.parametrize("kind", ["timm", "transformers"])
def test_a_distilled_deit_answers_with_the_mean_of_its_classifiers(kind, tmp_path):
    torch.manual_seed(0)
    headless, state = distilled(kind)
    save_file(state, tmp_path / "deit.safetensors")
    model = backbones.create(headless.config, 7).double().eval()
    report = backbones.load_checkpoint(model, tmp_path / "deit.safetensors")
    assert (report.complete, report.ignored) == (True, {})
    assert report.layout.startswith("DeiT, distilled (" + kind)
    clip = torch.randn(2, 3, 1, 24, 32).double()
    both = headless(clip).unflatten(1, (2, 24)).unbind(1)
    heads = [[state[f"{name}.{part}"] for part in ("weight", "bias")] for name in state_heads(state)]
    expected = sum(torch.nn.functional.linear(x, *head) for x, head in zip(both, heads, strict=True)) / 2
    assert_close(model(clip), expected)
    assert_close(headless.position(headless.embed(headless.channels_last(clip))).head.shape, torch.Size([2, 2, 24]))
    plain = backbones.create(IMAGE, 7)
    with pytest.raises(backbones.CheckpointError) as error:
        backbones.load_checkpoint(plain, tmp_path / "deit.safetensors")
    assert report.layout in str(error.value)
    assert "position.space 1x14x24 in the file, 1x13x24 here" in str(error.value)
    video = backbones.create(ColumnarConfig(**DIVIDED, **SIZES | dict(patch=[1, 8, 8])), 5)
    backbones.inflate(state, video)  # what a teacher taught has no place in it
    assert_close(video.position.space[:, 1:], headless.position.space[:, 2:].float())
    assert_close(video.position.space[:, 0], headless.position.space[:, 0].float())


def state_heads(state: dict[str, torch.Tensor]) -> list[str]:
    """The classifier of the class token, then that of the distilled one."""
    heads = [name.removesuffix(".weight") for name in state if re.search(r"(^head|classifier).*weight$", name)]
    return sorted(heads, key=lambda name: "dist" in name)


@pytest.mark.parametrize("kind", ["timm", "transformers"])
def test_a_distilled_deit_equals_theirs(kind, tmp_path):
    pytest.importorskip(kind, reason=f"{kind} is not installed")
    torch.manual_seed(0)
    if kind == "timm":
        from timm.models.deit import VisionTransformerDistilled

        theirs = VisionTransformerDistilled(
            img_size=32, patch_size=8, num_classes=7, embed_dim=24, depth=2, num_heads=3, mlp_ratio=4.0
        )
        scores = theirs
    else:
        from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

        config = DeiTConfig(
            image_size=32, patch_size=8, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
            intermediate_size=96, num_labels=7, hidden_dropout_prob=0.0, layer_norm_eps=1e-6,
        )  # fmt: skip
        theirs = DeiTForImageClassificationWithTeacher(config)
        scores = lambda image: theirs(image).logits  # noqa: E731
    for parameter in theirs.double().eval().parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    sizes = dict(clip=[1, 32, 32], class_token="distilled")
    ours = backbones.create(IMAGE.changed(sizes), 7).double().eval()
    assert backbones.load_checkpoint(ours, tmp_path / "theirs.safetensors").complete
    clip = torch.randn(2, 3, 1, 32, 32).double()
    assert _error(ours(clip).detach(), scores(clip[:, :, 0]).detach()) <= 1e-10


@pytest.mark.parametrize("form", [VIVIT_JOINT, VIVIT_SELF, VIVIT_DOT, JOINT])
def test_vivit_starts_from_an_image_model(form):
    """The central frame sees what the image model saw, the positions are its at all times, as are all attentions."""
    image_config = ColumnarConfig(**JOINT, **SIZES | dict(clip=[1, 24, 32], patch=[1, 8, 8]), position="space")
    image = backbones.create(image_config, 7)
    model = backbones.create(ColumnarConfig(**form | SIZES), 5)
    before = model.classifier.weight.clone()
    report = backbones.inflate(image.state_dict(), model)
    assert {name for name in report.fresh if name != "position.time"} == {"classifier.weight", "classifier.bias"}
    assert torch.equal(model.classifier.weight, before)
    assert torch.equal(model.embed.proj.weight[:, :, 1], image.embed.proj.weight[:, :, 0])
    assert not model.embed.proj.weight[:, :, 0].any()
    for block, source in zip(model.column, image.column, strict=True):
        for scheme in block.attention:
            assert torch.equal(scheme.qkv.weight, source.attention[0].qkv.weight)
    if model.position.joint is not None:
        rows = image.position.space[:, 1:]
        assert torch.equal(model.position.joint[:, -2 * rows.shape[1] :], rows.repeat(1, 2, 1))
        first = model.position.class_token is not None
        assert model.position.joint.shape[1] == first + 2 * rows.shape[1]


@pytest.mark.parametrize("form", [VIVIT, XVIT, VTN])
def test_encoders_start_from_an_image_model(form, tmp_path):
    """Frames see what the image model saw; what comes after them stays as it was."""
    image_config = ColumnarConfig(**JOINT, **SIZES | dict(clip=[1, 24, 32], patch=[1, 8, 8]), position="space")
    image = backbones.create(image_config, 7)
    sizes = SIZES | dict(patch=[form.get("patch", [1])[0], 8, 8], temporal_heads=3)
    model = backbones.create(EncodersConfig(**form | sizes), 5).eval()
    report = backbones.inflate(image.state_dict(), model)
    assert not [name for name in report.fresh if name.startswith("frames.") and name != "frames.position.time"]
    first = model.frames.column[0]
    assert torch.equal(first.attention[0].qkv.weight, image.column[0].attention[0].qkv.weight)
    assert torch.equal(model.frames.position.space, image.position.space)
    for clip in (torch.randn(2, 3, 4, 24, 32), torch.randn(2, 3, 6, 40, 24)):
        assert_close(model(clip)[:1], model(clip[:1]), rtol=1e-4, atol=1e-5)
    backbones.save_checkpoint(model, tmp_path / "own.safetensors")
    assert_close(backbones.from_checkpoint(tmp_path / "own.safetensors").eval()(clip), model(clip))


def test_windowed_attention_sees_what_it_says():
    scheme = WindowedAttention(12, 3, Grid(9, 1, 1), 4, "reference").double()
    x = torch.randn(1, 9, 1, 1, 12, dtype=torch.float64, requires_grad=True)
    head = torch.randn(1, 1, 12, dtype=torch.float64, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        y, first = scheme(x, head)
    assert counter.get_total_flops() == 2 * scheme.macs()
    for i, token in enumerate(torch.cat([first, y.flatten(1, 3)], 1)[0]):
        of_head, of_x = torch.autograd.grad(token.sum(), [head, x], retain_graph=True)
        flows = torch.cat([of_head.flatten(0, 1), of_x.flatten(0, 3)]).abs().sum(-1) > 0
        assert torch.equal(flows, scheme.reach()[i])
    assert scheme.reach()[5].tolist() == [True, False, False, *[True] * 5, False, False]


@pytest.mark.parametrize("form", [VIVIT_JOINT, VIVIT_DOT])
def test_other_clips_resize_the_positions(form):
    model = backbones.create(ColumnarConfig(**form | SIZES), 5).eval()
    for clip in (torch.randn(2, 3, 4, 24, 32), torch.randn(2, 3, 6, 40, 24)):
        assert_close(model(clip)[:1], model(clip[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu"])
@pytest.mark.parametrize("rank", [None, 0.5])
def test_an_mlp_of_any_activation_has_exact_gradients(activation, rank):
    mlp = Mlp(6, 2, activation=activation, rank=rank).double()
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mlp, x)
    act = {"gelu": gelu, "gelu_tanh": partial(gelu, approximate="tanh"), "relu": relu}[activation]
    assert_close(mlp(x), mlp.fc2(act(mlp.fc1(x))))
    with torch.no_grad():
        assert_close(mlp(x), mlp.fc2(act(mlp.fc1(x))))
    assert mlp.macs(1) == (2 * 6 * 12 if rank is None else 2 * 3 * (6 + 12))
