"""Measuring one case: exact counts, timed metrics in a process of their own, and every way of having no number."""

import getpass
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from small_cases import LITTLE, clip_file, compiled, tiny

import attention_zoo
from backbones.pyramid import Pyramid
from harness.cost import count, measure, metrics, process
from harness.cost.build import build, example, unavailable
from harness.cost.facts import of_torch
from harness.spec.effort import Effort
from harness.spec.names import DTYPES
from records import provenance


def by_name(measured):
    return {measurement.name: measurement for measurement in measured}


# building


def test_weights_come_from_the_seed_and_are_never_zero():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = build(tiny()), build(tiny())
    other = build(tiny(seed=1))
    torch.testing.assert_close(torch.get_rng_state(), before)
    assert not first.training
    differ = 0
    for (name, a), b, c in zip(first.named_parameters(), second.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
        assert a.any(), name
        differ += not torch.equal(a, c)
    assert differ > 10


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtype_of_the_case_is_the_model_s(dtype):
    assert {p.dtype for p in build(tiny(dtype=dtype)).parameters()} == {getattr(torch, dtype)}


# counting


def test_params_and_macs_are_those_of_the_real_model():
    case = tiny()
    counted = by_name(measure.measure(case, ["params", "macs"]))
    model = build(case)
    total = sum(p.numel() for p in model.parameters())
    classifier = sum(p.numel() for p in model.classifier.parameters())
    assert counted["params"].value == total - classifier
    assert counted["params_with_classifier"].value == total
    assert counted["macs"].value == model.macs(classifier=False)
    assert counted["macs_with_classifier"].value == model.macs(classifier=True)
    assert all(type(m.value) is int for m in counted.values())
    norms = {torch.nn.LayerNorm: 0, torch.nn.BatchNorm3d: 0}
    for module in model.modules():
        if type(module) in norms:
            module.register_forward_hook(
                lambda m, x, y: norms.__setitem__(type(m), norms[type(m)] + x[0].numel())  # a second, plainer counter
            )
    model(example(case, device="cpu").zero_())
    assert counted["layernorm_elements"].value == norms[torch.nn.LayerNorm]
    assert counted["batchnorm_elements"].value == norms[torch.nn.BatchNorm3d] > 0


def test_counts_are_of_one_view_whatever_runs():
    plain = by_name(measure.measure(tiny(), ["macs"]))["macs"].value
    batch = tiny(batch_size=8, kernel="sdpa", dtype="bfloat16", compile=True)
    assert by_name(measure.measure(batch, ["macs"]))["macs"].value == plain


def test_counters_that_disagree_are_an_error_with_both_numbers(monkeypatch):
    case = tiny()
    monkeypatch.setattr(count, "_counts", {})  # what other tests have counted
    right = build(case).macs(classifier=True)
    monkeypatch.setattr(Pyramid, "macs", lambda self, classifier=True: right + 7)
    with pytest.raises(count.CountError, match=rf"{right}.*{right + 7}"):
        count.count(case)
    for measured in measure.measure(case, ["macs"]):
        assert str(right + 7) in measured.missing
        assert measured.retry


def test_a_long_joint_attention_costs_no_memory_to_count():
    case = tiny("pyramid_tiny_full", frames=64, size=448)
    assert by_name(measure.measure(case, ["macs"]))["macs"].value > 1e12


# timing


def test_every_timed_metric_of_a_case(tmp_path):
    case = tiny(batch_size=2, kernel="sdpa")  # `auto` takes plain softmax for so few tokens
    # Energy needs a counter that a CPU lacks, and the searches for a batch take their time: both have tests of theirs.
    # What fvcore counts is of no machine.
    left_out = ("energy", "largest_batch", "training_largest_batch", "fvcore_macs", "probes")
    timed = [name for name in metrics.names() if metrics.get(name).timed and name not in left_out]
    measured = by_name(measure.measure(case, timed, clip_file(tmp_path, case), effort=LITTLE))
    assert set(measured) == {name for metric in timed for name in metrics.get(metric).measures}
    for measurement in measured.values():
        assert measurement.missing is None, (measurement.name, measurement.missing)
        assert measurement.details["machine"] == provenance.machine("cpu")
        no_attention = measurement.name in metrics.get("ceilings").measures
        assert measurement.details.get("kernel", "sdpa") == (None if no_attention else "sdpa")
    assert measured["latency"].details["kernel"] == measured["training_latency"].details["kernel"] == "sdpa"
    latency, throughput = measured["latency"], measured["throughput"]
    assert len(latency.samples) >= 3
    assert throughput.samples == pytest.approx([2000 / ms for ms in latency.samples])
    assert latency.details["warm_up"] >= 2
    assert latency.details["threads"] == 1
    assert latency.details["finite_logits"]
    assert latency.details["operators"] == ["_scaled_dot_product_flash_attention_for_cpu"]
    assert measured["peak_memory"].value > 0


def test_memory_counts_the_weights_and_the_operators_are_those_that_ran(tmp_path):
    case = tiny(changes={"widths": [48, 96, 384, 768]}, kernel="reference", dtype="bfloat16")
    measured = by_name(measure.measure(case, ["peak_memory", "latency"], clip_file(tmp_path, case), effort=LITTLE))
    weights = sum(p.numel() for p in build(case).parameters()) * 2
    assert weights * 0.9 < measured["peak_memory"].value < weights * 20
    assert measured["latency"].details["operators"] == ["explicit softmax"]


@pytest.mark.parametrize(
    ("milliseconds", "settled"),
    [
        ([200, 100, 150], False),
        ([100, 101, 100, 99, 100], False),
        ([200, 150, 180, 100, 101, 100], False),
        ([300, 104, 103, 400, 100, 101], True),
        ([900, 101, 100, 99, 100, 250, 101], True),
        ([100, 110, 120, 130, 140, 150], False),
    ],
)
def test_a_warm_up_has_settled_when_the_running_median_stands_still(milliseconds, settled):
    from harness.cost.workload import _settled

    assert _settled([(ms / 3, ms) for ms in milliseconds]) is settled


class Clock:
    """Stands in for the module `time` of the workload: seconds pass in `sleep` only, whatever the machine does."""

    now = 0.0

    def sleep(self, seconds):
        self.now += seconds

    def perf_counter(self):
        return self.now

    def perf_counter_ns(self):
        return self.now * 1e9


def warming(how):
    """What is said of the warm-up, without what ran beside the samples."""
    return {name: how[name] for name in ("warm_up", "settled") if name in how}


@pytest.fixture
def clock(monkeypatch):
    from harness.cost import workload

    monkeypatch.setattr(workload, "time", Clock())
    return workload.time


def test_a_warm_up_ends_with_its_time_even_where_it_never_settles(tmp_path, clock):
    from itertools import count

    from harness.cost.workload import Workload

    number, effort = count(), Effort(samples=2, seconds=0, budget=1, fewest=2, warm_up_seconds=0.2)
    workload = Workload(tiny(), clip_file(tmp_path, tiny()), effort, "machine")
    runs, how = workload.time(lambda: clock.sleep(0.01 * (1 + next(number))))
    # 0.01 to 0.06 s, which is 0.21 s in all; two samples, of 0.07 and 0.08 s
    assert (len(runs), warming(how)) == (2, {"warm_up": 6, "settled": False})
    assert clock.now == pytest.approx(0.36)
    assert warming(workload.time(lambda: clock.sleep(0.02))[1]) == {"warm_up": 6, "settled": True}


def test_a_warm_up_of_few_slow_runs_is_judged_with_the_first_samples(tmp_path, clock):
    from harness.cost.workload import Workload

    effort = Effort(samples=4, seconds=0, budget=1, fewest=4, warm_up_seconds=0.05)
    workload = Workload(tiny(), clip_file(tmp_path, tiny()), effort, "machine")
    assert warming(workload.time(lambda: clock.sleep(0.05))[1]) == {"warm_up": 2, "settled": True}


def test_attention_that_is_fused_in_some_blocks_only_is_told(tmp_path):
    import torch

    from attention_zoo import use_kernel
    from harness.cost.workload import Workload

    case = tiny(kernel="sdpa")
    workload = Workload(case, clip_file(tmp_path, case), LITTLE, "machine")
    with torch.inference_mode():
        (fused,) = workload._observed(lambda: workload.eager(workload.input))
        use_kernel(workload.eager.stages[0].blocks[0], "reference")
        assert workload._observed(lambda: workload.eager(workload.input)) == [fused, "explicit softmax"]
    assert "attention" in fused


def test_what_is_watched_is_what_is_timed(tmp_path):
    """A learned bias leaves the fused kernel under every dispatch mode but ours, which must not say that it did."""
    from harness.cost.workload import Workload

    case = tiny("pyramid_tiny_shifted_window", kernel="sdpa")
    (measured,) = measure.measure(case, ["training_latency"], clip_file(tmp_path, case), effort=LITTLE)
    assert measured.details["operators"] == ["_scaled_dot_product_flash_attention_for_cpu"]
    later = Workload(case, clip_file(tmp_path, case), LITTLE, "machine", round=2)
    assert later.operators(lambda: pytest.fail("the first visit has looked")) == {}
    workload = Workload(case, clip_file(tmp_path, case), LITTLE, "machine")
    assert workload._observed(lambda: workload.training.eagerly()) == measured.details["operators"]


def test_float32_is_float32_while_a_case_is_measured(tmp_path):
    (measured,) = measure.measure(tiny(), ["latency"], clip_file(tmp_path, tiny()), effort=LITTLE)
    assert measured.details["tf32_matmul"] is measured.details["tf32_cudnn"] is False


def test_the_forms_for_a_cpu_are_measured_on_and_off(tmp_path):
    """A learned bias goes to the fused kernel by our form, and to plain softmax by PyTorch's own."""
    operators = {}
    for forms in ("own", "pytorch"):
        biased = tiny("pyramid_tiny_shifted_window", kernel="sdpa", forms=forms)
        assert ("forms" in biased.to_dict()) == (forms == "pytorch")
        (measured,) = measure.measure(biased, ["training_latency"], clip_file(tmp_path, biased), effort=LITTLE)
        operators[forms] = measured.details["operators"]
    assert operators["own"] == ["_scaled_dot_product_flash_attention_for_cpu"]
    assert "explicit softmax" in operators["pytorch"]


@pytest.mark.parametrize("visit", [1, 2])
def test_a_visit_runs_the_model_no_oftener_than_it_is_timed(visit, tmp_path):
    """But for the first one, whose last pass is looked at for the operators that ran: of a large model a pass takes as
    long as a sample.
    """
    from harness.cost.workload import Workload

    workload, passes = Workload(tiny(), clip_file(tmp_path, tiny()), LITTLE, "machine", round=visit), []
    workload.eager.register_forward_pre_hook(lambda model, inputs: passes.append(model))
    series = workload.series
    assert series.details["finite_logits"]
    assert len(passes) == series.details["warm_up"] + len(series.samples) + (visit == 1)


@pytest.mark.parametrize("error", ["[enforce fail] DefaultCPUAllocator: can't allocate memory", "a mistake"])
def test_a_pass_that_is_watched_may_lack_memory_and_nothing_else(error, tmp_path):
    """It comes after the times, which are not lost with it."""
    from harness.cost.workload import Workload

    def fail():
        raise RuntimeError(error)

    workload = Workload(tiny(), clip_file(tmp_path, tiny()), LITTLE, "machine")
    if "memory" in error:
        assert workload._observed(fail) == ["not observed: out of memory"]
    else:
        with pytest.raises(RuntimeError, match="a mistake"):
            workload._observed(fail)


# no number, and why


@pytest.mark.parametrize("changes", [{"compile": True}, {"kernel": "flex"}])
def test_what_is_compiled_has_no_peak_memory_on_a_cpu(changes, tmp_path, monkeypatch):
    case = compiled(**changes)
    monkeypatch.setattr(measure.errors, "needed", lambda *_: [])  # which would be compiled first
    (measured,) = measure.measure(case, ["peak_memory"], clip_file(tmp_path, case), effort=LITTLE)
    assert "the memory of the compiler cannot be told from the model's" in measured.missing
    assert not measured.retry


def test_lack_of_memory_is_a_result(tmp_path):
    """Joint attention over 401408 tokens with all scores in memory: more than any machine of today has."""
    case = tiny("pyramid_tiny_full", frames=64, size=448, kernel="reference")
    for measurement in measure.measure(case, ["peak_memory", "latency"], clip_file(tmp_path, case), effort=LITTLE):
        assert measurement.missing.startswith("out of memory"), measurement.missing
        assert "GiB" in measurement.missing
        assert not measurement.retry


def hang(mark):
    """Stands in for `child.answer`: starts a process, as a compiler does, says so, and never ends."""
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    Path(mark).write_text(str(worker.pid))
    time.sleep(3600)
    yield


def die(code):
    """Stands in for `child.answer`: ends as `code` does."""
    exec(code)
    yield


@pytest.fixture(params=["forkserver", "spawn"])
def method(request, monkeypatch):
    """Both ways to start a measuring process."""
    if request.param not in multiprocessing.get_all_start_methods():
        pytest.skip("this system starts processes in another way only")
    monkeypatch.setattr(process, "CONTEXT", multiprocessing.get_context(request.param))


def test_the_time_limit_is_a_reason_to_try_again(tmp_path, monkeypatch):
    monkeypatch.setattr(measure.child, "answer", hang)
    monkeypatch.setattr(measure.child, "Request", lambda *_: str(tmp_path / "pid"))
    measured = measure.measure(tiny(), ["latency"], clip_file(tmp_path, tiny()), effort=LITTLE, time_limit=0.1)
    assert measured[0].missing == "stopped at the time limit of 0.1 s; raise time_limit"
    assert measured[0].retry


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device that the test needs to be missing")
def test_a_device_that_is_not_there_is_a_reason(tmp_path):
    case = tiny(device="cuda")
    measured = measure.measure(case, ["latency", "throughput"], clip_file(tmp_path, case), effort=LITTLE)
    assert {m.name for m in measured} == {"latency", "throughput"}
    assert all("sees no CUDA device" in m.missing and not m.retry for m in measured)
    assert "available: " in unavailable("cpu", "float32", "xformers")


DEATHS = [
    ("import os; os.kill(os.getpid(), 9)", "killed (signal 9)", True),
    ("import os; os.kill(os.getpid(), 11)", "SIGSEGV", True),
    ("raise SystemExit(3)", "exit status", True),
    ("raise ValueError('lost /home/someone/secret/file.py')", "file.py", True),
    ("import sys; print('terminate: std::bad_alloc', file=sys.stderr); raise SystemExit(1)", "out of memory", False),
]


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs POSIX signals")
@pytest.mark.parametrize("code,reason,retry", DEATHS)
def test_a_process_that_dies_leaves_a_reason(code, reason, retry, method, tmp_path, monkeypatch):
    monkeypatch.setattr(measure.child, "answer", die)
    monkeypatch.setattr(measure.child, "Request", lambda *_: code)
    measured = measure.measure(tiny(), ["latency", "peak_memory"], clip_file(tmp_path, tiny()))
    assert [m.name for m in measured] == ["latency", "peak_memory"]
    for measurement in measured:
        assert reason in measurement.missing
        assert measurement.retry is retry
        assert "/home" not in measurement.missing


def two_answers_and_a_crash():
    yield "first"
    yield "second"
    os.kill(os.getpid(), 9)


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs POSIX signals")
def test_what_a_process_said_before_its_death_is_kept(method):
    answers, failure = process.run(two_answers_and_a_crash, (), 300)
    assert answers == ["first", "second"]
    assert "killed (signal 9)" in failure


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs POSIX signals")
def test_what_a_stopped_process_started_ends_with_it(method, tmp_path):
    """A compiler worker, say: it must not go on computing beside the next case."""
    mark, limit = tmp_path / "pid", 4
    while not mark.exists():  # it had no time to start anything: on a busy machine that takes long
        assert "time limit" in process.run(hang, (str(mark),), limit)[1]
        limit *= 2
    stat = Path(f"/proc/{mark.read_text()}/stat")
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:  # the signal takes a moment
        state = stat.read_text().rpartition(")")[2].split()[0] if stat.exists() else "gone"
        if state in ("gone", "Z"):  # Z: ended, but not yet collected by its new parent
            break
        time.sleep(0.1)
    assert state in ("gone", "Z")


def test_a_case_gives_the_same_answer_forked_and_in_a_new_interpreter(tmp_path, monkeypatch):
    case = tiny()
    answers = []
    for context in (process.CONTEXT, multiprocessing.get_context("spawn")):
        monkeypatch.setattr(process, "CONTEXT", context)
        measured = by_name(measure.measure(case, ["latency", "peak_memory"], clip_file(tmp_path, case), effort=LITTLE))
        assert not any(m.missing for m in measured.values())
        answers.append(measured)
    forked, spawned = answers
    assert {name: m.details.keys() for name, m in forked.items()} == {n: m.details.keys() for n, m in spawned.items()}
    assert forked["peak_memory"].value == pytest.approx(spawned["peak_memory"].value, abs=8 * 2**20)


@pytest.mark.skipif(sys.platform != "linux", reason="cases are forked on Linux only")
def test_cases_are_forked_from_a_process_with_one_thread(tmp_path):
    """Anything more could be lost or locked in a fork."""
    case, servers = tiny(), []
    for name in ("latency", "peak_memory"):
        assert measure.measure(case, [name], clip_file(tmp_path, case), effort=LITTLE)[0].samples
        servers.append([child for child in psutil.Process().children() if "forkserver" in " ".join(child.cmdline())])
    (server,), again = servers
    assert [server] == again  # the same for every case
    assert server.num_threads() == 1
    # Loaders of clips are forked from the same server; one that another test had may not be collected yet.
    assert not [child for child in server.children() if child.name() != "pt_data_worker"]


def test_a_measuring_process_loads_nothing_of_the_command_line(tmp_path):
    """Which would cost every case what the command line takes to start."""
    tmp_path.joinpath("of_the_command.py").touch()
    command = tmp_path / "command.py"
    command.write_text(
        "import of_the_command\nfrom harness.cost import process\n"
        "print(*process.run(eval, (\"__import__('sys').modules\",), 300)[0])"
    )
    environment = {**os.environ, "PYTHONPATH": str(provenance.ROOT)}
    done = subprocess.run([sys.executable, command], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "harness.cost.child" in done.stdout.split()
    assert "of_the_command" not in done.stdout.split()


def test_unknown_metrics_have_a_nearest_name():
    with pytest.raises(KeyError, match="did you mean 'latency'"):
        measure.measure(tiny(), ["latencey"])


# effort and provenance


def test_sampling_ends_by_number_and_time():
    effort = Effort(samples=20, seconds=3, budget=10, fewest=5)
    assert not effort.enough(19, 5)
    assert not effort.enough(30, 2)
    assert effort.enough(20, 3)
    assert effort.enough(5, 10)
    assert not effort.enough(4, 1000)


def test_provenance_says_what_a_reader_needs_and_nothing_private():
    facts = provenance.collect() | of_torch("cpu")
    for key in (
        "commit",
        "dirty",
        "started",
        "packages",
        "python",
        "os",
        "cpu",
        "cpu_generation",
        "huge_pages",
        "run",
        "cores",
        "ram_bytes",
        "gpu",
        "threads",
    ):
        assert key in facts
    assert facts["packages"]["torch"]
    text = json.dumps(facts)
    assert str(Path.home()) not in text
    assert str(provenance.ROOT) not in text
    host = platform.node()
    assert len(host) < 4 or host not in text
    user = getpass.getuser()
    assert len(user) < 4 or user not in text or user == "root"


def test_processors_of_one_name_are_told_apart(monkeypatch):
    cpuinfo = "model name\t: AMD EPYC\ncpu family\t: 25\nmodel\t\t: {}\nstepping\t: 1\nflags\t\t: fpu {}\n\n"
    generations = []
    for model, flags in ((1, "avx2"), (17, "avx2 avx512f avx512_bf16")):
        text = cpuinfo.format(model, flags) * 2
        monkeypatch.setattr(provenance.Path, "read_text", lambda *_, text=text, **__: text)
        monkeypatch.setattr(provenance.Path, "exists", lambda *_: True)
        generations.append(provenance.cpu_generation.__wrapped__())
    assert generations[0] == {"family": 25, "model": 1, "stepping": 1, "vectors": ["avx2"]}
    assert generations[1]["vectors"] == ["avx2", "avx512f", "avx512_bf16"]
    monkeypatch.setattr(provenance.Path, "exists", lambda *_: False)
    assert provenance.cpu_generation.__wrapped__() == {"vectors": []}


@pytest.mark.parametrize(
    ("device", "visible", "name"),
    [
        ("cuda", None, "one"), ("cuda:1", None, "two"), ("cuda:2", None, None), ("cuda", "1", "two"),
        ("cuda:1", "1,0", "one"), ("cuda", "", None), ("cuda:1", "0", None), ("cuda", "GPU-abc", "asked"),
    ],
)  # fmt: skip
def test_a_card_is_named_as_cuda_numbers_it(device, visible, name, monkeypatch):
    monkeypatch.setattr(provenance, "gpu", lambda: [{"name": "one"}, {"name": "two"}])
    monkeypatch.setattr(provenance, "_output", lambda *command: "asked" if "GPU-abc" in command else "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert provenance._card(device) == name
    assert provenance.device_slug(device) == (name or "gpu")


def test_outside_a_checkout_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    provenance.commit.cache_clear()
    assert provenance.commit() == {"commit": "unknown", "dirty": None}
    provenance.commit.cache_clear()
    monkeypatch.setenv("ATTENTION_ZOO_COMMIT", "abc")
    assert provenance.commit() == {"commit": "abc", "dirty": None}
    provenance.commit.cache_clear()


def test_a_compiler_that_fails_is_a_reason_that_no_other_try_mends():
    from harness.cost.child import _reason

    of_inductor = type("LoweringException", (RuntimeError,), {"__module__": "torch._inductor.exc"})
    reason, retry = _reason(of_inductor("no choices. target: flex_attention"), None)
    assert not retry
    assert "run it with compile=false" in reason


class Boastful(attention_zoo.schemes.get("full")):
    """A scheme of another package that states half of its cost."""

    def macs(self, *prefix):
        return super().macs(*prefix) // 2


def test_a_scheme_of_others_that_breaks_a_law_is_not_timed(monkeypatch):
    case = tiny("pyramid_tiny_full")
    assert measure.outlaw(case) is None
    monkeypatch.setitem(attention_zoo.schemes._entries, "boastful", Boastful)
    theirs = tiny("pyramid_tiny_boastful")
    latency, peak = measure.measure(theirs, ["latency", "peak_memory"])
    assert "not timed: boastful on " in latency.missing
    assert "macs" in latency.missing
    assert latency.missing == peak.missing
    assert not latency.retry


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs POSIX signals")
@pytest.mark.parametrize("method", sorted({"forkserver", "spawn"} & {*multiprocessing.get_all_start_methods()}))
def test_a_measuring_process_never_hears_ctrl_c(method):
    """Nor does the one that it is forked from: while that loads torch, it would end with a traceback."""
    code = (
        "import multiprocessing, signal\nfrom harness.cost import process\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in a script's background jobs
        f"process.CONTEXT = multiprocessing.get_context({method!r})\n"
        "print(*process.run(eval, (\"[__import__('signal').getsignal(2).name]\",), 300))\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    )
    environment = {**os.environ, "PYTHONPATH": str(provenance.ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (0, "['SIG_IGN'] None\n"), done.stdout + done.stderr


def test_a_measuring_process_that_is_no_longer_wanted_ends_without_a_word(tmp_path, capfd):
    """The run was interrupted, and with it went the folder of its log, while the server was still loading."""
    spawn = multiprocessing.get_context("spawn")
    late = spawn.Process(
        target=process._become, args=(None, tmp_path / "gone" / "log.txt", two_answers_and_a_crash, ())
    )
    late.start()
    late.join()
    assert (late.exitcode, *capfd.readouterr()) == (1, "", "")
