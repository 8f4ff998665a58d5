"""Rounds: every case in turn, resumed where they stopped, joined into one series, reported with what is lacking."""

import re
from dataclasses import replace

import pytest
from flat import flat
from test_harness import Meter, ablation, go

from harness import sweep
from harness.call import Call
from harness.cost import metrics
from harness.deadline import Deadline
from harness.spec import case
from harness.spec.case import Settings
from harness.spec.effort import CPU, CUDA, QUICK
from harness.spec.reader import UsageError
from records import provenance
from records import visits as rounds
from records.record import Visit, read_manifest, read_record, read_records
from reports import build, table

KILLED = {"missing": "the measuring process was killed (signal 9)", "retry": True}
FULL = {"missing": "out of memory", "retry": False}


@pytest.fixture(autouse=True)
def _no_clip(monkeypatch):
    monkeypatch.setattr(sweep, "decode_clips", lambda *_: {})  # `Meter` looks at none


@pytest.fixture(autouse=True)
def _no_local_changes(monkeypatch):
    """Of this checkout, whatever is being edited: else no run goes on from another."""
    monkeypatch.setattr(provenance, "commit", lambda: {"commit": "c0ffee", "dirty": False})


def timed(meter):
    return [row for row, names in meter.asked if "latency" in names]


def latencies(folder):
    return {record.row: record.get("latency") for record in read_records(folder)}


def test_every_second_round_goes_backwards(tmp_path, monkeypatch):
    meter = Meter(monkeypatch)
    assert go(tmp_path, rounds=None) == 0
    forth, back = ["one", "two", "three"], ["three", "two", "one"]
    assert timed(meter) == [*forth, *back, *forth, *back, *forth]
    for measurement in latencies(tmp_path / "trial").values():
        assert measurement.rounds_wanted == len(measurement.samples) == rounds.ROUNDS == 5
        assert [visit.round for visit in measurement.visits] == [1, 2, 3, 4, 5]
        assert rounds.complete(measurement)
    assert go(tmp_path, rounds=None) == 0
    assert len(timed(meter)) == 15


def test_what_was_timed_of_a_model_that_is_made_no_more_is_marked_wherever_it_stands(tmp_path, monkeypatch, capsys):
    meter = Meter(monkeypatch)
    names = ["params", "macs", "latency"]
    assert go(tmp_path, names=names, rounds=2) == 0
    folder = tmp_path / "trial"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(provenance, "commit", lambda: {"commit": "decade", "dirty": False})
    meter.asked.clear()
    assert go(tmp_path, names=["params", "macs"], rounds=2) == 0
    assert [names for _, names in meter.asked] == [("params", "macs")] * 3, "counts of other code are taken again"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before, "and found as they were"

    def counted(measured_case, *arguments, **options):
        measured = meter(measured_case, *arguments, **options)
        return [replace(m, visits=(Visit((2,)),)) if m.name == "macs" else m for m in measured]

    monkeypatch.setattr(sweep, "measure", counted)
    assert go(tmp_path, names=["params", "macs"], rounds=2, rows=("one",)) == 0
    latency = latencies(folder)["one"]
    why = "of an earlier model, whose multiply-adds were 1 and are 2"
    assert (latency.details["outdated"], len(latency.samples)) == (why, 2)
    report = " ".join((folder / "report.md").read_text().split())
    assert "commit c0ffee / decade / c0ffee, outdated" in report
    assert f"Outdated: {why}; force=true measures it again." in report
    assert "c0ffee, outdated" in (folder / "table.csv").read_text()
    assert "c0ffee, outdated" in (tmp_path / "results.csv").read_text()
    assert "c0ffee, outdated" in (tmp_path / "index.html").read_text()
    assert f"Outdated: {why}" in (tmp_path / "cost.md").read_text()
    assert "1 row outdated" in (folder / "cost.png").read_bytes().decode("latin-1")
    meter.asked.clear()
    assert go(tmp_path, names=["latency"], rounds=2, rows=("one",)) == 0
    assert timed(meter) == ["one", "one"]
    assert "outdated" not in latencies(folder)["one"].details


