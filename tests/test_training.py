"""Training a tiny model: what a run leaves, what it refuses, and that its options change speed or memory only."""

import io
import json
import sys
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from training_runs import MODEL, data_set, job, recipe

import backbones
from harness import train as command
from harness.evaluation.predictions import Predictions
from harness.spec.recipe import TokenLabels
from harness.training import feed, journal, loop, objective
from harness.training.job import Job, Result, TrainingError, model_config
from harness.training.loop import train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return data_set(tmp_path_factory.mktemp("clips"))


def weights(result, chosen):
    return load_file(chosen.folder / result.checkpoint)


def lines(chosen):
    return [json.loads(line) for line in (chosen.folder / "log.jsonl").read_text().splitlines()]


def losses(chosen):
    return [line["loss"] for line in lines(chosen)]


def trained(chosen):
    result = train(chosen)
    return weights(result, chosen), losses(chosen), result


def assert_equal(ours, other, **tolerance):
    assert ours.keys() == other.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(
            tensor, other[name], **(tolerance or dict(rtol=0, atol=0)), msg=lambda m, n=name: m + n
        )


@pytest.fixture(scope="module")
def first(data, tmp_path_factory):
    """One run of two epochs of three steps."""
    chosen = job(data, tmp_path_factory.mktemp("first") / "run", controls=True, evaluate_every=1)
    told = io.StringIO()
    return chosen, train(chosen, Console(file=told, width=200)), told.getvalue()


def test_a_run_computes_in_float32(data, tmp_path, monkeypatch):
    """Which PyTorch's convolutions on CUDA do not by default; the test of its epoch too."""
    make, seen = loop.new_model, []

    def watched(*arguments):
        model = make(*arguments)
        model.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
        return model

    monkeypatch.setattr(loop, "new_model", watched)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    train(job(data, tmp_path / "run", recipe(epochs=0.4)))
    assert seen
    assert not any(seen)
    assert torch.backends.cudnn.allow_tf32


def test_a_run_leaves_weights_predictions_log_and_result(first):
    chosen, result, told = first
    assert result.steps == 6
    assert result.epochs == 2
    assert [line["step"] for line in lines(chosen)] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "lr", "top1", "epoch", "clips_per_second", "data_wait"} <= lines(chosen)[0].keys()
    predictions = Predictions.load(chosen.folder / "predictions.npz")
    assert predictions.scores.shape == (6, 2, 3)
    assert result.scores["videos"] == 6
    assert result.scores["top1"]["value"] == result.top1
    assert result.controls.keys() == {"shuffled", "single"}
    assert result.coverage == 1
    assert result.replaced == 0
    assert [entry["step"] for entry in result.history] == [3]
    assert result.seconds.keys() == {"train", "evaluate", "total"}
    assert result.provenance["kernel"] == "sdpa"
    model = backbones.from_checkpoint(chosen.folder / result.checkpoint)
    assert sum(p.numel() for p in model.parameters()) == result.parameters
    assert "step 6/6: loss" in told
    assert Result(**json.loads((chosen.folder / "result.json").read_text())) == result


def test_weights_have_moved(first):
    chosen, result, _ = first
    torch.manual_seed(chosen.seed)
    fresh = backbones.create(backbones.PyramidConfig.from_dict(chosen.config), 3).state_dict()
    for name, tensor in weights(result, chosen).items():
        assert not torch.equal(tensor, fresh[name]), name


def test_a_finished_run_is_only_read(first, monkeypatch):
    chosen, result, _ = first
    monkeypatch.setattr(loop, "_Run", None)
    assert train(chosen) == result
    assert train(replace(chosen, threads=2, workers=3, save_every_seconds=1, preload=True)) == result


def test_controls_may_be_asked_for_later(data, tmp_path):
    chosen = job(data, tmp_path / "run", max_steps=2)
    before = train(chosen)
    written = (chosen.folder / before.checkpoint).stat().st_mtime_ns
    after = train(replace(chosen, controls=True))
    assert after.controls.keys() == {"shuffled", "single"}
    assert after.scores == before.scores
    assert (chosen.folder / after.checkpoint).stat().st_mtime_ns == written


