"""Every ablation that is shipped runs from the command line to its report, on small clips."""

import csv

import pytest

from harness import run
from harness.cost import metrics
from harness.spec import case
from records.record import read_manifest, read_record

MAY_LACK = {  # what a row may have no number of here, and why
    "kernels": "not every kernel runs on every machine, forward and backward",
    "operators": "not every device counts its energy",
    "probes": "a scheme may refuse a map of so few tokens",
}
SLOW = (  # every scheme is compiled; takes steps of training, and one of them is predicted; is trained six times
    "compile",
    "training",
    "probes",
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in case.names()]
)
def test_quick_mode_end_to_end(name, tmp_path, capsys):
    assert run.main([f"ablation={name}", "quick=true", f"out={tmp_path}"]) == 0, capsys.readouterr().err
    folder = tmp_path / "quick" / name
    manifest = read_manifest(folder)
    entries = case.resolve(case.load(name), case.Settings(quick=True, threads=1))
    assert [row["row"] for row in manifest["rows"]] == [entry.case.row for entry in entries]
    for row in manifest["rows"]:
        record = read_record(folder / f"{row['case_id']}.json")
        for metric in manifest["metrics"]:
            for measurement in metrics.get(metric).measures:
                one = record.measurements[measurement]
                lacks = one.missing is not None and not (name in MAY_LACK and not one.retry)
                assert not lacks, (row["row"], measurement, one.missing)
        assert "quick mode" in row["comparable"]
    with (folder / "table.csv").open(newline="") as file:
        written = {row["row"] for row in csv.DictReader(file)}
    assert {row["row"] for row in manifest["rows"]} <= written
    assert (folder / "report.md").read_text().startswith("# ")
    assert str(tmp_path) not in (folder / "report.md").read_text()
    said = capsys.readouterr().out
    assert "report.md" in said
    timed = any(metrics.get(metric).timed for metric in case.load(name).metrics)
    assert ("device=cuda" in said) == timed
