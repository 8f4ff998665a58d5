"""Comparisons with implementations of others: weights are mapped whole, and what is not there is skipped."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from backbones import models
from harness.options import Command, parse
from reports.record import read_records

sys.path.append(str(Path(__file__).parents[1]))  # benchmarks are no part of the package

from benchmarks import peers, timesformer

SMALL = ["frames=2", "size=32", "depth=1", "pairs=1", "threads=1"]


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
        ours = models.create("video_swin_tiny")
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
    assert peers.main([*SMALL, "schemes=[divided]", f"out={tmp_path}"]) == 0
    said = capsys.readouterr().out
    if "skipped" in said:
        pytest.skip(said)
    assert "training: ours is" in said


def test_what_is_not_there_is_skipped_with_the_reason(tmp_path, capsys, monkeypatch):
    for name in ("transformers", "torchvision"):
        monkeypatch.setitem(sys.modules, name, None)
    assert peers.main([f"out={tmp_path}"]) == 0
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
    assert peers.main([*SMALL, "schemes=[divided]", f"out={tmp_path}"]) == status
    said, (record,) = capsys.readouterr().out, read_records(tmp_path / "peers")
    assert ("nothing is timed" in said) == bool(status)
    assert ("training_speedup" in record.measurements) != bool(status)
    if not status:
        assert "forward: ours is" in said
        assert record.measurements["forward_speedup"].details["interval"]


def test_lists_of_names_are_read():
    assert parse(Command("x", "", peers.Options), ["schemes=[divided]", "modes=forward"]).schemes == ["divided"]
    assert parse(Command("x", "", peers.Options), ["modes=forward"]).modes == ["forward"]


def test_a_wrong_size_is_refused(capsys):
    assert peers.main(["size=100"]) == 2
    assert "multiple of 32" in capsys.readouterr().err
