"""Comparisons with implementations of others: weights are mapped whole, and what is not there is skipped."""

import json
import os
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import backbones
from attention_zoo import Grid
from backbones import pyramid
from backbones.checkpoint import translate
from backbones.layouts import WRAPPED
from harness.cost import memory
from harness.spec.options import Command, parse
from records import provenance
from records.record import read_records
from reports import cost_page

sys.path.append(str(Path(__file__).parents[1]))  # benchmarks are no part of the package

from benchmarks import dualformer, peers, timesformer

SMALL = ["frames=2", "size=32", "depth=1", "pairs=1", "threads=1"]
GOLDENS = Path(os.environ.get("ATTENTION_ZOO_GOLDENS") or Path(__file__).parents[2] / "shared" / "goldens")
FLOAT64 = 1e-9


def torchvision_names():
    """The names in the state dict of torchvision's swin3d_t, written out from its structure."""
    names = [f"patch_embed.{one}.{kind}" for one in ("proj", "norm") for kind in ("weight", "bias")]
    for stage, depth in enumerate((2, 2, 6, 2)):
        for block in range(depth):
            of_block = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.0", "mlp.3"]
            names += [f"features.{2 * stage}.{block}.{one}.{kind}" for one in of_block for kind in ("weight", "bias")]
            table = ["relative_position_bias_table", "relative_position_index"]
            names += [f"features.{2 * stage}.{block}.attn.{one}" for one in table]
        if stage < 3:
            names += [f"features.{2 * stage + 1}.{one}" for one in ("reduction.weight", "norm.weight", "norm.bias")]
    return [*names, "norm.weight", "norm.bias", "head.weight", "head.bias"]


def test_the_weights_of_torchvision_fill_our_model():
    with torch.device("meta"):
        ours = backbones.create("video_swin_tiny")
    assert set(peers.translated(dict.fromkeys(torchvision_names()))) == set(ours.state_dict())
    with pytest.raises(KeyError, match="avgpool"):
        peers.translated({"avgpool.weight": None})


def test_the_weights_of_transformers_fill_our_model():
    inside = ["temporal_layernorm", "temporal_attention.attention.qkv", "temporal_attention.output.dense"]
    inside += ["temporal_dense", "layernorm_before", "attention.attention.qkv", "attention.output.dense"]
    inside += ["layernorm_after", "intermediate.dense", "output.dense"]
    linear = ["embeddings.patch_embeddings.projection", "layernorm"]
    linear += [f"encoder.layer.{i}.{one}" for i in range(2) for one in inside]
    names = [f"{one}.{kind}" for one in linear for kind in ("weight", "bias")]
    names += [f"embeddings.{one}" for one in ("cls_token", "position_embeddings", "time_embeddings")]
    with torch.device("meta"):
        ours = timesformer.TimeSformer(2, 32, depth=2)
    assert set(timesformer.translated(dict.fromkeys(names))) == set(ours.state_dict())


def test_transformers_agrees(tmp_path, capsys):
    pytest.importorskip("transformers")
    assert peers.main([*SMALL, "schemes=[divided]", "modes=[forward,training]", f"out={tmp_path}"]) == 0
    said = capsys.readouterr().out
    if "skipped" in said:
        pytest.skip(said)
    assert "training: ours is" in said


