"""Groups of parameters and learning rates, against the published rules and worked examples."""

import math
import re
from collections import OrderedDict

import pytest
import torch
from torch import nn

import attention_zoo
import backbones
from backbones.pyramid import DUALFORMER, VIDEO_SWIN
from harness.spec import recipe as recipes
from harness.spec.recipe import Optimisation, TokenLabels
from harness.training import optimizer as optim
from harness.training import state
from harness.training.token_labels import TokenLabelled

GROUPS = ("paper", "code", "plain")
SMALL = dict(widths=(8, 16, 24, 32), num_heads=(1, 2, 3, 4), depths=(2, 2, 2, 2))
RATES = dict(lr=1e-3, backbone_lr=1e-4, weight_decay=0.05)


def small(name, **changes):
    return backbones.create(name, 5, changes={**SMALL, **changes})


def dualformer():
    return small("dualformer_tiny")


def settings_of(model, groups, **changes):
    """name -> (learning rate, decay)."""
    made = optim.parameter_groups(model, Optimisation(groups=groups, **{**RATES, **changes}))
    return {name: (group["lr"], group["weight_decay"]) for group in made for name in group["names"]}


def test_muon_steps_the_matrices_of_the_backbone_and_adamw_the_rest():
    """One optimizer to all who use it: its rates are set together, and its state is saved and gone on with by name."""
    settings = Optimisation(groups="plain", muon=4.0, backbone_lr=1e-3, lr=2e-3)

    def learner():
        torch.manual_seed(0)
        model = nn.Sequential(OrderedDict(body=nn.Linear(6, 6), norm=nn.LayerNorm(6), classifier=nn.Linear(6, 3)))
        return model, optim.optimizer(model, settings)

    def step(model, optimizer):
        model(torch.arange(24.0).reshape(4, 6)).square().mean().backward()
        optim.set_lr(optimizer, 0.5)
        optimizer.step()
        optimizer.zero_grad()

    model, optimizer = learner()
    matrices, *_ = optimizer.param_groups
    assert [id(p) for p in matrices["params"]] == [id(model.body.weight)]
    assert matrices["initial_lr"] == 4e-3
    before = model.body.weight.detach().clone()
    step(model, optimizer)
    moved = (model.body.weight.detach() - before) / (0.5 * 4e-3)
    # Orthogonal, as Newton and Schulz come near to it, times 0.2 sqrt(6): the size of a step of AdamW.
    singular = torch.linalg.svdvals(moved + settings.weight_decay * before) / (0.2 * 6**0.5)
    assert singular.max() < 1.3
    saved = state.optimizer_state(model, optimizer)
    assert saved.keys() == dict(model.named_parameters()).keys()
    again, other = learner()
    again.load_state_dict(model.state_dict())
    state.load_optimizer_state(again, other, saved)
    for pair in ((model, optimizer), (again, other)):
        step(*pair)
    for parameter, two in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(parameter, two, rtol=0, atol=0)
    with pytest.raises(ValueError, match="goes with the optimizer 'adamw'"):
        Optimisation(muon=4.0, optimizer="sgd")


@pytest.mark.parametrize("scheme", attention_zoo.schemes.names())
def test_every_parameter_is_in_exactly_one_group(scheme):
    model = small(f"pyramid_tiny_{scheme}", clip=[8, 56, 56])
    own = dict(model.named_parameters())
    for groups in GROUPS:
        made = optim.parameter_groups(model, Optimisation(groups=groups, **RATES))
        ids = [id(p) for group in made for p in group["params"]]
        assert sorted(ids) == sorted(id(p) for p in own.values())
        for group in made:
            assert [id(own[name]) for name in group["names"]] == [id(p) for p in group["params"]]
        assert len({(group["lr"], group["weight_decay"]) for group in made}) == len(made)


def test_the_papers_groups_decay_everything():
    for name, (lr, decay) in settings_of(dualformer(), "paper").items():
        assert (lr, decay) == (1e-3 if name.startswith("classifier.") else 1e-4, 0.05), name


def test_plain_groups_spare_one_axis():
    model = dualformer()
    groups = settings_of(model, "plain", backbone_lr=1e-3)
    assert {lr for lr, _ in groups.values()} == {1e-3}
    for name, (_, decay) in groups.items():
        assert decay == (0.05 if model.get_parameter(name).ndim > 1 else 0.0), name


