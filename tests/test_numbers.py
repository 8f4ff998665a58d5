"""Every number says what it is: a new metric, a new published column, an old record appear everywhere by themselves."""

import csv
import io
import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from rich.console import Console
from test_reports import DEFAULT, one_record, write

from records import record, visits
from records.record import KINDS, Quantity, RecordError, Visit
from reports import build, compare, console, data, markdown, paper_table, table

ROOT = Path(__file__).parents[1]
RECORDED = sorted(path for path in (ROOT / "results").rglob("*.json") if '"measurements"' in path.read_text("utf-8"))
JOULES = Quantity("made_up_joules", "timed", "energy of a made-up kind", "J", "lower")
BITS = Quantity("made_up_bits", "counted", "bits of a made-up kind", "bits", "lower")
HEADS = Quantity("made_up_heads", "sized", "heads that fit", "heads", "higher")


def with_new_metrics(folder: Path, scale: float = 1.0) -> Path:
    """Two rows of three rounds with three quantities that nothing but their own file knows."""
    records = []
    for row, level in (("base", 100.0), ("other", 200.0)):
        of_row = one_record(row)
        joules = None
        for number, share in enumerate((0.99, 1.0, 1.01), start=1):
            new = JOULES.of([scale * level * share, scale * level * share], {"machine": "m", "kernel": "sdpa"})
            source = {"commit": "c0ffee", "dirty": False, "cpu_generation": None, "run": "monday"}
            joules = visits.joined(joules, visits.stamped(new, source, "today"), number, 3)
        made = (joules, BITS.of([int(level)]), HEADS.of([7], {"machine": "m"}))
        records.append(replace(of_row, measurements=of_row.measurements | {m.name: m for m in made}))
    return write(folder / "scales", records, [{"baseline": "base"}] * 2, table=None)


def test_a_new_metric_stands_in_markdown_csv_latex_terminal_and_comparison(tmp_path):
    folder = with_new_metrics(tmp_path / "a")
    build.build(folder)
    report = (folder / "report.md").read_text("utf-8")
    for title in ("energy of a made-up kind ↓, J", "bits of a made-up kind ↓, bits", "heads that fit ↑, heads"):
        assert title in report
    assert "energy of a made-up kind ↓ / base: ratio (95 % interval)" in report
    base, other = csv.DictReader(io.StringIO((folder / "table.csv").read_text("utf-8")))
    assert (other["made_up_joules"], other["made_up_joules_rounds"], other["made_up_bits"]) == ("200.0", "3", "200")
    assert (base["made_up_joules_ratio_verdict"], other["made_up_joules_ratio_verdict"]) == ("", "higher")
    shown = Console(width=400, record=True, file=io.StringIO())
    shown.print(console.results(folder, [row["case_id"] for row in record.read_manifest(folder)["rows"]]))
    text = shown.export_text()
    assert all(title in text for title in ("energy of a made-up kind", "bits of a made-up kind", "heads that fit"))
    comparison = compare.compare(*map(compare.load, (folder, with_new_metrics(tmp_path / "b", 2.0))))
    assert {line.verdict for line in comparison.timings if line.name == "made_up_joules"} == {"higher"}
    assert "made_up_joules" in comparison.floors


def test_a_new_budget_has_a_column_and_a_section_of_its_own(tmp_path):
    quantity = Quantity("top1_overnight", "scored", "top-1, overnight on my_clips", "percent", "higher")
    details = {"budget": "overnight", "data": "my_clips", "built_in": False, "videos": 400, "frames": 8, "size": 64}
    records = []
    for row, level in (("base", 70.0), ("other", 80.0)):
        of_row, tops = one_record(row), (level, level + 1, level + 2)
        seeds = tuple(Visit((top,), details={"seed": seed}) for seed, top in enumerate(tops))
        measured = replace(quantity.of([0], details), visits=seeds)
        records.append(replace(of_row, measurements=of_row.measurements | {measured.name: measured}))
    folder = write(tmp_path / "scales", records, [{"baseline": "base"}] * 2, table=None)
    build.build(folder)
    report = (folder / "report.md").read_text("utf-8")
    assert "top-1 ↑, %, measured, overnight: mean (95 % interval) [" in report
    assert "Measured here on my_clips, overnight, 8x64x64, 3 seeds." in report
    assert "### On my_clips, overnight" in report
    assert "| other | +10.0 (" in report
    _, other = csv.DictReader(io.StringIO((folder / "table.csv").read_text("utf-8")))
    assert other["top1_overnight"] == "81.0"


