"""Reports from files alone: records and manifests in, Markdown, CSV and figures out, the same bytes each time."""

import csv
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from flat import flat

from records import record
from records.record import Measurement, Record, RecordError
from reports import (
    build,
    cite,
    cost_page,
    counting,
    data,
    faster,
    findings,
    index,
    markdown,
    paper_table,
    stale,
    statistics,
    table,
    text,
    verdict,
)

SPECS = Path(__file__).resolve().parents[2] / "shared" / "specs" / "paper_tables.json"
MACS, LAYERNORM, BATCHNORM = 59_860_279_296, 45_509_632, 191_744  # DualFormer-T, one view
MACHINE = "Example CPU, 2 cores, torch 2.13.0"


def measurements(macs=MACS, timed=True, machine=MACHINE, **missing) -> dict[str, Measurement]:
    exact = {
        "params": (21_767_360, "count"),
        "params_with_classifier": (21_972_560, "count"),
        "macs": (macs, "MAC"),
        "layernorm_elements": (LAYERNORM, "elements"),
        "batchnorm_elements": (BATCHNORM, "elements"),
    }
    made = [flat(n, unit, "none" if unit == "elements" else "lower", (value,)) for n, (value, unit) in exact.items()]
    if timed:
        details = {"machine": machine, "kernel": "sdpa", "threads": 2}
        made.append(flat("latency", "ms", "lower", (500.0, 510.0, 530.0, 505.0), details=details))
        made.append(flat("throughput", "clips/s", "higher", (2.0,), details=details))
        made.append(flat("peak_memory", "bytes", "lower", (700 * 2**20,), details=details))
    for name, reason in missing.items():
        made.append(flat(name, "ms", "lower", missing=reason))
    return {m.name: m for m in made}


def one_record(row="LG", frames=32, **changes) -> Record:
    case = {
        "row": row,
        "clip": {"frames": frames, "stride": 2, "size": 224},
        "config": {"patch": [2, 4, 4]},
        "device": "cpu",
        "dtype": changes.pop("dtype", "float32"),
        "kernel": "auto",
        "batch_size": 1,
    }
    provenance = {"commit": "0123456789abcdef", "dirty": False, "clip": {"source": "sample"}}
    return Record(record.case_id(row, case), "example", row, case, measurements(**changes), provenance)


def write(folder: Path, records: list[Record], rows: list[dict] | None = None, **manifest) -> Path:
    for of_row in records:
        record.write_record(of_row, folder)
    rows = rows or [{} for _ in records]
    entries = [
        {
            "row": of_row.row,
            "case_id": of_row.case_id,
            "published": None,
            "explanation": None,
            "fit": False,
            "note": None,
        }
        | {"comparable": True}
        | row
        for of_row, row in zip(records, rows, strict=True)
    ]
    base = {
        "name": folder.name,
        "question": "What does it cost?",
        "table": "dualformer_table3",
        "metrics": ["params", "macs"],
    }
    record.write_manifest(base | {"rows": entries, "figures": ["cost"]} | manifest, folder)
    return folder


DEFAULT = {"published": "(LG, LG, LG, LG)"}


def csv_rows(folder: Path) -> list[dict[str, str]]:
    build.build(folder)
    return list(csv.DictReader(io.StringIO((folder / "table.csv").read_text(encoding="utf-8"))))


# records


def test_a_record_comes_back_as_it_was_written(tmp_path):
    written = one_record(extra="out of memory at batch 8")
    path = record.write_record(written, tmp_path)
    assert path.name == f"{written.case_id}.json"
    assert record.read_record(path) == written
    assert record.read_records(tmp_path) == [written]
    assert isinstance(json.loads(path.read_text())["measurements"]["macs"]["visits"][0]["samples"][0], int)


def test_a_failed_write_leaves_the_old_record_and_nothing_else(tmp_path, monkeypatch):
    record.write_record(one_record(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(record.os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        record.write_record(one_record(macs=1), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_case_ids_follow_the_case_and_read_like_the_row():
    first, second = {"a": 1, "b": [1, 2]}, {"b": [1, 2], "a": 1}
    assert record.case_id("LG, both (8,7,7)", first) == record.case_id("LG, both (8,7,7)", second)
    assert record.case_id("LG, both (8,7,7)", first).startswith("lg-both-8-7-7-")
    assert record.case_id("x", first) != record.case_id("x", {"a": 2, "b": [1, 2]})
    assert record.slug("· · ·") == "row"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema": 1, "case_id"', "cannot be read as a record"),
        ("[]", "expected a JSON object"),
        ("{}", "schema number is None"),
        ('{"schema": 99}', "schema 99"),
        ('{"schema": 1, "case_id": "x"}', "not a whole record"),
        ('{"schema": 1, "case_id": "x", "measurements": {"macs": {"name": "macs"}}}', "not a whole record"),
    ],
)
def test_a_file_that_is_no_record_is_named(tmp_path, content, message):
    path = tmp_path / "lg-0.json"
    path.write_text(content)
    with pytest.raises(RecordError, match=message) as caught:
        record.read_record(path)
    assert "lg-0.json" in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(samples=()),
        dict(samples=(1.0,), missing="a reason"),
        dict(samples=(float("nan"),)),
        dict(samples=(True,)),
        dict(missing=" "),
        dict(samples=(1,), better="more"),
    ],
)
def test_a_measurement_has_samples_or_a_reason(wrong):
    with pytest.raises(ValueError, match="measurement latency"):
        flat("latency", "ms", **wrong)


