"""The page of findings: arithmetic from the records of a run, and recounts of others cited as such."""

import re

import pytest

from harness import run
from reports import findings


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


def test_a_folder_without_runs_has_no_findings(tmp_path):
    assert findings.main([str(tmp_path)]) == 0
    assert "##" not in (tmp_path / "findings.md").read_text(encoding="utf-8")


def test_a_folder_that_is_not_there_is_not_made(tmp_path, capsys):
    assert findings.main([str(tmp_path / "nowhere")]) == 2
    assert not (tmp_path / "nowhere").exists()
    assert "nowhere is not a folder" in capsys.readouterr().err
