"""From a question to records: rows become cases, runs resume, merge, survive being killed, and report what they did."""

import dataclasses
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import attention_zoo
from harness import measuring, plan, run, store, sweep
from harness.call import Call
from harness.cost import metrics
from harness.spec import case, names
from harness.spec.case import Settings
from harness.spec.options import parse, written
from harness.spec.reader import UsageError
from records import provenance
from records.record import read_manifest, read_record, read_records
from reports import build

ROOT = Path(__file__).parents[1]
TINY = {"widths": [12, 24, 48, 96], "num_heads": [1, 2, 4, 8], "depths": [2, 2, 2, 2]}
CLIP = {"frames": 4, "size": 32}


def ablation(rows=("one", "two", "three"), **fields):
    parsed = [
        case.Row(name, model="dualformer_tiny", changes={**TINY, "mlp_ratio": 2 + i}, clip=CLIP)
        for i, name in enumerate(rows)
    ]
    return case.Ablation("trial", "Does it run?", parsed, **fields)


def raw(**fields):
    return {"name": "mine", "question": "?", "model": "dualformer_tiny", "rows": [{"row": "a"}]} | fields


class Meter:
    """Stands in for `measure`: notes what it is asked, and whether two timed calls ever run at once."""

    def __init__(self, monkeypatch, answer=None, seconds=0.0):
        self.asked, self.answer, self.seconds = [], answer or {}, seconds
        self.running, self.most = 0, 0
        monkeypatch.setattr(sweep, "measure", self)

    def __call__(self, measured_case, names, clip, *, effort, time_limit, deadline=None, round=1):
        timed = any(metrics.get(name).timed for name in names)
        self.running += timed
        self.most = max(self.most, self.running)
        time.sleep(self.seconds if timed else 0)
        self.asked.append((measured_case.row, tuple(names)))
        measured = []
        for name in names:
            known = self.answer.get((measured_case.row, name)) or self.answer.get(name)
            if isinstance(known, BaseException):
                self.running -= timed
                raise known
            details = {"machine": provenance.machine(measured_case.device)} if timed else {}
            for quantity in metrics.get(name).measures.values():
                if known:
                    measured.append(quantity.absent(known["missing"], retry=known["retry"], details=details))
                else:
                    measured.append(quantity.of([1], details))
        self.running -= timed
        return measured


def go(out, names=("params", "latency"), rows=("one", "two", "three"), settings=None, **options):
    options = {"rounds": 1} | options
    return measuring.run(Call([ablation(rows)], settings or Settings(threads=1), list(names), out, **options))


# rows become cases


@pytest.mark.parametrize("name", case.names())
def test_a_shipped_ablation_resolves(name):
    direct = case.load(name)
    assert direct.question.endswith("?")
    for quick in (False, True):
        entries = case.resolve(direct, Settings(quick=quick, threads=1))
        identifiers = [case.case_id(entry.case) for entry in entries]
        assert len(set(identifiers)) == len(entries) >= len(direct.rows)
        for entry in entries:
            assert json.loads(json.dumps(entry.case.to_dict())) == entry.case.to_dict()
            assert case.Case.from_dict(entry.case.to_dict()) == entry.case
    assert all(name in metrics.names() for name in direct.metrics)


def test_axes_multiply_rows_and_the_command_line_fixes_them():
    varied = ablation(["a", "b"], vary={"clip.frames": [2, 4], "position": ["none", "peg"]})
    entries = case.resolve(varied, Settings(threads=1))
    assert [e.case.row for e in entries][:3] == [
        "a · clip.frames=2 · position=none",
        "a · clip.frames=2 · position=peg",
        "a · clip.frames=4 · position=none",
    ]
    assert len(entries) == 8
    assert entries[0].case.config["clip"] == [2, 32, 32]
    assert entries[0].case.config["position"] == "none"
    assert "axis of this ablation" in entries[0].comparable
    fixed = case.resolve(varied, Settings(frames=6, threads=1))
    assert len(fixed) == 4
    assert {e.case.clip.frames for e in fixed} == {6}