# The released rule in its own words: the longest part that a name contains decides alone.
RULES = {
    "dualformer": {"pos_block": (1e-3, 0.0), "norm": (1e-3, 0.0), "backbone": (1e-4, 0.05)},
    "video_swin": {
        "absolute_pos_embed": (1e-3, 0.0),
        "relative_position_bias_table": (1e-3, 0.0),
        "norm": (1e-3, 0.0),
        "backbone": (1e-4, 0.05),
    },
}


def expected(family, released_name):
    for rule in sorted(RULES[family], key=len, reverse=True):
        if rule in released_name:
            return RULES[family][rule]
    return (1e-3, 0.05)


def published_names(depths, family):
    """The names of the published checkpoints' parameters, as the specification of their layout gives them."""
    wb = ("weight", "bias")
    names = [f"cls_head.fc_cls.{x}" for x in wb] + [f"backbone.norm.{x}" for x in wb]
    for s, depth in enumerate(depths):
        if family == "dualformer":
            names += [f"backbone.patch_embeds.{s}.{part}.{x}" for part in ("proj", "norm") for x in wb]
            names += [f"backbone.pos_block.{s}.proj.0.{x}" for x in wb]
        elif s < len(depths) - 1:
            names += [f"backbone.layers.{s}.downsample.norm.{x}" for x in wb]
            names += [f"backbone.layers.{s}.downsample.reduction.weight"]
        for b in range(depth):
            block = f"backbone.blocks.{s}.{b}" if family == "dualformer" else f"backbone.layers.{s}.blocks.{b}"
            parts = ["norm1", "norm2", "mlp.fc1", "mlp.fc2", "attn.proj"]
            if family == "video_swin":
                parts += ["attn.qkv"]
                names += [f"{block}.attn.relative_position_bias_table"]
            elif b % 2 == 0:
                parts += ["attn.qkv"]
            else:
                parts += ["attn.q", "attn.kv"]
                parts += ["attn.sr", "attn.norm"] if s < 3 else []
                parts += ["attn.lr.0", "attn.lr.1", "attn.lr.3"] if s < 2 else []
            names += [f"{block}.{part}.{x}" for part in parts for x in wb]
    if family == "video_swin":
        names += [f"backbone.patch_embed.{part}.{x}" for part in ("proj", "norm") for x in wb]
    return names


@pytest.mark.parametrize(("family", "layout"), [("dualformer", DUALFORMER), ("video_swin", VIDEO_SWIN)])
def test_the_codes_groups_are_the_released_rules(family, layout):
    model = small(f"{family}_tiny")
    groups = settings_of(model, "code")
    published = published_names(SMALL["depths"], family)
    ours = {layout.rename(re.sub(r"^backbone\.", "", name)): expected(family, name) for name in published}
    assert groups == ours


def test_the_codes_groups_in_words():
    groups = settings_of(dualformer(), "code")
    assert groups["stages.1.position.weight"] == (1e-3, 0.0)  # full rate, no decay
    assert groups["stages.0.blocks.0.norm1.weight"] == (1e-4, 0.05)  # decayed, against the rule's intention
    assert groups["norm.bias"] == (1e-4, 0.05)
    assert groups["classifier.weight"] == (1e-3, 0.05)
    assert optim.released_rule("backbone.norm.weight") == "backbone"
    assert settings_of(small("video_swin_tiny"), "code")["stages.0.blocks.1.attention.bias.table"] == (1e-3, 0.0)


@pytest.mark.parametrize("groups", GROUPS)
def test_wrapping_changes_no_group(groups):
    model = dualformer()
    bare = settings_of(model, groups)
    assert settings_of(nn.ModuleDict({"module": model}), groups) == {f"module.{k}": v for k, v in bare.items()}
    assert settings_of(nn.ModuleDict({"_orig_mod": model}), groups) == {f"_orig_mod.{k}": v for k, v in bare.items()}
    student = settings_of(TokenLabelled(model, TokenLabels()), groups)
    assert {k: v for k, v in student.items() if k.startswith("student.")} == {
        f"student.{k}": v for k, v in bare.items()
    }
    for name in ("classifier.weight", "classifier.bias"):  # the head over positions is a classifier too
        kind = name.rpartition(".")[2]
        assert student[f"position_head.3.{kind}"] == bare[name]


def test_frozen_parameters_are_left_out():
    model = dualformer()
    model.stages.requires_grad_(False)
    assert not any(name.startswith("stages.") for name in settings_of(model, "code"))
    with pytest.raises(ValueError, match="nothing to train"):
        optim.parameter_groups(model.requires_grad_(False), Optimisation())


