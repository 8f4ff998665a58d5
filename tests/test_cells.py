"""Printed cells beyond operations and parameters: each with the verdict that it is known to get, from a run."""

import csv
from collections import Counter
from itertools import chain

import pytest

from harness import run
from harness.spec import case, reader
from reports import markdown, paper_table

R, N, E = "reproduced", "not reproduced", "explained"
KNOWN = {  # ablation -> column -> verdicts, counted
    "dualpath": {
        "model_params": {R: 3, N: 1, E: 1},
        "trainable_params": {R: 3, N: 1, E: 1},
        "gflops": {N: 4, E: 1},
    },
    "dualpath_resolution": {"ssv2_gflops": {N: 4}, "hmdb51_gflops": {N: 4}},
    "dualformer_models": {
        column: {R: 12} for column in ("channels", "blocks", "patch", "lw_window", "gp_scales", "output")
    },
    "multitrain_models": {"operators": {R: 4}, "output": {R: 6}},
    "text_claims": {
        "S": {R: 2},
        "M": {R: 1},
        "reduction": {R: 1},
        "mlp_share": {R: 1},
        "flops_ratio": {R: 4, N: 2},
        "flops_share": {N: 1},
        "low_rank_flops_saving": {"explained": 1},
    },
}
MEASURED = {  # of three views in G
    ("dualpath_resolution", "224x224 w/ 16 frames, SSv2", "ssv2_gflops"): "501",
    ("dualpath_resolution", "448x448 w/ 16 frames, SSv2", "ssv2_gflops"): "696",
    ("dualpath_resolution", "896x896 w/ 16 frames, SSv2", "ssv2_gflops"): "1859",
    ("dualpath_resolution", "224x224 w/ 48 frames, SSv2", "ssv2_gflops"): "614",
    ("text_claims", "DualFormer-T, low-rank MLPs", "low_rank_flops_saving"): "25",
    ("text_claims", "DualFormer-S 4x3 vs VidTr-L", "flops_share"): "17",
    ("text_claims", "Fig. 4 example", "S"): "73",
    ("dualpath", "DualPath w/ ViT-B/16 (CLIP)", "trainable_params"): "13",
    ("dualpath", "adapters of 192, as released", "trainable_params"): "19",
    ("dualpath", "DualPath w/ Swin-B", "model_params"): "97",
    ("dualpath", "DualPath w/ Swin-B", "trainable_params"): "10",
    ("dualpath", "the same with 400 classes", "trainable_params"): "11",
    ("dualpath", "the same with 400 classes", "model_params"): "97",
}
FURTHER = {  # tables that hold neither counts nor sizes of a model, which a report shows as they are
    "dualformer_table9": "accuracies alone, those of dualformer_supplement_table2",
    "dualpath_table_a1": "recipes",
    "dualpath_table_a3": "times of a V100, which nothing measured elsewhere may be set beside",
    "multitrain_table1": "how many videos of Kinetics are left",
    "multitrain_table3": "accuracies of two recipes",
    "multitrain_table4": "pairs of classes, read out of trained weights",
    "multitrain_text": "recipes and times of eight V100",
    "rvit_table_s1": "recipes",
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("cells")
    names = ",".join(KNOWN)
    assert run.main([f"ablation=[{names}]", "metrics=[params,trainable_params,macs]", f"out={out}"]) == 0
    tables = {}
    for name in KNOWN:
        with (out / name / "table.csv").open(newline="", encoding="utf-8") as file:
            tables[name] = list(csv.DictReader(file))
    return tables


@pytest.mark.parametrize("name", KNOWN)
def test_every_cell_gets_its_known_verdict(written, name):
    for column, verdicts in KNOWN[name].items():
        assert Counter(row[f"verdict_{column}"] for row in written[name] if row[f"verdict_{column}"]) == verdicts, (
            column
        )


def test_cells_measure_what_the_models_are(written):
    counts = {
        (name, row, column): next(r for r in written[name] if r["row"] == row)[f"measured_{column}"]
        for name, row, column in MEASURED
    }
    assert counts == MEASURED


def test_no_table_ships_unused():
    ablations = [case.load(name) for name in case.names()]
    used = {ablation.table for ablation in ablations} - {None}
    further = [name for ablation in ablations for name in ablation.further]
    assert sorted([*used, *further]) == paper_table.names()
    assert set(further) == set(FURTHER)
    for name in FURTHER:
        assert not {"flops", "params"} & set(paper_table.load(name).units), f"{name} prints costs"


@pytest.mark.parametrize("name", FURTHER)
def test_a_further_table_is_shown_as_it_was_printed(name):
    """Every cell of every row, beside the source."""
    paper = paper_table.load(name)
    section = markdown._further(paper)
    assert section.startswith(f"## {paper.title}, as published")
    assert paper.source in section
    for row in paper.rows:
        assert f"| {row.name} |" in section
        for value in row.cells.values():
            words = list(chain(*value)) if isinstance(value, list) else value if isinstance(value, dict) else [value]
            assert all(str(word) in section for word in words if not isinstance(word, bool | None))


def test_an_unknown_further_table_is_named():
    raw = {"name": "mine", "question": "?", "further": ["rvit_table_s2"], "rows": [{"row": "a", "model": "rvit_base"}]}
    with pytest.raises(reader.UsageError, match="further: unknown table 'rvit_table_s2'; did you mean 'rvit_table_s1'"):
        case.from_dict(raw, "mine.yaml")


WRONG = [
    ({"top5_of": {"stage": 1, "is": "channels"}}, "no column of"),
    ({"channels": {"stage": 1, "is": "chanels"}}, "allowed: channels"),
    ({"channels": {"count": "macs"}}, "unknown key 'count'"),
    ({"channels": {}}, "either `of`, a count, or `stage`"),
    ({"channels": {"of": {"count": "macs", "by": "fvcore"}}}, "`count`, `by` or `printed`"),
    ({"channels": {"of": {"by": "fvcor"}}}, "of.by: 'fvcor'"),
    ({"channels": {"of": {"count": "macs"}, "over": {"count": "macs", "row": "b"}}}, "'b' is no row here"),
    ({"channels": {"of": {"count": "macs"}, "as": "share"}}, "as: 'share'"),
]


@pytest.mark.parametrize(("cells", "message"), WRONG)
def test_a_wrong_cell_is_named_before_any_work(cells, message):
    raw = {"name": "mine", "question": "?", "table": "dualformer_table8"}
    raw["rows"] = [{"row": "a", "published": "Tiny stage 1", "model": "dualformer_tiny", "cells": cells}]
    with pytest.raises(reader.UsageError, match=message):
        case.from_dict(raw, "mine.yaml")
