"""Processes that are killed at any moment: no finished record is lost or half-written, and the next run completes it.

First in small: each run is a fork that writes real records of a tiny ablation; what is timed in it takes a few
milliseconds, so that hundreds of kills fall on every step of the writing. Then the command line itself, with the
process that it keeps for forking and the ones that measure.
"""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from multiprocessing import forkserver
from pathlib import Path
from statistics import median

import psutil
import pytest
from small_cases import TINY
from test_harness import ablation

import reports.build  # noqa: F401  (loaded here, so that no run has to)
from harness import measuring, video
from harness.call import Call
from harness.cost import metrics, process
from harness.spec import case
from harness.spec.case import Settings
from records import provenance
from records import visits as rounds
from records.record import Measurement, read_manifest, read_record, read_records, record_paths

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX processes")
NAMES = ("params", "latency", "peak_memory")
ROUNDS = 8


def measured_quickly(_, arguments, time_limit):
    """Stands in for `process.run`: a fork that answers in steps, as a real measuring process does."""
    (request,) = arguments
    reader, writer = multiprocessing.Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        for name in request.metrics:
            time.sleep(0.004)
            values = [
                quantity.of([random.random() + 1], {"machine": request.machine})
                for quantity in metrics.get(name).measures.values()
            ]
            writer.send((name, values))
        os._exit(0)
    writer.close()
    answers = []
    try:
        while True:
            answers.append(reader.recv())
    except (EOFError, OSError):
        reader.close()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return answers, f"the measuring process was ended by signal {-status}" if status else None


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
            process.run = measured_quickly
            # A dirty checkout is not continued by another run; here every run is of one clean commit.
            provenance.commit = lambda: {"commit": "c0ffee", "dirty": False}
            tempfile.tempdir = str(out)  # a killed run leaves its scratch folder behind
            status = measuring.run(Call([trial], Settings(threads=1), list(NAMES), out, rounds=ROUNDS, force=force))
        finally:
            os._exit(status)
    return run


@dataclass
class Pace:
    """Within which time (s) runs are killed: longer where they get nothing done in it, shorter where they end."""

    seconds: float = 0.4

    def adapt(self, hit, progress):
        self.seconds *= 1.5 if "run" in hit and not progress else 1 if hit else 0.8


def kill(run, generator, pace):
    """Kill the run or the process that measures for it, at some moment; returns what was hit and how the run ended."""
    time.sleep(generator.uniform(0.02, pace.seconds))
    hit, ended = [], 0
    if generator.random() < 0.4:
        # Waits for the next child: most of the time there is none, and how much of it depends on the machine.
        deadline = time.monotonic() + PATIENCE
        while not (ended or hit):
            assert time.monotonic() < deadline, "the run hangs, and measures nothing"
            try:
                for child in children(run):
                    child.kill()
                    hit.append("child")
            except psutil.NoSuchProcess:  # it ended just now
                pass
            ended, status = os.waitpid(run, os.WNOHANG)
        time.sleep(generator.uniform(0, pace.seconds / 2))
    if not ended:
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
        (record.case_id, name): taken(m)
        for record in (read_records(folder) if folder.is_dir() else [])
        for name, m in record.measurements.items()
        if m.samples
    }


def finished(samples):
    """The measurements of which nothing is lacking."""
    in_one_round = ("params", "params_with_classifier")
    return {key for key, of_one in samples.items() if key[1] in in_one_round or len(of_one) == ROUNDS}


def live(trial, out, generator, pace):
    """Kill runs until one completes the records, then some that repeat them by force; returns what was hit."""
    folder, hits, before = out / trial.name, [], {}
    status = None
    while status != 0:
        hit, status = kill(start(trial, out), generator, pace)
        now = held(folder)
        pace.adapt(hit, now != before)
        for key, of_one in before.items():
            assert now[key][: len(of_one)] == of_one, f"{key} lost rounds"
        for key, of_one in now.items():
            numbers = [number for number, _ in of_one]
            assert len(set(numbers)) == len(numbers), f"{key} holds a round twice"
        hits, before = hits + hit, now
    assert len(before) == len(finished(before)) == 8
    assert len(read_manifest(folder)["rows"]) == 2
    for _ in range(3):
        hit, _ = kill(start(trial, out, force=True), generator, pace)
        hits += hit
        assert len(finished(held(folder))) == 8, "a finished measurement gave way to an unfinished one"
    return hits