@pytest.mark.parametrize(
    "fields, chosen, wide",
    [
        ({"baseline": "b"}, None, "b"),
        ({"baseline": "kernel=reference"}, None, "c"),
        ({"baseline": "b"}, ["c", "a"], "a"),
    ],
    ids=["baseline", "last", "named"],
)
def test_quick_mode_tries_each_row_and_each_value_of_an_axis_once(fields, chosen, wide):
    axes = {"kernel": ["reference", "sdpa", "flex"], "dtype": ["float32", "bfloat16"]}
    varied = ablation(["a", "b", "c"], vary=axes, **fields)
    varied.chosen = chosen
    entries = case.resolve(varied, Settings(quick=True, threads=1))
    points = {row: [] for row in "abc"}
    for entry in entries:
        points[entry.row.row].append((entry.case.kernel, entry.case.dtype))
    first = ("reference", "float32")
    every = [first, ("reference", "bfloat16"), ("sdpa", "float32"), ("flex", "float32")]
    assert points == {row: every if row == wide else [first] for row in "abc"}
    assert {entry.baseline for entry in entries} <= {None, *(entry.case.row for entry in entries)}


def test_a_run_s_settings_reach_every_case_and_end_the_comparison():
    entry = case.resolve(ablation(), Settings(batch_size=3, dtype="bfloat16", kernel="reference", threads=2))[0]
    chosen = entry.case
    assert (chosen.batch_size, chosen.dtype, chosen.kernel, chosen.threads) == (3, "bfloat16", "reference", 2)
    assert entry.comparable is True
    changed = case.resolve(ablation(), Settings(size=64, model={"position": "none"}, threads=1))[0]
    assert changed.comparable == "clip.size=64, model.position=none set on the command line"
    assert changed.case.config["clip"] == [4, 64, 64]
    assert "quick" in case.resolve(ablation(), Settings(quick=True, threads=1))[0].comparable


@pytest.mark.parametrize(
    "axis, values",
    [
        ("clip", [{"frames": 32, "size": 224}, {"frames": 32, "size": 230}, {"frames": 8, "size": 448}]),
        ("clip.frames", [8, 16, 32]),
        ("clip.size", [32, 64, 96]),
    ],
)
@pytest.mark.parametrize("baseline", ["a", None])
def test_rows_are_named_after_the_clip_that_is_run(axis, values, baseline):
    rows = [case.Row(name, model="dualformer_tiny") for name in "ab"]
    varied = case.Ablation("trial", "?", rows, vary={axis: values}, baseline=baseline or case._point(axis, values[0]))
    for quick in (False, True):
        entries = case.resolve(varied, Settings(quick=quick, threads=1))
        names = [entry.case.row for entry in entries]
        assert len(set(names)) == len(names)
        assert {entry.baseline for entry in entries} <= set(names)
        for entry in entries:
            for name, value in re.findall(r"clip\.(\w+)=(\d+)", entry.case.row):
                assert getattr(entry.case.clip, name) == int(value), entry.case.row
    # In quick mode: one row has every small clip, and clips that are alike when small are one.
    assert len(entries) == {"clip": 3, "clip.frames": 4, "clip.size": 2}[axis]


def test_images_stay_single_frames():
    images = case.Ablation("trial", "?", [case.Row("image", model="dualformer_tiny_image", num_classes=1000)])
    for settings in (Settings(frames=8), Settings(quick=True), Settings()):
        chosen = case.resolve(images, settings)[0].case
        assert chosen.clip.frames == chosen.config["clip"][0] == 1
        assert chosen.num_classes == 1000


def test_a_case_is_named_by_all_that_defines_it_but_no_folder():
    def name(**settings):
        return case.case_id(case.resolve(ablation(), Settings(threads=1, **settings))[0].case)

    plain = name()
    assert plain == name()
    assert plain.startswith("one-")
    named = dict(path="/secret/place/film.mp4", digest="aa")
    different = [dict(seed=1), dict(dtype="float16"), dict(batch_size=2), named, named | {"digest": "bb"}]
    assert len({plain, *(name(**settings) for settings in different)}) == 6
    assert name(**named) == name(**named | {"path": "/elsewhere/film.mp4"})


