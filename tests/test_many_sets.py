"""Training on several data sets at once: MultiTrain's model, losses and gradients, and what a run of two sets does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from training_runs import data_set, job, recipe

import backbones
from backbones.configs.multiscale import MultiscaleConfig
from backbones.multiscale import MULTI
from backbones.sets import Spans, sets_of, with_sets
from harness import evaluate, predict, projections
from harness import train as train_command
from harness.clips.several import SetKeys
from harness.datasets import DataSet, Item, motion
from harness.evaluation import projections as matrices
from harness.motion.scenes import REPERTOIRES
from harness.spec.recipe import ManySets, OfSet
from harness.training import many_sets
from harness.training.job import Stopped, model_config
from harness.training.loop import train
from harness.training.many_sets import RELEASED, ManySetsModel, ManySetsObjective, classification, informative
from harness.training.objective import Batch
from harness.training.start import initialise
from tests.test_goldens import DTYPES, FLOAT64, FOLDER, _error

golden = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no goldens in {FOLDER}")
FORWARD = {"f32": 1e-5, "f64": FLOAT64}


@pytest.fixture(scope="module")
def released():
    facts = json.loads((FOLDER / "multitrain.json").read_text())["config"]
    return facts, load_file(FOLDER / "multitrain.data.safetensors"), FOLDER / "multitrain.weights.safetensors"


def golden_model(facts, path, kernel):
    bounds = [0, *(block for block, _ in facts["dim_mul"]), facts["depth"]]
    config = MultiscaleConfig(
        depths=[after - before for before, after in zip(bounds, bounds[1:], strict=False)],
        width=facts["embed_dim"],
        key_stride=facts["kv_adaptive"],
        pool_kernel=facts["kvq_kernel"],
        position="separable",
        class_token=False,
        widening_skip="raw",
        pool_eps=facts["pool_norm_eps"],
        start="multitrain",
        clip=(facts["frames"], facts["crop"], facts["crop"]),
        drop_path=0.0,
    )
    classes = dict(zip(facts["datasets"], facts["classes"], strict=True))
    settings = ManySets(hidden=facts["head_hidden"], expander=facts["expander_hidden"], dropout=0.0)
    student = with_sets(backbones.create(config, 1, kernel=kernel), classes, settings.hidden, settings.dropout)
    report = backbones.load_checkpoint(student, path)
    assert report.complete
    assert report.layout == "MultiTrain"
    whole = ManySetsModel(student, settings)
    beside = {RELEASED.rename(k): t for k, t in load_file(path).items() if k.startswith(("head.cross", "expander"))}
    missing, unexpected = whole.load_state_dict(beside, strict=False)
    assert not unexpected
    assert all(name.startswith("student.") for name in missing)
    return whole, settings


@golden
@pytest.mark.parametrize("kernel", ["reference", "sdpa"])
@pytest.mark.parametrize("precision", DTYPES)
def test_model_losses_and_gradients_equal_the_released_code(released, precision, kernel):
    facts, data, path = released
    model, settings = golden_model(facts, path, kernel)
    model.to(DTYPES[precision])
    seen = {}
    parts = {f"block{i}": block for i, block in enumerate(model.student.blocks().values())}
    for key, part in (parts | {"final_norm": model.student.norm}).items():
        part.register_forward_hook(
            lambda m, i, y, key=key: seen.update({key: getattr(y, "x", y).detach().flatten(1, -2)})
        )
    clips = data["input"].detach().to(DTYPES[precision]).clone().requires_grad_()
    sets = facts["datasets"]
    first = {name: model.spans.ranges[name][0] for name in sets}

    with torch.no_grad():
        scores = model.eval()(clips)
        for name in sets:
            own = scores[:, slice(*model.spans.ranges[name])].softmax(1)
            assert _error(own, data[f"eval.prob.{name}.{precision}"]) <= FORWARD[precision]
        tokens = model.student.tokens(clips)
        expanded = model.expander(model.student.norm(tokens.map).mean((1, 2, 3)))
        assert _error(expanded, data[f"eval.expanded.{precision}"]) <= FORWARD[precision]
    for key, tensor in seen.items():
        assert _error(tensor, data[f"eval.intermediate.{key}.f32"]) <= 1e-5, key

    labels = torch.stack(
        [first[name] + data[f"label.{name}"][i].argmax() for i, name in enumerate(facts["sample_dataset"])]
    )
    targets = torch.cat([data[f"label.{name}"] for name in sets], 1).to(clips.dtype)
    answers = model.train()(clips)
    for name in sets:
        assert _error(answers.scores[name].detach(), data[f"train.logits.{name}.{precision}"]) <= FORWARD[precision]
    for (a, b), tensor in answers.projected.items():
        assert _error(tensor.detach(), data[f"train.logits.{a}_{b}.{precision}"]) <= FORWARD[precision]
    multi = classification(answers, targets, labels, model.spans, settings)
    assert _error(multi.detach()[None], data[f"train.loss_multi_head.{precision}"]) <= FORWARD[precision]
    spread = informative(answers.expanded, ManySets(cov_weight=0.0, std_weight=1.0))
    alike = informative(answers.expanded, ManySets(cov_weight=1.0, std_weight=0.0))
    told = data[f"train.informative_std_term.{precision}"], data[f"train.informative_cov_term.{precision}"]
    both = informative(answers.expanded, settings)
    assert _error(both.detach()[None], data[f"train.loss_informative.{precision}"]) <= FORWARD[precision]
    assert _error(spread.detach()[None], told[0]) <= FORWARD[precision]
    assert _error(alike.detach()[None], told[1]) <= FORWARD[precision]
    loss, _ = ManySetsObjective(model.spans, settings)(model, Batch(clips, targets, labels))
    assert _error(loss.detach()[None], data[f"train.loss_total.{precision}"]) <= FORWARD[precision]

    loss.backward()
    backward = 1e-4 if precision == "f32" else FLOAT64
    assert clips.grad.double().norm().item() == pytest.approx(data["grad.input.l2.f64"].item(), rel=backward)
    for key in (key for key in data if key.startswith("grad.param.")):
        name = key[len("grad.param.") : -len(".f64")]
        beside = name.startswith(("head.cross", "expander"))
        ours = RELEASED.rename(name) if beside else f"student.{MULTI.rename(name)}"
        assert _error(model.get_parameter(ours).grad, data[key]) <= backward, key


@pytest.mark.parametrize(
    ("name", "millions", "giga"), [("multitrain_base_32f", 51.294, 223.8), ("multitrain_small_16f", 34.709, 64.1)]
)
def test_costs_of_the_sheet(name, millions, giga):
    """Multiply-adds of a view by fvcore's rule, with which the sheet counts: 5 an element of a norm."""
    normed = []
    with torch.device("meta"):
        model = backbones.create(name, 400).eval()
        for module in (m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)):
            module.register_forward_hook(lambda m, i, y: normed.append(y.numel()))
        model(torch.empty(1, 3, *model.clip))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 3) == millions
    assert round((model.macs() + 5 * sum(normed)) / 1e9, 1) == giga