def check(tmp_path, kills, seed):
    trial, generator, pace, hits = ablation(["one", "two"]), random.Random(seed), Pace(), []
    for entry in case.resolve(trial, Settings(threads=1)):  # what every run would do, done once and kept
        metrics.get("params").run(entry.case)
    provenance.machine("cpu"), video.sample_clip(tmp_path)
    while len(hits) < kills or min(hits.count("run"), hits.count("child")) < kills // 10:
        hits += live(replace(trial, name=f"trial_{len(hits)}"), tmp_path, generator, pace)
        assert len(hits) < 10 * kills, f"one-sided: {Counter(hits)}"


def test_twenty_kills_lose_nothing(tmp_path):
    check(tmp_path, kills=20, seed=1)


@pytest.mark.slow
def test_hundreds_of_kills_lose_nothing(tmp_path):
    check(tmp_path, kills=400, seed=int(time.time()))


# the command line, the process that it keeps for forking, and the measuring processes

REAL_NAMES = ("params", "latency", "peak_memory", "training_latency")
COMMAND = [sys.executable, "-m", "harness.run", "ablation=position_encoding", "quick=true", "rounds=3"]
COMMAND += [f"metrics=[{','.join(REAL_NAMES)}]", "clip.frames=4", "clip.size=32"]
COMMAND += [f"model.{name}={value}".replace(" ", "") for name, value in TINY.items()]
ROWS = ("none", "relative bias (Swin)", "PEG (DWConv), default")
TARGETS = ("run", "forker", "child")  # each is the parent of the next
FORKER_GONE = "the process that forks the measuring ones was ended"
PATIENCE = 300  # seconds, after which something hangs even on a busy machine


@dataclass
class Trial:
    """An output folder, what was ever seen in its records, and about how long (s) processes live."""

    out: Path
    rows: tuple[str, ...] = ROWS
    seen: dict[tuple[str, str], Measurement] = field(default_factory=dict)
    stamps: dict[Path, tuple[int, int]] = field(default_factory=dict)
    visits: dict[int, list[float]] = field(default_factory=dict)
    whole: float = 12.0

    @property
    def folder(self):
        """Of the records: small models have a folder below that of the ablation."""
        whole = self.out / "quick" / "position_encoding"
        return next(whole.glob("clip-*"), whole)

    @property
    def visit(self):
        lives = [last - first for first, last in self.visits.values()]
        return max(0.05, median(lives)) if lives else 0.3


def look(trial, forced):
    """Read what changed in the records: all must be whole, and what was there before must be there still."""
    files = record_paths(trial.folder)
    stamps = {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}
    if stamps == trial.stamps:
        return
    assert len(files) <= len(trial.rows), f"more files than rows are taken for records: {files}"
    now = {}
    for file in files:
        record = read_record(file)
        assert file.name == f"{record.case_id}.json"
        now |= {(record.case_id, name): measurement for name, measurement in record.measurements.items()}
    for key, old in trial.seen.items():
        assert key in now, f"{key} is gone"
        if not forced:
            assert taken(now[key])[: len(old.samples)] == taken(old), f"{key} lost samples"
        if old.samples and rounds.complete(old):
            assert now[key].samples, f"{key} was finished and has no samples now"
            assert rounds.complete(now[key]), f"{key} was finished and is not now"
    trial.seen, trial.stamps = now, stamps


def taken(measurement):
    """The samples, each with its round."""
    return [(visit.round, sample) for visit in measurement.visits for sample in visit.samples]


def processes_of(run):
    """The living processes of a run, each under what it is."""
    by_role = {}
    try:
        by_role["run"] = psutil.Process(run.pid)
        by_role["forker"] = next(child for child in children(run.pid) if "forkserver" in " ".join(child.cmdline()))
        by_role["child"] = next(child for child in children(by_role["forker"].pid) if not ended(child))
    except (psutil.NoSuchProcess, StopIteration):
        pass
    return by_role


