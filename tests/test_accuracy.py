"""The accuracy half of a run: budgets, which trainings a table needs, and that nothing is trained twice or lost."""

import csv
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from training_runs import data_set
from training_runs import job as small_job

import backbones
from harness import datasets, run, session
from harness.accuracy import plan, pool
from harness.accuracy.plan import Setup
from harness.clips import loading
from harness.clips.decoding import file_digest
from harness.clips.loading import preload
from harness.spec import budget, case
from harness.spec import recipe as recipes
from harness.spec.budget import Budget, Training, shrunk
from harness.spec.reader import UsageError, typed
from records.record import MANIFEST, read_record, write_record
from reports import compare

# As small as a pyramid goes: one narrow stage after another, few clips, two epochs.
SMALL = [
    "metrics=[]",
    "accuracy=quick",
    "recipe.optimisation.epochs=1",
    "recipe.optimisation.batch_size=4",
    "recipe.sampling.frames=2",
    "recipe.augmentation.size=32",
    "recipe.testing.resize=32",
    "jobs=1",
]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return data_set(tmp_path_factory.mktemp("clips"), train=8, val=6)


def ran(folder, clips, *more, ablation="temporal_controls"):
    words = [*SMALL, f"ablation={ablation}", f"data={clips}", f"out={folder}", *more]
    said_keys = {word.partition("=")[0] for word in more}
    return run.main([word for word in words if word in more or word.partition("=")[0] not in said_keys])


def records(folder, ablation="temporal_controls"):
    manifest = json.loads((folder / ablation / "ablation.json").read_text())
    return {row["row"]: read_record(folder / ablation / f"{row['case_id']}.json") for row in manifest["rows"]}


def results(folder):
    return sorted(folder.glob("training/*/result.json"))


@pytest.mark.parametrize("name", budget.names())
def test_every_budget_shrinks_every_row_that_is_trained(name):
    chosen = budget.load(name)
    for ablation in map(case.load, case.names()):
        if ablation.accuracy is None:
            continue
        entries = case.resolve(ablation, case.Settings())
        for entry in (entry for entry in entries if "data" not in entry.row.training):  # these are rendered first
            asked = Training(recipe=chosen.recipe or "dualformer_tiny_k400")
            made = plan.job(ablation, entry, Setup(chosen, asked), 12, 0, Path("."))
            assert max(made.config["depths"]) <= (chosen.depth or 99)
            widths = backbones.config(entry.case.model).widths
            assert all(0 < small <= whole for small, whole in zip(made.config["widths"], widths, strict=True))


OF_OTHER_PAPERS = ("timesformer", "mvit", "vivit", "vidtr", "xvit", "vtn", "deit")


@pytest.mark.parametrize("name", [name for name in backbones.names() if name.startswith(OF_OTHER_PAPERS)])
def test_the_quick_budget_makes_a_small_model_of_every_published_one(name):
    recipe, whole = recipes.load("quick"), backbones.config(name)
    small = shrunk(whole, budget.load("quick"), recipe)
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in backbones.create(config, 8).parameters()) for config in (whole, small)]
        model, size = backbones.create(small, 8, kernel="reference"), recipe.augmentation.size
        assert model(torch.empty(2, 3, recipe.sampling.frames, size, size)).shape == (2, 8)
    assert sizes[1] < sizes[0] / 4


def test_a_shrunk_model_keeps_its_pattern_and_divides_its_heads():
    config = backbones.config("dualformer_tiny")
    small = shrunk(config, Budget("b", "", "motion", width=0.25, depth=1), recipes.load("quick"))
    assert small.stages == config.stages
    assert small.attention == config.attention
    assert small.depths == (2, 2, 2, 2)  # one turn of local and global
    assert small.widths == (16, 32, 64, 128)
    assert small.num_heads == (1, 1, 2, 4)


