"""Dials of rows, and what a report says of schemes along them: saved multiply-adds, saved time, the gap, the fronts."""

import csv
from dataclasses import replace

import pytest

from harness.cost.metrics import probes as metric
from harness.cost.metrics.latency import LATENCY
from harness.cost.metrics.macs import MACS
from harness.probes.train import Block, Effort
from harness.spec import case
from harness.spec.reader import UsageError
from records.record import Record, read_manifest, read_record, write_manifest, write_record
from reports import build, sparsity, table

EFFORT = Effort(steps=20, batch=8, tested=64)


def folder_of(folder, **rows):
    """An ablation's folder: of each row multiply-adds, milliseconds, recall and its dial."""
    entries = []
    for row, (macs, milliseconds, recall, dial) in rows.items():
        answer = {"by_dial": [recall] * 5, "reach": [100.0] * 5, "curve": [recall] * 10}
        measured = [
            MACS.of([macs], {}),
            LATENCY.of([milliseconds] * 3, {"machine": "cpu", "threads": 1}),
            metric.measured("space", [Block("full")] * 2, 1, EFFORT, answer, {"machine": "cpu"}),
        ]
        record = Record(f"{row}-0", "sparsity", row, {"clip": {"frames": 8, "size": 64}}, {m.name: m for m in measured})
        write_record(record, folder)
        entries.append({"row": row, "case_id": record.case_id, "baseline": "full", "dial": dial})
    write_manifest({"name": "sparsity", "question": "?", "rows": entries, "figures": ["sparsity"]}, folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    return folder_of(
        tmp_path,
        full=(100, 100.0, 90.0, None),
        narrow=(40, 90.0, 50.0, "window"),
        wide=(60, 120.0, 87.0, "window"),
        fixed=(80, 80.0, 60.0, None),
        worse=(80, 81.0, 55.0, None),
    )


def test_the_gap_is_multiply_adds_saved_less_time_saved(folder):
    rows = table.load(folder)
    saved = {row.name: sparsity.saved(rows, row) for row in rows.rows}
    assert saved["full"].gap is None
    assert {
        name: (round(saving.macs, 6), round(saving.gap, 6)) for name, saving in saved.items() if saving.gap is not None
    } == {
        "narrow": (0.6, 50.0),
        "wide": (0.4, 60.0),
        "fixed": (0.2, 0.0),
        "worse": (0.2, 1.0),
    }


def test_recall_of_a_training_that_did_not_learn_is_no_plain_figure(tmp_path):
    folder = folder_of(tmp_path, full=(100, 100.0, 90.0, None), narrow=(40, 90.0, 12.0, "window"))
    build.build(folder)
    report = (folder / "report.md").read_text()
    assert "| full | 90 | 0 |" in report
    assert "| narrow | 12: has not learnt | 60 |" in report


def test_a_front_holds_what_nothing_beats_in_both(folder):
    rows = table.load(folder)
    assert [row.name for row in sparsity.front(rows, "macs")] == ["narrow", "wide", "full"]
    assert [row.name for row in sparsity.front(rows, "latency")] == ["fixed", "full"]


def test_the_first_line_says_what_gives_most_for_each_cost(folder):
    build.build(folder)
    lines = (folder / "report.md").read_text().splitlines()
    assert lines[2] == (
        "- For its multiply-adds, wide gives most: 40 % less than full (recall 87 % against 90 %); for its "
        "milliseconds, no row gives more than the baseline: of those within 5 points of its recall none is cheaper."
    )
    assert "| wide | 87 | 40 | −20 | 60 | multiply-adds |" in lines
    assert "| narrow | 50 | 60 | 10 | 50 | multiply-adds |" in lines
    with (folder / "table.csv").open(newline="") as file:
        wide = next(row for row in csv.DictReader(file) if row["row"] == "wide")
    assert (wide["dial"], wide["gap_points"][:4], wide["front_macs"], wide["front_latency"]) == (
        "window", "60.0", "true", "false",
    )  # fmt: skip


def test_a_run_that_was_stopped_has_a_report_of_what_is_there(folder):
    """Rows that were counted and not yet asked."""
    path = next(folder.glob("worse-*.json"))
    record = read_record(path)
    kept = {name: measured for name, measured in record.measurements.items() if name == "macs"}
    write_record(replace(record, measurements=kept), folder)
    build.build(folder)
    assert "| worse | — | 20 | — | — | — |" in (folder / "report.md").read_text()


def test_rows_without_dials_have_none_of_this(tmp_path):
    folder = folder_of(tmp_path, full=(100, 100.0, 90.0, None), other=(50, 50.0, 90.0, None))
    build.build(folder)
    assert "saved" not in (folder / "report.md").read_text()
    assert not (folder / "sparsity.png").exists()


def test_a_dial_makes_a_row_of_each_value_and_quick_mode_takes_its_ends():
    asked = case.load("sparsity")
    named = [entry.case.row for entry in case.resolve(asked, case.Settings())]
    assert [name for name in named if name.startswith("neighborhood")] == [
        "neighborhood · window=[3,3,3]",
        "neighborhood · window=[3,5,5]",
        "neighborhood · window=[5,7,7]",
    ]
    entries = case.resolve(asked, case.Settings(quick=True))
    windows = [
        entry.case.config["attention"]["neighborhood"]["window"] for entry in entries if entry.row.row == "neighborhood"
    ]
    assert windows == [[3, 3, 3], [5, 7, 7]]
    manifests = {entry.case.row: entry.manifest() for entry in entries}
    assert manifests["neighborhood · window=[3,3,3]"]["dial"] == "neighborhood"
    assert "dial" not in manifests["full"]
    assert {manifest["baseline"] for manifest in manifests.values()} == {"full"}


def test_every_scheme_stands_in_the_table_of_sparsity_and_asks_its_probes_with_its_own_dial():
    import attention_zoo

    entries = case.resolve(case.load("sparsity"), case.Settings())
    assert set(attention_zoo.schemes.names()) <= {entry.row.row for entry in entries}
    for entry in entries:
        blocks = metric.blocks_of(entry.case)
        for path, values in entry.row.dial.items():
            option = path.rpartition(".")[2]
            assert blocks[0].options[option] == blocks[1].options[option] != []
            assert blocks[0].options[option] in values
            assert f"{option}={str(blocks[0].options[option]).replace(' ', '')}" in entry.case.row


def test_a_dial_that_no_model_has_is_named_with_its_row():
    raw = {
        "name": "mine",
        "question": "?",
        "rows": [{"row": "a", "model": "pyramid_tiny_full", "dial": {"widht": [1]}}],
    }
    with pytest.raises(UsageError, match="ablation mine, row 'a · widht=1': .*did you mean 'widths'"):
        case.resolve(case.from_dict(raw, "mine.yaml"), case.Settings())
    raw["rows"][0]["dial"] = {"widths": []}
    with pytest.raises(UsageError, match="widths has no values"):
        case.from_dict(raw, "mine.yaml")


def test_the_manifest_of_a_run_holds_the_dials(tmp_path, capsys):
    from harness import run

    rows = "rows=[full,neighborhood]"
    assert run.main(["ablation=sparsity", "quick=true", rows, "metrics=[macs]", f"out={tmp_path}"]) == 0
    manifest = read_manifest(tmp_path / "quick" / "sparsity")
    assert [row.get("dial") for row in manifest["rows"] if row["row"].startswith("neighborhood")] == [
        "neighborhood"
    ] * 2