def test_a_start_that_came_to_nothing_is_in_nobodys_way(data, tmp_path):
    with pytest.raises(TrainingError, match="teacher"):
        train(job(data, tmp_path / "run", replace(recipe(), token_labels=TokenLabels())))
    assert train(job(data, tmp_path / "run", max_steps=1)).steps == 1


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        (dict(seed=1), "seed is 0, this one's is 1"),
        (dict(recipe=recipe(lr=0.5)), "recipe.optimisation.lr is 0.002, this one's is 0.5"),
        (dict(order="shuffled"), "order"),
        (dict(dtype="bfloat16"), "dtype"),
        (dict(micro_batch=2), "micro_batch"),
    ],
)
def test_the_folder_of_another_run_is_refused(first, changes, name):
    with pytest.raises(TrainingError, match=rf"holds another run: its {name}.*; give another out="):
        train(replace(first[0], **changes))


def test_other_videos_under_the_same_name_are_another_run(first, tmp_path):
    chosen, _, _ = first
    moved = data_set(tmp_path / chosen.data.rpartition("/")[2], train=8)
    (chosen.folder / "result.json").rename(chosen.folder / "kept.json")
    try:
        with pytest.raises(TrainingError, match=r"holds another run: its data.train"):
            train(replace(chosen, data=str(moved)))
    finally:
        (chosen.folder / "kept.json").rename(chosen.folder / "result.json")


def test_a_job_is_json_and_back(first):
    chosen, _, _ = first
    raw = json.loads(json.dumps(chosen.to_dict()))
    assert Job.from_dict(raw, chosen.folder) == chosen
    assert Job.from_dict(raw, "elsewhere").digest == chosen.digest


def test_what_loads_the_clips_changes_nothing(data, first, tmp_path):
    chosen, result, _ = first
    in_memory = replace(chosen, folder=tmp_path / "memory", preload=True, evaluate_every=None, controls=False)
    outcome, curve, _ = trained(in_memory)
    assert_equal(weights(result, chosen), outcome)
    assert curve == losses(chosen)


def test_the_next_job_of_a_process_decodes_nothing_again(data, tmp_path, monkeypatch):
    kept = {}
    first = train(job(data, tmp_path / "a", preload=True, max_steps=2), decoded=kept)
    assert kept.keys() == {"train", "val"}
    real, calls = feed.preload, []
    monkeypatch.setattr(feed, "preload", lambda *arguments, **options: calls.append(1) or real(*arguments, **options))
    again = train(job(data, tmp_path / "b", preload=True, max_steps=2, controls=True), decoded=kept)
    assert not calls
    assert again.scores == first.scores
    larger = replace(recipe(), testing=replace(recipe().testing, resize=40))
    train(job(data, tmp_path / "c", larger, preload=True, max_steps=1), decoded=kept)
    assert len(calls) == 1


def test_recomputed_activations_give_the_same_weights(data, tmp_path):
    plain, curve, _ = trained(job(data, tmp_path / "a", max_steps=3))
    again, curve_again, _ = trained(job(data, tmp_path / "b", max_steps=3, activation_checkpointing=True))
    torch.testing.assert_close(curve, curve_again)
    assert_equal(plain, again, rtol=1e-5, atol=1e-6)


def without_chance(**optimisation):
    chosen = recipe(**optimisation)
    return replace(chosen, drop_path=0.0, dropout=0.0, augmentation=replace(chosen.augmentation, erasing=0.0))