def test_heads_expander_and_projections_are_counted():
    """The sheet's 64.298 M: three sets of 400, 305 and 174 classes."""
    with torch.device("meta"):
        sets, settings = {"kinetics": 400, "mit": 305, "ssv2": 174}, ManySets()
        backbone = with_sets(backbones.create("multitrain_base_32f", 1), sets, settings.hidden, settings.dropout)
        model = ManySetsModel(backbone, settings)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 3) == 64.298


def test_initial_biases_are_zero():
    model = backbones.create("multitrain_small_16f", 0, changes={"width": 8, "depths": [1, 1], "clip": [4, 32, 32]})
    biases = {name: p for name, p in model.named_parameters() if name.endswith("bias") and "embed" not in name}
    assert biases
    assert not any(bias.any() for bias in biases.values())


# The losses by their definitions


def test_a_clip_answers_to_its_own_set_and_to_projections_onto_it():
    torch.manual_seed(0)
    spans = Spans.made({"a": 3, "b": 2})
    scores = {"a": torch.randn(4, 3), "b": torch.randn(4, 2)}
    projected = {("a", "b"): torch.randn(4, 2), ("b", "a"): torch.randn(4, 3)}
    labels = torch.tensor([1, 4, 0, 3])
    answers = many_sets.Answers(scores, projected, torch.randn(4, 6))
    targets = torch.nn.functional.one_hot(labels, 5).float()
    settings = ManySets(sets={"b": OfSet(weight=2.0)}, projection_weight=0.5)
    expected = torch.tensor(0.0)
    for i, label in enumerate(labels.tolist()):
        own, other, first, weight = ("a", "b", 0, 1.0) if label < 3 else ("b", "a", 3, 2.0)
        of = lambda x, i=i, place=label - first: -x[i].log_softmax(0)[place]  # noqa: E731
        expected += weight * (of(scores[own]) + 0.5 * of(projected[other, own])) / 4
    assert_close(classification(answers, targets, labels, spans, settings), expected)