@pytest.mark.parametrize("frames, size, mode", [(16, 64, "eval"), (8, 96, "train")], ids=["eval", "train"])
def test_the_released_layout_computes_what_ours_does(frames, size, mode):
    pair = peers.local_global(peers.Options(frames=frames, size=size, depth=2))[1:]
    theirs, ours = (model.double().train(mode == "train") for model in pair)
    for norm in (m for model in (theirs, ours) for m in model.modules() if isinstance(m, nn.BatchNorm3d)):
        torch.manual_seed(norm.num_features)  # so that neither statistic is what a mistake would leave
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    clip = torch.randn(2, 3, frames, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inputs = [clip.clone().requires_grad_() for _ in range(2)]
    outputs = [model(x) for model, x in zip((theirs, ours), inputs, strict=True)]
    assert relative(*outputs) < FLOAT64
    if mode == "eval":
        with torch.inference_mode():  # where ours may take another path
            assert relative(ours(clip), outputs[0]) < FLOAT64
    probe = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for output in outputs:
        (output * probe).sum().backward()
    assert relative(*(x.grad for x in inputs)) < FLOAT64
    gradients = translate({name: parameter.grad for name, parameter in theirs.named_parameters()}).tensors
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, parameter in ours.named_parameters():  # some are zero but for rounding: a bias before a batch norm
        assert (parameter.grad - gradients[name]).abs().max() < FLOAT64 * largest, name


def relative(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("variant", pyramid.DUALFORMER_SIZES)
def test_the_weights_of_the_released_layout_fill_our_model(variant):
    with torch.device("meta"):
        theirs, ours = peers.released(peers.Options(variant=variant)), backbones.create(f"dualformer_{variant}")
    translated = translate(theirs.state_dict())
    assert translated.layout.name.startswith("DualFormer")
    assert not translated.ignored
    assert {name: tensor.shape for name, tensor in translated.tensors.items()} == {
        name: tensor.shape for name, tensor in ours.state_dict().items()
    }


@pytest.mark.parametrize("name", ["dualformer_32f", "dualformer_16f_w477"])
def test_the_released_layout_equals_the_published_one(name):
    if not GOLDENS.is_dir():
        pytest.skip(f"no goldens in {GOLDENS}; ATTENTION_ZOO_GOLDENS names another folder")
    golden = load_file(GOLDENS / f"{name}.data.safetensors")
    c = json.loads((GOLDENS / f"{name}.json").read_text())["config"]
    sizes = dict(widths=c["embed_dims"], num_heads=c["num_heads"], depths=c["depths"])
    window = Grid(*c["local_sizes"][0])
    theirs = dualformer.DualFormer(Grid(*c["video_size"]), c["num_classes"], **sizes, window=window)
    weights = load_file(GOLDENS / f"{name}.weights.safetensors")
    theirs.load_state_dict({WRAPPED.sub("", key): tensor for key, tensor in weights.items()})
    clip = golden["input"] if "input" in golden else golden["input.A"] * golden["input.B"]
    with torch.inference_mode():
        output = theirs.double().eval()(clip.double())
    assert relative(output, golden["output.f64"]) < FLOAT64


def test_our_side_may_be_compiled(tmp_path, capsys):
    arguments = ["schemes=[local_global]", "frames=2", "size=64", "depth=1", "pairs=1", "threads=1", "compile=true"]
    assert peers.main([*arguments, f"out={tmp_path}"]) == 2
    assert "use modes=[forward]" in capsys.readouterr().err
    assert peers.main([*arguments, "modes=[forward]", f"out={tmp_path}"]) == 0
    assert "ours compiled and frozen" in capsys.readouterr().out
    (record,) = read_records(tmp_path / "peers")
    assert record.case["compile"]
    assert record.measurements["forward_speedup"].samples


def test_memory_is_measured_in_processes_of_their_own(tmp_path, capsys):
    arguments = ["schemes=[local_global]", "modes=[memory]", "frames=2", "size=64", "depth=1", "threads=1"]
    assert peers.main([*arguments, f"out={tmp_path}"]) == 0
    said, (record,) = capsys.readouterr().out, read_records(tmp_path / "peers")
    assert "memory of a training step: theirs is" in said
    with torch.device("meta"):
        model = peers.released(peers.Options(frames=2, size=64, depth=1))
    weights = sum(parameter.numel() for parameter in model.parameters()) * 4
    theirs, ours = (record.measurements[f"training_memory_{side}"] for side in ("theirs", "ours"))
    for one in (theirs, ours):  # with gradients and two moments, and little else at this size
        assert one.unit == "bytes"
        assert 3.5 * weights < one.value < 8 * weights
    assert record.measurements["training_memory_ratio"].value == theirs.value / ours.value
    assert not any("latency" in name for name in record.measurements)


@pytest.mark.parametrize(
    "error, reason",
    [
        (BrokenProcessPool("A process in the process pool was terminated abruptly"), "the measuring process was ended"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "theirs: out of memory"),
        (RuntimeError("no such operator\nand a trace"), "theirs: no such operator\n"),
    ],
    ids=["killed", "out of memory", "failed"],
)
def test_memory_that_cannot_be_measured_has_a_reason(error, reason, tmp_path, capsys, monkeypatch):
    class Failing:
        __enter__, submit = lambda self: self, lambda self, *arguments: self

        def __init__(self, *arguments, **options): ...

        def __exit__(self, *exception): ...

        def result(self):
            raise error

    monkeypatch.setattr(peers, "ProcessPoolExecutor", Failing)
    monkeypatch.setitem(peers.PEERS, "divided", lambda options: ("a peer", Sum(1.0), Sum(1.0)))
    assert peers.main([*SMALL, "schemes=[divided]", "modes=[memory]", f"out={tmp_path}"]) == 1
    said, (record,) = capsys.readouterr().out, read_records(tmp_path / "peers")
    assert "not measured: " in said
    assert reason in said
    assert record.measurements["training_memory_ratio"].missing


def test_what_is_not_there_is_skipped_with_the_reason(tmp_path, capsys, monkeypatch):
    for name in ("transformers", "torchvision"):
        monkeypatch.setitem(sys.modules, name, None)
    assert peers.main(["schemes=[divided,shifted_window]", f"out={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert "divided: skipped: transformers cannot be imported" in said
    assert "shifted_window: skipped: torchvision cannot be imported" in said
    assert "full torch build" in said


class Sum(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.scale, self.factor = nn.Parameter(torch.ones(peers.CLASSES)), factor

    def forward(self, clip):
        return clip.mean((1, 2, 3, 4))[:, None] * self.scale * self.factor


@pytest.mark.parametrize("factor, status", [(1.0, 0), (2.0, 1)], ids=["agree", "disagree"])
def test_nothing_is_timed_before_the_outputs_agree(factor, status, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(peers.PEERS, "divided", lambda options: ("a peer", Sum(1.0), Sum(factor)))
    assert peers.main([*SMALL, "schemes=[divided]", "modes=[forward,training]", f"out={tmp_path}"]) == status
    said, (record,) = capsys.readouterr().out, read_records(tmp_path / "peers")
    assert ("nothing is timed" in said) == bool(status)
    assert ("training_speedup" in record.measurements) != bool(status)
    if not status:
        assert "forward: ours is" in said
        assert record.measurements["forward_speedup"].details["interval"]


@pytest.fixture
def clean(monkeypatch):
    """A checkout without local changes; its commit can be changed."""
    said = {"commit": "c0ffee", "dirty": False}
    monkeypatch.setattr(provenance, "commit", lambda: dict(said))
    monkeypatch.setitem(peers.PEERS, "divided", lambda options: ("a peer", Sum(1.0), Sum(1.0)))
    return said


def test_a_run_of_other_modes_joins_what_the_same_code_measured(tmp_path, clean):
    def run(*arguments):
        assert peers.main([*SMALL, "schemes=[divided]", *arguments, f"out={tmp_path}"]) == 0
        (record,) = read_records(tmp_path / "peers")
        return {name for name in record.measurements if name.endswith("_speedup")}

    assert run("modes=[training]") == {"training_speedup"}
    assert run("modes=[forward]") == {"training_speedup", "forward_speedup"}
    clean["commit"] = "another"
    assert run("modes=[forward]") == {"forward_speedup"}


def test_another_allocator_is_another_case(tmp_path, clean, monkeypatch):
    kept = []
    monkeypatch.setattr(memory, "keep_all_freed", lambda: kept.append(True))  # it would hold for all later tests
    for arguments in ([], ["allocator=keep"]):
        assert peers.main([*SMALL, "schemes=[divided]", "modes=[forward]", f"out={tmp_path}", *arguments]) == 0
    assert kept == [True]
    cases = [record.case for record in read_records(tmp_path / "peers")]
    assert sorted(case.get("allocator", "default") for case in cases) == ["default", "keep"]
    assert "freed memory kept" in cost_page.build(tmp_path).read_text()


def test_a_mode_that_fails_loses_no_other(tmp_path, capsys, clean, monkeypatch):
    class Full(Sum):
        def forward(self, clip):
            if self.training:
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
            return super().forward(clip)

    monkeypatch.setitem(peers.PEERS, "divided", lambda options: ("a peer", Full(1.0), Sum(1.0)))
    assert peers.main([*SMALL, "schemes=[divided]", "modes=[forward,training]", f"out={tmp_path}"]) == 1
    assert "training: not measured: out of memory" in capsys.readouterr().out
    (record,) = read_records(tmp_path / "peers")
    assert record.measurements["forward_speedup"].samples
    assert record.measurements["training_speedup"].missing == "out of memory"


def test_outputs_that_are_not_finite_do_not_agree(tmp_path, capsys, clean, monkeypatch):
    monkeypatch.setitem(peers.PEERS, "divided", lambda options: ("a peer", Sum(1.0), Sum(torch.inf)))
    assert peers.main([*SMALL, "schemes=[divided]", "modes=[forward]", f"out={tmp_path}"]) == 1
    assert "not every output is finite: ours, so nothing is timed" in capsys.readouterr().out
    (record,) = read_records(tmp_path / "peers")
    assert set(record.measurements) == {"difference"}


def test_lists_of_names_are_read():
    assert parse(Command("x", "", peers.Options), ["schemes=[divided]", "modes=forward"]).schemes == ["divided"]
    assert parse(Command("x", "", peers.Options), ["modes=forward"]).modes == ["forward"]


def test_a_wrong_size_is_refused(capsys):
    assert peers.main(["size=100"]) == 2
    assert "multiple of 32" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["size=256"], "windows of (8, 7, 7) do not divide a map of (16, 64, 64)"),
        (["size=64", "frames=3"], "patches of (2, 4, 4) do not divide"),
        (["size=96", "frames=12"], "coarse priors of (4, 4, 4) do not divide"),
        (["size=32", "frames=2"], "no larger than its coarse priors"),
    ],
    ids=["windows", "patches", "priors", "too small"],
)
def test_a_clip_that_the_released_layout_cannot_divide_is_refused(arguments, reason, capsys):
    assert peers.main(arguments) == 2
    said = capsys.readouterr().err
    assert reason in said
    assert "allowed: frames 2, 4, 6, 8 or a multiple of 16, size a multiple of 32 from 64 to 224" in said


@pytest.mark.parametrize("frames, size", [(2, 64), (6, 160), (48, 192), (16, 448)])
def test_clips_of_other_sizes_fit_both(frames, size, monkeypatch):
    monkeypatch.setattr(peers, "_draw", lambda model: None)
    with torch.device("meta"):  # our weights have to have the shapes of theirs
        _, theirs, ours = peers.local_global(peers.Options(frames=frames, size=size, depth=2))
    assert theirs.grids == list(ours.grids)
