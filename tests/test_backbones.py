"""The pyramid and the named models: costs, shapes, training behaviour, and what wrong input is told."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import attention_zoo
import backbones
from attention_zoo import Grid
from backbones import PyramidConfig
from backbones.parts import ConditionalPosition, DropPath, PatchEmbedding, PatchMerging
from backbones.pyramid import Pyramid

# A small model with everything that a large one has; no size equals another, so that swapped axes show.
SMALL = PyramidConfig(
    attention={
        "L": {"scheme": "local_window", "window": [2, 3, 4]},
        "G": {"scheme": "global_pyramid", "scales": [[2, 2, 3], [1, 2, 2]]},
    },
    stages=[["L", "G"], ["L", "G"]],
    widths=[12, 16],
    num_heads=[2, 4],
    depths=[3, 2],
    clip=[6, 20, 28],
    temporal_pooling=[1],
)
SCHEMES = attention_zoo.schemes.names()


def of_scheme(scheme: str, **changes) -> PyramidConfig:
    entry = {"scheme": scheme, **attention_zoo.schemes.get(scheme).example}
    config = dataclasses.replace(SMALL, attention={"A": entry}, stages=(("A",), ("A",)))
    return dataclasses.replace(config, **changes)


def counted_macs(config: PyramidConfig | str, num_classes: int) -> int:
    with torch.device("meta"):
        model = backbones.create(config, num_classes, kernel="reference").eval()
        clip = torch.empty(1, model.in_channels, *model.clip)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(clip)
    assert counter.get_total_flops() % 2 == 0
    return counter.get_total_flops() // 2


def on_meta(config: PyramidConfig | str, num_classes: int = 400) -> Pyramid:
    with torch.device("meta"):
        return backbones.create(config, num_classes)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def norm_elements(model: Pyramid) -> tuple[int, int]:
    """Elements that LayerNorm and BatchNorm write for one clip."""
    elements = {nn.LayerNorm: 0, nn.BatchNorm3d: 0}
    for module in model.modules():
        if type(module) in elements:
            module.register_forward_hook(lambda m, i, y: elements.update({type(m): elements[type(m)] + y.numel()}))
    with torch.no_grad():
        model.eval()(torch.empty(1, model.in_channels, *model.clip, device="meta"))
    return elements[nn.LayerNorm], elements[nn.BatchNorm3d]


# Costs


def test_dualformer_tiny_costs_to_the_unit():
    model = on_meta("dualformer_tiny", num_classes=0)
    assert parameters(model) == 21_767_360
    assert model.macs() == counted_macs("dualformer_tiny", 0) == 59_860_279_296
    layer_norm, batch_norm = norm_elements(model)
    assert model.macs() + 5 * layer_norm + 2 * batch_norm == 60_088_210_944


@pytest.mark.parametrize(
    ("name", "millions", "giga"),
    [
        ("dualformer_small", 48.908064, 158.687),
        ("dualformer_base", 86.837632, 267.965),
        ("video_swin_tiny", 27.8505, 88.06),
        ("video_swin_small", 49.5091, 166.12),
        ("video_swin_base", 87.6390, 281.92),
    ],
)
def test_costs_of_the_sheets(name, millions, giga):
    """Without classifier; the cost by the authors' rule, 5 for a LayerNorm element and 2 for a BatchNorm element."""
    model = on_meta(name, num_classes=0)
    layer_norm, batch_norm = norm_elements(model)
    assert parameters(model) / 1e6 == pytest.approx(millions, abs=6e-5)
    assert (model.macs() + 5 * layer_norm + 2 * batch_norm) / 1e9 == pytest.approx(giga, abs=6e-3)


