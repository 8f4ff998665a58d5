"""Processes that are killed at any moment: no finished record is lost or half-written, and the next run completes it.

Each run is a process of its own that measures real records of a tiny ablation; what is timed in it takes a few
milliseconds. Sometimes the run itself is killed, sometimes the process that measures for it.
"""

import json
import os
import random
import signal
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest
from test_harness import ablation

import reports.build  # noqa: F401  (loaded here, so that no run has to)
from harness import case, isolation, metrics, provenance, session, video
from harness.case import Settings
from reports.record import Measurement, read_manifest, read_records, write_json

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX processes")
NAMES = ("params", "latency", "peak_memory")
ROUNDS = 8


def measured_quickly(request, answer, log, time_limit):
    """Stands in for `isolation.run`: a fork that answers in two steps, as a real measuring process does."""
    child = os.fork()
    if child == 0:
        found = {}
        asked = json.loads(Path(request).read_text())
        for name in asked["metrics"]:
            time.sleep(0.004)
            found[name] = [
                asdict(Measurement(one, unit, better, (random.random() + 1,), details={"machine": asked["machine"]}))
                for one, (unit, better) in metrics.get(name).measures.items()
            ]
            write_json(found, Path(answer))
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return f"the measuring process was ended by signal {-status}" if status else None


def start(trial, out, force=False):
    """A run in a process of its own."""
    run = os.fork()
    if run == 0:
        status = 70
        try:
            os.setsid()
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
            isolation.run = measured_quickly
            tempfile.tempdir = str(out)  # a killed run leaves its scratch folder behind
            status = session.run([trial], Settings(threads=1), list(NAMES), out, rounds=ROUNDS, force=force)
        finally:
            os._exit(status)
    return run


def kill(run, generator):
    """Kill the run or the process that measures for it, at some moment; returns what was hit and how the run ended."""
    time.sleep(generator.uniform(0.02, 0.4))
    hit = []
    if generator.random() < 0.4:
        try:
            for child in psutil.Process(run).children()[:1]:
                child.kill()
                hit.append("child")
        except psutil.NoSuchProcess:
            pass
        time.sleep(generator.uniform(0, 0.2))
    ended, status = os.waitpid(run, os.WNOHANG)
    if not ended:
        os.kill(run, signal.SIGKILL)
        hit.append("run")
        _, status = os.waitpid(run, 0)
    try:
        os.killpg(run, signal.SIGKILL)  # what a killed run leaves; a real measuring process ends with the run by itself
    except ProcessLookupError:
        pass
    return hit, os.waitstatus_to_exitcode(status)


def held(folder):
    """The samples of every measurement on disk, with their rounds; reading them proves that each record is whole."""
    return {
        (record.case_id, name): list(zip(m.details.get("rounds", [1] * len(m.samples)), m.samples, strict=True))
        for record in (read_records(folder) if folder.is_dir() else [])
        for name, m in record.measurements.items()
        if m.samples
    }


def finished(samples):
    """The measurements of which nothing is lacking."""
    in_one_round = ("params", "params_with_classifier", "peak_memory")
    return {key for key, of_one in samples.items() if key[1] in in_one_round or len(of_one) == ROUNDS}


def live(trial, out, generator):
    """Kill runs until one completes the records, then some that repeat them by force; returns what was hit."""
    folder, hits, before = out / trial.name, [], {}
    status = None
    while status != 0:
        hit, status = kill(start(trial, out), generator)
        now = held(folder)
        for key, of_one in before.items():
            assert now[key][: len(of_one)] == of_one, f"{key} lost rounds"
        for key, of_one in now.items():
            numbers = [number for number, _ in of_one]
            assert len(set(numbers)) == len(numbers), f"{key} holds a round twice"
        hits, before = hits + hit, now
    assert len(before) == len(finished(before)) == 8
    assert len(read_manifest(folder)["rows"]) == 2
    for _ in range(3):
        hit, _ = kill(start(trial, out, force=True), generator)
        hits += hit
        assert len(finished(held(folder))) == 8, "a finished measurement gave way to an unfinished one"
    return hits


def check(tmp_path, kills, seed):
    trial, generator, hits = ablation(["one", "two"]), random.Random(seed), []
    for entry in case.resolve(trial, Settings(threads=1)):  # what every run would do, done once and kept
        metrics.get("params").run(entry.case)
    provenance.machine("cpu"), video.sample_clip(tmp_path)
    while len(hits) < kills:
        hits += live(replace(trial, name=f"trial_{len(hits)}"), tmp_path, generator)
    assert min(hits.count("run"), hits.count("child")) >= kills // 10, f"one-sided: {hits}"


def test_fifty_kills_lose_nothing(tmp_path):
    check(tmp_path, kills=50, seed=1)


@pytest.mark.slow
def test_hundreds_of_kills_lose_nothing(tmp_path):
    check(tmp_path, kills=400, seed=int(time.time()))
