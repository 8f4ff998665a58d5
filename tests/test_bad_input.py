"""Each kind of wrong input to the command line fails before any work: the value, what is allowed, the way out."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import backbones
from backbones.config import configs
from harness import run, video

ROOT = Path(__file__).parents[1]
GOOD = "ablation=pyramid_scales"

WRONG = {
    "a typo in the ablation": (["ablation=pyramid_scale"], ["'pyramid_scale'", "did you mean 'pyramid_scales'", "all"]),
    "an ablation without a key": (["pyramid_scales"], ["did you mean ablation=pyramid_scales"]),
    "no ablation": (["quick=true"], ["no ablation is named", "pyramid_scales"]),
    "an empty ablation": (["ablation="], ["ablation is empty"]),
    "two ablations": ([GOOD, "ablation=kinetics"], ["ablation is given twice"]),
    "a list of ablations": (["ablation=pyramid_scales,kinetics"], ["holds several values", "ablation=[a,b]"]),
    "a typo in a key": ([GOOD, "batchsize=2"], ["'batchsize'", "did you mean 'batch_size'"]),
    "a typo in a clip key": ([GOOD, "clip.frame=2"], ["did you mean 'clip.frames'"]),
    "a flag": ([GOOD, "--quick"], ["unknown flag '--quick'", "write quick=true"]),
    "an unknown flag": ([GOOD, "--multirun"], ["unknown flag '--multirun'", "--help"]),
    "an added key": ([GOOD, "+batch_size=2"], ["write batch_size=2"]),
    "a removed key": ([GOOD, "~seed"], ["'~seed'"]),
    "an unknown metric": ([GOOD, "metrics=[param]"], ["'param'", "did you mean 'params'"]),
    "metrics without brackets": ([GOOD, "metrics=params,macs"], ["metrics=[a,b]"]),
    "no metrics": ([GOOD, "metrics=[]"], ["empty list", "latency"]),
    "an unknown kernel": ([GOOD, "kernel=sdp"], ["'sdp'", "did you mean 'sdpa'", "reference"]),
    "an unknown device": ([GOOD, "device=gpu"], ["'gpu'", "did you mean 'cuda'"]),
    "an unknown dtype": ([GOOD, "dtype=fp32"], ["dtype=fp32", "did you mean 'float32'"]),
    "a word for a number": ([GOOD, "batch_size=two"], ["batch_size=two", "whole number from 1"]),
    "a fraction of a clip": ([GOOD, "batch_size=1.5"], ["batch_size=1.5", "whole number from 1"]),
    "no clips at all": ([GOOD, "batch_size=0"], ["batch_size=0", "whole number from 1"]),
    "a truth for a number": ([GOOD, "clip.frames=true"], ["whole number from 1"]),
    "a negative seed": ([GOOD, "seed=-1"], ["whole number from 0"]),
    "a word for a truth": ([GOOD, "quick=perhaps"], ["quick=perhaps is not true or false"]),
    "no time": ([GOOD, "time_limit=0"], ["not a number above 0"]),
    "no value": ([GOOD, "quick=null"], ["quick=null is not true or false"]),
    "an unclosed bracket": ([GOOD, "metrics=[params"], ["metrics=[params cannot be read"]),
    "a typo in a model field": ([GOOD, "model.positon=none"], ["row 'LG", "did you mean 'position'"]),
    "a wrong model value": ([GOOD, "model.position=pegg"], ["'pegg'", "did you mean 'peg'"]),
    "a model": ([GOOD, "model=dualformer_tiny"], ["name the field"]),
    "a typo in an option": ([GOOD, "model.attention.L.windoww=[2,2,2]"], ["local_window has no", "mean 'window'?"]),
    "an option of another scheme": ([GOOD, "model.attention.G2.window=[1]"], ["global_pyramid has no option 'window'"]),
    "a typo in a name of attention": ([GOOD, "model.attention.GG1.scales=[whole]"], ["did you mean 'G1'"]),
    "a typo in a scheme": ([GOOD, "model.attention.L.scheme=local_windo"], ["did you mean 'local_window'"]),
    "a number for a scheme": ([GOOD, "model.attention.L.scheme=3"], ["unknown attention scheme 3"]),
    "a word that an option does not know": ([GOOD, "model.attention.G2.downsample=convv"], ["did you mean 'conv'?"]),
    "a word in a list": ([GOOD, "model.attention.G2.branches=[stagd]"], ["unknown attention.G2: branches 'stagd'"]),
    "a scale of two numbers": ([GOOD, "model.attention.G2.scales=[[4,4]]"], ["scales [4, 4] is not three positive"]),
    "a word for an option's truth": ([GOOD, "model.attention.L.relative_bias=on"], ["'on' is not true or false"]),
    "an empty clip": ([GOOD, "clip="], ["clip is empty"]),
    "two clips": ([GOOD, "clip=a.mp4", "clip.path=b.mp4"], ["clip.path is given twice"]),
    "a list where one is enough": ([GOOD, "quick=[true]"], ["quick=[true] is not true or false"]),
    "an axis of nothing": ([GOOD, "vary.position=[]"], ["vary.position has no values"]),
    "a typo in an axis of cases": ([GOOD, "vary.dtyp=[float16]"], ["unknown axis 'dtyp'; did you mean 'dtype'"]),
    "a typo in an axis of clips": ([GOOD, "vary.clip.frame=[8]"], ["did you mean 'clip.frames'?"]),
    "an axis with a value twice": ([GOOD, "dtype=[float32,float32]"], ["axis dtype has float32 twice"]),
    "an axis of wrong names": ([GOOD, "dtype=[float32,bfloat61]"], ["did you mean 'bfloat16'"]),
    "a row that is none": ([GOOD, "rows=LG2"], ["ablation pyramid_scales: no row is called 'LG2'", "LG2, fine"]),
    "no rows": ([GOOD, "rows=[]"], ["rows is an empty list", "rows=[1,3]"]),
    "all and another one": (["ablation=[all,kinetics]"], ["all stands alone"]),
    "a recipe where nothing is trained": (
        [GOOD, "recipe.drop_path=0", "metrics=[params]"], ["recipe.FIELD is for accuracy", "accuracy=quick"],
    ),
    "a wrong value of an axis": ([GOOD, "clip.size=[224,0]"], ["clip.size=[224,0]: 0 is not a whole number from 1"]),
    "rows without brackets": ([GOOD, "rows=1,3"], ["no row is called '1,3'", "in brackets: rows=[1,3]"]),
    "a number of no row": ([GOOD, "rows=[9]"], ["no row is called 9", "rows 1 to 5"]),
    "an ablation twice": (["ablation=[kinetics,kinetics]"], ["one is named twice"]),
    "a file that is none": (["ablation=nowhere/mine.yaml"], ["nowhere/mine.yaml: no such file; check the path"]),
    "a mapping without spaces": ([GOOD, "model.attention={a:1}"], ["a space stands behind its colon"]),
    "a missing video": ([GOOD, "clip=nowhere/film.mp4"], ["nowhere/film.mp4", "no such file", "built-in sample"]),
}  # fmt: skip


def refused(arguments, capsys):
    assert run.main(arguments) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert captured.err.startswith("error: ")
    assert "--help" in captured.err
    assert len(captured.err.splitlines()) <= 3
    return captured.err


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_arguments(kind, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ATTENTION_ZOO_DATA", str(tmp_path / "data"))  # as on a new machine: nothing is rendered yet
    arguments, parts = WRONG[kind]
    message = refused([*arguments, f"out={tmp_path / 'out'}"], capsys)
    for part in parts:
        assert part in message
    assert not list(tmp_path.rglob("*.json"))
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("content", [b"", b"not a video", None], ids=["empty", "text", "truncated"])
@pytest.mark.parametrize("metrics", ["metrics=[params]", "metrics=[latency]"])
def test_unusable_videos(content, metrics, tmp_path, capsys):
    film = tmp_path / "film.mp4"
    film.write_bytes(video.sample_clip(tmp_path).read_bytes()[:60000] if content is None else content)
    message = refused([GOOD, metrics, "quick=true", f"clip={film}", f"out={tmp_path / 'out'}"], capsys)
    assert "film.mp4" in message
    assert not list((tmp_path / "out").rglob("*.json"))


@pytest.mark.parametrize("place", ["file", "below a file"])
def test_an_output_folder_that_cannot_be_written(place, tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    out = tmp_path / "taken" if place == "file" else tmp_path / "taken" / "deeper"
    message = refused([GOOD, "metrics=[params]", f"out={out}"], capsys)
    assert f"out={out}" in message
    assert "out=FOLDER" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device that the test needs to be missing")
def test_what_this_machine_lacks_is_said_before_any_work(tmp_path, capsys):
    out = f"out={tmp_path / 'out'}"
    assert "sees no CUDA device" in refused([GOOD, "device=cuda", out], capsys)
    assert "available: " in refused([GOOD, "kernel=xformers", out], capsys)
    assert not list((tmp_path / "out").rglob("*.json"))


def test_errors_need_neither_torch_nor_a_trace(tmp_path):
    """In a process of its own: what a user sees, and how little is loaded for it."""
    mine = tmp_path / "mine.yaml"
    mine.write_text("name: mine\nquestion: '?'\nmodel: m\nrows: [{row: a}]\nfigures: [costt]\n")
    wrong = ["ablation=nonsense"], [GOOD, "seed=x"], [GOOD, "kernel=sdp"], ["suite=gpo"], [f"ablation={mine}"]
    rows = ["ablation=attention_schemes", "rows=ful"]
    models = [GOOD, "model.widhts=[1]"], [GOOD, "vary.positon=[peg]"], [GOOD, "model.position=pegg"]
    attention = ("G.scheme=ful", "LL.window=[1]", "L.windoww=[1]", "G2.window=[1]", "full.window=[1]")
    attention += ("G2.downsample=convv", "G2.scales=[[4,4]]", "G2.branches=[stagd]")
    entries = ([GOOD, f"model.attention.{change}"] for change in attention)
    commands = ["--help"], [], *wrong, rows, *models, *entries, [GOOD, "model.attention={L: {scheme: full, window: 1}}"]
    code = (
        "import sys, json; from harness import run; "
        "print([run.main(arguments) for arguments in json.loads(sys.argv[1])]); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(commands)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str([0, 0] + [2] * (len(commands) - 2)), done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_read_off_the_lines_of_schemes_is_what_they_have():
    """In a process of its own: here schemes are loaded, and then asked themselves."""
    code = """
