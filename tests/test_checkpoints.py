"""Weights in and out: published layouts, our own, damaged and hostile files, and inflation from image models."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import safe_open, save_file
from torch import Tensor

import backbones
from backbones import CheckpointError, PyramidConfig
from backbones.checkpoint import compact

DUALFORMER = PyramidConfig(
    attention={
        "L": {"scheme": "local_window", "window": [2, 7, 7]},
        "G2": {"scheme": "global_pyramid", "scales": [[2, 7, 7], [1, 4, 4]]},
        "G1": {"scheme": "global_pyramid", "scales": [[2, 7, 7]]},
        "W": {"scheme": "global_pyramid", "scales": ["whole"]},
    },
    stages=[["L", "G2"], ["L", "G1"], ["L", "W"]],
    widths=[4, 8, 12],
    num_heads=[1, 2, 2],
    depths=[2, 4, 2],
    clip=[8, 224, 224],
    temporal_pooling=[1, 1],
)
SWIN = PyramidConfig(
    attention={
        name: {"scheme": "shifted_window", "window": [2, 3, 3], "shift": shift, "padding": "attended"}
        for name, shift in (("W", "none"), ("S", "half"))
    },
    stages=[["W", "S"], ["W", "S"]],
    widths=[4, 8],
    num_heads=[2, 4],
    depths=[2, 2],
    clip=[4, 24, 24],
    temporal_pooling=[1],
    downsampling="merge",
    position="none",
)
CLASSES = 5


def linear(name: str, i: int, o: int) -> dict[str, tuple]:
    return {f"{name}.weight": (o, i), f"{name}.bias": (o,)}


def norm(name: str, d: int) -> dict[str, tuple]:
    return {f"{name}.weight": (d,), f"{name}.bias": (d,)}


def convolution(name: str, o: int, i: int, *kernel: int) -> dict[str, tuple]:
    return {f"{name}.weight": (o, i, *kernel), f"{name}.bias": (o,)}


def block(name: str, d: int) -> dict[str, tuple]:
    shapes = {**norm(f"{name}.norm1", d), **norm(f"{name}.norm2", d), **linear(f"{name}.attn.proj", d, d)}
    return {**shapes, **linear(f"{name}.mlp.fc1", d, 4 * d), **linear(f"{name}.mlp.fc2", 4 * d, d)}


def released_dualformer() -> dict[str, tuple]:
    """The names and shapes of DUALFORMER in the released layout, written down from its description."""
    shapes = {**norm("backbone.norm", 12), **linear("cls_head.fc_cls", 12, CLASSES)}
    before = 3
    for s, (d, depth) in enumerate(zip((4, 8, 12), (2, 4, 2), strict=True)):
        shapes |= convolution(f"backbone.patch_embeds.{s}.proj", d, before, *((2, 4, 4) if s == 0 else (1, 2, 2)))
        shapes |= norm(f"backbone.patch_embeds.{s}.norm", d) | convolution(
            f"backbone.pos_block.{s}.proj.0", d, 1, 3, 3, 3
        )
        for b in range(depth):
            attention = f"backbone.blocks.{s}.{b}.attn"
            shapes |= block(f"backbone.blocks.{s}.{b}", d)
            if b % 2 == 0:
                shapes |= linear(f"{attention}.qkv", d, 3 * d)
                continue
            shapes |= linear(f"{attention}.q", d, d) | linear(f"{attention}.kv", d, 2 * d)
            if s < 2:
                shapes |= norm(f"{attention}.norm", d)
                shapes |= convolution(f"{attention}.sr", d, 1, 2, 8 // 2**s, 8 // 2**s)
            if s == 0:
                shapes |= convolution(f"{attention}.lr.0", d, 1, 1, 7, 7) | norm(f"{attention}.lr.1", d)
                shapes |= {f"{attention}.lr.1.running_{what}": (d,) for what in ("mean", "var")}
                shapes |= {f"{attention}.lr.1.num_batches_tracked": ()} | convolution(
                    f"{attention}.lr.3", d, 1, 4, 2, 2
                )
        before = d
    return shapes


def released_swin() -> dict[str, tuple]:
    shapes = {**norm("backbone.norm", 8), **linear("cls_head.fc_cls", 8, CLASSES)}
    shapes |= convolution("backbone.patch_embed.proj", 4, 3, 2, 4, 4) | norm("backbone.patch_embed.norm", 4)
    shapes |= norm("backbone.layers.0.downsample.norm", 16) | {"backbone.layers.0.downsample.reduction.weight": (8, 16)}
    for s, (d, heads) in enumerate(((4, 2), (8, 4))):
        for b in range(2):
            name = f"backbone.layers.{s}.blocks.{b}"
            shapes |= block(name, d) | linear(f"{name}.attn.qkv", d, 3 * d)
            shapes |= {f"{name}.attn.relative_position_bias_table": (3 * 5 * 5, heads)}
            shapes |= {f"{name}.attn.relative_position_index": (18, 18)}
    return shapes


def filled(shapes: dict[str, tuple]) -> OrderedDict[str, Tensor]:
    """Every tensor with values of its own."""
    state = OrderedDict()
    for i, (name, shape) in enumerate(shapes.items()):
        whole = name.endswith(("num_batches_tracked", "relative_position_index"))
        state[name] = torch.full(shape, i) if whole else torch.full(shape, float(i)) + torch.rand(shape)
    return state


CASES = {"DualFormer": (DUALFORMER, released_dualformer), "Video Swin": (SWIN, released_swin)}


def small_model(num_classes: int = CLASSES) -> backbones.Pyramid:
    return backbones.create(SWIN, num_classes)


def values(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# Published layouts


@pytest.mark.parametrize("family", CASES)
@pytest.mark.parametrize("container", ["safetensors", "bare", "state_dict", "model", "wrapped"])
def test_published_layouts(tmp_path, family, container):
    config, shapes = CASES[family]
    state = filled(shapes())
    path = tmp_path / ("weights.safetensors" if container == "safetensors" else "weights.pth")
    if container == "safetensors":
        save_file(state, path)
    elif container in ("bare", "wrapped"):
        prefix = "module." if container == "wrapped" else ""
        torch.save(OrderedDict((prefix + name, tensor) for name, tensor in state.items()), path)
    else:  # what mmcv keeps beside the weights
        meta = {"epoch": 30, "hook_msgs": {"best_score": np.float64(0.79)}, "time": "now"}
        torch.save({"meta": meta, container: state, "optimizer": {"param_groups": [{"lr": 1e-4}]}}, path)

    model = backbones.create(config, CLASSES)
    report = backbones.load_checkpoint(model, path)
    assert report.complete
    assert report.layout.startswith(family)
    assert set(report.loaded) == set(model.state_dict())
    ours = sorted((t.flatten()[0].item(), tuple(t.shape)) for t in model.state_dict().values())
    theirs = {n: t for n, t in state.items() if not n.endswith("relative_position_index")}
    assert ours == sorted((t.flatten()[0].item(), tuple(t.shape)) for t in theirs.values())
    assert set(report.ignored) == {
        ("module." if container == "wrapped" else "") + name for name in state.keys() - theirs.keys()
    }


def test_names_of_the_dualformer_layout(tmp_path):
    state = filled(released_dualformer())
    torch.save(state, tmp_path / "weights.pth")
    model = backbones.create(DUALFORMER, CLASSES)
    backbones.load_checkpoint(model, tmp_path / "weights.pth")
    own, coarse = model.state_dict(), "backbone.blocks.0.1.attn"
    for ours, theirs in {
        "stages.0.embed.proj.weight": "backbone.patch_embeds.0.proj.weight",
        "stages.2.position.bias": "backbone.pos_block.2.proj.0.bias",
        "stages.1.blocks.2.attention.qkv.bias": "backbone.blocks.1.2.attn.qkv.bias",
        "stages.1.blocks.3.mlp.fc1.weight": "backbone.blocks.1.3.mlp.fc1.weight",
        "stages.0.blocks.1.attention.priors.0.0.weight": f"{coarse}.sr.weight",
        "stages.0.blocks.1.attention.priors.1.0.weight": f"{coarse}.lr.0.weight",
        "stages.0.blocks.1.attention.priors.1.1.running_var": f"{coarse}.lr.1.running_var",
        "stages.0.blocks.1.attention.priors.1.3.bias": f"{coarse}.lr.3.bias",
        "stages.0.blocks.1.attention.norm.weight": f"{coarse}.norm.weight",
        "norm.bias": "backbone.norm.bias",
        "classifier.weight": "cls_head.fc_cls.weight",
    }.items():
        torch.testing.assert_close(own[ours], state[theirs], rtol=0, atol=0)


def test_names_of_the_video_swin_layout(tmp_path):
    state = filled(released_swin())
    torch.save(state, tmp_path / "weights.pth")
    model = small_model()
    backbones.load_checkpoint(model, tmp_path / "weights.pth")
    own = model.state_dict()
    for ours, theirs in {
        "stages.0.embed.norm.weight": "backbone.patch_embed.norm.weight",
        "stages.1.embed.reduction.weight": "backbone.layers.0.downsample.reduction.weight",
        "stages.1.blocks.0.attention.bias.table": "backbone.layers.1.blocks.0.attn.relative_position_bias_table",
        "stages.1.blocks.1.norm2.weight": "backbone.layers.1.blocks.1.norm2.weight",
    }.items():
        torch.testing.assert_close(own[ours], state[theirs], rtol=0, atol=0)


def test_teacher_of_token_labelling_is_left_out(tmp_path):
    state = filled(released_dualformer())
    extra = {"teacher.backbone.norm.weight": torch.ones(12), "cls_head.token_linear.0.weight": torch.ones(24, 12)}
    torch.save({"state_dict": {**state, **extra}}, tmp_path / "weights.pth")
    report = backbones.load_checkpoint(backbones.create(DUALFORMER, CLASSES), tmp_path / "weights.pth")
    assert set(report.ignored) == set(extra)


# Misfits


def misfit(tmp_path) -> Path:
    state = filled(released_swin())
    del state["backbone.norm.weight"]
    state["cls_head.fc_cls.weight"] = torch.zeros(400, 8)
    state["backbone.surprise"] = torch.zeros(2)
    torch.save(state, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def test_misfits_are_errors_and_leave_the_model_alone(tmp_path):
    model = small_model()
    before = values(model)
    with pytest.raises(CheckpointError) as error:
        backbones.load_checkpoint(model, misfit(tmp_path))
    for part in (
        "weights.pth (layout: Video Swin (mmaction), image Swin) does not fit",
        "1 missing (in the model, not in the file): norm.weight",
        "1 unexpected (in the file, not in the model): backbone.surprise",
        "1 of another shape: classifier.weight 400x8 in the file, 5x8 here",
        "strict=False",
    ):
        assert part in str(error.value)
    torch.testing.assert_close(values(model), before, rtol=0, atol=0)


def test_misfits_are_reported_if_not_strict(tmp_path, caplog):
    model = small_model()
    before = values(model)
    with caplog.at_level(logging.WARNING):
        report = backbones.load_checkpoint(model, misfit(tmp_path), strict=False)
    assert (report.missing, report.unexpected) == (("norm.weight",), ("backbone.surprise",))
    assert report.mismatched == {"classifier.weight": ((400, 8), (5, 8))}
    assert not report.complete
    assert "backbone.surprise" in caplog.text
    assert len(report.loaded) == len(before) - 2
    torch.testing.assert_close(model.classifier.weight, before["classifier.weight"], rtol=0, atol=0)
    assert not torch.equal(model.classifier.bias, before["classifier.bias"])


def test_many_misfits_are_all_named(tmp_path):
    torch.save(filled(released_swin()), tmp_path / "weights.pth")
    larger = backbones.create(SWIN.changed({"depths": [4, 4]}), CLASSES)
    with pytest.raises(CheckpointError, match=r"52 missing .*: (stages\.\[0-1\]\.blocks\.\[2-3\]\.\S+,? ?){13}\n"):
        backbones.load_checkpoint(larger, tmp_path / "weights.pth")


def test_names_that_differ_in_numbers_are_one():
    names = ["a.0.w", "a.1.w", "a.3.w", "b.0.1.w", "b.1.1.w", "b.0.2.w", "b.1.2.w", "c.7.fc1.w", "d"]
    assert compact(names) == ["a.[0-1,3].w", "b.[0-1].[1-2].w", "c.7.fc1.w", "d"]
    assert compact(f"x.{n}.w 3x4 here" for n in range(3)) == ["x.[0-2].w 3x4 here"]


def test_image_swin_of_timm(tmp_path):
    """There the merging counts to the stage after it, and the classifier has a name more."""
    image = backbones.create("video_swin_tiny_image", 5, changes={"widths": [8, 8, 8, 8], "num_heads": [1, 1, 1, 1]})
    state = {}
    for key, tensor in image.state_dict().items():
        name = re.sub(r"^stages\.0\.embed\.", "patch_embed.", key)
        name = re.sub(r"^stages\.(\d)\.embed\.", r"layers.\1.downsample.", name)
        name = re.sub(r"^stages\.(\d)\.blocks\.(\d+)\.attention\.", r"layers.\1.blocks.\2.attn.", name)
        name = re.sub(r"^stages\.", "layers.", name).replace("bias.table", "relative_position_bias_table")
        name = name.replace("classifier.", "head.fc.")
        state[name] = tensor[:, :, 0] if tensor.ndim == 5 else tensor
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "timm.safetensors")
    other = backbones.create(image.config, 5)
    report = backbones.load_checkpoint(other, tmp_path / "timm.safetensors")
    assert (report.layout, report.complete) == ("Swin (timm)", True)
    torch.testing.assert_close(values(other), values(image), rtol=0, atol=0)


SMALL_SWIN = {"widths": [8, 16, 32, 64], "num_heads": [1, 2, 4, 8], "depths": [1, 1, 2, 1]}
OF_TRANSFORMERS = (
    (r"^stages\.0\.embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^stages\.0\.embed\.", "embeddings."),
    (r"^stages\.1\.embed\.", "encoder.layers.0.downsample."),
    (r"^stages\.2\.embed\.", "encoder.layers.1.downsample."),
    (r"^stages\.3\.embed\.", "encoder.layers.2.downsample."),
    (r"^norm\.", "layernorm."),
    (r"attention\.bias\.table", "attention.self.relative_position_bias_table"),
    (r"attention\.proj\.", "attention.output.dense."),
    (r"norm1\.", "layernorm_before."),
    (r"norm2\.", "layernorm_after."),
    (r"mlp\.fc1\.", "intermediate.dense."),
    (r"mlp\.fc2\.", "output.dense."),
    (r"^stages\.", "encoder.layers."),
)


@pytest.mark.parametrize("prefix", ["swin.", ""])
def test_image_swin_of_transformers(prefix, tmp_path):
    """Queries, keys and values are apart there; the merging counts to the stage before it, as in the released code."""
    image, other = (backbones.create("video_swin_tiny_image", 5, changes=SMALL_SWIN) for _ in range(2))
    for parameter in image.parameters():
        torch.nn.init.normal_(parameter)
    state = {f"{prefix}encoder.layers.0.blocks.0.attention.self.relative_position_index": torch.zeros(49, 49).long()}
    for key, tensor in image.state_dict().items():
        for ours, theirs in OF_TRANSFORMERS:
            key = re.sub(ours, theirs, key)
        roles = [key.replace("attention.qkv", f"attention.self.{role}") for role in ("query", "key", "value")]
        parts = tensor.chunk(3) if "qkv" in key else [tensor[:, :, 0] if tensor.ndim == 5 else tensor]
        here = "" if key.startswith("classifier") else prefix
        state |= {here + name: part.clone() for name, part in zip(roles, parts, strict=False)}
    save_file(state, tmp_path / "swin.safetensors")
    report = backbones.load_checkpoint(other, tmp_path / "swin.safetensors")
    assert (report.layout, report.complete) == ("Swin (transformers)", True)
    torch.testing.assert_close(values(other), values(image), rtol=0, atol=0)
    video = backbones.create("video_swin_tiny", 5, changes=SMALL_SWIN)
    assert backbones.inflate(state, video).complete


def test_image_swin_equals_that_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = transformers.SwinConfig(
        image_size=224, embed_dim=8, depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 8], window_size=7, num_labels=5
    )
    theirs = transformers.SwinForImageClassification(config).double().eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    ours = backbones.create("video_swin_tiny_image", 5, changes=SMALL_SWIN).double().eval()
    assert backbones.load_checkpoint(ours, tmp_path / "theirs.safetensors").layout == "Swin (transformers)"
    clip = torch.randn(2, 3, 1, 224, 224).double()
    with torch.no_grad():
        expected = theirs(clip[:, :, 0]).logits
        torch.testing.assert_close(ours(clip), expected, rtol=0, atol=1e-10 * expected.abs().max().item())


def test_a_file_of_which_nothing_fits_is_an_error_in_any_case(tmp_path):
    torch.save({"layers.0.downsample.norm.weight": torch.zeros(7)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="no tensor that fits the model"):
        backbones.load_checkpoint(small_model(), tmp_path / "weights.pth", strict=False)
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="weights.pth: names such as conv1.weight belong to no known layout"):
        backbones.load_checkpoint(small_model(), tmp_path / "weights.pth", strict=False)


def test_model_without_classifier_takes_the_rest(tmp_path):
    torch.save(filled(released_swin()), tmp_path / "weights.pth")
    report = backbones.load_checkpoint(small_model(0), tmp_path / "weights.pth")
    assert report.complete
    assert {"cls_head.fc_cls.weight", "cls_head.fc_cls.bias"} <= report.ignored.keys()


def test_weights_take_the_dtype_of_the_model(tmp_path):
    torch.save(filled(released_swin()), tmp_path / "weights.pth")
    model = small_model().double()
    backbones.load_checkpoint(model, tmp_path / "weights.pth")
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def test_meta_models_hold_no_weights(tmp_path):
    torch.save(filled(released_swin()), tmp_path / "weights.pth")
    with torch.device("meta"):
        model = small_model()
    with pytest.raises(ValueError, match="meta device"):
        backbones.load_checkpoint(model, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="meta device"):
        backbones.inflate(filled(released_swin()), model)


# Our own layout


def test_round_trip(tmp_path):
    model = backbones.create(DUALFORMER, CLASSES).eval()
    for buffer in model.buffers():
        buffer.add_(1)
    path = backbones.save_checkpoint(model, tmp_path / "new" / "folder" / "weights.safetensors")
    assert sorted(os.listdir(path.parent)) == ["weights.safetensors"]
    again = backbones.from_checkpoint(path, kernel="reference").eval()
    assert again.config == model.config
    assert again.num_classes == CLASSES
    torch.testing.assert_close(values(again), values(model), rtol=0, atol=0)
    other = backbones.create(DUALFORMER, CLASSES)
    report = backbones.load_checkpoint(other, path)
    assert report.complete
    assert not report.config_differs
    torch.testing.assert_close(values(other), values(model), rtol=0, atol=0)
    with safe_open(path, "pt") as file:
        assert file.metadata()["format"] == "attention-zoo/1"
        assert json.loads(file.metadata()["config"]) == model.config.to_dict()


def test_another_config_is_hinted_at(tmp_path, caplog):
    path = backbones.save_checkpoint(small_model(), tmp_path / "weights.safetensors")
    same_shapes = backbones.create(SWIN.changed({"attention.S.shift": "none"}), CLASSES)
    with caplog.at_level(logging.WARNING):
        report = backbones.load_checkpoint(same_shapes, path)
    assert list(report.config_differs) == ["attention"]
    assert "the file is of a model with another config: attention" in caplog.text
    with pytest.raises(CheckpointError, match=r"another config: widths \[4, 8\] in the file, \[4, 16\] here"):
        backbones.load_checkpoint(backbones.create(SWIN.changed({"widths": [4, 16]}), CLASSES), path)


def test_saving_says_what_is_wrong(tmp_path):
    model = small_model()
    with pytest.raises(ValueError, match=r"weights\.pth must end in \.safetensors"):
        backbones.save_checkpoint(model, tmp_path / "weights.pth")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"weights\.safetensors cannot be written"):
        backbones.save_checkpoint(model, tmp_path / "file" / "weights.safetensors")
    model.config = None
    with pytest.raises(ValueError, match="backbones.create"):
        backbones.save_checkpoint(model, tmp_path / "weights.safetensors")
    assert os.listdir(tmp_path) == ["file"]


def test_failed_saving_leaves_the_old_file(tmp_path, monkeypatch):
    path = backbones.save_checkpoint(small_model(), tmp_path / "weights.safetensors")
    before = path.read_bytes()

    def full(tensors, file, metadata):
        Path(file).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("backbones.checkpoint.save_file", full)
    with pytest.raises(OSError, match="no space left; choose a folder"):
        backbones.save_checkpoint(small_model(), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_only_our_files_make_a_model(tmp_path):
    save_file(filled(released_swin()), tmp_path / "theirs.safetensors")
    with pytest.raises(CheckpointError, match="holds no model config; only files of save_checkpoint do"):
        backbones.from_checkpoint(tmp_path / "theirs.safetensors")
    metadata = {"format": "attention-zoo/1", "config": json.dumps({"widths": 3}), "num_classes": "5"}
    save_file(values(small_model()), tmp_path / "damaged.safetensors", metadata)
    with pytest.raises(CheckpointError, match="config in its metadata is damaged"):
        backbones.from_checkpoint(tmp_path / "damaged.safetensors")


def test_newer_formats_are_named(tmp_path):
    save_file(values(small_model()), tmp_path / "new.safetensors", {"format": "attention-zoo/9"})
    with pytest.raises(CheckpointError, match="format attention-zoo/9.*update attention-zoo"):
        backbones.load_checkpoint(small_model(), tmp_path / "new.safetensors")


# Damaged and hostile files


class Hostile:
    """Pickles as a call that leaves a trace."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return (os.mkdir, (str(self.trace),))


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_is_not_executed(tmp_path, legacy):
    trace, path = tmp_path / "executed", tmp_path / "hostile.pth"
    content = {"state_dict": {"patch_embed.proj.weight": torch.zeros(1)}, "meta": Hostile(trace)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        CheckpointError, match=r"hostile\.pth contains more than tensors.* would run \w+\.mkdir\. Refused"
    ):
        backbones.load_checkpoint(small_model(), path)
    with pytest.raises(CheckpointError, match="Refused"):
        backbones.inflate(path, small_model())
    assert not trace.exists()


