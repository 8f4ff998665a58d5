"""Every published cost that is measured here, with the verdict that it is known to get; counted on the meta device.

The verdicts stand here as data. A change that moves one of them, in a model, a setting or a table, has to be said here.
"""

from functools import lru_cache

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from hypothesis import given, settings
from hypothesis import strategies as st

import attention_zoo
import backbones
from harness.cost import count
from harness.spec import case
from reports import counting, paper_table, verdict
from reports.table import Row

R, E, N = verdict.REPRODUCED, verdict.EXPLAINED, verdict.NOT_REPRODUCED
# ablation -> published row -> verdicts on its operations and its parameters; None where the paper prints no figure
KNOWN = {
    "block_composition": {
        "(LL, LL, LL, LL)": (R, R),
        "(GG, GG, GG, GG)": (E, E),
        "(LL, LL, LG, LG)": (E, E),
        "(LG, LG, LL, LL)": (R, R),
        "(LG, LG, LG, LG)": (R, R),
    },
    "pyramid_scales": {
        "(LG1, LG1, LG1, LG1)": (E, E),
        "(LG2, LG2, LG2, LG2)": (E, E),
        "(LG, LG, LG, LG)": (R, R),
    },
    "window_size": {
        "16x4 window 4x7x7": (E, None),
        "16x4 window 8x7x7": (E, None),
        "32x2 window 4x7x7": (R, None),
        "32x2 window 8x7x7": (R, None),
        "32x2 window 16x7x7": (R, None),
        "32x2 window 8x14x14": (E, None),
    },
    "pyramid_downsampling": {"AvgPool": (E, N), "Conv": (E, E), "DWConv": (R, R)},
    "position_encoding": {"w.o PEG": (None, None), "Swin": (None, None), "DWConv": (None, None)},
    "temporal_pooling": {
        "pooling 1, 1, 1; patch (4, 4, 4)": (E, E),
        "pooling 2, 1, 1; patch (2, 4, 4)": (E, E),
        "pooling 1, 2, 1; patch (2, 4, 4)": (E, E),
        "pooling 1, 1, 2; patch (2, 4, 4)": (R, R),
        "pooling 1, 1, 1; patch (2, 4, 4)": (R, R),
    },
    "kinetics": {
        "ViT-B-VTN": (R, N),
        "VidTr-L": (N, None),
        "X-ViT (16x)": (N, None),
        "TimeSformer-L": (R, N),
        "MViT-B, 32x3": (R, R),
        "MViT-B, 64x3": (R, R),
        "ViViT-L/16x2 (ImageNet-21K)": (N, N),
        "ViViT-L/16x2 (JFT-300M)": (N, N),
        "Swin-T": (R, R),
        "Swin-S": (R, R),
        "Swin-B (ImageNet-1K)": (R, N),
        "Swin-B (ImageNet-21K)": (R, N),
        "DualFormer-T": (R, R),
        "DualFormer-S": (R, R),
        "DualFormer-B (ImageNet-1K)": (R, R),
        "DualFormer-B (ImageNet-21K)": (R, R),
    },
    "transfer": {
        "VidTr-M": (N, None),
        "VidTr-L": (N, None),
        "TimeSformer": (R, None),
        "TimeSformer-L": (R, None),
        "DualFormer-T*": (E, None),
        "DualFormer-T": (E, None),
        "DualFormer-S (4x1)": (R, None),
        "DualFormer-S (4x3)": (R, None),
    },
    "imagenet": {
        "DeiT-T": (E, E),
        "DeiT-B": (N, N),
        "Swin-T": (R, R),
        "Swin-S": (R, R),
        "Swin-B": (R, R),
        "DualFormer-T": (N, R),
        "DualFormer-S": (N, R),
        "DualFormer-B": (N, R),
    },
}
# What the rows of ours give that are as the paper states them, in the unit of the table: it prints another figure.
AS_STATED = {
    ("imagenet", "DeiT-T itself"): 1.3,
    ("pyramid_scales", "LG1 in every stage"): 208,
    ("pyramid_scales", "LG2, stage 4 whole"): 236,
    ("block_composition", "(GG, GG, GG, GG), stage 4 whole"): 236,
    ("block_composition", "(LL, LL, LG, LG), stage 4 whole"): 240,
    ("window_size", "16x4, window (4,7,7), scale (8,7,7)"): 112,
    ("window_size", "16x4, window (8,7,7), scale (8,7,7)"): 120,
    ("pyramid_downsampling", "AvgPool, stage 4 whole"): 60,
    ("pyramid_downsampling", "AvgPool in stages 3-4 only"): 59,
    ("pyramid_downsampling", "Conv, stage 4 whole"): 62,
    ("temporal_pooling", "patch (4,4,4), scale (8,7,7)"): 120,
    ("temporal_pooling", "pooling at stage 2, scale (8,7,7)"): 140,
    ("temporal_pooling", "pooling at stage 3, scale (8,7,7)"): 156,
}
# fvcore's count of one 32x224x224 view in MAC, classifier excluded: to the unit where the sheets give it, else in G
ONE_VIEW = {
    "dualformer_tiny": 60_088_210_944,
    "dualformer_small": 158.687,
    "dualformer_base": 267.965,
    "video_swin_tiny": 88.06,
    "video_swin_small": 166.12,
    "video_swin_base": 281.92,
}


