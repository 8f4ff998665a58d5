"""Each published layout of a checkpoint: which one it is is said, and what does not fit is named.

A file that does not fit is loaded in part only where that was asked for.
"""

from __future__ import annotations

import os
import re

import pytest
import torch
from published_layouts import LAYOUTS
from safetensors.torch import load_file
from test_checkpoints import Hostile
from test_goldens import FOLDER, _with_prefix, needs_goldens
from test_vivit import distilled

import backbones
from backbones.family import layouts_of
from backbones.layouts import WRAPPED, detect, renamed
from backbones.sets import with_sets

NUMBERS = re.compile(r"\d+")
BESIDE = re.compile(r"^(?:expander|head\.cross_dataset_heads)\.")  # what MultiTrain's files have that serves training


def empty(published):
    """A model for a file, which has nothing of it."""
    if isinstance(published.classes, int):
        return backbones.create(published.config, published.classes)
    return with_sets(backbones.create(published.config, 1), published.classes, 8, 0.0)


def kinds(names):
    return {NUMBERS.sub("N", WRAPPED.sub("", name)) for name in names}


@needs_goldens
@pytest.mark.parametrize("layout", [name for name, published in LAYOUTS.items() if published.golden])
def test_the_files_have_the_names_of_the_released_code(layout):
    """But for what a model of another form of the family has."""
    file, prefix = LAYOUTS[layout].golden
    released = _with_prefix(load_file(FOLDER / f"{file}.weights.safetensors"), prefix)
    assert kinds(LAYOUTS[layout].written()[1]) == kinds(name for name in released if not BESIDE.match(name))


def saved(state, path):
    torch.save({"epoch": 3, "model_state": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_does_not_fit_is_named_in_every_layout(layout, tmp_path):
    """A seventh of the tensors is lacking, another has another shape, one is of nothing."""
    state = LAYOUTS[layout].written()[1]
    whole = backbones.load_checkpoint(empty(LAYOUTS[layout]), saved(state, tmp_path / "whole.pyth"))
    assert (whole.layout, whole.complete, whole.ignored) == (layout, True, {})
    rules = next(known for known in layouts_of() if known.name == layout)
    ours = {name: rules.rename(rules.bare(name)).partition("#")[0] for name in state}
    lost, bent = list(state)[::7], list(state)[3::7]
    damaged = {name: torch.zeros(3) if name in bent else t for name, t in state.items() if name not in lost}
    surprise = "visual.surprise" if layout.startswith("CLIP") else "surprise"  # else it were the text encoder's
    path = saved(damaged | {surprise: torch.zeros(2)}, tmp_path / "damaged.pyth")
    model = empty(LAYOUTS[layout])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(backbones.CheckpointError, match="does not fit the model") as error:
        backbones.load_checkpoint(model, path)
    assert f"(layout: {layout})" in str(error.value)
    assert f"1 unexpected (in the file, not in the model): module.{surprise}" in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    report = backbones.load_checkpoint(model, path, strict=False)
    assert set(report.missing) == {ours[name] for name in lost}
    assert set(report.mismatched) == {ours[name] for name in bent} - set(report.missing)
    assert report.unexpected == (f"module.{surprise}",)
    assert set(report.loaded) == before.keys() - set(report.missing) - set(report.mismatched)
    for key, names in report.partial.items():
        assert {ours[name.removeprefix("module.")] for name in names} == {key}
        assert all(name in str(error.value) for name in names)
    fresh = [name for name in before if name not in report.loaded]
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in fresh)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_code_in_a_file_of_any_layout_is_refused(layout, tmp_path):
    state = LAYOUTS[layout].written()[1]
    torch.save({"model_state": dict(state), "hook": Hostile(tmp_path / "ran")}, tmp_path / "file.pyth")
    for strict in (True, False):
        with pytest.raises(backbones.CheckpointError, match=r"would run \w+\.mkdir\. Refused"):
            backbones.load_checkpoint(empty(LAYOUTS[layout]), tmp_path / "file.pyth", strict=strict)
    assert os.listdir(tmp_path) == ["file.pyth"]


def test_half_of_a_tensor_is_not_taken_for_all_of_it():
    """The bias of one of DeiT's two classifiers is no mean of both."""
    _, state = distilled("timm")
    layout = detect(state, layouts_of())
    del state["head_dist.bias"]
    translated = renamed(state, [layout])
    assert translated.partial == {"classifier.bias": ["head.bias"]}
    assert "classifier.bias" not in translated.tensors
    assert "classifier.weight" in translated.tensors