def test_median_and_exact_value():
    measured = flat("latency", "ms", samples=(4.0, 1.0, 3.0, 2.0))
    assert (measured.median, measured.value) == (2.5, 2.5)
    exact = flat("macs", "MAC", samples=(MACS,))
    assert exact.value == MACS
    assert isinstance(exact.value, int)


# rounding and verdicts


def test_papers_round_one_view_before_they_multiply():
    assert verdict.printed_flops(158_687_000_000, 4, 0) == 636  # the exact total would be 634.7
    assert verdict.printed_flops(60_088_210_944, 4, 0) == 240
    assert verdict.printed_flops(4_508_000_000, 1, 1) == Decimal("4.5")
    assert verdict.printed_flops(2_500_000_000, 2, 0) == 6  # half up, not to even
    assert verdict.printed_params(48_908_064, 1) == Decimal("48.9")
    assert verdict.printed_params(27_750_000, 0) == 28


@pytest.mark.parametrize(
    ("published", "measured", "options", "expected"),
    [
        (240, Decimal(240), {}, "reproduced"),
        (21.8, Decimal("21.8"), {}, "reproduced"),
        (240, Decimal(240), dict(explanation="stage 4"), "explained"),
        (240, Decimal(236), {}, "not reproduced"),
        (240, Decimal(236), dict(explanation="stage 4"), "not reproduced"),
        (240, None, dict(model_here=False), "published only"),
        (240, Decimal(240), dict(comparable="quick mode"), "not compared (quick mode)"),
        (240, Decimal(240), dict(not_comparable="unknown rule"), "not compared (unknown rule)"),
        (240, None, dict(missing="out of memory"), "not compared (out of memory)"),
        (None, Decimal(240), {}, ""),
    ],
)
def test_verdicts(published, measured, options, expected):
    assert str(verdict.judge(published, measured, **options)) == expected


def test_counting_rules():
    counts = {"macs": MACS, "layernorm_elements": LAYERNORM, "batchnorm_elements": BATCHNORM, "mlp_macs": 7}
    counts |= {"macs_with_classifier": MACS + 5, "attention_products": 11, "linear_maps": 13}
    expected = {
        "fvcore": MACS + 5 * LAYERNORM + 2 * BATCHNORM,
        "fvcore_with_classifier": MACS + 5 + 5 * LAYERNORM + 2 * BATCHNORM,
        "multiply_adds": MACS,
        "multiply_adds_with_classifier": MACS + 5,
        "without_attention_products": MACS + 5 - 11,
        "mlps_only": 7,
        "linear_maps": 13,
    }
    assert {rule: counting.operations(rule, counts.get) for rule in counting.RULES} == expected
    assert set(counting.WORDS) == set(counting.RULES)
    assert counting.operations("fvcore", {"macs": MACS}.get) is None  # a count that it needs is not there


# reports


def test_published_and_measured_stand_side_by_side(tmp_path):
    folder = write(tmp_path / "scales", [one_record()], [DEFAULT])
    (row,) = csv_rows(folder)
    assert row["params"] == "21767360"
    assert row["macs"] == str(MACS)
    assert row["macs_by_authors_rule"] == str(MACS + 5 * LAYERNORM + 2 * BATCHNORM)
    assert (row["views"], row["published_flops_g"], row["published_params_m"]) == ("4", "240", "21.8")
    assert (row["verdict_flops"], row["verdict_params"]) == ("reproduced", "reproduced")
    assert (row["latency"], row["latency_n"], row["dtype"], row["kernel"]) == ("507.5", "4", "float32", "sdpa")
    assert (row["published_top1"], row["peak_memory"]) == ("79.5", str(700 * 2**20))
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert report.startswith("# What does it cost?\n")
    assert "| LG | 508 (n=4) | 240 | 240 (4 × 60.09), reproduced | 21.8 | 21.8 (21,767,360), reproduced |" in report
    assert (
        f"Measured on: {MACHINE}, float32, kernel sdpa, eager, batch 1, threads 2, clip 32 frames at stride 2" in report
    )
    assert "![Cost per row" in report
    assert "(cost.png)" in report


def test_a_fit_says_that_it_is_one(tmp_path):
    entry = DEFAULT | {"explanation": "stage 4 pools to (8,7,7)", "fit": True}
    folder = write(tmp_path / "scales", [one_record()], [entry])
    assert csv_rows(folder)[0]["verdict_flops"] == "explained"
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert "explained (fit) [1]" in report
    assert "1. Stage 4 pools to (8,7,7). The paper does not state this setting; it was found by searching" in report


def test_same_files_same_bytes(tmp_path):
    folder = write(tmp_path / "scales", [one_record(), one_record("ours", macs=10**10)], [DEFAULT, {"note": "ours"}])
    first = {path.name: path.read_bytes() for path in build.build(folder)}
    assert set(first) == {"cost.png", "table.csv", "table.tex", "report.md"}
    assert {path.name: path.read_bytes() for path in build.build(folder)} == first
    script = "import sys; from reports import build; build.build(sys.argv[1])"
    subprocess.run([sys.executable, "-c", script, str(folder)], check=True, cwd=Path(__file__).parents[1])
    assert {name: (folder / name).read_bytes() for name in first} == first


