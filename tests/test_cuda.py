"""The CUDA path where there is no GPU: mocked events, drivers and cards, tensors without data."""

import contextlib
import os
import subprocess
import sys
import types
from functools import partial
from pathlib import Path

import pytest
import torch
from small_cases import LITTLE, TINY, clip_file, tiny

import attention_zoo
import attention_zoo.global_pyramid
import attention_zoo.windows
import backbones
from attention_zoo import Grid, depthwise, fastest, kernels, sequence
from harness import precision
from harness.accuracy import pool
from harness.cost import card, child, measure, memory, metrics, workload
from harness.cost.facts import of_torch
from harness.cost.workload import Workload
from harness.evaluation.attention import looks
from harness.evaluation.gradcam import heat_maps
from harness.evaluation.protocol import Protocol
from harness.evaluation.views import probabilities_of
from harness.spec.clip import Augmentation
from harness.spec.recipe import Testing
from harness.spec.sampling import Sampling
from records import provenance
from records.record import Quantity

CUDA = torch.device("cuda")
ROOT = Path(__file__).parents[1]


def event(name, microseconds=1.0, device="CUDA", **more):
    time_range = types.SimpleNamespace(elapsed_us=lambda: microseconds)
    return types.SimpleNamespace(
        name=name, device_type=types.SimpleNamespace(name=device), time_range=time_range, **more
    )


def on_cuda(tmp_path, **fields):
    """A workload that believes to be on CUDA, without its model."""
    loaded = Workload(tiny(**fields), clip_file(tmp_path, tiny()), LITTLE, "a card")
    loaded.device, loaded.case.device = CUDA, "cuda"
    return loaded


# what ran


def test_the_kernel_that_ran_is_read_from_the_device(tmp_path, monkeypatch):
    """Of the program that is called, not of the eager model: a compiled one or flex shows no operators."""
    ran, calls = [event("triton_tem_fused_flex_attention_0"), event("gemm", 9.0), event("aten::softmax", 5, "CPU")], []

    @contextlib.contextmanager
    def profile(activities):
        assert [activity.name for activity in activities] == ["CUDA"]
        yield types.SimpleNamespace(events=lambda: ran)

    monkeypatch.setattr("torch.profiler.profile", profile)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    loaded = on_cuda(tmp_path)
    wanted = {"device_kernels": ["triton_tem_fused_flex_attention_0"]}
    assert loaded.device_kernels(lambda: calls.append(1)) == wanted
    assert calls == [1]
    ran[0] = event("annotation of attention", 99, is_user_annotation=True)
    assert loaded.device_kernels(lambda: None) == {"device_kernels": ["gemm"]}
    loaded.device = torch.device("cpu")
    assert loaded.device_kernels(lambda: pytest.fail("profiled")) == {}


# what became of the card