def test_a_row_of_half_the_frames_trains_on_half_the_frames():
    ablation = case.load("window_size")
    frames = {}
    for entry in case.resolve(ablation, case.Settings()):
        frames[entry.case.row] = plan.job(
            ablation, entry, Setup(budget.load("quick")), 12, 0, Path(".")
        ).recipe.sampling.frames
    assert frames["16x4, window (8,7,7)"] * 2 == frames["32x2, window (8,7,7), default"]


def test_every_row_starts_from_the_weights_of_its_own_network(tmp_path, clips, capsys):
    """Made by the same command on other data; the record says which they are, beside the accuracy of a cold start."""
    ablation, start, out = "position_encoding", tmp_path / "start", tmp_path / "out"
    rows, data = ["rows=[1,2]", "seeds=[3]"], data_set(tmp_path / "others", train=8, val=6)
    assert ran(start, clips, "rows=[1,2]", "seeds=[0]", ablation=ablation) == 0
    made = {}
    for path in results(start):
        stored = json.loads((path.parent / "job.json").read_text())["job"]
        made[stored["config"]["position"]] = file_digest(
            plan.weights(path.parent, json.loads(path.read_text())["checkpoint"])
        )
    assert len(set(made.values())) == 2
    for more in ([], [f"initial={start}"]):
        assert ran(out, clips, f"data={data}", *rows, *more, ablation=ablation) == 0
    for file in out.glob(f"{ablation}/[nr]*.json"):
        record = read_record(file)
        cold, warm = (record.get(f"top1_quick_{plan.data_slug(str(data))}{end}") for end in ("", "_warm"))
        assert ("initial" in cold.details, cold.title + ", warm start") == (False, warm.title)
        digest = warm.details["initial"]["sha256"]
        assert digest == made.pop(record.case["config"]["position"])
        folders = list(out.glob(f"training/*-from-{digest[:8]}"))
        assert [json.loads((folder / "job.json").read_text())["content"]["checkpoint"] for folder in folders] == [
            digest
        ]
    assert not made
    report = (out / ablation / "report.md").read_text()
    assert report.count("top-1 ↑, %, measured, quick: mean") == report.count("measured, quick, warm start: mean") == 1
    assert "warm start" in " ".join(capsys.readouterr().out.split())
    assert ran(out, clips, "rows=[3]", "seeds=[3]", f"initial={start}", ablation=ablation) == 2
    assert "it holds no finished training of this network" in " ".join(capsys.readouterr().err.split())
    assert ran(out, clips, f"initial={tmp_path / 'nothing'}", ablation=ablation) == 2
    assert "no such file or folder" in capsys.readouterr().err


def test_tables_share_the_training_of_a_row_that_they_have_in_common(tmp_path):
    setup, folders = Setup(budget.load("quick")), {}
    for name in ("pyramid_scales", "window_size", "position_encoding"):
        ablation = case.load(name)
        planned = plan.tasks(ablation, case.resolve(ablation, case.Settings()), setup, 12, tmp_path)
        folders[name] = {task.job.folder for task in planned if "default" in task.entry.case.row and task.seed == 0}
        assert len({task.job.folder for task in planned}) <= len(planned)
    assert folders["pyramid_scales"] == folders["window_size"] == folders["position_encoding"]


def test_rows_that_shrink_to_the_same_network_are_trained_once(tmp_path):
    """At the quick size the fine scale of the last stages is the whole map, and the coarse one its frames."""
    scales = case.load("pyramid_scales")
    setup = Setup(budget.load("quick"), Training(seeds=(0,)))
    twins = {
        task.entry.case.row: task
        for task in plan.tasks(scales, case.resolve(scales, case.Settings()), setup, 8, tmp_path)
    }
    pairs = {"LG2, stage 4 whole": "LG2, fine (8,7,7) only", "LG1 in every stage": "LG1, coarse (4,4,4) only"}
    for name, same in pairs.items():
        assert (twins[name].job, twins[name].same_as) == (twins[same].job, same)
    assert len(plan.distinct(list(twins.values()))) == len(twins) - len(pairs)
    assert {name for name, task in twins.items() if task.same_as} == set(pairs)
    assert next(iter(twins)) == twins[scales.baseline].entry.case.row  # other tables share the baseline's training


