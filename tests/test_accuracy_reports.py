"""Accuracy in the reports: intervals, the verdict on the paper's order, and what a reader is shown."""

import csv
import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from flat import flat
from rich.console import Console
from test_reports import one_record, write

from records import means, record
from records.learning import trouble
from records.record import Measurement, RecordError, Visit
from reports import accuracy, accuracy_section, build, confusion, confusion_figure, table, testing_views, views
from reports import console as terminal
from reports.console import human
from reports.paper_table import PaperRow, PaperTable
from reports.table import AblationTable, Row

MOTION = {
    "data": "motion", "built_in": True, "data_digest": "ab12cd34ef56", "frames": 8, "size": 64, "width_factor": 0.25,
    "epochs": 6.0, "videos": 400, "classes": 10, "machine": "Example CPU, 2 cores",
}  # fmt: skip


def trained(*samples, name="top1_quick", seeds=None, **details) -> Measurement:
    facts = MOTION | {"seeds": list(range(len(samples)) if seeds is None else seeds)} | details
    if not samples:
        return flat(name, "percent", "higher", missing=facts.pop("missing"), details=facts)
    return flat(name, "percent", "higher", samples, details=facts)


def with_accuracy(row, *measured, **changes):
    plain = one_record(row, **changes)
    return replace(plain, measurements=plain.measurements | {m.name: m for m in measured})


PUBLISHED = {"base": 79.5, "worse": 78.4, "better": 79.9, "level": 79.5}


def rows_of(samples: dict[str, Measurement], published=PUBLISHED) -> AblationTable:
    """Rows with nothing but an accuracy, beside a paper that prints the accuracy of some."""
    rows = []
    for name, measured in samples.items():
        printed = None
        if name in published:
            printed = PaperRow(name, {"top1": published[name]}, None, "not_stated", "not_stated")
        of_row = record.Record(name, "example", name, {}, {measured.name: measured})
        rows.append(Row(name, printed, of_row, baseline="base"))
    return AblationTable("example", "Which is better?", tuple(rows))


# intervals and tests


@pytest.mark.parametrize(
    ("share", "degrees", "expected"),  # Abramowitz and Stegun, Table 26.10
    [(0.975, 1, 12.706), (0.975, 2, 4.303), (0.975, 3, 3.182), (0.95, 4, 2.132), (0.995, 9, 3.250), (0.975, 30, 2.042)],
)
def test_quantiles_of_t(share, degrees, expected):
    assert means.t_quantile(share, degrees) == pytest.approx(expected, abs=5e-4)
    assert means.t_quantile(1 - share, degrees) == -means.t_quantile(share, degrees)
    assert means.two_sided_p(means.t_quantile(share, degrees), degrees) == pytest.approx(2 * (1 - share), rel=1e-12)


@pytest.mark.parametrize("t", [0.01, 0.7, 3.0, 40.0, 1e4])
def test_p_of_one_and_two_degrees_in_closed_form(t):
    assert means.two_sided_p(t, 1) == pytest.approx(1 - 2 * math.atan(t) / math.pi, rel=1e-9)
    assert means.two_sided_p(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-6)
    assert means.two_sided_p(-t, 7) == means.two_sided_p(t, 7)
    normal = math.erfc(t / math.sqrt(2))
    assert means.two_sided_p(t, 10**7) == pytest.approx(normal, rel=1e-4, abs=1e-12)


def test_intervals_of_a_mean_and_of_a_share():
    mean = means.mean_interval([70.0, 71.0, 72.0])
    assert (mean.value, mean.high - 71) == (71, pytest.approx(4.302653 / math.sqrt(3)))
    assert means.share_interval(0.0, 10).high == pytest.approx(0.27753, abs=1e-5)
    assert means.share_interval(0.5, 100).low == pytest.approx(0.40383, abs=1e-5)
    assert means.share_interval(1.0, 5).high == 1
    for wrong in (
        lambda: means.mean_interval([70.0]),
        lambda: means.share_interval(1.1, 5),
        lambda: means.paired([], []),
    ):
        with pytest.raises(ValueError, match="allowed|two samples"):
            wrong()


