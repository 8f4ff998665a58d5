"""Published weights need no more than a file and a data set: which model they are of, how their clips are made and what
their classes are follows from them.

The whole path in every layout that can be read: weights that belong to nothing, a Kinetics as it is
distributed, with a list of classes in an order of its own, and a missing file. The answers to each view are held to our
own model, whose clips are cut by hand. Layouts whose names stand in goldens alone are skipped where there are none.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict

import numpy as np
import pytest
import torch
import yaml
from moving import moving_scene
from published_layouts import LAYOUTS
from test_checkpoints import CASES

import backbones
from backbones import checkpoint as files
from backbones.layouts import NATIVE_NAME
from backbones.sets import answering
from harness import evaluate
from harness.clips.decoding import open_video
from harness.evaluation import trained
from harness.evaluation.predictions import FILE, Predictions
from harness.evaluation.trained import recognised
from harness.spec import recipe as recipes
from harness.spec.reader import UsageError
from harness.spec.sampling import test_indices as indices_of

VIDEOS = (("juggling balls", "aaaaaaaaaaa"), ("abseiling", "bbbbbbbbbbb"), ("zumba", "ccccccccccc"))  # the last is lost
FOR_A_START = {"image ViT (timm)": "DualPath starts from an image ViT of timm; a file of these names has no adapters"}


def test_every_layout_that_can_be_read_is_tested():
    known = {layout.name for layout in backbones.family.layouts_of()} - {NATIVE_NAME}
    assert set(LAYOUTS) | set(FOR_A_START) == known
    assert not set(LAYOUTS) & set(FOR_A_START)


@pytest.fixture
def named(tmp_path, monkeypatch):
    """Makes a config a named model that is tested as a published one is, with frames and pixels of its own."""

    def name(config, start, base):
        model, size = f"{start}_of_this_test", config.clip.h
        known = backbones.named._named()
        monkeypatch.setattr(backbones.named, "_named", lambda: known | {model: lambda: config})
        folder = tmp_path / "recipes"
        shutil.copytree(recipes.FOLDER, folder)
        published = recipes.load(base, "code")
        resize = 2 * round(size * published.testing.resize / published.augmentation.size / 2)
        content = {"base": base, "model": model, "sampling": {"frames": config.clip.t}, "augmentation": {"size": size}}
        if published.augmentation.crop == "random":
            content["augmentation"]["resize"] = resize
        content["testing"] = {"resize": resize}
        (folder / f"{model}_k400.yaml").write_text(yaml.safe_dump(content))
        monkeypatch.setattr(recipes, "FOLDER", folder)
        return recipes.load(f"{model}_k400", "code")

    return name


def kinetics(root, height, classes):
    """Two videos and a lost one, as the CVDF distributes them; frames need no resizing."""
    import av

    names = [name for name, _ in VIDEOS] + [f"class {number}" for number in range(len(VIDEOS), classes)]
    rows = "".join(f"{name},{identity},0,10,val\n" for name, identity in VIDEOS)
    (root / "annotations").mkdir(parents=True)
    (root / "annotations/val.csv").write_text(f"label,youtube_id,time_start,time_end,split\n{rows}")
    (root / "classes.txt").write_text("\n".join(names) + "\n")
    (root / "val").mkdir()
    for number, (_, identity) in enumerate(VIDEOS[:2]):
        with av.open(str(root / "val" / f"{identity}_000000_000010.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=30, options={"qscale": "2"})
            stream.height, stream.width, stream.pix_fmt = height, height * 4 // 3 // 2 * 2, "yuv420p"
            for picture in moving_scene(70, height, stream.width)[:: 1 - 2 * number]:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    return names


def answers(model, recipe, path):
    """Class probabilities of each view: frames chosen by the rule of the recipe, cut and normalised by hand."""
    size, testing, augmentation = recipe.augmentation.size, recipe.testing, recipe.augmentation
    views = []
    with open_video(path) as video:
        for indices in indices_of(len(video), recipe.sampling, testing.clips, 30.0):
            frames = video.read(indices).astype(np.float32)
            frames = (frames - np.float32(augmentation.mean)) / np.float32(augmentation.std)
            assert min(frames.shape[1:3]) == testing.resize
            top, spare = (frames.shape[1] - size) // 2, frames.shape[2] - size
            for left in [spare // 2] if testing.crops == 1 else [0, 2 * (spare // 2), spare // 2]:
                views.append(frames[:, top : top + size, left : left + size])
    with torch.no_grad():
        return model.eval()(torch.from_numpy(np.stack(views)).permute(0, 4, 1, 2, 3)).softmax(-1).numpy()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_and_a_data_set_are_enough(layout, tmp_path, named, capsys):
    published = LAYOUTS[layout]
    model, state = published.written()
    recipe = named(published.config, published.model, published.recipe)
    several = isinstance(published.classes, dict)
    classes, of_set = (published.classes["kinetics"], " of kinetics") if several else (published.classes, "")
    names = kinetics(tmp_path / "k400", recipe.testing.resize, classes)
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "weights.pth")
    words = [f"checkpoint={tmp_path / 'weights.pth'}", "data=kinetics400", f"root={tmp_path / 'k400'}"]
    if backbones.origin(recipe.model).weights == "none":  # nobody has files of such models but who trained them
        words.append(f"model={recipe.model}")
    assert evaluate.main([*words, f"out={tmp_path / 'out'}"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    title = f"{recipe.model} from weights.pth ({layout} layout): {classes} classes{of_set}"
    assert f"{title}; tested by the recipe {recipe.name}" in printed
    assert "coverage 66.7 % (2 of 3 videos; the rest count as misses)" in printed
    views = Predictions.load(tmp_path / "out" / FILE)
    assert list(views.classes) == names
    for number, (_, identity) in enumerate(VIDEOS[:2]):
        path = tmp_path / "k400/val" / f"{identity}_000000_000010.mp4"
        expected = answers(answering(model, "kinetics") if several else model, recipe, path)
        np.testing.assert_allclose(views.scores[number], expected, rtol=0, atol=2e-5)
    assert np.isnan(views.scores[2]).all()
    assert np.ptp(views.scores[:2], axis=0).max() > 1e-4  # the two videos are told apart


def test_the_classifier_of_a_data_set_is_found_and_tested_as_that_set_is(tmp_path, named):
    """MultiTrain's files call the sets otherwise than we do."""
    model, state = LAYOUTS["MultiTrain"].written()
    recipe = named(model.config, "multitrain", "multitrain_several")
    torch.save(state, tmp_path / "weights.pth")
    of_set = lambda **more: options(path=tmp_path / "weights.pth", model=recipe.model, **more)  # noqa: E731
    with pytest.raises(trained.SeveralSets, match="give set=NAME: kinetics, mit, ssv2") as error:
        trained.load_trained(of_set(data="something_something_v2"))
    assert [error.value.of("mit", 5), error.value.of("kinetics400", 5), error.value.of("x", 8)] == [
        "mit",
        "kinetics",
        None,
    ]
    assert trained.SeveralSets(tmp_path, {"a": 5, "b": 5}).of("kinetics400", 5) is None
    for data, name, views in (("kinetics400", "kinetics", (5, 1)), ("something_something_v2", "ssv2", (1, 3))):
        testing = trained.load_trained(of_set(data=data, set=name)).protocol.testing
        assert (testing.clips, testing.crops) == views


