"""A busy machine is noticed: in the record, in the row, by a second visit, and where a cost falls as the clip grows."""

import io
import re
import shlex
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console
from small_cases import LITTLE, clip_file, tiny
from test_harness import Meter, ablation, go
from test_reports import one_record, write

from harness import measuring, run, sweep
from harness.call import Call
from harness.cost import beside
from harness.cost.workload import Workload
from harness.deadline import Deadline
from harness.spec import case, options
from harness.spec.case import Settings
from records import falling, provenance
from records.record import Quantity, read_records
from reports import build

QUIET = {"seconds": 2.0, "busy": 2.1, "own": 2.0, "stolen": 0.0, "minor": 5, "major": 0}


@pytest.fixture(autouse=True)
def _no_clip(monkeypatch):
    monkeypatch.setattr(sweep, "decode_clips", lambda *_: {})
    monkeypatch.setattr(provenance, "commit", lambda: {"commit": "c0ffee", "dirty": False})


@pytest.mark.parametrize(
    "changed, disturbed",
    [
        ({}, []),
        ({"busy": 3.2}, [beside.PROGRAMS]),
        ({"stolen": 0.5}, [beside.HOST]),
        ({"major": 400}, [beside.DISK]),
        ({"seconds": 0.01, "busy": 3.2}, []),  # too short for the system's clock
    ],
)
def test_what_else_ran_is_judged(changed, disturbed):
    told = beside.judged(QUIET | changed, cores=2)
    assert told["disturbed"] == disturbed
    assert told["beside"]["pages_read"] == (QUIET | changed)["major"]
    if (QUIET | changed)["seconds"] > 1:
        assert told["beside"]["foreign_cores"] == pytest.approx(((QUIET | changed)["busy"] - 2.0) / 2, abs=0.01)


def test_the_temperature_is_that_of_the_hottest_part_where_the_system_tells(monkeypatch):
    parts = [SimpleNamespace(current=degrees) for degrees in (41.0, 67.5, 55.0)]
    sensors = {"k10temp": parts, "nvme": [SimpleNamespace(current=90.0)]}
    monkeypatch.setattr(beside.psutil, "sensors_temperatures", lambda: sensors, raising=False)
    with beside.Watch() as watch:
        parts[1].current = 71.5
    assert watch.details["beside"].items() >= {"celsius_before": 67.5, "celsius": 71.5}.items()
    monkeypatch.setattr(beside.psutil, "sensors_temperatures", dict, raising=False)
    with beside.Watch() as watch:
        pass
    assert "celsius" not in watch.details["beside"]


def test_a_series_says_what_ran_beside_it(tmp_path):
    of = tiny()
    series = Workload(of, clip_file(tmp_path, of), LITTLE, "this machine").series
    assert {"beside", "disturbed", "load"} <= set(series.details)
    assert len(series.details["load"]) == 2
    assert series.details["beside"]["page_faults"] >= 0


class Disturbed(Meter):
    """Visits that are disturbed as `answers` say, one after the other."""

    def __init__(self, monkeypatch, answers):
        super().__init__(monkeypatch)
        real, answers = sweep.measure, iter(answers)

        def measure(of, names, clip, **options):
            details = {"disturbed": [beside.PROGRAMS] if next(answers) else []}
            return [replace(m, details={**m.details, **details}) for m in real(of, names, clip, **options)]

        monkeypatch.setattr(sweep, "measure", measure)


def marks(folder):
    (record,) = read_records(folder / "trial")
    return [bool(visit.details.get("disturbed")) for visit in record.get("latency").visits]


def test_a_disturbed_visit_is_taken_again_and_kept_where_it_is_quiet(tmp_path, monkeypatch):
    meter = Disturbed(monkeypatch, [False, True, False, False])
    assert go(tmp_path, names=["latency"], rows=["one"], rounds=3) == 0
    assert len(meter.asked) == 4
    assert marks(tmp_path) == [False, False, False]
    assert "disturbed" not in (tmp_path / "trial" / "report.md").read_text()


