"""Figures: what they show, that all of it is legible, and that the same records give the same bytes anywhere."""

import io
import itertools
import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from test_accuracy_reports import BY_VIEWS, ablation, trained
from test_cost_metrics import CLIPS, SLOPES, rows_of, without
from test_cost_metrics import one_record as grown
from test_reports import DEFAULT, against_base, in_rounds, one_record, write
from test_roofline import row as near_the_roof
from test_roofline import table as table_of

from harness.spec import case
from harness.spec.names import DTYPES
from records.record import Quantity
from reports import build, drawing, figures, markdown, table
from reports import views as tests_of_views
from reports.figures import accuracy_cost, accuracy_vs_flops, cost, operator_share, roofline, scaling
from reports.figures import testing_views as views

ROOT = Path(__file__).parents[1]
LONG = "a name of a row that says at length how it differs from the row before it, and then why"


@pytest.fixture(autouse=True)
def styled():
    with drawing.styled():
        yield


def drawn_texts(figure):
    """All words but those of ticks beyond the end of their axis, which are not drawn."""
    beyond = []
    for axis in (axis for axes in figure.findobj(Axes) for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        beyond += [tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high]
    return [text for text in figure.findobj(Text) if text.get_text() and text.get_visible() and text not in beyond]


def assert_legible(figure):
    """Nothing is cut off at the edge, and no line of words lies on another."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [(text, text.get_window_extent(canvas.get_renderer())) for text in drawn_texts(figure)]
    for text, box in boxes:
        assert -1 <= box.x0 < box.x1 <= figure.bbox.x1 + 1, text
        assert -1 <= box.y0 < box.y1 <= figure.bbox.y1 + 1, text
    for (sentence, first), (other, second) in itertools.combinations(boxes, 2):
        assert not first.padded(-1.5).overlaps(second.padded(-1.5)), (sentence, other)


def legend_of(part):
    return [text.get_text() for text in part.get_legend().get_texts()]


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


# the registry


def test_every_figure_that_an_ablation_names_is_a_file_and_a_slip_is_answered_with_the_nearest():
    assert {"cost", "scaling", "roofline", "accuracy_vs_flops"} <= set(figures.names())
    for name in case.names():
        assert set(case.load(name).figures) <= set(figures.names())
    with pytest.raises(KeyError, match="did you mean 'scaling'"):
        figures.draw("scalling", table.AblationTable("x", "?", ()))


def test_names_are_read_without_matplotlib():
    code = "import sys; from reports import figures; figures.names(); assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_figure_in_a_file_of_its_own_stands_in_the_report(tmp_path, monkeypatch):
    source = "from reports.drawing import about, sheet\n\n\ndef draw(table):\n    figure = sheet(2, about(table))\n"
    source += "    figure.subplots().plot([1, 2])\n    return figure, 'A line'\n"
    (tmp_path / "a_line.py").write_text(source)
    monkeypatch.setattr(figures.figures, "FOLDER", tmp_path)
    monkeypatch.setattr(figures, "__path__", [str(tmp_path)])
    folder = write(tmp_path / "scales", [one_record()], [DEFAULT], figures=["a_line"])
    assert folder / "a_line.png" in build.build(folder)
    assert "![A line](a_line.png)" in (folder / "report.md").read_text(encoding="utf-8")
    sys.modules.pop("reports.figures.a_line")


# what every figure carries


def test_each_figure_says_device_clip_commit_and_command_in_its_foot_and_in_its_metadata(tmp_path):
    words = ["ablation=scales", "clip.frames=32", "rows=[base]", "metrics=[latency]"]
    folder = against_base(tmp_path / "scales", *(in_rounds(name, [100, 101, 99]) for name in ("base", "x")))
    rows = replace(table.load(folder), arguments=tuple(words))
    figure, caption = cost.draw(rows)
    foot = figure.get_supxlabel().replace("\n", " ")
    for fact in ("Example CPU, 2 cores", "32 frames at stride 2", "commit 0123456789", "clip.frames=32"):
        assert fact in foot
    assert "rows=" not in foot  # the whole picture is not made by a part of the rows
    files = figures.draw("cost", rows, ("png", "svg", "pdf")).files
    with Image.open(io.BytesIO(files["png"])) as image:
        assert image.text == {"Title": caption, "Description": foot}
    assert foot in files["svg"].decode()
    assert b"/Subject" in files["pdf"]
    assert b"/CreationDate" not in files["pdf"]


def test_other_formats_stand_beside_the_png_and_go_with_their_records(tmp_path, capsys):
    folder = write(tmp_path / "scales", [one_record()], [DEFAULT])
    assert build.main([str(folder), "format=svg", "format=pdf"]) == 0
    assert {path.suffix for path in folder.glob("cost.*")} == {".png", ".svg", ".pdf"}
    assert build.main([str(folder)]) == 0
    assert [path.name for path in folder.glob("cost.*")] == ["cost.png"]
    with pytest.raises(SystemExit):
        build.main([str(folder), "format=jpg"])
    assert "'svg', 'pdf'" in capsys.readouterr().err


def test_the_same_records_give_the_same_bytes_on_a_processor_without_wide_vectors(tmp_path):
    """numpy's logarithms differ in their last digit with AVX-512, which once moved a pixel."""
    growing = [grown(scheme, *clip) for scheme in SLOPES for clip in CLIPS]
    narrow = {"NPY_DISABLE_CPU_FEATURES": "X86_V4 X86_V3", "OPENBLAS_CORETYPE": "Nehalem"}
    against_base(tmp_path / "scales", *(in_rounds(name, [n, n + 3, n + 5]) for name, n in (("base", 97), ("x", 61))))
    write(tmp_path / "growth", growing, table=None, figures=["scaling", "roofline", "operator_share"])
    command, made = (
        [sys.executable, "-W", "ignore", "-m", "reports.build", str(tmp_path), "format=svg", "format=pdf"],
        [],
    )
    for switch in ({}, narrow):
        subprocess.run(command, check=True, cwd=ROOT, env=os.environ | switch, capture_output=True)
        made.append({path: path.read_bytes() for path in tmp_path.rglob("*.*")})
    assert len([path for path in made[0] if path.suffix in (".png", ".svg", ".pdf")]) == 12
    assert made[0] == made[1]


# costs


def test_time_is_a_difference_to_the_baseline_on_the_band_of_the_noise_floor(tmp_path):
    levels = {"base": 100, "level": 100.5, "slow": 107}
    folder = against_base(tmp_path / "scales", *(in_rounds(row, [n, n, n]) for row, n in levels.items()))
    rows = table.load(folder)
    (panel,) = (panel for panel in cost._measured(rows) if panel.title.startswith("latency"))
    assert panel.differences
    assert panel.marks["base"].distinguishable is None
    assert (panel.marks["level"].distinguishable, panel.marks["slow"].distinguishable) == (False, True)
    ratio = rows.ratio(rows.rows[2], "latency")
    mark = panel.marks["slow"]
    places = [
        drawing.log10(x) for x in (ratio.interval.value, ratio.interval.low, ratio.interval.high, 1 + ratio.floor)
    ]
    assert [mark.at, mark.low, mark.high, mark.floor] == places
    assert mark.text == "107 (+7.0 %)"
    figure, caption = cost.draw(rows)
    assert {"baseline", "noise floor", "cannot be told from the baseline"} <= {
        text.get_text() for legend in figure.legends for text in legend.get_texts()
    }
    assert "as difference to base, with 95 % intervals and noise floor" in caption


def test_a_baseline_that_only_the_other_of_its_pair_names_is_drawn_as_one(tmp_path):
    records = [in_rounds("theirs", [100, 100, 100]), in_rounds("ours", [80, 80, 80])]
    rows = table.load(write(tmp_path / "pairs", records, [{}, {"baseline": "theirs"}], table=None))
    (panel,) = (panel for panel in cost._measured(rows) if panel.title.startswith("latency"))
    theirs = panel.marks["theirs"]
    assert (theirs.at, theirs.text, theirs.distinguishable) == (0, "100", None)
    assert re.search(r"\| theirs \| 100 [^|]*\| 1 \(baseline\) \|", markdown.report(rows, {}))


@pytest.mark.parametrize("outputs, told", [("outputs", True), ("outputs/quick", False)])
def test_a_quick_report_does_not_begin_with_what_can_be_told_apart(outputs, told, tmp_path):
    records = [in_rounds("base", [100, 100, 100]), in_rounds("ours", [80, 80, 80])]
    rows = table.load(write(tmp_path / outputs / "pairs", records, [{}, {"baseline": "base"}], table=None))
    (line,) = markdown.summary(rows)
    assert line.startswith("Latency: 80.0 ms (ours) to 100 ms (base)")
    assert ("needs 0.800" in line) == told


def test_without_a_baseline_the_medians_and_their_intervals_are_drawn(tmp_path):
    rows = table.load(write(tmp_path / "scales", [in_rounds("LG", [100, 104, 99])], table=None))
    (panel,) = (panel for panel in cost._measured(rows) if panel.title.startswith("latency"))
    interval, mark = rows.rows[0].interval("latency"), panel.marks["LG"]
    assert not panel.differences
    assert mark.low < mark.high
    assert (mark.at, mark.low, mark.high) == (interval.value, interval.low, interval.high)


def test_a_fit_is_drawn_hollow_and_called_one(tmp_path):
    entries = [DEFAULT, DEFAULT | {"explanation": "stage 4 pools", "fit": True}, {"note": "ours"}]
    records = [one_record(name) for name in ("as printed", "a fit", "ours")]
    figure, _ = cost.draw(table.load(write(tmp_path / "scales", records, entries)))
    (legend,) = figure.legends
    looks = {text.get_text(): handle for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True)}
    assert looks[cost.FIT].get_markerfacecolor() == "white"
    assert looks[cost.AS_PUBLISHED].get_markerfacecolor() == drawing.MEASURED
    assert looks[cost.OURS].get_marker() == "s"
    hollow = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "white"]
    assert [float(line.get_ydata()[0]) for line in hollow] == [1]