def test_the_paired_test_and_holm():
    test = means.paired([1.0, 2.0, 4.0], [0.0, 0.0, 0.0])  # t = (7/3) / sqrt(7/9) = 2.6458
    assert test.p == pytest.approx(1 - math.sqrt(7 / 9), abs=1e-9)  # t / sqrt(2 + t^2) with t^2 = 7
    assert means.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert means.holm([0.5, 0.9]) == [1.0, 1.0]
    assert means.holm([]) == []


def test_differences_that_are_alike_to_the_video_are_not_taken_as_certain():
    assert means.paired([70.0, 71.0], [69.75, 70.75]).p == 0
    assert 0.05 < means.paired([70.0, 71.0], [69.75, 70.75], step=0.25).p < 0.5
    assert means.paired([70.0, 71.0], [70.0, 71.0], step=0.25).p == 1


def test_one_seed_has_the_interval_of_its_videos_and_says_so():
    single, three = accuracy.accuracy(trained(71.25)), accuracy.accuracy(trained(70.0, 71.0, 72.0))
    assert str(single) == "71.2 (66.6–75.5, one seed)"
    assert str(three) == "71.0 (68.4–73.5, n=3)"
    assert str(accuracy.accuracy(trained(71.25, videos=None))) == "71.2 (one seed)"
    two, sure = accuracy.accuracy(trained(99.0, 100.0)), accuracy.accuracy(trained(100.0, 100.0, 100.0))
    assert two.interval.low < 94
    assert 99.9 < two.interval.high < 100
    assert (sure.value, sure.interval.high) == (100, 100)
    assert sure.interval.low == pytest.approx(99.05, abs=0.01)  # no miss among 400 videos: Wilson's
    assert accuracy.accuracy(trained(missing="out of memory")) is None


@pytest.mark.parametrize(("truth", "deviation"), [(0.98, 0.01), (0.9, 0.05), (0.5, 0.05), (0.13, 0.02)])
def test_intervals_of_means_of_shares_hold_the_truth_without_being_cut(truth, deviation):
    random, size = np.random.default_rng(0), truth * (1 - truth) / deviation**2 - 1
    held = []
    for seeds in (3, 5):
        shares = random.binomial(400, random.beta(truth * size, (1 - truth) * size, (400, seeds))) / 400
        intervals = [means.mean_share_interval(list(of_one), 400, 400 * seeds) for of_one in shares]
        assert all(
            0 < interval.low < interval.value < interval.high < 1 for interval in intervals if 0 < interval.value < 1
        )
        held += [interval.low <= truth <= interval.high for interval in intervals]
    assert 0.925 < np.mean(held) < 0.98


# did it learn?


def seen(end, before=None, clips=160, chance=12.5, seed=0):
    """The details of a training of ten parts that ends in two of `end` percent."""
    curve = [12.5] * 6 + [end if before is None else before] * 2 + [end] * 2
    return {"seed": seed, "train_curve": curve, "train_clips": clips, "chance": chance}


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        (seen(90), None),
        (seen(14), "has not learnt"),
        (seen(20, clips=30), "has not learnt"),  # 6 of 30 may be luck
        (seen(20), None),
        (seen(55, chance=60), "has not learnt"),  # no better than the commonest class
        (seen(60, before=40), "unfinished"),
        (seen(60, before=52), None),
        (seen(60, before=47, clips=16), None),  # a rise that chance makes
    ],
)
def test_what_is_the_matter_with_a_training(details, expected):
    word = trouble(details["train_curve"], details["train_clips"], details["chance"])
    assert word == expected
    text = accuracy.learning_text(Measurement(**vars(trained(50.0)) | {"visits": (Visit((50.0,), details=details),)}))
    assert text == ("" if expected is None else f"{expected} (train {details['train_curve'][-1]:.0f} %)")


