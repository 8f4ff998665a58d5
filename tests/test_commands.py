"""Every command that README, a help or a report prints is one that its parser takes; nothing of it is run."""

import io
import json
import re
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from harness import doctor, evaluate, gradcam, predict, run, train
from harness.datasets import __main__ as datasets
from harness.spec import options
from harness.spec.reader import UsageError
from records import provenance, terminal
from reports import cite
from reports import compare as comparing
from reports import console as reports_console

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
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
PAGES = sorted([*PAGES, *(ROOT / "results").rglob("*.md")])


def parse(module: str, words: list[str]) -> None:
    """Raises where the command would end with exit status 2."""
    assert find_spec(module) is not None, f"no module {module}"
    if "--help" in words:
        return
    if module == "harness.run" and words:
        parsed = options.parse(PARSERS[module], words)
        if parsed.suite is None and not any(word.endswith("mine.yaml") for word in words):  # mine: of the reader's own
            run.chosen(parsed)
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


@pytest.mark.parametrize("command", [*PARSERS.values(), *datasets.COMMANDS.values()], ids=lambda program: program.name)
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
        (["ablation=pyramid_scales", "machine=h20"], "unknown machine 'h20'; did you mean 'h200'?"),
        (["ablation=pyramid_scales", "metrics=[fps]"], "did you mean 'throughput'?"),
        (["ablation=pyramid_scales", "metrics=[memory]"], "did you mean 'peak_memory'?"),
        (["ablation=pyramid_scales", "dtype=bf16"], "did you mean 'bfloat16'?"),
        (["ablation=pyramid_scales", "dtype=half"], "did you mean 'float16'?"),
        (["ablation=pyramid_scales", "kernel=math"], "did you mean 'reference'?"),
    ],
)
def test_a_slip_is_told_the_way_out(words, way_out, capsys):
    assert run.main(words) == 2
    assert way_out in capsys.readouterr().err


def test_a_machine_sets_what_the_command_leaves_open(capsys):
    names = ("device", "dtype", "batch_size", "time_limit", "frames")

    def settled(*words):
        request = run.on_machine(options.parse(run.PROGRAM, list(words)))
        return [getattr(request, name) for name in names]

    assert settled("ablation=pyramid_scales") == [None] * 5
    assert settled("ablation=pyramid_scales", "machine=h200") == ["cuda", "bfloat16", 16, 120.0, None]
    own = ("dtype=float16", "batch_size=[1,2]", "time_limit=9", "clip.frames=8")
    assert settled("ablation=pyramid_scales", "machine=a100", *own) == ["cuda", "float16", [1, 2], 9.0, 8]
    assert settled("ablation=dtypes", "machine=h100")[1] is None, "the rows of this table differ in it"
    assert run.main(["--help"]) == 0
    assert "a100                     device=cuda dtype=bfloat16 batch_size=8" in capsys.readouterr().out


def test_a_folder_that_is_not_there_is_told_as_one(capsys):
    assert datasets.main(["check", "my_clips"]) == 2
    assert "unknown data set 'my_clips', and no such folder here" in capsys.readouterr().err
    assert datasets.main(["check", "clips"]) == 2
    assert "did you mean" not in capsys.readouterr().err, "csv is no folder of one's own"


def test_kinetics_alone_is_the_data_set_of_400_classes(capsys):
    assert datasets.main(["check", "kinetics", "root=nowhere"]) == 2
    assert "did you mean 'kinetics400'?" in capsys.readouterr().err