class NVML(types.ModuleType):
    """Of a card that is too hot and shared, and tells no power."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    class NVMLError(Exception):
        pass

    def nvmlInit(self):
        self.begun = True

    def nvmlDeviceGetHandleByPciBusId(self, bus):
        assert bus == b"00000000:1a:00.0"
        return "card"

    def nvmlDeviceGetClockInfo(self, card, which):
        return {1: 1200, 2: 2619}[which]

    def nvmlDeviceGetPowerUsage(self, card):
        raise self.NVMLError("Not Supported")

    nvmlDeviceGetEnforcedPowerLimit = nvmlDeviceGetPowerUsage

    def nvmlDeviceGetTemperature(self, card, which):
        return 88

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, card):
        return 0x40 | 0x4 | 0x1

    def nvmlDeviceGetMemoryInfo(self, card):
        return types.SimpleNamespace(free=5)

    def nvmlDeviceGetComputeRunningProcesses(self, card):
        return [types.SimpleNamespace(pid=pid, usedGpuMemory=700) for pid in (os.getpid(), 4)]

    NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC = 1, 0

    def nvmlDeviceGetTotalEccErrors(self, card, kind, counter):
        return 0

    def nvmlDeviceGetMigMode(self, card):
        return [0, 0]


@pytest.fixture
def nvml(monkeypatch):
    properties = types.SimpleNamespace(pci_domain_id=0, pci_bus_id=0x1A, pci_device_id=0, L2_cache_size=200 * 2**20)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setitem(sys.modules, "pynvml", NVML("pynvml"))


def test_the_state_of_the_card_is_read_as_far_as_it_tells(nvml, monkeypatch):
    assert card.state(CUDA) == {
        "sm_mhz": 1200, "memory_mhz": 2619, "celsius": 88, "slowed_by": ["power cap", "hardware thermal"],
        "free_bytes": 5, "held_bytes": 700, "other_programs": 1, "errors": 0, "part": False,
    }  # fmt: skip
    assert card.memory(CUDA) == {"nvml_bytes": 700}
    assert card.memory(torch.device("cpu")) == {}
    assert card.state(torch.device("cpu")) == {}
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "nvidia-ml-py" in card.state(CUDA)["unknown"]


def test_programs_beside_ours_where_a_container_numbers_them_otherwise():
    assert [card.others(pids) for pids in ([], [os.getpid()], [7], [os.getpid(), 7], [7, 8])] == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    "before, after, words",
    [
        ({}, {}, []),
        ({"slowed_by": ["power cap"]}, {"slowed_by": ["power cap"]}, []),
        ({"slowed_by": []}, {"slowed_by": ["hardware thermal"]}, ["the card was slowed down (hardware thermal)"]),
        ({"other_programs": 1}, {"other_programs": 0}, [card.PROGRAMS]),
        ({"errors": 3}, {"errors": 3}, []),
        ({"errors": 3}, {"errors": 4}, [card.ERRORS]),
    ],
)
def test_what_the_card_suffered_makes_a_visit_disturbed(before, after, words):
    assert card.disturbed(before, after) == words


def test_memory_that_the_driver_counts_is_that_of_this_process():
    running = lambda *pids: [types.SimpleNamespace(pid=pid, usedGpuMemory=pid) for pid in pids]  # noqa: E731
    assert card.held(running(7, os.getpid())) == os.getpid()
    assert card.held(running(7)) == 7, "a container numbers processes otherwise"
    assert card.held(running(7, 8)) is None


def test_what_is_compiled_says_that_its_weights_are_there_twice(tmp_path, monkeypatch):
    from harness.cost.metrics import peak_memory

    monkeypatch.setattr(peak_memory.memory, "allocated", lambda *_: (100, {"how": "played"}))
    for compiled, remarks in ((True, ["the weights are in it twice"]), (False, [])):
        loaded = on_cuda(tmp_path, compile=compiled)
        loaded.__dict__["kernel"], loaded.__dict__["eager"] = "sdpa", torch.nn.Linear(2, 2)
        monkeypatch.setattr(loaded, "surroundings", dict)
        (measured,) = peak_memory.peak_memory(loaded)
        assert [what.partition(":")[0] for what in measured.said("holds")] == remarks


class Clock:
    """Of a device on which each run takes two milliseconds, and of its host."""

    def __init__(self):
        self.now = 0.0

    def event(self, enable_timing):
        made = types.SimpleNamespace()
        made.record = lambda: setattr(made, "at", self.now)
        made.elapsed_time = lambda end: end.at - made.at
        return made

    def work(self):
        self.now += 2.0


def test_a_series_on_cuda_says_what_the_card_did_meanwhile(tmp_path, nvml, monkeypatch):
    """And overwrites more than the L2 cache between runs, of whatever size it is."""
    clock, allocated = Clock(), []
    monkeypatch.setattr(torch.cuda, "Event", clock.event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    empty = lambda size, **_: allocated.append(size) or types.SimpleNamespace(zero_=lambda: None, numel=lambda: size)  # noqa: E731
    monkeypatch.setattr(workload.torch, "empty", empty)
    runs, details = on_cuda(tmp_path).time(clock.work)
    assert {run[-1] for run in runs} == {2.0}
    assert allocated == [400 * 2**20] == [details["l2_flush_bytes"]]
    assert details["card"]["before"]["sm_mhz"] == details["card"]["after"]["sm_mhz"] == 1200
    assert details["disturbed"] == ["the card was slowed down (hardware thermal)", card.PROGRAMS]


def test_cards_are_numbered_as_the_driver_does():
    asked = "import harness, os; print(os.environ['CUDA_DEVICE_ORDER'])"
    plain = {name: value for name, value in os.environ.items() if name != "CUDA_DEVICE_ORDER"}
    done = subprocess.run([sys.executable, "-c", asked], cwd=ROOT, env=plain, capture_output=True, text=True)
    assert done.stdout.strip() == "PCI_BUS_ID", done.stderr


# numbers


def test_float32_is_float32_while_it_is_wanted_and_what_was_set_after_it():
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with precision.exact():
            facts = of_torch("cpu")
            assert facts["tf32_matmul"] is facts["tf32_cudnn"] is False
        assert torch.backends.cudnn.allow_tf32
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


@pytest.fixture
def tf32():
    """Allowed, as somebody may have left it."""
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = True
    yield lambda: [switch.allow_tf32 for switch in switches]
    for switch, allowed in zip(switches, before, strict=True):
        switch.allow_tf32 = allowed


def test_a_trained_model_answers_in_float32(tf32):
    """Its probabilities, where it looks, and where a class is seen."""
    seen = []
    model = backbones.create("pyramid_tiny_full", 3, changes=TINY | {"clip": [4, 32, 32]}).eval()
    model.register_forward_pre_hook(lambda *_: seen.append(tf32()))
    clip, protocol = torch.zeros(1, 3, 4, 32, 32), Protocol(Sampling(4), Testing(1, 1, 32), Augmentation(size=32))
    for answer in (
        lambda: probabilities_of(model, clip.byte(), protocol),
        lambda: heat_maps(model, clip),
        lambda: looks(model, clip),
    ):
        answer()
        assert seen
        assert not any(map(any, seen))
        assert tf32() == [True, True]
        seen.clear()


# faults


@pytest.mark.parametrize("free, memory_ran_out", [(1, True), (50, False)])
def test_no_engine_means_memory_where_there_is_hardly_any(free, memory_ran_out, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 100))
    assert memory.ran_out(RuntimeError("Unable to find an engine to execute this computation")) is memory_ran_out


def test_cudnn_s_word_for_full_memory_is_known():
    assert memory.ran_out(RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"))


@pytest.mark.parametrize(
    "text, lost",
    [
        ("CUDA error: an illegal memory access was encountered", True),
        ("CUDA error: out of memory", False),
        ("shapes do not fit", False),
    ],
)
def test_an_error_of_cuda_is_told_from_one_of_ours(text, lost):
    assert child.context_lost(RuntimeError(text)) is lost


def test_an_error_of_cuda_does_not_reach_the_metrics_after_it(tmp_path, monkeypatch):
    """They run in another process. Here both are played in this one."""
    asked = []

    def fails(workload):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    first = metrics.Metric("first", fails, {"first": Quantity("first", "timed", "first", "ms", "lower")}, True, 1, "x")
    quantity = Quantity("second", "timed", "second", "ms", "lower")
    second = metrics.Metric("second", lambda workload: [quantity.of([1.0])], {"second": quantity}, True, 2, "x")
    monkeypatch.setattr(metrics, "get", {"first": first, "second": second}.get)

    def run(work, arguments, time_limit):
        asked.append(arguments[0].metrics)
        return list(work(*arguments)), None

    monkeypatch.setattr(measure.process, "run", run)
    monkeypatch.setattr(child.memory, "limit", lambda: None)
    of_first, of_second = measure._in_child(tiny(), [first, second], tmp_path / "clip.npy", LITTLE, 60)
    assert asked == [["first", "second"], ["second"]]
    assert "illegal memory access" in of_first.missing
    assert of_first.retry
    assert of_second.samples == (1.0,)


# CUDA graphs


def test_a_graph_is_recorded_once_and_replayed_without_the_model(monkeypatch):
    calls, replays = [], []
    graph = types.SimpleNamespace(replay=lambda: replays.append(1))
    stream = types.SimpleNamespace(wait_stream=lambda other: None)
    for name, value in {
        "Stream": lambda device: stream, "current_stream": lambda device: stream, "CUDAGraph": lambda: graph,
        "stream": lambda stream: contextlib.nullcontext(), "graph": lambda graph: contextlib.nullcontext(),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    clips = types.SimpleNamespace(device=CUDA)
    replay = workload.captured(lambda batch: calls.append(batch) or "scores", clips)
    assert len(calls) == workload.CAPTURE_WARM_UP + 1
    assert [replay(clips), replay(clips)] == ["scores"] * 2
    assert len(replays) == 2
    assert len(calls) == workload.CAPTURE_WARM_UP + 1
    with pytest.raises(AssertionError, match="the memory that it was recorded on"):
        replay(types.SimpleNamespace())


def test_a_graph_off_cuda_is_a_reason_and_a_case_without_one_keeps_its_name(tmp_path):
    case = tiny(graph=True)
    measured = measure.measure(case, ["latency", "training_latency"], clip_file(tmp_path, case), effort=LITTLE)
    assert "a CUDA graph needs device=cuda, not cpu" in measured[0].missing
    assert "no CUDA graph here; use graph=false" in measured[1].missing
    assert not any(of_one.retry for of_one in measured)
    assert "graph" not in tiny().to_dict()
    assert case.to_dict()["graph"] is True


# trainings


def test_trainings_of_small_models_share_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(provenance, "usable_cores", lambda: 6)
    for data, count in (("motion_large", 6), ("kinetics400", 2)):
        slots = pool.slots("cuda", None, beside=pool.beside(data))
        assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["0", "1"] * (count // 2)
    assert len(pool.slots("cuda", 1, beside=3)) == 1


# which way is fastest


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("way", [depthwise._channels_first, depthwise._frames])
def test_every_layout_of_a_depthwise_convolution_computes_the_same(way, biased):
    inputs = drawn(2, 3, 4, 5, 6), drawn(6, 1, 3, 1, 5), drawn(6) if biased else None
    check_same(way, depthwise.convolved, inputs)


@pytest.mark.parametrize("biased", [True, False])
def test_pooling_as_sums_computes_the_same(biased):
    inputs = drawn(2, 4, 6, 2, 6), drawn(6, 1, 2, 3, 1), drawn(6) if biased else None
    check_same(depthwise._summed, partial(depthwise.convolved, stride=None), inputs)


def check_same(way, other, inputs):
    wanted = [x for x in inputs if x is not None]
    ours, theirs = way(*inputs), other(*inputs)
    probe = torch.randn_like(theirs)
    for got, want in zip(
        [ours, *torch.autograd.grad(ours, wanted, probe)],
        [theirs, *torch.autograd.grad(theirs, wanted, probe)],
        strict=True,
    ):
        torch.testing.assert_close(got, want)


def test_the_fastest_way_is_measured_once_for_each_shape(monkeypatch):
    """And one that has no code for the shape is not taken."""
    monkeypatch.setattr(fastest, "_chosen", {})
    monkeypatch.setattr(fastest.dispatch, "autocast", lambda *inputs: inputs)
    clock, calls = Clock(), []

    def event(enable_timing):
        made = clock.event(enable_timing)
        made.synchronize = lambda: None
        return made

    monkeypatch.setattr(torch.cuda, "Event", event)

    def way(name, milliseconds):
        def run(x):
            calls.append(name)
            if milliseconds is None:
                raise RuntimeError("unable to find an engine")
            clock.now += milliseconds
            return name

        return run

    ways = {"plain": way("plain", 3.0), "none": way("none", None), "quick": way("quick", 1.0)}
    x = types.SimpleNamespace(
        device=CUDA, dtype=torch.float32, shape=(2, 3), stride=lambda: (3, 1), requires_grad=False
    )
    x.detach = lambda: types.SimpleNamespace(requires_grad_=lambda wanted: x)
    assert fastest.fastest("convolution", ways, x) == "quick"
    assert fastest.chosen() == {"convolution": ["quick"]}
    del calls[:]
    assert fastest.fastest("convolution", ways, x) == "quick"
    assert calls == ["quick"]
    x.shape = (2, 4)
    fastest.fastest("convolution", ways, x)
    assert "plain" in calls
    x.device = torch.device("cpu")
    assert fastest.fastest("convolution", ways, x) == "plain"


# windows on the map


def test_windows_go_to_the_kernel_that_knows_them_in_one_call(monkeypatch):
    """On CUDA, for heads that it is written for; else they are cut as ever."""
    seen = []

    def on_the_map(qkv, padding, bias, order, plain, num_heads, padded, window, shift):
        assert (qkv.shape, bias.shape) == ((2, 4, 6, 8, 96), (2, 24, 24))
        assert (len(order), order.dtype, plain, padding) == (8, torch.int32, 1, None)
        seen.append(shift)
        return qkv[..., :32]

    module = attention_zoo.build("shifted_window", 32, 2, Grid(4, 6, 8), window=(2, 3, 4))
    monkeypatch.setattr(sequence, "attend", lambda *_, **__: pytest.fail("windows were cut"))
    monkeypatch.setattr(attention_zoo.windows, "of_windows", lambda *_: on_the_map)
    assert module(torch.randn(2, 4, 6, 8, 32)).shape == (2, 4, 6, 8, 32)
    assert seen == [(1, 1, 2)]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("attention_zoo.kernels.triton.find_spec", lambda name: "there")
    x = types.SimpleNamespace(device=CUDA, dtype=torch.float16)
    triton, of = kernels.registry.get("triton"), "shifted_window"
    assert kernels.of_windows("triton", x, 16, of) is triton.windows
    assert kernels.of_windows("triton", x, 24, of) is kernels.of_windows("sdpa", x, 16, of) is None
    assert kernels.of_windows("triton", torch.empty(1), 16, of) is kernels.of_few_keys("triton", x, 16, of) is None
    with torch.no_grad():
        assert kernels.of_few_keys("triton", x, 16, "global_pyramid") is triton.few_keys
        monkeypatch.setattr(attention_zoo.global_pyramid, "of_few_keys", lambda *_: lambda x, q, k, v, proj: x + 1)
        pyramid, clip = attention_zoo.build("global_pyramid", 32, 2, Grid(4, 6, 8)), torch.randn(1, 4, 6, 8, 32)
        torch.testing.assert_close(pyramid(clip), clip + 1)


def test_auto_has_special_programs_only_where_records_say_that_they_are_faster(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr("attention_zoo.kernels.triton.find_spec", lambda name: "there")
    x = types.SimpleNamespace(device=CUDA, dtype=torch.bfloat16)
    assert kernels.of_windows("auto", x, 32, "shifted_window") is None
    known = {("NVIDIA H200", "bfloat16", "shifted_window", True): "triton"}
    monkeypatch.setattr(kernels, "known_faster", lambda: known)
    windows = kernels.registry.get("triton").windows
    assert kernels.of_windows("auto", x, 32, "shifted_window") is windows
    assert kernels.of_windows("auto", x, 32, "local_window") is None
    assert kernels.of_windows("sdpa", x, 32, "shifted_window") is None
    with torch.no_grad():
        assert kernels.of_windows("auto", x, 32, "shifted_window") is None
    x.dtype = torch.float16
    assert kernels.of_windows("auto", x, 32, "shifted_window") is None


@pytest.mark.parametrize("known", [{}, {("NVIDIA H200", "bfloat16", "shifted_window", True): "triton"}])
def test_a_compiler_takes_what_records_say_for_a_constant(known, monkeypatch):
    """It reads no file and asks no driver: with either its graph would break."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr("attention_zoo.kernels.triton.find_spec", lambda name: "there")
    monkeypatch.setattr(kernels, "known_faster", lambda: known)
    kernels.names()
    torch._dynamo.reset()  # the constants of the other parameter

    @torch.compile(backend="eager", fullgraph=True)
    def scale(x):
        return x * (2 if kernels._faster(torch.device("cuda"), torch.bfloat16, "shifted_window", True) else 1)

    assert scale(torch.ones(1)).item() == (2 if known else 1)