@pytest.fixture(scope="module")
def outlines():
    """Names and shapes of all models of which weights are published, each with 400 classes."""
    names = [name for name in backbones.names() if not backbones.origin(name).weights.startswith("none")]
    with torch.device("meta"):
        return {name: backbones.create(name).state_dict() for name in names}


def test_no_two_published_models_have_the_same_tensors(outlines):
    alike = defaultdict(list)
    for name, state in outlines.items():
        alike[tuple(sorted((key, tuple(tensor.shape)) for key, tensor in state.items()))].append(name)
    assert [names for names in alike.values() if len(names) > 1] == [["timesformer_space_only_base", "deit_base"]]


def options(path="weights.pth", **more):
    return evaluate.Options(checkpoint=str(path), **more)


@pytest.mark.parametrize(
    "model, more, recipe",
    [
        ("video_swin_base", {"data": "kinetics400"}, "video_swin_base_k400"),
        ("video_swin_base", {"data": "kinetics600"}, "video_swin_base_k600_in22k"),
        ("mvit_v2_small_16f", {"data": "something_something_v2"}, "mvit_v2_small_ssv2"),
        ("timesformer_hr", {}, "timesformer_hr_k400"),
        ("timesformer_space_only_base", {"data": "kinetics400"}, "timesformer_space_only_k400"),
        ("hiera_base_16f", {"data": "a/folder"}, "hiera_base_k400"),
        ("multitrain_small_16f", {}, "multitrain_k400_16f"),
        ("multitrain_base_32f", {"data": "something_something_v2"}, "multitrain_several"),
        ("video_swin_large", {"data": "kinetics400"}, None),
    ],
)
def test_a_model_is_known_by_its_tensors(outlines, model, more, recipe):
    name, chosen = recognised(options(**more), "weights.pth", outlines[model])
    assert (name, chosen and chosen.name) == (model, recipe)


