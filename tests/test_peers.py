"""Public code beside ours: weights are mapped whole, what differs is not timed, what is not there says so."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_cases import LITTLE, clip_file
from torch import nn

import backbones
from attention_zoo import Grid
from backbones.layouts import WRAPPED
from benchmarks import public, released_dualformer, transformers_video
from harness import run
from harness.cost import errors, measure, metrics
from harness.cost.count import count
from harness.cost.workload import Workload
from harness.spec import case
from harness.spec.case import Case, Clip, Settings
from harness.spec.reader import UsageError

GOLDENS = Path(os.environ.get("ATTENTION_ZOO_GOLDENS") or Path(__file__).parents[2] / "shared" / "goldens")
FLOAT64 = 1e-9
RELEASED = [f"benchmarks.public.released_dualformer_{size}" for size in ("tiny", "small", "base")]


def config_of(name, frames=8, size=64):
    return backbones.config(name).shrunk(1, 1, (frames, size, size))


def case_of(name, **fields):
    config = config_of(name)
    clip = Clip(frames=config.clip.t, size=config.clip.h)
    return Case("theirs", name, config.to_dict(), clip=clip, threads=1, **fields)


def relative(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("name", RELEASED)
def test_the_released_layout_has_our_weights_and_counts(name):
    with torch.device("meta"):
        theirs, ours = backbones.create(name), backbones.create(backbones.config(name).of)
    mapped = theirs.peer.renamed(theirs.theirs.state_dict())
    assert {key: value.shape for key, value in mapped.items()} == {
        key: value.shape for key, value in ours.state_dict().items()
    }
    config = config_of(name)
    counts = [count(Case("", "", side.to_dict(), clip=Clip(frames=8, size=64))) for side in (config, config.of)]
    assert replace(counts[0], by_group={}) == replace(counts[1], by_group={})  # public code does not show its parts


@pytest.mark.parametrize("frames, size, mode", [(16, 64, "eval"), (8, 96, "train")], ids=["eval", "train"])
def test_the_released_layout_computes_what_ours_does(frames, size, mode):
    theirs = backbones.create(config_of(RELEASED[0], frames, size), 10).double().train(mode == "train")
    for norm in (m for m in theirs.modules() if isinstance(m, nn.BatchNorm3d)):
        torch.manual_seed(norm.num_features)  # so that neither statistic is what a mistake would leave
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    ours = theirs.counterpart()
    assert ours.training is theirs.training
    clip = torch.randn(2, 3, frames, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inputs = [clip.clone().requires_grad_() for _ in range(2)]
    outputs = [model(x) for model, x in zip((theirs, ours), inputs, strict=True)]
    assert relative(*outputs) < FLOAT64
    probe = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for output in outputs:
        (output * probe).sum().backward()
    assert relative(*(x.grad for x in inputs)) < FLOAT64
    gradients = theirs.peer.renamed({name: parameter.grad for name, parameter in theirs.theirs.named_parameters()})
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, parameter in ours.named_parameters():  # some are zero but for rounding: a bias before a batch norm
        assert (parameter.grad - gradients[name]).abs().max() < FLOAT64 * largest, name


@pytest.mark.parametrize("name", ["dualformer_32f", "dualformer_16f_w477"])
def test_the_released_layout_equals_the_published_one(name):
    if not GOLDENS.is_dir():
        pytest.skip(f"no goldens in {GOLDENS}; ATTENTION_ZOO_GOLDENS names another folder")
    golden = load_file(GOLDENS / f"{name}.data.safetensors")
    c = json.loads((GOLDENS / f"{name}.json").read_text())["config"]
    sizes = dict(widths=c["embed_dims"], num_heads=c["num_heads"], depths=c["depths"])
    window = Grid(*c["local_sizes"][0])
    theirs = released_dualformer.DualFormer(Grid(*c["video_size"]), c["num_classes"], **sizes, window=window)
    weights = load_file(GOLDENS / f"{name}.weights.safetensors")
    theirs.load_state_dict({WRAPPED.sub("", key): tensor for key, tensor in weights.items()})
    clip = golden["input"] if "input" in golden else golden["input.A"] * golden["input.B"]
    with torch.inference_mode():
        output = theirs.double().eval()(clip.double())
    assert relative(output, golden["output.f64"]) < FLOAT64


def torchvision_names():
    """The names in the state dict of torchvision's swin3d_t, written out from its structure."""
    names = [f"patch_embed.{part}.{kind}" for part in ("proj", "norm") for kind in ("weight", "bias")]
    for stage, depth in enumerate((2, 2, 6, 2)):
        for block in range(depth):
            of_block = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.0", "mlp.3"]
            names += [f"features.{2 * stage}.{block}.{part}.{kind}" for part in of_block for kind in ("weight", "bias")]
            table = ["relative_position_bias_table", "relative_position_index"]
            names += [f"features.{2 * stage}.{block}.attn.{part}" for part in table]
        if stage < 3:
            names += [f"features.{2 * stage + 1}.{part}" for part in ("reduction.weight", "norm.weight", "norm.bias")]
    return [*names, "norm.weight", "norm.bias", "head.weight", "head.bias"]


