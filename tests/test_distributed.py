"""Processes that torchrun starts share a run: two with one micro-batch each learn what one learns with two.

Equal are losses, learning rates and weights. Not equal are the running statistics of BatchNorm, which two processes
gather each from its own micro-batches and average, and hence what evaluations see: that is compared loosely.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_runs import data_set, job, recipe

from harness.training.job import Job
from harness.training.loop import train

ROOT = Path(__file__).parents[1]
RUNNING = ("running_mean", "running_var", "num_batches_tracked")
PROGRAM = """
import json, sys
import torch.distributed
from harness.training import job, loop
torch.distributed.init_process_group("gloo")
raw = json.load(open(sys.argv[1]))
for one in raw:
    loop.train(job.Job.from_dict(one["job"], one["folder"]))
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return data_set(tmp_path_factory.mktemp("clips"), val=5)  # the processes have unequal shares of five videos


def together(jobs, folder, processes=2):
    """Runs jobs one after the other in processes that torchrun starts."""
    folder.mkdir(exist_ok=True)
    (folder / "program.py").write_text(PROGRAM)
    (folder / "jobs.json").write_text(
        json.dumps([{"job": each_job.to_dict(), "folder": str(each_job.folder)} for each_job in jobs])
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, str(folder / "program.py"), str(folder / "jobs.json")],
        capture_output=True, text=True, cwd=folder, env=environment, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]


def left(chosen):
    result = json.loads((chosen.folder / "result.json").read_text())
    lines = [json.loads(line) for line in (chosen.folder / "log.jsonl").read_text().splitlines()]
    curve = [[line[key] for key in ("step", "loss", "lr", "top1")] for line in lines]
    return load_file(chosen.folder / result["checkpoint"]), torch.tensor(curve, dtype=torch.float64), result


def assert_the_same_training(first, other):
    (weights, curve, result), (weights_of_two, curve_of_two, result_of_two) = left(first), left(other)
    torch.testing.assert_close(curve, curve_of_two, rtol=0, atol=1e-5)
    for name, tensor in weights.items():
        if not name.endswith(RUNNING):
            torch.testing.assert_close(tensor, weights_of_two[name], rtol=1e-3, atol=1e-4, msg=lambda m, n=name: n + m)
    assert result_of_two["scores"]["videos"] == 5
    assert result_of_two["coverage"] == 1
    assert result_of_two["provenance"]["decoders"] == result["provenance"]["decoders"]
    assert sum(result["provenance"]["decoders"].values()) == 5
    assert result_of_two["provenance"]["processes"] == 2
    assert abs(result["loss"] - result_of_two["loss"]) < 1e-5


def test_two_processes_learn_what_one_learns_with_accumulation(data, tmp_path):
    """With dropout, stochastic depth, erasing and BatchNorm; FSDP2 as well as DDP; and going on with one process."""
    settings = dict(chosen=recipe(epochs=2.0), evaluate_every=1)
    alone = job(data, tmp_path / "one", micro_batch=2, **settings)
    ddp = job(data, tmp_path / "ddp", micro_batch=2, strategy="ddp", **settings)
    fsdp = job(data, tmp_path / "fsdp", micro_batch=2, strategy="fsdp", **settings)
    train(alone)
    together([ddp, fsdp], tmp_path / "torchrun")
    assert_the_same_training(alone, ddp)
    assert_the_same_training(alone, fsdp)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_shared_run_accumulates_and_resumes_as_one_process_or_as_two(data, tmp_path, strategy):
    settings = dict(chosen=recipe(epochs=2.0, batch_size=4), micro_batch=1, save_every_seconds=0)
    alone = job(data, tmp_path / "one", **settings)
    train(alone)
    stopped = job(data, tmp_path / "two", strategy=strategy, **settings)
    values = stopped.to_dict() | {"strategy": strategy}
    shared = Job.from_dict(values, stopped.folder)
    steps = iter(range(9))
    with pytest.raises(Exception, match="stopped after step 2"):
        train(job(data, tmp_path / "two", **settings), stop=lambda: next(steps) == 1)
    together([shared], tmp_path / "torchrun")
    assert_the_same_training(alone, shared)