def test_plain_pickles_are_not_executed(tmp_path):
    trace, path = tmp_path / "executed", tmp_path / "hostile.pth"
    path.write_bytes(pickle.dumps(Hostile(trace), protocol=2))
    with pytest.raises(CheckpointError, match=r"hostile\.pth"):
        backbones.load_checkpoint(small_model(), path)
    assert not trace.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("damage", ["cut", "noise", "text"])
def test_damaged_files_are_named_with_the_remedy(tmp_path, suffix, damage):
    path = tmp_path / f"weights{suffix}"
    (torch.save if suffix == ".pth" else save_file)(values(small_model()), path)
    content = path.read_bytes()
    noise = bytes(range(256)) * 20
    path.write_bytes({"cut": content[: len(content) // 2], "noise": noise, "text": b"<html>not found</html>"}[damage])
    with pytest.raises(CheckpointError, match="not a readable .* copy or download it again") as error:
        backbones.load_checkpoint(small_model(), path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_empty_and_missing_files(tmp_path, suffix):
    empty = tmp_path / f"weights{suffix}"
    empty.touch()
    with pytest.raises(CheckpointError, match=r"weights.* is empty \(0 bytes\); copy or download it again"):
        backbones.load_checkpoint(small_model(), empty)
    with pytest.raises(FileNotFoundError, match=rf"did you mean .*weights{suffix}\?"):
        backbones.load_checkpoint(small_model(), tmp_path / f"weihgts{suffix}")
    with pytest.raises(FileNotFoundError, match="nor a folder"):
        backbones.load_checkpoint(small_model(), tmp_path / "nowhere" / f"weights{suffix}")
    with pytest.raises(CheckpointError, match="is a folder"):
        backbones.load_checkpoint(small_model(), tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [({"epoch": 3, "lr": 0.1}, "epoch, lr"), ([torch.zeros(1)], "list"), ({}, "dict"), (torch.zeros(3), "Tensor")],
)
def test_files_without_a_state_dict(tmp_path, content, message):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=rf"holds no state dict .*{message}"):
        backbones.load_checkpoint(small_model(), tmp_path / "weights.pth")


# Inflation; its values are held to the published codes in test_goldens.py


def image_and_video() -> tuple[backbones.Pyramid, backbones.Pyramid]:
    """The same model for one frame and for four, without anything in which time could show."""
    window = {"scheme": "local_window", "window": [1, 3, 4], "relative_bias": True}
    config = PyramidConfig(
        attention={"L": window},
        stages=[["L"], ["L"]],
        widths=[8, 12],
        num_heads=[2, 3],
        depths=[2, 1],
        clip=[1, 24, 32],
        patch=[1, 4, 4],
        temporal_pooling=[1],
        position_kernel=[1, 3, 3],
    )
    video = config.changed({"clip": [4, 24, 32], "patch": [2, 4, 4], "attention.L.window": [2, 3, 4]})
    return backbones.create(config, CLASSES).eval(), backbones.create(video, CLASSES).eval()


def test_a_still_clip_gives_what_the_image_gave():
    """Windows two frames long see each key twice, which changes no weighted mean."""
    image, video = image_and_video()
    report = backbones.inflate(image.state_dict(), video)
    assert report.complete
    assert "classifier.weight" in report.copied
    picture = torch.randn(2, 3, 1, 24, 32)
    with torch.no_grad():
        torch.testing.assert_close(video(picture.expand(-1, -1, 4, -1, -1)), image(picture), rtol=1e-4, atol=1e-5)


def test_inflation_of_a_file_keeps_a_new_classifier(tmp_path):
    image, video = image_and_video()
    path = backbones.save_checkpoint(image, tmp_path / "image.safetensors")
    other = backbones.create(video.config, 9)
    before = other.classifier.weight.clone()
    report = backbones.inflate(path, other)
    assert report.fresh == ("classifier.weight", "classifier.bias")
    torch.testing.assert_close(other.classifier.weight, before, rtol=0, atol=0)
    assert backbones.inflate(path, backbones.create(video.config, 0)).complete


def test_inflation_misfits_are_errors():
    image, video = image_and_video()
    state = image.state_dict()
    state["surprise"] = torch.zeros(1)
    del state["norm.weight"]
    state["stages.0.embed.proj.weight"] = torch.zeros(8, 3, 1, 5, 5)
    before = values(video)
    with pytest.raises(CheckpointError) as error:
        backbones.inflate(state, video)
    for part in (
        "the state dict (layout: attention-zoo) cannot be inflated",
        "1 missing (in the model, not in the image model): norm.weight",
        "1 unexpected (in the image model, not in the model): surprise",
        "stages.0.embed.proj.weight 8x3x1x5x5 in the image model, 8x3x2x4x4 here",
    ):
        assert part in str(error.value)
    torch.testing.assert_close(values(video), before, rtol=0, atol=0)
    assert not backbones.inflate(state, video, strict=False).complete
    with pytest.raises(ValueError, match="unknown inflation rule 'papre'; did you mean 'paper'"):
        backbones.inflate(state, video, rule="papre")


def test_image_dualformer_inflates():
    """Our image model has the coarse prior's second convolution; the paper's rule keeps it, the code's replaces it."""
    image = backbones.create(
        DUALFORMER.changed(
            {
                "clip": [1, 224, 224],
                "patch": [1, 4, 4],
                "position_kernel": [1, 3, 3],
                "attention.L.window": [1, 7, 7],
                "attention.G2.scales": [[1, 7, 7], [1, 4, 4]],
                "attention.G1.scales": [[1, 7, 7]],
            }
        ),
        CLASSES,
    )
    key = "stages.0.blocks.1.attention.priors.1.3.weight"
    video = backbones.create(DUALFORMER, CLASSES)
    report = backbones.inflate(image.state_dict(), video)
    assert report.complete
    assert not report.averaging
    expected = (image.state_dict()[key] / 4).expand(-1, -1, 4, -1, -1)
    torch.testing.assert_close(video.state_dict()[key], expected)
    assert backbones.inflate(image.state_dict(), video, rule="code").averaging
    assert (video.state_dict()[key] == 1 / 16).all()