def test_a_missing_measurement_shows_its_reason(tmp_path):
    folder = write(tmp_path / "scales", [one_record(timed=False, latency="out of memory at batch 8")], [DEFAULT])
    row = csv_rows(folder)[0]
    assert (row["latency"], row["missing"]) == ("", "latency: out of memory at batch 8")
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert "— [1] |" in report
    assert "1. Out of memory at batch 8." in report


def test_a_case_without_record_stays_in_the_table(tmp_path):
    folder = write(tmp_path / "scales", [one_record(), one_record("later")], [DEFAULT, {}])
    (folder / f"{one_record('later').case_id}.json").unlink()
    rows = csv_rows(folder)
    assert [row["row"] for row in rows] == ["LG", "later"]
    assert rows[1]["missing"] == "not measured yet"
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert "Not measured yet: later (the command at the end measures them)." in report
    assert "| later" not in report


def test_corrupt_and_stray_records_are_listed(tmp_path):
    folder = write(tmp_path / "scales", [one_record(), one_record("other")], [DEFAULT, {}])
    damaged = folder / f"{one_record('other').case_id}.json"
    damaged.write_text(damaged.read_text()[:100])
    record.write_record(one_record("stray"), folder)
    build.build(folder)
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert "## Warnings" in report
    assert f"- {damaged.name} cannot be read as a record" in report.replace("- Other", "- other")
    assert f"{one_record('stray').case_id}.json" in report
    assert str(tmp_path) not in report


def test_rows_from_different_machines_show_the_difference(tmp_path):
    records = [one_record(), one_record("gpu", machine="Example GPU, torch 2.13.0", dtype="bfloat16")]
    folder = write(tmp_path / "scales", records, [DEFAULT, {}])
    rows = csv_rows(folder)
    assert [row["dtype"] for row in rows] == ["float32", "bfloat16"]
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert "| device | dtype |" in report
    assert "must not be compared" in report
    assert "ms per forward pass" not in report


def test_cases_that_are_not_the_papers_are_not_compared(tmp_path):
    folder = write(tmp_path / "scales", [one_record()], [DEFAULT | {"comparable": "quick mode: a small clip"}])
    assert csv_rows(folder)[0]["verdict_flops"] == "not compared (quick mode: a small clip)"
    assert "Not compared: quick mode: a small clip." in (folder / "report.md").read_text(encoding="utf-8")


def test_published_only_rows_keep_the_tables_order(tmp_path):
    manifest = dict(table="dualformer_table1", published_rows="all", figures=["accuracy_vs_flops", "cost"])
    folder = write(tmp_path / "models", [one_record("DualFormer-T")], [{"published": "DualFormer-T"}], **manifest)
    rows = csv_rows(folder)
    assert [row["row"] for row in rows] == [row.name for row in paper_table.load("dualformer_table1").rows]
    assert {row["verdict_flops"] for row in rows} == {"published only", "reproduced"}
    assert (folder / "accuracy_vs_flops.png").read_bytes().startswith(b"\x89PNG")


def test_an_ablation_without_a_table(tmp_path):
    records = [
        one_record(f"{s} · clip.frames={n}", frames=n, macs=n * 10**9) for s in ("full", "local") for n in (8, 16)
    ]
    folder = write(tmp_path / "schemes", records, table=None, figures=["scaling", "cost"])
    assert {row["macs_by_authors_rule"] for row in csv_rows(folder)} == {""}
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert "GMACs ↓, one view" in report
    assert "published" not in report.partition("## Make it again")[0].replace("no paper prints", "")
    assert (folder / "scaling.png").exists()


def test_nothing_measured_still_makes_a_report(tmp_path):
    folder = write(tmp_path / "scales", [one_record()], [DEFAULT])
    (folder / f"{one_record().case_id}.json").unlink()
    assert {path.name for path in build.build(folder)} == {"table.csv", "table.tex", "report.md"}
    assert "Nothing has been measured yet." in (folder / "report.md").read_text(encoding="utf-8")


def test_unknown_names_are_answered_with_the_nearest(tmp_path):
    with pytest.raises(paper_table.PaperTableError, match="did you mean 'dualformer_table3'"):
        paper_table.load("dualformer_tabel3")
    with pytest.raises(paper_table.PaperTableError, match=r"has no row .*did you mean '\(LL, LL, LL, LL\)'"):
        paper_table.load("dualformer_table3").row("(LL, LL, LL)")
    with pytest.raises(RecordError, match="harness.run ablation=nothing"):
        build.build(tmp_path / "nothing")


def test_the_index_lists_every_ablation(tmp_path):
    write(tmp_path / "scales", [one_record()], [DEFAULT])
    write(tmp_path / "schemes", [one_record()], table=None)
    write(tmp_path / "broken", [one_record()], table="no_such_table")
    index = build.build_index(tmp_path).read_text(encoding="utf-8")
    assert "| [scales](scales/report.md) | What does it cost? | 1 of 1 | 2 | 0 | 0 |" in index
    assert (
        "Of 2 distinct published cost figures (operations and parameters) that were tried: 2 reproduced, 0 exp" in index
    )
    assert re.search(r"print (\d+) cost figures; (\d+) of them were not attempted", index)
    assert "[All figures as one table](results.csv)" in index
    assert "[schemes](schemes/report.md)" in index
    assert "- broken: Unknown paper table 'no_such_table'" in index
    assert "[What attention costs here](cost.md)" in index