class CountedRow(Row):
    """A row of a report whose values come from the meta device instead of a record."""

    def value(self, name):
        return getattr(self.record, name, None)


@lru_cache
def rows(ablation: str) -> tuple[CountedRow, ...]:
    loaded = case.load(ablation)
    paper = paper_table.load(loaded.table)
    made = []
    for entry in case.resolve(loaded, case.Settings()):
        counted = count.count(entry.case)
        values = vars(counted) | {"params_with_classifier": counted.params + counted.classifier_params}
        values |= {"macs_with_classifier": counted.macs + counted.classifier_macs}
        attention, mlp, projections = (counted.by_group.get(name, 0) for name in ("attention", "mlp", "projections"))
        values |= {"attention_products": attention, "mlp_macs": mlp, "linear_maps": mlp + projections}
        published = paper.row(entry.row.published) if entry.row.published else None
        made.append(
            CountedRow(
                entry.case.row,
                published,
                record=type("Counted", (), values | {"get": lambda self, name: None})(),
                explanation=entry.row.explanation,
                fit=entry.row.fit,
                note=entry.row.note,
                default_views=paper.views,
                default_counting=paper.counting,
                default_params_count=paper.params_count,
                precision=paper.precision | (published.precision if published else {}),
            )
        )
    return tuple(made)


@pytest.mark.parametrize("ablation", KNOWN)
def test_every_published_cost_gets_its_known_verdict(ablation):
    verdicts = {r.published.name: (r.verdict_flops.kind, r.verdict_params.kind) for r in rows(ablation) if r.published}
    assert verdicts == KNOWN[ablation]


def test_a_count_that_is_not_the_printed_one_is_known_here_or_has_a_note():
    """Of every ablation with a table, also of one that is added; those of accuracy alone `ablation=all` leaves out."""
    with_table = {name for name in case.names_in_all() if case.load(name).table}
    assert set(KNOWN) <= with_table
    for ablation in with_table - set(KNOWN):
        for row in rows(ablation):
            wrong = {row.verdict_flops.kind, row.verdict_params.kind} & {N}
            assert not wrong or row.note, f"{ablation}, {row.name}: not reproduced, and no note says why"


@pytest.mark.parametrize("ablation", KNOWN)
def test_rows_of_ours_give_what_the_paper_does_not_print(ablation):
    counts = {(ablation, r.name): float(r.authors_flops) for r in rows(ablation) if r.published is None}
    assert counts == {key: value for key, value in AS_STATED.items() if key[0] == ablation}


CNNS = {"R(2+1)D", "I3D", "SlowFast+NL", "X3D-XL", "X3D-XXL", "ip-CSN-152"}


@pytest.mark.parametrize("ablation", ["kinetics", "transfer", "imagenet"])
def test_no_printed_cost_of_a_transformer_is_published_only(ablation):
    """Tables 1 and 2 of DualFormer and Table 1 of its supplement: what is not counted here are networks of
    convolutions, of which a note says what the figures are.
    """
    printed_rows = paper_table.load(case.load(ablation).table).rows
    costs = {row.name: row for row in printed_rows if row.cells.get("flops") or row.cells.get("params")}
    assert costs.keys() - KNOWN[ablation].keys() == (CNNS if ablation == "kinetics" else set())
    for name, verdicts in KNOWN[ablation].items():
        figures = [costs[name].cells.get(column) is not None for column in ("flops", "params")]
        assert [kind is not None for kind in verdicts] == figures, name
    assert all(costs[name].note for name in CNNS & costs.keys())
    assert {name for name in CNNS & costs.keys() if not costs[name].recounted} <= {"X3D-XXL"}


