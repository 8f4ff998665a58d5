"""The page to explore: what it holds, and what it does in a real browser."""

import json
import re
import shutil
from pathlib import Path

import pytest

from records.record import read_record
from reports import explore, table
from tests import browser

RECORDED = Path(__file__).parents[1] / "results" / "cpu-amd-epyc-2-cores"
ABLATIONS = ("pyramid_scales", "temporal_controls", "kernels", "multi_training")
NASTY = '<img src=x onerror=console.error(1)> & "quoted" </script>'

pytestmark = pytest.mark.skipif(not RECORDED.is_dir(), reason="no recorded run in this checkout")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Results of one machine, one row of which has a name that is no good HTML."""
    results = tmp_path_factory.mktemp("explore") / "results"
    for name in ABLATIONS:
        shutil.copytree(RECORDED / name, results / "machine" / name)
    for path in (results / "machine" / "kernels").glob("*.json"):
        path.write_text(
            path.read_text(encoding="utf-8").replace('"row": "local + global', f'"row": {json.dumps(NASTY)[:-1]}')
        )
    shutil.copytree(RECORDED / "pyramid_scales", results / "machine" / "quick" / "pyramid_scales")
    (results / "machine" / "broken").mkdir()
    (results / "machine" / "broken" / "ablation.json").write_text("{")
    explore.build(results)
    return results


@pytest.fixture(scope="module")
def held(folder):
    page = (folder / explore.PAGE).read_text(encoding="utf-8")
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page)[1])


def test_there_is_one_page_for_all_results_and_one_for_each_outputs_folder(folder, tmp_path):
    assert explore.top(folder / "machine") == folder
    assert explore.top(tmp_path / "outputs") == tmp_path / "outputs"


def test_the_page_holds_every_row_with_intervals_in_the_unit_that_is_shown(folder, held):
    tables = {name: table.load(folder / "machine" / name) for name in ABLATIONS}
    assert len(held["rows"]) == sum(len(ablation.measured) for ablation in tables.values())
    shown = {(row["ablation"], row["row"]): row for row in held["rows"]}
    for row in tables["pyramid_scales"].measured:
        values, interval = shown["pyramid_scales", row.name]["values"], row.interval("latency")
        assert values["latency"] == pytest.approx([interval.value, interval.low, interval.high], rel=1e-5)
        assert values["macs"] == pytest.approx([row.value("macs") / 1e9], rel=1e-5)
    assert held["columns"]["macs"] == {
        "title": "multiply-adds", "unit": "GMAC", "better": "lower", "kind": "counted"
    }  # fmt: skip
    assert {row["schemes"] for row in held["rows"] if row["ablation"] == "pyramid_scales"} == {
        "local_window, global_pyramid"
    }


def test_what_cannot_be_read_is_named_and_what_is_quick_is_left_out(held):
    assert len(held["broken"]) == 1
    assert held["broken"][0].startswith("machine/broken: ")
    assert not [row for row in held["rows"] if "quick" in row["folder"].split("/")[:-1]]


def test_an_accuracy_of_a_smaller_model_keeps_the_costs_of_that_model(folder, held):
    row = next(row for row in held["rows"] if "top1_quick" in row["values"])
    measured = read_record(folder / row["folder"] / f"{row['record']}.json").get("top1_quick")
    assert row["smaller"]["top1_quick"]["macs"] == pytest.approx([measured.details["macs"] / 1e9], rel=1e-5)


def test_every_link_of_the_page_leads_to_a_file(folder, held):
    for row in held["rows"]:
        assert (folder / row["folder"] / f"{row['record']}.json").is_file()
        assert (folder / row["folder"] / "report.md").is_file()


def test_the_page_asks_for_nothing_from_elsewhere(folder):
    page = (folder / explore.PAGE).read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//""", page)


