"""Recipes: every file loads under both sources, says what the sources say, and slips are answered."""

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import backbones
from harness.spec import recipe as recipes
from harness.spec.reader import UsageError
from harness.spec.recipe import Optimisation, Recipe, TokenLabels, load
from harness.spec.sampling import Sampling

ALL = recipes.names()
CLIP = "dualpath_clip_base_16f"
OWN = ("quick", "small", "proxy")


@pytest.mark.parametrize("source", recipes.SOURCES)
@pytest.mark.parametrize("name", ALL)
def test_every_recipe_loads_and_goes_through_json(name, source):
    recipe = load(name, source)
    assert recipe.name == name
    assert recipe.source
    assert recipe.recipe_source == ("own" if name in OWN else source)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    for path in (*recipe.assumed, *recipe.differs):
        section, _, inner = path.partition(".")
        assert not inner or inner in {f.name for f in fields(recipes.SECTIONS[section])}
        assert section in {f.name for f in fields(Recipe)}


@pytest.mark.parametrize("name", ALL)
def test_the_model_of_a_recipe_can_be_made(name):
    recipe = load(name)
    if recipe.model is not None:
        config = backbones.config(recipe.model).changed(recipe.model_changes)
        assert config.clip.t == recipe.sampling.frames
        assert config.clip.h == recipe.augmentation.size
    else:
        assert name in OWN