@pytest.mark.parametrize("ablation", KNOWN)
def test_a_fit_has_an_explanation_and_every_row_of_ours_a_note(ablation):
    for row in case.load(ablation).rows:
        assert row.explanation or not row.fit, f"{row.row} is a fit without an explanation"
        assert row.published or row.note, f"{row.row} is a row of ours without a note"


def test_all_rows_of_a_complete_table_are_named_once():
    for name in KNOWN:
        published = [row.published for row in case.load(name).rows if row.published]
        assert len(published) == len(set(published)), f"{name} names a published row twice"
    both = {p for name in ("block_composition", "pyramid_scales") for p in KNOWN[name]}
    assert both == {row.name for row in paper_table.load("dualformer_table3").rows}
    for table, name in (
        (4, "window_size"),
        (5, "pyramid_downsampling"),
        (6, "position_encoding"),
        (7, "temporal_pooling"),
    ):
        assert set(KNOWN[name]) == {row.name for row in paper_table.load(f"dualformer_table{table}").rows}


def test_dualformer_tiny_to_the_unit():
    counted = count.count(case.resolve(case.load("pyramid_scales"), case.Settings())[-1].case)
    assert counted.params == 21_767_360
    assert counted.classifier_params == 205_200
    assert counted.macs == counted.closed_form == 59_860_279_296
    assert by_fvcore(counted) == 60_088_210_944


@pytest.mark.parametrize("name", ONE_VIEW)
def test_one_view_by_fvcores_rule(name):
    config = backbones.config(name)
    operations = by_fvcore(count.count(case.Case(name, name, config.to_dict())))
    expected = ONE_VIEW[name]
    assert operations == expected if isinstance(expected, int) else abs(operations / 1e9 - expected) < 0.006


def by_fvcore(counted: count.Count) -> int:
    return counting.operations("fvcore", vars(counted).get)


def fvcore_itself(config, clip: torch.Tensor) -> int:
    """fvcore's own count of a model that runs, explicit softmax so that it sees every product."""
    model = backbones.create(config, num_classes=0, kernel="reference").eval()
    with torch.inference_mode():
        analysis = FlopCountAnalysis(model, clip).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return int(analysis.total())


def our_count(config) -> int:
    clip = case.Clip(frames=config.clip.t, size=config.clip.h)
    return by_fvcore(count.count(case.Case("drawn", "drawn", config.to_dict(), num_classes=7, clip=clip)))


def test_the_fvcore_rule_is_fvcores_for_dualformer_tiny():
    assert fvcore_itself(backbones.config("dualformer_tiny"), torch.zeros(1, 3, 32, 224, 224)) == 60_088_210_944


SMALL = dict(widths=[8, 8, 16, 16], num_heads=[2, 2, 2, 4], depths=[2, 1, 2, 1], clip=[8, 64, 64])


@settings(max_examples=8)
@given(
    name=st.sampled_from(["dualformer_tiny", "video_swin_tiny"])
    | st.sampled_from([f"pyramid_tiny_{scheme}" for scheme in attention_zoo.schemes.names()]),
    frames=st.sampled_from([4, 6, 8]),
    position=st.sampled_from(["peg", "none"]),
    ratio=st.sampled_from([1, 4]),
    downsample=st.sampled_from(["dwconv", "conv", "avgpool"]),
)
def test_the_fvcore_rule_is_fvcores_for_small_models(name, frames, position, ratio, downsample):
    config = backbones.config(name)
    changes = SMALL | {"clip": [frames, 64, 64], "position": position, "mlp_ratio": ratio}
    changes |= {f"attention.{key}.downsample": downsample for key in ("G1", "G2") if key in config.attention}
    config = config.changed(changes)
    assert our_count(config) == fvcore_itself(config, torch.zeros(1, 3, frames, 64, 64))