def test_adamw_steps_and_keeps_its_settings():
    model = small("pyramid_tiny_local_window", clip=[8, 56, 56])
    made = optim.optimizer(model, Optimisation(groups="code", betas=(0.8, 0.9), eps=1e-6, **RATES))
    assert isinstance(made, torch.optim.AdamW)
    assert {(g["betas"], g["eps"]) for g in made.param_groups} == {((0.8, 0.9), 1e-6)}
    optim.set_lr(made, 0.5)
    assert {g["lr"] for g in made.param_groups} == {5e-4, 5e-5}
    before = model.classifier.weight.detach().clone()
    model(torch.randn(1, 3, 8, 56, 56)).square().sum().backward()
    made.step()
    assert not torch.equal(before, model.classifier.weight)
    again = optim.optimizer(model, Optimisation(groups="code", **RATES))
    again.load_state_dict(made.state_dict())
    optim.set_lr(again, 1.0)
    assert {g["lr"] for g in again.param_groups} == {1e-3, 1e-4}


def test_sgd_is_timesformers():
    made = optim.optimizer(nn.Linear(2, 3), recipes.load("timesformer_k400").optimisation)
    assert isinstance(made, torch.optim.SGD)
    (group,) = made.param_groups
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (5e-3, 0.9, True, 1e-4)


def test_released_schedule_worked_by_hand():
    """DualFormer on Kinetics, 10 steps per epoch: warm-up over 25 steps from 0.1, cosine at whole epochs of 30."""
    o = recipes.load("dualformer_small_k400", "code").optimisation
    cosine = [(1 + math.cos(math.pi * e / 30)) / 2 for e in range(30)]
    factor = [optim.lr_factor(step, 10, o) for step in range(300)]
    assert factor[0] == pytest.approx(0.1)
    assert factor[9] == pytest.approx(0.1 + 0.9 * 9 / 25)
    assert factor[12] == pytest.approx(0.532 * cosine[1])
    assert factor[12] == pytest.approx(0.5305429, abs=1e-7)
    assert factor[24] == pytest.approx(0.964 * cosine[2])
    assert factor[25] == pytest.approx(cosine[2])
    assert factor[29] == factor[25]
    assert factor[30] == pytest.approx(0.9755283, abs=1e-7)
    assert factor[150] == factor[159] == pytest.approx(0.5)
    assert factor[299] == pytest.approx(cosine[29])
    assert factor[299] == pytest.approx(0.0027391, abs=1e-7)


def test_fractional_warm_up_in_a_step():
    """Warm-up of 0.25 epochs of 10 steps ends between two steps."""
    o = Optimisation(warmup_epochs=0.25, warmup_start=0.2, schedule="step", milestones=(5,), epochs=10)
    assert [optim.lr_factor(s, 10, o) for s in range(4)] == pytest.approx([0.2, 0.52, 0.84, 1.0])


def test_cosine_per_step():
    o = Optimisation(epochs=4, warmup_epochs=0, schedule="cosine", end_lr=0.1)
    factor = [optim.lr_factor(s, 5, o) for s in range(21)]
    assert factor[0] == 1
    assert factor[10] == pytest.approx(0.55)
    assert factor[5] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert factor[20] == pytest.approx(0.1)
    assert optim.lr_factor(100, 5, o) == pytest.approx(0.1)  # beyond the end it stays there
    assert factor == sorted(factor, reverse=True)


def test_linear_decay_of_the_in21k_pre_training():
    o = recipes.load("dualformer_base_in21k").optimisation
    assert optim.lr_factor(50 * 7, 7, o) == pytest.approx(0.5)
    assert optim.lr_factor(0, 7, o) == pytest.approx(0.1)
    assert optim.lr_factor(700, 7, o) == 0


def test_steps_of_timesformer():
    o = recipes.load("timesformer_k400").optimisation
    factors = [optim.lr_factor(s, 3, o) for s in (0, 32, 33, 41, 42, 44)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_has_a_rate_at_every_step(name):
    o = recipes.load(name).optimisation
    factors = [optim.lr_factor(s, 3, o) for s in range(int(o.epochs * 3))]
    assert all(0 < f <= 1 for f in factors[1:])
    assert (factors[0] == 0) == (o.warmup_epochs > 0 and o.warmup_start == 0)
    assert max(factors) > 0.9


def test_impossible_steps_are_refused():
    with pytest.raises(ValueError, match="steps count from 0"):
        optim.lr_factor(-1, 10, Optimisation())
    with pytest.raises(ValueError, match="one or more"):
        optim.lr_factor(0, 0, Optimisation())
