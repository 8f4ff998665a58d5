"""The page of findings: arithmetic from the records of a run, and recounts of others cited as such."""

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness import run
from harness.spec import options
from reports import findings
from reports.table import Row

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    out = tmp_path_factory.mktemp("findings")
    rows = "rows=['MViT-B, 64x3',TimeSformer,'DeiT-T']"
    assert run.main(["ablation=[kinetics,transfer,imagenet]", "metrics=[params,macs]", f"out={out}", rows]) == 0
    assert findings.main([str(out)]) == 0
    return (out / "findings.md").read_text(encoding="utf-8")


def paragraph(page: str, start: str) -> str:
    return next(part for part in page.split("\n\n") if part.startswith(f"**{start}"))


def test_a_total_is_taken_apart_into_views_and_rules(page):
    text = paragraph(page, "MViT-B, 64x3, operations: 4095 G printed, reproduced.")
    assert "4095 / 9 = 455 G a view" in text
    assert "By plain multiply-adds we count 4095 G (9 × 455.06)" in text
    assert re.search(r"fvcore's rule .*: 4104 G \(9 × 455\.88\)", text)


def test_a_wrong_label_is_explained(page):
    text = paragraph(page, "DeiT-T, parameters: 22 M printed, explained.")
    assert "22,050,664 with the classifier" in text
    assert "DeiT-S" in text


def test_counts_of_others_are_cited(page):
    text = paragraph(page, "R(2+1)D.")
    assert "75 G for each of 10 views" in text
    assert "Recounted elsewhere, not here: 75.4 G and 61.832 M" in text
    assert "ablation=kinetics" in page


def test_every_paragraph_ends_in_the_command_that_counts_its_row_again(page):
    end = """Again: `python -m harness.run ablation=kinetics 'rows=["MViT-B, 64x3"]' 'metrics=[params,macs]'`."""
    assert paragraph(page, "MViT-B, 64x3, operations").endswith(end)
    assert paragraph(page, "MViT-B, 64x3, parameters").endswith(end)


def test_a_row_that_is_set_against_others_names_them_in_its_command():
    ratio = {"of": {"row": "Swin-B", "by": "fvcore"}, "over": {"by": "fvcore"}}
    row = Row("B vs Swin-B", cells={"ratio": ratio, "n": {"stage": 1, "is": "keys"}})
    command = findings.again(SimpleNamespace(name="claims"), row)
    assert shlex.split(command)[3:] == ["ablation=claims", 'rows=["B vs Swin-B","Swin-B"]', "metrics=[params,macs]"]


def test_two_ablations_of_one_table_are_one_section(tmp_path):
    """In the order of the papers; what a paper says in its text comes after its tables."""
    words = ["ablation=[text_claims,pyramid_scales,block_composition,kinetics]", "metrics=[params,macs]"]
    rows = """rows=["LG1, coarse (4,4,4) only","(GG, GG, GG, GG)","X-ViT (16x)","DualFormer-T, one view"]"""
    assert run.main([*words, f"out={tmp_path}", rows]) == 0
    assert findings.main([str(tmp_path)]) == 0
    page = (tmp_path / "findings.md").read_text(encoding="utf-8")
    headings = [line.partition(": ")[0] for line in page.splitlines() if line.startswith("## ")]
    assert headings == [
        "## DualFormer, Table 1", "## DualFormer, Table 3", "## DualFormer, text", "## Recounted elsewhere"
    ]  # fmt: skip


@pytest.mark.parametrize("page", sorted((ROOT / "results").rglob("findings.md")), ids=lambda path: path.parent.name)
def test_every_command_of_a_recorded_page_can_be_given(page):
    commands = dict.fromkeys(re.findall(r"Again: `([^`]+)`", page.read_text(encoding="utf-8")))
    assert commands
    for command in commands:
        program, words = shlex.split(command)[:3], shlex.split(command)[3:]
        assert program == ["python", "-m", "harness.run"]
        (ablation,), _ = run.chosen(options.parse(run.PROGRAM, words))
        assert ablation.chosen, command


def test_a_folder_without_runs_has_no_findings(tmp_path):
    assert findings.main([str(tmp_path)]) == 0
    assert "##" not in (tmp_path / "findings.md").read_text(encoding="utf-8")


def test_a_folder_that_is_not_there_is_not_made(tmp_path, capsys):
    assert findings.main([str(tmp_path / "nowhere")]) == 2
    assert not (tmp_path / "nowhere").exists()
    assert "nowhere is not a folder" in capsys.readouterr().err