# Numbers of the published sources: name -> path -> (paper, code).
STATED = {
    "dualformer_tiny_k400": {
        "optimisation.epochs": (30, 30),
        "optimisation.batch_size": (64, 64),
        "optimisation.lr": (1e-3, 1e-3),
        "optimisation.backbone_lr": (1e-4, 1e-4),
        "optimisation.warmup_epochs": (2.5, 3),
        "optimisation.weight_decay": (0.02, 0.02),
        "optimisation.groups": ("paper", "code"),
        "drop_path": (0.1, 0.1),
        "dropout": (0.5, 0.5),
        "testing.clips": (4, 4),
        "testing.crops": (1, 1),
        "testing.resize": (224, 224),
        "sampling.frames": (32, 32),
        "sampling.stride": (2, 2),
        "augmentation.resize": (256, 256),
        "augmentation.flip": (0.5, 0.5),
        "mixing.smoothing": (0, 0),
        "token_labels": (None, None),
    },
    "dualformer_small_k400": {
        "optimisation.warmup_epochs": (2.5, 2.5),
        "optimisation.weight_decay": (0.02, 0.02),
        "drop_path": (0.2, 0.2),
    },
    "dualformer_base_k400": {"optimisation.weight_decay": (0.05, 0.05), "drop_path": (0.3, 0.3)},
    "dualformer_tiny_k400_token_labels": {
        "optimisation.batch_size": (64, 128),
        "optimisation.warmup_epochs": (2.5, 3),
        "token_labels.grouping": ("neighbours", "strided"),
        "token_labels.weight": (0.5, 0.5),
        "token_labels.top_k": (5, 5),
        "token_labels.teacher": ("dualformer_base", "dualformer_base"),
    },
    "dualformer_small_k400_token_labels": {"optimisation.batch_size": (64, 64), "drop_path": (0.2, 0.2)},
    "dualformer_base_k600": {
        "optimisation.lr": (1e-3, 5e-4),
        "optimisation.backbone_lr": (1e-4, 5e-5),
        "optimisation.weight_decay": (0.05, 0.05),
        "drop_path": (0.3, 0.3),
    },
    "dualformer_base_k400_in21k": {"optimisation.lr": (1e-3, 1e-3), "drop_path": (0.3, 0.3)},
    "dualformer_small_diving48": {
        "optimisation.epochs": (16, 30),
        "optimisation.warmup_epochs": (1, 1),
        "optimisation.weight_decay": (0.02, 0.02),
        "optimisation.batch_size": (64, 64),
        "sampling.stride": (4, 4),
        "testing.crops": (3, 3),
        "augmentation.mean": ((104, 117, 128), (104, 117, 128)),
        "augmentation.std": ((1, 1, 1), (1, 1, 1)),
    },
    "dualformer_small_hmdb51": {
        "optimisation.epochs": (16, 16),
        "optimisation.weight_decay": (0.02, 0.1),
        "optimisation.batch_size": (64, 128),
        "drop_path": (0.2, 0.3),
    },
    "dualformer_small_ucf101": {"optimisation.weight_decay": (0.02, 0.1), "data": ("ucf101", "ucf101")},
    "dualformer_tiny_ucf101": {
        "sampling.frames": (16, 16),
        "optimisation.weight_decay": (0.02, 0.05),
        "drop_path": (0.1, 0.2),
        "optimisation.batch_size": (64, 128),
        "testing.crops": (1, 3),
    },
    "dualformer_in1k": {
        "optimisation.epochs": (300, 300),
        "optimisation.warmup_epochs": (20, 20),
        "optimisation.batch_size": (1024, 1024),
        "optimisation.lr": (1e-3, 1e-3),
        "optimisation.weight_decay": (0.05, 0.05),
        "optimisation.schedule": ("cosine", "cosine"),
    },
    "dualformer_base_in21k": {
        "optimisation.epochs": (100, 100),
        "optimisation.warmup_epochs": (5, 5),
        "optimisation.lr": (5e-4, 5e-4),
        "optimisation.weight_decay": (0.01, 0.01),
        "optimisation.schedule": ("linear", "linear"),
        "drop_path": (0.2, 0.2),
    },
    "video_swin_tiny_k400": {"optimisation.weight_decay": (0.02, 0.02), "testing.crops": (3, 3)},
    "video_swin_base_k400": {"optimisation.weight_decay": (0.05, 0.05), "drop_path": (0.3, 0.3)},
    "video_swin_base_k400_in22k": {
        "optimisation.lr": (3e-4, 3e-4),
        "optimisation.backbone_lr": (3e-5, 3e-5),
        "drop_path": (0.2, 0.2),
    },
    "video_swin_base_k600_in22k": {"data": ("kinetics600", "kinetics600"), "optimisation.lr": (3e-4, 3e-4)},
    "video_swin_base_ssv2": {
        "optimisation.epochs": (60, 60),
        "drop_path": (0.4, 0.4),
        "mixing.smoothing": (0.1, 0.1),
        "augmentation.rand_augment": ("n4-m7", "n4-m7"),
        "augmentation.erasing": (0.25, 0.25),
        "augmentation.flip": (0, 0),
        "sampling.kind": ("uniform", "uniform"),
        "testing.clips": (1, 1),
        "testing.crops": (3, 3),
    },
    "dualpath_ssv2": {
        "optimisation.lr": (5e-4, 2.5e-4),
        "testing.crops": (3, 3),
        "optimisation.batch_size": (128, 128),
        "model": (CLIP, f"{CLIP}_released"),
    },
    "dualpath_k400": {"model": (f"{CLIP}_4_adapters", f"{CLIP}_released"), "optimisation.batch_size": (64, 64)},
    "dualpath_hmdb51": {"testing.clips": (2, 3), "testing.crops": (3, 1), "optimisation.weight_decay": (0.02, 0.05)},
    "dualpath_diving48": {"augmentation.erasing": (0.0, 0.1), "testing.clips": (1, 3)},
    "multitrain_several": {"many_sets.expander": (2048, 4096), "optimisation.batch_size": (512, 64)},
    "multitrain_k400_16f_in21k": {"optimisation.epochs": (75, 75), "sampling.stride": (4, 4)},
    "rvit_k400": {
        "optimisation.optimizer": ("sgd", "sgd"),
        "optimisation.lr": (5e-3, 5e-3),
        "sampling.frames": (32, 32),
    },
    "rvit_xl_k400": {"model": ("rvit_xl",) * 2, "optimisation.batch_size": (16, 16), "optimisation.lr": (5e-3, 5e-3)},
    "rvit_jester": {"optimisation.optimizer": ("adamw", "adamw"), "optimisation.lr": (3e-4, 3e-4)},
    "timesformer_k400": {
        "optimisation.optimizer": ("sgd", "sgd"),
        "optimisation.lr": (5e-3, 5e-3),
        "optimisation.backbone_lr": (5e-3, 5e-3),
        "optimisation.weight_decay": (1e-4, 1e-4),
        "optimisation.milestones": ((11, 14), (11, 14)),
        "optimisation.epochs": (15, 15),
        "optimisation.batch_size": (8, 8),
        "testing.clips": (1, 1),
        "testing.crops": (3, 3),
        "augmentation.resize": ((256, 320), (256, 320)),
    },
    "timesformer_hr_k600": {"augmentation.size": (448, 448), "testing.resize": (448, 448), "sampling.stride": (16, 16)},
    "timesformer_l_ssv2": {"sampling.frames": (96, 96), "sampling.stride": (4, 4), "augmentation.flip": (0, 0)},
}