@pytest.mark.parametrize(
    "bad,message",
    [
        (raw(rows=[]), "at least one row"),
        (raw(rows=[{"model": "x"}]), "mine.yaml, row 1: row is missing"),
        (raw(rows=[{"row": "a"}, {"row": "a"}]), "two rows are called 'a'"),
        (raw(rows=[{"row": "a", "modle": "x"}]), "row 'a': unknown entry 'modle'; did you mean 'model'"),
        (raw(rows=[{"row": "a", "fit": "yes"}]), "row 'a': fit is 'yes', not true or false"),
        (raw(rows=[{"row": "a", "clip": {"frame": 3}}]), "row 'a': unknown entry clip.frame; did you mean 'frames'"),
        (raw(rows=[{"row": "a", "clip": {"frames": 0}}]), "row 'a': clip.frames is 0, not a whole number from 1"),
        (raw(rows=[{"row": "a", "clip": {"frames": "8"}}]), "row 'a': clip.frames is '8', not a whole number from 1"),
        (raw(rows=[{"row": "a", "published": "LL"}]), "row 'a': published is said, but the ablation names no table"),
        (raw(rows=[{"row": "a", "training": {"ordr": "single"}}]), "unknown entry training.ordr; did you mean 'order'"),
        (
            raw(rows=[{"row": "a", "training": {"order": "singl"}}]),
            "training.order=singl: unknown; did you mean 'single'",
        ),
        (raw(rows=[{"row": "a", "training": {"recipe.testing.clip": 3}}]), "did you mean 'clips'"),
        (raw(rows=[{"row": "a", "recipe": "quikc"}]), "recipe: unknown recipe 'quikc'; did you mean 'quick'"),
        (raw(question=None), "question is None, not a text"),
        (
            raw(rows=[{"row": "a", "training": {"checkpoint": "nowhere/w.pth"}}]),
            "mine.yaml, row 'a': training.checkpoint: there is no checkpoint nowhere/w.pth (nor a folder nowhere)",
        ),
        (
            raw(rows=[{"row": "a", "training": {"checkpoint": str(Path(__file__).parent)}}]),
            "tests is a folder; give the checkpoint file in it",
        ),
        (raw(qestion="?"), "unknown entry 'qestion'; did you mean 'question'"),
        (raw(chosen=["a"]), "unknown entry 'chosen'; allowed: accuracy, baseline, figures, further, in_all, metrics"),
        (raw(model=None), "names no model"),
        (raw(published_rows="some"), "allowed: all, listed"),
        (raw(vary={"clip.frames": 8}), "vary.clip.frames is 8, not a list"),
        (raw(vary={"dtype": ["float23"]}), "did you mean 'float32'"),
        (raw(vary={"kernel": ["spda"]}), "did you mean 'sdpa'"),
        (raw(vary={"device": ["tpu"]}), "unknown device 'tpu'"),
        (raw(vary={"batch_size": [0]}), "vary.batch_size: 0 is not a whole number from 1"),
        (raw(name="other"), "must be the file's name"),
        (raw(accuracy="quik"), "accuracy: unknown budget 'quik'; did you mean 'quick'"),
        (raw(metrics=["latencey"]), "metrics: unknown metric 'latencey'; did you mean 'latency'"),
        (raw(figures=["costt"]), "figures: unknown figure 'costt'; did you mean 'cost'"),
        (raw(table="dualformer_tabel3"), "unknown table 'dualformer_tabel3'; did you mean 'dualformer_table3'"),
        (
            raw(table="dualformer_table3", rows=[{"row": "a", "published": "(LGG)"}]),
            "mine.yaml, row 'a': published is '(LGG)', no row of dualformer_table3; allowed: (GG",
        ),
        ({"question": "?", "model": "m", "rows": [{"row": "a"}]}, "mine.yaml: name is missing"),
        ("rows", "mine.yaml is not entries"),
    ],
)
def test_a_wrong_ablation_file_is_named_with_its_row(bad, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        case.from_dict(bad, "mine.yaml")


@pytest.mark.parametrize(
    "row,message",
    [
        (case.Row("r", model="dualformer_tinny"), "did you mean 'dualformer_tiny'"),
        (case.Row("r", model="dualformer_tiny", changes={"positon": "peg"}), "did you mean 'position'"),
        (case.Row("r", model="dualformer_tiny", changes={"position": "pegs"}), "did you mean 'peg'"),
    ],
)
def test_a_row_that_cannot_be_is_named(row, message):
    with pytest.raises(UsageError, match=r"ablation trial, row 'r': .*" + re.escape(message)):
        case.resolve(case.Ablation("trial", "?", [row]), Settings())


# records


def test_a_run_leaves_records_manifest_and_report(tmp_path):
    """Unmocked: real counts of real cases."""
    assert go(tmp_path, ["params", "macs"]) == 0
    folder = tmp_path / "trial"
    manifest = read_manifest(folder)
    assert [row["row"] for row in manifest["rows"]] == ["one", "two", "three"]
    assert manifest["metrics"] == ["params", "macs"]
    for row in manifest["rows"]:
        record = read_record(folder / f"{row['case_id']}.json")
        assert record.row == row["row"]
        assert isinstance(record.measurements["macs"].value, int)
        assert record.provenance["packages"]["torch"]
        assert {"commit", "measured"} <= set(record.measurements["macs"].details)
    assert (folder / "report.md").is_file()
    assert (folder / "table.csv").is_file()
    assert (tmp_path / "report.md").is_file()
    assert not list(folder.glob(".*part"))


def test_a_rerun_measures_only_what_is_missing(tmp_path, monkeypatch):
    meter = Meter(monkeypatch)
    assert go(tmp_path) == 0
    assert len(meter.asked) == 6
    assert go(tmp_path) == 0
    assert len(meter.asked) == 6
    assert go(tmp_path, ["params", "latency", "peak_memory"]) == 0
    assert meter.asked[6:] == [(row, ("peak_memory",)) for row in ("one", "two", "three")]
    for record in read_records(tmp_path / "trial"):
        assert {"params", "latency", "peak_memory"} <= set(record.measurements)
    assert go(tmp_path, ["params"], rows=("one", "two", "three", "four")) == 0
    assert meter.asked[9:] == [("four", ("params",))]
    assert go(tmp_path, ["params"], force=True) == 0
    assert len(meter.asked) == 13
    assert "latency" in read_manifest(tmp_path / "trial")["metrics"]  # held by the records, so shown


def test_counts_come_before_timings(tmp_path, monkeypatch):
    meter = Meter(monkeypatch)
    go(tmp_path)
    assert [names for _, names in meter.asked] == [("params",)] * 3 + [("latency",)] * 3


def test_lack_of_memory_is_a_row_and_a_crash_is_tried_again(tmp_path, monkeypatch, capsys):
    meter = Meter(
        monkeypatch,
        {
            ("one", "latency"): {"missing": "out of memory: one piece of 900 GiB", "retry": False},
            ("two", "latency"): {"missing": "the measuring process was killed (signal 9)", "retry": True},
        },
    )
    assert go(tmp_path) == 1
    assert "two · latency: the measuring process was killed" in capsys.readouterr().err
    report = (tmp_path / "trial" / "report.md").read_text()
    assert "out of memory: one piece of 900 GiB" in report.lower().replace("gib", "GiB")
    meter.asked.clear()
    meter.answer.clear()
    assert go(tmp_path) == 0
    assert meter.asked == [("two", ("latency",))]


def test_a_timing_of_another_machine_is_measured_again_and_a_count_is_not(tmp_path, monkeypatch):
    meter = Meter(monkeypatch)
    go(tmp_path)
    meter.asked.clear()
    monkeypatch.setattr(provenance, "machine", lambda device: "another CPU")
    go(tmp_path)
    assert meter.asked == [(row, ("latency",)) for row in ("one", "two", "three")]


def test_a_damaged_record_is_told_of_and_measured_again(tmp_path, monkeypatch, capsys):
    meter = Meter(monkeypatch)
    go(tmp_path, ["params"])
    victim = sorted((tmp_path / "trial").glob("two-*.json"))[0]
    victim.write_text(victim.read_text()[:100])
    meter.asked.clear()
    assert go(tmp_path, ["params"], console=Console()) == 0
    assert meter.asked == [("two", ("params",))]
    assert victim.name in capsys.readouterr().out
    assert read_record(victim).row == "two"


def test_an_interrupted_run_keeps_and_reports_what_it_has_and_goes_on(tmp_path, monkeypatch, capsys):
    meter = Meter(monkeypatch, {("two", "latency"): KeyboardInterrupt()})
    assert go(tmp_path, console=Console(width=120), arguments=["ablation=trial", "force=true", "seed=3"]) == 130
    printed = capsys.readouterr().out
    assert "python -m harness.run ablation=trial seed=3" in printed
    assert len(read_records(tmp_path / "trial")) == 3
    assert (tmp_path / "trial" / "report.md").is_file()
    meter.asked.clear()
    meter.answer.clear()
    assert go(tmp_path) == 0
    assert meter.asked == [("two", ("latency",)), ("three", ("latency",))]


def test_settings_of_an_ablation_stand_beside_each_other(tmp_path, monkeypatch):
    """A second number format, clip or batch takes nothing from the first, not even its report."""
    Meter(monkeypatch)
    different = {
        "": {},
        "dtype-bfloat16": {"dtype": "bfloat16"},
        "batch-size-8-dtype-bfloat16": {"dtype": "bfloat16", "batch_size": 8},
        "clip-frames-2": {"frames": 2},
        "kernel-reference": {"kernel": "reference", "dtype": "float32"},  # as it is
        "compile-true": {"compile": True},
        "seed-1": {"seed": 1},
        "threads-2": {"threads": 2},
    }
    seen = {}
    for place, fields in different.items():
        assert go(tmp_path, ["params"], settings=Settings(**fields)) == 0
        folder = tmp_path / "trial" / place
        assert len(read_records(folder)) == 3
        seen[place] = read_manifest(folder)
    for place, manifest in seen.items():
        assert read_manifest(tmp_path / "trial" / place) == manifest
        assert (tmp_path / "trial" / place / "report.md").is_file()
        assert (tmp_path / "trial" / place / "table.csv").is_file()
        assert bool(manifest["setting"]) == bool(place)
    assert seen["batch-size-8-dtype-bfloat16"]["setting"] == "batch_size=8, dtype=bfloat16"
    listed = (tmp_path / "report.md").read_text()
    assert all(f"(trial/{place}/report.md)" in listed for place in seen if place)
    assert "(trial/report.md)" in listed
    assert "Does it run? With batch_size=8, dtype=bfloat16" in listed
    assert len({row["case_id"] for manifest in seen.values() for row in manifest["rows"]}) == 3 * len(seen)
    for ratio in (2, 3):
        assert go(tmp_path, ["params"], settings=Settings(model={"mlp_ratio": ratio})) == 0
    assert len(list((tmp_path / "trial").glob("model-mlp-ratio-*"))) == 2


def test_timings_of_every_setting_are_on_the_page_of_costs(tmp_path, monkeypatch):
    Meter(monkeypatch)
    monkeypatch.setattr(sweep, "decode_clips", lambda *_: {})
    for fields in ({}, {"dtype": "bfloat16"}):
        assert go(tmp_path, ["params", "latency"], settings=Settings(**fields)) == 0
    page = (tmp_path / "cost.md").read_text()
    for place in ("trial", "trial/dtype-bfloat16"):
        assert f"({place}/report.md)" in page
        assert (tmp_path / place / "table.csv").is_file()
    assert build.main([str(tmp_path / "trial")]) == 0
    assert (tmp_path / "cost.md").read_text() == page


def test_a_value_of_an_axis_goes_on_from_the_records_of_all_values(tmp_path, monkeypatch):
    meter, trial = Meter(monkeypatch), ablation(["one"], vary={"batch_size": [1, 2]})
    assert measuring.run(Call([trial], Settings(), ["params"], tmp_path)) == 0
    assert len(meter.asked) == 2
    assert measuring.run(Call([trial], Settings(batch_size=2), ["params"], tmp_path)) == 0
    assert len(meter.asked) == 2
    assert len(read_manifest(tmp_path / "trial" / "batch-size-2")["rows"]) == 1
    assert len(read_manifest(tmp_path / "trial")["rows"]) == 2


def test_one_table_that_cannot_be_made_costs_no_other_its_report(tmp_path, monkeypatch, capsys):
    Meter(monkeypatch)
    first, last = (
        replace(ablation(), name=name, figures=figures) for name, figures in (("first", ["costt"]), ("last", []))
    )
    assert measuring.run(Call([first, last], Settings(), ["params"], tmp_path)) == 1
    assert "failed: no report of first: " in capsys.readouterr().err
    assert (tmp_path / "last" / "report.md").is_file()
    assert "last/report.md" in (tmp_path / "report.md").read_text()


def test_a_run_leaves_the_settings_that_it_was_given(tmp_path, monkeypatch):
    Meter(monkeypatch)
    settings = Settings(quick=True)
    assert go(tmp_path, ["params"], settings=settings) == 0
    assert settings == Settings(quick=True)


def test_progress_and_results_have_streams_of_their_own(tmp_path, monkeypatch):
    Meter(monkeypatch)
    results, progress = io.StringIO(), io.StringIO()
    consoles = dict(console=Console(file=results, width=120), progress=Console(file=progress, width=120))
    assert go(tmp_path, ["params"], **consoles) == 0
    assert "3 steps to do" in progress.getvalue()
    assert "[1/3] one" in progress.getvalue()
    assert "[1/3]" not in results.getvalue()
    assert str(tmp_path / "trial" / "report.md") in results.getvalue()


def test_two_runs_at_once_share_the_work_and_never_time_at_once(tmp_path, monkeypatch):
    meter = Meter(monkeypatch, seconds=0.2)
    (tmp_path / "trial").mkdir()
    results = []
    metric_sets = [("params", "latency"), ("params", "latency", "peak_memory")]
    threads = [
        threading.Thread(target=lambda names=names: results.append(go(tmp_path, names))) for names in metric_sets
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [0, 0]
    assert meter.most == 1
    records = read_records(tmp_path / "trial")
    assert len(records) == 3
    for record in records:
        assert {"params", "latency", "peak_memory"} <= set(record.measurements)


def test_a_run_waits_for_the_one_that_is_timing(tmp_path, monkeypatch):
    stream = io.StringIO()
    meter = Meter(monkeypatch)
    lock = FileLock(tmp_path / sweep.TIMING_LOCK)
    lock.acquire()
    options = dict(names=["latency"], rows=["one"], console=Console(file=stream, width=120))
    waiting = threading.Thread(target=go, args=[tmp_path], kwargs=options)
    waiting.start()
    deadline = time.monotonic() + 300
    while "another run is timing" not in stream.getvalue() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "another run is timing" in stream.getvalue()
    assert not meter.asked
    lock.release()
    waiting.join(300)
    assert meter.asked == [("one", ("latency",))]


def test_a_full_disk_ends_with_what_there_is(tmp_path, monkeypatch, capsys):
    Meter(monkeypatch)
    write, written = store.write_record, []

    def fill(record, folder):
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        written.append(record)
        return write(record, folder)

    monkeypatch.setattr(store, "write_record", fill)
    assert go(tmp_path, ["params"]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert len(read_records(tmp_path / "trial")) == 2


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_a_killed_run_leaves_whole_records_and_the_next_one_goes_on(tmp_path):
    command = [sys.executable, "-m", "harness.run", "ablation=window_size", "metrics=[params,macs]", "quick=true"]
    command.append(f"out={tmp_path}")
    folder = tmp_path / "quick" / "window_size"
    scratch = {**os.environ, "TMPDIR": str(tmp_path)}  # which a killed run leaves behind
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, env=scratch)
    deadline = time.monotonic() + 300
    while len(list(folder.glob("*.json"))) < 3 and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    running.kill()
    running.wait()
    kept = read_records(folder)
    assert kept
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    manifest = read_manifest(folder)
    assert len(read_records(folder)) == len(manifest["rows"])
    left = int(re.search(r"(\d+) steps to do", again.stderr).group(1))
    assert left == len(manifest["rows"]) - len(kept)


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs POSIX signals")
def test_ctrl_c_of_a_real_run_writes_the_report_and_says_how_to_go_on(tmp_path):
    command = [sys.executable, "-m", "harness.run", "ablation=pyramid_scales", "quick=true", "rounds=50"]
    command += ["accuracy=off", f"out={tmp_path}"]  # so many rounds that no machine is done before it hears
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  (ignored in a script's background jobs)
    running = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard
    )
    for line in running.stderr:
        if "latency" in line:  # now a child process is timing
            break
    time.sleep(0.3)
    running.send_signal(signal.SIGINT)
    printed, complained = running.communicate(timeout=300)
    assert running.returncode == 130, complained
    assert "to go on from here: python -m harness.run ablation=pyramid_scales quick=true rounds=50" in printed
    assert (tmp_path / "quick" / "pyramid_scales" / "report.md").is_file()


# the command line


def test_without_an_ablation_the_questions_are_listed(capsys):
    assert run.main([]) == 0
    printed = " ".join(capsys.readouterr().out.split())  # long questions are folded
    for name in case.names():
        assert name in printed
        assert case.load(name).question in printed
    assert "python -m harness.run ablation=" in printed


def test_the_help_names_every_option_metric_and_ablation(capsys):
    assert run.main(["--help"]) == 0
    printed = capsys.readouterr().out
    options = [name for f in dataclasses.fields(run.Options) for name in written(f)]
    for word in [*options[1:], *metrics.names(), *case.names(), *names.DTYPES, "exit status", "model.FIELD=VALUE"]:
        assert word.removesuffix("_changes") in printed
    assert len(re.findall(r"^  python -m harness\.run ", printed, re.M)) == len(run.PROGRAM.examples)
    assert max(map(len, printed.splitlines())) <= 140


def parsed(*words):
    return parse(run.PROGRAM, list(words))


def test_every_example_of_the_help_is_accepted():
    for arguments, _ in run.PROGRAM.examples:
        request = parsed(*shlex.split(arguments))
        assert request.suite or request.ablation


@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=30))
def test_any_file_name_reaches_the_clip_unharmed(name):
    if name.lower() not in ("none", "null") and name[0] not in "\"'":
        assert parsed(f"clip={name}").path == name


