"""A suite: steps that compose, what does not fit into the time left out and said, and a run that ends in records."""

import importlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from small_cases import TINY

from harness import plan, run, sanity, suite, video
from harness.call import Call
from harness.cost import metrics
from harness.deadline import Deadline
from harness.spec import case
from harness.spec import suite as suites
from harness.spec.budget import Training
from harness.spec.case import Settings
from harness.spec.reader import UsageError
from records import provenance
from records.record import read_manifest, read_records
from records.terminal import until_closed

ROOT = Path(__file__).parents[1]
STEPS = [(name, step) for name in suites.names() for step in suites.load(name).steps]
IDS = [f"{name}-{step.step}" for name, step in STEPS]


def small(**fields):
    """A step that is measured in a moment."""
    fields = {"step": "one", "seconds": 60, "ablation": "window_size", "metrics": ["params", "macs"]} | fields
    return suites.from_dict({"question": "?", "device": "cpu", "steps": [fields]}, "trial.yaml")


def go(chosen, out, console=None, training=None, **settings):
    settings = Settings(threads=1, quick=True, model=TINY, **settings)
    call = Call([], settings, None, out, training or Training(), console=console or Console(quiet=True))
    return suite.run(chosen, list(chosen.steps), call)


@pytest.mark.parametrize("quick", [False, True], ids=["full", "quick"])
@pytest.mark.parametrize("name, step", STEPS, ids=IDS)
def test_every_step_composes(name, step, quick):
    settings = Settings(device=suites.load(name).device, quick=quick)
    entries, ablation = step.entries(settings), step.composed(quick)
    assert entries
    assert len({case.case_id(entry.case) for entry in entries}) == len(entries)
    assert {entry.baseline for entry in entries} <= {None, *(entry.case.row for entry in entries)}
    assert set(ablation.metrics) <= set(metrics.names())
    assert ablation.metrics or step.accuracy
    assert all(entry.case.device == settings.device for entry in entries)
    if quick:
        assert {entry.row.row for entry in entries} == {ablation.rows[0].row}
        assert max(entry.case.batch_size for entry in entries) <= suites.QUICK_BATCH


@pytest.mark.parametrize("name", suites.names())
def test_the_time_of_a_suite_holds_its_first_steps(name):
    chosen = suites.load(name)
    assert chosen.minutes * 60 + 40 < 8 * 60
    assert sum(step.seconds for step in chosen.steps[:3]) < chosen.minutes * 60
    assert all(step.needs < chosen.minutes * 60 for step in chosen.steps)


def test_by_its_predicted_times_all_of_the_gpu_suite_fits(capsys):
    """The first step is one program five times: how well it repeats is known before anything is compared."""
    gpu, known = suites.load("gpu"), set()
    predicted = [plan.predicted(step, Settings(device="cuda"), known) for step in gpu.steps]
    alone = [plan.predicted(step, Settings(device="cuda"), set()) for step in gpu.steps]
    assert sum(alone) - sum(predicted) > 60  # what steps share is measured once
    assert sum(predicted) < gpu.minutes * 60
    assert all(seconds < step.seconds for seconds, step in zip(predicted, gpu.steps, strict=True))
    first = gpu.steps[0]
    assert (len(first.entries(Settings(device="cuda"))), first.rounds) == (1, 5)
    assert run.main(["suite=gpu", "plan=true"]) == 0
    assert (
        "repeat: 1 cases of attention_schemes; params, macs, latency, throughput, peak_memory; about 32"
        in capsys.readouterr().out
    )


def test_steps_of_one_folder_share_their_cases():
    """Accuracy is added to the records of the costs: the settings must name the same cases."""
    for name in suites.names():
        chosen, by_folder = suites.load(name), {}
        for step in chosen.steps:
            if step.ablation:
                by_folder.setdefault(step.folder or step.step, []).append(step)
        for shared in by_folder.values():
            identifiers = [{case.case_id(e.case) for e in s.entries(Settings(device=chosen.device))} for s in shared]
            assert all(ids == identifiers[0] for ids in identifiers)


