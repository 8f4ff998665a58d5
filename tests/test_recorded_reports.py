"""What is committed under results/: each folder builds into the same bytes, in reports that a reader can take in."""

import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from harness.cost.count import count
from harness.spec.case import Case
from records.record import MANIFEST, outputs_of, read_records
from reports import build, cost_page, explore, findings, table
from reports.text import WIDEST

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
FOLDERS = sorted(path.parent for path in RESULTS.rglob(MANIFEST))
PLACES = sorted({outputs_of(folder) for folder in FOLDERS})  # of a machine each
PAGES = sorted(path for path in RESULTS.rglob("*.md") if path.name != "README.md")

pytestmark = pytest.mark.skipif(not FOLDERS, reason="no recorded run in this checkout")


def name(path):
    return path.relative_to(RESULTS).as_posix()


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory):
    """A copy of results/ with nothing but records, from which every report was built."""
    copy = tmp_path_factory.mktemp("clone") / "results"
    shutil.copytree(RESULTS, copy, ignore=lambda _, names: [n for n in names if not n.endswith(".json") and "." in n])
    assert build.main([str(copy)]) == 0
    for page in RESULTS.rglob("findings.md"):
        assert findings.main([str(copy / page.parent.relative_to(RESULTS))]) == 0
    return copy


@pytest.mark.parametrize("folder", [*FOLDERS, *PLACES], ids=name)
def test_what_is_committed_is_what_its_records_give(folder, rebuilt):
    """The text and the pictures, of each ablation and of each machine, and nothing that is not built."""
    # A run that wrote into results/ leaves its lock, which git ignores.
    committed = {path.name: path.read_bytes() for path in folder.glob("[!.]*") if path.is_file()}
    committed.pop("compare.md", None)  # of two folders, see below
    again = {
        path.name: path.read_bytes() for path in (rebuilt / folder.relative_to(RESULTS)).iterdir() if path.is_file()
    }
    assert sorted(again) == sorted(committed)
    differ = [file for file in again if again[file] != committed[file]]
    assert not differ, f"`python -m reports.build {folder.relative_to(ROOT)}` changes {', '.join(differ)}"


def test_the_committed_page_to_explore_is_what_the_records_give(rebuilt):
    """But for plotly's bundle, whose packed bytes are of its version and of the compressing library."""
    pages = [(folder / explore.PAGE).read_text(encoding="utf-8") for folder in (RESULTS, rebuilt)]
    committed, again = (re.sub(r'(?s)(type="text/plain">).*?<|plotly [\d.]+', r"\1", page) for page in pages)
    assert again == committed, "`python -m reports.build results` changes results/index.html"
    assert len(pages[0]) < 2.3e6


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_table_is_wider_than_a_reader_takes_in(page):
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    for line in rows:
        assert len(re.findall(r"(?<!\\)\|", line)) - 1 <= WIDEST, line
    if page.name == "report.md" and (page.parent / MANIFEST).is_file():
        assert rows, "a report without a table"


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_a_report_answers_first_and_says_how_to_build_it(folder):
    page = (folder / "report.md").read_text(encoding="utf-8")
    head = page.partition("\n## ")[0]
    assert head.split("\n\n")[1].startswith("- ")
    assert len(re.findall(r"^\| -", head, flags=re.M)) == 1
    assert head.count("![") <= 1
    assert f"python -m reports.build {folder.relative_to(ROOT)} " in page
    for row in re.findall(r"^\|.*\|$", page, flags=re.M):
        cells = [cell.strip() for cell in row.strip("|").split(" | ")[1:]]
        assert not cells or not all(cell.startswith("—") for cell in cells), f"a row without a figure: {row}"


@pytest.mark.parametrize(
    "picture",
    sorted([*RESULTS.rglob("*.png"), *(ROOT / "docs").glob("*.png")]),
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_a_picture_says_what_it_was_made_on_and_by_what_command(picture):
    with Image.open(picture) as image:
        about = image.text["Description"]
    assert re.search(r" · python -m [a-z_]+[. ][a-z]+", about)
    if RESULTS in picture.parents:
        assert re.search(r" · commit [0-9a-f]{10}", about)
        scored = picture.stem in ("accuracy_cost", "testing_views")  # what was trained was trained on a machine
        assert not (scored and about.startswith("counted"))


def test_the_page_of_costs_opens_every_section_with_one_table():
    for page in (place / cost_page.PAGE for place in PLACES):
        for section in page.read_text(encoding="utf-8").split("\n## ")[2:]:
            tables = [part for part in section.split("\n\n") if part.startswith("| row |")]
            assert len(tables) == 1, section.splitlines()[0]


def assert_counts_are_of_this_code(records):
    """That the models of some records are those that this code makes, as far as their counts say."""
    for recorded in records:
        if "benchmarks" not in recorded.case["model"]:  # public code may not be installed
            counted = count(Case.from_dict(recorded.case))
            stored = {name: recorded.get(name) for name in ("params", "macs")}
            values = {name: measured.value for name, measured in stored.items() if measured and measured.samples}
            assert values == {name: getattr(counted, name) for name in values}, recorded.row


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_a_recorded_model_is_one_that_this_code_makes(folder):
    least = [r for r in read_records(folder) if (r.get("macs") or r.get("params"))]
    assert_counts_are_of_this_code(sorted(least, key=lambda r: (r.get("macs") or r.get("params")).value)[:1])


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_every_recorded_model_is_one_that_this_code_makes(folder):
    assert_counts_are_of_this_code(read_records(folder))


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_records_are_of_clean_commits(folder):
    commits = {row.name: row.facts().get("commit", "") for row in table.load(folder).measured}
    assert not [row for row, commit in commits.items() if "local changes" in commit]
