"""What the harness does with a model, for every registered family: nothing here knows a family by name."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_distributed import RUNNING, together
from torch.utils.flop_counter import FlopCounterMode
from training_runs import CLASSES, data_set, recipe
from training_runs import job as job_of

import backbones
from harness import evaluate, gradcam, predict, run
from harness.spec.recipe import TokenLabels
from harness.spec.sampling import Sampling
from harness.training import start
from harness.training.job import Job, Stopped
from harness.training.loop import train
from records.record import read_record, slug

FAMILIES = [name for name in backbones.families.names() if "." not in name]  # public code in a checkout has a dot
CLIP = (4, 32, 32)  # frames, height, width


KINDS = [  # of models that the first ones of their families are not
    "timesformer_joint_base", "timesformer_space_only_base", "vivit_base_16x2", "vivit_base_16x2_model3",
    "vivit_base_16x2_model4", "xvit_base_16f", "vtn_base_250f", "deit_tiny", "mvit_v2_small_16f", "vidtr_medium",
    "vidtr_compact_small", "mvit_base24_32f", "deit_tiny_distilled",
]  # fmt: skip
PEERS = ["timesformer_base", "mvit_base_16f", "vivit_base_16x2_model2", "vidtr_small", *KINDS]  # of other papers


def tiny(family):
    """The name and the config of the family's first named model, or of a named model, made small."""
    name = family if family in KINDS else next(iter(backbones.families.get(family).models()))
    config = backbones.config(name).shrunk(0.05, 1, CLIP)
    return name, config.changed({"dropout": 0.2, "drop_path": 0.1})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return data_set(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


def recipe_of(family, **changes):
    """Clips as long as the model takes them."""
    frames = tiny(family)[1].clip.t
    return recipe().changed({"sampling": Sampling(frames=frames, stride=max(1, 2 * CLIP[0] // frames)), **changes})


def job(family, data, folder, **values):
    name, config = tiny(family)
    return replace(job_of(data, folder, recipe_of(family)), model=name, config=config.to_dict(), **values)


def weights(chosen):
    result = json.loads((chosen.folder / "result.json").read_text())
    return load_file(chosen.folder / result["checkpoint"])


@pytest.fixture(scope="module")
def trained(family, data, tmp_path_factory):
    chosen = job(family, data, tmp_path_factory.mktemp(family) / "run")
    train(chosen)
    return chosen


def checkpoint(chosen):
    return checkpoint_of(chosen.folder)


def checkpoint_of(folder):
    return str(max((folder / "checkpoints").glob("*/model.safetensors")))


def test_a_stopped_run_goes_on_bit_for_bit(family, data, trained, tmp_path):
    chosen, steps = job(family, data, tmp_path / "run"), iter(range(9))
    with pytest.raises(Stopped, match="stopped after step 2"):
        train(chosen, stop=lambda: next(steps) == 1)
    train(chosen)
    straight, resumed = weights(trained), weights(chosen)
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in straight.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_model_trains_goes_on_and_predicts(name, data, tmp_path, capsys):
    straight, stopped, steps = job(name, data, tmp_path / "one"), job(name, data, tmp_path / "two"), iter(range(9))
    assert train(straight).steps == 6
    with pytest.raises(Stopped, match="stopped after step 2"):
        train(stopped, stop=lambda: next(steps) == 1)
    train(stopped)
    resumed = weights(stopped)
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in weights(straight).items())
    film = next(Path(data).rglob("val*.mp4"))
    assert predict.main([f"checkpoint={checkpoint(stopped)}", f"clip={film}"]) == 0
    assert CLASSES[0] in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", PEERS)
def test_every_model_of_the_papers_trains_on_the_built_in_data(name, tmp_path, tmp_path_factory, capsys, monkeypatch):
    """Two epochs with accuracy=quick, from the command line; what was stopped half-way ends in the same bits."""
    monkeypatch.setenv("ATTENTION_ZOO_DATA", str(tmp_path_factory.getbasetemp() / "built_in"))
    rows = [{"row": name, "model": name}]
    (tmp_path / "one.yaml").write_text(json.dumps({"name": "one", "question": "?", "rows": rows}))
    words = [f"ablation={tmp_path / 'one.yaml'}", "accuracy=quick", "metrics=[params]", "seeds=[0]", "epochs=2"]
    assert run.main([*words, "jobs=1", f"out={tmp_path}"]) == 0
    (record,) = (read_record(path) for path in (tmp_path / "one").glob(f"{slug(name)}-*.json"))
    assert record.get("top1_quick").details["epochs"] == 2
    (straight,) = (path.parent for path in tmp_path.glob("training/*/result.json"))
    stored = json.loads((straight / "job.json").read_text())["job"]
    again, steps = replace(Job.from_dict(stored, tmp_path / "stopped"), controls=False), iter(range(999))
    with pytest.raises(Stopped, match="stopped after step 100"):
        train(again, stop=lambda: next(steps) == 99)
    assert train(again).steps == 200
    resumed = weights(again)
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in load_file(checkpoint_of(straight)).items())
    film = next((tmp_path_factory.getbasetemp() / "built_in").rglob("test/*/*.mp4"))
    assert predict.main([f"checkpoint={checkpoint(again)}", f"clip={film}", "top=8"]) == 0
    assert "move_left" in capsys.readouterr().out


def test_recomputed_activations_are_the_same_training(family, data, trained, tmp_path):
    chosen = job(family, data, tmp_path / "run", activation_checkpointing=True)
    train(chosen)
    for name, tensor in weights(trained).items():
        torch.testing.assert_close(weights(chosen)[name], tensor, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: n + m)


def test_every_parameter_learns(family, data, trained):
    chosen = job(family, data, trained.folder)
    torch.manual_seed(chosen.seed)
    fresh = backbones.create(backbones.read_config(chosen.config), chosen.classes)
    learnt = weights(trained)
    still = [name for name, parameter in fresh.named_parameters() if torch.equal(parameter, learnt[name])]
    assert not still


def test_a_checkpoint_is_evaluated_predicted_and_looked_into(data, trained, tmp_path, capsys):
    film = next(Path(data).rglob("val*.mp4"))
    assert evaluate.main([f"checkpoint={checkpoint(trained)}", f"data={data}", f"out={tmp_path / 'scores'}"]) == 0
    assert (tmp_path / "scores" / "scores.json").is_file()
    assert predict.main([f"checkpoint={checkpoint(trained)}", f"clip={film}"]) == 0
    blocks = list(backbones.from_checkpoint(checkpoint(trained)).blocks())
    for block in (blocks[0], blocks[-1]):
        picture = tmp_path / f"{block}.png"
        assert (
            gradcam.main([f"checkpoint={checkpoint(trained)}", f"clip={film}", f"block={block}", f"out={picture}"]) == 0
        )
        assert picture.is_file()
        assert block in capsys.readouterr().out


def test_a_teacher_of_the_family_labels_the_tokens_of_a_student(family, data, trained, tmp_path):
    labels = TokenLabels(teacher=trained.model, checkpoint=checkpoint(trained))
    chosen = job(family, data, tmp_path / "run")
    if family.startswith("dualpath"):  # its classifier reads two paths at once
        with pytest.raises(ValueError, match="labels no positions"):
            train(replace(chosen, recipe=recipe_of(family, token_labels=labels)))
        return
    chosen = replace(chosen, recipe=recipe_of(family, token_labels=labels))
    result, steps = None, iter(range(9))
    with pytest.raises(Stopped):
        train(chosen, stop=lambda: next(steps) == 1)
    result = train(chosen)
    assert result.steps == 6
    model = backbones.from_checkpoint(checkpoint(chosen))  # the student alone
    assert model.num_classes == len(CLASSES)


def test_weights_that_are_spread_over_two_processes_learn_the_same(data, tmp_path):
    """`fully_shard` block by block, for all families in one start."""
    names = FAMILIES
    shared = [job(name, data, tmp_path / name, strategy="fsdp", micro_batch=2, max_steps=2) for name in names]
    together(shared, tmp_path / "torchrun")
    for name, chosen in zip(names, shared, strict=True):
        alone = job(name, data, tmp_path / f"{name}-alone", micro_batch=2, max_steps=2)
        train(alone)
        for key, tensor in weights(alone).items():
            if not key.endswith(RUNNING):
                torch.testing.assert_close(
                    weights(chosen)[key], tensor, rtol=1e-3, atol=1e-4, msg=lambda m, n=key: n + m
                )


def test_mlps_of_low_rank(family):
    """Each map of rank r is a product of two, as the count says; files of before, without the key, read as whole."""
    _, whole = tiny(family)
    whole = whole.changed({"width" if hasattr(whole, "width") else "widths.0": 24})
    low = whole.changed({"mlp_rank": 0.25})
    assert "mlp_rank" not in whole.to_dict()
    assert backbones.read_config(low.to_dict()) == low
    with torch.device("meta"):
        models = [backbones.create(config, 5, kernel="reference").eval() for config in (whole, low)]
        with FlopCounterMode(display=False) as counter:
            models[1](torch.empty(1, low.in_channels, *low.clip))
    assert counter.get_total_flops() == 2 * models[1].macs() < 2 * models[0].macs()
    assert {"mlp", "attention", "norm"} <= set(backbones.kinds(models[1]).values())
    with pytest.raises(ValueError, match="mlp_rank 0 is not a number above 0"):
        whole.changed({"mlp_rank": 0})


def test_weights_of_other_classes_are_taken_over(family, trained):
    model = backbones.create(tiny(family)[1], 7)
    notes = start.initialise(model, checkpoint(trained))
    assert "the classifier starts fresh" in notes[1]
