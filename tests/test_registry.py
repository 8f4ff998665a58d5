"""Grids, registries, and what the package says when it is given something wrong."""

import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import attention_zoo
import backbones
from attention_zoo import Grid, Registry, UnknownName, schemes
from attention_zoo.__main__ import main
from harness import datasets
from harness.cost import metrics

sizes = st.integers(1, 9)
grids = st.builds(Grid, sizes, sizes, sizes)


@given(grids, grids)
def test_pieces_cover_a_grid_with_less_than_one_to_spare(grid, size):
    padded = grid.padded(size)
    for n, m, p, pieces in zip(grid, size, padded, grid.ceil_div(size), strict=True):
        assert p == pieces * m
        assert n <= p < n + m


@given(grids, grids)
def test_a_clipped_window_fits_and_is_no_larger_than_asked(grid, window):
    used = grid.clipped(window)
    assert all(u == min(n, m) for u, n, m in zip(used, grid, window, strict=True))
    assert grid.clipped(used) == used


@given(grids)
def test_a_grid_counts_its_tokens(grid):
    assert torch.empty(grid).numel() == grid.tokens
    assert Grid.of(list(grid)) == grid == Grid(t=grid.t, h=grid.h, w=grid.w)


@pytest.mark.parametrize(
    "bad", [(1, 2), (1, 2, 3, 4), (0, 1, 1), (-1, 1, 1), (1.0, 1, 1), (True, 1, 1), "123", 7, None]
)
def test_a_bad_grid_is_named(bad):
    with pytest.raises(ValueError, match="not three positive integers") as caught:
        Grid.of(bad, "window")
    assert f"window {bad!r}" in str(caught.value)


# What is wrong, and what the message must say ------------------------------------------------------------------------


def build(name="full", dim=12, num_heads=2, grid=(4, 6, 8), **options):
    return attention_zoo.build(name, dim, num_heads, grid, **options)


WRONG = [
    (dict(name="globl_pyramid"), KeyError, "unknown attention scheme 'globl_pyramid'; did you mean 'global_pyramid'?"),
    (dict(name="zebra"), KeyError, "unknown attention scheme 'zebra'; allowed: "),
    (dict(kernel="spda"), KeyError, "unknown attention kernel 'spda'; did you mean 'sdpa'?"),
    (
        dict(name="local_window", windw=(1, 1, 1)),
        ValueError,
        "local_window has no option 'windw'; did you mean 'window'?",
    ),
    (dict(window=(1, 1, 1)), ValueError, "full has no option 'window'; allowed: qkv_bias"),
    (dict(dim=64, num_heads=7), ValueError, "num_heads 7 does not divide dim 64; allowed: 1, 2, 4, 8, 16, 32, 64"),
    (dict(num_heads=0), ValueError, "num_heads 0 does not divide dim 12"),
    (dict(grid=(4, 6)), ValueError, "grid (4, 6) is not three positive integers"),
    (dict(name="local_window", window=(0, 7, 7)), ValueError, "window (0, 7, 7) is not three positive integers"),
    (dict(name="local_window", window="8,7,7"), ValueError, "window '8,7,7' is not three positive integers"),
    (dict(name="shifted_window", shift="full"), ValueError, "shift 'full' is not 'none', 'half' or three integers"),
    (dict(name="shifted_window", shift=(8, 0, 0)), ValueError, "less than the window (8, 7, 7)"),
    (dict(name="shifted_window", shift=(-1, 0, 0)), ValueError, "shift (-1, 0, 0) is not"),
    (dict(name="shifted_window", padding="mask"), ValueError, "padding 'mask' is not one of masked, attended"),
    (dict(name="shifted_window", clipped_bias="x"), ValueError, "clipped_bias 'x' is not one of geometric, published"),
    (dict(name="global_pyramid", scales=[]), ValueError, "scales [] is not a list of pooled grids"),
    (dict(name="global_pyramid", scales="whole"), ValueError, "scales 'whole' is not a list of pooled grids"),
    (dict(name="global_pyramid", scales=["hole"]), ValueError, "'hole' is not three positive integers"),
    (dict(name="global_pyramid", scales=[(8, 7)]), ValueError, "(8, 7) is not three positive integers"),
    (dict(name="global_pyramid", downsample="pool"), ValueError, "'pool' is not one of dwconv, conv, avgpool"),
    (dict(name="global_pyramid", branches="twice"), ValueError, "branch 'twice' is not one of single, staged"),
    (dict(name="global_pyramid", branches=["single"]), ValueError, "1 branches ['single'] for 2 scales"),
]