def test_the_weights_of_torchvision_fill_our_model():
    with torch.device("meta"):
        ours = backbones.create("video_swin_tiny")
    assert set(public.peers.get("torchvision").renamed(dict.fromkeys(torchvision_names()))) == set(ours.state_dict())


def test_the_weights_of_transformers_fill_our_model():
    inside = ["temporal_layernorm", "temporal_attention.attention.qkv", "temporal_attention.output.dense"]
    inside += ["temporal_dense", "layernorm_before", "attention.attention.qkv", "attention.output.dense"]
    inside += ["layernorm_after", "intermediate.dense", "output.dense"]
    linear = ["timesformer.embeddings.patch_embeddings.projection", "timesformer.layernorm", "classifier"]
    linear += [f"timesformer.encoder.layer.{i}.{part}" for i in range(12) for part in inside]
    names = [f"model.{part}.{kind}" for part in linear for kind in ("weight", "bias")]
    names += [f"model.timesformer.embeddings.{x}" for x in ("cls_token", "position_embeddings", "time_embeddings")]
    with torch.device("meta"):
        ours = backbones.create("timesformer_base")
    assert set(transformers_video.ours(dict.fromkeys(names, torch.zeros(1)))) == set(ours.state_dict())


INSTALLED = [name for name in public.models() if not name.endswith(("_small", "_base")) or "released" not in name]


@pytest.mark.parametrize("name", INSTALLED)
def test_what_is_installed_equals_ours(name):
    try:
        theirs = case_of(name)
        error, of = errors.measured(theirs, backward=True)
    except public.Absent as error:
        pytest.skip(str(error))
    assert error <= errors.TOLERANCE["backward_error"]["float32"], of


