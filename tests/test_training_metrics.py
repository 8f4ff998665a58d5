"""Training: a step and what it costs, what it is predicted to cost, and the largest batch that fits."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from flat import flat
from hypothesis import given
from hypothesis import strategies as st
from small_cases import LITTLE, clip_file, tiny
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


def measured(one, names, folder):
    return {m.name: m for m in measure.measure(one, names, clip_file(folder, one), effort=LITTLE)}


def workload(one, folder):
    return Workload(one, clip_file(folder, one), LITTLE, "a machine")


def predicted(one):
    """In this process: where nothing is allocated there is nothing to keep apart."""
    return metrics.get(PREDICTED).run(SimpleNamespace(case=one, surroundings=lambda: {"machine": "a machine"}))[0]


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
    one = tiny(batch_size=2, changes=WIDE, frames=8, size=64)
    found = measured(
        one, ["training_memory", "training_latency", PREDICTED, "latency"], tmp_path_factory.mktemp("clip")
    )
    assert [m.missing for m in found.values()] == [None] * len(found)
    return one, found


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
    one, found = trained
    parameters = list(build(one).parameters())
    weights = 4 * sum(p.numel() for p in parameters)
    assert found["training_parameters"].value == found["training_gradients"].value == weights
    assert found["training_optimizer_state"].value == 2 * weights + 4 * len(parameters)
    peak, details = found["training_memory"].value, found["training_memory"].details
    assert peak > found["training_activations"].value > 0
    exact = sum(found[f"training_{part}"].value for part in ("parameters", "gradients", "optimizer_state"))
    assert peak == exact + details["buffers_bytes"] + found["training_activations"].value


def test_a_kernel_without_a_backward_pass_is_a_reason_and_keeps_no_other_metric_from_running(tmp_path):
    one = tiny(kernel="flex")
    found = measured(one, [*TRAINING, PREDICTED], tmp_path)
    assert len(found) == 5 + 1 + 2 + 1
    for measurement in found.values():
        assert "no backward pass on CPU" in measurement.missing
        assert not measurement.retry
    chosen = [metrics.get(name) for name in ("latency", *TRAINING, "throughput", "largest_batch")]
    apart = [[metric.name for metric in shared] for shared in metrics.by_process(chosen)]
    assert ["latency", "throughput"] in apart
    assert ["training_memory", "training_latency"] in apart
    assert ["largest_batch"] in apart


def test_where_memory_cannot_be_told_from_the_compiler_s_there_is_none(tmp_path):
    one = tiny(compile=True)
    found = measured(one, ["training_memory", "largest_batch", PREDICTED], tmp_path)
    for measurement in found.values():
        assert "compile=false" in measurement.missing
        assert not measurement.retry


def test_training_that_needs_too_much_memory_is_a_result(tmp_path):
    one = tiny("pyramid_tiny_full", frames=64, size=448, kernel="reference")
    for measurement in measured(one, [*TRAINING, "largest_batch"], tmp_path).values():
        assert measurement.missing.startswith("out of memory"), measurement.missing
        assert not measurement.retry


@pytest.mark.slow
def test_a_compiled_training_step(tmp_path):
    one = tiny("pyramid_tiny_space_only", {"depths": [1, 1, 1, 1]}, compile=True)
    latency = measured(one, ["training_latency"], tmp_path)["training_latency"]
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
        found, parts = prediction.peak(step)
    weights, scores, scalars = 4 * (inputs + 1) * classes, 4 * batch * classes, 16
    all_gradients = 4 * weights + scores  # weights, gradients, two moments; the gradient of the scores
    in_softmax = 3 * weights + 3 * scores  # log-probabilities, their gradient, that of the scores
    assert found == max(all_gradients, in_softmax) + scalars
    assert found == sum(parts.values())


def test_a_prediction_is_of_the_order_of_what_is_measured(trained):
    found = trained[1]
    guess, real = found[PREDICTED], found["training_memory"]
    assert guess.unit == "bytes, predicted"
    assert real.unit == "bytes"
    assert real.value / 2 < guess.value < real.value * 2
    assert guess.details["parts_bytes"]["parameter"] == found["training_parameters"].value
    assert guess.details["parts_bytes"]["optstate"] == found["training_optimizer_state"].value


def test_a_prediction_holds_more_for_a_larger_batch_and_half_for_half_the_bytes():
    short = {"depths": [1, 1, 1, 1]}
    small, large = predicted(tiny(changes=short)), predicted(tiny(changes=short, batch_size=8))
    assert small.value < large.value
    half = predicted(tiny(changes=short, dtype="bfloat16", batch_size=8))
    assert half.value == pytest.approx(large.value / 2, rel=0.1)


def test_without_torch_s_tracker_there_is_no_prediction(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.distributed._tools.mem_tracker", None)
    found = predicted(tiny())
    assert found.missing.startswith("not predicted: ")
    assert "mem_tracker" in found.missing
    assert not found.retry


def test_predictions_leave_nothing_behind_that_a_real_model_meets():
    one = tiny("video_swin_tiny", {"depths": [2, 1, 1, 1]}, frames=6)  # masks and bias rows are cached per shape
    assert predicted(one).missing is None
    model = build(one)
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

    found = batches.search(attempt, seconds=1, most=most, clock=lambda: 0.0)
    if fits == 0:
        assert found is None
        return
    assert found.largest == min(fits, most)
    assert list(found.tried) == asked
    assert len(asked) == len(set(asked)) <= 2 * 13
    assert max(asked) <= most
    if fits < most:
        assert (found.too_large, found.bound) == (fits + 1, "memory")
    else:
        assert (found.too_large, found.bound) == (None, f"cap of {most} clips")


@given(fits=st.integers(1, 4000), precision=st.floats(0.001, 0.5))
def test_a_coarse_search_ends_earlier_and_says_what_was_too_large(fits, precision):
    def attempt(size):
        return 0.0 if size <= fits else None

    found = batches.search(attempt, seconds=1, precision=precision, clock=lambda: 0.0)
    exact = batches.search(attempt, seconds=1, clock=lambda: 0.0)
    assert found.largest <= fits < found.too_large
    assert found.too_large - found.largest <= max(1, precision * found.largest)
    assert exact.tried[: len(found.tried)] == found.tried


@given(fits=st.integers(1, 4000), guess=st.none() | st.integers(0, 9000))
def test_a_prediction_changes_where_the_search_looks_and_nothing_else(fits, guess):
    tried = []

    def attempt(size):
        tried.append(size)
        return 0.0 if size <= fits else None

    found = batches.search(attempt, seconds=1, clock=lambda: 0.0, predict=lambda: guess)
    assert (found.largest, found.too_large) == (fits, fits + 1 if fits < batches.MOST else None)
    assert len(tried) == len(set(tried)) <= 2 * 13


def test_a_good_prediction_saves_half_of_the_attempts():
    peaks, fits, room = {}, 1955, 140e9

    def attempt(size):
        peaks[size] = 3e9 + size * 70e6
        return 0.0 if size <= fits else None

    found = batches.search(
        attempt, seconds=1, precision=batches.PRECISION, predict=lambda: batches.predicted(peaks, room)
    )
    plain = batches.search(attempt, seconds=1, precision=batches.PRECISION)
    assert found.tried[:4] == (1, 2, 4, int(0.9 * (room - 3e9) / 70e6))
    assert sum(found.tried) < sum(plain.tried)
    assert found.largest <= fits < found.too_large


@pytest.mark.parametrize("peaks", [{}, {1: 5}, {1: 5, 2: 5}, {1: 7, 2: 6}])
def test_without_a_line_nothing_is_predicted(peaks):
    assert batches.predicted(peaks, 100) is None
    assert batches.predicted({1: 5, 2: 6}, None) is None


def test_the_search_leaves_time_for_what_comes_after_it(tmp_path, monkeypatch):
    asked, one = [], workload(tiny(), tmp_path)
    monkeypatch.setattr(batches, "search", lambda attempt, seconds, **_: asked.append(seconds))
    for one.time_limit in (1.0, 1e9):
        metrics.get("largest_batch").run(one)
    assert asked == [0.4, batches.BUDGETS * LITTLE.budget]


@given(limit=st.floats(1, 100), fits=st.integers(1, 60))
def test_the_search_stays_within_its_time(limit, fits):
    now = [0.0]

    def attempt(size):
        now[0] += size
        return float(size) if size <= fits else None

    found = batches.search(attempt, seconds=limit, clock=lambda: now[0])
    assert now[0] <= max(limit, 1)
    assert 1 <= found.largest <= fits
    if found.bound != "memory":
        assert found.bound == f"time budget of {limit:g} s"
    else:
        assert found.largest == fits


def test_a_batch_that_fails_otherwise_ends_the_search_with_its_reason():
    def attempt(size):
        if size > 2:
            raise RuntimeError("CUDA error:\n invalid configuration")
        return 0.0

    found = batches.search(attempt, seconds=1)
    assert (found.largest, found.too_large) == (2, None)
    assert found.bound == "a batch of 4 failed: CUDA error: invalid configuration"

    def never(size):
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        batches.search(never, seconds=1)


def limited(one, folder, most):
    """A workload whose memory ends at `most` clips."""
    found = workload(one, folder)
    real = found.batch

    def batch(size):
        if size > most:
            raise RuntimeError(f"DefaultCPUAllocator: can't allocate memory: you tried to allocate {size} bytes.")
        return real(size)

    found.batch = batch
    found.effort = replace(LITTLE, budget=10)
    return found


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
    one, passes = limited(tiny(), tmp_path, 2), []

    def time(*phases):
        passes.append(phases)
        raise MemoryError

    one.time = time
    size, throughput = metrics.get("largest_batch").run(one)
    assert size.value == 2
    assert throughput.missing == "out of memory when a batch of 2, which fitted once, was repeated"
    one.time = lambda *_: 1 / 0
    size, throughput = metrics.get("largest_batch").run(one)
    assert size.value == 2
    assert "ZeroDivisionError: division by zero when a batch of 2" in throughput.missing


def test_errors_that_are_not_about_memory_are_not_taken_for_it(tmp_path):
    one = workload(tiny(), tmp_path)
    one.batch = lambda size: 1 / 0
    with pytest.raises(ZeroDivisionError):
        metrics.get("largest_batch").run(one)
    assert not memory.ran_out(ValueError("memory of an elephant"))
    assert memory.ran_out(MemoryError())
    assert memory.ran_out(RuntimeError("std::bad_alloc"))


def test_the_search_asks_first_whether_the_kernel_can_train(tmp_path):
    with pytest.raises(KernelUnavailable, match="no backward pass"):
        metrics.get("training_largest_batch").run(workload(tiny(kernel="flex"), tmp_path))


@pytest.mark.gpu
def test_training_on_a_gpu(tmp_path):
    one = tiny(device="cuda", batch_size=2)
    found = measured(one, ["training_memory", "training_latency", PREDICTED, "largest_batch"], tmp_path)
    assert [m.missing for m in found.values()] == [None] * len(found)
    assert found["training_latency"].details["l2_flush_bytes"] > 0
    assert found["training_memory"].value > found["training_optimizer_state"].value
    assert found[PREDICTED].value < 4 * found["training_memory"].value


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
    one = tiny()
    record = Record("tiny", "some", "tiny", one.to_dict(), {m.name: m for m in made}, {"commit": "0" * 40})
    write_record(record, tmp_path)
    write_manifest({"name": "some", "question": "?", "rows": [{"row": "tiny", "case_id": "tiny"}]}, tmp_path)
    found = markdown.report(table.load(tmp_path), {})
    for heading in (
        "training step ↓, ms",
        "training memory ↓, MiB |",
        "training memory, predicted ↓, MiB |",
        "largest batch ↑, clips",
    ):
        assert heading in found
    assert "| 48 [" in found
    assert "| 7 |" in found
    assert found.lower().count("larger batches may fit") == 1
    assert "time budget of 9 s" in found