def test_a_page_of_costs_is_written_and_linked_where_something_was_timed(tmp_path, capsys):
    folder = write(tmp_path / "counted" / "scales", [one_record(timed=False)], [DEFAULT])
    assert build.main([str(folder)]) == 0
    assert not (tmp_path / "counted" / "cost.md").exists()
    assert "cost.md" not in (tmp_path / "counted" / "report.md").read_text(encoding="utf-8")
    folder = write(tmp_path / "timed" / "scales", [one_record()], [DEFAULT])
    capsys.readouterr()
    assert build.main([str(folder)]) == 0
    page = tmp_path / "timed" / "cost.md"
    assert "(scales/report.md)" in page.read_text(encoding="utf-8")
    assert "(cost.md)" in (tmp_path / "timed" / "report.md").read_text(encoding="utf-8")
    assert str(page) in capsys.readouterr().out


def test_the_command_builds_and_says_what_is_wrong(tmp_path, capsys):
    folder = write(tmp_path / "scales", [one_record()], [DEFAULT])
    assert build.main([str(folder)]) == 0
    assert build.main([str(folder), str(tmp_path / "nothing")]) == 1
    printed = capsys.readouterr()
    assert str(folder / "report.md") in printed.out
    assert "no ablation.json" in printed.err


def test_every_reader_tells_of_a_record_that_contradicts_itself(tmp_path, capsys):
    """Status 1, and the way out, from each command that reads records."""
    contradictory = one_record()
    macs = replace(contradictory.measurements["macs"], details={"closed_form": MACS - 1})
    rows = [replace(contradictory, measurements=contradictory.measurements | {"macs": macs}), one_record(row="other")]
    machine = tmp_path / "results" / "machine"
    folder = write(machine / "scales", rows, table=None)
    for program, place in ((build, folder), (cost_page, machine), (findings, machine), (stale, machine)):
        assert program.main([str(place)]) == 1, program.__name__
        assert f"macs are {MACS:,}, their closed form says {MACS - 1:,}; delete it" in capsys.readouterr().err
    assert cite.main([str(folder)]) == 2
    assert "their closed form says" in capsys.readouterr().err
    assert faster.main([str(machine.parent), "--out", str(tmp_path / "faster.json")]) == 1


# published tables


@pytest.mark.parametrize("name", paper_table.names())
def test_every_table_validates(name):
    loaded = paper_table.load(name)
    assert loaded.rows
    for column in ("flops", "params"):
        if any(row.cells.get(column) is not None for row in loaded.rows) and loaded.counting != paper_table.NOT_STATED:
            assert column in loaded.precision, f"{name} does not say to which precision {column} is printed"


BAD_TABLES = [
    ("coutning: fvcore", "did you mean 'counting'"),
    ("counting: fvcor", "did you mean 'fvcore'"),
    ("views: four", "views is 'four'"),
    ("params_count: with_clasifier", "did you mean 'with_classifier'"),
    ("precision: {flop: {decimals: 1}}", "did you mean 'flops'"),
    ("precision: {flops: {decimal: 1}}", "did you mean 'decimals'"),
]


@pytest.mark.parametrize(("line", "message"), BAD_TABLES)
def test_mistakes_in_a_table_are_named(tmp_path, line, message):
    path = tmp_path / "example.yaml"
    text = "paper: P\ntable: T\ntitle: T\nsource: S\nunits: {flops: G}\nrows:\n  - {row: a, flops: 1}\n"
    path.write_text(text)
    assert paper_table.read(path).row("a").cells == {"flops": 1}
    path.write_text(f"{text}{line}\n")
    with pytest.raises(paper_table.PaperTableError, match=message):
        paper_table.read(path)


def test_a_table_names_each_row_once(tmp_path):
    path = tmp_path / "example.yaml"
    text = "paper: P\ntable: T\ntitle: T\nsource: S\nunits: {flops: G}\nrows:\n  - {row: a, flops: 1}\n"
    path.write_text(text + "  - {row: a, flops: 2}\n")
    with pytest.raises(paper_table.PaperTableError, match="two rows are called 'a'"):
        paper_table.read(path)
    path.write_text(text.replace("flops: 1", "flops: '1'"))
    with pytest.raises(paper_table.PaperTableError, match="expected a number as printed"):
        paper_table.read(path)


NAMES = {
    ("DualFormer main paper", "text"): "dualformer_text",
    ("MultiTrain supplementary", "text"): "multitrain_text",
    **{("DualFormer main paper", f"Table {n}"): f"dualformer_table{n}" for n in range(1, 10)},
    **{("DualFormer supplementary", f"Table {n}"): f"dualformer_supplement_table{n}" for n in (1, 2)},
    **{("DualPath appendix", f"Table A{n}"): f"dualpath_table_a{n}" for n in range(1, 5)},
    **{("MultiTrain supplementary", f"Table {n}"): f"multitrain_table{n}" for n in range(1, 5)},
    ("RViT supplementary", "Table S1"): "rvit_table_s1",
}