def test_a_step_writes_records_that_say_how_to_make_them_again(tmp_path):
    assert go(small(), tmp_path) == 0
    folder = tmp_path / "quick" / "one"
    assert len(read_records(folder)) == 1
    assert read_manifest(folder)["arguments"] == ["suite=trial", "steps=[one]", "quick=true"]
    report = (folder / "report.md").read_text()
    assert "python -m harness.run suite=trial 'steps=[one]' quick=true  #" in report


def test_what_does_not_fit_is_left_out_and_the_next_run_goes_on(tmp_path, monkeypatch, capsys):
    chosen, console = small(), Console(width=200)
    monkeypatch.setattr(Deadline, "left", 0.0)
    assert go(chosen, tmp_path, console) == 0
    printed = capsys.readouterr().out
    assert "left out: one: 0 s are left, and it needs 5 s" in printed
    assert "to go on from here" in printed
    assert not (tmp_path / "quick" / "one").exists()
    monkeypatch.setattr(suite, "_left_out", lambda *_: None)
    assert go(chosen, tmp_path, console) == 0
    assert "left out: one: 1 of 1 steps of one" in capsys.readouterr().out
    monkeypatch.undo()
    assert go(chosen, tmp_path, console) == 0
    assert "left out" not in capsys.readouterr().out
    assert len(read_records(tmp_path / "quick" / "one")) == 1
    assert go(chosen, tmp_path, console) == 0
    assert "every measurement is there already" in capsys.readouterr().out


def test_a_step_takes_over_the_rows_that_an_earlier_one_measured(tmp_path, capsys):
    """The program that was repeated is the baseline of the next table, and its rounds give that one a noise floor."""
    first = {"step": "repeat", "seconds": 60, "ablation": "kernels", "rows": ["local + global"], "vary": {}}
    first |= {"rounds": 3, "metrics": ["macs", "latency"], "baseline": "local + global"}
    second = first | {"step": "then", "rounds": 1, "vary": {"kernel": ["auto", "reference"]}, "baseline": "kernel=auto"}
    both = suites.from_dict({"question": "?", "device": "cpu", "steps": [first, second]}, "trial.yaml")
    assert go(both, tmp_path, Console(width=200)) == 0
    printed = capsys.readouterr().out
    assert "then: 2 cases, 2 steps to do" in printed  # the count and the one visit of the reference
    (repeated,) = read_records(tmp_path / "quick" / "repeat")
    auto, reference = sorted(read_records(tmp_path / "quick" / "then"), key=lambda record: record.row)
    assert auto.get("latency").samples == repeated.get("latency").samples
    assert auto.get("latency").said("step") == ["repeat"] != reference.get("latency").said("step")
    report = (tmp_path / "quick" / "then" / "report.md").read_text()
    assert "Taken for repeat, minutes before the others" in report
    assert "Noise floor (A/A): latency" in report
    assert "were not measured in turn" not in report
    assert go(both, tmp_path, Console(width=200)) == 0
    assert capsys.readouterr().out.count("every measurement is there already") == 2


def test_the_time_of_a_visit_is_that_of_the_device_that_a_suite_is_for(tmp_path, monkeypatch):
    limits = []
    monkeypatch.setattr("harness.measuring.run", lambda call: limits.append(call.visit_seconds) or 0)
    timed = replace(small(), time_limit=7.0)
    go(timed, tmp_path)
    go(replace(timed, device="cuda"), tmp_path, device="cpu")
    assert limits == [7.0, 900.0]


def test_nothing_is_trained_in_quick_mode_unless_asked_for(tmp_path, capsys):
    assert go(small(metrics=[], accuracy="quick"), tmp_path, Console(width=200)) == 0
    assert "trains nothing in quick mode" in capsys.readouterr().out