def test_accumulated_micro_batches_are_one_batch(data, tmp_path):
    """Of a model that neither draws nor normalises within a batch."""
    settings = dict(chosen=without_chance(), changes={"stages": [["L"], ["L"]]}, max_steps=4)
    whole, curve, _ = trained(job(data, tmp_path / "a", **settings))
    for micro in (1, 2):
        parts, curve_of_parts, result = trained(job(data, tmp_path / f"b{micro}", micro_batch=micro, **settings))
        assert result.provenance["micro_batch"] == micro
        torch.testing.assert_close(curve, curve_of_parts, rtol=1e-5, atol=1e-5)
        assert_equal(whole, parts, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_autocast_keeps_weights_in_float32(data, tmp_path, dtype):
    result, curve, _ = trained(job(data, tmp_path / dtype, dtype=dtype, max_steps=2))
    assert {tensor.dtype for name, tensor in result.items() if not name.endswith("num_batches_tracked")} == {
        torch.float32
    }
    _, exact, _ = trained(job(data, tmp_path / "exact", max_steps=2))
    assert curve != exact
    torch.testing.assert_close(curve, exact, rtol=0.05, atol=0.05)


def test_mixing_leaves_no_training_accuracy(data, tmp_path):
    chosen = recipe()
    chosen = job(data, tmp_path / "run", replace(chosen, mixing=replace(chosen.mixing, mixup=0.8)), max_steps=1)
    train(chosen)
    assert lines(chosen)[0]["top1"] is None


def test_a_run_starts_from_given_weights_of_other_classes(data, first, tmp_path):
    chosen, result, _ = first
    model = backbones.create(backbones.PyramidConfig.from_dict(chosen.config), 7)
    path = backbones.save_checkpoint(model, tmp_path / "seven.safetensors")
    told = io.StringIO()
    settings = dict(checkpoint=str(path), max_steps=1, chosen=recipe(lr=1e-9, backbone_lr=1e-9))
    started = train(job(data, tmp_path / "run", **settings), Console(file=told, width=200))
    assert "the classifier starts fresh" in told.getvalue()
    shares = load_file(tmp_path / "run" / started.checkpoint)
    torch.testing.assert_close(shares["stages.0.embed.proj.weight"], model.stages[0].embed.proj.weight.data)


def test_token_labels_train_the_student_alone(data, first, tmp_path):
    chosen, result, _ = first
    labels = TokenLabels(teacher="dualformer_tiny", checkpoint=str(chosen.folder / result.checkpoint), top_k=2)
    settings = dict(chosen=replace(recipe(), token_labels=labels), max_steps=3)
    outcome, curve, _ = trained(job(data, tmp_path / "run", **settings))
    assert outcome.keys() == weights(result, chosen).keys()
    again, curve_again, _ = trained(job(data, tmp_path / "again", save_every_seconds=0, **settings))
    assert curve == curve_again
    assert_equal(outcome, again)


def test_token_labels_need_a_teacher(data, tmp_path):
    chosen = replace(recipe(), token_labels=TokenLabels())
    with pytest.raises(TrainingError, match=r"needs a trained teacher .* recipe.token_labels.checkpoint=FILE"):
        train(job(data, tmp_path / "run", chosen))


# What ends a run


def test_a_loss_that_is_not_finite_ends_the_run(data, tmp_path):
    chosen = job(data, tmp_path / "run", recipe(lr=1e30, backbone_lr=1e30, clip_norm=None, warmup_epochs=0))
    with pytest.raises(
        TrainingError, match=r"the loss of step \d is (nan|inf) \(step \d of 6, learning rate .*no check"
    ):
        train(chosen)


def test_the_last_good_checkpoint_is_named(data, tmp_path, monkeypatch):
    real = objective.cross_entropy
    calls = []

    def fails_at_last(*arguments):
        calls.append(1)
        return real(*arguments) * (float("nan") if len(calls) == 5 else 1)

    monkeypatch.setattr(objective, "cross_entropy", fails_at_last)
    with pytest.raises(TrainingError, match=r"the loss of step 5 is nan .*the last good checkpoint is .*step-0000004"):
        train(job(data, tmp_path / "run", save_every_seconds=0))


def test_a_diverging_loss_ends_the_run(data, tmp_path, monkeypatch):
    real = objective.cross_entropy
    monkeypatch.setattr(objective, "cross_entropy", lambda *arguments: real(*arguments) * 50)
    monkeypatch.setattr(journal, "WATCHED", 3)
    with pytest.raises(TrainingError, match=r"the loss diverges: .* over the last 3 steps, where guessing has 1.1"):
        train(job(data, tmp_path / "run"))


def test_a_run_with_mostly_broken_videos_ends(tmp_path, monkeypatch):
    folder = data_set(tmp_path / "data", train=12, val=3)
    for number in range(8):
        (folder / f"videos/train{number:03d}.mp4").write_bytes(b"broken")
    monkeypatch.setattr(feed, "FIRST_CLIPS", 12)
    with pytest.raises(
        TrainingError, match=r"8 of the first 12 training clips cannot be decoded, such as videos/train000"
    ):
        train(job(folder, tmp_path / "run"))


def test_broken_videos_are_counted(tmp_path):
    folder = data_set(tmp_path / "data", train=8, val=4)
    for name in ("train001", "val002"):
        (folder / f"videos/{name}.mp4").write_bytes(b"broken")
    result = train(job(folder, tmp_path / "run"))
    assert result.replaced >= 2  # one in each of two epochs
    assert result.coverage == 0.75
    assert result.scores["videos"] == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            dict(chosen=recipe(batch_size=13)),
            r"a batch of 13 is more than the 12 training videos .*batch_size=12 or less",
        ),
        (dict(micro_batch=3), r"a batch of 4 .* micro-batches of 3 on 1 process; allowed: micro_batch of 1, 2, 4"),
        (dict(classes=4), r"3 classes, but the job says 4"),
        (dict(strategy="ddp"), r"strategy=ddp needs processes .*torchrun --nproc-per-node N"),
        (dict(device="cuda:99"), r"device cuda:99"),
        (dict(changes={"attention.G2.branches": ["single"]}), r"model dualformer_tiny cannot be built: 1 branches"),
    ],
)
def test_what_cannot_run_says_so(data, tmp_path, values, message):
    with pytest.raises(TrainingError, match=message):
        train(job(data, tmp_path / "run", **values))