@pytest.mark.parametrize("name", STATED)
def test_values_are_the_published_ones(name):
    for which, source in enumerate(recipes.SOURCES):
        recipe = load(name, source)
        for path, values in STATED[name].items():
            value = recipe
            for step in path.split("."):
                value = getattr(value, step)
            assert value == values[which], (source, path)


def test_differences_are_kept_beside_the_choice():
    assert load("dualformer_tiny_k400").differs == {
        "optimisation.groups": {"paper": "paper", "code": "code"},
        "optimisation.warmup_epochs": {"paper": 2.5, "code": 3},
    }
    for name in ALL:
        for path, both in load(name).differs.items():
            assert both["paper"] != both["code"], path


def test_what_a_source_does_not_state_is_listed():
    paper, code = load("dualformer_tiny_k400", "paper"), load("dualformer_tiny_k400", "code")
    assert paper.assumed["optimisation.schedule"] == "stated by the code only"
    assert "optimisation.lr" not in paper.assumed
    assert code.assumed == {}
    assert load("dualformer_base_in21k", "code").assumed["optimisation.lr"] == "stated by the paper only"
    assert load("dualformer_in1k").assumed["augmentation.flip"] == "stated by neither; our default"
    assert load("dualformer_small_diving48", "code").assumed["optimisation.warmup_epochs"] == "stated by the paper only"
    for name in OWN:
        assert not load(name).assumed


def test_a_changed_value_is_ours():
    recipe = load("dualformer_tiny_k400")
    changed = recipe.changed({
        "optimisation.lr": 3e-4, "augmentation.flip": 0, "sampling": {"frames": 8, "stride": 1}, "drop_path": None,
        "model_changes.clip.t": 8,
    })  # fmt: skip
    assert (changed.optimisation.lr, changed.augmentation.flip, changed.drop_path) == (3e-4, 0.0, None)
    assert changed.sampling == Sampling(8, 1)
    assert changed.model_changes == {"clip.t": 8}
    assert "augmentation.flip" in recipe.assumed
    assert {"augmentation.flip", "sampling.kind"}.isdisjoint(changed.assumed)
    assert changed.optimisation.weight_decay == recipe.optimisation.weight_decay
    assert recipe.changed({"token_labels.top_k": 3}).token_labels == TokenLabels(top_k=3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimisation.lrr": 1}, ["'lrr'", "did you mean 'lr'"]),
        ({"optimizatoin.lr": 1}, ["did you mean 'optimisation'"]),
        ({"augmentation.szie": 1}, ["did you mean 'size'"]),
        ({"drop_path.x": 1}, ["'drop_path'", "single value"]),
        ({"name": "other"}, ["no field 'name'"]),
        ({"optimisation.lr": "fast"}, ["optimisation.lr is 'fast', not a number from 0"]),
        ({"optimisation.lr": -1}, ["lr is -1, not a number from 0"]),
        ({"optimisation.epochs": float("nan")}, ["epochs is nan"]),
        ({"optimisation.batch_size": 6.5}, ["batch_size is 6.5, not a whole number from 1"]),
        ({"optimisation.groups": "papper"}, ["did you mean 'paper'"]),
        ({"optimisation.betas": [0.9]}, ["betas is [0.9], not a list of 2 values"]),
        ({"optimisation.betas": [0.9, 1.0]}, ["betas", "below 1"]),
        ({"optimisation.milestones": [1]}, ["milestones", "'step'"]),
        ({"optimisation.warmup_start": 2}, ["warmup_start is 2, not a number from 0 to 1"]),
        ({"testing.size": 300}, ["size 300", "resize of 300 or more"]),
        ({"augmentation.crop": "centre"}, ["crop is 'centre'"]),
        ({"mixing.smoothing": 2}, ["smoothing"]),
        ({"drop_path": 1.0}, ["drop_path is 1.0", "below 1"]),
        ({"token_labels.weight": 2}, ["token_labels.weight is 2", "from 0 to 1"]),
        ({"token_labels.grouping": "stride"}, ["did you mean 'strided'"]),
        ({"sampling": None}, ["sampling is None, not entries such as frames"]),
    ],
)
def test_a_slip_is_answered(changes, words):
    with pytest.raises(UsageError) as caught:
        load("dualformer_tiny_k400").changed(changes)
    for word in words:
        assert word in str(caught.value)