def test_a_machine_that_stays_busy_is_not_waited_for(tmp_path, monkeypatch):
    meter = Disturbed(monkeypatch, [True] * 99)
    out = io.StringIO()
    assert go(tmp_path, names=["latency"], rows=["one"], rounds=5, console=Console(file=out, width=200)) == 0
    assert len(meter.asked) == 5 + sweep.RETAKES
    assert marks(tmp_path) == [True] * 5
    assert f"Disturbed in 5 of 5 visits, where {beside.PROGRAMS}" in (tmp_path / "trial" / "report.md").read_text()


def test_no_visit_is_taken_again_beyond_the_deadline(tmp_path, monkeypatch):
    meter = Disturbed(monkeypatch, [True] * 9)
    deadline = Deadline.never()

    def late(*arguments, **options):
        deadline.at = 0.0
        return real(*arguments, **options)

    real = sweep.measure
    monkeypatch.setattr(sweep, "measure", late)
    go(tmp_path, names=["latency"], rows=["one"], rounds=1, deadline=deadline)
    assert len(meter.asked) == 1


def sized(row, frames, level, **changes):
    latency = Quantity("latency", "timed", "latency", "ms", "lower").of([level, level], {"machine": "m"})
    plain = one_record(row)
    clip = {"frames": frames, "size": 112, "stride": 2}
    return replace(plain, case={**plain.case, "row": row, "clip": clip, **changes}, measurements={"latency": latency})


def test_a_cost_that_falls_while_the_clip_grows_is_told(tmp_path):
    small, large, other = sized("x · 32", 32, 1186.0), sized("x · 64", 64, 732.0), sized("y", 64, 1.0, model="another")
    assert [(a.row, b.row, name) for a, b, name in falling.falling([large, small, other])] == [
        ("x · 32", "x · 64", "latency")
    ]
    assert not falling.falling([small, sized("x · 64", 64, 1100.0)])  # within what timings differ by
    folder = write(tmp_path / "scales", [small, large], [{}, {}], table=None)
    build.build(folder)
    report = (folder / "report.md").read_text("utf-8")
    assert re.search(
        r"## Warnings\n\n- latency falls while the clip grows: x · 64 732 ms, but x · 32 1186 ms", report, re.I
    )


@pytest.mark.parametrize("row", ["space_only", "LG1, coarse (4,4,4) only"])
def test_the_way_out_of_a_falling_cost_is_an_option_that_the_parser_takes(row):
    small, large = sized(f"{row} · clip.frames=32", 32, 1186.0), sized(f"{row} · clip.frames=64", 64, 732.0)
    _, word = shlex.split(falling.warning(small, large, "latency").partition("again with ")[2])
    assert options.parse(run.PROGRAM, ["ablation=all", word]).rows == [row]


def test_it_is_measured_again_by_the_run_that_timed_it(tmp_path, monkeypatch):
    trial = ablation(["one"], vary={"clip.frames": [2, 4]})
    small, large = (entry.case.row for entry in case.resolve(trial, Settings(threads=1)))
    levels = {small: iter([90.0, 10.0]), large: iter([20.0])}
    latency, asked = Quantity("latency", "timed", "latency", "ms", "lower"), []

    def measure(of, names, clip, **options):
        asked.append(of.row)
        return [latency.of([next(levels[of.row])], {"machine": provenance.machine("cpu")})]

    monkeypatch.setattr(sweep, "measure", measure)
    assert measuring.run(Call([trial], Settings(threads=1), ["latency"], tmp_path, rounds=1)) == 0
    assert asked == [small, large, small]
    assert {record.row: record.get("latency").value for record in read_records(tmp_path / "trial")} == {
        small: 10.0,
        large: 20.0,
    }
    assert "Warnings" not in (tmp_path / "trial" / "report.md").read_text()
    assert measuring.run(Call([trial], Settings(threads=1), ["latency"], tmp_path, rounds=1)) == 0
    assert len(asked) == 3, "what is there is not timed again"
