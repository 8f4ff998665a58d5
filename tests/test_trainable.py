"""Training of a part of a model: what learns, what is kept, what it costs, onto which backbone a checkpoint goes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from training_runs import data_set, job, recipe

import backbones
from backbones.checkpoint import digest
from harness import evaluate
from harness.cost import metrics
from harness.spec import case as cases
from harness.spec.case import Case, Clip, Settings
from harness.spec.reader import UsageError
from harness.spec.sampling import Sampling
from harness.training.job import Stopped, TrainingError, model_config
from harness.training.loop import train
from harness.training.start import initialise

TINY = {"width": 24, "num_heads": 2, "depth": 2, "bottleneck": 4, "projection": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return data_set(tmp_path_factory.mktemp("clips"))


def adapters(data, folder, **values):
    """A job of a small DualPath of which the adapters learn."""
    chosen = recipe().changed({"sampling": Sampling(frames=16, stride=1)})
    config = model_config("dualpath_clip_base_16f", chosen, TINY)
    made = job(data, folder, chosen, trainable="adapters", **values)
    return replace(made, model="dualpath_clip_base_16f", config=config)


def held(chosen, result):
    with safe_open(chosen.folder / result.checkpoint, "pt") as file:
        return set(file.keys()), file.metadata()


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    chosen = adapters(data, tmp_path_factory.mktemp("adapters") / "run")
    return chosen, train(chosen)


def test_only_the_part_moves_and_is_kept(trained):
    chosen, result = trained
    names, metadata = held(chosen, result)
    before = load_file(chosen.folder / "backbone.safetensors")
    model = backbones.from_checkpoint(
        chosen.folder / result.checkpoint, backbone=chosen.folder / "backbone.safetensors"
    )
    assert names == {name for name in before if ".adapters." in name or name.startswith(("classifier.", "position."))}
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved <= names
    assert {"classifier.linear2.weight", "position.class_token"} <= moved
    assert any(".adapters." in name for name in moved)
    assert metadata["part"] == "adapters"
    assert metadata["backbone"] == digest({name: tensor for name, tensor in before.items() if name not in names})
    assert result.trained == sum(before[name].numel() for name in names)
    assert result.parameters == sum(tensor.numel() for tensor in before.values())
    state = torch.load((chosen.folder / result.checkpoint).with_name("state.pt"), weights_only=True)
    assert set(state["optimizer"]) == names
    size = (chosen.folder / result.checkpoint).stat().st_size
    assert 4 * result.trained < size < 4 * result.trained + 2**14  # float32, and a header


def test_a_stopped_run_of_a_part_goes_on_bit_for_bit(data, trained, tmp_path):
    steps, chosen = iter(range(9)), adapters(data, tmp_path / "run")
    with pytest.raises(Stopped):
        train(chosen, stop=lambda: next(steps) == 1)
    result = train(chosen)
    straight = load_file(trained[0].folder / trained[1].checkpoint)
    resumed = load_file(chosen.folder / result.checkpoint)
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in straight.items())


def test_another_backbone_is_refused_with_both_digests(trained):
    chosen, result = trained
    path = chosen.folder / result.checkpoint
    needed = held(chosen, result)[1]["backbone"]
    with pytest.raises(backbones.CheckpointError, match=rf"digest {needed}; give .* as backbone=FILE"):
        backbones.from_checkpoint(path)
    torch.manual_seed(5)
    other = backbones.create(backbones.read_config(chosen.config), 3)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    frozen = digest({name: tensor for name, tensor in before.items() if name not in held(chosen, result)[0]})
    for strict in (True, False):
        with pytest.raises(backbones.CheckpointError, match=rf"digest {needed}, this one's is {frozen}"):
            backbones.load_checkpoint(other, path, strict=strict)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_a_trained_part_is_evaluated_on_the_backbone_of_its_run(data, trained, tmp_path, capsys):
    chosen, result = trained
    arguments = [f"checkpoint={chosen.folder / result.checkpoint}", f"data={data}"]
    assert evaluate.main([*arguments, f"out={tmp_path / 'a'}"]) == 0
    other = backbones.create(backbones.read_config(chosen.config), 3)
    path = backbones.save_checkpoint(other, tmp_path / "other.safetensors")
    assert evaluate.main([*arguments, f"backbone={path}", f"out={tmp_path / 'b'}"]) != 0
    assert "needs the backbone with the digest" in capsys.readouterr().err


def test_adapters_start_fresh_on_the_weights_of_an_image_model(data, tmp_path):
    """CLIP's file has no adapters; what it has must still all be there."""
    chosen = adapters(data, tmp_path / "run")
    image = backbones.create(backbones.read_config(chosen.config), 3)
    image.tunable = {"image": r"^(?!.*\.adapters\.|classifier\.|position\.of_mosaic)"}
    path = backbones.save_checkpoint(backbones.learning(image, "image"), tmp_path / "image.safetensors")
    tensors = load_file(path)
    torch.save(tensors, tmp_path / "image.pth")
    model = backbones.create(backbones.read_config(chosen.config), 3)
    notes = initialise(model, tmp_path / "image.pth")
    assert any("starts fresh" in note for note in notes)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in tensors.items())
    del tensors["column.0.norm1.weight"]
    torch.save(tensors, tmp_path / "image.pth")
    with pytest.raises(backbones.CheckpointError, match=r"column\.0\.norm1\.weight"):
        initialise(model, tmp_path / "image.pth")


