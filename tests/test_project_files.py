"""What several files state about the project is the same in each of them."""

import ast
import csv
import json
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from statistics import fmean, variance

import pytest
import yaml
from packaging.requirements import Requirement

import attention_zoo
import backbones
from records import power
from records.record import read_record
from records.visits import by_seed
from reports import probes, table

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def commands():
    """The one-line commands of README.md that set everything up."""
    return re.findall(r"^python3 -m venv .*$", read("README.md"), flags=re.MULTILINE)


def test_the_version_is_the_same_everywhere():
    stated = PROJECT["project"]["version"]
    assert yaml.safe_load(read("CITATION.cff"))["version"] == stated
    assert re.search(rf"^## {re.escape(stated)}\b", read("CHANGELOG.md"), flags=re.MULTILINE)


def test_ci_runs_the_test_command_of_the_readme():
    main_job, tests = commands()
    assert main_job.endswith("-m harness.run ablation=pyramid_scales")
    assert "constraints.txt" in main_job
    assert tests.endswith("tox")
    assert read(".ci/run").splitlines()[-1] == tests


def test_every_direct_dependency_is_pinned_within_its_range():
    groups = PROJECT["dependency-groups"]
    wanted = [*PROJECT["project"]["dependencies"], *(line for group in groups.values() for line in group)]
    pins = {}
    for line in read("constraints.txt").splitlines():
        if not line.startswith("#"):
            name, _, pinned = line.partition("==")
            pins[name] = pinned
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(pins.pop(requirement.name)), requirement
    assert not pins, "pinned, but not a direct dependency"


ROOMS = ("attention_zoo", "backbones", "records", "harness", "reports")
IN_A_CALL = {"import_module", "find_spec", "late"}  # with a name: what they look for is used like an import
THROUGH_OTHERS = {"to_markdown": "tabulate", "torch.utils.tensorboard": "tensorboard"}  # pandas and torch import these
BESIDE_A_GPU = {"natten", "fastvideo_kernel", "spas_sage_attn"}  # built there by who wants them: no extra can name them
BY_OTHER_NAMES = {"pynvml": "nvidia-ml-py"}  # of what need not be installed where tests run