def test_features_that_vary_and_differ_cost_nothing():
    z = torch.tensor([[3.0, 3.0], [3.0, -3.0], [-3.0, 3.0], [-3.0, -3.0]])
    assert_close(informative(z, ManySets()), torch.tensor(0.0))
    assert informative(z[:1], ManySets()) == 0
    same = torch.ones(4, 2)
    assert_close(informative(same, ManySets()), torch.tensor(25 * 0.99))


# A run of two data sets, end to end


TINY = {"width": 8, "num_heads": 1, "depths": [1, 1], "key_stride": [1, 4, 4]}


def two_sets(root, folder, draw="balanced", **values):
    """A job of seconds on two folders, one of which has a clip that does not decode."""
    settings = ManySets(draw=draw, hidden=8, expander=8, sets={"b": OfSet(weight=0.5, copies=2, clips=1)})
    chosen = recipe().changed({"many_sets": settings})
    config = model_config("multitrain_small_16f", chosen, TINY)
    sets = {"a": 3, "b": 3}
    made = job(root / "a", folder, chosen, classes=6, sets=sets, **values)
    return replace(made, model="multitrain_small_16f", config=config, data=[str(root / name) for name in sets])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    data_set(root / "a", train=12, val=6), data_set(root / "b", train=6, val=3)
    (root / "b" / "classes.txt").write_text("up\nover\nunder\n")
    return root


@pytest.fixture(scope="module")
def run(folders, tmp_path_factory):
    chosen = two_sets(folders, tmp_path_factory.mktemp("run") / "run")
    return chosen, train(chosen)


