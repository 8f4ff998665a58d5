"""DualPath and ST-Adapter on Swin: what they count, what learns, whose weights load, and the frozen Swin in them."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from training_runs import data_set, job, recipe

import backbones
from attention_zoo import Tokens
from backbones.configs.dualpath import SPATIAL
from backbones.dualpath import frame_sinusoid, frameset
from harness.spec.sampling import Sampling
from harness.training.job import Stopped, model_config
from harness.training.loop import train
from harness.training.start import initialise

NAME = "dualpath_swin_base_16f"
TINY = {"widths": [8, 8, 16, 16], "num_heads": [1, 1, 2, 2], "depths": [2, 2, 3, 2]}
SMALL = TINY | {"clip": [16, 64, 64], "bottleneck": 4, "adapter_dropout": 0.0}


def image_swin(classes=5):
    """A small image Swin with biases that are not all alike."""
    torch.manual_seed(3)
    model = backbones.create("video_swin_base_image", classes, changes=TINY | {"clip": [1, 64, 64], "drop_path": 0.0})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def dual_path(classes=5, **changes):
    return backbones.create(NAME, classes, changes=SMALL | changes)


def learns(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(("name", "slots"), [(NAME, 5), (f"{NAME}_4_adapters", 4)])
def test_counts_follow_from_the_sheet(name, slots):
    """1.548 M for each adapter of 12 of 24 blocks; head 2048 -> 1024 -> 174; positions of 56 x 56 patches."""
    with torch.device("meta"):
        model = backbones.create(name, 174)
        image = backbones.create("video_swin_base_image", 0)
    adapted = [sum(bool(block.adapters) for block in stage.blocks) for stage in model.stages]
    assert adapted == [1, 1, 9, 1]
    frozen = sum(p.numel() for p in image.parameters())
    head, positions, slot = 2048 * 1024 + 1024 + 1024 * 174 + 174, 56 * 56 * 128, 1_547_648
    backbones.learning(model, "adapters")
    assert learns(model) == slots * slot + head + positions
    assert sum(p.numel() for p in model.parameters()) == frozen + learns(model)
    assert 4 * learns(model) < 60e6  # bytes of a checkpoint in float32
    if slots == 5:
        assert (learns(model), frozen + learns(model)) == (10_416_174, 97_159_398)


def test_only_the_adapters_set_has_gradients():
    model = backbones.learning(dual_path(), "adapters").train()
    for adapter in (part for block in model.blocks().values() for part in block.adapters.values()):
        torch.nn.init.normal_(adapter.up_proj.weight, std=0.3)
    model(torch.randn(2, 3, 16, 64, 64)).square().sum().backward()
    having = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    wanted = {n for n, _ in model.named_parameters() if ".adapters." in n or n.startswith(("classifier.", "position."))}
    assert having == wanted
    assert wanted & {"position.of_mosaic", "stages.2.blocks.2.adapters.before_attention.down_proj.weight"}
    assert not any(".blocks.1." in name for name in wanted)  # whose windows are shifted


def released(name):
    """A name as in the released code of Swin."""
    if match := re.match(r"stages\.(\d+)\.embed\.(.*)", name):
        return f"patch_embed.{match[2]}" if match[1] == "0" else f"layers.{int(match[1]) - 1}.downsample.{match[2]}"
    name = re.sub(r"^stages\.(\d+)\.", r"layers.\1.", name).replace(
        "attention.bias.table", "relative_position_bias_table"
    )
    name = name.replace(".relative_", ".attn.relative_").replace(".attention.", ".attn.")
    return name.replace("classifier.", "head.")


@pytest.mark.parametrize("names", ["ours", "released"])
def test_with_silent_adapters_each_frame_is_seen_by_the_frozen_swin(names, tmp_path):
    """Up-projections start at zero; the weights come from a file of the image model."""
    image = image_swin()
    if names == "ours":
        path = backbones.save_checkpoint(image, tmp_path / "image.safetensors")
    else:
        path = tmp_path / "image.safetensors"
        tensors = {released(key): value for key, value in image.state_dict().items()}
        tensors["patch_embed.proj.weight"] = tensors["patch_embed.proj.weight"][:, :, 0].contiguous()
        save_file(tensors, path)
    model = dual_path(7).eval()
    notes = initialise(model, path)
    assert any("classifier starts fresh" in note for note in notes)
    clip = torch.randn(2, 3, 16, 64, 64)
    with torch.no_grad():
        tokens = model.tokens(clip)
        frames = frameset(clip)[0].transpose(1, 2).flatten(0, 1)[:, :, None]
        alone = image.tokens(frames).map
    assert_close(tokens.map.flatten(0, 1), alone[:, 0])
    paths = torch.cat([model.norm(part.map).mean((1, 2, 3)).view(2, -1, 16).mean(1)
                       for part in model.stages[-1].blocks[0].apart(tokens)], 1)  # fmt: skip
    assert_close(paths[:, 16:], image.norm(alone).mean((1, 2, 3)).view(2, SPATIAL, 16).mean(1))
    assert_close(model(clip), model.classifier(paths))


def test_attention_and_mlp_of_the_mosaics_add_nothing_at_first_where_there_are_adapters():
    model = dual_path().eval()
    for block in model.blocks().values():
        mosaics = torch.randn(2, *block.mosaics, block.norm1.weight.numel())
        tokens = Tokens.of_map(mosaics)
        after = tokens
        for residual in block.temporal():
            after = residual(after)
        assert torch.equal(after.x, tokens.x) == bool(block.adapters)


def test_mosaics_have_positions_of_their_own_and_frames_none():
    model = dual_path().eval()
    seen = []
    model.stages[0].blocks[0].register_forward_pre_hook(lambda m, x: seen.append(m.apart(x[0])))
    clip = torch.randn(1, 3, 16, 64, 64)
    model(clip)
    mosaics, frames = seen[0]
    pictures = (part.transpose(1, 2).flatten(0, 1)[:, None].movedim(2, -1) for part in frameset(clip))
    plain_frames, plain_mosaics = (model.stages[0].embed(part) for part in pictures)
    assert_close(frames.map, plain_frames)
    learnt = model.position.of_mosaic.view(1, 16, 16, 8)
    numbers = frame_sinusoid(1, block_grid(model), 8)[:, 1:].view(1, 1, 16, 16, 8)
    assert_close(mosaics.map, plain_mosaics + learnt + numbers)


def block_grid(model):
    return model.stages[0].blocks[0].mosaics._replace(t=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return data_set(tmp_path_factory.mktemp("clips"))


def test_adapters_are_trained_on_a_file_of_swin_go_on_and_are_loaded_again(data, tmp_path):
    image = backbones.save_checkpoint(image_swin(), tmp_path / "swin.safetensors")
    chosen = recipe().changed({"sampling": Sampling(frames=16, stride=1)})
    config = model_config(NAME, chosen, TINY | {"bottleneck": 4})

    def started(folder):
        made = job(data, tmp_path / folder, chosen, trainable="adapters", max_steps=2, checkpoint=str(image))
        return replace(made, model=NAME, config=config)

    straight, stopped, steps = started("one"), started("two"), iter(range(9))
    result = train(straight)
    with pytest.raises(Stopped):
        train(stopped, stop=lambda: next(steps) == 0)
    resumed = train(stopped)
    tensors = load_file(straight.folder / result.checkpoint)
    again = load_file(stopped.folder / resumed.checkpoint)
    assert all(torch.equal(tensor, again[name]) for name, tensor in tensors.items())
    model = backbones.from_checkpoint(straight.folder / result.checkpoint, backbone=image)
    backbones.learning(model, "adapters")
    assert tensors.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    with pytest.raises(backbones.CheckpointError, match="needs the backbone with the digest"):
        backbones.load_checkpoint(
            backbones.create(backbones.read_config(config), 3), straight.folder / result.checkpoint
        )


# ST-Adapter


def test_st_adapters_are_half_as_wide_as_their_stage_and_learn_with_the_classifier():
    with torch.device("meta"):
        model = backbones.learning(backbones.create("st_adapter_swin_base_8f", 174), "adapters")
    widths = {128: 2, 256: 2, 512: 18, 1024: 2}
    wanted = sum(blocks * (dim * dim + 5 * dim // 2 + dim) for dim, blocks in widths.items())
    assert learns(model) == wanted + 174 * 1025
    assert round(learns(model) / 1e6) == 7


def test_silent_st_adapters_leave_each_frame_to_the_frozen_swin(tmp_path):
    image = image_swin()
    changes = TINY | {"clip": [4, 64, 64], "drop_path": 0.0}
    model = backbones.create("st_adapter_swin_base_8f", 5, changes=changes).eval()
    notes = initialise(model, backbones.save_checkpoint(image, tmp_path / "image.safetensors"))
    assert any("starts fresh" in note for note in notes)
    clip = torch.randn(1, 3, 4, 64, 64)
    frames = clip[0].transpose(0, 1)[:, :, None]
    with torch.no_grad():
        assert_close(model.tokens(clip).map[0], image.tokens(frames).map[:, 0])
        for block in model.blocks().values():
            torch.nn.init.normal_(block.adapter.conv.weight)
        last = model.tokens(clip).map[0, -1]
        clip[:, :, 0] += 1
        assert not torch.equal(model.tokens(clip).map[0, -1], last)  # block after block, news reach every frame


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip.t": 24}, "24 frames fills no mosaics of 16"),
        ({"shrink": 3}, "shrink 3 is not 1, 2 or 4"),
        ({"patch.t": 2}, r"write \(1, h, w\)"),
        ({"position": "peg"}, "position 'peg' is not one of an image pyramid"),
        ({"temporal_pooling": [1, 2, 1]}, "joins frames"),
        ({"adapted": ["X"]}, r"adapted \('X',\)|adapted \['X'\]"),
        ({"adapted": []}, "there are: W, S"),
        ({"st_adapter": 0.5}, "st_adapter is of models of whole clips"),
    ],
)
def test_what_fits_no_picture_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        backbones.config(NAME).changed(changes)