@pytest.mark.parametrize(
    "raw, message",
    [
        ({"ablation": "window_sise"}, "unknown ablation 'window_sise'; did you mean 'window_size'"),
        ({"metrics": ["latencey"]}, "metrics: unknown metric 'latencey'; did you mean 'latency'"),
        ({"settings": {"dtyp": "float32"}}, "settings: unknown entry 'dtyp'; did you mean 'dtype'"),
        ({"accuracy": "quik"}, "accuracy: unknown budget 'quik'; did you mean 'quick'"),
        ({"second": 4}, "unknown entry 'second'; did you mean 'seconds'"),
        ({"settings": {"dtype": "float23"}}, "settings.dtype is 'float23'; did you mean 'float32'"),
        ({"vary": {"kernel": ["spda"]}}, "did you mean 'sdpa'"),
        ({"seconds": "ten"}, "trial.yaml, step 'one': seconds is 'ten', not a number above 0"),
        ({"check": "kernels"}, "unknown entry 'check'"),
    ],
)
def test_a_slip_in_a_suite_is_one_clear_error(raw, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        small(**raw)


def test_an_unknown_row_is_an_error_with_the_nearest():
    with pytest.raises(UsageError, match="has no row 'ful'; did you mean 'full'"):
        small(ablation="operators", rows=["ful"]).steps[0].composed()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["suite=gpo"], "unknown suite 'gpo'; did you mean 'gpu'"),
        (["suite=gpu", "steps=[equivalenc]"], "unknown step 'equivalenc'; did you mean 'equivalence'"),
        (["suite=gpu", "kernel=sdpa"], "kernel does not go with a suite"),
        (["suite=gpu", "model.drop_path=0"], "model does not go with a suite"),
        (["suite=gpu", "ablation=kernels"], "ablation does not go with a suite"),
        (["steps=[equivalence]"], "steps are those of a suite"),
        (["suit=gpu"], "did you mean 'suite'"),
    ],
)
def test_a_wrong_command_says_what_is_allowed(arguments, message, capsys):
    assert run.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_machine_without_the_device_is_told_of_the_smallest_form(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert run.main(["suite=gpu"]) == 2
    assert "suite=gpu device=cpu quick=true" in capsys.readouterr().err


def test_the_steps_can_be_seen(capsys):
    assert run.main(["suite=gpu", "plan=true"]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {step.step}: " in printed for step in suites.load("gpu").steps)


def test_records_of_a_device_have_a_folder_of_their_own(monkeypatch):
    monkeypatch.setattr(provenance, "gpu", lambda: [{"name": "NVIDIA H100 80GB HBM3"}])
    assert provenance.device_slug("cuda") == "nvidia-h100-80gb-hbm3"
    monkeypatch.setattr(provenance, "cpu_model", lambda: "AMD EPYC")
    monkeypatch.setattr(provenance, "usable_cores", lambda: 2)
    assert provenance.device_slug("cpu") == "cpu-amd-epyc-2-cores"


def test_a_step_of_the_gpu_suite_runs_on_a_cpu_with_a_tiny_model(tmp_path):
    """One of those that take least; all of them: the slow test below."""
    gpu, settings = (
        suites.load("gpu_more"),
        Settings(device="cpu", quick=True, threads=1, model=TINY, frames=2, size=32),
    )
    steps = gpu.chosen(["dtypes"])
    assert suite.run(gpu, steps, Call([], settings, None, tmp_path)) == 0
    assert (tmp_path / "quick" / "cost.md").is_file()
    for step in steps:
        assert (tmp_path / "quick" / step.step / "report.md").is_file()
        records = read_records(tmp_path / "quick" / step.step)
        assert len(records) == len(step.entries(settings))
        for record in records:
            assert {"macs", "latency", "peak_memory"} <= set(record.measurements)
            assert not {m.name: m.missing for m in record.measurements.values() if m.missing}


@pytest.mark.slow
def test_the_gpu_suite_runs_on_a_cpu_in_its_smallest_form(tmp_path):
    """Every step is begun or left out with a reason, and nothing fails."""
    command = [sys.executable, "-m", "harness.run", "suite=gpu", "device=cpu", "quick=true", f"out={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    folder = tmp_path / "quick"
    assert (folder / "cost.md").is_file()
    for step in suites.load("gpu").steps:
        if step.ablation and not step.accuracy and f"left out: {step.step}" not in done.stdout:
            assert read_records(folder / step.step), step.step


def test_the_names_of_before_run_what_scripts_mean_by_them(monkeypatch):
    from benchmarks import peers

    called = []
    monkeypatch.setattr(run, "main", lambda argv: called.append(argv) or 0)
    assert sanity.main(["device=cpu", "seconds=65", "quick=true"]) == 0
    assert called.pop() == ["suite=gpu", "steps=[equivalence]", "device=cpu", "quick=true"]
    assert peers.main(["device=cpu", "modes=[training]", "pairs=20", "size=64"]) == 0
    assert called.pop()[3:] == ["metrics=[training_latency]", "rounds=2", "device=cpu", "clip.size=64"]


SCRIPTS = ROOT.parent / "shared" / "gpu"
NOT_THERE = "decord hydra omegaconf fvcore kornia submitit beartype plotly".split()  # on the machine that it is for


@pytest.fixture
def script(tmp_path):
    """The script for the first minutes on a GPU, as `.ci/gpu` packs it."""
    if not SCRIPTS.is_dir():
        pytest.skip("no shared/gpu beside this checkout")
    folder = tmp_path / "gpu"
    folder.mkdir()
    for file in SCRIPTS.iterdir():
        shutil.copyfile(file, folder / file.name)
    done = subprocess.run(["bash", ".ci/gpu", "--rename", folder], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run.sh"


def test_the_script_for_the_first_minutes_on_a_gpu_speaks_of_what_is_here(script):
    """Of each step of the suite, and of the clip that would else be encoded there."""
    text = script.read_text()
    steps = re.findall(r"^suite (\w+) ", text, flags=re.MULTILINE)
    assert {*steps, "equivalence"} == {step.step for step in suites.load("gpu").steps}
    assert f'cp -n "$HERE/{video.SAMPLE}" "$RECORDS/"' in text
    imported = re.findall(r"^ *from ((?:harness|records|backbones)[.\w]*) import (\w+)", probe(script), re.MULTILINE)
    assert len(imported) >= 4
    for module, name in imported:
        assert hasattr(importlib.import_module(module), name) or importlib.import_module(f"{module}.{name}")


def probe(script):
    return (script.parent / "probe.py").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("step", ["probe", "ops", "sanity", "repeat", "peers", "operators", "launches"])
def test_the_script_for_the_first_minutes_on_a_gpu_runs_on_a_cpu(step, script, tmp_path):
    hidden = tmp_path / "site" / "sitecustomize.py"
    hidden.parent.mkdir()
    hidden.write_text(f"import sys\nsys.modules.update(dict.fromkeys({NOT_THERE}))\n")
    folders = {"OUT": str(tmp_path / "out"), "WORK": str(tmp_path / "work"), "TOTAL": "900"}
    environment = {**os.environ, **folders, "DEVICE": "cpu", "PY": sys.executable, "STEPS": step}
    environment["PYTHONPATH"] = os.pathsep.join([str(hidden.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(["bash", str(script)], cwd=ROOT, env=environment, capture_output=True, text=True)
    log = (tmp_path / "work" / "logs" / f"{step}.txt").read_text()
    assert f"{step}: status 0" in (tmp_path / "out" / "summary.txt").read_text(), done.stdout + log[-2000:]
    assert (tmp_path / "out" / "records.tar.gz").is_file()
    if step == "probe":
        assert "failed: none" in log


# output into a pipe whose reader has had enough


REPORT = ["reports.build", "results/cpu-amd-epyc-2-cores/kernels"]
PRINTING = [["harness.datasets"], ["attention_zoo"], ["backbones"]]


@pytest.mark.parametrize("arguments", [["harness.run"], REPORT, *PRINTING])
def test_a_terminal_without_our_letters_shows_the_others(arguments, tmp_path):
    if arguments[0].startswith("reports"):
        shutil.copytree(ROOT / arguments[1], tmp_path / "kernels")
        arguments = [arguments[0], str(tmp_path / "kernels")]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert "Traceback" not in done.stderr


def test_an_interrupt_ends_quietly(capsys):
    def work():
        raise KeyboardInterrupt

    assert until_closed(work) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_closed_pipe_is_no_error():
    def work():
        raise BrokenPipeError

    assert until_closed(work) == 141
    assert until_closed(lambda: 0) == 0


DESCRIBING = ["backbones", "describe", "dualformer_tiny"]  # by the program that lists all, which takes long
HELP = [["harness.run", "--help"], ["harness.train", "--help"]]


@pytest.mark.parametrize("arguments", [*HELP, *PRINTING[:-1], DESCRIBING])
def test_a_reader_that_stops_early_sees_no_traceback(arguments):
    running = subprocess.Popen(
        [sys.executable, "-m", *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    running.stdout.close()
    complained = running.stderr.read()
    running.wait()
    assert "Traceback" not in complained
    assert "Exception ignored" not in complained
