"""Training: a step and what it costs, what it is predicted to cost, and the largest batch that fits."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from flat import flat
from hypothesis import given
from hypothesis import strategies as st
from small_cases import LITTLE, clip_file, compiled, tiny
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from attention_zoo.kernels import KernelUnavailable
from harness.cost import measure, memory, metrics
from harness.cost.build import build
from harness.cost.metrics import largest_batch as batches
from harness.cost.metrics import predicted_training_memory as prediction
from harness.cost.training_step import OPTIMIZER, TrainingStep, targets
from harness.cost.workload import Workload
from records.record import Record, write_manifest, write_record
from reports import markdown, table

WIDE = {"widths": [48, 96, 192, 384]}
TRAINING = ["training_memory", "training_latency", "training_largest_batch"]
PREDICTED = "predicted_training_memory"


def measured(of_case, names, folder):
    return {m.name: m for m in measure.measure(of_case, names, clip_file(folder, of_case), effort=LITTLE)}


def workload(of_case, folder):
    return Workload(of_case, clip_file(folder, of_case), LITTLE, "a machine")


def predicted(of_case):
    """In this process: where nothing is allocated there is nothing to keep apart."""
    return metrics.get(PREDICTED).run(SimpleNamespace(case=of_case, surroundings=lambda: {"machine": "a machine"}))[0]


# the step


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_is_that_of_a_loop_written_out(dtype):
    """Gradients of the mean cross-entropy, then AdamW from its definition."""
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    model, clips, classes = nn.Linear(6, 5).to(kind), torch.randn(4, 6).to(kind), torch.tensor([0, 4, 2, 2])
    start = [p.detach().clone() for p in model.parameters()]
    loss = torch.nn.functional.cross_entropy(model(clips).float(), classes)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    step = TrainingStep(model.eval(), clips, classes)
    torch.testing.assert_close(step(), loss.detach())
    assert model.training
    for before, gradient, after in zip(start, gradients, model.parameters(), strict=True):
        assert after.grad is None
        g = gradient.float()  # after one step the moments, corrected for their start at zero, are g and g * g
        expected = before.float() * (1 - OPTIMIZER["lr"] * OPTIMIZER["weight_decay"]) - OPTIMIZER["lr"] * g / (
            g.abs() + 1e-8
        )
        torch.testing.assert_close(after.detach(), expected.to(kind), rtol=1e-5 if dtype == "float32" else 8e-3, atol=0)


def test_classes_are_drawn_from_the_seed_and_leave_the_random_state_alone():
    before = torch.get_rng_state()
    first = targets(tiny(), 50)
    torch.testing.assert_close(torch.get_rng_state(), before)
    assert first.min() >= 0
    assert first.max() < 400
    torch.testing.assert_close(first, targets(tiny(), 50))
    assert not torch.equal(first, targets(tiny(seed=1), 50))


def test_what_a_step_keeps_is_counted_exactly():
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5))
    kept = TrainingStep(model, torch.randn(4, 6), torch.tensor([0, 4, 2, 2])).first()
    weights = 4 * (6 * 5 + 5 + 5 + 5)
    buffers = 4 * (5 + 5) + 8  # mean, variance, number of batches
    assert kept == {
        "parameters": weights,
        "buffers": buffers,
        "gradients": weights,
        "optimizer_state": 2 * weights + 4 * 4,  # two moments, and a count for each of the four parameters
    }


# measured


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A case and everything about its training, measured once for several tests."""
    case = tiny(batch_size=2, changes=WIDE, frames=8, size=64)
    measurements = measured(
        case, ["training_memory", "training_latency", PREDICTED, "latency"], tmp_path_factory.mktemp("clip")
    )
    assert [m.missing for m in measurements.values()] == [None] * len(measurements)
    return case, measurements


def test_training_latency_is_of_whole_steps_with_their_parts(trained):
    latency = trained[1]["training_latency"]
    assert len(latency.samples) >= 3
    assert latency.details["finite_loss"]
    assert latency.details["kernel"] == "sdpa"
    assert any("attention" in name for name in latency.details["operators"])
    parts = latency.details["parts_ms"]
    assert list(parts) == ["forward", "backward", "optimizer"]
    assert all(0 < part < max(latency.samples) for part in parts.values())


def test_training_memory_is_split_into_exact_parts_and_the_rest(trained):
    case, measurements = trained
    parameters = list(build(case).parameters())
    weights = 4 * sum(p.numel() for p in parameters)
    assert measurements["training_parameters"].value == measurements["training_gradients"].value == weights
    assert measurements["training_optimizer_state"].value == 2 * weights + 4 * len(parameters)
    peak, details = measurements["training_memory"].value, measurements["training_memory"].details
    assert peak > measurements["training_activations"].value > 0
    exact = sum(measurements[f"training_{part}"].value for part in ("parameters", "gradients", "optimizer_state"))
    assert peak == exact + details["buffers_bytes"] + measurements["training_activations"].value