def test_quick_mode_has_what_takes_long_last(tmp_path, monkeypatch):
    meter = Meter(monkeypatch)
    names = ["latency", "energy", "largest_batch"]
    for quick in (True, False):
        meter.asked.clear()
        settings = Settings(threads=1, quick=quick)
        assert go(tmp_path, names=names, rows=("one", "two"), settings=settings) == 0
        parts, rows = (("latency", "energy"), ("largest_batch",)), ("one", "two")
        in_turn = [(row, part) for part in parts for row in rows]
        by_case = [(row, part) for row in rows for part in parts]
        asked = [(row, tuple(sorted(metrics_asked, key=names.index))) for row, metrics_asked in meter.asked]
        assert asked == (in_turn if quick else by_case)


def test_quick_mode_visits_once(tmp_path, monkeypatch):
    meter = Meter(monkeypatch)
    assert go(tmp_path, rounds=None, settings=Settings(threads=1, quick=True)) == 0
    assert timed(meter) == ["one", "two", "three"]


@pytest.mark.parametrize("effort", [CPU, CUDA, QUICK])
def test_rounds_share_the_effort_of_one(effort):
    for wanted in (1, 2, 3, 7):
        part = effort.split(wanted)
        assert part.seconds * wanted == pytest.approx(effort.seconds)
        assert part.budget * wanted == pytest.approx(effort.budget)
        assert effort.samples <= part.samples * wanted < effort.samples + wanted
        assert part.fewest >= 1
    assert effort.split(1) == effort


def test_an_interrupted_run_goes_on_with_the_rounds_that_are_missing(tmp_path, monkeypatch, capsys):
    meter = Meter(monkeypatch)
    answers = iter([None] * 4 + [KeyboardInterrupt()])
    monkeypatch.setattr(meter, "answer", Answers(answers))
    assert go(tmp_path, names=["latency"], rounds=3) == 130
    kept = latencies(tmp_path / "trial")
    assert {row: len(measurement.samples) for row, measurement in kept.items()} == {"one": 1, "two": 1, "three": 2}
    report = (tmp_path / "trial" / "report.md").read_text()
    assert "1 of 3 rounds measured so far" in report
    assert not any(rounds.complete(measurement) for measurement in kept.values())
    meter.asked.clear()
    meter.answer = {}
    assert go(tmp_path, names=["latency"], rounds=3) == 0
    assert timed(meter) == ["two", "one", "one", "two", "three"]
    assert all(rounds.taken(measurement) == {1, 2, 3} for measurement in latencies(tmp_path / "trial").values())
    assert "rounds measured so far" not in (tmp_path / "trial" / "report.md").read_text()


class Answers(dict):
    """Answers of `Meter` one after the other, whatever is asked."""

    def __init__(self, answers):
        super().__init__()
        self.answers = answers

    def get(self, key, default=None):
        return next(self.answers, None) if key == "latency" else default


def test_more_rounds_join_those_that_are_there(tmp_path, monkeypatch):
    meter = Meter(monkeypatch)
    assert go(tmp_path, rounds=1) == 0
    assert go(tmp_path, rounds=3) == 0
    assert len(timed(meter)) == 9
    assert all(rounds.taken(measurement) == {1, 2, 3} for measurement in latencies(tmp_path / "trial").values())
    assert go(tmp_path, rounds=2) == 0
    assert len(timed(meter)) == 9


def test_a_round_that_fails_keeps_the_others_and_is_tried_again(tmp_path, monkeypatch, capsys):
    meter = Meter(monkeypatch)
    monkeypatch.setattr(meter, "answer", Answers(iter([None, KILLED])))
    assert go(tmp_path, names=["latency"], rows=["one"], rounds=3) == 1
    assert "one · latency: the measuring process was killed" in capsys.readouterr().err
    assert len(timed(meter)) == 2  # no third try of what failed in this run
    latency = latencies(tmp_path / "trial")["one"]
    assert (len(latency.samples), latency.failed_rounds) == (1, {"2": KILLED["missing"]})
    assert f"1 of 3 rounds measured so far: {KILLED['missing']}" in (tmp_path / "trial" / "report.md").read_text()
    meter.answer = {}
    assert go(tmp_path, names=["latency"], rows=["one"], rounds=3) == 0
    latency = latencies(tmp_path / "trial")["one"]
    assert len(latency.samples) == 3
    assert not latency.failed_rounds


def test_lack_of_memory_in_the_first_round_is_the_result_of_all(tmp_path, monkeypatch):
    meter = Meter(monkeypatch, {("one", "latency"): FULL})
    assert go(tmp_path, rounds=3) == 0
    assert timed(meter).count("one") == 1
    assert timed(meter).count("two") == 3
    assert go(tmp_path, rounds=3) == 0
    assert len(timed(meter)) == 7