def test_a_model_that_a_recipe_changes_is_known_too():
    recipe = recipes.load("video_swin_base_ssv2", "code")
    with torch.device("meta"):
        state = backbones.create(recipe.model, 174, changes=recipe.model_changes).state_dict()
    name, chosen = recognised(options(data="something_something_v2"), "weights.pth", state)
    assert (name, chosen) == ("video_swin_base", recipe)


def test_weights_are_tested_as_the_code_that_trained_them_does(outlines):
    """X-ViT's paper states every 4th frame, its released configuration every 16th."""
    for more, stride in (({}, 16), ({"recipe_source": "paper"}, 4)):
        assert recognised(options(**more), "weights.pth", outlines["xvit_base_16f"])[1].sampling.stride == stride


def test_a_model_of_another_size_is_known_where_its_size_is_said():
    with torch.device("meta"):
        state = backbones.create("timesformer_base", changes={"clip.t": 24}).state_dict()
    with pytest.raises(UsageError, match=r"nearest: timesformer_base, but for 1 tensor.*frames=\.\.\."):
        recognised(options(), "weights.pth", state)
    assert recognised(options(frames=24), "weights.pth", state)[0] == "timesformer_base"


def test_a_file_of_nothing_known_is_refused():
    with pytest.raises(UsageError, match="does not say of which model it is"):
        recognised(options(), "weights.pth", {"surprise": torch.zeros(2)})


def test_recipes_of_the_same_weights_are_tested_alike():
    """Which of several recipes of a model and data set is taken does not matter for a test."""
    facts = defaultdict(set)
    for source in recipes.SOURCES:
        for recipe in (recipes.load(name, source) for name in recipes.names()):
            if recipe.model and recipe.data:
                of_test = (recipe.sampling, recipe.testing, recipe.augmentation.mean, recipe.augmentation.std)
                facts[source, recipe.model, recipe.data].add((*of_test, recipe.augmentation.size))
    assert {key for key, different in facts.items() if len(different) > 1} == set()


def test_a_config_beside_the_weights_names_the_classes(tmp_path):
    """As transformers writes it."""
    model = backbones.create(CASES["Video Swin"][0], 3)
    path = tmp_path / "config.json"
    for content, names in (
        ({"id2label": {"0": "b", "1": "a", "2": "c"}}, ["b", "a", "c"]),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}}, None),
        ({"id2label": {"0": "b", "1": "a"}}, None),
        ({}, None),
        ([], None),
    ):
        path.write_text(json.dumps(content))
        assert trained.names_in_config(tmp_path / "pytorch_model.bin", model) == names
    path.write_text("{")
    assert trained.names_in_config(tmp_path / "pytorch_model.bin", model) is None


def test_misfits_are_counted_by_tensors(outlines):
    state = dict(outlines["video_swin_tiny"])
    config = backbones.config("video_swin_tiny")
    assert files.misfits(config, state) == 0
    lost = state.pop("norm.weight")
    assert files.misfits(config, state) == 1
    assert files.misfits(config, state | {"norm.weight": lost, "surprise": lost}) == 1
    assert files.misfits(backbones.config("mvit_base_16f"), {"surprise": lost}) is None
