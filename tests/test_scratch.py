"""Scratch folders: gone with their run, or with the next one where that was killed."""

import os
import signal
import subprocess
import sys
import tempfile

import pytest

from harness import scratch
from records.provenance import ROOT

HOLD = """
import sys, time
from harness import scratch
with scratch.folder() as folder:
    (folder / "clip.npy").write_bytes(b"0")
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(scratch, "SETTLED", 0)
    return tmp_path


@pytest.fixture
def holder(here):
    """Another process that holds a folder, and that folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(here)},
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process, process.stdout.readline().strip()
    process.kill()
    process.communicate()


def test_a_folder_goes_with_its_run(here):
    def stopped():
        with scratch.folder() as folder:
            (folder / "clip.npy").write_bytes(b"0")
            assert folder.parent == here
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert not list(here.iterdir())


def test_folders_in_use_stay_and_those_of_killed_runs_go(here, holder):
    process, folder = holder
    foreign = here / f"{scratch.PREFIX}of-something-else"
    foreign.mkdir()  # it has no lock: whose it is, nobody knows
    with scratch.folder() as ours:
        scratch.clear_abandoned()
        assert ours.is_dir()
    assert os.path.isdir(folder)
    process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    process.wait()
    assert os.path.isdir(folder)
    scratch.clear_abandoned()
    assert list(here.iterdir()) == [foreign]


def test_a_folder_that_was_just_made_is_left_alone(here, holder, monkeypatch):
    """Whoever made it may not hold its lock yet."""
    process, folder = holder
    process.kill()
    process.wait()
    monkeypatch.setattr(scratch, "SETTLED", 60)
    scratch.clear_abandoned()
    assert os.path.isdir(folder)