def test_none_may_be_written_as_on_a_command_line():
    recipe = load("video_swin_base_ssv2").changed(
        {"augmentation.rand_augment": "none", "optimisation.clip_norm": "none"}
    )
    assert recipe.augmentation.rand_augment is recipe.optimisation.clip_norm is None


def test_unknown_names_are_answered():
    with pytest.raises(UsageError, match="did you mean 'dualformer_tiny_k400'"):
        load("dualformer_tiny_k40")
    with pytest.raises(UsageError, match="did you mean 'paper'"):
        load("quick", "papers")
    with pytest.raises(UsageError, match="did you mean 'testing'"):
        Recipe.from_dict({"name": "x", "tessting": {}})
    with pytest.raises(UsageError, match="at least a name"):
        Recipe.from_dict({})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optimisation: {lrr: 1}", "slip.yaml: optimisation has no field 'lrr'; did you mean 'lr'"),
        ("optimization: {lr: 1}", "did you mean 'optimisation'"),
        ("base: _dualfromer", "did you mean '_dualformer'"),
        ("base: slip", "is no other recipe file"),
        ("states: paperr", "did you mean 'paper'"),
        ("states: paper\noptimisation: {lr: x}", "optimisation.lr is 'x', not a number from 0"),
        ("- 1", "slip.yaml: expected entries"),
        ("a: [", "slip.yaml cannot be read"),
        (
            "drop_path: 0.1\ndropout: 0.2\ndrop_path: 0.3",
            "line 3 cannot be read: 'drop_path' is said twice, first in line 1",
        ),
    ],
)
def test_a_slip_in_a_file_is_answered(tmp_path, monkeypatch, text, words):
    (tmp_path / "_dualformer.yaml").write_text("drop_path: 0.1")
    (tmp_path / "slip.yaml").write_text(text)
    monkeypatch.setattr(recipes, "FOLDER", tmp_path)
    with pytest.raises(UsageError) as caught:
        load("slip")
    assert words in str(caught.value)


def test_no_file_is_unused():
    """Every base is built on, so that none is left behind."""
    text = "".join(path.read_text() for path in recipes.FOLDER.glob("*.yaml"))
    for path in recipes.FOLDER.glob("_*.yaml"):
        assert text.count(path.stem) >= 1, path.name


def test_defaults_are_valid():
    assert Optimisation().schedule == "cosine"
    assert recipes.Testing().clips == 4
    assert Recipe("mine").recipe_source == "own"


def test_recipes_load_without_torch():
    code = "import harness.spec.recipe as r; r.load('quick'); import sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