@pytest.mark.parametrize(
    "package, model",
    [
        ("torchvision", "torchvision_swin3d_t"),
        ("torchvision", "torchvision_mvit_v2_s"),
        ("transformers", "transformers_timesformer_base"),
    ],
)
def test_what_is_not_there_is_a_row_with_its_reason_and_remedy(package, model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    theirs = case_of(f"benchmarks.public.{model}")
    monkeypatch.setattr(measure, "_in_child", in_this_process)
    (latency,) = measure.measure(theirs, ["latency"], clip_file(tmp_path, theirs))
    assert f"not supported: {package} does not load" in latency.missing
    assert "force=true" in latency.missing
    assert not latency.retry
    counted = measure.measure(theirs, ["params", "macs"])
    assert {(m.missing, m.retry) for m in counted} == {(latency.missing, False)}, "no failure of a run, either"


def test_a_plan_goes_on_after_what_is_not_there(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    words = ["ablation=peers", "rows=[3,4]", "quick=true", "metrics=[params]", f"out={tmp_path}", "plan=true"]
    assert run.main(words) == 0
    planned = capsys.readouterr().out
    assert "3  Video Swin-T, torchvision · allocator=default: not measured: torchvision does not load" in planned
    assert "4  Video Swin-T, ours · allocator=default: " in planned
    assert "nothing was measured" in planned


def in_this_process(of, timed, clip, effort, limit, round=1):
    from harness.cost import child

    request = child.Request(of, [metric.name for metric in timed], str(clip), LITTLE, "a machine", 60)
    return [measurement for _, measured in child.answer(request) for measurement in measured]


def test_a_pair_that_disagrees_is_not_timed(tmp_path, monkeypatch):
    theirs = case_of(RELEASED[0])
    clean = public.peers.get("released")
    monkeypatch.setattr(public.Public, "forward", lambda self, clip: self.theirs(clip) * 1.001)
    (error,) = metrics.get("forward_error").run(Workload(theirs, "no clip", LITTLE, "a machine"))
    assert errors.why_wrong([error])
    monkeypatch.undo()
    (error,) = metrics.get("forward_error").run(Workload(theirs, "no clip", LITTLE, "a machine"))
    assert errors.why_wrong([error]) is None
    assert clean is public.peers.get("released")


def test_a_case_of_public_code_is_measured_like_any_other(tmp_path):
    theirs = case_of(RELEASED[0], allocator="keep")
    names = ["params", "latency", "training_memory"]
    measured = measure.measure(theirs, names, clip_file(tmp_path, theirs), effort=LITTLE)
    assert not {measurement.name: measurement.missing for measurement in measured if measurement.missing}
    (latency,) = (measurement for measurement in measured if measurement.name == "latency")
    assert 0 < latency.details["forward_error"] < 1e-5


@pytest.mark.parametrize(
    "frames, size, reason",
    [
        (16, 256, "do not divide a map of"),
        (3, 64, "patches of (2, 4, 4) do not divide"),
        (12, 96, "coarse priors of (4, 4, 4) do not divide"),
        (2, 32, "no larger than its coarse priors"),
    ],
)
def test_a_clip_that_the_released_layout_cannot_divide_is_refused(frames, size, reason):
    with (
        pytest.raises(ValueError, match="allowed: frames 2, 4, 6, 8 or a multiple of 16") as error,
        torch.device("meta"),
    ):
        backbones.create(config_of(RELEASED[0], frames, size))
    assert reason in str(error.value)


@pytest.mark.parametrize("frames, size", [(2, 64), (6, 160), (48, 192), (16, 448)])
def test_clips_of_other_sizes_fit_both(frames, size):
    with torch.device("meta"):
        theirs = backbones.create(config_of(RELEASED[0], frames, size))
        assert theirs.theirs.grids == list(backbones.create(theirs.of).grids)


def test_each_row_of_the_ablation_is_set_against_the_code_of_others():
    entries = case.resolve(case.load("peers"), Settings(threads=1))
    by_name = {entry.case.row: entry for entry in entries}
    for entry in entries:
        ours = not entry.case.model.startswith(public.NAME)
        assert (entry.baseline is not None) is ours
        if ours:
            theirs = by_name[entry.baseline].case
            assert theirs.allocator == entry.case.allocator
            assert backbones.read_config(theirs.config).of == backbones.read_config(entry.case.config)


def test_a_family_of_no_module_is_told_with_the_remedy():
    with pytest.raises(KeyError, match="run from the checkout that has it"):
        backbones.config("benchmarkz.public.released")


def test_an_unknown_baseline_of_a_row_is_told():
    raw = {
        "name": "trial",
        "question": "?",
        "model": "dualformer_tiny",
        "rows": [{"row": "one"}, {"row": "two", "baseline": "ome"}],
    }
    with pytest.raises(UsageError, match="its baseline is no row here: 'ome'; did you mean 'one'"):
        case.from_dict(raw, "trial")


def test_a_case_with_the_usual_allocator_keeps_its_name():
    of = case_of(RELEASED[0])
    assert "allocator" not in of.to_dict()
    assert case.case_id(of) != case.case_id(case_of(RELEASED[0], allocator="keep"))