def test_a_kernel_without_a_backward_pass_is_a_reason_and_keeps_no_other_metric_from_running(tmp_path):
    case = compiled(kernel="flex")
    measurements = measured(case, [*TRAINING, PREDICTED], tmp_path)
    assert len(measurements) == 5 + 1 + 2 + 1
    for measurement in measurements.values():
        assert "no backward pass on CPU" in measurement.missing
        assert not measurement.retry
    chosen = [metrics.get(name) for name in ("latency", *TRAINING, "throughput", "largest_batch")]
    apart = [[metric.name for metric in shared] for shared in metrics.by_process(chosen)]
    assert ["latency", "throughput"] in apart
    assert ["training_memory", "training_latency"] in apart
    assert ["largest_batch"] in apart


def test_where_memory_cannot_be_told_from_the_compiler_s_there_is_none(tmp_path):
    case = compiled(compile=True)
    measurements = measured(case, ["training_memory", "largest_batch", PREDICTED], tmp_path)
    for measurement in measurements.values():
        assert "compile=false" in measurement.missing
        assert not measurement.retry


def test_training_that_needs_too_much_memory_is_a_result(tmp_path):
    case = tiny("pyramid_tiny_full", frames=64, size=448, kernel="reference")
    for measurement in measured(case, [*TRAINING, "largest_batch"], tmp_path).values():
        assert measurement.missing.startswith("out of memory"), measurement.missing
        assert not measurement.retry


@pytest.mark.slow
def test_a_compiled_training_step(tmp_path):
    case = tiny("pyramid_tiny_space_only", {"depths": [1, 1, 1, 1]}, compile=True)
    latency = measured(case, ["training_latency"], tmp_path)["training_latency"]
    assert latency.missing is None
    assert latency.details["compile_seconds"] > 0
    assert latency.details["finite_loss"]


# predicted


@pytest.mark.parametrize("inputs,classes,batch", [(300, 7, 5), (10, 50, 40), (1000, 11, 3)])
def test_the_prediction_for_one_linear_map_is_its_closed_form(inputs, classes, batch):
    """The peak is where all gradients are there, or, where scores weigh more, in the backward pass of the softmax."""
    with FakeTensorMode():
        step = TrainingStep(
            nn.Linear(inputs, classes), torch.zeros(batch, inputs), torch.zeros(batch, dtype=torch.int64)
        )
        peak, parts = prediction.peak(step)
    weights, scores, scalars = 4 * (inputs + 1) * classes, 4 * batch * classes, 16
    all_gradients = 4 * weights + scores  # weights, gradients, two moments; the gradient of the scores
    in_softmax = 3 * weights + 3 * scores  # log-probabilities, their gradient, that of the scores
    assert peak == max(all_gradients, in_softmax) + scalars
    assert peak == sum(parts.values())


def test_a_prediction_is_of_the_order_of_what_is_measured(trained):
    measurements = trained[1]
    guess, real = measurements[PREDICTED], measurements["training_memory"]
    assert guess.unit == "bytes, predicted"
    assert real.unit == "bytes"
    assert real.value / 2 < guess.value < real.value * 2
    assert guess.details["parts_bytes"]["parameter"] == measurements["training_parameters"].value
    assert guess.details["parts_bytes"]["optstate"] == measurements["training_optimizer_state"].value


def test_a_prediction_holds_more_for_a_larger_batch_and_half_for_half_the_bytes():
    short = {"depths": [1, 1, 1, 1]}
    small, large = predicted(tiny(changes=short)), predicted(tiny(changes=short, batch_size=8))
    assert small.value < large.value
    half = predicted(tiny(changes=short, dtype="bfloat16", batch_size=8))
    assert half.value == pytest.approx(large.value / 2, rel=0.1)


