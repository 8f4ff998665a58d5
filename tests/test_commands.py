"""Every command that README, a help or a report prints is one that its parser takes; nothing of it is run."""

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

from harness import doctor, evaluate, gradcam, predict, run, train
from harness.datasets import __main__ as datasets
from harness.spec import options
from harness.spec.reader import UsageError
from reports import cite
from reports import compare as comparing

ROOT = Path(__file__).parents[1]
PARSERS = {
    "harness.run": run.PROGRAM,
    "harness.train": train.COMMAND,
    "harness.evaluate": evaluate.COMMAND,
    "harness.predict": predict.COMMAND,
    "harness.gradcam": gradcam.COMMAND,
    "harness.doctor": doctor.COMMAND,
}
PRINTED = re.compile(r"python -m ((?:attention_zoo|backbones|benchmarks|harness|reports)[\w.]*)([^\n`]*)")
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "results").rglob("*.md")])


def parse(module: str, words: list[str]) -> None:
    """Raises where the command would end with exit status 2."""
    assert find_spec(module) is not None, f"no module {module}"
    if "--help" in words:
        return
    if module == "harness.run" and words:
        given = options.parse(PARSERS[module], words)
        if given.suite is None and not any(word.endswith("mine.yaml") for word in words):  # mine: of the reader's own
            run.chosen(given)
    elif module in PARSERS and words:
        options.parse(PARSERS[module], words)
        if module == "harness.gradcam":
            assert dict(word.split("=", 1) for word in words).get("out", "heat.png").endswith(".png")
    elif module == "harness.compare":
        comparing.parse(words)
    elif module == "reports.cite" and words:
        assert cite.chosen(cite.entries(), words)
    elif module == "harness.datasets" and words:
        assert words[0] in datasets.COMMANDS


def commands(text: str) -> list[tuple[str, list[str]]]:
    """The commands of a text, each as a module and its arguments, without the comment behind it."""
    return [(module.rstrip("."), shlex.split(rest, comments=True)) for module, rest in PRINTED.findall(text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_of_a_page_parses(page):
    wrong = {}
    for module, words in commands(page.read_text(encoding="utf-8")):
        try:
            parse(module, words)
        except Exception as error:
            wrong[" ".join([module, *words])] = error
    assert not wrong


@pytest.mark.parametrize("command", [*PARSERS.values(), *datasets.COMMANDS.values()], ids=lambda one: one.name)
def test_every_example_of_a_help_parses(command):
    assert command.examples
    for arguments, _ in command.examples:
        words = shlex.split(arguments)
        if command.name.startswith("python -m harness.datasets"):
            assert "=" not in words[0]
            continue
        parse(command.name.removeprefix("python -m "), words)


def test_a_command_that_no_parser_takes_is_found():
    for wrong in ("harness.run ablation=no_such", "harness.run quick", "harness.compare A", "harness.nowhere"):
        (command,) = commands(f"python -m {wrong}")
        with pytest.raises((UsageError, comparing.CompareError, AssertionError)):
            parse(*command)


@pytest.mark.parametrize(
    "words, way_out",
    [
        (["ablation=pyramid_scales", "quick"], "did you mean quick=true?"),
        (["ablation=pyramid_scales", "metrics=[flops]"], "did you mean 'macs'?"),
        (["ablation=pyramid_scales", "kernel=flash"], "did you mean 'sdpa'?"),
    ],
)
def test_a_slip_is_told_the_way_out(words, way_out, capsys):
    assert run.main(words) == 2
    assert way_out in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_told_as_one(capsys):
    assert datasets.main(["check", "my_clips"]) == 2
    assert "unknown data set 'my_clips', and no such folder here" in capsys.readouterr().err


def test_kinetics_alone_is_the_data_set_of_400_classes(capsys):
    assert datasets.main(["check", "kinetics", "root=nowhere"]) == 2
    assert "did you mean 'kinetics400'?" in capsys.readouterr().err