def test_each_set_is_tested_by_its_own_classifier(run):
    chosen, result = run
    assert {name: of_set["videos"] for name, of_set in result.sets.items()} == {"a": 6, "b": 3}
    assert [len(of_set["views"]) for of_set in result.sets.values()] == [2, 1]  # b is tested on one clip
    assert result.sets["b"]["classes"] == ["up", "over", "under"]
    right = sum(row["right"] for of_set in result.sets.values() for row in of_set["per_class"])
    assert result.top1 == pytest.approx(100 * right / 9)
    assert result.scores["classes"] == ["a/left", "a/right", "a/down", "b/up", "b/over", "b/under"]
    assert result.steps == 2 * ((12 + 2 * 6) // 4)


@pytest.mark.parametrize("draw", ["balanced", "proportional"])
def test_a_stopped_run_of_two_sets_goes_on_bit_for_bit(folders, run, tmp_path, draw):
    straight = run if draw == "balanced" else (whole := two_sets(folders, tmp_path / "one", draw), train(whole))
    steps, chosen = iter(range(99)), two_sets(folders, tmp_path / "run", draw)
    with pytest.raises(Stopped):
        train(chosen, stop=lambda: next(steps) == 4)
    result = train(chosen)
    for file in ("model.safetensors", "state.pt"):
        here, straightly = ((c.folder / r.checkpoint).with_name(file) for c, r in ((chosen, result), straight))
        if file == "state.pt":
            here, straightly = (torch.load(path, weights_only=True)["heads"] for path in (here, straightly))
            assert {"projections.a_b.weight", "expander.fc1.weight"} <= here.keys()
        else:
            here, straightly = map(load_file, (here, straightly))
        assert here.keys() == straightly.keys()
        assert all(torch.equal(tensor, straightly[name]) for name, tensor in here.items())


def test_a_checkpoint_of_two_sets_evaluates_and_predicts_for_each(folders, run, tmp_path, capsys):
    chosen, result = run
    path = f"checkpoint={chosen.folder / result.checkpoint}"
    assert evaluate.main([path, f"out={tmp_path / 'each'}"]) == 0
    for name, of_set in result.sets.items():
        stored = json.loads((tmp_path / "each" / name / "scores.json").read_text())
        assert stored["top1"] == of_set["top1"]
    assert evaluate.main([path, f"data={folders / 'b'}", f"out={tmp_path / 'b'}"]) == 0
    video = f"clip={folders / 'a' / 'videos' / 'val000.mp4'}"
    capsys.readouterr()
    assert predict.main([path, video]) == 0
    told = capsys.readouterr().out
    assert all(f"3 classes of {name}" in told for name in "ab")
    assert all(name in told for name in ("left", "over"))
    assert predict.main([path, video, "set=b"]) == 0
    assert "left" not in capsys.readouterr().out
    assert predict.main([path, video, "set=c"]) == 2
    assert "unknown set 'c'" in capsys.readouterr().err


def test_a_part_can_learn_on_two_sets(folders, tmp_path):
    chosen = two_sets(folders, tmp_path / "run", trainable="classifier", max_steps=2)
    result = train(chosen)
    held = load_file(chosen.folder / result.checkpoint)
    assert all(name.startswith("classifier.") for name in held)
    weights = chosen.folder / result.checkpoint
    model = backbones.from_checkpoint(weights, backbone=chosen.folder / "backbone.safetensors")
    assert sets_of(model) == {"a": 3, "b": 3}


def test_initial_weights_of_other_data_leave_the_classifiers_fresh(folders, run, tmp_path):
    plain = backbones.create(backbones.read_config(run[0].config), 5)
    path = backbones.save_checkpoint(plain, tmp_path / "plain.safetensors")
    several = with_sets(backbones.create(backbones.read_config(run[0].config), 1), {"a": 3, "b": 3}, 8, 0.0)
    assert any("classifier starts fresh" in note for note in initialise(several, path))
    assert_close(several.state_dict()["norm.weight"], plain.norm.weight)
    again = run[0].folder / run[1].checkpoint
    assert any("classifier starts fresh" in note for note in initialise(plain, again))


# Which classes belong together


def test_pairs_of_classes_are_read_off_the_projections():
    weight = torch.tensor([[0.1, 5.0, 0.3], [4.0, -9.0, 0.2]])  # two targets, three sources
    pairs = [(r.source, r.target) for r in matrices.related(weight, 2)]
    assert pairs == [(1, 0), (0, 1)]
    assert [(r.source, r.target) for r in matrices.related(weight, 2, "absolute")] == [(1, 1), (1, 0)]
    unique = matrices.related(weight, 3, "absolute", unique_sources=True)
    assert [(r.source, r.target) for r in unique] == [(1, 1), (0, 1), (2, 0)]


def test_a_checkpoint_says_which_classes_belong_together(run, folders, capsys):
    path = run[0].folder / run[1].checkpoint
    assert projections.main([f"checkpoint={path}", "top=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if " to " in line] == ["a to b", "b to a"]
    assert len(lines) == 6
    assert any(name in lines[1] for name in ("up", "over", "under"))
    assert projections.main([f"checkpoint={folders / 'a' / 'train.csv'}"]) == 2


@golden
def test_projections_of_the_released_code_are_read():
    facts = json.loads((FOLDER / "multitrain.json").read_text())["config"]
    learnt = matrices.projections(FOLDER / "multitrain.weights.safetensors")
    sets = dict(zip(facts["datasets"], facts["classes"], strict=True))
    assert set(learnt) == {(a, b) for a in sets for b in sets if a != b}
    assert all(weight.shape == (sets[b], sets[a]) for (a, b), weight in learnt.items())


# The order of clips


def drawn(draw, sizes=(7, 4), copies=(1, 1), batch=4, epochs=3):
    count = sum(size * times for size, times in zip(sizes, copies, strict=True))
    keys = SetKeys(
        count=count, batch=batch, micro=batch, seed=1, first=0, last=epochs * (count // batch), sizes=sizes,
        copies=copies, balanced=draw == "balanced",
    )  # fmt: skip
    return keys, list(keys)


def test_in_proportion_each_clip_comes_once_an_epoch_and_copies_as_often():
    keys, _ = drawn("proportional", copies=(1, 2))
    for epoch in (0, 1):
        taken = keys.order(epoch)
        assert sorted(index for _, index in taken) == [*range(7), *sorted([7, 8, 9, 10] * 2)]
        assert len(set(taken)) == len(taken)  # a copy is augmented anew
    assert not set(keys.order(0)) & set(keys.order(1))


def test_balanced_batches_hold_as_much_of_each_set_and_go_through_it_in_turns():
    keys, batches = drawn("balanced", epochs=8)
    assert all(sum(index < 7 for _, index in batch) == 2 for batch in batches)
    taken = [key for batch in batches for key in batch]
    assert len(set(taken)) == len(taken)
    for turn in range(3):  # of the smaller set, each turn is the whole of it
        assert sorted(index for t, index in taken if index >= 7 and t == turn) == [7, 8, 9, 10]
    assert not all(index < 7 for _, index in (batch[0] for batch in batches))  # mixed: Mixup pairs first and last
    again = SetKeys(**{**vars(keys), "first": 5})
    assert list(again) == batches[5:]


# What a command may say


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["data=[motion,motion]"], "two sets are called 'motion'; give folders of other names"),
        (["data=[motion_short,motion_long]", "root=/a"], "root=[/a] for 2 data sets; give one folder for each"),
        (["data=motion", "root=[/a,/b]"], "names several folders, data=motion one data set"),
        (["data=[motion_short,motion_long]", "data.cache=x"], "data.cache: of several data sets an option begins with"),
        (["data=[motion_short,nowhere]"], "unknown data set 'nowhere'"),
        (["data=motion", "recipe.many_sets.draw=balanced"], "trains on several data sets, data=motion is one"),
        (
            ["data=[motion_short,motion_long]", "recipe.many_sets.sets.motion_lang.weight=2"],
            "'motion_lang' is no data set of this run; did you mean 'motion_long'?",
        ),
        (["data=[motion_short,motion_long]", "recipe.many_sets.draw=balance"], "did you mean 'balanced'?"),
    ],
)
def test_slips_are_told_at_once(words, told, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(motion.store, "ready", lambda version, split, cache: {"split": split})
    monkeypatch.setattr(motion, "listed", lambda root, manifest: listed_only(manifest["split"]))
    assert train_command.main(["model=multitrain_small_16f", "recipe=quick", f"out={tmp_path / 'x'}", *words]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def listed_only(split):
    names = REPERTOIRES["twelve"].classes
    items = tuple(Item(f"{name}.mp4", label) for label, name in enumerate(names))
    return DataSet("motion", split, Path(), items, names, sided=True, mirror=REPERTOIRES["twelve"].mirror)


def test_the_halves_of_the_built_in_data_are_its_short_and_its_long_range_classes():
    whole = listed_only("train")
    short, far = motion.half(whole, "short"), motion.half(whole, "long")
    assert set(short.classes) | set(far.classes) == set(whole.classes)
    assert far.classes == whole.classes[8:]
    assert [far.classes[item.label] for item in far.items] == [Path(item.path).stem for item in far.items]
    assert far.mirror == {0: 0, 1: 1, 2: 3, 3: 2}


def test_what_is_said_of_one_set_holds_for_it_alone():
    whole = recipe().changed({"many_sets.sets.b.flip": 0.0, "many_sets.sets.b.sampling": "uniform"})
    assert (whole.of_set("b").augmentation.flip, whole.of_set("b").sampling.kind) == (0.0, "uniform")
    assert (whole.of_set("a").augmentation, whole.of_set("a").sampling) == (whole.augmentation, whole.sampling)
    assert whole.of_set("b").sampling.frames == whole.sampling.frames
