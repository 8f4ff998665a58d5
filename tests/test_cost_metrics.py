"""Where the time and the multiply-adds go, what the machine can do at best, energy, and the pages made of them."""

import csv
import sys
import time
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from flat import flat

import attention_zoo
import backbones
from attention_zoo.dispatch import watched
from harness.cost import metrics, operators
from harness.cost.build import build
from harness.cost.count import count
from harness.cost.metrics import ceilings, energy, operator_share
from harness.cost.operators import KINDS, group, groups_of
from harness.cost.workload import Workload
from harness.spec import case
from harness.spec.case import Settings
from harness.spec.effort import Effort
from harness.spec.reader import UsageError
from records import record
from records.groups import GROUPS, WITH_PRODUCTS
from records.record import Record, RecordError, Visit
from reports import build as report
from reports import cost_page, counting, exponents, figures, roofline, table
from reports.drawing import styled
from reports.figures import scaling

TINY = {"widths": [12, 24, 48, 96], "num_heads": [1, 2, 4, 8], "depths": [2, 2, 2, 2]}
LITTLE = Effort(samples=3, seconds=0, budget=0.1, fewest=3, warm_up_seconds=0)
MODELS = [f"pyramid_tiny_{scheme}" for scheme in attention_zoo.schemes.names()] + ["dualformer_tiny"]


def tiny(model="dualformer_tiny", changes=None, **fields):
    row = case.Row("tiny", model=model, changes={**TINY, **(changes or {})}, clip={"frames": 4, "size": 32})
    return replace(case.resolve(case.Ablation("test", "?", [row]), Settings(threads=1))[0].case, **fields)