@pytest.mark.skipif(not SPECS.exists(), reason="the collected paper tables (../shared/specs) are not in this checkout")
def test_the_tables_are_the_collected_ones():
    collected = json.loads(SPECS.read_text(encoding="utf-8"))
    by_table: dict[str, list] = {}
    for entry in collected:
        if entry["table"] == "Fig. 1":  # Table 1 plotted: its points are that table's cells
            for point in entry["columns"]["points"]:
                row = paper_table.load("dualformer_table1").row(point["method"])
                assert (row.cells["flops"], row.cells["k400_top1"]) == (point["flops_total_G"], point["k400_top1"])
            continue
        by_table.setdefault(NAMES[entry["paper"], entry["table"]], []).append(entry)
    assert set(by_table) <= set(paper_table.names())  # a table of one's own may stand beside them
    for name, entries in by_table.items():
        loaded = paper_table.load(name)
        assert [row.name for row in loaded.rows] == [entry["row"] for entry in entries]
        for row, entry in zip(loaded.rows, entries, strict=True):
            columns = {{"overall_flops": "flops"}.get(key, key): value for key, value in entry["columns"].items()}
            assert row.cells == columns, f"{name}, {row.name}"
            units = {{"overall_flops": "flops"}.get(key, key): unit for key, unit in entry["unit"].items()}
            assert {key: loaded.units[key] for key in units if "*" not in key} == {
                k: u for k, u in units.items() if "*" not in k
            }
            settings = {{"views": "test_views"}.get(key, key): value for key, value in entry["settings"].items()}
            assert row.settings == settings, f"{name}, {row.name}"


# intervals and ratios


def in_rounds(row, levels, name="latency", unit="ms", **details) -> Record:
    """A record with four samples around each level, one level per round."""
    of_row = one_record(row)
    samples = [level * share for level in levels for share in (0.99, 1.0, 1.0, 1.01)]
    facts = {"machine": MACHINE, "kernel": "sdpa", "threads": 2, "operators": ["flash"]} | details
    facts |= {"rounds": [n for n in range(1, len(levels) + 1) for _ in range(4)], "rounds_wanted": 3}
    measured = flat(name, unit, "lower", samples, details=facts)
    return replace(of_row, measurements=of_row.measurements | {name: measured})


def against_base(folder, *records):
    rows = [{"baseline": "base"} for _ in records]
    return write(folder, list(records), rows, table=None)


def test_ratios_stand_beside_the_noise_floor(tmp_path):
    drift = (1.0, 1.3, 0.9)
    levels = {"base": 100, "same": 100.5, "slow": 150, "fast": 60, "other": 200}
    records = [in_rounds(row, [level * d for d in drift]) for row, level in levels.items()]
    folder = against_base(tmp_path / "scales", *records)
    rows = {row["row"]: row for row in csv_rows(folder)}
    assert [rows[row]["latency_ratio_verdict"] for row in levels] == [
        "", "not distinguishable", "higher", "lower", "higher",
    ]  # fmt: skip
    assert float(rows["slow"]["latency_ratio"]) == pytest.approx(1.5)
    assert float(rows["slow"]["latency_ratio_low"]) < 1.5 < float(rows["slow"]["latency_ratio_high"]) < 1.55
    assert float(rows["slow"]["latency_noise_floor"]) == 0.01
    assert rows["base"]["latency_rounds"] == "3"
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert "| 1 (baseline) |" in report
    assert "latency ↓ / base: ratio (95 % interval)" in report
    assert "The interval is wider than 20% of the median" in report
    assert "| 1.50 (" in report
    assert ", not distinguishable |" in report


def test_rows_that_were_not_measured_in_turn_are_held_to_the_drift_of_the_machine(tmp_path):
    """A row that is added another day differs by 8 %: as much as the machine may by itself."""
    visits = [{"round": n, "samples": 4, "run": "monday"} for n in (1, 2, 3)]
    later = [visit | {"run": "friday"} for visit in visits]
    records = [in_rounds(row, [level] * 3, visits=visits) for row, level in (("base", 100), ("turn", 108))]
    folder = against_base(tmp_path / "scales", *records, in_rounds("later", [108] * 3, visits=later))
    rows = {row["row"]: row for row in csv_rows(folder)}
    assert rows["turn"]["latency_ratio_verdict"] == "higher"
    assert rows["later"]["latency_ratio_verdict"] == "not distinguishable"
    assert float(rows["later"]["latency_noise_floor"]) == 0.1


def test_columns_of_words_are_set_to_the_left():
    cells = [
        ("a", "1.20 (1.10–1.30)", "flash", "8 frames at stride 2"),
        ("b", "— [1]", "flash", "16 frames at stride 2"),
    ]
    columns = [(name, lambda row, i=i: row[i]) for i, name in enumerate(("row", "latency", "operator", "clip"))]
    assert text.table_lines(cells, columns).splitlines()[1] == "| --- | ---: | --- | --- |"
    assert text.table_lines([], columns).splitlines()[1] == "| --- | --- | --- | --- |"


def test_one_round_assumes_a_floor_and_a_part_of_the_rounds_is_marked(tmp_path):
    folder = against_base(tmp_path / "scales", in_rounds("base", [100]), in_rounds("x", [105]))
    report = (folder / "report.md").read_text(encoding="utf-8") if build.build(folder) else ""
    assert "no row has two rounds, so 10% is assumed of what is timed" in report
    assert "1 of 3 rounds measured so far" in report
    assert csv_rows(folder)[1]["latency_ratio_verdict"] == "not distinguishable"


