"""Heat maps equal those of the released code, and the command line shows them.

The golden is looked for where those of `test_goldens` are; without it that test is skipped.
"""

import numpy as np
import pytest
import torch
from colours import COLOURS, colour_model, colour_video
from PIL import Image
from safetensors.torch import load_file
from test_goldens import DTYPES, FOLDER, _dualformer_config, _facts

import backbones
from backbones import PyramidConfig
from harness import gradcam
from harness.evaluation.gradcam import heat_maps, localised
from harness.evaluation.pictures import coloured, write_film

NAME = "dualformer_gradcam"
TOLERANCE = {"f32": 2e-3, "f64": 1e-8}  # as the golden states


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no goldens in {FOLDER}; ATTENTION_ZOO_GOLDENS names another folder")
@pytest.mark.parametrize("precision", DTYPES)
def test_maps_equal_reference(precision):
    golden, facts = load_file(FOLDER / f"{NAME}.data.safetensors"), _facts(NAME)
    # The golden leaves out what is the same in all published sizes.
    config = _dualformer_config(facts["config"] | {"coarse_pysizes": [[4, 4, 4]] * 2, "patch_size": [2, 4, 4]})
    model = backbones.create(config, facts["config"]["num_classes"])
    assert backbones.load_checkpoint(model, FOLDER / f"{NAME}.weights.safetensors").complete
    model.to(DTYPES[precision])
    clip = (golden["input.A"] * golden["input.B"]).to(DTYPES[precision])
    for name, target in (("argmax", None), ("label3", 3)):
        maps = heat_maps(model, clip, target=target)
        assert maps.block == "stages.3.blocks.1"  # "backbone/blocks/3/1"
        close(maps.heat[:, :, ::16, ::16], golden[f"map.{name}.{precision}"], TOLERANCE[precision])
        close(maps.probabilities[None], golden[f"preds.{precision}"], 1e-5 if precision == "f32" else 1e-9)
        for ours, theirs in (
            (maps.activations, golden["target_activations"]),
            (maps.gradients, golden[f"target_gradients.{name}"]),
        ):  # stored in float32 alone
            close(ours.float(), theirs, 1e-4 * theirs.abs().max().item())


def close(ours, theirs, atol):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def small_model():
    torch.manual_seed(0)
    config = PyramidConfig(
        attention={"L": {"scheme": "local_window", "window": [2, 2, 4]}},
        stages=[["L"], ["L"]],
        widths=[8, 16],
        num_heads=[2, 2],
        depths=[2, 1],
        clip=[4, 16, 32],
        temporal_pooling=[1],
    )
    model = backbones.create(config, 5)
    torch.nn.init.normal_(model.classifier.weight)
    return model


def test_maps_do_not_depend_on_the_batch_and_the_model_stays_as_it_was():
    model = small_model()
    model.train()
    model.norm.weight.requires_grad_(False)
    clips = torch.randn(3, 3, 4, 16, 32)
    whole = heat_maps(model, clips, batch_size=3)
    assert whole.heat.shape == (3, 4, 16, 32)
    assert whole.heat.amin() >= 0
    assert whole.heat.amax() <= 1
    for batch_size in (1, 2):
        again = heat_maps(model, clips, batch_size=batch_size)
        assert again.target == whole.target
        close(again.heat, whole.heat, 1e-4)
        close(again.probabilities, whole.probabilities, 1e-6)
    assert all(module.training for module in model.modules())
    assert not model.norm.weight.requires_grad
    assert model.classifier.weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("block", ["stages.0.blocks.0", "stages.0.blocks.1", "stages.1.blocks.0"])
def test_any_block_may_be_looked_at(block):
    """Against gradients through the whole model."""
    model, clips = small_model().double().eval(), torch.randn(2, 3, 4, 16, 32, dtype=torch.float64)
    maps = heat_maps(model, clips, target=2, block=block)
    outputs = []
    handle = model.get_submodule(block).register_forward_hook(lambda _m, _i, output: outputs.append(output.x))
    probabilities = model(clips).softmax(dim=-1)
    handle.remove()
    (gradient,) = torch.autograd.grad(probabilities.mean(dim=0)[2], outputs)
    activation, gradient = (x.permute(0, 4, 1, 2, 3).detach() for x in (outputs[0], gradient))
    close(maps.gradients, gradient, 1e-12)
    close(maps.heat, localised(activation, gradient, clips.shape[2:]), 1e-9)