@pytest.mark.parametrize("arguments, error, message", WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_the_message_names_the_value_and_the_way_out(arguments, error, message):
    with pytest.raises(error) as caught:
        build(**arguments)
    assert message in str(caught.value)


def test_options_and_their_defaults():
    assert attention_zoo.options_of("full") == dict(qkv_bias=True)
    assert attention_zoo.options_of("local_window") == dict(window=(8, 7, 7), relative_bias=False)
    assert "kernel" not in attention_zoo.options_of("shifted_window")


# Registries ----------------------------------------------------------------------------------------------------------


def test_a_taken_name_is_not_given_twice():
    registry = Registry("thing", "attention_zoo.kernels")

    @registry.register("one")
    class One:
        pass

    registry.register("one")(One)  # the same again, as a module that is reloaded does
    with pytest.raises(ValueError, match=r"thing 'one' is registered already, by .*One; choose another name"):
        registry.register("one")(type("Other", (), {}))
    assert registry.get("one") is One


@pytest.mark.parametrize("registry", [metrics.registry, datasets.registry], ids=["metric", "data set"])
def test_what_holds_a_function_is_named_by_it_where_its_name_is_taken(registry):
    name = registry.names()[0]
    entry = registry.get(name)
    assert registry.register(name)(entry) is entry  # by itself it may be registered again
    function = "run" if registry is metrics.registry else "load"
    with pytest.raises(ValueError, match=f"{registry.kind} '{name}' is registered already, by harness[.]"):
        registry.register(name)(replace(entry, **{function: lambda: None}))


def test_an_unknown_name_is_a_key_error_that_prints_as_a_sentence():
    with pytest.raises(UnknownName) as caught:
        schemes.get("ful")
    assert str(caught.value).startswith("unknown attention scheme 'ful'; did you mean 'full'? allowed: ")
    assert "full" in attention_zoo.schemes
    assert "ful" not in attention_zoo.schemes


SCHEME = """
import torch
from torch import nn
{imports}

{decorator}
class Identity(nn.Module):
    example = dict()

    def __init__(self, dim, num_heads, grid, *, kernel="auto"):
        super().__init__()
        self.grid, self.kernel = grid, kernel

    def forward(self, x):
        return x

    def macs(self):
        return 0

    def reach(self):
        return torch.eye(self.grid.tokens, dtype=torch.bool)
"""
DECORATED = SCHEME.format(imports="from attention_zoo import register", decorator="@register('identity')")
PLAIN = SCHEME.format(imports="", decorator="")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs a distribution with one entry point, as pip lays it out, before the schemes are looked for."""

    def install(source, entry_point, group="attention_zoo.schemes"):
        (tmp_path / "their_scheme.py").write_text(source)
        metadata = tmp_path / "their_schemes-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: their-schemes\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[{group}]\n{entry_point}\n")
        return tmp_path

    registries = schemes, backbones.families, metrics.registry, datasets.registry
    for registry in registries:
        registry.names()  # those of ours are there before, whichever test comes first
    before = [dict(registry._entries) for registry in registries]
    monkeypatch.syspath_prepend(tmp_path)
    for registry in registries:
        registry._discovered = False
    yield install
    for registry, entries in zip(registries, before, strict=True):
        registry._entries.clear()
        registry._entries.update(entries)
        registry._discovered = True
    sys.modules.pop("their_scheme", None)


@pytest.mark.parametrize(
    "source, entry_point",
    [(DECORATED, "identity = their_scheme"), (DECORATED, "identity = their_scheme:Identity"),
     (PLAIN, "identity = their_scheme:Identity")],
    ids=["module", "decorated class", "plain class"],
)  # fmt: skip
def test_another_distribution_adds_a_scheme(installed, source, entry_point):
    installed(source, entry_point)
    assert {"full", "identity"} <= set(schemes.names())
    x = torch.randn(1, 1, 2, 2, 8)
    assert build("identity", 8, 2, Grid(1, 2, 2))(x) is x
    assert attention_zoo.options_of("identity") == {}


def test_another_distribution_adds_a_scheme_to_a_fresh_process(installed):
    folder = installed(PLAIN, "identity = their_scheme:Identity")
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "attention_zoo"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    assert "\n  identity " in done.stdout


@pytest.mark.parametrize(
    "source, entry_point, message",
    [
        ("import nowhere", "identity = their_scheme", "scheme 'identity' of the installed package 'their-schemes'"),
        (PLAIN, "identity = their_scheme", "'their_scheme' registers no attention scheme of that name"),
        (PLAIN, "full = their_scheme:Identity", "attention scheme 'full' is registered already"),
        (DECORATED.replace("'identity'", "'full'"), "full = their_scheme", "attention scheme 'full' is registered"),
    ],
    ids=["broken import", "registers nothing", "taken name", "taken name in a module"],
)
def test_another_distribution_that_is_wrong_is_named(installed, source, entry_point, message):
    installed(source, entry_point)
    with pytest.raises(ImportError, match="'their-schemes' cannot be used.*repair or uninstall") as caught:
        schemes.names()
    assert message in str(caught.value)


FAMILY = """
from dataclasses import dataclass
import attention_zoo
from torch import nn
from attention_zoo import Grid, Tokens
from backbones import Backbone, Config, Family
from backbones.columnar import VitBlock
from backbones.layouts import Layout
from backbones.parts import channels_last


@dataclass(frozen=True)
class FlatConfig(Config):
    family = "flat"
    attention: dict
    clip: Grid = Grid(2, 4, 6)
    in_channels: int = 3
    drop_path: float = 0.0
    dropout: float = 0.0
    activation_checkpointing: bool = False

    def __post_init__(self):
        self._set("clip", Grid.of(self.clip))

    def used(self):
        return ("full",)

    def shrunk(self, width, depth, clip):
        return self.changed({"clip": clip})

    def sizes(self):
        return {"blocks": [1], "widths": [self.in_channels], "tokens": [list(self.clip)]}


class Flat(Backbone):
    def __init__(self, config, num_classes, kernel):
        super().__init__()
        self.clip, self.in_channels, self.num_classes = config.clip, config.in_channels, num_classes
        scheme = attention_zoo.build("full", config.in_channels, 1, config.clip, kernel=kernel)
        self.block = VitBlock(config.in_channels, config.clip, 0, [scheme])
        self.norm, self.classifier = nn.LayerNorm(config.in_channels), nn.Linear(config.in_channels, num_classes)

    def tokens(self, clip):
        return self.block(Tokens.of_map(channels_last(clip, self.in_channels, self.clip)))

    def scores(self, tokens):
        return self.classifier(self.norm(tokens.map).mean((1, 2, 3)))

    def blocks(self):
        return {"block": self.block}

    def macs(self, classifier=True):
        return self.block.macs() + classifier * self.classifier.weight.numel()


NATIVE = Layout("attention-zoo", "^block[.]")
FLAT = Family("flat", FlatConfig, Flat, lambda: {"flat_small": lambda: FlatConfig({})}, (NATIVE,))
"""


def test_another_distribution_adds_a_family(installed, tmp_path):
    """It is named, counted, written and read like one of ours."""
    installed(FAMILY, "flat = their_scheme:FLAT", "attention_zoo.families")
    assert {"flat_small", "dualformer_tiny", "timesformer_base"} <= set(backbones.names())
    model = backbones.create("flat_small", 5, changes={"clip.t": 3}).eval()
    clip = torch.randn(1, 3, *model.clip)
    with FlopCounterMode(display=False) as counter, torch.device("meta"), torch.no_grad():
        backbones.create("flat_small", 5, changes={"clip.t": 3}, kernel="reference")(torch.empty(clip.shape))
    assert counter.get_total_flops() == 2 * model.macs()
    assert set(backbones.kinds(model).values()) == {"attention", "mlp", "norm", "classifier"}
    again = backbones.from_checkpoint(backbones.save_checkpoint(model, tmp_path / "flat.safetensors")).eval()
    assert again.config == model.config
    torch.testing.assert_close(again(clip), model(clip))


METRIC = """
from harness.cost.metrics import register
from records.record import Quantity

VALUES = Quantity("their_values", "counted", "their values", "values", "lower")


@register("their_values", VALUES)
def their_values(case):
    return [VALUES.of([7])]
"""
DATA_SET = """
from harness.datasets import DataSet, Item, register


@register("their_data")
def their_data(split, root=None, *, short=False):
    return DataSet("their_data", split, root, (Item("a.mp4", 0),), ("only",))
"""


def test_another_distribution_adds_a_metric_and_a_data_set(installed):
    folder = installed(METRIC, "their_values = their_scheme", "attention_zoo.metrics")
    assert "their_values" in metrics.names()
    assert metrics.get("their_values").run(None)[0].value == 7
    (folder / "their_data.py").write_text(DATA_SET)
    entry_points = folder / "their_schemes-1.0.dist-info" / "entry_points.txt"
    entry_points.write_text("[attention_zoo.data_sets]\ntheir_data = their_data\n")
    assert datasets.load("their_data", "train", short="true").classes == ("only",)
    sys.modules.pop("their_data")


INCOMPLETE = {  # what is taken out of the family, when it is told, and how
    "a method of the config": ("def used(self)", "def unused(self)", "FlatConfig lacks used; backbones.config.Config"),
    "a field of the config": ("in_channels: int", "channels: int", "FlatConfig lacks in_channels; "),
    "its name": ('family = "flat"', 'family = "flatt"', "set family = 'flat' in FlatConfig"),
}
UNBUILT = {
    "a method of the model": ("def scores(", "def scored(", TypeError, "abstract class Flat .*'?scores'?"),
    "the residuals of a block": ("VitBlock(", "Block(", TypeError, "abstract class Block .*'?residuals'?"),
    "a part of the model": ("self.num_classes =", "self.classes =", ValueError, "Flat lacks num_classes; set them in"),
}


@pytest.mark.parametrize("lacking", INCOMPLETE)
def test_a_family_whose_config_is_incomplete_is_refused_when_it_registers(installed, lacking):
    before, after, message = INCOMPLETE[lacking]
    installed(FAMILY.replace(before, after, 1), "flat = their_scheme:FLAT", "attention_zoo.families")
    with pytest.raises(ImportError, match=f"'their-schemes' cannot be used: family 'flat': .*{message}"):
        backbones.names()


@pytest.mark.parametrize("lacking", UNBUILT)
def test_a_model_that_is_incomplete_is_refused_when_it_is_built(installed, lacking):
    before, after, error, message = UNBUILT[lacking]
    source = FAMILY.replace("import VitBlock", "import Block, VitBlock").replace(before, after)
    installed(source, "flat = their_scheme:FLAT", "attention_zoo.families")
    with pytest.raises(error, match=message):
        backbones.create("flat_small", 5)


BROKEN = {
    "macs": (PLAIN.replace("return 0", "return 7"), "macs\\(\\) says 7, counted are 0"),
    "reach": (PLAIN.replace("torch.eye(", "torch.ones(self.grid.tokens, "), "no gradient where reach\\(\\) is True"),
    "batch": (PLAIN.replace("return x", "return x - x.mean(0)"), "does not depend on the other clips"),
    "padding": (PLAIN.replace("return x", "return x[:, :, :6]"), "on 3x7x5 breaks the law"),
}


@pytest.mark.parametrize("law", BROKEN)
def test_a_scheme_of_another_distribution_that_breaks_a_law_is_told_which(installed, law, capsys):
    source, message = BROKEN[law]
    installed(source, "identity = their_scheme:Identity")
    assert main(["check", "identity"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("identity on ")
    assert re.search(message, out), out


def test_schemes_that_obey_the_laws_are_told_so(installed, capsys):
    installed(PLAIN, "identity = their_scheme:Identity")
    assert main(["check", "identity", "time_only"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{n} obeys all 11 laws" for n in ("identity", "time_only")]
    assert main(["check", "identiti"]) == main(["chek", "identity"]) == 2
    assert "did you mean 'identity'" in capsys.readouterr().err


def test_a_grid_beyond_the_memory_is_told_in_one_line(monkeypatch, capsys):
    def draw(command):
        raise MemoryError("Unable to allocate 187 GiB")

    monkeypatch.setattr("attention_zoo._draw.draw", draw)
    assert main(["draw", "full", "grid=400x400x400"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_help_names_the_commands(capsys):
    assert main(["--help"]) == main(["-h"]) == 0
    printed = capsys.readouterr()
    assert all(f"python -m attention_zoo {word}" in printed.out for word in ("check", "draw", "gallery", "speedup"))
    assert printed.err == ""


def test_the_listing_shows_everything():
    done = subprocess.run([sys.executable, "-m", "attention_zoo"], capture_output=True, text=True, check=True)
    names = (*schemes.names(), *attention_zoo.kernels.names())
    width = max(map(len, names))
    for name in names:
        assert f"\n  {name:<{width}} " in done.stdout
    for name in schemes.names():
        for option, default in attention_zoo.options_of(name).items():
            assert f"{option} = {default!r}" in done.stdout
    assert "kernel=auto stands for sdpa" in done.stdout
    assert done.stderr == ""