def in_bytes(row, mib) -> Record:
    """A record whose two memories were sampled once."""
    of_row, details = one_record(row), {"machine": MACHINE, "kernel": "sdpa", "threads": 2}
    made = {
        name: flat(name, "bytes", "lower", (mib * 2**20,), details=details)
        for name in ("peak_memory", "training_memory")
    }
    return replace(of_row, measurements=of_row.measurements | made)


def test_memory_has_a_ratio_with_a_floor_of_its_own(tmp_path):
    sizes = {"base": 300, "third": 100, "level": 301, "above": 315}
    folder = against_base(tmp_path / "scales", *(in_bytes(row, mib) for row, mib in sizes.items()))
    rows = csv_rows(folder)
    report = (folder / "report.md").read_text(encoding="utf-8")
    for name in ("peak_memory", "training_memory"):
        told = [row[f"{name}_ratio_verdict"] for row in rows]
        assert told == ["", "lower", "not distinguishable", "higher"]  # 5 % would be too little for a latency
        assert float(rows[1][f"{name}_ratio"]) == pytest.approx(1 / 3)
        assert float(rows[1][f"{name}_noise_floor"]) == 0.01
        assert f"{name.replace('_', ' ')} ↓ / base: ratio (95 % interval)" in report
    for cells in (
        "| 100 | 0.333 | 100 | 0.333 |",
        "| 301 | 1.00, not distinguishable | 301 | 1.00, not distinguishable |",
    ):
        assert cells in report
    assert "| 315 | 1.05 | 315 | 1.05 |" in report
    assert "no row has two rounds, so 10% is assumed of what is timed and 1% of memory." in report


def test_memory_of_several_rounds_has_a_measured_floor_and_intervals(tmp_path):
    levels = {"base": [300, 301, 300], "less": [100, 101, 100]}
    records = [in_rounds(row, [mib * 2**20 for mib in of], "peak_memory", "bytes") for row, of in levels.items()]
    folder = against_base(tmp_path / "scales", *records)
    (_, less), report = csv_rows(folder), (folder / "report.md").read_text(encoding="utf-8")
    assert float(less["peak_memory_noise_floor"]) == 0.01
    assert float(less["peak_memory_ratio_low"]) < float(less["peak_memory_ratio"])
    assert "| less |" in report
    assert "| 100 (" in report
    assert "| 0.333 (" in report


def test_what_ran_differently_is_said_and_other_machines_have_no_ratio(tmp_path):
    levels = [100, 101, 100]
    other = in_rounds("kernel", levels, operators=["math"], kernel="reference")
    elsewhere = in_rounds("machine", levels, machine="Another CPU")
    folder = against_base(tmp_path / "scales", in_rounds("base", levels), other, elsewhere)
    rows = csv_rows(folder)
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert "Different things ran: kernel reference here, sdpa in the baseline; operators math here, flash in" in report
    assert "No ratio: measured with device Another CPU, the baseline with" in report
    assert rows[1]["latency_ratio"]
    assert not rows[2]["latency_ratio"]