@pytest.mark.parametrize(
    "words, rows",
    [
        (["rows=[1,3]"], ["LG1, coarse (4,4,4) only", "LG2, fine (8,7,7) only"]),
        (["rows=2"], ["LG1 in every stage"]),
        (["rows=LG, both scales (default)"], ["LG, both scales (default)"]),
        (
            ['rows=["LG, both scales (default)",LG1 in every stage]'],
            ["LG, both scales (default)", "LG1 in every stage"],
        ),
    ],
)
def test_rows_are_named_or_numbered(words, rows):
    ((ablation,), _) = run.chosen(parsed("ablation=pyramid_scales", *words))
    assert ablation.chosen == rows


def test_several_ablations_share_a_call_and_those_without_the_rows_are_left_out():
    ablations, _ = run.chosen(parsed("ablation=[dtypes,kernels,pyramid_scales]", "rows=[local + global,divided]"))
    assert [(loaded.name, loaded.chosen) for loaded in ablations] == [
        ("dtypes", ["local + global", "divided"]),
        ("kernels", ["local + global", "divided"]),
    ]


def test_lists_on_the_command_line_are_axes_of_the_rows():
    words = ["dtype=[float32,bfloat16]", "batch_size=[1,8]", "clip.frames=[4,8]", "vary.position=[peg,none]"]
    ((ablation,), settings) = run.chosen(parsed("ablation=pyramid_scales", "rows=1", "seed=3", *words))
    entries = case.resolve(ablation, settings)
    assert len(entries) == len(ablation.rows) * 16
    cases = [entry.case for entry in entries if entry.row.row in ablation.chosen]
    points = {(c.dtype, c.batch_size, c.clip.frames, c.config["position"]) for c in cases}
    assert len(points) == len({case.case_id(c) for c in cases}) == 16
    assert {c.seed for c in cases} == {3}
    assert ablation.baseline == "LG, both scales (default)"
    assert ablation.added[0] == "batch_size=[1,8]" or "dtype=[float32,bfloat16]" in ablation.added


