"""What computes wrongly is found and never timed; what cannot run says so and is not wrong."""

import pytest
import torch
from small_cases import LITTLE, clip_file, tiny

import attention_zoo
from attention_zoo import kernels
from attention_zoo.kernels import Kernel
from harness.cost import errors, measure, metrics
from harness.cost.workload import Workload
from harness.spec import case
from harness.spec.case import Settings
from harness.spec.names import DTYPES

ERRORS = ("forward_error", "backward_error", "attention_error")
KINDS = [f"pyramid_tiny_{name}" for name in attention_zoo.schemes.names()]

OWN_ARITHMETIC = tuple(f"pyramid_tiny_{name}" for name in ("linear", "depthwise_relation", "recurrent_gate"))
OWN_CALL = ("pyramid_tiny_mixture_of_blocks",)  # of PyTorch's operator, without gradients on a CPU: it joins parts


def error(name, of):
    """The measurements of an error, in this process."""
    return metrics.get(name).run(Workload(of, "no clip", LITTLE, "machine"))


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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("model", ["pyramid_tiny_divided", "pyramid_tiny_shifted_window", "dualformer_tiny"])
def test_the_kernels_are_right_here(model, name, dtype):
    for kernel in ("reference", "sdpa"):
        for measurement in error(name, tiny(model, frames=8, size=64, kernel=kernel, dtype=dtype)):
            assert 0 < measurement.value <= measurement.details["tolerance"], (kernel, measurement.details)
            assert errors.why_wrong([measurement]) is None


@pytest.mark.parametrize("model", KINDS)
@pytest.mark.parametrize("name", ERRORS)
def test_a_wrong_kernel_is_found_in_every_scheme(name, model, spoiled):
    calls = []
    spoiled(lambda y: calls.append(y) or y * 1.001)
    for measurement in error(name, tiny(model, frames=8, size=64, kernel="sdpa")):
        if calls:
            assert "is above 1e-0" in errors.why_wrong([measurement])
        else:  # a scheme with arithmetic of its own, on every kernel the same, or that calls the operator itself
            assert model in OWN_ARITHMETIC or (model in OWN_CALL and name == "forward_error")
            assert errors.why_wrong([measurement]) is None
    assert not any(measurement.details.get("wrong") for measurement in error(name, tiny(model, kernel="reference")))


@pytest.mark.parametrize("name", ERRORS)
def test_a_result_that_is_not_finite_is_wrong(name, spoiled):
    spoiled(lambda y: y * torch.nan)
    for measurement in error(name, tiny(kernel="sdpa")):
        assert "not finite" in measurement.missing
        assert "not timed, its result is wrong" in errors.why_wrong([measurement])


def test_exponentials_of_the_scores_themselves_are_found(monkeypatch):
    """Right near 0 and not a number far below it, as the gradients of cuDNN are."""

    def plain(q, k, v, bias):
        shares = ((q * q.shape[-1] ** -0.5) @ k.mT + bias).exp()
        return shares @ v / shares.sum(-1, keepdim=True)

    monkeypatch.setitem(kernels.registry._entries, "plain", Kernel("plain", plain, needs=""))
    result, gradients = error("attention_error", tiny(kernel="plain"))
    assert result.value <= result.details["tolerance"]
    assert "not finite" in gradients.missing
    assert gradients.details["wrong"]


def test_results_of_the_wrong_queries_are_found_in_bfloat16(spoiled):
    spoiled(lambda y: y.roll(1, dims=2))  # each query gets what is another's
    (measurement,) = error(
        "forward_error", tiny("pyramid_tiny_full", frames=8, size=64, kernel="sdpa", dtype="bfloat16")
    )
    assert measurement.details["wrong"]


@pytest.mark.parametrize("dtype, wrong", [("bfloat16", None), ("float32", True)])
def test_what_chooses_by_rounded_scores_may_choose_otherwise(dtype, wrong, monkeypatch):
    monkeypatch.setattr(errors, "measured", lambda *_, **__: (0.3, "scores"))
    (measurement,) = error("forward_error", tiny("pyramid_tiny_block_topk", kernel="reference", dtype=dtype))
    assert (measurement.details.get("wrong"), "holds" in measurement.details) == (wrong, not wrong)
    (other,) = error("forward_error", tiny("pyramid_tiny_full", kernel="reference", dtype=dtype))
    assert other.details["wrong"]


def test_what_cannot_run_is_not_wrong(monkeypatch):
    with pytest.raises(kernels.KernelUnavailable, match="no backward pass on CPU"):
        error("backward_error", tiny(kernel="flex"))
    monkeypatch.setattr(
        kernels, "missing", lambda name, device, dtype, backward=False: "no gradients" * backward or None
    )
    result, gradients = error("attention_error", tiny(kernel="sdpa"))
    assert result.samples
    assert gradients.missing == "not supported: no gradients"
    assert errors.why_wrong([result, gradients]) is None


@pytest.fixture
def asked(monkeypatch):
    """The metrics that processes were asked for, and what they answer to each."""

    class Asked(list):
        details = {"of": "scores", "tolerance": 1e-5}

        def __call__(self, of, timed, clip, effort, limit, visit=1):
            self.append([metric.name for metric in timed])
            return [
                quantity.of([1e-3 if "error" in name else 7.0], self.details)
                for metric in timed
                for name, quantity in metric.measures.items()
            ]

    asked = Asked()
    monkeypatch.setattr(measure, "_checked", {})
    monkeypatch.setattr(measure, "_in_child", asked)
    return asked


def test_a_case_is_checked_once_before_it_is_timed(asked, tmp_path):
    of, file = tiny(kernel="sdpa"), clip_file(tmp_path, tiny())
    (latency,) = measure.measure(of, ["latency"], file)
    assert asked == [["forward_error"], ["latency"]]
    assert (latency.samples, latency.details["forward_error"]) == ((7.0,), 1e-3)
    asked.clear()
    measure.measure(tiny(kernel="sdpa", batch_size=3), ["latency", "training_latency"], file)
    assert asked == [["latency"], ["backward_error"], ["training_latency"]]
    asked.clear()
    measure.measure(tiny(kernel="reference"), ["latency", "training_latency"], file)
    assert asked == [["latency"], ["training_latency"]]


def test_a_case_that_computes_wrongly_is_not_timed_and_fails_the_run(asked, tmp_path):
    asked.details = {**asked.details, "wrong": True}
    (latency, memory) = measure.measure(tiny(kernel="sdpa"), ["latency", "peak_memory"], clip_file(tmp_path, tiny()))
    assert asked == [["forward_error"]]
    why = "not timed, its result is wrong: forward error: 1.0e-03 of scores is above 1e-05"
    assert latency.missing == memory.missing == why
    assert latency.details["wrong"]
    assert not latency.retry


def test_every_row_of_every_ablation_has_a_miniature():
    for name in case.names():
        keys = {errors.key(entry.case) for entry in case.resolve(case.load(name), Settings(threads=1))}
        assert keys


def test_every_kernel_is_in_the_ablation():
    entries = case.resolve(case.load("equivalence"), Settings(threads=1))
    assert {entry.case.kernel for entry in entries} == set(kernels.names())