def workload(folder, of):
    shape = (of.clip.frames, of.clip.size, of.clip.size, 3)
    np.save(folder / "clip.npy", np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    return Workload(of, folder / "clip.npy", LITTLE, "a machine")


def values(name, of):
    return {m.name: m for m in metrics.get(name).run(of)}


# what operators belong to


def test_every_group_is_measured_and_every_kind_is_in_one():
    timed, counted = (set(metrics.get(name).measures) for name in ("operator_share", "operator_macs"))
    assert timed == {f"time_{group}" for group in (*GROUPS, "total")}
    assert counted == {f"macs_{group}" for group in WITH_PRODUCTS}
    assert set(KINDS.values()) <= set(GROUPS)


@pytest.mark.parametrize("model", ["mvit_v2_small_16f", "dualformer_tiny"])
def test_the_multiply_adds_of_any_family_are_split_whole(model):
    config = backbones.config(model).shrunk(0.25, 1, (4, 32, 32))
    of = case.Case("one", model, config.to_dict(), clip=case.Clip(frames=4, size=32), num_classes=10)
    counted = count(of)
    parts = counted.by_group
    assert sum(parts.values()) == counted.macs + counted.classifier_macs
    assert parts["rest"] == counted.classifier_macs
    assert min(parts.get(group, 0) for group in ("attention", "projections", "mlp", "convolutions")) > 0


def test_a_part_of_no_group_is_an_error_and_not_the_rest(monkeypatch):
    model = build(tiny())
    monkeypatch.setattr(operators, "kinds", lambda model: {"stages": "attenton"})
    with pytest.raises(ValueError, match="stages is of the kind 'attenton', .* did you mean 'attention'"):
        groups_of(model)


@pytest.mark.parametrize(
    ("inside", "operator", "of"),
    [
        ("attention", "aten::bmm", "attention"),
        ("attention", "aten::_softmax", "attention"),
        ("attention", "aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("attention", "aten::mul", "attention"),
        ("attention", "aten::addmm", "projections"),
        ("attention", "aten.convolution", "convolutions"),
        ("attention", "aten::native_layer_norm", "norms"),
        ("attention", "aten::roll", "movement"),
        ("attention", "aten::permute", "movement"),
        ("projections", "aten::permute", "projections"),
        ("projections", "aten::copy_", "movement"),
        ("mlp", "aten.addmm", "mlp"),
        ("mlp", "aten::gelu", "mlp"),
        ("rest", "aten::add", "rest"),
        ("rest", "aten::native_batch_norm", "norms"),
    ],
)
def test_an_operator_s_group_follows_from_its_name_and_place(inside, operator, of):
    assert group(inside, operator) == of


def test_modules_of_every_kind_find_their_group():
    groups = groups_of(build(tiny(), device="meta"))
    block = "stages.0.blocks.1"  # a global one, with two scales
    for name, of in {
        "": "rest", "classifier": "rest", "norm": "norms", block: "rest", f"{block}.norm1": "norms",
        f"{block}.mlp": "mlp", f"{block}.mlp.fc1": "mlp", f"{block}.attention": "attention",
        f"{block}.attention.q": "projections", f"{block}.attention.kv": "projections",
        f"{block}.attention.norm": "norms", f"{block}.attention.priors.0.0": "convolutions",
        f"{block}.attention.priors.1": "convolutions", f"{block}.attention.priors.1.1": "norms",
        f"{block}.attention.priors.1.2": "convolutions",
        "stages.1.embed.proj": "convolutions", "stages.1.embed.norm": "norms", "stages.1.position": "convolutions",
    }.items():  # fmt: skip
        assert groups[name] == of, name
    pooled = {f"attention.{name}.downsample": "avgpool" for name in ("G2", "G1")}
    assert groups_of(build(tiny(changes=pooled), device="meta"))[f"{block}.attention.priors.0.0"] == "convolutions"
    divided = groups_of(build(tiny("pyramid_tiny_divided"), device="meta"))
    assert divided[f"{block}.attention.time.qkv"] == divided[f"{block}.attention.time_fc"] == "projections"
    merging = groups_of(build(tiny("video_swin_tiny"), device="meta"))
    assert merging["stages.1.embed.reduction"] == "convolutions"


def nonempty(model):
    """The groups in which every model does something; a convolution in attention's place leaves that one empty."""
    return set(GROUPS) - {"movement"} - ({"attention"} if model == "pyramid_tiny_depthwise_relation" else set())


@pytest.mark.parametrize("model", MODELS)
def test_multiply_adds_of_all_groups_make_the_count(model):
    counted = values("operator_macs", tiny(model))
    assert all(type(measurement.value) is int for measurement in counted.values())
    assert (
        sum(measurement.value for measurement in counted.values())
        == values("macs", tiny(model))["macs_with_classifier"].value
    )
    for name in ("attention", "projections", "mlp", "convolutions", "rest"):
        assert (counted[f"macs_{name}"].value > 0) == (name in nonempty(model)), name
    real = build(tiny(model))
    mlp = sum(block.mlp.macs(block.grid.tokens) for stage in real.stages for block in stage.blocks)
    assert counted["macs_mlp"].value == mlp
    assert counted["macs_rest"].value == real.classifier.weight.numel()


def test_half_of_dualformer_s_multiply_adds_are_its_mlp():
    """Limitation 2 of the paper: 29.60 of 60.09 G, the latter by the authors' rule, which adds norms."""
    dualformer = case.resolve(case.Ablation("test", "?", [case.Row("t", model="dualformer_tiny")]), Settings())[0].case
    counted = {name: measured.value for name, measured in values("operator_macs", dualformer).items()}
    assert counted["macs_mlp"] == 29_595_009_024
    assert sum(counted.values()) - counted["macs_rest"] == 59_860_279_296


def test_what_is_profiled_is_the_program_that_is_timed():
    model = build(tiny())
    with operator_share._marked(model, groups_of(model)):
        assert all(block.mlp._as_built() for stage in model.stages for block in stage.blocks)
        assert any(watched(block.mlp) for stage in model.stages for block in stage.blocks)
        assert not any(
            watched(module)
            for block in model.blocks().values()
            for module in block.attention.modules()
            if isinstance(module, torch.nn.Linear)
        )
    assert not any(watched(module) for module in model.modules())


@pytest.mark.parametrize("model", MODELS)
def test_time_of_all_groups_makes_the_pass(model, tmp_path):
    loaded = workload(tmp_path, tiny(model))
    measured = values("operator_share", loaded)
    assert len(measured["time_total"].samples) == operator_share.PASSES
    for number, total in enumerate(measured["time_total"].samples):
        parts = [measured[f"time_{name}"].samples[number] for name in GROUPS]
        assert min(parts) >= 0
        assert sum(parts) == pytest.approx(total, rel=1e-6)
    for name in nonempty(model) - {"rest"}:
        assert min(measured[f"time_{name}"].samples) > 0, name
    hooks = [m for m in loaded.eager.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks


def test_compiled_code_has_no_shares(tmp_path):
    for share in values("operator_share", workload(tmp_path, tiny(compile=True))).values():
        assert "compile=false" in share.missing
        assert not share.retry


# ceilings and energy


def test_ceilings_are_rates_with_raw_samples(tmp_path):
    measured = values("ceilings", workload(tmp_path, tiny()))
    assert {measurement.unit for measurement in measured.values()} == {"MAC/s", "bytes/s"}
    for measurement in measured.values():
        assert len(measurement.samples) >= 3
        assert min(measurement.samples) > 1e6
        assert measurement.details["best"] == max(measurement.samples)
        assert measurement.details["machine"] == "a machine"
    assert "512x512" in measured["matmul_ceiling"].details["how"]


def test_products_warm_up_a_device_before_its_ceiling(tmp_path, monkeypatch):
    prepared, seen = workload(tmp_path, tiny()), []
    prepared.effort = Effort()
    monkeypatch.setattr(ceilings, "SIDE", {"cpu": 64})
    monkeypatch.setattr(ceilings, "COPIED", {"cpu": 2**16})
    monkeypatch.setattr(ceilings, "_seconds", lambda work, _: seen.append(time.perf_counter()) or [1.0])
    start = time.perf_counter()
    metrics.get("ceilings").run(prepared)
    assert seen[0] - start >= ceilings.WARM_UP_SECONDS


@pytest.mark.parametrize("model", MODELS)
def test_fvcore_counts_what_we_count_by_its_rule(model, tmp_path):
    of = tiny(model)
    (measured,) = values("fvcore_macs", workload(tmp_path, of)).values()
    counted = count(of)
    assert measured.value == counting.operations("fvcore", vars(counted).get)


def test_a_cpu_has_no_energy_counter(tmp_path):
    (measured,) = values("energy", workload(tmp_path, tiny())).values()
    assert measured.missing == "no energy counter for this device"
    assert not measured.retry


def test_energy_without_its_package_or_support_says_which(monkeypatch):
    device = torch.device("cuda")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "nvidia-ml-py" in energy.counter(device)[1]
    nvml = types.ModuleType("pynvml")
    nvml.NVMLError = type("NVMLError", (Exception,), {})

    def refuse():
        raise nvml.NVMLError("Not Supported")

    nvml.nvmlInit = refuse
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: None)
    assert energy.counter(device) == (None, "no energy counter for this device: Not Supported")


def test_energy_is_joules_per_clip(tmp_path, monkeypatch):
    loaded, spent = workload(tmp_path, tiny(batch_size=2)), [1000]

    def model(x):
        spent[0] += 3000  # millijoules for a batch of two
        return x

    loaded.__dict__["model"] = model
    monkeypatch.setattr(energy, "counter", lambda device: (lambda: spent[0], None))
    monkeypatch.setattr(energy, "QUICK_SECONDS", 0.001)
    (measured,) = values("energy", loaded).values()
    assert measured.samples == (1.5, 1.5, 1.5)
    assert measured.unit == "J"


# axes of the ablations


def test_an_axis_of_clips_varies_several_entries_at_once():
    rows = [case.Row("a", model="dualformer_tiny")]
    clips = [{"frames": 8, "size": 32}, {"frames": 16, "size": 32}, {"frames": 8, "size": 64}]
    varied = case.Ablation("test", "?", rows, vary={"clip": clips})
    entries = case.resolve(varied, Settings())
    assert [entry.case.row for entry in entries][::2] == [
        "a · clip.frames=8, clip.size=32",
        "a · clip.frames=8, clip.size=64",
    ]
    assert [(entry.case.clip.frames, entry.case.clip.size) for entry in entries] == [(8, 32), (16, 32), (8, 64)]
    assert entries[0].comparable == (
        "clip.frames=8, clip.size=32 is an axis of this ablation, not of the published row"
    )
    fixed = case.resolve(varied, Settings(size=96))
    assert [entry.case.row for entry in fixed] == ["a · clip.frames=8", "a · clip.frames=16"]
    assert {entry.case.clip.size for entry in fixed} == {96}
    assert [entry.case.row for entry in case.resolve(varied, Settings(size=96, frames=4))] == ["a"]
    assert [entry.case.row for entry in case.resolve(varied, Settings(quick=True))] == [
        "a · clip.frames=2, clip.size=32",
        "a · clip.frames=4, clip.size=32",
    ]


@pytest.mark.parametrize("bad", [[8], [{}], [{"frame": 8}], [{"frames": 0}], []])
def test_a_wrong_clip_on_an_axis_is_named(bad):
    with pytest.raises(UsageError, match="vary.clip"):
        case.from_dict(
            {"name": "trial", "question": "?", "rows": [{"row": "a", "model": "m"}], "vary": {"clip": bad}},
            "trial.yaml",
        )


def test_a_baseline_may_be_the_value_of_an_axis():
    entries = case.resolve(case.load("kernels"), Settings())
    assert {entry.baseline.partition(" · ")[2] for entry in entries} == {"kernel=reference"}
    assert all(entry.baseline.split(" · ")[0] == entry.case.row.split(" · ")[0] for entry in entries)
    raw = {"name": "trial", "question": "?", "rows": [{"row": "a", "model": "m"}], "vary": {"kernel": ["sdpa"]}}
    with pytest.raises(UsageError, match="did you mean 'kernel=sdpa'"):
        case.from_dict(raw | {"baseline": "kernel=spda"}, "trial.yaml")


def test_all_takes_the_tables_of_costs_only():
    assert not {"scaling", "kernels", "dtypes", "compile", "operators", "training"} & set(case.names_in_all())
    assert {"kinetics", "attention_schemes"} <= set(case.names_in_all())


# figures and the page of a machine

SLOPES = {"full": 2.0, "local_window": 1.0}
GROWTH = {scheme: {axis: (int(slope), int(slope)) for axis in ("frames", "size")} for scheme, slope in SLOPES.items()}


def one_record(scheme, frames, size, machine="Example CPU", **changes):
    tokens = frames // 2 * (size // 4) ** 2
    clip = {"frames": frames, "stride": 2, "size": size, "path": None}
    config = {"patch": [2, 4, 4], "stages": [["A"]] * 4, "attention": {"A": {"scheme": scheme}}}
    row = f"{scheme} · clip.frames={frames}, clip.size={size}"
    settings = {"row": row, "clip": clip, "config": config, "device": "cpu", "dtype": "float32", "kernel": "auto"}
    settings |= {"batch_size": 2, "compile": False, "threads": 2}
    details = {"machine": machine, "kernel": "sdpa", "threads": 2}
    cost = 1.5e9 * (tokens / 3136) ** SLOPES[scheme] * (1 if scheme == "full" else 2)
    made = [
        flat("macs", "MAC", "lower", (int(cost),)),
        flat("latency", "ms", "lower", tuple(cost / 1e7 * f for f in (0.99, 1, 1.01)), details=details),
        flat("peak_memory", "bytes", "lower", (int(1e8 * (tokens / 3136)),), details=details),
        flat("bytes_moved", "bytes", "lower", (int(cost / 10),)),
        flat("matmul_ceiling", "MAC/s", "higher", (4e10,), details=details),
        flat("copy_ceiling", "bytes/s", "higher", (1e10,), details=details),
        *(flat(f"macs_{name}", "MAC", "lower", (10**9,)) for name in WITH_PRODUCTS),
        *(flat(f"time_{name}", "ms", "lower", (10.0,), details=details) for name in GROUPS),
        flat("energy", "J", "lower", missing="no energy counter for this device"),
    ]
    measured = {measurement.name: measurement for measurement in made} | changes
    provenance = {"commit": "0123456789abcdef", "dirty": False, "clip": {"source": "sample"}}
    return Record(record.case_id(row, settings), "scaling", row, settings, measured, provenance)


CLIPS = [(8, 112), (16, 112), (32, 112), (8, 224), (8, 336)]


@pytest.fixture
def machine(tmp_path):
    """A folder of results with one ablation in which the longest clip of full attention did not fit."""
    folder = tmp_path / "example-cpu" / "scaling"
    records = [one_record(scheme, *clip) for scheme in SLOPES for clip in CLIPS]
    lost = flat("latency", "ms", "lower", missing="out of memory: one piece of 19.0 GiB")
    records[CLIPS.index((8, 336))] = one_record("full", 8, 336, latency=lost)
    for of_row in records:
        record.write_record(of_row, folder)
    rows = [{"row": of_row.row, "case_id": of_row.case_id, "comparable": True} for of_row in records]
    manifest = {"name": "scaling", "question": "How does it grow?", "table": None, "rows": rows, "growth": GROWTH}
    manifest |= {"figures": ["scaling", "operator_share", "roofline"], "metrics": ["macs"]}
    record.write_manifest(manifest, folder)
    return folder


@pytest.mark.parametrize("name", ["scaling", "operator_share", "roofline"])
def test_figures_are_drawn_and_are_the_same_each_time(machine, name):
    rows = table.load(machine)
    first, second = figures.draw(name, rows), figures.draw(name, rows)
    assert first.files["png"].startswith(b"\x89PNG")
    assert first == second
    assert figures.draw(name, table.AblationTable("x", "?", ())) is None


def rows_of(*records):
    rows = tuple(table.Row(of_row.row, record=of_row) for of_row in records)
    return table.AblationTable("scaling", "?", rows, metrics=("macs",), growth=GROWTH)


def without(name, reason="it was not asked for", unit="ms"):
    return {name: flat(name, unit, "lower", missing=reason)}


def test_a_figure_of_single_points_is_neither_drawn_nor_linked(tmp_path):
    records = [one_record("full", 8, 112), one_record("local_window", 16, 112)]
    assert scaling.draw(rows_of(*records)) is None
    for of_row in records:
        record.write_record(of_row, tmp_path)
    rows = [{"row": of_row.row, "case_id": of_row.case_id, "comparable": True} for of_row in records]
    manifest = {"name": "scaling", "question": "How does it grow?", "table": None, "rows": rows}
    record.write_manifest(manifest | {"figures": ["scaling"]}, tmp_path)
    (tmp_path / "scaling.png").write_bytes(b"of an earlier run")
    (tmp_path / exponents.FILE).write_bytes(b"of an earlier run")
    assert "scaling.png" not in [path.name for path in report.build(tmp_path)]
    assert not (tmp_path / "scaling.png").exists()
    assert not (tmp_path / exponents.FILE).exists()
    assert "scaling.png" not in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_the_fitted_exponent_is_that_of_the_costs():
    assert exponents.exponent([(n, 7 * n**2) for n in (10, 20, 50)]) == pytest.approx(2)
    assert exponents.exponent([(n, n**0.5) for n in (1, 100)]) == pytest.approx(0.5)
    assert exponents.exponent([(8, 1), (8, 2)]) is None
    assert exponents.exponent([]) is None


def test_theory_follows_from_the_schemes_of_a_row(machine):
    full, window = (next(r for r in table.load(machine).rows if r.name.startswith(s)) for s in SLOPES)
    assert (exponents.theory(GROWTH, full, "frames"), exponents.theory(GROWTH, window, "size")) == ("2", "1")
    assert exponents.theory({"local_window": GROWTH["local_window"]}, full, "frames") is None


def test_a_roofline_is_derived_on_one_machine_only(machine):
    row = next(row for row in table.load(machine).rows if row.value("latency") is not None)
    rate = row.value("macs") * 2 / (row.value("latency") / 1e3)
    assert roofline.achieved(row) == pytest.approx(rate)
    assert roofline.share(row) == pytest.approx(rate / 4e10)
    elsewhere = flat("matmul_ceiling", "MAC/s", "higher", (4e10,), details={"machine": "another"})
    moved = replace(row, record=one_record("full", 8, 112, matmul_ceiling=elsewhere))
    assert roofline.share(moved) is None


def test_the_page_says_which_scheme_is_cheapest_where(machine, capsys):
    report.build(machine)
    assert cost_page.main([str(machine.parent)]) == 0
    page = (machine.parent / cost_page.PAGE).read_text(encoding="utf-8")
    assert page.startswith("# What attention costs on Example CPU\n")
    tie, level = (f"not distinguishable below {floor}% (assumed)" for floor in (10, 1))
    assert f"Least latency: at 8x112x112 full; at 16x112x112 full and local_window, {tie}; at 8x224x224" in page
    assert f"Least peak memory at every size: full and local_window, {level}." in page
    assert "| 32x112x112 | local_window: 1200 ms | full: 2.00 (1.82–2.20) times as much |" in page
    assert "![scaling, scaling](scaling/scaling.png)" in page
    assert "Out of memory: one piece of 19.0 GiB." in page
    assert str(machine.parents[1]) not in page
    before = (machine.parent / cost_page.PAGE).read_bytes()
    assert report.main([str(machine)]) == 0  # rebuilds the page that is there
    assert (machine.parent / cost_page.PAGE).read_bytes() == before


def test_the_page_says_under_which_circumstances_its_values_hold(machine):
    page = cost_page.build(machine.parent).read_text(encoding="utf-8")
    assert "Example CPU: float32, eager, kernel sdpa, batch 2, 2 threads." in page
    section = page.partition("## How does it grow?")[2]
    assert "Measured on: Example CPU, float32, kernel sdpa, eager, batch 2, threads 2, commit 0123456789." in section
    assert "The rows differ in clip: see those columns." in section
    assert cells(section, "full · clip.frames=32, clip.size=112")["clip"] == (
        "32 frames at stride 2, 112x112 pixels (sample)"
    )


def test_the_page_says_which_schemes_it_did_not_measure_and_what_ran_at_which_clip(machine):
    page = cost_page.build(machine.parent).read_text(encoding="utf-8")
    assert "not measured" not in page.partition("## How does it grow?")[0]
    rows = [row for row in table.load(machine).rows if row.record and row.name.startswith("local_window")]
    for number, row in enumerate(rows):
        if row.record.case["clip"]["frames"] == 8 and row.record.case["clip"]["size"] == 112:
            (machine / f"{row.record.case_id}.json").unlink()
            continue
        latency = row.measurement("latency")
        if latency is not None and latency.samples:
            named = replace(latency, details=latency.details | {"operators": ["flash"] if number % 2 else ["math"]})
            record.write_record(replace(row.record, measurements=row.record.measurements | {"latency": named}), machine)
    page = cost_page.build(machine.parent).read_text(encoding="utf-8")
    assert "flash for local_window (at " in page
    assert "math (explicit softmax) for local_window (at " in page or "math for local_window (at " in page


def test_shares_of_a_disturbed_profile_are_called_rough(tmp_path):
    for total, rough in ((105.0, False), (150.0, True)):
        folder, details = tmp_path / f"{total}" / "operators", {"machine": "Example CPU"}
        made = [flat("latency", "ms", "lower", (100.0,), details=details)]
        made += [flat(f"time_{name}", "ms", "lower", (total / 2,), details=details) for name in ("mlp", "rest")]
        made.append(flat("time_total", "ms", "lower", (total,), details=details))
        of_row = one_record("full", 8, 112, **{measured.name: measured for measured in made})
        record.write_record(of_row, folder)
        rows = [{"row": of_row.row, "case_id": of_row.case_id}]
        record.write_manifest({"name": "operators", "question": "?", "table": None, "rows": rows}, folder)
        page = built(folder)
        assert "their total is no latency" in page
        assert (f"are rough: {of_row.row} (profiled 150 ms, timed 100 ms)." in page) is rough


def test_one_thread_is_one(machine):
    row = next(row for row in table.load(machine).rows if row.record)
    latency = row.measurement("latency")
    alone = replace(latency, details=latency.details | {"threads": 1})
    of_row = replace(row.record, measurements={"latency": alone})
    assert "1 thread" in cost_page._circumstances(replace(row, record=of_row))


def built(folder) -> str:
    report.build(folder)
    return (folder / "report.md").read_text(encoding="utf-8")


def shared(page: str) -> dict[str, str]:
    """What all rows have in common, by headings."""
    sentences = [
        line.removeprefix("In all rows: ")[:-1] for line in page.splitlines() if line.startswith("In all rows: ")
    ]
    return dict(fact.split(": ", 1) for line in sentences for fact in line.split("; "))


def cells(page: str, row: str) -> dict[str, str]:
    """The cells of a row by their headings, over all tables of a page that have it."""
    shown, head = {}, []
    for line in page.splitlines():
        parts = line.strip("| ").split(" | ")
        head = parts if parts[0] == "row" else head
        if parts[0] == row:
            assert len(parts) <= 7
            shown |= dict(zip(head, parts, strict=True))
    return shown


def test_the_page_shows_training_memory_batches_throughput_and_ratios(tmp_path):
    folder, records = tmp_path / "operators", []
    for scheme, times in (("full", 1), ("local_window", 2)):
        details = {"machine": "Example CPU", "kernel": "sdpa", "threads": 2, "rounds": [1, 2, 3], "rounds_wanted": 3}
        sizes = {"memory": 400, "parameters": 80, "gradients": 70, "optimizer_state": 160, "activations": 90}
        made = [
            flat("latency", "ms", "lower", (100.0 * times, 104.0 * times, 98.0 * times), details=details),
            flat("throughput", "clips/s", "higher", (9.5 / times,), details={"machine": "Example CPU"}),
            *(
                flat(f"training_{part}", "bytes", "lower", (size * 2**20,), details={"machine": "Example CPU"})
                for part, size in sizes.items()
            ),
            flat("predicted_training_memory", "bytes, predicted", "lower", (333 * 2**20,)),
            flat("largest_batch", "clips", "higher", (48,), details={"bound": "time budget of 9 s"}),
            flat("largest_batch_throughput", "clips/s", "higher", (7.25,)),
        ]
        records.append(one_record(scheme, 8, 112, **{measured.name: measured for measured in made}))
        record.write_record(records[-1], folder)
    rows = [{"row": of_row.row, "case_id": of_row.case_id, "baseline": records[0].row} for of_row in records]
    record.write_manifest({"name": "operators", "question": "Where to?", "table": None, "rows": rows}, folder)
    page = built(folder)
    assert "Noise floor (A/A): latency 7.1%: from which difference on two rows are told apart" in page
    assert "no row has two rounds, so 10% is assumed of what is timed and 1% of memory." in page
    shown = cells(page, records[1].row) | shared(page)
    assert shown["training memory ↓, MiB"] == "400"
    parts = [f"{part} in training ↓, MiB" for part in ("parameters", "gradients", "optimizer state", "activations")]
    assert [shown[part] for part in parts] == ["80.0", "70.0", "160", "90.0"]
    assert shown["training memory, predicted ↓, MiB"] == "333"
    assert shown["largest batch ↑, clips"].startswith("48 [")
    assert (shown["throughput ↑, clips/s"], shown["throughput at the largest batch ↑, clips/s"]) == ("4.75", "7.25")
    (ratio,) = [cell for heading, cell in shown.items() if heading.startswith("latency ↓ / full")]
    assert ratio.startswith("2.00 (")
    assert "Larger batches may fit: the search ended with this: time budget of 9 s." in page


WIDE = {  # measurement: its unit, its heading on the page
    "peak_memory": ("bytes", "peak memory ↓, MiB"),
    "training_memory": ("bytes", "training memory ↓, MiB"),
    "energy": ("J", "energy per clip ↓, J"),
    "matmul_ceiling": ("MAC/s", "matmul ceiling ↓, GMAC/s"),
    "copy_ceiling": ("bytes/s", "copy ceiling ↓, GB/s"),
}


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("step", [0.2, 0.001])
def test_the_page_shows_intervals_of_every_kind_and_marks_wide_ones(name, step, tmp_path):
    details = {"machine": "Example CPU", "kernel": "sdpa", "threads": 2, "rounds": [1, 2, 3], "rounds_wanted": 3}
    rounds = tuple(1e9 * (1 + step * n) for n in range(3))
    of_row = one_record("full", 8, 112, **{name: flat(name, WIDE[name][0], "lower", rounds, details=details)})
    record.write_record(of_row, tmp_path / "operators")
    rows = [{"row": of_row.row, "case_id": of_row.case_id}]
    record.write_manifest({"name": "operators", "question": "?", "table": None, "rows": rows}, tmp_path / "operators")
    page = built(tmp_path / "operators")
    (cell,) = [cell for heading, cell in cells(page, of_row.row).items() if heading.startswith(WIDE[name][1])]
    assert " (" in cell
    assert cell.endswith("]") == (step == 0.2)


def test_the_page_calls_wide_intervals_of_the_cheapest_rough(machine):
    assert ", rough)" not in cost_page.build(machine.parent).read_text(encoding="utf-8")
    row = table.load(machine).rows[0]
    latency = replace(row.measurement("latency"), visits=tuple(Visit((x,), n) for n, x in enumerate((90, 100, 150), 1)))
    measured = row.record.measurements | {"latency": latency}
    record.write_record(replace(row.record, measurements=measured), machine)
    page = cost_page.build(machine.parent).read_text(encoding="utf-8")
    assert ", rough)" in page


def test_exponents_of_theory_stand_beside_those_of_attention_products_only(tmp_path):
    records = []
    for scheme, slope in SLOPES.items():
        for frames in (8, 16, 32):
            products = flat("macs_attention", "MAC", "lower", (int(1e9 * (frames / 8) ** slope),))
            weights = 50 * 2**20  # the rest is in proportion to the tokens
            peak = flat(
                "peak_memory", "bytes", "lower", (weights + frames * 2**20,), details={"weights_bytes": weights}
            )
            records.append(one_record(scheme, frames, 112, macs_attention=products, peak_memory=peak))
    with styled():
        drawn, _ = scaling.draw(rows_of(*records))
    legends = {axes.get_title(loc="left"): axes.get_legend().get_texts() for axes in drawn.axes}
    labels = {title: sorted(text.get_text() for text in texts) for title, texts in legends.items()}
    assert labels["multiply-adds in attention, GMAC"] == ["full 2.00 (2)", "local_window 1.00 (1)"]
    assert labels["multiply-adds, GMAC"] == ["full 2.00", "local_window 1.00"]
    assert labels["peak memory without weights, MiB"] == ["full 1.00", "local_window 1.00"]
    fitted = {line.scheme: line.exponent("peak_memory") for line in exponents.lines(rows_of(*records))}
    assert fitted == pytest.approx({"full": 1, "local_window": 1})
    unknown = [one_record("full", frames, 112) for frames in (8, 16)]
    with styled():
        drawn, _ = scaling.draw(rows_of(*unknown))
    assert not [axes for axes in drawn.axes if "memory" in axes.get_title(loc="left")]


def test_fitted_exponents_stand_below_the_figure_and_in_a_csv(machine):
    report.build(machine)
    below = (machine / "report.md").read_text(encoding="utf-8").partition("Exponents of")[2].partition("### ")[0]
    expected = [
        "| scheme, growing with | theirs in theory | multiply-adds: exponent | latency: exponent |",
        "| --- | ---: | ---: | ---: |",
        "| full, frames at 112x112 pixels | 2 | 2.00 (3) | 2.00 (3) |",
        "| local_window, frames at 112x112 pixels | 1 | 1.00 (3) | 1.00 (3) |",
        "| full, size at 8 frames | 2 | 2.00 (3) | 2.00 (2) [2] |",
        "| local_window, size at 8 frames | 1 | 1.00 (3) | 1.00 (3) |",
    ]
    assert [line for line in below.splitlines() if line.startswith("|")] == expected
    assert "[as CSV](exponents.csv)" in below
    assert "In all rows: multiply-adds in attention: exponent: 0.00 (3)." in below
    assert "\n".join(expected) in cost_page.build(machine.parent).read_text(encoding="utf-8")
    with (machine / exponents.FILE).open(newline="", encoding="utf-8") as file:
        fitted = {(entry["scheme"], entry["varied"], entry["measurement"]): entry for entry in csv.DictReader(file)}
    assert len(fitted) == 12
    shorter = fitted["full", "size", "latency"]
    assert (float(shorter["exponent"]), shorter["points"], shorter["at"], shorter["theory"]) == (2, "2", "8 frames", "")
    assert fitted["full", "size", "macs_attention"]["theory"] == "2"


def test_the_page_leaves_out_rows_without_a_record_and_says_so(machine):
    gone = one_record("full", 32, 112)
    (machine / f"{gone.case_id}.json").unlink()
    page = cost_page.build(machine.parent).read_text(encoding="utf-8")
    assert f"| {gone.row} |" not in page
    assert "1 row not measured yet: the whole report says how." in page
    assert "not measured yet" not in page.replace("1 row not measured yet", "")


def test_scaling_counts_the_products_whose_exponents_theory_gives():
    assert {"macs", "operator_macs", "latency", "peak_memory"} <= set(case.load("scaling").metrics)


def test_a_folder_without_timings_has_no_page(tmp_path, capsys):
    with pytest.raises(RecordError, match="harness.run ablation=scaling"):
        cost_page.build(tmp_path)
    assert cost_page.main([str(tmp_path)]) == 1
    assert "no timed record" in capsys.readouterr().err