def test_latex_has_rules_and_no_letter_that_stops_it(tmp_path):
    folder = write(tmp_path / "scales", [one_record()], [DEFAULT | {"note": "50 % & more_so"}])
    build.build(folder)
    write(tmp_path / "more_so", [one_record(), one_record("LG2", macs=2 * 10**9)], [{"note": "first"}, {}], table=None)
    build.build_index(tmp_path)
    pages = {"scales/table.tex": "scales/report.md", "table.tex": "report.md", "cost.tex": "cost.md"}
    pages = {name: [(tmp_path / path).read_text("utf-8") for path in (name, page)] for name, page in pages.items()}
    for tex, page in pages.values():
        assert tex.count("\\toprule") == tex.count("\\bottomrule") == len(re.findall(r"^\| -", page, re.M)) > 0
        assert not set("↓↑×–—−") & set(tex)
        for tabular in tex.split(r"\end{tabular}")[:-1]:
            lines = [line for line in tabular.splitlines() if line.endswith(r"\\")]
            assert len({line.count(" & ") for line in lines}) == 1
            assert lines[0].count(" & ") < 7
    tex = pages["scales/table.tex"][0]
    assert "% How the runs spread\n\\begin{tabular}" in tex, "every table of the page, below its heading"
    assert r"50 \% \& more\_so" in tex
    assert r"more\_so & What does it cost?" in pages["table.tex"][0]
    noted = [re.findall(r" \[(\d+)\]", part) for part in pages["cost.tex"][0].split(r"\end{tabular}")]
    assert noted == [["1"], ["1", "1"], ["1"]], "below the table of its own section"


def test_a_new_column_of_a_published_table_stands_beside_the_others(tmp_path, monkeypatch):
    path = tmp_path / "tables" / "mine.yaml"
    path.parent.mkdir()
    path.write_text(
        "paper: P\ntable: T\ntitle: T\nsource: S\nunits: {params: M, ssv2_top1: '%', k400_clips_per_s: clips/s}\n"
        "rows:\n  - {row: a, params: 21.8, ssv2_top1: 61.3, k400_clips_per_s: 12.5}\n"
    )
    monkeypatch.setattr(paper_table, "FOLDER", path.parent)
    folder = write(tmp_path / "scales", [one_record()], [{"published": "a"}], table="mine")
    build.build(folder)
    report = (folder / "report.md").read_text("utf-8")
    assert "| SSV2 top-1 ↑, %, published | K400 clips per s, clips/s, published |" in report
    assert "| 61.3 | 12.5 |" in report
    (row,) = csv.DictReader(io.StringIO((folder / "table.csv").read_text("utf-8")))
    assert row["published_ssv2_top1"] == "61.3"


def test_a_kind_that_nobody_knows_is_named_with_its_file(tmp_path):
    path = record.write_record(one_record(), tmp_path)
    path.write_text(path.read_text("utf-8").replace('"kind": "counted"', '"kind": "guessed"', 1))
    with pytest.raises(RecordError, match=f"kind is 'guessed'; allowed: {', '.join(KINDS)}") as caught:
        record.read_record(path)
    assert path.name in str(caught.value)


def test_one_broken_table_keeps_no_other_from_its_report(tmp_path, capsys, monkeypatch):
    first, second, third = (write(tmp_path / name, [one_record()], [DEFAULT]) for name in ("a", "b", "c"))
    record.write_manifest({"name": "a", "question": "?", "rows": [], "table": "no_such_table"}, first)
    real = markdown.report
    monkeypatch.setattr(markdown, "report", lambda rows, _: 1 / 0 if rows.name == "b" else real(rows, {}))
    assert build.main([str(tmp_path)]) == 1
    assert (third / "report.md").is_file()
    told = capsys.readouterr().err
    assert "unknown paper table 'no_such_table'" in told
    assert f"{second}: ZeroDivisionError" in told
    assert "2 of 3 reports failed: a, b" in told