def children(pid):
    """The processes that a process started. Linux has a list of them; elsewhere psutil looks through all processes of
    the machine, which takes long.
    """
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children")
        if listed.exists():
            return [psutil.Process(int(number)) for number in listed.read_text().split()]
        return psutil.Process(pid).children()
    except (OSError, psutil.NoSuchProcess):  # it ended just now
        return []


def ended(process):
    """Whether a process runs no more; whoever inherits it may not have collected it yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def living(scratch):
    """Every process that a run started, whatever became of its parents: all inherit where scratch files go."""
    alive = []
    for running in psutil.process_iter():
        try:
            if running.environ().get("TMPDIR") == str(scratch) and not ended(running):
                alive.append(running)
        except (psutil.Error, OSError):  # gone meanwhile, or another user's
            pass
    return alive


def wait_for(condition, what):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def watch(trial, run, forced, seconds=None, until=None):
    """Look at the records for some seconds, or until a process is there. Returns whether the run is alive then."""
    begin = time.monotonic()
    while run.poll() is None:
        look(trial, forced)
        by_role, now = processes_of(run), time.monotonic()
        if "child" in by_role:
            trial.visits.setdefault(by_role["child"].pid, [now, now])[1] = now
        if until in by_role or (seconds is not None and now - begin >= seconds):
            return True
        assert now - begin < PATIENCE, f"the run hangs; its processes: {sorted(by_role)}"
        time.sleep(0.01)
    return False


def kill_real(trial, run, forced, target, generator):
    """Kill one process of a run at a moment of its life, drawn at random. Returns whether it was there to be killed."""
    since = generator.choice(TARGETS[TARGETS.index(target) :])
    lasts = {"run": trial.whole, "forker": trial.whole / 2, "child": trial.visit * generator.choice([1, 6])}
    delay = generator.uniform(0, lasts[since])
    if not (watch(trial, run, forced, until=since) and watch(trial, run, forced, seconds=delay)):
        return False
    by_role = processes_of(run)
    if target not in by_role or run.poll() is not None:
        return False
    try:
        by_role[target].kill()
    except psutil.NoSuchProcess:
        return False
    if target == "forker" and "child" in by_role:
        wait_for(lambda: ended(by_role["child"]), "a measuring process outlives the one that forked it")
    look(trial, forced)
    return True


def go_and_kill(trial, targets, generator, forced=False):
    """One run of the command, of which processes are killed until it ends. Removes from `targets` what was hit, and
    returns the exit status.
    """
    scratch = trial.out / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    # A commit made meanwhile, and one that nobody knows, would begin unfinished rounds again: the runs see no checkout
    # and are told one.
    environment = {**os.environ, "TMPDIR": str(scratch), "GIT_DIR": str(scratch), "OMP_NUM_THREADS": "1"}
    environment["ATTENTION_ZOO_COMMIT"] = "c0ffee"
    command = [*COMMAND, "rows=[" + ",".join(f"'{row}'" for row in trial.rows) + "]", f"out={trial.out}"]
    command += ["force=true"] if forced else []
    log, hits, begin = scratch / "log.txt", 0, time.monotonic()
    with log.open("wb") as stream:
        run = subprocess.Popen(
            command, cwd=provenance.ROOT, env=environment, start_new_session=True, stdout=stream, stderr=stream
        )
    try:
        while targets and run.poll() is None:
            if kill_real(trial, run, forced, targets[-1], generator):
                hits += 1
                if targets.pop() == "run":
                    run.wait()
        watch(trial, run, forced)
        wait_for(lambda: not living(scratch), "processes outlive the run that started them")
    finally:
        for process in living(scratch):
            process.kill()
        run.wait()
    look(trial, forced)
    if run.returncode != -signal.SIGKILL:
        trial.whole = time.monotonic() - begin
        check_end(trial, run.returncode, log.read_text(errors="replace"), hits)
    return run.returncode


def is_of_a_kill(why):
    return "process was killed (signal 9)" in why or FORKER_GONE in why


def check_end(trial, status, printed, hits):
    """A run that was not killed itself has visited every case, and says of each measurement that it lacks why."""
    failed = [line for line in printed.splitlines() if line.startswith("failed: ")]
    assert status in (0, 1), printed
    assert "Traceback" not in printed, printed
    assert bool(failed) == (status == 1), printed
    assert hits or not failed, printed
    assert all(is_of_a_kill(line) for line in failed), printed
    assert {record.row for record in read_records(trial.folder)} == set(trial.rows), printed
    expected = {name for metric in REAL_NAMES for name in metrics.get(metric).measures}
    for record in read_records(trial.folder):
        assert expected <= set(record.measurements)
        for measurement in record.measurements.values():
            why = [measurement.missing or "", *measurement.failed_rounds.values()]
            assert rounds.complete(measurement) or any(map(is_of_a_kill, why)), measurement
    assert len(read_manifest(trial.folder)["rows"]) == len(ROWS)
    assert (trial.folder / "report.md").is_file()


def check_complete(trial):
    """The same command without a kill: everything is measured, and the report stands on all of it."""
    assert go_and_kill(trial, [], None) == 0
    records = read_records(trial.folder)
    assert all(m.samples and rounds.complete(m) for record in records for m in record.measurements.values())
    report = (trial.folder / "report.md").read_text()
    assert all(record.row in report for record in records)
    assert "killed" not in report


def check_real(trial, targets, by_force, generator):
    """Kill the processes of `targets`, the last `by_force` of them in runs that repeat what is there."""
    targets = targets[::-1]
    later, now = targets[:by_force], targets[by_force:]
    while now and go_and_kill(trial, now, generator):
        pass
    check_complete(trial)
    later += now  # where everything was measured before all were hit
    if not later:
        return
    while later:
        go_and_kill(trial, later, generator, forced=True)
    check_complete(trial)


def answer():
    yield "measured"


@pytest.mark.skipif(sys.platform != "linux", reason="cases are forked on Linux only")
def test_a_forking_process_that_dies_before_it_is_asked_is_a_reason(monkeypatch):
    """Its socket is broken then, which must not end the run as a full disk does; the next case has another one."""
    begin = forkserver.ensure_running

    def begin_and_kill():
        begin()
        server = psutil.Process(forkserver._forkserver._forkserver_pid)
        server.kill()
        wait_for(lambda: ended(server), "the process outlives its kill")

    monkeypatch.setattr(forkserver._forkserver, "ensure_running", begin_and_kill)
    for _ in range(2):
        answers, reason = process.run(answer, (), PATIENCE)
        assert not answers
        assert FORKER_GONE in reason
    monkeypatch.undo()
    assert process.run(answer, (), PATIENCE) == (["measured"], None)


@pytest.mark.skipif(sys.platform != "linux", reason="cases are forked on Linux only")
def test_a_deep_temporary_folder_is_no_reason_to_fail(tmp_path):
    """A socket's path has 107 bytes at most, and the process that forks the others listens on one."""
    deep = tmp_path / ("deep" * 30)
    deep.mkdir()
    code = "from harness.cost import process; import test_killed; print(process.run(test_killed.answer, (), 300))"
    environment = {**os.environ, "TMPDIR": str(deep)}
    environment["PYTHONPATH"] = os.pathsep.join([str(provenance.ROOT), str(Path(__file__).parent)])
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "(['measured'], None)", done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="cases are forked on Linux only")
def test_kills_of_real_processes_lose_nothing(tmp_path):
    check_real(Trial(tmp_path, rows=ROWS[:1]), ["child", "child", "forker", "run"], 0, random.Random(1))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="cases are forked on Linux only")
def test_fifty_kills_of_real_processes_lose_nothing(tmp_path):
    seed = int(time.time())
    generator, counts = random.Random(seed), Counter()
    for number in range(3):
        targets = generator.choices(TARGETS, k=18)
        check_real(Trial(tmp_path / f"trial_{number}"), targets, 5, generator)
        counts.update(targets)
    print(f"killed (seed {seed}): " + ", ".join(f"{target} {counts[target]}" for target in TARGETS))
    assert counts.total() >= 50