def test_rows_say_which_of_their_seeds_did_not_learn():
    visits = tuple(Visit((50.0,), details=seen(end, seed=seed)) for seed, end in enumerate((12, 80, 13)))
    whole = Measurement(**vars(trained(50.0)) | {"visits": visits})
    assert accuracy.learning_text(whole) == "2 of 3 seeds: has not learnt (train 35 %)"
    assert accuracy.learning_word(whole) == "has not learnt"
    rows = {"base": trained(12.0, 80.0, 13.0), "worse": whole}
    assert accuracy.orderings(rows_of(rows), "top1_quick")["worse"].kind == accuracy.NOT_TESTED
    assert accuracy.learning(trained(50.0)) is None  # records of before that was kept


# the order of the rows


def kinds(samples, **options):
    return {
        name: ordering.kind for name, ordering in accuracy.orderings(rows_of(samples, **options), "top1_quick").items()
    }


def test_an_order_is_confirmed_contradicted_or_not_distinguishable():
    drift = np.array([0.0, 2.0, -1.5])  # of a seed, common to all rows
    samples = {
        "base": trained(*(70 + drift)),
        "worse": trained(*(65 + drift + [0.25, 0, -0.25])),
        "better": trained(*(66 + drift + [0, 0.25, 0.25])),
        "level": trained(*(75 + drift + [0, 0.25, 0.25])),
        "ours": trained(*(71 + drift + [1, -2, 1.5])),
    }
    assert kinds(samples) == {
        "worse": accuracy.CONFIRMED,
        "better": accuracy.CONTRADICTED,
        "level": accuracy.NO_PUBLISHED_ORDERING,  # the paper prints the same accuracy for both
        "ours": accuracy.NO_PUBLISHED_ORDERING,
    }
    orderings = accuracy.orderings(rows_of(samples), "top1_quick")
    assert orderings["worse"].difference.interval.value == pytest.approx(-5)
    assert (orderings["worse"].published, len(orderings["worse"].difference.differences)) == (
        -accuracy.Decimal("1.1"),
        3,
    )
    assert (orderings["level"].direction, orderings["ours"].direction) == ("higher here", accuracy.NOT_DISTINGUISHABLE)
    noisy = samples | {"worse": trained(69.0, 73.0, 67.0)}
    assert kinds(noisy)["worse"] == accuracy.NOT_DISTINGUISHABLE
    assert accuracy.summary(rows_of(samples), "top1_quick") == (
        "Of the 2 orders that the paper prints against base: 1 confirmed (worse), 1 contradicted (better). Top-1 on "
        "built-in data (motion), quick, 8x64x64, width factor 0.25, 3 seeds: 65.2 % (worse) to 75.3 % (level)."
    )


def test_the_first_line_says_how_many_seeds_each_order_would_take():
    """A difference that no number of seeds tells is not among those that a few more would tell."""
    drift = np.array([0.0, 2.0, -1.5])
    samples = {
        "base": trained(*(70 + drift)),
        "worse": trained(69.0, 73.0, 67.0),
        "better": trained(*(70 + drift + [0.25, 0, -0.25])),
    }
    judged = accuracy.orderings(rows_of(samples), "top1_quick")
    assert (judged["worse"].kind, judged["better"].more) == (accuracy.NOT_DISTINGUISHABLE, None)
    words = f"(1 would take about {judged['worse'].more} more seeds, 1 more than 1000). "
    assert f"2 not distinguishable at this scale {words}" in accuracy.summary(rows_of(samples), "top1_quick")
    unsaid = {"base": samples["base"], "ours": samples["better"], "level": samples["worse"]}
    assert accuracy.summary(rows_of(unsaid), "top1_quick").startswith(
        f"0 of 2 rows can be told from base; 1 would take about {judged['worse'].more} more seeds, 1 more than 1000. T"
    )
    alike = {"base": samples["base"], "ours": samples["better"], "level": samples["better"]}
    assert "0 of 2 rows can be told from base; all would take more than 1000 seeds. Top-1 on" in (
        accuracy.summary(rows_of(alike), "top1_quick")
    )