def test_networks_with_the_same_weights_may_differ_in_their_windows():
    small = {"clip": [4, 32, 32], "widths": [4, 4, 8, 8], "num_heads": [1, 1, 2, 2], "depths": [2, 2, 2, 2]}
    windows = [[8, 7, 7], [2, 8, 8], [2, 9, 9], [1, 4, 4]]
    of = [
        backbones.config("pyramid_tiny_local_window").changed(
            {**small, "attention": {"local_window": {"scheme": "local_window", "window": window}}}
        )
        for window in windows
    ]
    same = [plan.same_network(of[1].to_dict(), other.to_dict(), 3) for other in of]
    assert same == [False, True, True, False]


def test_a_network_that_cannot_be_built_is_the_same_as_no_other():
    sound = backbones.config("dualformer_tiny").changed({"clip": [4, 32, 32]})
    broken = sound.changed({"attention.G2.branches": ["single"]})
    assert not plan.same_network(sound.to_dict(), broken.to_dict(), 3)


def test_seeds_and_data_make_trainings_of_their_own(tmp_path):
    ablation = case.load("position_encoding")
    entry = case.resolve(ablation, case.Settings())[0]
    made = [
        plan.job(ablation, entry, Setup(budget.load("quick"), Training(data=data)), 12, seed, tmp_path).folder
        for data in (None, "motion_large")
        for seed in (0, 1)
    ]
    assert len(set(made)) == 4


@pytest.mark.parametrize(
    "words, message",
    [
        (["accuracy=quik"], "did you mean 'quick'"),
        (["accuracy=quick", "seeds=[0,0]"], "one is given twice"),
        (["accuracy=quick", "seeds=[-1]"], "not a whole number from 0"),
        (["accuracy=quick", "recipe=quikc"], "quick"),
        (["accuracy=quick", "recipe.optimisation.epoch=3"], "epochs"),
        (["accuracy=quick", "data=nothing_like_it"], "unknown data set"),
        (["accuracy=full"], "root=FOLDER"),
        (["metrics=[]"], "accuracy is off"),
        (["metrics=[params]", "data=motion"], "which is off here"),
        (["accuracy=quick", "cluster=slurn"], "did you mean 'slurm'"),
        (["accuracy=quick", "cluster.timeout_min=3"], "needs cluster=slurm"),
    ],
)
def test_a_slip_is_told_before_any_work(words, message, tmp_path, capsys):
    assert run.main(["ablation=pyramid_scales", f"out={tmp_path}", *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("training/*"))


@pytest.mark.parametrize(
    ("option", "typed"),
    [
        (dict(data_changes={"sided": True}), "data.FIELD"),
        (dict(recipe_source="code"), "recipe"),
        (dict(jobs=2), "jobs"),
    ],
)
def test_an_option_of_trainings_is_refused_where_nothing_is_trained(option, typed):
    ablation = case.load("pyramid_scales")
    assert session.setup(ablation, case.Settings(), Training(budget.OFF), True) is None
    with pytest.raises(UsageError, match=f"{typed}.* is for accuracy, which is off here"):
        session.setup(ablation, case.Settings(), Training(budget.OFF, **option), True)


def test_rows_are_trained_once_and_stand_in_the_records(tmp_path, clips, capsys):
    assert ran(tmp_path, clips, "seeds=[0,1]") == 0
    by_row = records(tmp_path)
    assert len(by_row) == 3
    name = "top1_quick_" + plan.data_slug(str(clips))
    for record in by_row.values():
        measured = record.get(name)
        assert len(measured.samples) == 2
        assert measured.said("seed") == [0, 1]
        assert measured.details["videos"] == 6
        assert [visit.details["coverage"] for visit in measured.visits] == [1.0, 1.0]
        assert set(measured.details) >= {"width_factor", "frames", "size", "machine"}
        assert all({"shuffled", "single"} <= set(visit.details) for visit in measured.visits)
    assert len(results(tmp_path)) == 6
    written = {path: path.stat().st_mtime_ns for path in results(tmp_path)}
    capsys.readouterr()
    assert ran(tmp_path, clips, "seeds=[0,1]") == 0  # again: nothing to do
    assert "6 of 6 trainings are there" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in results(tmp_path)} == written
    results(tmp_path)[0].unlink()  # as if killed before its end
    assert ran(tmp_path, clips, "seeds=[0,1]") == 0
    assert sum(path.stat().st_mtime_ns != written[path] for path in results(tmp_path)) == 1