def test_costs_that_differ_by_much_stand_at_multiples(tmp_path):
    folder = against_base(tmp_path / "scales", *(in_rounds(row, [n] * 3) for row, n in (("base", 100), ("slow", 900))))
    figure, _ = cost.draw(table.load(folder))
    axes = figure.axes[[title.startswith("latency") for title in titles(figure)].index(True)]
    assert {"1×", "5×"} <= {label.get_text() for label in axes.get_xticklabels()}


# accuracies


def test_accuracy_against_operations_has_its_pareto_front(tmp_path):
    folder = write(tmp_path / "models", [one_record("DualFormer-T")], [{"published": "DualFormer-T"}],
                   table="dualformer_table1", published_rows="all")  # fmt: skip
    rows = table.load(folder)
    figure, _ = accuracy_vs_flops.draw(rows)
    (front,) = (line for line in figure.axes[0].lines if line.get_label() == "Pareto front")
    corners = list(zip(*(map(float, data) for data in front.get_data()), strict=True))
    points = [accuracy_vs_flops._printed(row, "k400_top1") for row in rows.rows]
    for x, y in (point for point in points if point):
        assert any(at <= x and top1 >= y for at, top1 in corners)
    assert_legible(figure)


def test_operations_as_published_stand_beside_those_of_one_rule(tmp_path):
    """Counted here where a model stands, cited where somebody else counted, as printed where neither did."""
    records = [one_record("DualFormer-T")]
    rows = table.load(write(tmp_path / "models", records, [{"published": "DualFormer-T"}],
                            table="dualformer_table1", published_rows="all"))  # fmt: skip
    figure, _ = accuracy_vs_flops.draw(rows)
    by_name = {row.name: row for row in rows.rows}
    macs = records[0].get("macs").samples[0]
    for name, total, kind in (
        ("DualFormer-T", macs * 4 / 1e9, accuracy_vs_flops.COUNTED),
        ("ip-CSN-152", 108.8 * 30, accuracy_vs_flops.CITED),
        ("X3D-XXL", 5823, accuracy_vs_flops.PRINTED),
    ):
        x, _, drawn = accuracy_vs_flops._anew(by_name[name], "k400_top1")
        assert (drawn, x) == (kind, pytest.approx(drawing.log10(total), abs=1e-5))
        assert any(float(line.get_xdata()[0]) == x for line in figure.axes[1].lines)
    assert "as published" in figure.axes[0].get_title("left")
    assert "one rule" in figure.axes[1].get_title("left")