def test_rows_that_are_told_without_a_published_order_are_named_with_their_direction():
    low = np.array([60.0, 62.0, 58.5])
    samples = {"base": trained(*(low + 10)), "ours, small": trained(*low), "ours, other": trained(*(low - 5))}
    assert accuracy.summary(rows_of(samples), "top1_quick").startswith(
        "2 of 2 rows can be told from base: ours, small (lower); ours, other (lower). Top-1 on "
    )
    del samples["ours, other"]
    elsewhere = {"far": trained(*low, data_digest="other"), "ours, far": trained(*(low - 5), data_digest="other")}
    rows = rows_of(samples | elsewhere).rows
    of_far = [replace(row, baseline="far") if row.name == "ours, far" else row for row in rows]
    assert accuracy.summary(AblationTable("example", "?", tuple(of_far)), "top1_quick").startswith(
        "2 of 2 rows can be told from their baselines: ours, small (lower); ours, far (lower). Top-1 on "
    )
    assert accuracy.summary(AblationTable("example", "?", rows), "top1_quick").startswith(
        "1 of 1 row can be told from base: ours, small (lower). Top-1 on "
    )


def test_orders_of_one_network_are_not_told_as_two():
    low = np.array([60.0, 62.0, 58.5])
    samples = {
        "base": trained(*(low + 10)),
        "worse": trained(*low),
        "level": trained(*low, same_network_as="worse"),
        "costs alone": trained(70.0, name="top1_other"),
    }
    told = accuracy.summary(rows_of(samples, PUBLISHED | {"level": 78.0}), "top1_quick")
    assert "2 confirmed (worse; level, the same network at this size). Top-1 on" in told


def test_few_seeds_are_set_beside_the_record_of_more():
    few = rows_of({"base": trained(91.0, 92.0, 93.0, recorded={"top1": 96.25, "spread": 2.5, "seeds": 8})})
    assert accuracy_section.summary(few)[-1] == (
        "Over 8 seeds, in the committed record, the default model comes to 96.2 %, and a row varies by 2.5 points over "
        "seeds."
    )
    assert len(accuracy_section.summary(rows_of({"base": trained(91.0, 92.0, 93.0)}))) == 1


def test_holm_raises_p_by_the_number_of_rows():
    base = trained(70.0, 72.0, 68.0)
    row = trained(69.0, 70.5, 66.75)
    alone = accuracy.orderings(rows_of({"base": base, "worse": row}), "top1_quick")["worse"]
    others = {f"ours {n}": trained(70.0, 71.0, 69.25) for n in range(3)}
    among = accuracy.orderings(rows_of({"base": base, "worse": row} | others), "top1_quick")["worse"]
    assert alone.difference.p == alone.p_holm
    assert among.p_holm == pytest.approx(4 * alone.p_holm)
    assert (alone.kind, among.kind) == (accuracy.CONFIRMED, accuracy.NOT_DISTINGUISHABLE)


def test_what_cannot_be_tested_says_why():
    base = trained(70.0, 72.0, 68.0)
    one_seed = {"base": base, "worse": trained(60.0)}
    assert kinds(one_seed) == {"worse": "one seed: no test"}
    assert accuracy.summary(rows_of(one_seed), "top1_quick").startswith("One seed: no test of the ordering. Top-1 on ")
    assert kinds({"worse": trained(60.0, 61.0)}) == {}
    for changed in (dict(data_digest="other"), dict(videos=390), dict(epochs=9.0), dict(seeds=[7, 8, 9])):
        other = accuracy.orderings(rows_of({"base": base, "worse": trained(60.0, 61.0, 59.0, **changed)}), "top1_quick")
        assert other["worse"].kind == accuracy.NOT_TESTED
        assert "here, " in other["worse"].reason or "in common" in other["worse"].reason
    paired = trained(68.0, 60.0, 62.0, seeds=[2, 0, 1])  # in another order: pairs go by the seed
    ordering = accuracy.orderings(rows_of({"base": base, "worse": paired}), "top1_quick")["worse"]
    assert ordering.difference.interval.value == pytest.approx(-(10 + 10 + 0) / 3)
    missing = {"base": base, "worse": trained(missing="out of memory")}
    assert kinds(missing) == {}