def test_padding_that_learns_is_seen_window_by_window(monkeypatch):
    """The program on the map knows no gradient of what padding is made of."""
    module = attention_zoo.build("shifted_window", 32, 2, Grid(3, 5, 6), window=(2, 3, 4), padding="attended")
    monkeypatch.setattr(attention_zoo.windows, "of_windows", lambda *_: lambda qkv, *_: qkv[..., :32] * 0)
    x = torch.randn(1, 3, 5, 6, 32)
    assert module(x).flatten(0, 3).std(0).min() > 1e-4
    with torch.no_grad():
        assert module(x).flatten(0, 3).std(0).max() < 1e-6


def test_triton_says_what_it_needs(monkeypatch):
    from attention_zoo.kernels import triton

    assert "need a CUDA GPU" in kernels.missing("triton", "cpu", torch.float32)
    for spec, remedy in ((None, "pip install triton"), ("there", "not float64")):
        monkeypatch.setattr(triton, "find_spec", lambda name, spec=spec: spec)
        assert remedy in kernels.missing("triton", "cuda", torch.float64)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "capability 8.0" in kernels.missing("triton", "cuda", torch.float16)


# training as it is


def test_a_mixed_step_has_weights_of_float32_and_products_of_16_bits(tmp_path):
    case = tiny(dtype="bfloat16", mixed=True, batch_size=2)
    step = Workload(case, clip_file(tmp_path, case), LITTLE, "here").training
    formats = set()
    linear = next(module for module in step.model.modules() if isinstance(module, torch.nn.Linear))
    linear.register_forward_hook(lambda module, inputs, output: formats.add(output.dtype))
    sizes = step.first()
    assert formats == {torch.bfloat16}
    assert {p.dtype for p in step.model.parameters()} == {torch.float32}
    assert sizes["parameters"] == sizes["gradients"] == 4 * sum(p.numel() for p in step.model.parameters())
    assert step.clips.dtype == torch.float32
    assert "mixed" not in tiny().to_dict()
    with pytest.raises(NotImplementedError, match="use dtype=bfloat16 or float16"):
        _ = Workload(tiny(mixed=True), clip_file(tmp_path, case), LITTLE, "here").training