@pytest.mark.parametrize(
    ("size", "giga", "millions"), [("tiny", 2.9, 22.2), ("small", 8.3, 49.6), ("base", 14.6, 87.8)]
)
def test_costs_of_image_models(size, giga, millions):
    model = on_meta(f"dualformer_{size}_image", num_classes=1000)
    layer_norm, batch_norm = norm_elements(model)
    assert round((model.macs() + 5 * layer_norm + 2 * batch_norm) / 1e9, 1) == giga
    assert round(parameters(model) / 1e6, 1) == pytest.approx(millions, abs=0.051)


def test_large_window_of_video_swin_base():
    model = on_meta(
        backbones.config("video_swin_base").changed(
            {"attention.W.window": [16, 7, 7], "attention.S.window": [16, 7, 7]}
        ),
        num_classes=0,
    )
    layer_norm, _ = norm_elements(model)
    assert parameters(model) / 1e6 == pytest.approx(88.656, abs=6e-4)
    assert (model.macs() + 5 * layer_norm) / 1e9 == pytest.approx(320.95, abs=6e-3)


@pytest.mark.parametrize("name", backbones.names())
def test_every_named_model_builds_and_counts(name):
    config = backbones.config(name)
    model = on_meta(config)
    assert model.config == config
    linear = [m.weight.numel() for m in model.classifier.modules() if isinstance(m, nn.Linear)]
    assert model.macs() - model.macs(classifier=False) == sum(linear)
    assert model.macs() == counted_macs(name, 400)
    assert {"attention", "mlp", "norm", "classifier"} <= set(backbones.kinds(model).values())
    assert backbones.read_config(json.loads(json.dumps(config.to_dict()))) == config


def test_pyramids_differ_in_the_scheme_alone():
    skeletons = {}
    for scheme in SCHEMES:
        config = backbones.config(f"pyramid_tiny_{scheme}")
        assert {config.attention_at(s, b)[0] for s in range(4) for b in range(config.depths[s])} == {scheme}
        names = {n for n, _ in on_meta(config).named_parameters() if ".attention." not in n}
        skeletons[scheme] = (names, dataclasses.replace(config, attention={}, stages=(("full",),) * 4))
    first = next(iter(skeletons.values()))
    assert all(skeleton == first for skeleton in skeletons.values())


@st.composite
def small_configs(draw) -> PyramidConfig:
    count = draw(st.integers(1, 3))
    heads = [draw(st.sampled_from([1, 2, 3])) for _ in range(count)]
    scheme = st.sampled_from(SCHEMES).map(lambda n: {"scheme": n, **attention_zoo.schemes.get(n).example})
    size = st.integers(1, 4)
    return PyramidConfig(
        attention={"A": draw(scheme), "B": draw(scheme)},
        stages=[draw(st.sampled_from([["A"], ["B"], ["A", "B"]])) for _ in range(count)],
        widths=[draw(st.sampled_from([6, 12, 18])) for _ in range(count)],
        num_heads=heads,
        depths=[draw(st.integers(1, 3)) for _ in range(count)],
        clip=[draw(st.integers(1, 9)), draw(st.integers(1, 33)), draw(st.integers(1, 33))],
        in_channels=draw(st.integers(1, 4)),
        mlp_ratio=draw(st.sampled_from([1, 2.5, 4])),
        patch=[draw(size), draw(size), draw(size)],
        stem=draw(st.sampled_from(["patch", "convolutions"])),
        temporal_pooling=[draw(st.integers(1, 3)) for _ in range(count - 1)],
        downsampling=draw(st.sampled_from(["conv", "merge"])),
        position=draw(st.sampled_from(["peg", "none"])),
        position_kernel=draw(st.sampled_from([[3, 3, 3], [1, 3, 5]])),
    )


@settings(deadline=None, max_examples=25)
@given(config=small_configs(), num_classes=st.sampled_from([0, 7]))
def test_closed_form_equals_counter(config, num_classes):
    model = on_meta(config, num_classes)
    assert model.macs() == counted_macs(config, num_classes)
    assert model.macs(classifier=False) == counted_macs(config, 0)


