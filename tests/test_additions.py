"""The seven kinds of things that a reader may add: each is one new file in a copy of the tree, nothing else is edited,
and a run finds them all and shows them in its report.
"""

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_registry import FAMILY
from training_runs import data_set

ROOT = Path(__file__).parents[1]
ROOMS = ("attention_zoo", "backbones", "records", "harness", "reports")

SCHEME = '''
"""Every token is projected twice and sees no other."""
import torch
from attention_zoo import register
from torch import nn


@register("alone")
class Alone(nn.Module):
    """Source: this test."""

    example = {}

    def __init__(self, dim, num_heads, grid, *, kernel="auto"):
        super().__init__()
        self.dim, self.grid, self.kernel = dim, grid, kernel
        self.first, self.second = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x):
        return self.second(self.first(x))

    def macs(self):
        return 2 * self.grid.tokens * self.dim**2

    def reach(self):
        return torch.eye(self.grid.tokens, dtype=torch.bool)
'''

METRIC = '''
"""Elements of the clip that a model reads."""
from harness.cost.metrics import register
from records.record import Quantity

VALUES = Quantity("input_values", "counted", "values of a clip", "values", "lower")


@register("input_values", VALUES)
def input_values(case):
    return [VALUES.of([3 * case.clip.frames * case.clip.size**2])]
'''

BUDGET = """
meaning: one pass over a few clips
recipe: quick
data: motion_small
seeds: [0]
width: 0.25
depth: 1
controls: false
"""

TABLE = """
paper: "A paper of one's own"
table: "Table 1"
title: "Rows of one's own"
source: "this test"
units: {params: M, jester_top1: "%"}
rows:
  - {row: first, params: 1.5, jester_top1: 93.7}
"""

FIGURE = '''
"""The parameters of the rows, a bar each."""
from reports.drawing import about, sheet


def draw(table):
    figure = sheet(3.0, about(table))
    rows = table.measured
    figure.subplots().barh([row.name for row in rows], [row.value("params") for row in rows])
    return figure, "Bars of parameters, one for each row."
'''

ABLATION = """
name: mine
question: Does everything that was added appear?
table: own_table
rows:
  - {row: alone, model: pyramid_tiny_alone, published: first}
  - {row: flat, model: flat_small}
baseline: alone
metrics: [params, macs, input_values]
figures: [parameter_bars]
"""


@pytest.fixture(scope="module")
def added(tmp_path_factory):
    """A copy of the rooms with six new files, a package with a family, and an ablation outside of both."""
    top = tmp_path_factory.mktemp("added")
    copy, package = top / "copy", top / "package"
    for room in ROOMS:
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    new = {
        copy / "attention_zoo" / "alone.py": SCHEME,
        copy / "harness" / "cost" / "metrics" / "input_values.py": METRIC,
        copy / "harness" / "conf" / "budget" / "blink.yaml": BUDGET,
        copy / "reports" / "paper_tables" / "own_table.yaml": TABLE,
        copy / "reports" / "figures" / "parameter_bars.py": FIGURE,
        package / "their_family.py": FAMILY,
        package / "theirs-1.0.dist-info" / "METADATA": "Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n",
        package / "theirs-1.0.dist-info" / "entry_points.txt": "[attention_zoo.families]\nflat = their_family:FLAT\n",
        top / "mine.yaml": ABLATION,
    }
    for path, text in new.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.lstrip("\n"), encoding="utf-8")
    yield top
    assert {path: path.read_bytes() for path in before} == before, "nothing that was there is changed"


def run(top: Path, *words: str) -> str:
    path = os.pathsep.join(filter(None, [str(top / "copy"), str(top / "package"), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "harness.run", f"ablation={top / 'mine.yaml'}", "out=outputs", *words]
    done = subprocess.run(
        command, cwd=top, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path, "COLUMNS": "200"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_one_file_each_and_a_run_shows_them_all(added):
    clips = data_set(added / "clips", train=4, val=3)
    small = ("recipe.optimisation.epochs=1", "recipe.optimisation.batch_size=4", "recipe.sampling.frames=2")
    small += ("recipe.augmentation.size=32", "recipe.testing.resize=32", "jobs=1")
    told = run(added, "quick=true", "accuracy=blink", f"data={clips}", *small)
    folder = added / "outputs" / "quick" / "mine"
    report = (folder / "report.md").read_text(encoding="utf-8")
    for place, sign in {
        "the scheme": r"^\| alone \|",
        "the family": r"^\| flat \|",
        "the metric": "values of a clip",
        "the budget": "blink",
        "the published column": "(?i)jester top-1",
        "the figure": r"Bars of parameters, one for each row\.",
        "the question": "Does everything that was added appear",
    }.items():
        assert re.search(sign, report, re.M), f"{place} is missing:\n{report}"
    assert "values of a clip" in told
    assert (folder / "parameter_bars.png").is_file()
    alone, flat = csv.DictReader((folder / "table.csv").open(encoding="utf-8"))
    assert int(alone["input_values"]) % (3 * 32**2) == 0
    assert flat["params"]
    assert alone["top1_blink_clips"]
    assert flat["top1_blink_clips"]
    assert alone["published_jester_top1"] == "93.7"