def test_no_latency_of_one_model_stands_against_the_accuracy_of_another(tmp_path):
    smaller = [trained(*(level + d for d in (0, 1, 2)), macs=macs) for level, macs in ((70, 2e9), (65, 1e9), (60, 3e9))]
    records = [one_record(name) for name in ("base", "x", "y")]
    records = [
        replace(of_row, measurements=of_row.measurements | {m.name: m})
        for of_row, m in zip(records, smaller, strict=True)
    ]
    rows = table.load(write(tmp_path / "scales", records, [{"baseline": "base"} for _ in records], table=None))
    figure, _ = accuracy_cost.draw(rows)
    words = [axes.get_xlabel() for axes in figure.axes]
    assert words == ["points more than the baseline", "GMACs of one view of the model that was trained"]
    assert_legible(figure)


def test_views_are_drawn_for_each_row(tmp_path):
    folder = ablation(tmp_path, trained(70.0, by_views=BY_VIEWS, macs=2e9), figures=["testing_views"])
    build.build(folder)
    with Image.open(folder / "testing_views.png") as image:  # of the model that was tested, not of the row's counts
        assert image.text["Description"].startswith("Example CPU, 2 cores · 8 frames, 64x64 pixels · ")
    curve = tests_of_views.Curve("x", tests_of_views.points(BY_VIEWS), 2e9)
    assert_legible(views.of_curves([curve, curve])[0])


