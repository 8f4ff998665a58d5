"""Each published layout of a checkpoint: which one it is is said, and what does not fit is named.

A file that does not fit is loaded in part only where that was asked for.
"""

from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import load_file
from test_checkpoints import Hostile
from test_columnar import config_of as timesformer_of
from test_goldens import FOLDER, _facts, _with_prefix, needs_goldens
from test_multiscale import config_of as mvit_of
from test_vivit import OF_TIMM, distilled, vivit_of

import backbones
from backbones.encoders import VTN, XVIT, EncodersConfig
from backbones.layouts import detect, renamed
from backbones.vidtr import VidtrConfig


def golden(name: str, config, prefix: str = "", classes: int | None = None):
    """A config, its classes, and the file of a golden, with the names that were released."""
    weights = _with_prefix(load_file(FOLDER / f"{name}.weights.safetensors"), prefix)
    return config, classes or _facts(name)["config"]["num_classes"], weights


def timesformer(form: str):
    return golden(f"timesformer_{form}", timesformer_of(_facts(f"timesformer_{form}")["config"]))


def xvit():
    c = _facts("xvit")["config"]["model"]
    head, sizes = c["temporal_head"], dict(width=c["embed_dim"], num_heads=c["num_heads"], depth=c["depth"])
    config = EncodersConfig(
        **XVIT | sizes | dict(clip=[c["frames"], 224, 224], head_width=head["mlp_dim"]), mlp_ratio=c["mlp_ratio"],
        temporal_heads=head["heads"], temporal_mlp_ratio=head["mlp_ratio"],
    )  # fmt: skip
    return golden("xvit", config, "model.", c["num_classes"])


def vidtr():
    c = _facts("vidtr")["config"]
    config = VidtrConfig(
        width=c["d_model"], num_heads=c["nhead"], depth=c["num_encoder_layers"], patch=c["patch_size"],
        clip=[c["temporal_size"], 28, 28], mlp_ratio=c["dim_feedforward"] / c["d_model"],
    )  # fmt: skip
    return golden("vidtr", config)


VTN_NAMES = (
    ("norm.0.", "mlp_head.0."),
    ("norm.1.", "mlp_head.1."),
    ("classifier.", "mlp_head.4."),
    ("position.class_token", "cls_token"),
    ("position.time", "temporal_encoder.embeddings.position_embeddings.weight"),
    ("position.token_type", "temporal_encoder.embeddings.token_type_embeddings.weight"),
    ("position.norm.", "temporal_encoder.embeddings.LayerNorm."),
    ("column.", "temporal_encoder.encoder.layer."),
    ("attention.proj.", "attention.output.dense."),
    ("norm1.", "attention.output.LayerNorm."),
    ("norm2.", "output.LayerNorm."),
    ("mlp.fc1.", "intermediate.dense."),
    ("mlp.fc2.", "output.dense."),
)
VTN_PARTS = {
    "attention.qkv.": ["attention.self.query.", "attention.self.key.", "attention.self.value."],
    "attention.global_q.": ["attention.self.query_global."],
    "attention.global_kv.": ["attention.self.key_global.", "attention.self.value_global."],
}


def vtn():
    """The golden begins where frames have become tokens, so the whole is written by hand: a small model, renamed."""
    sizes = dict(width=24, num_heads=3, depth=1, clip=[4, 32, 32], temporal_heads=3, temporal_depth=2, max_frames=9)
    config = EncodersConfig(**VTN | sizes).changed({"head_width": 7})
    state = {}
    for key, tensor in backbones.create(config, 5).state_dict().items():
        if key.startswith("frames."):
            for ours, theirs in (("frames.", "backbone."), *OF_TIMM):
                key = key.replace(ours, theirs)
            state[key] = tensor[:, :, 0] if tensor.ndim == 5 else tensor
            continue
        for ours, theirs in VTN_NAMES:
            key = key.replace(ours, theirs)
        split = next((ours for ours in VTN_PARTS if ours in key), None)
        names = [key.replace(split, theirs) for theirs in VTN_PARTS[split]] if split else [key]
        state |= dict(zip(names, tensor.chunk(len(names)), strict=True))
    return config, 5, state