@pytest.mark.parametrize("why", [FULL, {"missing": "stopped at the time limit of 900 s", "retry": True}])
def test_larger_clips_of_what_did_not_fit_are_not_tried(why, tmp_path, monkeypatch, capsys):
    from harness import measuring

    clips = [{"frames": n, "size": size} for n, size in ((2, 32), (4, 32), (8, 32), (2, 64), (4, 64))]
    trial = ablation(["one", "two"], vary={"clip": clips})
    meter = Meter(monkeypatch, {("one · clip.frames=4, clip.size=32", "latency"): why})

    def go(**options):
        return measuring.run(Call([trial], Settings(threads=1), ["latency"], tmp_path, rounds=2, **options))

    again = bool(why["retry"])
    assert go() == (1 if again else 0)
    assert {row: timed(meter).count(row) for row in timed(meter) if row.startswith("one")} == {
        "one · clip.frames=2, clip.size=32": 2,
        "one · clip.frames=4, clip.size=32": 1,
        "one · clip.frames=2, clip.size=64": 2,
    }
    assert len([row for row in timed(meter) if row.startswith("two")]) == 10
    kept = latencies(tmp_path / "trial")
    into = "the time limit" if again else "memory"
    for row in ("one · clip.frames=8, clip.size=32", "one · clip.frames=4, clip.size=64"):
        assert kept[row].missing == f"not tried: did not fit into {into} at 4x32x32"
        assert kept[row].retry is again
    meter.asked.clear()
    assert go() == (1 if again else 0)
    assert timed(meter) == (["one · clip.frames=4, clip.size=32"] if again else [])
    (tmp_path / "trial" / next(tmp_path.glob("trial/one-*frames-8*.json")).name).unlink()
    meter.asked.clear()
    go()  # what the records say of a smaller clip is known to the next run
    assert "one · clip.frames=8, clip.size=32" not in timed(meter)
    meter.answer = {}
    assert go(force=True) == 0
    assert not any(measurement.missing for measurement in latencies(tmp_path / "trial").values())


def test_force_replaces_what_is_finished_only_once_it_is_finished_too(tmp_path, monkeypatch, capsys):
    meter = Meter(monkeypatch)
    assert go(tmp_path, names=["latency"], rows=["one"], rounds=3) == 0
    before = latencies(tmp_path / "trial")["one"]
    meter.answer = Answers(iter([None, KeyboardInterrupt()]))
    assert go(tmp_path, names=["latency"], rows=["one"], rounds=3, force=True) == 130
    assert latencies(tmp_path / "trial")["one"] == before
    meter.answer = {}
    assert go(tmp_path, names=["latency"], rows=["one"], rounds=2, force=True) == 0
    after = latencies(tmp_path / "trial")["one"]
    assert (rounds.taken(after), after.rounds_wanted) == ({1, 2}, 2)


def test_samples_of_other_code_are_not_continued(tmp_path, monkeypatch, capsys):
    meter = Meter(monkeypatch)
    meter.answer = Answers(iter([None, KeyboardInterrupt()]))
    assert go(tmp_path, names=["latency"], rows=["one"], rounds=3) == 130
    collected = provenance.collect()
    monkeypatch.setattr(provenance, "collect", lambda: collected | {"commit": "another"})
    meter.answer = {}
    meter.asked.clear()
    assert go(tmp_path, names=["latency"], rows=["one"], rounds=3) == 0
    assert len(timed(meter)) == 3
    assert rounds.taken(latencies(tmp_path / "trial")["one"]) == {1, 2, 3}


def test_samples_of_local_changes_are_not_continued_by_another_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(provenance, "commit", lambda: {"commit": "c0ffee", "dirty": True})
    meter = Meter(monkeypatch)
    meter.answer = Answers(iter([None, KeyboardInterrupt()]))
    assert go(tmp_path, names=["latency"], rows=["one"], rounds=3) == 130
    meter.answer = {}
    meter.asked.clear()
    assert go(tmp_path, names=["latency"], rows=["one"], rounds=3) == 0
    assert len(timed(meter)) == 3
    assert len({visit.run for visit in latencies(tmp_path / "trial")["one"].visits}) == 1
    assert go(tmp_path, names=["latency"], rows=["one"], rounds=3) == 0
    assert len(timed(meter)) == 3  # what is finished stays


