"""`python -m harness.doctor`: one screen, and a remedy beside each fault."""

import resource
from collections import namedtuple
from pathlib import Path

import psutil
import pytest

from harness import checkup, doctor
from records import provenance


def test_one_screen_with_a_line_for_everything(tmp_path, capsys):
    status = doctor.main([f"out={tmp_path / 'not' / 'there'}"])
    told = capsys.readouterr().out.splitlines()
    assert len(told) <= 40
    assert max(map(len, told)) <= 160
    for name in ("torch", "CUDA", "kernels", "decoders", "encoders", "threads", "huge pages", "governor", "load"):
        assert any(name in line[:18] for line in told), name
    for name in ("disk", "write", "memory", "shared", "open files"):
        assert any(name in line[:18] for line in told), name
    faults = [number for number, line in enumerate(told) if line.startswith("FAULT")]
    assert all("-> " in told[number + 1] for number in faults)
    assert status == int(bool(faults))
    assert not (tmp_path / "not").exists()


Usage = namedtuple("Usage", "free")
FAULTS = {
    "load": lambda _: checkup.load(3.0 * (psutil.cpu_count() or 1)),
    "disk": lambda patch: (
        patch.setattr(checkup.shutil, "disk_usage", lambda _: Usage(2**20)) or checkup.disk(Path("x"))
    ),
    "shared": lambda patch: (
        patch.setattr(checkup, "SHARED", Path("/")),
        patch.setattr(checkup.shutil, "disk_usage", lambda _: Usage(2**20)),
        checkup.shared_memory(),
    )[-1],
    "huge pages": lambda patch: patch.setattr(provenance, "huge_pages", lambda: "never") or checkup.huge_pages(),
    "threads": lambda patch: patch.setenv("OMP_NUM_THREADS", "4096") or checkup.threads(),
    "open files": lambda patch: patch.setattr(resource, "getrlimit", lambda _: (26, 26)) or checkup.open_files(),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_has_a_remedy(name, monkeypatch):
    finding = FAULTS[name](monkeypatch)
    assert finding.name == name
    assert finding.remedy


def test_a_governor_that_saves_power_is_a_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(checkup, "GOVERNOR", tmp_path / "governor")
    assert checkup.governor().remedy is None
    for mode, fault in (("performance", False), ("powersave", True)):
        (tmp_path / "governor").write_text(f"{mode}\n")
        assert bool(checkup.governor().remedy) == fault


@pytest.mark.parametrize(
    "own, files, quota",
    [
        ("0::/", {"cpu.max": "50000 100000\n"}, 0.5),
        ("0::/", {"cpu.max": "max 100000\n"}, None),
        ("0::/a/b", {"a/cpu.max": "150000 100000\n", "a/b/cpu.max": "max 100000\n"}, 1.5),
        ("4:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("2:cpuacct:/\n9:name=systemd:/", {}, None),
    ],
)
def test_a_quota_limits_cores_and_threads_and_names_the_machine(own, files, quota, tmp_path, monkeypatch):
    (tmp_path / "cgroup").write_text(f"{own}\n")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    cores = provenance.cpu_quota(tmp_path, tmp_path / "cgroup")
    assert cores == quota
    monkeypatch.setattr(provenance, "cpu_quota", lambda: cores)
    name = provenance.machine.__wrapped__("cpu")
    if quota:
        assert provenance.usable_cores() <= max(1, round(quota + 0.5))
        assert f"a quota of {quota:g}" in name
    else:
        assert "quota" not in name