# growth


def test_a_panel_without_a_line_is_left_out_with_its_footnote():
    records = [grown("full", 8, 112), *(grown("full", n, 112, **without("latency")) for n in (16, 32))]
    figure, caption = scaling.draw(rows_of(*records))
    assert not any(title.startswith("latency") for title in titles(figure))
    assert "latency" not in caption
    assert not [words for words in figure.findobj(Text) if "†" in words.get_text() or "asked" in words.get_text()]
    known = [grown("full", n, 112) for n in (8, 16)]
    figure, caption = scaling.draw(rows_of(*known, grown("full", 32, 112, **without("latency"))))
    assert "latency" in caption
    assert "† no value: full at 32x112x112 (it was not asked for)" in figure.get_supxlabel().replace("\n", " ")


def test_a_line_that_ends_early_is_marked():
    lost = [grown("full", n, 112, **without("latency")) for n in (32, 64)]
    kept = [grown("full", n, 112) for n in (8, 16)]
    figure, _ = scaling.draw(rows_of(*kept, *lost, *(grown("local_window", n, 112) for n in (8, 16, 32, 64))))
    axes = figure.axes[[title.startswith("latency") for title in titles(figure)].index(True)]
    assert legend_of(axes) == ["local_window 1.00", "full 2.00 †"]


def test_nothing_is_drawn_of_single_points():
    assert scaling.draw(rows_of(grown("full", 8, 112), grown("local_window", 16, 112))) is None
    assert figures.draw("scaling", table.AblationTable("x", "?", ())) is None


def cluttered():
    """Rows of growth that lack most for long reasons."""
    why = "out of memory: one piece of 19.0 GiB did not fit beside the 60.0 GiB that the model's own weights took"
    clips = [(8, 112), (16, 112), (32, 112), (64, 112), (8, 224)]
    yield from (grown("full", *clip) for clip in clips[:2])
    yield from (grown("full", *clip, **without("latency", f"{why} at {clip}")) for clip in clips[2:])
    yield from (grown("local_window", *clip) for clip in clips)


@pytest.mark.parametrize("draw", [cost.draw, operator_share.draw, roofline.draw, scaling.draw])
def test_all_that_is_said_of_rows_with_long_names_is_legible(draw):
    records = list(cluttered())
    if draw is not scaling.draw:
        records = [replace(of_row, row=f"{LONG}, {number}") for number, of_row in enumerate(records[:4])]
    assert_legible(draw(rows_of(*records))[0])


def test_as_many_schemes_as_there_are_have_room_in_the_legend():
    others = []
    for number in range(24):
        of_row = grown("local_window", 8, 112)
        config = {"patch": [2, 4, 4], "stages": [[f"scheme_{number}"]]}
        others.append(replace(of_row, row=f"scheme_{number}", case=of_row.case | {"config": config}))
    figure, _ = scaling.draw(rows_of(grown("full", 8, 112), grown("full", 16, 112), *others))
    assert len(legend_of(figure.axes[0])) == 25
    assert_legible(figure)


def test_the_roofline_has_room_for_as_many():
    assert_legible(roofline.draw(table_of(*(near_the_roof(f"scheme_{number}") for number in range(24))))[0])


# the roofline