def test_samples_of_code_that_nobody_knows_are_not_continued_by_another_run():
    latency = flat("latency", "ms", "lower", (1.0,), details={"machine": "m", "commit": "unknown", "run": "a"})
    source = {"commit": "unknown", "dirty": None, "run": "b", "cpu_generation": {"model": 1}}
    assert not rounds.continues(latency, "m", source)
    assert rounds.continues(latency, "m", source | {"run": "a"})
    known = replace(latency, details=latency.details | {"commit": "abc"})
    assert rounds.continues(known, "m", source | {"commit": "abc"})


def test_samples_of_another_generation_of_processors_are_not_continued(tmp_path, monkeypatch, capsys):
    """Hosts hand out machines of one name, "AMD EPYC" say, with processors of several."""
    collected = provenance.collect() | {"commit": "c0ffee", "dirty": False, "cpu_generation": {"model": 1}}
    monkeypatch.setattr(provenance, "collect", lambda: collected)
    meter = Meter(monkeypatch)
    meter.answer = Answers(iter([None, KeyboardInterrupt()]))
    assert go(tmp_path, names=["latency"], rows=["one"], rounds=3) == 130
    old = latencies(tmp_path / "trial")["one"]
    assert rounds.continues(old, old.details["machine"], collected)
    assert not rounds.continues(old, old.details["machine"], collected | {"cpu_generation": {"model": 17}})
    without = {key: value for key, value in old.details.items() if key != "cpu_generation"}
    assert rounds.continues(replace(old, details=without), old.details["machine"], collected)
    collected["cpu_generation"] = {"model": 17}
    meter.answer = {}
    meter.asked.clear()
    assert go(tmp_path, names=["latency"], rows=["one"], rounds=3) == 0
    assert len(timed(meter)) == 3


def test_what_a_deadline_cut_short_is_no_result_and_the_rest_is_kept(tmp_path, monkeypatch):
    stopped = {"missing": "stopped at the time limit of 3 s; raise time_limit", "retry": True}
    meter = Meter(monkeypatch, {"latency": stopped})
    for left, wanted in ((5.0, "time limit"), (-41.0, None)):
        deadline, out = Deadline.after(60), tmp_path / str(left)
        monkeypatch.setattr(Deadline, "passed", False)
        monkeypatch.setattr(Deadline, "left", left)
        status = go(out, ("latency", "peak_memory"), ("one",), deadline=deadline)
        monkeypatch.undo()
        meter = Meter(monkeypatch, {"latency": stopped})
        (record,) = read_records(out / "trial")
        assert record.measurements["peak_memory"].samples
        if wanted:
            assert wanted in record.measurements["latency"].missing
        else:
            assert "latency" not in record.measurements
        assert (status, bool(deadline.left_out)) == ((1, False) if wanted else (0, True))
    assert meter.asked == []


def test_quick_mode_keeps_time_for_a_training(tmp_path):
    def is_up(seconds, quick, trains):
        call = Call([], Settings(quick=quick), [], tmp_path, deadline=Deadline.after(seconds))
        return sweep.time_is_up(call, trains)

    asked = [(s, quick, trains) for s in (-1, 10, 60) for quick in (False, True) for trains in (False, True)]
    assert {key for key in asked if is_up(*key)} == {
        *((-1, quick, trains) for quick in (False, True) for trains in (False, True)), (10, True, True),
    }  # fmt: skip


def test_records_from_before_there_were_rounds_are_of_one():
    old = flat("latency", "ms", "lower", (1.0, 2.0))
    assert rounds.complete(old)
    assert rounds.left(old, 3) == {2, 3}


def test_a_visit_that_ran_something_else_is_seen():
    details = {"kernel": "sdpa", "operators": ["flash"], "settled": True, "machine": "m"}
    first = rounds.joined(None, flat("latency", "ms", "lower", (1.0,), details=details), 1, 2)
    other = details | {"operators": ["math"], "settled": False}
    both = rounds.joined(first, flat("latency", "ms", "lower", (3.0, 4.0), details=other), 2, 2)
    assert both.samples == (1.0, 3.0, 4.0)
    assert both.said("operators") == [["flash"], ["math"]]
    assert "operators" not in both.details
    assert both.details["kernel"] == "sdpa"
    assert both.said("settled") == [True, False]
    assert [len(visit.samples) for visit in both.visits] == [1, 2]