def test_a_clip_that_is_no_video_is_refused_before_anything_is_rendered(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("# No video\n")
    assert run.main(["ablation=pyramid_scales", "clip=README.md"]) == 2
    assert "clip=README.md: cannot be decoded as a video" in capsys.readouterr().err.replace(f"{tmp_path}/", "")
    assert sorted(path.name for path in tmp_path.rglob("*")) in (["README.md"], ["README.md", "outputs"])


@pytest.mark.parametrize("command", [*PARSERS.values(), *datasets.COMMANDS.values()], ids=lambda program: program.name)
def test_a_shell_reads_every_printed_example_as_it_stands(command):
    """zsh takes brackets, braces and stars that stand bare for patterns of file names."""
    printed = [line for line in options.help_text(command).splitlines() if line.startswith(f"  {command.name} ")]
    assert printed
    for line in printed:
        assert not re.search(r"[\[\]{}*?~]", re.sub(r"'[^']*'", "", line)), line


def test_a_run_ends_with_json_on_the_standard_output(tmp_path, capsys):
    words = ["ablation=pyramid_scales", "metrics=[params]", "rows=[1]", "quick=true", "json=true", f"out={tmp_path}"]
    assert run.main(words) == 0
    printed = capsys.readouterr()
    answer = json.loads(printed.out.splitlines()[-1])
    assert answer["status"] == 0
    ((row, values),) = answer["ablations"]["pyramid_scales"]["rows"].items()
    assert row.startswith("LG1")
    assert values["params"] > 20e6
    assert Path(answer["ablations"]["pyramid_scales"]["report"]).is_file()
    assert "[1/1]" in printed.err
    assert "[1/1]" not in printed.out


def test_a_plan_and_a_refusal_end_with_json_too(tmp_path, capsys):
    words = ["ablation=pyramid_scales", "json=true", f"out={tmp_path}"]
    assert run.main([*words, "plan=true", "metrics=[params]", "rows=[1]"]) == 0
    planned = json.loads(capsys.readouterr().out.splitlines()[-1])
    (figures,) = planned["ablations"]["pyramid_scales"].values()
    assert figures["macs"] > 50e9
    assert planned["status"] == 0
    assert run.main([*words, "kernel=flash"]) == 2
    refused = json.loads(capsys.readouterr().out)
    assert refused["status"] == 2
    assert "did you mean 'sdpa'?" in refused["error"]


def test_a_number_that_is_none_is_null_for_programs(capsys):
    terminal.json_line({"a": float("nan"), "b": [1.5, float("inf")]})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [1.5, None]}


def test_more_threads_than_cores_are_warned_of(monkeypatch):
    monkeypatch.setattr(provenance, "usable_cores", lambda: 2)
    assert provenance.crowded(threads=None) is None
    assert provenance.crowded(threads=2, jobs=2) is None
    turns = "on 2 usable cores: they take turns, which is slower"
    assert provenance.crowded(threads=3) == f"warning: threads=3 {turns}"
    assert provenance.crowded(threads=1, jobs=3, workers=4) == f"warning: jobs=3 workers=4 {turns}"


def test_a_narrow_terminal_folds_the_table_and_loses_nothing(tmp_path):
    folder = shutil.copytree(ROOT / "results" / "cpu-amd-epyc-2-cores" / "pyramid_scales", tmp_path / "pyramid_scales")
    console = Console(width=40, record=True, file=io.StringIO())
    console.print(reports_console.results(folder, [path.stem for path in folder.glob("*.json")]))
    text = console.export_text()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 40


def test_a_terminal_has_no_table_of_more_columns_than_a_report(monkeypatch):
    assert reports_console.WIDEST == 7
    monkeypatch.setattr(reports_console, "WIDEST", 3)
    folder = ROOT / "results" / "cpu-amd-epyc-2-cores" / "training"
    shown = reports_console.results(folder, [path.stem for path in folder.glob("*.json")])
    tables = [part for part in shown.renderables if isinstance(part, Table)]
    assert len(tables) > 1
    assert all(len(table.columns) <= 3 and len(table.rows) == len(tables[0].rows) for table in tables)


@pytest.mark.parametrize("program", [run.PROGRAM, gradcam.COMMAND], ids=lambda program: program.name)
def test_a_narrow_terminal_folds_the_help_but_no_command(program, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    lines = options.help_text(program).splitlines()
    long = [line for line in lines if len(line) > 40]
    assert all(line.startswith(f"  {program.name} ") for line in long), long
    monkeypatch.setenv("COLUMNS", "300")
    wide = options.help_text(program)
    assert all(len(line) <= terminal.WIDEST for line in wide.splitlines() if not line.startswith(f"  {program.name} "))
    assert "".join(wide.split()) == "".join("".join(lines).split())


def test_the_home_of_a_user_is_meant_behind_an_option_too(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert options.parse(run.PROGRAM, ["ablation=all", "out=~/runs", "clip=~/a.mp4"]).out == "/home/me/runs"
    assert options.parse(run.PROGRAM, ["ablation=all", "out=a~b"]).out == "a~b"


def test_nowhere_is_it_advised_to_load_what_a_file_says():
    advice = "weights_only=" + "False"
    files = [path for room in ("attention_zoo", "backbones", "harness", "reports") for path in (ROOT / room).rglob("*")]
    assert not [path for path in [*files, *PAGES] if path.suffix in (".py", ".md") and advice in path.read_text()]