def imported():
    """The distributions whose packages the product imports, each with the files that do."""
    of_package, files_of = packages_distributions(), {}
    for file in (file for room in ROOMS for file in (ROOT / room).rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        names = [package for sign, package in THROUGH_OTHERS.items() if re.search(rf"\b{re.escape(sign)}\b", text)]
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.append(node.module)
            elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in IN_A_CALL:
                names += [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
        for package in {name.partition(".")[0] for name in names} - {*sys.stdlib_module_names, *ROOMS}:
            name = of_package.get(package, [BY_OTHER_NAMES.get(package, package)])[0].lower()
            files_of.setdefault(name, set()).add(file.relative_to(ROOT).as_posix())
    return files_of


def test_what_is_declared_is_imported_and_what_is_imported_is_declared():
    project, files_of = PROJECT["project"], imported()
    needed = {Requirement(line).name.lower() for line in project["dependencies"]}
    extras = [line for group in project["optional-dependencies"].values() for line in group]
    optional = {Requirement(line).name.lower() for line in extras}
    assert not needed & optional
    known = needed | optional | BESIDE_A_GPU
    undeclared = {name: sorted(files) for name, files in files_of.items() if name not in known}
    assert not undeclared, "imported, but not declared"
    assert not known - set(files_of), "declared, but not imported"


@pytest.mark.parametrize("package", ROOMS)
def test_every_room_is_packaged(package):
    assert f"{package}*" in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]


def accuracy(row):
    """The accuracy of the quick budget as docs/accuracy.md prints it."""
    return "{:.1f} ({:.1f}–{:.1f})".format(*(float(row[f"top1_quick{k}"]) for k in ("", "_low", "_high")))


def test_the_readme_shows_what_the_records_hold():
    """Its table, its verdict counts and its speed-up are those of the committed runs, as are the figures of docs."""
    readme, results = read("README.md"), ROOT / "results" / "cpu-amd-epyc-2-cores"
    page = read("docs/accuracy.md")
    with (results / "pyramid_scales" / "table.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            line = next(line for line in readme.splitlines() if line.startswith(f"| {row['row']} |"))
            latency = "{:.0f} ({:.0f}–{:.0f})".format(*(float(row[f"latency{k}"]) for k in ("", "_low", "_high")))
            memory = f"{int(row['peak_memory']) / 2**20:.0f}"
            figures = [row["published_flops_g"] or "—", row["measured_flops_g"], row["verdict_flops"] or "—"]
            figures += [latency, memory]
            assert all(f" {figure} |" in line for figure in figures), (line, figures)
    with (results / "temporal_controls" / "table.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            line = next(line for line in page.splitlines() if line.startswith(f"| {row['row']} |"))
            assert f" {accuracy(row)} |" in line, (line, accuracy(row))
    words = " ".join(page.split())
    with (results / "scheme_accuracy" / "table.csv").open(newline="") as file:
        schemes = {row["row"]: row for row in csv.DictReader(file)}
    assert f"`divided` reaches {accuracy(schemes['divided']).replace('–', ' to ').replace(' (', ' % (')}" in words
    assert f"`full` reaches {float(schemes['full']['top1_quick']):.1f}" in words
    assert [row for row, cells in schemes.items() if float(cells["top1_quick_p_holm"] or 1) < 0.05] == ["divided"]
    for row, column in (("time_only", "top1_quick"), ("sparse_linear", "top1_quick")):
        assert f"`{row}` ({float(schemes[row][column]):.1f})" in words
    for row, name in (
        ("local + global", "with local + global"),
        ("full", "with `full`"),
        ("divided", "with `divided`"),
    ):
        assert f"{float(schemes[row]['top1_small_groundguide11']):.1f} % {name}" in words
    index = (results / "report.md").read_text(encoding="utf-8")
    for pattern in (r"Of \d+ distinct published cost figures", r"\d+ reproduced, \d+ explained, \d+ not reproduced"):
        assert re.search(pattern, index)[0] in " ".join(readme.split())
    assert re.search(r"\d+ of them were not attempted", index)[0] in " ".join(readme.split())
    with (results / "peers" / "allocator-default" / "table.csv").open(newline="") as file:
        compared = [row for row in csv.DictReader(file) if row["baseline"]]
    assert len(compared) == 5
    for row in compared:
        line = next(line for line in readme.splitlines() if line.startswith(f"| {row['row'].partition(',')[0]} |"))
        for metric in ("latency_ratio", "training_latency_ratio"):
            ratio, low, high = (1 / float(row[f"{metric}{end}"]) for end in ("", "_high", "_low"))
            assert f"| {ratio:.2f} times ({low:.2f}–{high:.2f}) |" in line, (line, metric)
        assert f"| {1 / float(row['training_memory_ratio']):.2f} times less |" in line, line


def test_the_first_screen_counts_and_quotes_what_is_there():
    """Schemes, models of published families, and the printed and counted costs that the findings hold."""
    text = " ".join(read("README.md").split())
    published = [name for name in backbones.names() if "." not in name and not name.startswith("pyramid_")]
    assert f"Here {len(attention_zoo.schemes.names())} attention schemes stand" in text
    assert f"and {len(published)} models of" in text
    findings = read("results/cpu-amd-epyc-2-cores/findings.md")
    paragraphs = {line.partition(":")[0].lstrip("*"): line for line in findings.splitlines() if line.startswith("**")}
    for cell, quoted in {
        "ViT-B-VTN, operations": ("4218", "4397"),
        "VidTr-L, operations": ("10530", "17490"),
        "896x896 w/ 16 frames, SSv2, ssv2 gflops": ("1694", "1859"),
    }.items():
        for figure in quoted:
            assert (
                f"{figure} G" in paragraphs[cell]
                or f" {figure}," in paragraphs[cell]
                or f" {figure} " in paragraphs[cell]
            )
            assert re.search(rf"\b{figure}\b", text), figure


def test_the_accuracy_of_eight_seeds_is_the_same_wherever_it_stands():
    folder = ROOT / "results" / "cpu-amd-epyc-2-cores" / "pyramid_scales"
    with (folder / "table.csv").open(newline="") as file:
        default = next(row for row in csv.DictReader(file) if "(default)" in row["row"])
    mean, low, high = (f"{float(default[f'top1_quick{end}']):.1f}" for end in ("", "_low", "_high"))
    assert f"the default row reaches {mean} % ({low} to {high})" in " ".join(read("docs/accuracy.md").split())
    measured = [
        record["measurements"]["top1_quick"]
        for path in folder.glob("*.json")
        if "measurements" in (record := json.loads(path.read_text()))
    ]
    trained = [
        [sample for visit in row["visits"] for sample in visit["samples"]]
        for row in measured
        if "same_network_as" not in row["details"]
    ]
    assert {len(samples) for samples in trained} == {8}
    recorded = yaml.safe_load(read("harness/conf/budget/quick.yaml"))["recorded"]
    assert recorded["spread"] == round(fmean(variance(samples) for samples in trained) ** 0.5, 1)
    assert (recorded["top1"], recorded["seeds"]) == (float(mean), 8)


def test_plans_know_how_much_each_committed_table_of_eight_seeds_varies():
    """A plan in a new folder tells the difference that the committed records of its table tell."""
    told = {}
    for manifest in (ROOT / "results" / "cpu-amd-epyc-2-cores").glob("*/ablation.json"):
        rows = json.loads(manifest.read_text())["rows"]
        records = {row["row"]: manifest.parent / f"{row['case_id']}.json" for row in rows}
        whole = {name: read_record(path) for name, path in records.items() if path.exists()}
        seeds = {name: by_seed(record.get("top1_quick")) for name, record in whole.items()}
        differences = [
            [accuracy - seeds[row["baseline"]][seed] for seed, accuracy in seeds[row["row"]].items()]
            for row in rows
            if row["row"] in seeds and row.get("baseline") in seeds and row["row"] != row["baseline"]
        ]
        if {len(of_row) for of_row in differences} == {8}:
            told[manifest.parent.name] = round(power.pooled(differences), 1)
    assert yaml.safe_load(read("harness/conf/budget/quick.yaml"))["differences"] == told


def test_the_pages_count_the_findings_of_the_probes_as_their_report_does():
    lines = probes.findings(table.load(ROOT / "results/cpu-amd-epyc-2-cores/probes"))
    for page in ("README.md", "docs/accuracy.md"):
        assert f"in {len(lines)} pairs of scheme and question" in " ".join(read(page).split())


PROSE = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "DECISIONS.md"]


@pytest.mark.parametrize("page", [*PROSE, *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_no_table_is_wider_than_seven_columns_and_no_link_leads_nowhere(page):
    path, text = ROOT / page, read(page)
    assert all(line.count("|") <= 8 for line in text.splitlines() if line.startswith("|"))
    linked = [target for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) if "://" not in target]
    assert linked or page in ("CHANGELOG.md", "DECISIONS.md")
    assert not [target for target in linked if not (path.parent / target).exists()]


SAY_NOTHING = {"one", "found", "given", "there", "said"}  # as names of what they hold


def test_local_names_say_what_they_hold():
    """In the rooms and in the tests: a name is of the thing, not of how it came."""
    named = []
    for path in sorted(path for room in (*ROOMS, "benchmarks", "tests") for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            stored = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id
            name = node.arg if isinstance(node, ast.arg) else stored
            if name in SAY_NOTHING:
                named.append(f"{path.relative_to(ROOT)}:{node.lineno}: {name}")
    assert not named