def test_a_value_of_an_axis_that_the_command_replaces_is_no_baseline():
    ((ablation,), _) = run.chosen(parsed("ablation=kernels", "kernel=[sdpa,flex]"))
    assert ablation.vary == {"kernel": ["sdpa", "flex"]}
    assert ablation.baseline is None


def test_every_registered_scheme_is_in_the_tables_of_schemes():
    for name in ("attention_schemes", "scaling", "operators", "training", "kernels", "dtypes", "compile",
                 "scheme_accuracy", "equivalence", "probes"):  # fmt: skip
        rows = {row.row: row.model for row in case.load(name).rows}
        for scheme in attention_zoo.schemes.names():
            assert rows[scheme] == f"pyramid_tiny_{scheme}", name
        assert list(rows)[-1] == "local + global"


def test_a_scheme_of_another_package_is_in_them_too(monkeypatch):
    monkeypatch.setitem(attention_zoo.schemes._entries, "theirs", attention_zoo.schemes.get("full"))
    assert [row.model for row in case.load("kernels").rows if row.row == "theirs"] == ["pyramid_tiny_theirs"]
    assert all(row.clip == {"frames": 16} for row in case.load("kernels").rows)


MINE = {
    "name": "mine", "question": "Mine?", "model": "dualformer_tiny", "table": "printed", "metrics": ["params", "macs"],
    "rows": [{"row": "a", "published": "LL", "changes": TINY, "clip": {"frames": 4, "size": 32}}],
}  # fmt: skip
PRINTED = {
    "paper": "P", "table": "Table 1", "title": "T", "source": "S",
    "units": {"params": "M"}, "params_count": "without_classifier",
    "rows": [{"row": "LL", "params": 61.5}],
}  # fmt: skip