def test_nothing_that_speaks_for_a_class_is_no_heat():
    heat = localised(torch.ones(1, 2, 2, 3, 3), -torch.ones(1, 2, 2, 3, 3), torch.Size((4, 6, 6)))
    assert not heat.any()
    assert heat.shape == (1, 4, 6, 6)


def test_wrong_names_are_named():
    model, clips = small_model(), torch.randn(1, 3, 4, 16, 32)
    assert list(model.blocks()) == ["stages.0.blocks.0", "stages.0.blocks.1", "stages.1.blocks.0"]
    with pytest.raises(ValueError, match=r"no block 'stages.1.blocks.1'; did you mean 'stages.1.blocks.0'"):
        heat_maps(model, clips, block="stages.1.blocks.1")
    with pytest.raises(ValueError, match="target 5 is none of the 5 classes"):
        heat_maps(model, clips, target=5)
    with pytest.raises(ValueError, match="no classifier"):
        heat_maps(backbones.create(model.config, 0), clips)


def test_half_frame_and_half_heat():
    pictures = coloured(np.full((1, 1, 2, 3), 100, np.uint8), np.array([[[0.0, 1.0]]]))
    assert pictures[0, 0].tolist() == [[84, 51, 92], [177, 166, 68]]  # viridis runs from (68, 1, 84) to (253, 231, 37)


@pytest.mark.parametrize("height, width", [(32, 48), (33, 47)])
@pytest.mark.parametrize("movie", ("gif", "mp4"))
def test_films_show_the_pictures_in_order(tmp_path, movie, height, width):
    shades = np.arange(0, 250, 50)
    pictures = np.tile(shades.astype(np.uint8)[:, None, None, None], (1, height, width, 3))
    write_film(tmp_path / f"film.{movie}", pictures, rate=10)
    if movie == "gif":
        with Image.open(tmp_path / "film.gif") as film:
            assert film.size == (width, height)
            frames = []
            for index in range(film.n_frames):
                film.seek(index)
                frames.append(np.asarray(film.convert("RGB")))
    else:
        import av

        with av.open(str(tmp_path / "film.mp4")) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert frames[0].shape[:2] == (height - height % 2, width - width % 2)
    assert len(frames) == len(shades)
    for frame, shade in zip(frames, shades, strict=True):
        assert abs(frame.astype(float).mean() - shade) < 6


@pytest.mark.parametrize("movie", ("gif", "mp4"))
def test_the_command_line_writes_pictures(tmp_path, capsys, movie):
    backbones.save_checkpoint(colour_model(), tmp_path / "model.safetensors")
    (tmp_path / "classes.txt").write_text("\n".join(COLOURS))
    clip = colour_video(tmp_path / "green.mp4", "green")
    out = tmp_path / "new" / "heat.png"
    arguments = [f"checkpoint={tmp_path / 'model.safetensors'}", f"clip={clip}", f"classes={tmp_path / 'classes.txt'}"]
    assert gradcam.main([*arguments, f"out={out}", f"movie={movie}"]) == 0
    assert "green.mp4: green, " in capsys.readouterr().out
    with Image.open(out) as picture:
        assert picture.width > picture.height > 100
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 100
    assert out.with_suffix(f".{movie}").stat().st_size > 100
    assert gradcam.main([*arguments, f"out={out}", "views=2x1", "target=red", "block=stages.0.blocks.0"]) == 0
    assert "green.mp4: red, " in capsys.readouterr().out
    assert (out.parent / "heat-2.png").is_file()
    for wrong, message in (
        ("target=rde", "unknown class 'rde'; did you mean 'red'"),
        ("target=3", "target=3 is none of the 3 classes"),
        ("block=stages.0.blocks.9", "the model has no block 'stages.0.blocks.9'"),
        ("out=heat.jpg", "must end in .png"),
    ):
        assert gradcam.main([*arguments, wrong]) == 2
        assert message in capsys.readouterr().err