def test_without_torch_s_tracker_there_is_no_prediction(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.distributed._tools.mem_tracker", None)
    absent = predicted(tiny())
    assert absent.missing.startswith("not predicted: ")
    assert "mem_tracker" in absent.missing
    assert not absent.retry


def test_predictions_leave_nothing_behind_that_a_real_model_meets():
    case = tiny("video_swin_tiny", {"depths": [2, 1, 1, 1]}, frames=6)  # masks and bias rows are cached per shape
    assert predicted(case).missing is None
    model = build(case)
    scores = model(torch.rand(1, 3, 6, 32, 32))
    assert type(scores) is torch.Tensor
    assert scores.isfinite().all()


# the largest batch


@given(fits=st.integers(0, 5000), most=st.integers(1, 5000))
def test_the_search_finds_the_largest_batch_exactly(fits, most):
    asked = []

    def attempt(size):
        asked.append(size)
        return 0.0 if size <= fits else None

    largest = batches.search(attempt, seconds=1, most=most, clock=lambda: 0.0)
    if fits == 0:
        assert largest is None
        return
    assert largest.largest == min(fits, most)
    assert list(largest.tried) == asked
    assert len(asked) == len(set(asked)) <= 2 * 13
    assert max(asked) <= most
    if fits < most:
        assert (largest.too_large, largest.bound) == (fits + 1, "memory")
    else:
        assert (largest.too_large, largest.bound) == (None, f"cap of {most} clips")


@given(fits=st.integers(1, 4000), precision=st.floats(0.001, 0.5))
def test_a_coarse_search_ends_earlier_and_says_what_was_too_large(fits, precision):
    def attempt(size):
        return 0.0 if size <= fits else None

    largest = batches.search(attempt, seconds=1, precision=precision, clock=lambda: 0.0)
    exact = batches.search(attempt, seconds=1, clock=lambda: 0.0)
    assert largest.largest <= fits < largest.too_large
    assert largest.too_large - largest.largest <= max(1, precision * largest.largest)
    assert exact.tried[: len(largest.tried)] == largest.tried


@given(fits=st.integers(1, 4000), guess=st.none() | st.integers(0, 9000))
def test_a_prediction_changes_where_the_search_looks_and_nothing_else(fits, guess):
    tried = []

    def attempt(size):
        tried.append(size)
        return 0.0 if size <= fits else None

    largest = batches.search(attempt, seconds=1, clock=lambda: 0.0, predict=lambda: guess)
    assert (largest.largest, largest.too_large) == (fits, fits + 1 if fits < batches.MOST else None)
    assert len(tried) == len(set(tried)) <= 2 * 13


def test_a_good_prediction_saves_half_of_the_attempts():
    peaks, fits, room = {}, 1955, 140e9

    def attempt(size):
        peaks[size] = 3e9 + size * 70e6
        return 0.0 if size <= fits else None

    largest = batches.search(
        attempt, seconds=1, precision=batches.PRECISION, predict=lambda: batches.predicted(peaks, room)
    )
    plain = batches.search(attempt, seconds=1, precision=batches.PRECISION)
    assert largest.tried[:4] == (1, 2, 4, int(0.9 * (room - 3e9) / 70e6))
    assert sum(largest.tried) < sum(plain.tried)
    assert largest.largest <= fits < largest.too_large


@pytest.mark.parametrize("peaks", [{}, {1: 5}, {1: 5, 2: 5}, {1: 7, 2: 6}])
def test_without_a_line_nothing_is_predicted(peaks):
    assert batches.predicted(peaks, 100) is None
    assert batches.predicted({1: 5, 2: 6}, None) is None


def test_the_search_leaves_time_for_what_comes_after_it(tmp_path, monkeypatch):
    asked, prepared = [], workload(tiny(), tmp_path)
    monkeypatch.setattr(batches, "search", lambda attempt, seconds, **_: asked.append(seconds))
    for prepared.time_limit in (1.0, 1e9):
        metrics.get("largest_batch").run(prepared)
    assert asked == [0.4, batches.BUDGETS * LITTLE.budget]


@given(limit=st.floats(1, 100), fits=st.integers(1, 60))
def test_the_search_stays_within_its_time(limit, fits):
    now = [0.0]

    def attempt(size):
        now[0] += size
        return float(size) if size <= fits else None

    largest = batches.search(attempt, seconds=limit, clock=lambda: now[0])
    assert now[0] <= max(limit, 1)
    assert 1 <= largest.largest <= fits
    if largest.bound != "memory":
        assert largest.bound == f"time budget of {limit:g} s"
    else:
        assert largest.largest == fits


def test_a_batch_that_fails_otherwise_ends_the_search_with_its_reason():
    def attempt(size):
        if size > 2:
            raise RuntimeError("CUDA error:\n invalid configuration")
        return 0.0

    largest = batches.search(attempt, seconds=1)
    assert (largest.largest, largest.too_large) == (2, None)
    assert largest.bound == "a batch of 4 failed: CUDA error: invalid configuration"

    def never(size):
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        batches.search(never, seconds=1)


def limited(of_case, folder, most):
    """A workload whose memory ends at `most` clips."""
    prepared = workload(of_case, folder)
    real = prepared.batch

    def batch(size):
        if size > most:
            raise RuntimeError(f"DefaultCPUAllocator: can't allocate memory: you tried to allocate {size} bytes.")
        return real(size)

    prepared.batch = batch
    prepared.effort = replace(LITTLE, budget=10)
    return prepared


@pytest.mark.parametrize("name", ["largest_batch", "training_largest_batch"])
def test_the_largest_batch_of_a_model_with_its_throughput(name, tmp_path, monkeypatch):
    # Peaks of a process that has run other tests say nothing of so small a model.
    monkeypatch.setattr(batches, "predicted", lambda peaks, room: None)
    size, throughput = metrics.get(name).run(limited(tiny(batch_size=9), tmp_path, 5))
    assert (size.name, size.unit, size.value) == (name, "clips", 5)
    assert size.details["bound"] == "memory"
    assert size.details["smallest_too_large"] == 6
    assert size.details["tried"] == [1, 2, 4, 8, 6, 5]
    assert (throughput.name, throughput.unit) == (f"{name}_throughput", "clips/s")
    assert len(throughput.samples) >= 3
    assert throughput.details["batch_size"] == 5


def test_not_even_one_clip(tmp_path):
    for measurement in metrics.get("largest_batch").run(limited(tiny(), tmp_path, 0)):
        assert measurement.missing == "out of memory at a batch of 1"
        assert not measurement.retry


def test_a_batch_that_fits_only_once_has_no_throughput(tmp_path):
    prepared, passes = limited(tiny(), tmp_path, 2), []

    def time(*phases):
        passes.append(phases)
        raise MemoryError

    prepared.time = time
    size, throughput = metrics.get("largest_batch").run(prepared)
    assert size.value == 2
    assert throughput.missing == "out of memory when a batch of 2, which fitted once, was repeated"
    prepared.time = lambda *_: 1 / 0
    size, throughput = metrics.get("largest_batch").run(prepared)
    assert size.value == 2
    assert "ZeroDivisionError: division by zero when a batch of 2" in throughput.missing


def test_errors_that_are_not_about_memory_are_not_taken_for_it(tmp_path):
    prepared = workload(tiny(), tmp_path)
    prepared.batch = lambda size: 1 / 0
    with pytest.raises(ZeroDivisionError):
        metrics.get("largest_batch").run(prepared)
    assert not memory.ran_out(ValueError("memory of an elephant"))
    assert memory.ran_out(MemoryError())
    assert memory.ran_out(RuntimeError("std::bad_alloc"))


def test_the_search_asks_first_whether_the_kernel_can_train(tmp_path):
    with pytest.raises(KernelUnavailable, match="no backward pass"):
        metrics.get("training_largest_batch").run(workload(tiny(kernel="flex"), tmp_path))


@pytest.mark.gpu
def test_training_on_a_gpu(tmp_path):
    case = tiny(device="cuda", batch_size=2)
    measurements = measured(case, ["training_memory", "training_latency", PREDICTED, "largest_batch"], tmp_path)
    assert [m.missing for m in measurements.values()] == [None] * len(measurements)
    assert measurements["training_latency"].details["l2_flush_bytes"] > 0
    assert measurements["training_memory"].value > measurements["training_optimizer_state"].value
    assert measurements[PREDICTED].value < 4 * measurements["training_memory"].value


# in a report


def test_a_report_has_a_column_for_each_and_says_what_ended_a_search(tmp_path):
    here = {"machine": "a machine", "kernel": "sdpa"}
    made = [
        flat("training_latency", "ms", "lower", (10.0, 11.0, 12.0), details=here),
        flat("training_memory", "bytes", "lower", (300 * 2**20,), details=here),
        flat(PREDICTED, "bytes, predicted", "lower", (200 * 2**20,), details=here),
        flat("largest_batch", "clips", "higher", (48,), details={**here, "bound": "time budget of 9 s"}),
        flat("training_largest_batch", "clips", "higher", (7,), details={**here, "bound": "memory"}),
    ]
    case = tiny()
    record = Record("tiny", "some", "tiny", case.to_dict(), {m.name: m for m in made}, {"commit": "0" * 40})
    write_record(record, tmp_path)
    write_manifest({"name": "some", "question": "?", "rows": [{"row": "tiny", "case_id": "tiny"}]}, tmp_path)
    report = markdown.report(table.load(tmp_path), {})
    for heading in (
        "training step ↓, ms",
        "training memory ↓, MiB |",
        "training memory, predicted ↓, MiB |",
        "largest batch ↑, clips",
    ):
        assert heading in report
    assert "| 48 [" in report
    assert "| 7 |" in report
    assert report.lower().count("larger batches may fit") == 1
    assert "time budget of 9 s" in report