from attention_zoo import declared
read = {scheme: [dict(declared.options_of(scheme)), declared.has(scheme, "takes_prefix"), declared.has(scheme, "step"),
                 declared._read(scheme)[2]] for scheme in declared.names("schemes")}
kernels = declared.names("kernels")
import sys
assert "torch" not in sys.modules
import inspect, typing
import attention_zoo
from attention_zoo import kernels as loaded
assert tuple(read) == attention_zoo.schemes.names() and kernels == loaded.names()
for scheme, (options, takes_prefix, step, kinds) in read.items():
    made = attention_zoo.schemes.get(scheme)
    hints, start = typing.get_type_hints(made.__init__), inspect.signature(made).parameters
    for option in options:
        of_words = [hint for hint in (hints[option], *typing.get_args(hints[option]))
                    if typing.get_origin(hint) is typing.Literal]
        words = typing.get_args(of_words[0]) if of_words else ()
        assert kinds[option] == (start[option].annotation, words), (scheme, option)
    assert options == attention_zoo.options_of(scheme), scheme
    assert (takes_prefix, step) == (getattr(made, "takes_prefix", False), hasattr(made, "step")), scheme
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_configs_that_need_no_torch_are_those_of_the_families():
    for name in configs.names():
        family, known = backbones.families.get(name), configs.get(name)
        assert (family.config, family.models) == (known.config, known.models)
