"""Training on several data sets at once: MultiTrain's model, losses and gradients, and what a run of two sets does."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

import backbones
from backbones.multiscale import MULTI, MultiscaleConfig
from harness.spec.recipe import ManySets
from harness.training import many_sets
from harness.training.many_sets import RELEASED, ManySetsModel, ManySetsObjective, classification, informative
from harness.training.objective import Batch
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
    model = backbones.create(config, 0, kernel=kernel)
    report = backbones.load_checkpoint(model, path)
    assert report.complete
    assert report.layout == "MultiTrain"
    settings = ManySets(hidden=facts["head_hidden"], expander=facts["expander_hidden"], dropout=0.0)
    whole = ManySetsModel(model, dict(zip(facts["datasets"], facts["classes"], strict=True)), settings)
    beside = {RELEASED.rename(key): t for key, t in load_file(path).items() if key.startswith(("head", "expander"))}
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
    first = {name: model.spans.of[name][0] for name in sets}

    with torch.no_grad():
        scores = model.eval()(clips)
        for name in sets:
            own = scores[:, slice(*model.spans.of[name])].softmax(1)
            assert _error(own, data[f"eval.prob.{name}.{precision}"]) <= FORWARD[precision]
        expanded = model.expander(model.student(clips))
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
        ours = RELEASED.rename(name) if name.startswith(("head", "expander")) else f"student.{MULTI.rename(name)}"
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
        backbone = backbones.create("multitrain_base_32f", 0)
        model = ManySetsModel(backbone, {"kinetics": 400, "mit": 305, "ssv2": 174}, ManySets())
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 3) == 64.298


def test_initial_biases_are_zero():
    model = backbones.create("multitrain_small_16f", 0, changes={"width": 8, "depths": [1, 1], "clip": [4, 32, 32]})
    biases = {name: p for name, p in model.named_parameters() if name.endswith("bias") and "embed" not in name}
    assert biases
    assert not any(bias.any() for bias in biases.values())


# The losses by their definitions


def test_a_clip_answers_to_its_own_set_and_to_projections_onto_it():
    torch.manual_seed(0)
    spans = many_sets.Spans.made({"a": 3, "b": 2})
    scores = {"a": torch.randn(4, 3), "b": torch.randn(4, 2)}
    projected = {("a", "b"): torch.randn(4, 2), ("b", "a"): torch.randn(4, 3)}
    labels = torch.tensor([1, 4, 0, 3])
    answers = many_sets.Answers(scores, projected, torch.randn(4, 6))
    targets = torch.nn.functional.one_hot(labels, 5).float()
    settings = ManySets(weights={"b": 2.0}, projection_weight=0.5)
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