@pytest.mark.parametrize("rows", [1, 4])
def test_rows_that_are_equal_are_rarely_told_apart(rows):
    """Under equal means any row is called confirmed or contradicted in about 5 % of the tables, or less."""
    random = np.random.default_rng(0)
    published = {"base": 79.5} | {f"row {n}": 79.0 for n in range(rows)}
    wrong, tables = 0, 1000
    for _ in range(tables):
        drift = random.normal(0, 1.5, 3)
        draws = {name: np.clip(70 + drift + random.normal(0, 1.0, 3), 0, 100) for name in published}
        seen = {name: trained(*(float(round(4 * x) / 4) for x in draw)) for name, draw in draws.items()}
        wrong += any(kind != accuracy.NOT_DISTINGUISHABLE for kind in kinds(seen, published=published).values())
    assert (0.03 if rows == 1 else 0.02) < wrong / tables < 0.065, wrong / tables


# full scale


def at_full_scale(value, **details):
    settings = dict(
        data="kinetics400", built_in=False, frames=32, size=224, width_factor=1, videos=19_760, name="top1_full"
    )
    return trained(value, **settings | details)


@pytest.mark.parametrize(
    ("measured", "comparable", "expected"),
    [
        (at_full_scale(79.2), True, "reproduced"),
        (at_full_scale(78.0), True, "not reproduced"),
        (at_full_scale(79.5, width_factor=0.5), True, "not compared (trained at width factor 0.5)"),
        (at_full_scale(79.5, frames=16), True, "not compared (trained with frames 16, the row has 32)"),
        (at_full_scale(79.5), "a longer clip", "not compared (a longer clip)"),
        (at_full_scale(79.5, data="diving48"), True, ""),
        (trained(79.5, name="top1_full"), True, ""),  # the built-in data is never set against a paper
    ],
)
def test_full_scale_stands_beside_the_published_accuracy(tmp_path, measured, comparable, expected):
    entry = {"published": "(LG, LG, LG, LG)", "comparable": comparable}
    rows = table.load(write(tmp_path / "scales", [with_accuracy("LG", measured)], [entry]))
    assert str(accuracy.judge_full(rows, rows.rows[0], "top1_full")) == expected


# what a reader sees


def ablation(tmp_path, base=None, **manifest):
    """Three rows of Table 3, trained with three seeds, and one that failed."""
    controls = dict(shuffled=[24.0, 25.0, 23.0], single=[10.0, 11.0, 9.5], coverage=[1.0, 1.0, 0.995])
    accuracies = [
        base or trained(70.0, 72.0, 68.5, top5=[95.0, 96.0, 94.0], **controls),
        trained(65.0, 66.75, 63.25, **controls),
        trained(70.0, 71.0, 69.0, **controls),
        trained(missing="the loss was no longer a number at step 12"),
    ]
    names = ["LG", "LG1", "ours", "lost"]
    entries = [{"published": f"({', '.join([name] * 4)})" if name in ("LG", "LG1") else None} for name in names]
    records = [with_accuracy(name, measured) for name, measured in zip(names, accuracies, strict=True)]
    return write(tmp_path / "scales", records, [entry | {"baseline": "LG"} for entry in entries], **manifest)


def built(folder):
    build.build(folder)
    rows = list(csv.DictReader(io.StringIO((folder / "table.csv").read_text(encoding="utf-8"))))
    return (folder / "report.md").read_text(encoding="utf-8"), {row["row"]: row for row in rows}