def test_frozen_batch_norm_keeps_its_statistics(data, tmp_path):
    chosen = job(data, tmp_path / "run", trainable="classifier", max_steps=2)
    result = train(chosen)
    assert held(chosen, result)[0] == {"classifier.weight", "classifier.bias"}
    model = backbones.create(backbones.read_config(chosen.config), 3)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    dropouts = [m for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    assert norms
    backbones.learning(model, "classifier").train()
    assert not any(norm.training for norm in norms)
    assert all(dropout.training for dropout in dropouts)
    backbones.learning(model, "all").train()
    assert all(norm.training for norm in norms)


def test_an_unknown_part_is_named(data, tmp_path):
    with pytest.raises(TrainingError, match="trainable=adaptors: unknown part 'adaptors'.* 'adapters'"):
        train(replace(adapters(data, tmp_path / "run"), trainable="adaptors"))


# What it costs


def dualpath_case(trainable, **changes):
    config = backbones.config("dualpath_clip_base_16f").changed(changes)
    clip = Clip(frames=16, size=config.clip.h)
    return Case("row", "dualpath_clip_base_16f", config.to_dict(), 174, clip, trainable=trainable)


def test_parameters_that_learn_are_counted():
    measurement = metrics.get("trainable_params").run(dualpath_case("adapters"))[0]
    assert round(measurement.samples[0] / 1e6, 3) == 12.768
    assert round(measurement.details["all"] / 1e6, 2) == 98.81
    assert metrics.get("trainable_params").run(dualpath_case("all"))[0].samples[0] == measurement.details["all"]


def predicted(trainable, **changes):
    quiet = SimpleNamespace(case=dualpath_case(trainable, **changes), surroundings=dict)
    (prediction,) = metrics.get("predicted_training_memory").run(quiet)
    return prediction


def test_frozen_parts_have_no_gradients_and_no_state():
    """Of two blocks of the full-size model, from tensors without data."""
    every, part = (predicted(trainable, depth=2) for trainable in ("all", "adapters"))
    learns = metrics.get("trainable_params").run(dualpath_case("adapters", depth=2))[0].samples[0]
    assert part.details["parts_bytes"]["optstate"] == pytest.approx(8 * learns, rel=1e-3)
    assert part.samples[0] < 0.5 * every.samples[0]


@pytest.mark.slow
def test_adapters_need_a_third_of_the_memory_of_full_tuning():
    """Of the whole model, a batch of one clip; larger batches need less still."""
    assert predicted("adapters").samples[0] < predicted("all").samples[0] / 3


def test_what_frozen_branches_do_not_keep_changes_no_gradient():
    """They are run again for the backward pass; with everything learning they are not."""
    config = backbones.config("dualpath_clip_base_16f").changed(TINY | {"clip": [16, 32, 32], "adapter_dropout": 0.3})
    gradients = {}
    for part in ("all", "adapters"):
        torch.manual_seed(0)
        model = backbones.create(config, 3)
        for adapter in (m for m in model.modules() if type(m).__name__ == "Adapter"):
            torch.nn.init.normal_(adapter.up_proj.weight, std=0.3)
        clip = torch.randn(2, 3, 16, 32, 32)
        backbones.learning(model.double(), part).train()
        torch.manual_seed(1)
        model(clip.double()).square().sum().backward()
        gradients[part] = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(gradients["adapters"]) < len(gradients["all"])
    for name, gradient in gradients["adapters"].items():
        torch.testing.assert_close(gradient, gradients["all"][name], rtol=1e-12, atol=1e-12)


def test_an_axis_of_parts_makes_rows_and_unknown_parts_are_refused():
    raw = {"name": "a", "question": "?", "rows": [{"row": "r", "model": "dualpath_clip_base_16f"}]}
    ablation = cases.from_dict(raw | {"vary": {"trainable": ["all", "adapters"]}}, "a.yaml")
    every, adapters_alone = (entry.case for entry in cases.resolve(ablation, Settings()))
    assert "trainable" not in every.to_dict()
    assert adapters_alone.to_dict()["trainable"] == "adapters"
    ablation = cases.from_dict(raw | {"vary": {"trainable": ["adaptors"]}}, "a.yaml")
    with pytest.raises(UsageError, match="did you mean 'adapters'"):
        cases.resolve(ablation, Settings())