def test_a_stem_is_named_where_it_is_not_the_papers():
    """Names of cases and runs of before there was a choice stay what they were."""
    assert "stem" not in SMALL.to_dict()
    other = SMALL.changed({"stem": "convolutions"})
    assert backbones.read_config(other.to_dict()) == other
    patches, two = (backbones.create(config, 5) for config in (SMALL, other))
    assert patches.grids == two.grids
    assert two(torch.randn(1, 3, *SMALL.clip)).shape == (1, 5)


# Shapes and values


def test_shapes():
    model = backbones.create(SMALL, num_classes=5).eval()
    clips = torch.randn(2, 3, *SMALL.clip)
    assert model.grids == (Grid(3, 5, 7), Grid(3, 3, 4))
    maps = model.features(clips)
    assert [tuple(m.shape) for m in maps] == [(2, 12, 3, 5, 7), (2, 16, 3, 3, 4)]
    assert model(clips).shape == (2, 5)
    pooled = model.norm(maps[-1].permute(0, 2, 3, 4, 1)).mean((1, 2, 3))
    torch.testing.assert_close(model(clips), model.classifier(pooled))
    headless = backbones.create(SMALL, num_classes=0).eval()
    headless.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(headless(clips), pooled)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("downsampling", ["conv", "merge"])