def test_the_report_shows_accuracy_with_its_setting_and_its_verdict(tmp_path):
    folder = ablation(tmp_path)
    report, rows = built(folder)
    setting = "built-in data (motion), quick, 8x64x64, width factor 0.25, 3 seeds"
    assert "| top-1 ↑, %, measured, quick: mean (95 % interval) [1] |" in report
    assert f"1. Measured here on {setting}." in report
    assert "| top-1 ↑, %, published | top-5 ↑, %, published |" in report
    assert "| 79.5 | 94.1 |" in report
    assert "| 70.2 (65.6–74.3, n=3) [2] |" in report
    assert "99.5 % of the test videos could be decoded; the others count as wrong." in report
    assert "The loss was no longer a number at step 12." in report
    assert "Accuracies are published, not measured here" not in report
    assert "Those of a smaller setting are not to be compared with the published ones" in report
    assert "| LG | 0 (baseline) | — | — | — |" in report
    assert "| −1.1 | confirmed |" in report
    assert "| — | no published ordering; not distinguishable at this scale [" in report
    assert "About 103 more seeds would tell it, were it what it seems." in report
    assert "#### Does the data need time?" in report
    assert "frames shuffled | top-1, %, a single frame |" in report
    assert "Guessing among 10 classes gives 10.0 %." in report
    assert ". Top-1 on built-in data (motion), quick" in report
    assert "![Measured top-1 accuracy of each row; lines are 95 % intervals](accuracy_cost.png)" in report
    assert "Further measurements" not in report  # an accuracy is no timing
    assert " accuracy=quick  # measures what has no record yet" in report
    assert "Example CPU, 2 cores, torch" in report.partition("## Accuracy")[0]
    assert (rows["LG"]["top1_quick"], rows["LG"]["top1_quick_seeds"]) == (str(210.5 / 3), "3")
    assert (rows["LG"]["top1_quick_interval"], rows["LG"]["top1_quick_data"]) == ("seeds", "motion")
    assert float(rows["LG1"]["top1_quick_difference"]) == pytest.approx(-5.1667, abs=1e-3)
    assert (rows["LG1"]["top1_quick_ordering"], rows["LG1"]["top1_quick_published_difference"]) == ("confirmed", "-1.1")
    assert float(rows["LG"]["top1_quick_shuffled"]) == 24
    assert (rows["lost"]["top1_quick"], rows["LG"]["published_top1"]) == ("", "79.5")
    index = build.build_index(folder.parent).read_text(encoding="utf-8")
    assert "| order confirmed, contradicted, not distinguishable at this scale |" in index
    assert index.splitlines()[6].endswith("| 1 / 0 / 0 |")


def test_the_digests_of_training_and_test_data_are_both_named():
    assert accuracy_section._digest("0123456789ab") == "0123456789"
    assert accuracy_section._digest({"train": "a" * 64, "test": "b" * 64}) == "train aaaaaaaaaa, test bbbbbbbbbb"


def test_the_report_says_what_has_decoded_the_test_videos():
    runs = [{"decoders": {"decord 0.6.0": 38, "PyAV 18.1.0": 2}}, {"decoders": {"decord 0.6.0": 40}}, {}]
    rows = {name: trained(70.0, trained_with=run) for name, run in zip(("base", "worse", "level"), runs, strict=True)}
    text = accuracy_section._how(rows_of(rows), "top1_quick")
    assert "Test videos decoded by PyAV 18.1.0 (0 to 2), decord 0.6.0 (38 to 40)." in text
    assert "decoded by" not in accuracy_section._how(rows_of({"base": trained(70.0)}), "top1_quick")


def test_the_same_records_give_the_same_bytes(tmp_path):
    folder = ablation(tmp_path, figures=["cost", "accuracy_cost"])
    first = {path.name: path.read_bytes() for path in build.build(folder)}
    assert list(first) == ["cost.png", "accuracy_cost.png", "table.csv", "table.tex", "report.md"]
    assert {path.name: path.read_bytes() for path in build.build(folder)} == first


