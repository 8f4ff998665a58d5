"""`python -m backbones`: what it lists, draws and converts."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import backbones
from backbones.__main__ import main
from backbones.multiscale import RELEASED

ROOT = Path(__file__).parents[1]


def test_every_model_is_listed_with_its_cost():
    # In a process of its own: other tests register models of `benchmarks` in theirs.
    done = subprocess.run([sys.executable, "-m", "backbones"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *lines, foot = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [name for name in backbones.names() if "." not in name]
    listed = {line.split()[0]: line for line in lines[1:]}
    assert listed["dualformer_tiny"].split()[1:4] == ["21.973", "59.86", "32x224x224"]
    assert listed["deit_tiny"].split()[1] == "5.717"
    assert "1000" in foot
    for name, line in listed.items():
        origin = backbones.origin(name)
        assert line.rstrip().endswith(origin.weights)
        assert all(word in line for word in (origin.paper, origin.code, origin.licence))


def rows(capsys):
    """The table without its head, by columns; the last line holds what is in no block."""
    title, _, head, *lines = capsys.readouterr().out.splitlines()
    starts = [head.index(word) for word in re.split(r"\s\s+", head.strip())]
    cut = [[line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)] for line in lines]
    return title, cut


def test_stages_add_up_to_the_model(capsys):
    assert main(["describe", "mvit_v2_small_16f"]) == 0
    title, table = rows(capsys)
    assert "34.538 M parameters, 64.22 G" in title
    assert [row[1] for row in table] == ["8x56x56", "8x28x28", "8x14x14", "8x7x7", ""]
    assert all(len(row) == 7 for row in table), "more are not read side by side"
    assert [row[4] for row in table[:-1]] == [f"{n} pooling" for n in (1, 2, 11, 2)]
    assert sum(float(row[5]) for row in table) == pytest.approx(34.538, abs=0.002)
    assert sum(float(row[6].split()[0]) for row in table) == pytest.approx(64.22, abs=0.02)


@pytest.mark.parametrize("name", [name for name in backbones.names() if "." not in name])
def test_every_model_is_drawn_and_its_stages_add_up(name, capsys):
    assert main(["describe", name]) == 0
    title, table = rows(capsys)
    stated = re.match(rf"{name}: (\S+) M parameters, (\S+) G multiply-adds a view", title)
    for column, total, digits in ((5, stated[1], 3), (6, stated[2], 2)):
        rounding = 0.51 * 10**-digits * (len(table) + 1)
        assert sum(float(row[column].split()[0]) for row in table) == pytest.approx(float(total), abs=rounding)
    assert all(" " in row[4] for row in table[:-1]), "a stage without the name of its attention"


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        ("vidtr_small", ["separable"]),
        ("vidtr_compact_small", ["separable"] * 3 + ["separable, full"]),
        ("vtn_base_250f", ["space_only", "windowed"]),
    ],
)
def test_attention_of_a_familys_own_is_named(name, attention, capsys):
    assert main(["describe", name]) == 0
    assert [row[4].split(" ", 1)[1] for row in rows(capsys)[1][:-1]] == attention


def test_a_released_layout_is_converted(tmp_path, capsys):
    config = {"width": 16, "depths": [1, 1], "clip": [4, 32, 32]}
    model = backbones.create("mvit_base_16f", 5, changes=config)
    state = {released_name(key): value for key, value in model.state_dict().items()}
    assert {RELEASED.rename(key) for key in state} == set(model.state_dict())
    torch.save({"model_state": state}, tmp_path / "released.pyth")
    other = backbones.create("mvit_base_16f", 5, changes=config)
    report = backbones.load_checkpoint(other, tmp_path / "released.pyth")
    assert report.layout == RELEASED.name
    assert "softmax" in report.note
    for key, value in other.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[key], rtol=0, atol=0)


def released_name(key):
    """Ours to theirs, for the names of a small MViT."""
    for ours, theirs in (
        ("embed.", "patch_embed."),
        ("class_token.token", "cls_token"),
        ("position.space", "pos_embed_spatial"),
        ("position.time", "pos_embed_temporal"),
        ("position.of_class", "pos_embed_class"),
        ("classifier.", "head.projection."),
        ("column.", "blocks."),
        (".skip.proj.", ".proj."),
        (".attention.", ".attn."),
        (".pool_q.norm.", ".norm_q."),
        (".pool_k.norm.", ".norm_k."),
        (".pool_v.norm.", ".norm_v."),
    ):
        key = key.replace(ours, theirs)
    return key


def test_convert_writes_our_names(tmp_path, capsys):
    model = backbones.create("dualformer_tiny", 7)
    source = backbones.save_checkpoint(model, tmp_path / "own.safetensors")
    assert main(["convert", str(source), "dualformer_tiny", str(tmp_path / "out.safetensors")]) == 0
    again = backbones.from_checkpoint(tmp_path / "out.safetensors")
    assert again.num_classes == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["describe", "dualformer_tny"], "did you mean 'dualformer_tiny'?"),
        (["convert", "nowhere.pth", "dualformer_tiny", "out.safetensors"], "nowhere.pth"),
        (["list"], "is no command"),
    ],
)
def test_slips_say_the_way_out(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_file_of_another_model_is_refused_without_a_remedy_that_no_command_has(tmp_path, capsys):
    source = backbones.save_checkpoint(backbones.create("pyramid_tiny_full", 7), tmp_path / "own.safetensors")
    assert main(["convert", str(source), "dualformer_tiny", str(tmp_path / "out.safetensors")]) == 2
    refused = capsys.readouterr().err
    assert "does not fit" in refused or "missing" in refused
    assert "strict=False" not in refused
    assert not (tmp_path / "out.safetensors").exists()
