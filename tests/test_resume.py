"""A run that was killed, damaged or out of disk space ends as if nothing had been: the same bits, the same log."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from training_runs import data_set, job, recipe

from harness.evaluation.predictions import Predictions
from harness.training import state
from harness.training.job import Stopped, TrainingError
from harness.training.loop import train
from harness.training.stopping import Stop, stopping

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX processes")
SETTINGS = dict(chosen=recipe(epochs=4.0), evaluate_every=2)  # twelve steps
EXACT = ("step", "epoch", "loss", "lr", "top1")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return data_set(tmp_path_factory.mktemp("clips"))


def left(folder):
    """Weights, optimizer, log and predictions of a finished run."""
    step = state.steps(folder)[0]
    path = folder / state.FOLDER / state.name_of(step)
    saved = torch.load(path / state.STATE, weights_only=True)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    result = json.loads((folder / "result.json").read_text())
    return {
        "weights": load_file(path / state.WEIGHTS),
        "optimizer": saved["optimizer"],
        "log": [{key: line[key] for key in EXACT} for line in lines],
        "predictions": torch.from_numpy(Predictions.load(folder / "predictions.npz").scores),
        "history": result["history"],
        "top1": result["scores"]["top1"],
    }


def assert_same(first, other):
    for part in first:
        torch.testing.assert_close(first[part], other[part], rtol=0, atol=0, msg=lambda m, p=part: f"{p}: {m}")


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    chosen = job(data, tmp_path_factory.mktemp("undisturbed") / "run", **SETTINGS)
    train(chosen)
    return left(chosen.folder)


def start(chosen, before=lambda: None, error_file=None):
    """Trains in a process of its own. Its status: 0 done, 3 stopped, 4 a TrainingError, which goes to a file."""
    child = os.fork()
    if child == 0:
        status = 70
        try:
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1), os.dup2(silent, 2)
            before()
            with stopping() as stop:
                train(chosen, stop=stop)
            status = 0
        except Stopped:
            status = 3
        except TrainingError as error:
            if error_file:
                error_file.write_text(str(error))
            status = 4
        finally:
            os._exit(status)
    return child


def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def lines_in(folder):
    path = folder / "log.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def killed_until_done(chosen, seed):
    """Kills a run again and again, mostly just after it has got on by some steps. Returns how often it was hit."""
    generator, hits = random.Random(seed), 0
    while True:
        child, target = start(chosen), lines_in(chosen.folder) + generator.choice([0, 1, 1, 2, 3])
        limit = time.monotonic() + 300
        while lines_in(chosen.folder) < target and time.monotonic() < limit:
            if os.waitpid(child, os.WNOHANG)[0]:
                return hits
            time.sleep(0.005)
        time.sleep(generator.uniform(0, 0.1))  # into the next step, or into the writing of a checkpoint
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return hits
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        hits += 1


@pytest.mark.parametrize("every", [0.0, 0.3])
def test_a_run_that_is_killed_again_and_again_ends_the_same(data, undisturbed, tmp_path, every):
    hits = 0
    for number in range(10):  # of the few steps of a run, some machine may do all before it can be killed twice
        chosen = job(data, tmp_path / f"run{number}", save_every_seconds=every, **SETTINGS)
        hits += killed_until_done(chosen, seed=number)
        assert_same(undisturbed, left(chosen.folder))
        assert not list((chosen.folder / state.FOLDER).glob(".*"))
        if hits >= 2:
            return
    pytest.fail(f"ten runs were hit {hits} times only")


@pytest.mark.slow
def test_dozens_of_kills_change_nothing(data, undisturbed, tmp_path):
    hits = 0
    for seed in range(8):
        chosen = job(data, tmp_path / f"run{seed}", save_every_seconds=0.0, **SETTINGS)
        hits += killed_until_done(chosen, seed=time.time_ns())
        assert_same(undisturbed, left(chosen.folder))
    assert hits >= 20


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_step_and_the_run_goes_on_from_there(data, undisturbed, tmp_path, number):
    chosen = job(data, tmp_path / "run", **SETTINGS)
    asked = Stop.__call__

    def wait_for_the_signal(stop):  # after two steps: else a fast machine were done before it is asked to stop
        while lines_in(chosen.folder) >= 2 and not asked(stop):
            time.sleep(0.01)
        return asked(stop)

    child = start(chosen, before=lambda: setattr(Stop, "__call__", wait_for_the_signal))
    while lines_in(chosen.folder) < 2:
        time.sleep(0.01)
    os.kill(child, number)
    assert ended(child) == 3
    (step,) = state.steps(chosen.folder)
    assert step >= 2
    assert lines_in(chosen.folder) == step
    train(chosen)
    assert_same(undisturbed, left(chosen.folder))


@pytest.mark.parametrize("values", [dict(log_every=5), dict(dtype="float16"), dict(workers=1, preload=True)])
def test_what_a_stop_interrupts_goes_on(data, tmp_path, values):
    """In the middle of a line of the log, with the scaler of gradients, with clips that were loaded ahead."""
    settings = dict(max_steps=5) | values
    whole = job(data, tmp_path / "whole", **settings)
    train(whole)
    parts, steps = job(data, tmp_path / "parts", **settings), iter(range(9))
    with pytest.raises(Stopped, match="stopped after step 3 of 5"):
        train(parts, stop=lambda: next(steps) == 2)
    train(parts)
    assert_same(left(whole.folder), left(parts.folder))


def test_a_training_goes_on_until_its_curve_is_flat_and_after_a_stop_as_if_there_was_none(data, tmp_path):
    """Without a learning rate nothing rises, so that the second course is the last; a stop falls into that one."""
    still = recipe(epochs=1.0, lr=0.0, backbone_lr=0.0)
    whole = train(job(data, tmp_path / "whole", chosen=still, until_flat=True))
    assert (whole.steps, whole.epochs) == (6, 2)  # three steps, and as many again
    assert [course["end"] for course in whole.training["courses"]] == [3]
    assert whole.trouble == "has not learnt"
    rates = [json.loads(line)["lr"] for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    assert rates[:3] == rates[3:]
    learning = replace(still, optimisation=replace(still.optimisation, lr=2e-3, backbone_lr=1e-3))
    settings = dict(chosen=learning, until_flat=True)
    train(job(data, tmp_path / "learning", **settings))
    steps = iter([False] * 3 + [True])
    with pytest.raises(Stopped):
        train(job(data, tmp_path / "stopped", **settings), stop=lambda: next(steps))
    train(job(data, tmp_path / "stopped", **settings))
    assert_same(left(tmp_path / "learning"), left(tmp_path / "stopped"))
    assert train(job(data, tmp_path / "short", chosen=still, until_flat=True, minutes=1e-6)).steps == 3


def test_two_newest_checkpoints_and_the_best_are_kept(data, tmp_path):
    chosen = job(data, tmp_path / "run", save_every_seconds=0, **SETTINGS)
    result = train(chosen)
    best = max(result.history, key=lambda entry: entry["top1"])["step"]
    assert state.steps(chosen.folder) == sorted({12, 11, best}, reverse=True)


@pytest.fixture(scope="module")
def stopped(data, tmp_path_factory):
    """A run that was stopped after its seventh step, with checkpoints of the sixth and seventh."""
    chosen, steps = (
        job(data, tmp_path_factory.mktemp("stopped") / "run", save_every_seconds=0, **SETTINGS),
        iter(range(9)),
    )
    with pytest.raises(Stopped, match=r"stopped after step 7 of 12; the same command goes on from .*step-0000007"):
        train(chosen, stop=lambda: next(steps) == 6)
    return chosen


@pytest.mark.parametrize("file", [state.WEIGHTS, state.STATE, state.SUMS])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_checkpoint_is_told_of_and_the_one_before_is_used(stopped, tmp_path, caplog, file, damage):
    folder = tmp_path / "run"
    shutil.copytree(stopped.folder, folder)
    newest = folder / state.FOLDER / state.name_of(7)
    path = newest / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    assert state.last_good(folder).name == state.name_of(6)
    assert state.newest(folder).name == state.name_of(6)
    assert str(newest) in caplog.text
    assert "the checkpoint before it is used" in caplog.text
    assert not newest.exists()


def test_after_damage_a_run_ends_as_it_would_have(stopped, undisturbed, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(stopped.folder, folder)
    (folder / state.FOLDER / state.name_of(7) / state.STATE).write_bytes(b"damaged")
    train(replace(stopped, folder=folder))
    assert_same(undisturbed, left(folder))


def test_a_state_that_runs_code_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (print, ("harm",))

    torch.save({"format": 1, "step": Harmful()}, tmp_path / "state.pt")
    with pytest.raises(state.Damaged, match="state.pt"):
        state.load(tmp_path, torch.nn.Linear(1, 1))


# A full disk


def test_a_file_that_cannot_be_written_leaves_the_last_good_checkpoint(data, undisturbed, tmp_path):
    """A limit on the size of files stands in for a full disk."""
    chosen = job(data, tmp_path / "run", save_every_seconds=0, **SETTINGS)

    def limited():
        real = state.save

        def save(folder, step, *arguments, **options):
            if step == 5:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            return real(folder, step, *arguments, **options)

        state.save = save

    assert ended(start(chosen, limited, tmp_path / "error.txt")) == 4
    told = (tmp_path / "error.txt").read_text()
    assert f"cannot be written to {chosen.folder}" in told
    assert "It needs about" in told
    assert "the last good checkpoint is" in told
    assert state.last_good(chosen.folder).name == state.name_of(4)
    assert not list((chosen.folder / state.FOLDER).glob(".*"))
    train(chosen)
    assert_same(undisturbed, left(chosen.folder))


@pytest.fixture
def small_disk(tmp_path):
    """A folder of 2 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_leaves_the_last_good_checkpoint(data, undisturbed, small_disk, tmp_path):
    """There is room for two checkpoints and a half; then, for more."""
    chosen = job(data, small_disk / "run", save_every_seconds=0, **SETTINGS)
    checkpoint = 3 * sum(tensor.numel() * tensor.element_size() for tensor in undisturbed["weights"].values())
    (small_disk / "ballast").write_bytes(bytes(2**21 - int(2.5 * checkpoint) - 40_000))
    assert ended(start(chosen, error_file=tmp_path / "error.txt")) == 4
    told = (tmp_path / "error.txt").read_text()
    good = state.last_good(chosen.folder)
    assert f"cannot be written to {chosen.folder}: " in told
    assert "No space left" in told
    assert "It needs about" in told
    assert str(good) in told
    assert not list((chosen.folder / state.FOLDER).glob(".*"))
    (small_disk / "ballast").unlink()
    train(chosen)
    assert_same(undisturbed, left(chosen.folder))