def test_seeds_that_lack_and_other_settings_stand_in_footnotes(tmp_path):
    folder = ablation(
        tmp_path,
        trained(70.0, 72.0, wanted_seeds=[0, 1, 2], failed={"2": "killed by a signal"}, frames=4),
    )
    report, _ = built(folder)
    assert "2 of 3 seeds trained so far: killed by a signal." in report
    assert "Trained with frames 4, other rows otherwise." in report
    assert "quick, 4–8x64x64, width factor 0.25, 2–3 seeds" in report


def test_of_data_that_differ_a_note_has_the_letters_of_each_digest():
    rows = {"base": trained(70.0), "other": trained(71.0, data_digest={"test": "0123456789abcdef"})}
    table = rows_of(rows)
    assert accuracy.differs(table, table.rows[1], "top1_quick") == (
        "trained with data test 0123456789ab, other rows otherwise"
    )


def test_a_report_without_accuracy_says_that_it_is_published_only(tmp_path):
    folder = write(tmp_path / "scales", [one_record()], [{"published": "(LG, LG, LG, LG)"}])
    report, _ = built(folder)
    assert "Accuracies are published, not measured here." in report
    assert "Accuracy measured here" not in report
    assert not (folder / "accuracy_cost.png").exists()


def test_the_terminal_shows_percent_interval_and_seeds(tmp_path):
    assert human(trained(70.0, 71.0, 72.0)) == "71.0 % [68.4–73.5], 3 seeds"
    assert human(trained(71.25)) == "71.2 % [66.6–75.5], 1 seed"
    assert human(trained(missing="out of memory")) == "—"
    folder = ablation(tmp_path)
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(terminal.results(folder, [row["case_id"] for row in record.read_manifest(folder)["rows"]]))
    text = console.export_text()
    assert "70.2 % [65.6–74.3], 3 seeds" in text
    assert "top-1 ↑ (motion, quick, 8x64x64, width factor 0.25)" in text
    assert "that the paper prints (LG1 against LG) is confirmed. Top-1 on" in " ".join(text.split())


def test_rows_without_timings_keep_the_words_for_the_clip(tmp_path):
    records = [one_record("timed"), one_record("lost", timed=False, latency="out of memory")]
    records.append(with_accuracy("trained", trained(70.0), timed=False))
    rows = table.load(write(tmp_path / "scales", records, table=None))
    assert (
        rows.rows[0].facts()["clip"] == rows.rows[1].facts()["clip"] == "32 frames at stride 2, 224x224 pixels (sample)"
    )
    assert "device" not in rows.rows[2].facts()  # where it was trained is said with the accuracy


# confusion matrices


def scores_of(k, videos=20):
    counts = np.random.default_rng(k).multinomial(videos, np.full(k, 1 / k), size=k) + 5 * np.eye(k, dtype=int)
    return {"confusion": counts.tolist(), "classes": [f"a class with a long name, number {n}" for n in range(k)]}


@pytest.mark.parametrize("k", [2, 30, 120])  # with numbers, with names, with some of the names
def test_confusion_matrices_are_drawn_at_any_size(tmp_path, k, capsys):
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(scores_of(k) | {"videos": 10**4}))
    assert confusion.main([str(path), str(tmp_path / "out" / "matrix.png")]) == 0
    png = (tmp_path / "out" / "matrix.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert k > 2 or png == confusion.picture(confusion.read(path))
    assert "matrix.png" in capsys.readouterr().out
    (tmp_path / "result.json").write_text(json.dumps({"scores": scores_of(k), "steps": 3}))  # of a training
    assert confusion.read(tmp_path / "result.json") == scores_of(k)


def test_shares_and_mistakes_of_a_confusion_matrix():
    counts = np.array([[8, 2, 0], [0, 0, 0], [5, 0, 5]])
    assert confusion_figure.shares(counts).tolist() == [[80, 20, 0], [0, 0, 0], [50, 0, 50]]
    assert confusion_figure.mistakes(counts, ["a", "b", "c"]) == [("c", "a", 5, 10), ("a", "b", 2, 10)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "holds no confusion matrix"),
        ("{", "cannot be read as scores"),
        ('{"confusion": [[1, 2]]}', "no square of counts"),
        ('{"confusion": [[1, 2], [3]]}', "no square of counts"),
        ('{"confusion": [[1, 2], [3, 4]], "classes": ["a"]}', "1 class names do not fit"),
    ],
)
def test_scores_without_a_matrix_are_named(tmp_path, content, message, capsys):
    path = tmp_path / "scores.json"
    path.write_text(content)
    with pytest.raises(RecordError, match=message):
        confusion.read(path)
    assert confusion.main([str(path), str(tmp_path / "out.png")]) == 1
    assert "scores.json" in capsys.readouterr().err