def test_the_roofline_names_the_machine_the_ceilings_and_every_row():
    figure, _ = roofline.draw(table_of(near_the_roof("one"), near_the_roof("two", latency=900.0)))
    (axes,) = figure.axes
    assert titles(figure) == ["Example CPU, float32, 2 threads"]
    roof_words, *names = legend_of(axes)
    assert (
        roof_words.replace("\n", " ") == "large matrix product, 80.0 GMAC/s (flat), and large copy, 10.0 GB/s (slope)"
    )
    assert names == ["one", "two"]
    roof, *points = axes.lines
    ridge = dict(zip(*roof.get_data(), strict=True))
    assert ridge[drawing.log10(8)] == drawing.log10(80)  # where the copy's slope meets the product's rate
    spots = [tuple(float(data[0]) for data in point.get_data()) for point in points]
    assert spots == [(drawing.log10(5), drawing.log10(40)), (drawing.log10(5), drawing.log10(20 / 0.9))]


def test_the_roofline_has_a_roof_for_each_dtype():
    rows = [near_the_roof(dtype, dtype=dtype, matmul_ceiling=8e10 + n * 1e9) for n, dtype in enumerate(DTYPES[:2])]
    figure, _ = roofline.draw(table_of(*rows))
    assert_legible(figure)
    assert [words.partition(":")[0] for words in legend_of(figure.axes[0])[:2]] == list(DTYPES[:2])


# drawing


@pytest.mark.parametrize(
    ("low", "high", "numbers"),
    [
        (1.2, 1.9, {"1.2", "1.4", "1.6", "1.8"}),
        (0.3, 40.0, {"0.5", "1", "2", "5", "10", "20"}),
        (0.02, 9e6, {"1,000", "1,000,000"}),
    ],
)
def test_numbers_on_a_logarithmic_axis_differ_and_have_room(low, high, numbers):
    axes = Figure().add_subplot()
    drawing.log_ticks(axes.yaxis, drawing.log10(low), drawing.log10(high))
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert numbers <= set(shown)
    assert len(set(shown)) == len(shown) <= 10
    assert [drawing.log10(float(text.replace(",", ""))) for text in shown] == list(axes.get_yticks())


def test_colours_begin_again_with_other_markers_and_letters_are_dark_enough():
    looks = [drawing.look(number) for number in range(len(drawing.FAMILIES) * len(drawing.MARKERS))]
    assert len(set(looks)) == len(looks)
    for color in (*drawing.FAMILIES, drawing.FAINT):
        assert drawing._contrast(to_rgb(drawing.legible(color)), (1, 1, 1)) >= 4.5
    assert drawing.legible(drawing.FAINT) == drawing.FAINT.lower()  # ticks are written in it as it is
    assert drawing.legible("#0072B2") == "#0072b2"
    assert [drawing.ink_on(color) for color in ("#0072B2", "#E69F00")] == ["white", drawing.INK]


def test_footnotes_are_broken_where_their_width_ends():
    text = "one note of many words that is far too long for a single line of so narrow a figure"
    lines = drawing.wrapped(text, 8.5, 2.0)
    assert " ".join(lines) == text
    assert len(lines) in (3, 4)
    assert drawing.wrapped("incomprehensibilities", 8.5, 0.1) == ["incomprehensibilities"]
    assert drawing.wrapped("", 8.5, 2.0) == []


def test_names_of_points_that_lie_together_keep_apart():
    figure = drawing.sheet(3, "")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], ls="")
    labels = [(0.5, 0.5 + n / 50, f"a name of some length, {n}", "black", "normal") for n in range(4)]
    drawing.place_labels(axes, labels, [[(0.0, 0.5), (1.0, 0.5)]])
    assert_legible(figure)


def test_a_quantity_that_no_figure_knows_is_drawn_by_its_kind(tmp_path):
    made = []
    for name, level in (("base", 100), ("x", 140)):
        of_row = in_rounds(name, [level] * 3)
        waiting = Quantity("waiting", "timed", "waiting for clips", "ms", "lower")
        measured = replace(of_row.get("latency"), **{f.name: getattr(waiting, f.name) for f in fields(Quantity)})
        made.append(replace(of_row, measurements=of_row.measurements | {"waiting": measured}))
    figure, caption = cost.draw(table.load(against_base(tmp_path / "scales", *made)))
    assert "waiting for clips, ms" in titles(figure)
    assert "waiting for clips, ms" in caption