def deit(kind: str):
    model, state = distilled(kind)
    return model.config, 7, state


FILES = {  # layout -> the file; of those of goldens alone
    "TimeSformer": lambda: timesformer("divided"),
    "image ViT (timm, DeiT)": lambda: timesformer("space_only"),
    "MViT (SlowFast)": lambda: golden("mvit_v2", mvit_of(_facts("mvit_v2")["config"])),
    "ViViT": lambda: golden("vivit", vivit_of("joint"), "joint."),
    "X-ViT": xvit,
    "VidTr": vidtr,
    "VTN": vtn,
    "DeiT, distilled (timm, DeiT)": lambda: deit("timm"),
    "DeiT, distilled (transformers)": lambda: deit("transformers"),
}


def saved(state, path):
    torch.save({"epoch": 3, "model_state": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    return path


@needs_goldens
@pytest.mark.parametrize("layout", FILES)
def test_what_does_not_fit_is_named_in_every_layout(layout, tmp_path):
    """A seventh of the tensors is lacking, another has another shape, one is of nothing."""
    config, classes, state = FILES[layout]()
    whole = backbones.load_checkpoint(backbones.create(config, classes), saved(state, tmp_path / "whole.pyth"))
    assert (whole.layout, whole.complete, whole.ignored) == (layout, True, {})
    rules = next(known for known in backbones.family.layouts_of() if known.name == layout)
    ours = {name: rules.rename(rules.bare(name)).partition("#")[0] for name in state}
    lost, bent = list(state)[::7], list(state)[3::7]
    damaged = {name: torch.zeros(3) if name in bent else t for name, t in state.items() if name not in lost}
    path = saved(damaged | {"surprise": torch.zeros(2)}, tmp_path / "damaged.pyth")
    model = backbones.create(config, classes)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(backbones.CheckpointError, match="does not fit the model") as error:
        backbones.load_checkpoint(model, path)
    assert f"(layout: {layout})" in str(error.value)
    assert "1 unexpected (in the file, not in the model): module.surprise" in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    report = backbones.load_checkpoint(model, path, strict=False)
    assert set(report.missing) == {ours[name] for name in lost}
    assert set(report.mismatched) == {ours[name] for name in bent} - set(report.missing)
    assert report.unexpected == ("module.surprise",)
    assert set(report.loaded) == before.keys() - set(report.missing) - set(report.mismatched)
    for key, names in report.partial.items():
        assert {ours[name.removeprefix("module.")] for name in names} == {key}
        assert all(name in str(error.value) for name in names)
    fresh = [name for name in before if name not in report.loaded]
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in fresh)


@needs_goldens
@pytest.mark.parametrize("layout", FILES)
def test_code_in_a_file_of_any_layout_is_refused(layout, tmp_path):
    config, classes, state = FILES[layout]()
    torch.save({"model_state": dict(state), "hook": Hostile(tmp_path / "ran")}, tmp_path / "file.pyth")
    for strict in (True, False):
        with pytest.raises(backbones.CheckpointError, match=r"would run \w+\.mkdir\. Refused"):
            backbones.load_checkpoint(backbones.create(config, classes), tmp_path / "file.pyth", strict=strict)
    assert os.listdir(tmp_path) == ["file.pyth"]


def test_half_of_a_tensor_is_not_taken_for_all_of_it():
    """The bias of one of DeiT's two classifiers is no mean of both."""
    _, state = distilled("timm")
    layout = detect(state, backbones.family.layouts_of())
    del state["head_dist.bias"]
    translated = renamed(state, [layout])
    assert translated.partial == {"classifier.bias": ["head.bias"]}
    assert "classifier.bias" not in translated.tensors
    assert "classifier.weight" in translated.tensors