def test_memory_has_a_sample_in_every_round_and_a_ratio(tmp_path, monkeypatch):
    from harness import measuring

    meter = Meter(monkeypatch)
    trial = ablation(["one", "two"], baseline="one")
    assert measuring.run(Call([trial], Settings(threads=1), ["latency", "peak_memory"], tmp_path, rounds=3)) == 0
    assert timed(meter) == ["one", "two", "two", "one", "one", "two"]  # no visit more than latency alone has
    loaded = table.load(tmp_path / "trial")
    for row in loaded.rows:
        assert rounds.taken(row.measurement("peak_memory")) == {1, 2, 3}
    assert loaded.floor("peak_memory") == 0.01
    assert loaded.ratio(loaded.rows[1], "peak_memory").paired
    assert "peak memory" in (tmp_path / "trial" / "report.md").read_text()


# baselines


def test_every_row_has_the_baseline_of_its_point(tmp_path):
    varied = ablation(["a", "b"], vary={"clip.frames": [2, 4]}, baseline="b")
    entries = case.resolve(varied, Settings(threads=1))
    assert [entry.manifest()["baseline"] for entry in entries] == ["b · clip.frames=2", "b · clip.frames=4"] * 2


def test_a_baseline_that_is_no_row_is_named():
    raw = {"name": "mine", "question": "?", "model": "m", "rows": [{"row": "full"}], "baseline": "ful"}
    with pytest.raises(UsageError, match="baseline is no row of it: 'ful'; did you mean 'full'"):
        case.from_dict(raw, "mine.yaml")


def test_ratios_to_the_baseline_reach_report_and_csv(tmp_path, monkeypatch):
    from harness import measuring

    Meter(monkeypatch)
    trial = ablation(["one", "two"], baseline="one")
    assert measuring.run(Call([trial], Settings(threads=1), ["latency"], tmp_path, rounds=2)) == 0
    folder = tmp_path / "trial"
    for row in read_manifest(folder)["rows"]:
        assert row["baseline"] == "one"
    loaded = table.load(folder)
    ratio = loaded.ratio(loaded.rows[1], "latency")
    assert (ratio.interval.value, ratio.distinguishable) == (1, False)
    report = (folder / "report.md").read_text()
    assert "latency ↓ / one: ratio (95 % interval)" in report
    assert "1.00 (0.990–1.01), not distinguishable" in report
    assert "noise floor" in report
    assert re.search(r"latency_ratio_verdict.*\n.*\n.*not distinguishable", (folder / "table.csv").read_text())
    assert rounds.taken(read_record(next(iter(folder.glob("two-*.json")))).get("latency")) == {1, 2}
    assert build.build(folder)


def test_rows_that_were_not_measured_in_turn_are_not_paired(tmp_path, monkeypatch):
    """The row is repeated on a day when everything takes twice as long."""
    from harness import measuring

    trial, day = ablation(["one", "two"], baseline="one"), [1.0]

    def meter(case, names, clip, **_):
        taken = day[0] * (100 if case.row == "one" else 150)
        return [flat("latency", "ms", "lower", (taken,), details={"machine": provenance.machine("cpu")})]

    def ratio():
        loaded = table.load(tmp_path / "trial")
        return loaded.ratio(loaded.rows[1], "latency")

    def go(**options):
        return measuring.run(Call([trial], Settings(threads=1), ["latency"], tmp_path, rounds=3, **options))

    monkeypatch.setattr(sweep, "measure", meter)
    assert go() == 0
    assert ratio().paired
    day[0] = 2.0
    trial.chosen = ["two"]
    assert go(force=True) == 0
    assert not ratio().paired
    assert ratio().interval.value == pytest.approx(3)
    trial.chosen = None
    assert go(force=True) == 0
    assert ratio().paired


def test_what_is_measured_once_is_left_to_the_first_round_with_the_whole_effort(tmp_path, monkeypatch):
    meter = Meter(monkeypatch)
    once = [name for name in metrics.names() if metrics.get(name).once]
    assert once
    assert go(tmp_path, names=["latency", *once], rows=["one"], rounds=3) == 0
    later = [names for _, names in meter.asked if not set(names) & set(once)]
    assert later == [("latency",)] * 2
    for names, shared in sweep.by_rounds(["latency", *once], 3):
        assert shared == (3 if "latency" in names else 1)
        assert {metrics.get(name).process == "forward" for name in names} == {"latency" in names}
    assert go(tmp_path, names=["latency", *once], rows=["one"], rounds=3) == 0
    assert len(meter.asked) == len(later) + len(sweep.by_rounds(["latency", *once], 3))
