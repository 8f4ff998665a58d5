"""The check of all kernels finds a wrong one, says what cannot run, and does nothing twice."""

import pytest
import torch

from attention_zoo import kernels
from attention_zoo.kernels import Kernel
from harness import sanity
from harness.sanity import Check, measured, right
from records import provenance
from records.record import write_record


def found(kernel, subject="full", dtype="float32"):
    return measured(Check(subject, kernel, dtype, "cpu"))


@pytest.fixture
def spoiled(monkeypatch):
    """Replaces what `sdpa` computes."""

    def spoil(run):
        real = kernels.registry.get("sdpa")
        wrong = Kernel("sdpa", lambda *inputs: run(real.run(*inputs)), real.needs)
        get = type(kernels.registry).get
        monkeypatch.setattr(
            type(kernels.registry),
            "get",
            lambda self, name: wrong if self is kernels.registry and name == "sdpa" else get(self, name),
        )

    return spoil


@pytest.mark.parametrize("dtype", sanity.TOLERANCE)
@pytest.mark.parametrize(
    "subject", ["divided", "global_pyramid", "shifted_window", "attention 64x192", "attention 64x192, mask"]
)
def test_the_kernels_are_right_here(subject, dtype):
    for kernel in ("reference", "sdpa"):
        record = found(kernel, subject, dtype)
        assert right(record), record.measurements
        assert all(0 < one.value for one in record.measurements.values())


def test_a_kernel_that_cannot_run_says_why_and_is_not_wrong():
    record = found("flex")
    assert right(record)
    assert "no backward pass on CPU" in record.measurements["backward_error"].missing


@pytest.mark.parametrize("how", ["factor", "nan", "raises"])
def test_a_wrong_kernel_is_found(how, spoiled):
    def fail(y):
        raise RuntimeError("illegal memory access")

    spoiled({"factor": lambda y: y * 1.001, "nan": lambda y: y * torch.nan, "raises": fail}[how])
    record = found("sdpa")
    assert not right(record)
    assert right(found("reference"))
    table = sanity.report([record], [])
    assert "1 cases, 1 wrong" in table
    assert {"nan": "not finite", "raises": "illegal memory access"}.get(how, "**") in table


def test_a_run_writes_records_and_a_table_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(provenance, "commit", lambda: {"commit": "c0ffee", "dirty": False})
    some = [Check("full", kernel, "float32", "cpu") for kernel in ("reference", "sdpa", "xformers")]
    monkeypatch.setattr(sanity, "checks", lambda *_: some)
    assert sanity.main([f"out={tmp_path}", "seconds=0"]) == 0
    assert "3 of 3 left out" in capsys.readouterr().out
    assert sanity.main([f"out={tmp_path}"]) == 0
    assert "[3/3] full · xformers" in capsys.readouterr().out
    assert "| full | sdpa |" in (tmp_path / "sanity" / "report.md").read_text()
    assert sanity.main([f"out={tmp_path}"]) == 0
    assert "[3/3]" not in capsys.readouterr().out


def test_what_local_changes_said_is_computed_again(tmp_path, monkeypatch):
    """Nothing says what the code of such a checkout was."""
    check = Check("full", "reference", "float32", "cpu")
    for dirty in (False, True):
        monkeypatch.setattr(provenance, "commit", lambda dirty=dirty: {"commit": "c0ffee", "dirty": dirty})
        write_record(measured(check), tmp_path)
        assert (sanity._there(tmp_path, check) is None) is dirty


def test_every_scheme_and_kernel_is_checked_and_compiled_ones_last():
    import attention_zoo

    found = sanity.checks("cpu")
    assert {check.kernel for check in found} == set(kernels.names())
    assert {check.subject for check in found} >= set(attention_zoo.schemes.names())
    assert found[-1].kernel == "flex"
    assert sanity.main(["device=gpu"]) == 2
