"""Activations, and what each stage of a model takes: counted, timed, shown."""

import pytest
from small_cases import LITTLE, clip_file, tiny
from test_reports import one_record, write

from harness.cost import metrics
from harness.cost.count import count
from harness.cost.metrics import stage_share
from harness.cost.workload import Workload
from harness.spec import case
from records.record import Quantity
from reports import markdown, stages, table


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