def test_an_ablation_of_ones_own_stands_beside_its_table(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(json.dumps(MINE))
    out = f"out={tmp_path / 'out'}"
    assert run.main([f"ablation={tmp_path / 'mine.yaml'}", out]) == 2
    assert "mine.yaml: unknown table 'printed'" in capsys.readouterr().err
    (tmp_path / "printed.yaml").write_text(json.dumps(PRINTED))
    assert run.main([f"ablation={tmp_path / 'mine.yaml'}", out]) == 0, capsys.readouterr().err
    report = (tmp_path / "out" / "mine" / "report.md").read_text()
    assert "61.5" in report
    assert str(tmp_path) not in report
    (tmp_path / "kinetics.yaml").write_text(json.dumps(MINE | {"name": "kinetics"}))
    assert run.main([f"ablation={tmp_path / 'kinetics.yaml'}", out]) == 2
    assert "give yours another name" in capsys.readouterr().err


def test_a_plan_measures_nothing_and_knows_what_is_there(tmp_path, capsys):
    words = ["ablation=position_encoding", "quick=true", "metrics=[params,macs]", "rows=[1]", f"out={tmp_path / 'out'}"]
    assert run.main([*words, "plan=true"]) == 0
    printed = capsys.readouterr().out
    assert "  1  none: " in printed
    assert "guessed at 20 GMAC/s on cpu" in printed
    assert not (tmp_path / "out").exists()
    assert run.main(words) == 0
    capsys.readouterr()
    assert run.main([*words, "plan=true"]) == 0
    assert "all there" in capsys.readouterr().out


def test_a_plan_counts_the_trainings_in(tmp_path, capsys):
    words = ["ablation=pyramid_scales", "metrics=[params]", "accuracy=quick", "rows=[1]", f"out={tmp_path / 'out'}"]
    assert run.main([*words, "plan=true"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 case; params" in printed
    seconds = 3 * 32 / provenance.default_threads()  # as the budget's file records them
    assert f"{plan._minutes(seconds)} of trainings, 1 s guessed" in printed
    assert f"about {plan._minutes(seconds + 1)}: 0 s by earlier visits" in printed


def test_a_clip_of_ones_own_is_measured_and_recorded_by_name(tmp_path):
    from harness import video

    mine = tmp_path / "holiday.mp4"
    mine.write_bytes(video.sample_clip(tmp_path).read_bytes())
    assert go(tmp_path / "out", ["params", "latency"], rows=["one"], settings=Settings(path=str(mine), quick=True)) == 0
    record = read_records(next((tmp_path / "out" / "quick" / "trial").glob("clip-holiday-mp4-*")))[0]
    assert record.case["clip"]["path"] == "holiday.mp4"
    assert record.provenance["clip"]["source"] == "holiday.mp4"
    assert len(record.provenance["clip"]["sha256"]) == 64
    assert str(tmp_path) not in json.dumps([record.case, record.provenance])
    assert not (tmp_path / "out" / video.SAMPLE).exists()