def test_tensorboard_that_is_not_there_is_named(data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(TrainingError, match=r"pip install attention-zoo\[tensorboard\]"):
        train(job(data, tmp_path / "run", tensorboard=True))


def test_randaugment_without_its_library_is_told_before_anything_is_done(data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia", None)
    augmentation = replace(recipe().augmentation, rand_augment="n2-m7")
    with pytest.raises(TrainingError, match=r"pip install 'attention-zoo\[augment\]'"):
        train(job(data, tmp_path / "run", chosen=replace(recipe(), augmentation=augmentation)))
    assert not (tmp_path / "run").exists()


def test_the_callers_random_numbers_and_threads_are_left_alone(data, tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    train(job(data, tmp_path / "run", max_steps=1))
    torch.testing.assert_close(torch.rand(2), expected)


# The command line


def test_the_command_line_trains(data, tmp_path, capsys):
    arguments = [f"model.{name}={json.dumps(value)}" for name, value in MODEL.items()]
    arguments += [f"data={data}", "model=dualformer_tiny", f"out={tmp_path / 'run'}", "max_steps=2", "threads=1"]
    arguments += ["recipe.sampling.frames=4", "recipe.augmentation.size=32", "recipe.testing.resize=32"]
    arguments += ["recipe.optimisation.batch_size=4"]
    assert command.main(arguments) == 0
    told = capsys.readouterr()
    assert "top-1" in told.out
    assert "6 of 6 videos decoded" in told.out
    assert command.main([*arguments, "seed=1"]) == 1
    assert "holds another run: its seed is 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("recipe=quik", "did you mean 'quick'"),
        ("model=dualfromer_tiny", "did you mean 'dualformer_tiny'"),
        ("recipe.optimisation.epoch=3", "epochs"),
        ("model.dephts=[1]", "depths"),
        ("dtype=float23", "float32"),
        ("data=nowhere", "nowhere"),
    ],
)
def test_a_slip_is_told_with_the_nearest_name(data, tmp_path, capsys, argument, message):
    key = argument.partition("=")[0]
    words = {"model": "dualformer_tiny", "data": str(data), "out": str(tmp_path / "run")}
    arguments = [f"{name}={value}" for name, value in words.items() if name != key]
    assert command.main([*arguments, argument]) == 2
    assert message in capsys.readouterr().err


def test_the_recipe_sets_clip_and_regularisation_unless_changed():
    chosen = recipe()
    config = model_config("dualformer_tiny", chosen)
    assert (config["clip"], config["drop_path"], config["dropout"]) == ([4, 32, 32], 0.2, 0.3)
    assert model_config("dualformer_tiny", chosen, {"drop_path": 0.0})["drop_path"] == 0


def test_linear_maps_can_start_by_their_inputs(tmp_path):
    data = data_set(tmp_path / "data", train=4, val=3)
    deviations = {}
    for start in ("published", "fan_in"):
        chosen = recipe(epochs=1.0, lr=1e-9, backbone_lr=1e-9).changed({"linear_maps": start})
        made = job(data, tmp_path / start, chosen)
        train(made)
        weights = load_file(next(made.folder.glob("checkpoints/step-*/model.safetensors")))
        deviations[start] = float(weights["stages.0.blocks.0.mlp.fc2.weight"].std())
    assert deviations["published"] < 0.03
    assert 0.1 < deviations["fan_in"] < 0.3  # 32 inputs: 0.18, a little less where the tails are cut


def test_test_crops_that_fit_no_frame_are_refused_before_the_training(data, tmp_path):
    chosen = recipe().changed({"augmentation.size": 36})
    with pytest.raises(
        TrainingError, match=r"test crops of 36 x 36 .* short side of 34; give recipe.testing.resize=36"
    ):
        train(job(data, tmp_path / "run", chosen))
