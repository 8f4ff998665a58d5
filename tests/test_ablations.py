"""Every ablation that is shipped runs from the command line to its report, on small clips."""

import csv

import pytest

from harness import case, run
from reports.record import read_manifest, read_record


@pytest.mark.parametrize("name", case.names())
def test_quick_mode_end_to_end(name, tmp_path, capsys):
    assert run.main([f"ablation={name}", "quick=true", f"out={tmp_path}"]) == 0, capsys.readouterr().err
    folder = tmp_path / "quick" / name
    manifest = read_manifest(folder)
    entries = case.resolve(case.load(name), case.Settings(quick=True, threads=1))
    assert [row["row"] for row in manifest["rows"]] == [entry.case.row for entry in entries]
    for row in manifest["rows"]:
        record = read_record(folder / f"{row['case_id']}.json")
        for measurement in ("params", "macs", "latency", "throughput", "peak_memory"):
            assert record.measurements[measurement].missing is None, (row["row"], measurement)
        assert "quick mode" in row["comparable"]
    with (folder / "table.csv").open(newline="") as file:
        written = {row["row"] for row in csv.DictReader(file)}
    assert {row["row"] for row in manifest["rows"]} <= written
    assert (folder / "report.md").read_text().startswith("# ")
    assert str(tmp_path) not in (folder / "report.md").read_text()
    said = capsys.readouterr().out
    assert "report.md" in said
    assert "device=cuda" in said
