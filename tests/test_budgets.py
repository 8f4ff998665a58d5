"""Stages, activations, equal budgets and predicted memory: counted, shown, judged."""

import numpy as np
import pytest
from small_cases import LITTLE, clip_file, tiny
from test_reports import one_record, write

from harness import sweep
from harness.cost import metrics
from harness.cost.count import count
from harness.cost.metrics import stage_share
from harness.cost.workload import Workload
from harness.spec import case
from records.record import Quantity
from reports import budgets, markdown, stages, table
from reports.text import Notes


def values(name, of):
    return {measured.name: measured for measured in metrics.get(name).run(of)}


def test_activations_are_fvcore_s_of_deit_small():
    """timm prints 11.95 M: linear maps, scores and weighted sums of 12 blocks with 6 heads, patches, classifier."""
    row = case.Row("deit", model="deit_small", clip={"frames": 1, "size": 224})
    of = case.resolve(case.Ablation("test", "?", [row]), case.Settings())[0].case
    tokens, width = 1 + 14 * 14, 384
    block = tokens * width * (3 + 1 + 4 + 1) + 6 * tokens**2 + tokens * width
    assert values("activations", of)["activations"].value == 12 * block + 14 * 14 * width + of.num_classes


@pytest.mark.parametrize("model", ("video_swin_tiny", "mvit_v2_small_16f"))
def test_multiply_adds_and_activations_of_all_stages_make_the_whole(model):
    of = tiny(model) if model == "video_swin_tiny" else case.Case("one", model, _small(model), clip=_clip())
    (measured,) = metrics.get("activations").run(of)
    by_stage, macs = measured.details["by_stage"], measured.details["macs_by_stage"]
    assert [*by_stage] == [*macs] == ["stage 1", "stage 2", "stage 3", "stage 4", "rest"]
    assert sum(by_stage.values()) == measured.value
    assert sum(macs.values()) == count(of).macs + count(of).classifier_macs
    assert min(macs[f"stage {number}"] for number in range(1, 5)) > 0


def _clip():
    return case.Clip(frames=4, size=64)


def _small(model):
    import backbones

    return backbones.config(model).shrunk(0.25, 4, (4, 64, 64)).to_dict()


def test_each_stage_of_a_pass_is_timed_and_its_memory_seen(tmp_path):
    of = tiny()
    workload = Workload(of, clip_file(tmp_path, of), LITTLE, "a machine")
    (measured,) = stage_share.stage_share(workload)
    (parts,), (peaks,) = measured.said("parts_ms"), measured.said("peak_bytes")
    assert [*parts] == ["stage 1", "stage 2", "stage 3", "stage 4", "rest"]
    assert min(parts.values()) >= 0
    assert len(measured.samples) == stage_share.PASSES
    assert [*peaks] == [*parts][:4]
    assert not [m for m in workload.eager.modules() if m._forward_hooks or m._forward_pre_hooks]
    (absent,) = stage_share.stage_share(Workload(tiny(compile=True), tmp_path / "clip.npy", LITTLE, "a machine"))
    assert "compile=false" in absent.missing
    assert sweep._in_words([measured]) == "measured; the report shows it"  # which no one number tells


def built(folder, records, **manifest):
    entries = [{"baseline": records[0].row} for _ in records]
    return table.load(write(folder, records, entries, table=None, figures=[], **manifest))


def changed(row, **more):
    """A record with other measurements: values by name."""
    of = one_record(row)
    for name, (unit, value, details) in more.items():
        kind = "sized" if "memory" in name else "shared" if name == "stage_time" else "counted"
        of.measurements[name] = Quantity(name, kind, name.replace("_", " "), unit, "lower").of([value], details)
    return of


def test_rows_beyond_the_budget_of_their_baseline_are_marked(tmp_path):
    rows = [changed("full"), changed("near", macs=("MAC", 62_000_000_000, {}))]
    rows += [changed("divided", params=("count", 30_488_000, {}), macs=("MAC", 30_000_000_000, {}))]
    of = built(tmp_path / "trial", rows)
    section = budgets.section(of)
    assert "Parameters are within 5% of the baseline's in 1 of 2 rows; beyond: divided (+40%)." in section
    assert "Multiply-adds are within 10% of the baseline's in 1 of 2 rows; beyond: divided (−50%)." in section
    notes = Notes()
    assert [budgets.mark(of, row, "params", notes) for row in of.rows] == ["", "", " [1]"]
    page = markdown.report(of, {})
    assert "No equal budget: parameters are not within 5% of the baseline's." in page
    assert section in page
    assert not budgets.section(table.load(write(tmp_path / "alone", [one_record()], table=None)))


@pytest.mark.parametrize(
    "measured, words", [(100, "1.00, holds"), (79, "1.27, too high"), (134, "0.746, **too low**"), (81, "1.23, holds")]
)
def test_predicted_memory_has_a_verdict(measured, words, tmp_path):
    more = {"predicted_training_memory": ("bytes, predicted", 100, {}), "training_memory": ("bytes", measured, {})}
    of = built(tmp_path / "trial", [changed("full", **more), changed("other", **more, macs=("MAC", 1, {}))])
    assert words in markdown.report(of, {})
    assert budgets.memory_columns(of)[0][1](of.rows[0]) == words


def test_shares_of_stages_are_shown_in_tables_of_seven_columns(tmp_path):
    names = [*(f"stage {number}" for number in range(1, 5)), "rest"]
    parts = {"parts_ms": dict(zip(names, (10.0, 20.0, 60.0, 5.0, 5.0), strict=True))}
    peaks = {"peak_bytes": dict.fromkeys(names[:4], 3 * 2**20)}
    more = {"stage_time": ("ms", 100.0, parts | peaks)}
    counts = dict(zip(names, (1, 2, 3, 4, 0), strict=True))
    more["activations"] = ("count", 10, {"by_stage": counts, "macs_by_stage": counts})
    of = built(tmp_path / "trial", [changed("full", **more), changed("other", **more)])
    section = stages.section(of)
    assert "stage 3, % of time: 60" in section, "what is the same in all rows stands above the table"
    assert "stage 4, % of multiply-adds: 40" in section
    assert "stage 1, MiB: 3.00" in section
    assert all(line.count("|") <= 8 for line in section.splitlines())
    assert section in markdown.report(of, {})
    assert not stages.section(built(tmp_path / "none", [one_record("full")]))


def test_what_was_seen_around_a_series_is_shown(tmp_path):
    of = one_record("full")
    state = {"after": {"sm_mhz": 1200, "celsius": 88}}
    details = {"card": {"before": {}, **state}, "beside": {"foreign_cores": 0.5, "stolen_cores": 0.0}}
    details |= {"compile_seconds": 3.0, "graphs": 2, "graph_breaks": 1, "compiled_before": 0}
    timed = Quantity("latency", "timed", "latency", "ms", "lower").of([1.0, 2.0], details)
    figures = markdown.run_figures(timed)
    wanted = {
        "latency: compilation, s": 3.0, "latency: compiled graphs": 2, "latency: graph breaks": 1,
        "latency: graphs from a cache": 0, "latency: clock of the card, MHz": 1200,
        "latency: temperature of the card, °C": 88, "latency: cores that other programs used": 0.5,
        "latency: cores that the host took": 0.0,
    }  # fmt: skip
    assert {title: figures[title] for title in wanted} == wanted
    of.measurements["latency"] = timed
    other = changed("other")
    page = markdown.report(built(tmp_path / "trial", [of, other]), {})
    assert "| full | " in page
    assert "latency: graph breaks" in page
    assert np.isclose(figures["latency, p50, ms"], 1.5)