def test_clips_of_other_sizes(scheme, downsampling):
    """Sizes that patches, windows and scales do not divide, and other ones than the model was built for."""
    model = backbones.create(of_scheme(scheme, downsampling=downsampling), num_classes=5).eval()
    with torch.no_grad():
        for frames, height, width in ((6, 20, 28), (7, 21, 29), (4, 33, 18)):
            assert model(torch.randn(2, 3, frames, height, width)).isfinite().all()
        clips = torch.randn(3, 3, 7, 21, 29)
        torch.testing.assert_close(model(clips)[:1], model(clips[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("patterns", [[["L"], ["L"]], [["G"], ["G"]], [["L", "G"], ["G"]], [["full"], ["L", "L", "G"]]])
def test_patterns_are_repeated_over_the_blocks(patterns):
    config = dataclasses.replace(SMALL, stages=patterns)
    model = backbones.create(config, 5)
    classes = {name: attention_zoo.schemes.get(name) for name in SCHEMES}
    entries = {"L": "local_window", "G": "global_pyramid", "full": "full"}
    for stage, pattern in zip(model.stages, patterns, strict=True):
        wanted = [classes[entries[pattern[b % len(pattern)]]] for b in range(len(stage.blocks))]
        assert [type(block.attention) for block in stage.blocks] == wanted
    assert model(torch.randn(1, 3, *SMALL.clip)).shape == (1, 5)


def test_merging_order():
    """The four neighbours of a token, row fastest, as Video Swin's released code concatenates them."""
    merging = PatchMerging(2, 5, Grid(1, 3, 4), Grid(1, 2, 2))
    assert merging.grid == Grid(1, 2, 2)
    x = torch.randn(1, 1, 3, 4, 2)
    padded = torch.cat([x, torch.zeros(1, 1, 1, 4, 2)], dim=2)
    phases = [padded[:, :, row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
    expected = merging.reduction(merging.norm(torch.cat(phases, -1)))
    torch.testing.assert_close(merging(x), expected)
    assert merging.reduction.bias is None


def test_merging_in_time():
    merging = PatchMerging(2, 5, Grid(5, 2, 2), Grid(2, 2, 2))
    assert merging.grid == Grid(3, 1, 1)
    x = torch.randn(1, 5, 2, 2, 2)
    assert merging(x).shape == (1, 3, 1, 1, 5)
    still = torch.randn(1, 1, 2, 2, 2)
    alike = torch.cat([merging(torch.cat([still, still], dim=1))] * 2, dim=1)
    torch.testing.assert_close(merging(still.expand(1, 4, 2, 2, 2)), alike)


def test_embedding_pads_with_zeros_at_the_end():
    embedding = PatchEmbedding(3, 8, Grid(5, 9, 11), Grid(2, 4, 3))
    x = torch.randn(2, 5, 9, 11, 3)
    padded = torch.zeros(2, 6, 12, 12, 3)
    padded[:, :5, :9, :11] = x
    torch.testing.assert_close(embedding(x), embedding(padded))
    assert embedding(x).shape[1:4] == embedding.grid == (3, 3, 4)
    tokens = embedding.proj(padded.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
    torch.testing.assert_close(embedding(x), embedding.norm(tokens))


def test_conditional_position_is_depthwise_and_residual():
    position = ConditionalPosition(4, Grid(3, 3, 3))
    assert position.weight.shape == (4, 1, 3, 3, 3)
    x = torch.randn(1, 3, 4, 5, 4)
    with torch.no_grad():
        torch.testing.assert_close(position(x) - x, nn.Conv3d.forward(position, x.movedim(-1, 1)).movedim(1, -1))
        position.weight.zero_()
        torch.testing.assert_close(position(x), x + position.bias)


def test_position_follows_the_first_block_of_each_stage():
    model = backbones.create(SMALL, 5).eval()
    order = []
    for name, module in model.named_modules():
        if name.rpartition(".")[0].endswith("blocks") or name.endswith((".position", ".embed")):
            module.register_forward_hook(lambda m, i, o, name=name: order.append(name))
    model(torch.randn(1, 3, *SMALL.clip))
    first, second = ["embed", "blocks.0", "position", "blocks.1", "blocks.2"], ["embed", "blocks.0", "position"]
    assert order == [f"stages.0.{n}" for n in first] + [f"stages.1.{n}" for n in (*second, "blocks.1")]
    assert all(stage.position is None for stage in backbones.create(SMALL.changed({"position": "none"})).stages)


def test_relative_position():
    relative = SMALL.changed({"position": "relative"})
    model, without = on_meta(relative), on_meta(SMALL.changed({"position": "none"}))
    new = dict(model.named_parameters()).keys() - dict(without.named_parameters()).keys()
    assert new == {f"stages.{s}.blocks.{b}.attention.bias.table" for s, b in ((0, 0), (0, 2), (1, 0))}
    assert model.macs() == without.macs()
    with pytest.raises(ValueError, match="schemes that have it: local_window"):
        dataclasses.replace(relative, stages=(("G",), ("G",)))
    with pytest.raises(ValueError, match="contradicts attention.L.relative_bias"):
        relative.changed({"attention.L.relative_bias": False})


def test_parameter_names():
    """Checkpoints hold these names."""
    names = set(on_meta(SMALL, 5).state_dict())
    top = {n for n in names if not n.startswith("stages.")}
    assert top == {"norm.weight", "norm.bias", "classifier.weight", "classifier.bias"}
    inside = {n.split(".", 4)[4] if ".blocks." in n else n.split(".", 2)[2] for n in names - top}
    both = ("weight", "bias")
    assert {n for n in inside if not n.startswith("attention.")} == {
        f"{module}.{kind}"
        for module in ("embed.proj", "embed.norm", "position", "norm1", "norm2", "mlp.fc1", "mlp.fc2")
        for kind in both
    }
    merged = {
        n for n in on_meta(SMALL.changed({"downsampling": "merge"})).state_dict() if n.startswith("stages.1.embed")
    }
    assert merged == {f"stages.1.embed.{n}" for n in ("norm.weight", "norm.bias", "reduction.weight")}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_initialisation(scheme):
    torch.manual_seed(0)
    model = backbones.create(of_scheme(scheme, widths=(48, 48)), num_classes=200)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.endswith("h_qkv"):  # that one starts orthogonal
            assert not module.bias.any()
            if name.endswith(("time_fc", "proj_l")):
                assert not module.weight.any()
            else:
                std = 0.01 if name == "classifier" else 0.02
                assert module.weight.std().item() == pytest.approx(std, rel=0.1), name
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
        elif isinstance(module, nn.Conv3d):  # PyTorch's default
            fan_in = math.prod(module.weight.shape[1:])
            assert module.weight.abs().max() <= fan_in**-0.5
            assert module.weight.std().item() == pytest.approx((3 * fan_in) ** -0.5, rel=0.2), name
    for name, table in model.named_parameters():
        if name.endswith("bias.table"):
            assert table.std().item() == pytest.approx(0.02, rel=0.2)


# Training


def test_drop_path():
    drop = DropPath(0.25)
    x = torch.ones(4000, 1, 1, 2, 3)
    assert drop.eval()(x) is x
    torch.manual_seed(0)
    y = drop.train()(x)
    kept = y[:, 0, 0, 0, 0] != 0
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.03)
    torch.testing.assert_close(y[kept], x[kept] / 0.75)  # a clip is kept or dropped as a whole
    assert not y[~kept].any()
    with pytest.raises(ValueError, match="drop path rate 1 "):
        DropPath(1)


def test_drop_path_grows_linearly_over_all_blocks():
    model = backbones.create(SMALL.changed({"drop_path": 0.4}))
    rates = [block.drop_path.rate for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def gradients(model: Pyramid, clips: torch.Tensor, seed: int = 0) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(seed)
    model(clips).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def test_activation_checkpointing_changes_memory_alone():
    """Same gradients with dropout and stochastic depth at work, and BatchNorm sees the clips once."""
    clips = torch.randn(4, 3, *SMALL.clip)
    plain = backbones.create(SMALL.changed({"drop_path": 0.5}), 5).train()
    saving = backbones.create(SMALL.changed({"drop_path": 0.5, "activation_checkpointing": True}), 5).train()
    saving.load_state_dict(plain.state_dict())
    torch.testing.assert_close(gradients(saving, clips), gradients(plain, clips), rtol=0, atol=0)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(saving.get_buffer(name), buffer, rtol=0, atol=0)
    assert any(name.endswith("num_batches_tracked") for name, _ in plain.named_buffers())


def test_activation_checkpointing_computes_blocks_twice_in_training_only():
    model = backbones.create(SMALL, 5)
    runs = []
    model.stages[0].blocks[0].norm1.register_forward_hook(lambda m, i, o: runs.append(None))
    clips = torch.randn(1, 3, *SMALL.clip)
    for on, training, wanted in ((True, True, 2), (False, True, 1), (True, False, 1)):
        model.activation_checkpointing = on
        assert model.activation_checkpointing is on
        runs.clear()
        model.train(training)(clips).sum().backward()
        assert len(runs) == wanted


def test_dropout_acts_in_training_alone():
    model = backbones.create(SMALL.changed({"drop_path": 0.0}), 5)
    clips = torch.randn(2, 3, *SMALL.clip)
    model.eval()
    torch.testing.assert_close(model(clips), model(clips), rtol=0, atol=0)
    model.train()
    assert not torch.equal(model(clips), model(clips))


# Configs


def test_changed():
    config = backbones.config("dualformer_tiny")
    new = config.changed(
        {
            "attention.G2.scales": [[8, 7, 7]],
            "attention.G1.branches": "single",  # an option that the entry does not name
            "attention.X": {"scheme": "full"},
            "stages.3": ["L", "X"],
            "clip.t": 16,
            "drop_path": 0,
            "attention.L.window.0": 4,
        }
    )
    assert new.attention["G2"]["scales"] == ((8, 7, 7),)
    assert new.attention["G1"]["branches"] == "single"
    assert new.attention_at(3, 1) == ("full", {})
    assert new.clip == Grid(16, 224, 224)
    assert new.attention["L"]["window"] == (4, 7, 7)
    assert config == backbones.config("dualformer_tiny"), "the config itself stays as it is"
    window = backbones.config("pyramid_tiny_local_window").changed({"attention.local_window.window": [4, 7, 7]})
    assert window.attention_at(2, 5) == ("local_window", {"window": (4, 7, 7)})
    assert backbones.config("pyramid_tiny_local_window").changed({}) == backbones.config("pyramid_tiny_local_window")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"atention.L.window": [4, 7, 7]}, "did you mean 'attention'"),
        ({"attention.g2.scales": [[8, 7, 7]]}, "did you mean 'G2'"),
        ({"attention.G2.scale": [[8, 7, 7]]}, "did you mean 'scales'"),
        ({"attention.G2.scales.7": [8, 7, 7]}, "allowed: 0, 1"),
        ({"attention.Q": {"scheme": "full"}}, "no block uses 'Q'"),
        ({"positon": "none"}, "did you mean 'position'"),
        ({"clip.frames": 16}, "allowed: 0, 1, 2, h, t, w"),
        ({"drop_path.x": 1}, "single value"),
        ({"stages": [["L", "G9"], ["L"], ["L"], ["L"]]}, "unknown attention 'G9' in stages; did you mean 'G2'"),
        ({"attention.L": {"scheme": "local_windw"}}, "did you mean 'local_window'"),
    ],
)
def test_unknown_names_are_told_the_nearest(changes, message):
    with pytest.raises(KeyError, match=message):
        backbones.config("dualformer_tiny").changed(changes)


@pytest.mark.parametrize(
    "entry",
    [
        {"scheme": "sliding_tile", "window": [[3, 3, 3], [1, 3, 3]]},
        {"scheme": "mixture_of_blocks", "chunk": [4, None, 7]},
        {"scheme": "global_pyramid", "scales": [[8, 7, 7], "whole"]},
        {"scheme": "block_topk", "tile": None},
        {"scheme": "global_pyramid", "branches": ["single", "factorised"]},
        {"scheme": "global_pyramid", "branches": "released"},
    ],
)
def test_an_option_may_be_all_that_its_scheme_takes(entry):
    assert backbones.config("dualformer_tiny").changed({"attention.L": entry}).attention["L"]["scheme"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": [2, 4, 8, 15]}, "stage 3: num_heads 15 does not divide dim 512; allowed: 1, 2, 4, 8"),
        ({"num_heads": [2, 4, 8]}, "num_heads .* has 3 entries, but widths .* makes 4 stages"),
        ({"temporal_pooling": [1, 2]}, "temporal_pooling .* has 2 entries, expected 3"),
        ({"widths": [64, 128.0, 256, 512]}, "widths .* is not a list of positive integers"),
        ({"depths": [2, 2, 0, 2]}, "depths .* is not a list of positive integers"),
        ({"clip": [32, 224]}, "clip .* is not three positive integers"),
        ({"downsampling": "mrge"}, "did you mean 'merge'"),
        ({"stem": "convolution"}, "did you mean 'convolutions'"),
        ({"position": "rel"}, "allowed: every, none, peg, relative"),
        ({"position_kernel": [3, 2, 3]}, "must be odd"),
        ({"drop_path": 1.0}, "drop_path 1.0 is not a number at least 0 and below 1"),
        ({"mlp_ratio": 0}, "mlp_ratio 0 is not a number above 0"),
        ({"dropout": "half"}, "dropout 'half' is not a number"),
        ({"activation_checkpointing": 1}, "is not true or false"),
        ({"stages": "LG"}, "stages 'LG' is not a list of patterns"),
        ({"stages": [["L"], ["L"], ["L"], "LG"]}, "'LG' in stages is not a list of attention names"),
        ({"attention.L": {"window": [8, 7, 7]}}, "not a mapping with the key 'scheme'"),
        ({"attention.L": {"scheme": "local_window", "windw": [8, 7, 7]}}, "did you mean 'window'"),
        ({"attention.L.relative_bias": 1}, "attention.L: relative_bias 1 is not true or false"),
        ({"attention.G2.scales": [[8, 7, 7], [4, 4]]}, r"scales \[4, 4\] is not three positive integers"),
        ({"attention.G2.downsample": "convv"}, "did you mean 'conv'"),
        ({"attention.L": {"scheme": "block_topk", "tile": 8}}, "tile 8 is not three positive integers"),
        ({"attention.L": {"scheme": "block_topk", "keep": "all"}}, "keep 'all' is not a number at least 0"),
        ({"attention.L": {"scheme": "mixture_of_blocks", "topk": 0}}, "topk 0 is not a whole number from 1 on"),
        ({"attention.L.window": {1, 2}}, "cannot be written as JSON"),
        ({"attention.L": 3}, "attention.L 3 is not a mapping with the key 'scheme'"),
        ({"attention.L.window": [4, 7, 7], "attention.L": 3}, "not a mapping with the key 'scheme'"),
        ({"attention.L.scheme": ["full"]}, "not a mapping with the key 'scheme'"),
    ],
)
def test_impossible_values_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        backbones.config("dualformer_tiny").changed(changes)


def test_from_dict_names_wrong_and_missing_keys():
    values = SMALL.to_dict()
    with pytest.raises(KeyError, match="did you mean 'widths'"):
        PyramidConfig.from_dict({**values, "width": [1]})
    with pytest.raises(ValueError, match="lacks widths"):
        PyramidConfig.from_dict({k: v for k, v in values.items() if k != "widths"})


def test_create_names_the_nearest():
    with pytest.raises(KeyError, match="did you mean 'dualformer_tiny'"):
        backbones.create("dualfomer_tiny")
    with pytest.raises(KeyError, match="did you mean 'sdpa'"):
        backbones.create(SMALL, kernel="spda")
    with pytest.raises(ValueError, match="num_classes -1"):
        backbones.create(SMALL, -1)


@pytest.mark.parametrize(
    "shape", [(3, 6, 20, 28), (1, 1, 6, 20, 28), (1, 6, 3, 20, 28), (1, 3, 0, 20, 28), (1, 3, 20, 28)]
)
def test_wrong_clips_are_named(shape):
    model = backbones.create(SMALL, 5)
    with pytest.raises(ValueError, match=r"is not \(batch, 3, frames, height, width\); the nominal clip") as error:
        model(torch.zeros(shape))
    assert str(shape) in str(error.value)


def test_integer_clips_are_named():
    with pytest.raises(ValueError, match="uint8 is not floating point"):
        backbones.create(SMALL, 5)(torch.zeros(1, 3, *SMALL.clip, dtype=torch.uint8))


def test_kernels_agree():
    model = backbones.create(SMALL, 5, kernel="reference").eval()
    clips = torch.randn(2, 3, *SMALL.clip)
    expected = model(clips)
    attention_zoo.use_kernel(model, "sdpa")
    torch.testing.assert_close(model(clips), expected)


@pytest.mark.parametrize(
    ("name", "changes"), [("video_swin_tiny", {}), ("dualformer_tiny", {"position": "relative"})]
)  # several blocks share the constants of shift, padding and bias
def test_a_whole_model_compiles_as_one_graph(name, changes):
    model = backbones.create(name, changes={"clip": [8, 64, 64], **changes}).eval()
    clip = torch.randn(2, 3, 8, 64, 64)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(clip), model(clip))


@pytest.mark.parametrize(("name", "millions"), [("pyramid_uniformer_small", 21.4), ("pyramid_uniformer_base", 49.8)])
def test_uniformers_blocks_stand_in_the_pyramid(name, millions):
    """Within 2 % of the parameters that the paper prints, whose stem and downsampling overlap."""
    config = backbones.config(name)
    model = on_meta(config)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)
    kinds = backbones.kinds(model)
    assert sum(kind == "position" for kind in kinds.values()) == sum(config.depths)
    assert model.stages[0].position is None