def test_no_training_that_did_not_learn_is_a_plain_figure(tmp_path, clips, capsys):
    nothing = ["recipe.optimisation.lr=0", "recipe.optimisation.backbone_lr=0"]
    assert ran(tmp_path, clips, *nothing, "rows=[1]", "recipe.optimisation.epochs=3", "seeds=[0]") == 0
    captured = capsys.readouterr()
    folder, name = tmp_path / "temporal_controls", "top1_quick_" + plan.data_slug(str(clips))
    marked = r"has not learnt \(train \d+ %\)"
    assert re.search(r"top-1 [\d.]+ % \(has not learnt: train \d+ %\)", captured.err)
    assert re.search(marked, " ".join(captured.out.split()))
    row = "DualFormer, frames in order"
    lines = [line for line in (folder / "report.md").read_text().splitlines() if line.startswith(f"| {row} ")]
    assert re.search(rf"\*\*{marked}\*\*", lines[0])
    for line in (folder / "report.md").read_text().splitlines():  # no accuracy stands anywhere without it
        assert not re.search(r"\d \([\d.]+–[\d.]+, (one seed|n=\d)\)", line) or "has not learnt" in line
    of_row = next(csv.DictReader((folder / "table.csv").open(encoding="utf-8")))
    assert of_row[f"{name}_training"] == "has not learnt"
    whole = next(line for line in csv.DictReader((tmp_path / "results.csv").open(encoding="utf-8")) if line["training"])
    assert (whole["measurement"], whole["training"]) == (name, "has not learnt")
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    held = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page)[1])
    assert re.fullmatch(marked, held["rows"][0]["training"][name])
    better = shutil.copytree(tmp_path, tmp_path.parent / f"{tmp_path.name}-better")
    (path,) = (p for p in (better / "temporal_controls").glob("*.json") if p.name != MANIFEST)
    of_record = read_record(path)
    gained = of_record.get(name)
    visits = tuple(replace(visit, samples=(100.0,)) for visit in gained.visits)
    write_record(replace(of_record, measurements={name: replace(gained, visits=visits)}), path.parent)
    compare.main([str(tmp_path), str(better)])
    assert len(re.findall(marked, " ".join(capsys.readouterr().out.split()))) == 2


def test_quick_mode_trains_a_few_steps_and_says_so_wherever_the_accuracy_stands(tmp_path, clips, capsys):
    asked = session.setup(case.load("pyramid_scales"), case.Settings(quick=True), Training(), True)
    assert asked.quick, "an ablation that trains by itself does so in quick mode, too"
    assert not session.setup(case.load("pyramid_scales"), case.Settings(), Training(), True).quick
    assert ran(tmp_path, clips, "quick=true", "recipe.optimisation.epochs=50", "rows=[1]") == 0
    captured = capsys.readouterr()
    assert "quick mode: 3 steps of each training" in captured.err
    (path,) = results(tmp_path)
    result = json.loads(path.read_text())
    assert (result["steps"], result["controls"]) == (3, {})
    folder = tmp_path / "quick" / "temporal_controls"
    marked = r"quick mode, a few steps \(train \d+ %\)"
    assert "(quick mode, a few steps: train" in captured.err
    assert re.search(marked, " ".join(captured.out.split()))
    assert re.search(rf"\*\*{marked}\*\*", (folder / "report.md").read_text())
    of_row = next(csv.DictReader((folder / "table.csv").open(encoding="utf-8")))
    assert of_row[f"top1_quick_{plan.data_slug(str(clips))}_training"] == "quick mode, a few steps"