# records of schema 1


@pytest.mark.skipif(not RECORDED, reason="no records in this checkout")
def test_recorded_runs_hold_the_same_samples_when_they_are_written_anew(tmp_path):
    for path in RECORDED:
        raw, read = json.loads(path.read_text("utf-8")), record.read_record(path)
        for name, measured in read.measurements.items():
            old = raw["measurements"][name]
            assert measured.kind in KINDS
            assert measured.title
            assert list(measured.samples) == old.get("samples", list(measured.samples))
            assert measured.missing == old["missing"]
        again = record.read_record(record.write_record(read, tmp_path))
        assert again == read
        assert json.loads((tmp_path / f"{read.case_id}.json").read_text("utf-8"))["schema"] == record.SCHEMA


def test_an_old_record_without_names_for_its_runs_is_of_one_run(tmp_path):
    old = asdict(one_record()) | {"schema": 1}
    samples = {"samples": [1.0, 2.0, 3.0], "details": {"rounds": [1, 2, 2], "visits": [{"round": 1}, {"round": 2}]}}
    base = {"name": "latency", "unit": "ms", "better": "lower", "missing": None, "retry": False}
    old["measurements"] = {"latency": base | samples}
    path = tmp_path / f"{old['case_id']}.json"
    path.write_text(json.dumps(old))
    read_visits = record.read_record(path).get("latency").visits
    assert [(visit.round, visit.samples) for visit in read_visits] == [(1, (1.0,)), (2, (2.0, 3.0))]
    assert len({visit.run for visit in read_visits}) == 1
    assert read_visits[0].run is not None


# what may be shared


def test_nothing_that_is_written_holds_a_path_of_this_machine(tmp_path):
    """Of a report's every file, its input included: where it lies, in which home, in which temporary folder."""
    folder = with_new_metrics(tmp_path / "a")
    build.build(folder)
    build.build_index(folder.parent)
    comparison = compare.compare(*map(compare.load, (folder, folder)))
    (tmp_path / "a" / "compare.md").write_text(compare.markdown(comparison, "A", "B"), "utf-8")
    texts = [path for path in (tmp_path / "a").rglob("*") if path.suffix in (".json", ".md", ".csv", ".tex")]
    assert len(texts) >= 7
    texts += [path for path in (ROOT / "results").rglob("*") if path.suffix in (".json", ".md", ".csv", ".tex")]
    own = [str(tmp_path), str(ROOT), str(Path.home()) + "/"]
    absolute = re.compile(r"(?<![\w.:/])/(?:tmp|home|root|usr|var|work|mnt|opt|Users)/")
    for path in texts:
        text = path.read_text("utf-8")
        assert not any(place in text for place in own), path
        assert not absolute.search(text), path


def test_visits_keep_what_only_they_have():
    latency = Quantity("latency", "timed", "latency", "ms", "lower")
    first = visits.joined(None, latency.of([1.0], {"kernel": "sdpa", "warm_up": 3}), 1, 2)
    both = visits.joined(first, latency.of([2.0], {"kernel": "flex", "warm_up": 3}), 2, 2)
    assert both.visits == (
        Visit((1.0,), 1, None, {"kernel": "sdpa", "warm_up": 3}),
        Visit((2.0,), 2, None, {"kernel": "flex", "warm_up": 3}),
    )
    assert both.details == {}
    assert both.said("kernel") == ["sdpa", "flex"]


def test_a_report_of_schema_2_is_that_of_schema_1(tmp_path):
    """The same folder, read as it is and after every record was written anew."""
    source = next((path.parent for path in RECORDED if path.parent.name == "block_composition"), None)
    if source is None:
        pytest.skip("no records in this checkout")
    shutil.copytree(source, tmp_path / "a" / source.name)
    shutil.copytree(source, tmp_path / "b" / source.name)
    for path in record.record_paths(tmp_path / "b" / source.name):
        record.write_record(record.read_record(path), path.parent)
    texts = [data.csv(table.load(tmp_path / side / source.name)) for side in "ab"]
    assert texts[0] == texts[1]