@pytest.fixture(scope="module")
def page(folder):
    if browser.installed() is None:
        pytest.skip(f"no browser is installed; any of {', '.join(browser.NAMES)} would do")
    with browser.Browser() as opened:
        opened.call("Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False)
        opened.open(folder / explore.PAGE)
        opened.wait("document.body.dataset.ready == 'true'")
        yield opened


@pytest.fixture(autouse=True)
def unhurt(request):
    """After each test in the browser: no error of a script or of the console, nothing asked from the network."""
    yield
    if "page" in request.fixturenames:
        assert not request.getfixturevalue("page").faults


def choose(page, **values):
    for name, value in values.items():
        event = "input" if name == "text" else "change"
        page.run(f"at('{name}').value = {json.dumps(value)}; at('{name}').dispatchEvent(new Event('{event}'))")


def cells(page, place):
    return page.run(f"[...document.querySelectorAll('#rows tr')].map(row => row.children[{place}].textContent)")


def drawn(page):
    """The points of the plot, without the fronts."""
    return page.run(
        "at('plot').data.filter(trace => trace.mode == 'markers').flatMap(t => t.x.map((x, n) => [x, t.y[n]]))"
    )


def test_it_loads_and_draws_what_has_both_figures(page, held):
    choose(page, x="macs", y="latency", text="", ablation="", device="")
    with_both = [row["values"] for row in held["rows"] if {"macs", "latency"} <= row["values"].keys()]
    assert sorted(drawn(page)) == sorted([v["macs"][0], v["latency"][0]] for v in with_both)
    assert page.run("document.querySelectorAll('#plot .points path').length") == len(with_both)
    assert len(cells(page, 0)) == len(held["rows"])
    assert NASTY in cells(page, 0) or any(NASTY in cell for cell in cells(page, 0))
    assert page.run("document.querySelectorAll('#head th').length") <= 7


def test_a_click_on_a_heading_sorts_and_another_turns_it(page):
    choose(page, x="macs", y="latency", text="", ablation="pyramid_scales")
    for direction, turned in (("ascending", False), ("descending", True)):
        page.run("document.querySelector('th[data-key=x] button').click()")
        numbers = [float(cell) for cell in cells(page, 1)]
        assert numbers == sorted(numbers, reverse=turned)
        assert page.run("document.querySelector('th[data-key=x]').getAttribute('aria-sort')") == direction
    page.run("document.querySelector('th[data-key=row] button').click()")
    assert cells(page, 0) == sorted(cells(page, 0), key=str.lower)


def test_words_and_lists_filter(page, held):
    choose(page, ablation="temporal_controls", text="")
    assert set(cells(page, 3)) == {"temporal_controls"}
    choose(page, ablation="", text="lg2 fine")
    assert cells(page, 0) == ["LG2, fine (8,7,7) only"]
    assert page.run("at('count').textContent").startswith(f"1 of {len(held['rows'])} rows; ")
    choose(page, text="no such words")
    assert cells(page, 0) == []
    choose(page, text="")


def test_the_axes_are_chosen(page):
    choose(page, x="params", y="peak_memory", ablation="pyramid_scales")
    titles = "[at('plot').layout.xaxis.title.text, at('plot').layout.yaxis.title.text]"
    assert page.run(titles) == ["parameters, M ↓", "peak memory, MiB ↓"]
    assert page.run("document.querySelector('th[data-key=y]').textContent").startswith("peak memory")


def test_the_front_is_of_the_rows_that_none_is_better_than(page, held):
    choose(page, x="peak_memory", y="latency", ablation="pyramid_scales")
    points = drawn(page)
    best = sorted(p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points))
    assert 1 < len(best) < len(points)
    (front,) = page.run("at('plot').data.filter(t => t.mode == 'lines').map(t => t.x.map((x, n) => [x, t.y[n]]))")
    assert front == best
    choose(page, x="tokens")
    assert page.run("at('plot').data.filter(t => t.mode == 'lines').length") == 0  # no end of tokens is the good one


def test_a_point_that_is_pointed_at_says_its_interval(page, held):
    choose(page, x="macs", y="latency", ablation="pyramid_scales", text="LG1 in every")
    page.run("Plotly.Fx.hover('plot', [{curveNumber: 0, pointNumber: 0}])")
    (words,) = page.run("[...document.querySelectorAll('.hovertext')].map(text => text.textContent)")
    (row,) = (row for row in held["rows"] if row["row"] == "LG1 in every stage" and row["ablation"] == "pyramid_scales")
    low, high = row["values"]["latency"][1:]
    hovered = re.search(r"latency, ms: [\d.,]+ \(([\d.,]+)–([\d.,]+)\)", words)
    assert [float(end.replace(",", "")) for end in hovered.groups()] == pytest.approx([low, high], rel=1e-3)
    page.run("Plotly.Fx.unhover('plot')")
    choose(page, text="")


def test_an_accuracy_of_a_training_that_did_not_learn_says_so(page, held):
    choose(page, x="params", y="top1_quick", ablation="multi_training", text="")
    accuracies = dict(zip(cells(page, 0), cells(page, 2), strict=True))
    assert accuracies["long range, alone"].endswith(": has not learnt (train 50 %)")
    assert sum("learnt" in text for text in accuracies.values()) == 1
    choose(page, ablation="")


def test_no_latency_is_set_against_the_accuracy_of_another_model(page, held):
    choose(page, x="latency", y="top1_quick", ablation="", text="")
    assert drawn(page) == []
    choose(page, x="macs")
    assert drawn(page)
    assert max(x for x, _ in drawn(page)) < 1  # GMAC, of the small models that were trained
    assert "smaller model" in page.run("at('count').textContent")


def test_it_is_used_from_the_keyboard(page):
    choose(page, x="macs", y="latency", ablation="pyramid_scales", text="")
    page.run("document.querySelector('th[data-key=row] button').focus()")
    page.press("Enter", text="\r")
    assert page.run("document.activeElement.parentElement.dataset.key") == "row"
    page.run("document.querySelector('#rows tr').focus()")
    page.press("ArrowDown")
    page.press("Enter", text="\r")
    second = cells(page, 0)[1]
    assert page.run("document.querySelector('#rows tr[aria-selected=true]').children[0].textContent") == second
    shown = page.run("at('one').textContent")
    assert second in shown
    assert "operators" in shown
    assert "peak memory" in shown


def test_it_fits_a_phone_and_follows_the_dark(page):
    choose(page, x="macs", y="latency", ablation="", text="")
    page.call("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=2, mobile=True)
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    page.wait("at('plot').layout.paper_bgcolor == '#15181c'")
    page.wait("at('plot').querySelector('.main-svg').clientWidth <= 390")
    assert page.run("document.documentElement.scrollWidth") <= 390
    page.call("Emulation.setEmulatedMedia", features=[])
    page.call("Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False)