def test_without_quick_mode_the_jobs_are_whole():
    ablation, settings = case.load("pyramid_scales"), case.Settings()
    setup = session.setup(ablation, settings, Training(), True)
    job = plan.job(ablation, case.resolve(ablation, settings)[0], setup, 8, 0, Path("."))
    assert (job.max_steps, job.preload, job.controls) == (None, True, True)


def test_a_worker_that_is_killed_costs_its_own_row_only(tmp_path, clips, capsys, monkeypatch):
    hand_over, kill = pool._give, []

    def give(slot, task, *more):
        hand_over(slot, task, *more)
        if not kill:
            kill.append(task)
            os.kill(slot.process.pid, signal.SIGKILL)

    monkeypatch.setattr(pool, "_give", give)
    assert ran(tmp_path, clips, "seeds=[0]") == 1
    name = "top1_quick_" + plan.data_slug(str(clips))
    lost, *others = [record.get(name) for record in records(tmp_path).values()]
    assert "signal 9" in lost.missing
    assert lost.retry
    assert all(len(other.samples) == 1 for other in others)
    assert "signal 9" in capsys.readouterr().err
    assert ran(tmp_path, clips, "seeds=[0]") == 0  # the next run mends it
    assert all(record.get(name).samples for record in records(tmp_path).values())


def test_a_worker_never_hears_ctrl_c(monkeypatch):
    """Not even while it loads torch, which would end in a traceback."""
    heard = []
    process = multiprocessing.get_context("spawn").Process
    monkeypatch.setattr(process, "start", lambda _: heard.append(signal.getsignal(signal.SIGINT)))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    pool._start(pool.Slot({}))
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler
    assert heard == [signal.SIG_IGN]


@pytest.mark.parametrize("trainings, slots, beside", [(3, 2, 2), (1, 4, 1), (2, 1, 1)])
def test_workers_are_told_how_many_share_the_memory(trainings, slots, beside, monkeypatch):
    told = []

    def give(slot, task, _job, beside):
        slot.task, (slot.connection, theirs) = task, multiprocessing.Pipe()
        theirs.send(None)
        told.append(beside)

    monkeypatch.setattr(pool, "_give", give)
    tasks = [SimpleNamespace(ready=lambda: "a job") for _ in range(trainings)]
    assert len(list(pool.run(tasks, pool.slots("cpu", slots), lambda in_work: None))) == trainings
    assert told == [beside] * trainings


def test_trainings_side_by_side_share_the_memory_that_is_available(tmp_path, monkeypatch):
    clips = data_set(tmp_path / "clips", train=12, val=2)  # eight tell whether the rest fits
    memory, needed = (
        psutil.virtual_memory(),
        sum(math.prod(place.shape) for place in preload(datasets.load(str(clips), "train"), 36).places),
    )
    room = memory._replace(available=int(4 * needed / loading.SHARE_OF_MEMORY))
    monkeypatch.setattr(loading.psutil, "virtual_memory", lambda: room)
    raw = small_job(clips, tmp_path, preload=True, max_steps=1).to_dict()
    failure = pool.train(raw, tmp_path / "sixteen", lambda: False, beside=16)
    assert "in each of 16 processes" in failure
    assert "fewer than 16 trainings side by side (jobs=)" in failure
    assert pool.train(raw, tmp_path / "one", lambda: False) is None


def test_a_teacher_is_trained_before_its_student(tmp_path, clips):
    assert ran(tmp_path, clips, "seeds=[0]", ablation="token_labelling") == 0
    jobs = {path.parent.name: json.loads((path.parent / "job.json").read_text()) for path in results(tmp_path)}
    student = [stored for stored in jobs.values() if stored["job"]["recipe"]["token_labels"]]
    assert len(jobs) == 3
    assert len(student) == 1
    assert student[0]["content"]["teacher"]


