"""Every ablation that is shipped runs from the command line to its report, on small clips."""

import csv
import math

import pytest

import attention_zoo
import backbones
from harness import plan, run, sweep
from harness.cost import metrics
from harness.spec import case
from records.record import read_manifest, read_record

QUICK = case.Settings(quick=True, threads=1)
MAY_LACK = {  # what a row may have no number of here, and why
    "kernels": "not every kernel runs on every machine, forward and backward",
    "equivalence": "not every kernel has a backward pass on every device",
    "operators": "not every device counts its energy",
    "probes": "a scheme may refuse a map of so few tokens",
    "sparsity": "the same",
}
FEW = ("full", "shifted_window", "neighborhood", "local + global")  # of a table that holds every scheme
WHOLE_MODELS = ("dualpath", "imagenet", "rvit", "transfer")  # of full size: the first row of each family
WHOLE = ("attention_schemes", *WHOLE_MODELS)  # of these tables, those that are run with all rows, too
SLOW = (
    "compile",  # a model is compiled
    "kernels",  # the same, for flex
    "equivalence",  # every scheme on every kernel in every number format; tests/test_errors.py has a few
    "training",  # takes steps of training, and one of them is predicted
    "probes",  # is trained six times
    "kinetics",  # sixteen models of full size
    "dualpath_resolution",  # the model of dualpath on clips of up to 896 pixels
    "dualpath_speed",  # the same, and looks for its largest batch
    "peers",  # needs transformers and torchvision; tests/test_peers.py runs its rows
)


@pytest.mark.parametrize(
    "name, whole",
    [pytest.param(name, False, id=name, marks=[pytest.mark.slow] * (name in SLOW)) for name in case.names()]
    + [pytest.param(name, True, id=f"{name}, whole", marks=pytest.mark.slow) for name in WHOLE],
)
def test_quick_mode_end_to_end(name, whole, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "QUICK_SECONDS", math.inf)  # all of it, at any pace
    schemes, asked = set(attention_zoo.schemes.names()), case.load(name)
    named = all_rows = [row.row for row in asked.rows]
    if name in WHOLE_MODELS and not whole:
        families = [backbones.config(row.model or asked.model).family for row in asked.rows]
        named = [row for number, row in enumerate(all_rows) if families[number] not in families[:number]]
    elif schemes <= set(all_rows) and not whole:
        named = [row for row in FEW if row in all_rows]
    asked.chosen = named if named != all_rows else None
    entries = case.resolve(asked, QUICK)
    rows = [entry.row.row for entry in entries]
    few = [f"rows=[{','.join(str(1 + all_rows.index(row)) for row in named)}]"] if named != all_rows else []
    assert run.main([f"ablation={name}", "quick=true", "accuracy=off", f"out={tmp_path}", *few]) == 0, (
        capsys.readouterr().err
    )
    folder = tmp_path / "quick" / name
    manifest = read_manifest(folder)
    assert [row["row"] for row in manifest["rows"]] == [entry.case.row for entry in entries]
    measured = [row for row, of in zip(manifest["rows"], rows, strict=True) if of in named]
    for row in measured:
        record = read_record(folder / f"{row['case_id']}.json")
        for metric in manifest["metrics"]:
            for measurement in metrics.get(metric).measures:
                m = record.measurements[measurement]
                lacks = m.missing is not None and not (name in MAY_LACK and not m.retry)
                assert not lacks, (row["row"], measurement, m.missing)
        assert "quick mode" in row["comparable"]
    with (folder / "table.csv").open(newline="") as file:
        written = {row["row"] for row in csv.DictReader(file)}
    assert {row["row"] for row in measured} <= written
    assert (folder / "report.md").read_text().startswith("# ")
    assert str(tmp_path) not in (folder / "report.md").read_text()
    printed = capsys.readouterr().out
    assert "report.md" in printed
    timed = any(metrics.get(metric).timed for metric in case.load(name).metrics)
    assert ("device=cuda" in printed) == timed


def test_quick_mode_ends_in_time_and_says_what_it_left_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "QUICK_SECONDS", 0.0)
    words = ["ablation=position_encoding", "quick=true", "metrics=[params]", f"out={tmp_path}"]
    assert run.main(words) == 0
    printed = " ".join(capsys.readouterr().err.split())
    assert "3 of 3 steps of position_encoding are left out; the same command goes on there" in printed
    assert run.main([*words, "rows=[1]"]) == 0
    assert "left out" not in capsys.readouterr().err


@pytest.mark.parametrize("words", [["plan=true"], []])
def test_more_threads_than_cores_are_told_once_by_a_plan_and_by_a_run(words, tmp_path, capsys):
    counted = ["ablation=position_encoding", "rows=[1]", "metrics=[params]", "quick=true", f"out={tmp_path}"]
    assert run.main([*counted, "threads=4096", *words]) == 0
    assert capsys.readouterr().err.count("warning: threads=4096 on ") == 1


def test_a_plan_says_what_cannot_be_built_here(tmp_path, capsys, monkeypatch):
    def absent(*_):
        raise NotImplementedError("torchvision does not load; install it")

    monkeypatch.setattr(plan, "estimated", absent)
    assert run.main(["ablation=position_encoding", "quick=true", "plan=true", f"out={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("not measured: torchvision does not load; install it") == 3
    assert "quick mode ends after about 2 minutes" in printed


def test_a_plan_goes_on_behind_a_row_that_only_its_scheme_refuses(tmp_path, capsys):
    words = [
        "model.attention.G2.branches=[single,single,single]",
        "rows=[1,5]",
        "metrics=[params]",
        "plan=true",
        f"out={tmp_path}",
    ]
    assert run.main(["ablation=pyramid_scales", "accuracy=off", *words]) == 0
    assert capsys.readouterr().out.count("not measured: 3 branches") == 2


def test_quick_mode_tries_each_kind_of_case_first():
    entries = case.resolve(case.load("kernels"), QUICK)
    ordered = sweep._each_kind_first(entries)
    assert sorted(map(id, ordered)) == sorted(map(id, entries))
    kernels = case.load("kernels").vary["kernel"]
    assert {entry.case.kernel for entry in ordered[: len(kernels)]} == set(kernels)