@pytest.mark.parametrize(
    ("operator", "word"),
    [
        ("_scaled_dot_product_flash_attention_for_cpu", "flash"),
        ("_scaled_dot_product_efficient_attention", "memory-efficient"),
        ("_scaled_dot_product_cudnn_attention", "cuDNN"),
        ("_scaled_dot_product_attention_math", "math"),
        ("explicit softmax", "math (explicit softmax)"),
        ("flex_attention", "flex"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", "cuDNN"),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80", "memory-efficient"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<32, 128>>", "flash"),
        ("none", "none"),
    ],
)
def test_operators_are_named_in_the_words_of_the_field(operator, word):
    assert table.operator_words(operator) == word


def test_every_row_says_which_attention_ran(tmp_path):
    fused, plain = ["_scaled_dot_product_flash_attention_for_cpu"], ["explicit softmax"]
    levels = [100, 101, 100]
    folder = against_base(tmp_path / "alike", in_rounds("base", levels, operators=fused))
    assert [row["operators"] for row in csv_rows(folder)] == ["flash"]
    assert "kernel sdpa, attention operator flash, eager" in (folder / "report.md").read_text(encoding="utf-8")
    records = [in_rounds("base", levels, operators=fused), in_rounds("slow", levels, operators=plain)]
    folder = against_base(tmp_path / "differ", *records)
    assert [row["operators"] for row in csv_rows(folder)] == ["flash", "math (explicit softmax)"]
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert "| attention operator |" in report
    assert "The rows differ in attention operator: see those columns." in report
    assert "Different things ran: operators math (explicit softmax) here, flash in the baseline" in report


def test_a_row_whose_measurements_ran_different_operators_names_each():
    of_row = in_rounds("x", [100], operators=["_scaled_dot_product_flash_attention"])
    training = in_rounds("x", [300], "training_latency", operators=["explicit softmax"])
    both = replace(of_row, measurements=of_row.measurements | {"training_latency": training.get("training_latency")})
    assert table.facts(both)["operators"] == "flash (latency); math (explicit softmax) (training step)"


def test_what_ran_no_attention_names_no_kernel():
    of_row = one_record()
    ceiling = flat("matmul_ceiling", "MAC/s", "higher", (4e10,), details={"machine": MACHINE, "kernel": None})
    assert table.facts(replace(of_row, measurements={"matmul_ceiling": ceiling})).get("kernel") is None
    assert (
        table.facts(replace(of_row, measurements=of_row.measurements | {"matmul_ceiling": ceiling}))["kernel"] == "sdpa"
    )


def test_a_time_that_had_not_settled_has_a_footnote(tmp_path):
    records = [in_rounds("base", [100] * 3, settled=True), in_rounds("cold", [100] * 3, settled=False)]
    folder = against_base(tmp_path / "scales", *records)
    build.build(folder)
    lines = (folder / "report.md").read_text(encoding="utf-8").splitlines()
    (number,) = [line.partition(".")[0] for line in lines if "had not settled" in line]
    marked = {row: f"[{number}]" in next(ln for ln in lines if ln.startswith(f"| {row} ")) for row in ("base", "cold")}
    assert marked == {"base": False, "cold": True}


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_a_time_that_is_the_hosts_has_a_footnote(tmp_path, share):
    folder = against_base(
        tmp_path / "scales", *(in_rounds(row, [100] * 3, launch_share=share) for row in ("base", "x"))
    )
    build.build(folder)
    assert ("host was busy launching" in (folder / "report.md").read_text(encoding="utf-8")) == (share == 0.95)


def test_wide_intervals_are_marked_wherever_they_stand(tmp_path):
    records = []
    for row, levels in (("base", [100, 100, 100]), ("rough", [100, 200, 300])):
        of_row = in_rounds(row, levels)
        memory = in_rounds(row, levels, "peak_memory", "bytes").get("peak_memory")
        records.append(replace(of_row, measurements=of_row.measurements | {"peak_memory": memory}))
    folder = against_base(tmp_path / "scales", *records)
    build.build(folder)
    lines = (folder / "report.md").read_text(encoding="utf-8").splitlines()
    (number,) = [line.partition(".")[0] for line in lines if "The interval is wider than 20% of the median" in line]
    head, base, rough = ([ln for ln in lines if ln.startswith(f"| {row} |")][0] for row in ("row", "base", "rough"))
    shown = dict(zip(head.split(" | "), zip(base.split(" | "), rough.split(" | "), strict=True), strict=True))
    spreads = {heading: cells for heading, cells in shown.items() if heading.startswith(("latency", "peak memory"))}
    assert len(spreads) == 4  # each with its ratio
    for base, rough in spreads.values():
        assert f"[{number}]" not in base
        assert f"[{number}]" in rough


@pytest.mark.parametrize(("name", "detail"), [("latency", "finite_logits"), ("training_latency", "finite_loss")])
@pytest.mark.parametrize("finite", [True, False])
def test_values_that_are_not_finite_have_a_footnote(tmp_path, name, detail, finite):
    folder = against_base(tmp_path / "scales", in_rounds("base", [100] * 3, name, **{detail: finite}))
    build.build(folder)
    footnote = f"The {'outputs were' if name == 'latency' else 'loss was'} not finite (nan or infinity): the cost of"
    assert (footnote in (folder / "report.md").read_text(encoding="utf-8")) != finite


def test_how_often_an_interval_holds_the_truth_is_said_and_what_one_round_cannot_say(tmp_path):
    for rounds in (1, 3):
        folder = against_base(tmp_path / str(rounds), *(in_rounds(row, [100] * rounds) for row in ("base", "x")))
        build.build(folder)
        report = (folder / "report.md").read_text(encoding="utf-8")
        assert f"such an interval holds the true median {statistics.HOLDS} (simulated)" in report
        assert ("What has one round in a table without rows of two has no interval" in report) == (rounds == 1)
        assert ("(n=4)" in report) == (rounds == 1)


def test_how_ratios_are_made_is_said_once(tmp_path):
    records = []
    for row, level in (("base", 100), ("heavy", 300)):
        of_row = in_rounds(row, [level] * 3)
        training = in_rounds(row, [3 * level], "training_latency").get("training_latency")
        records.append(replace(of_row, measurements=of_row.measurements | {"training_latency": training}))
    folder = against_base(tmp_path / "scales", *records)
    report = (folder / "report.md").read_text(encoding="utf-8") if build.build(folder) else ""
    assert report.count("Ratios are medians over the rounds") == 1
    assert "Noise floor (A/A): latency 1.0%: " in report
    assert "no row has two rounds, so 10% is assumed of what is timed" in report


def test_rows_left_out_are_a_sentence_and_the_command_measures_them(tmp_path):
    records = [one_record(), *(one_record(f"later {n}") for n in range(8))]
    for arguments in (["ablation=x"], ["ablation=x", "rows=[LG]", "rounds=1", "force=true"]):
        folder = write(tmp_path / str(len(arguments)), records, [DEFAULT, *([{}] * 8)], arguments=arguments)
        for of_row in records[1:]:
            (folder / f"{of_row.case_id}.json").unlink()
        report = markdown.report(table.load(folder), {})
        assert "Not measured yet: 8 rows (the command at the end measures them)." in report
        assert "python -m harness.run ablation=x 'metrics=[params,macs]'  # measures" in report
        assert report.count("later") == 0


def test_the_command_at_the_end_names_the_folder_from_a_clone(tmp_path):
    folder = write(tmp_path / "results" / "a-machine" / "scales", [one_record()], [DEFAULT], arguments=["ablation=x"])
    report = markdown.report(table.load(folder), {})
    assert "python -m reports.build results/a-machine/scales " in report
    assert " out=results/a-machine " in report
    assert "Rebuild: `python -m reports.build results/a-machine`" in build.build_index(folder.parent).read_text("utf-8")


def test_the_answer_stands_first_with_the_figure_that_decides(tmp_path):
    levels = {"base": 100, "slow": 150, "fast": 60}
    records = [in_rounds(row, [level] * 3) for row, level in levels.items()]
    folder = against_base(tmp_path / "scales", *records)
    answer = markdown.report(table.load(folder), {"cost.png": "Costs"}).split("\n\n")
    first_line = "- Latency: 60.0 ms (fast) to 150 ms (slow); fast needs 0.600 (0."
    assert answer[1].startswith(first_line)
    assert answer[1].endswith(" times as much as base, and all 2 rows can be told from base.")
    assert answer[2].startswith("Measured on: ")
    assert answer[3].startswith("In all rows: GMACs ↓, one view: 59.860; params ↓, M: 21.767;")
    assert answer[4].startswith("| row | latency ↓, ms: median")
    assert answer[5] == "![Costs](cost.png)"
    level = against_base(tmp_path / "level", in_rounds("base", [100] * 3), in_rounds("same", [100.5] * 3))
    assert "; no row can be told from base beyond noise." in markdown.report(table.load(level), {})


def test_what_visits_say_beside_their_median_stands_in_the_details(tmp_path):
    parts = {"forward": 30.0, "backward": 60.0}
    records = [
        in_rounds(row, [100] * 3, "training_latency", parts_ms=parts, compile_seconds=12.5, reserved_bytes=2**30)
        for row in ("base", "x")
    ]
    folder = against_base(tmp_path / "scales", *records)
    shared = markdown.report(table.load(folder), {}).partition("### How the runs spread")[2].split("\n\n")[1]
    assert "training step, p50, ms: 100; training step, p90, ms: 101; training step, p99, ms: 101;" in shared
    assert "training step: forward, ms: 30.0; training step: backward, ms: 60.0;" in shared
    assert "training step: compilation, s: 12.5; training step: reserved, MiB: 1024" in shared


def test_what_else_was_timed_stands_in_the_details(tmp_path):
    records = []
    for row, level in (("base", 300), ("heavy", 900)):
        of_row = in_rounds(row, [level] * 3, "training_latency")
        others = [flat(f"made_up_{n}", "s", "lower", (level,)) for n in range(3)]
        records.append(replace(of_row, measurements={m.name: m for m in (*others, *of_row.measurements.values())}))
    folder = against_base(tmp_path / "scales", *records)
    rows = csv_rows(folder)
    assert float(rows[1]["training_latency"]) == 900
    assert float(rows[1]["training_latency_ratio"]) == pytest.approx(3)
    report = (folder / "report.md").read_text(encoding="utf-8")
    details = report.partition("## Details")[2]
    assert "| training step ↓, ms | training step ↓ / base: ratio (95 % interval) |" in details
    assert " | 900 (" in details
    assert not [line for line in report.splitlines() if line.count(" | ") > 6]


def test_one_long_table_has_a_line_for_each_row_and_measurement(tmp_path):
    records = [in_rounds("base", [100] * 3), in_rounds("slow", [150] * 3)]
    write(tmp_path / "scales", records, [{"baseline": "base"} | DEFAULT, {"baseline": "base"}])
    build.build_index(tmp_path)
    lines = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text(encoding="utf-8"))))
    assert tuple(lines[0]) == data.LONG
    page = (Path(__file__).parents[1] / "docs" / "measuring.md").read_text(encoding="utf-8")
    rows = page.partition("| columns of `results.csv` |")[2].partition("\n\n")[0].splitlines()[2:]
    assert tuple(name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])) == data.LONG
    assert f"now {data.SCHEMA} |" in rows[0]
    assert {line["schema"] for line in lines} == {str(data.SCHEMA)}
    assert len(lines) == sum(len(of_row.measurements) for of_row in records)
    by_cell = {(line["row"], line["measurement"]): line for line in lines}
    slow, macs = by_cell["slow", "latency"], by_cell["base", "macs"]
    assert (slow["value"], slow["unit"], slow["samples"], slow["visits"]) == ("150.0", "ms", "12", "3")
    assert (float(slow["ratio"]), slow["verdict"], slow["baseline"]) == (1.5, "higher", "base")
    assert float(slow["low"]) <= 150 <= float(slow["high"])
    assert (macs["value"], macs["published"], macs["published_verdict"]) == (str(MACS), "240", "reproduced")


def test_a_model_of_several_tables_is_counted_once(tmp_path):
    for name in ("one", "two"):
        write(tmp_path / name, [one_record()], [DEFAULT])
    loaded = [table.load(tmp_path / name) for name in ("one", "two")]
    assert list(index.distinct(loaded).values()) == ["reproduced"] * 2
    other = write(tmp_path / "three", [one_record(frames=16)], [DEFAULT])
    assert len(index.distinct([*loaded, table.load(other)])) == 4


def test_the_command_that_makes_a_report_again_keeps_what_the_run_was_given(tmp_path):
    words = ["ablation=pyramid_scales", "metrics=[macs]", "clip.frames=16", "batch_size=8"]
    record.write_manifest({"name": "pyramid_scales", "question": "?", "rows": [], "arguments": words}, tmp_path)
    again = markdown.report(table.load(tmp_path), {})
    assert "python -m harness.run ablation=pyramid_scales clip.frames=16 batch_size=8" in again