# views at test time


BY_VIEWS = [
    {
        "clips": clips,
        "crops": crops,
        "views": clips * crops,
        "top1": 80.0 + clips / 4 + crops / 8,
        "low": 79,
        "high": 82,
    }
    for crops in (1, 3)
    for clips in (1, 2, 4)
]


def test_published_points_of_testing_views():
    points = {(p.clips, p.crops): p.top1 for p in views.published("DualFormer-S", "diving48")}
    assert points == {(4, 1): 81.2, (4, 3): 81.8}
    assert [p.top1 for p in views.published("DualFormer-T", "kinetics400")] == [79.5]
    assert views.published("DualFormer-T", "motion") == ()


def test_views_are_drawn_and_tabled_from_a_file(tmp_path, capsys):
    path = tmp_path / "views.json"
    path.write_text(
        json.dumps({"views": BY_VIEWS, "macs_per_view": 159e9, "model": "DualFormer-S", "data": "diving48"})
    )
    assert testing_views.main([str(path), str(tmp_path / "views.png")]) == 0
    printed = capsys.readouterr().out
    assert "| 4 | 3 | 12 | 1908 | 81.4 (79.0–82.0) | 81.8 (DualFormer-S (4x3), Table 2) |" in printed
    assert (tmp_path / "views.png").read_bytes().startswith(b"\x89PNG")
    stored = {"views": [[0, 0]], "by_views": BY_VIEWS, "facts": {"model": "dualformer_small"}}  # of an evaluation
    path.write_text(json.dumps(stored))
    assert testing_views.read(path).points == views.points(BY_VIEWS)
    assert testing_views.read(path).title == "dualformer_small"
    path.write_text(json.dumps(BY_VIEWS))
    assert testing_views.main([str(path), str(tmp_path / "views.png")]) == 0
    assert "GMACs" not in capsys.readouterr().out
    for wrong, message in (("[]", "there are no tests"), ('[{"clips": 1}]', "is no test"), ("{}", "no entry 'views'")):
        path.write_text(wrong)
        assert testing_views.main([str(path), str(tmp_path / "views.png")]) == 1
        assert message in capsys.readouterr().err


def test_views_stand_in_the_report_of_an_ablation(tmp_path):
    folder = ablation(tmp_path, trained(70.0, by_views=BY_VIEWS, macs=2e9), figures=["testing_views"])
    report, _ = built(folder)
    assert "- More views (clips x crops) at test time: 80.4 to 81.4 % from 1x1 to 4x3 views" in report
    assert "#### What more views at test time buy" in report
    assert "| 4 | 3 | 12 | 24.0 | 81.4 (79.0–82.0) |" in report
    visits = (Visit((12.0,), details=seen(12)),)
    still = Measurement(**vars(trained(12.0, by_views=BY_VIEWS)) | {"visits": visits})
    (curve,) = views.curves(rows_of({"DualFormer-T": still}), "top1_quick")
    assert curve.title == "DualFormer-T, has not learnt (train 12 %)"
    assert (folder / "testing_views.png").read_bytes().startswith(b"\x89PNG")
    assert isinstance(table.load(folder).paper, PaperTable)