def test_a_teacher_must_stand_above(tmp_path):
    ablation = case.load("token_labelling")
    ablation = replace(ablation, rows=ablation.rows[::-1])
    entries = case.resolve(ablation, case.Settings())
    with pytest.raises(UsageError, match="no row above it"):
        plan.tasks(ablation, entries, Setup(budget.load("quick")), 12, tmp_path)


def test_trainings_go_through_a_queue(tmp_path, clips):
    pytest.importorskip("submitit", reason="cluster needs submitit, which is not installed")
    assert ran(tmp_path, clips, "seeds=[0]", "cluster=local", "cluster.timeout_min=5") == 0
    name = "top1_quick_" + plan.data_slug(str(clips))
    assert all(record.get(name).samples for record in records(tmp_path).values())
    assert not list(tmp_path.glob("training/*/submitted.json"))


def test_a_budget_refuses_what_it_cannot_be():
    with pytest.raises(UsageError, match="did you mean 'proxy'"):
        budget.load("proxi")
    with pytest.raises(UsageError, match="seeds: .* different"):
        typed(Budget, dict(name="b", meaning="", data="motion", seeds=[0, 0]), "b.yaml")
    with pytest.raises(UsageError, match="width is 2.0, not a number above 0 and at most 1"):
        typed(Budget, dict(name="b", meaning="", data="motion", width=2.0), "b.yaml")
    with pytest.raises(ValueError, match="width"):
        Budget("b", "", "motion", width=2.0)


def test_a_row_may_be_trained_on_several_data_sets_and_be_scored_on_one_of_them(tmp_path, capsys):
    for name in "ab":
        data_set(tmp_path / name, train=8, val=6)
    both = [str(tmp_path / name) for name in "ab"]
    rows = [
        {"row": "alone", "training": {"data": both[:1], "set": "a"}},
        {"row": "both", "baseline": "alone", "training": {"data": both, "set": "a"}},
        {"row": "both, the other", "training": {"data": both, "set": "b"}},
    ]
    changes = {"width": 8, "num_heads": 1, "depths": [1, 1], "key_stride": [1, 4, 4]}
    raw = {"name": "mine", "question": "?", "model": "multitrain_small_16f"}
    raw["rows"] = [row | {"changes": changes} for row in rows]
    (tmp_path / "mine.yaml").write_text(json.dumps(raw))
    words = [word for word in SMALL if "frames" not in word]
    more = ["recipe.sampling.frames=4", f"ablation={tmp_path / 'mine.yaml'}", f"out={tmp_path / 'out'}", "seeds=[0,1]"]
    assert run.main([*words, *more]) == 0
    assert len(results(tmp_path / "out")) == 4  # of two seeds: a alone, and both for two rows
    by_row = records(tmp_path / "out", "mine")
    for name, record in by_row.items():
        (measured,) = [m for m in record.measurements.values() if m.kind == "scored"]
        assert measured.details["classes"] == 3
        assert measured.details["videos"] == 6
        assert measured.details["data"] == ("b" if "other" in name else "a")
    joint = [json.loads(path.read_text())["sets"] for path in results(tmp_path / "out")]
    tops = [sets["b"]["top1"]["value"] for sets in joint if "b" in sets]
    scored = next(m for m in by_row["both, the other"].measurements.values() if m.kind == "scored")
    assert sorted(scored.samples) == sorted(tops)
    report = (tmp_path / "out" / "mine" / "report.md").read_text()
    lines = [line for line in report.splitlines() if line.startswith("| both |")]
    assert "has not learnt" in lines[0], "eight clips teach nothing"
    assert any("not tested" in line for line in lines)
    capsys.readouterr()
    assert run.main([*words, *more, f"data={both[0]}"]) == 2
    assert "the rows name their data sets" in capsys.readouterr().err
    raw["rows"][0]["training"]["set"] = "c"
    (tmp_path / "mine.yaml").write_text(json.dumps(raw))
    assert run.main([*words, *more]) == 2
    assert "training.set: 'c' is none of the row's data sets" in capsys.readouterr().err
