"""Predictions and the figures made of them: examples by hand, properties, and evaluations that are killed."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from colours import COLOURS, FRAMES, SIZE, colour_model, colour_video
from hypothesis import given
from hypothesis import strategies as st

import backbones
from harness import evaluate
from harness.datasets import DataSet, Item
from harness.evaluation import predictions as predictions_module
from harness.evaluation.predictions import Predictions, PredictionsError
from harness.evaluation.protocol import Protocol
from harness.evaluation.scores import by_views, mean_class, scores, spread, wilson
from harness.evaluation.views import NOT_FINITE, predict, predicted, video_names
from harness.spec import recipe
from harness.spec.clip import Augmentation
from harness.spec.sampling import Sampling
from reports import confusion

ROOT = Path(__file__).parents[1]


def made(probabilities, labels, views=None, classes=None, failures=()):
    """Predictions of the videos 0, 1, ...; those in `failures` have no scores."""
    probabilities = np.array(probabilities, np.float32)
    probabilities[list(failures)] = np.nan
    count, per_video, width = probabilities.shape
    return Predictions(
        scores=probabilities,
        labels=np.array(labels),
        names=[f"{number}.mp4" for number in range(count)],
        views=views or [(clip, 0) for clip in range(per_video)],
        classes=classes or [f"c{number}" for number in range(width)],
        failures={f"{number}.mp4": "cut off" for number in failures},
    )


@st.composite
def some_predictions(draw):
    seed, videos, clips, crops = (draw(st.integers(a, b)) for a, b in ((0, 999), (1, 12), (1, 4), (1, 3)))
    classes = draw(st.integers(2, 8))
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.ones(classes), (videos, clips * crops))
    failures = draw(st.sets(st.integers(0, videos - 1), max_size=videos))
    views = [(clip, crop) for clip in range(clips) for crop in range(crops)]
    return made(probabilities, random.integers(classes, size=videos), views, failures=failures)


# Newcombe, Statistics in Medicine 17 (1998), 857-872, Table I, method 3.
@pytest.mark.parametrize(
    "right, total, low, high",
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_equals_published_values(right, total, low, high):
    figure = wilson(right, total)
    assert figure.value == pytest.approx(100 * right / total)
    assert (round(figure.low / 100, 4), round(figure.high / 100, 4)) == (low, high)


def test_wilson_has_a_width_at_both_ends():
    assert wilson(20, 20).high == 100
    assert wilson(20, 20).low == pytest.approx(100 - wilson(0, 20).high)
    with pytest.raises(ValueError, match="3 right of 2"):
        wilson(3, 2)


def test_scores_of_an_example_by_hand():
    score = scores(
        made(
            [
                [[0.6, 0.3, 0.1], [0.1, 0.3, 0.6]],  # mean 0.35 0.30 0.35: the lower of two equal classes is the answer
                [[0.8, 0.1, 0.1], [0.1, 0.6, 0.3]],  # mean 0.45 0.35 0.20
                [[0.1, 0.2, 0.7], [0.3, 0.3, 0.4]],
                [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]],  # could not be decoded
            ],
            labels=[0, 1, 2, 2],
            failures=[3],
        )
    )
    assert (score.videos, score.decoded, score.coverage) == (4, 3, 0.75)
    assert score.top1.value == 50
    assert score.top5.value == 75  # three classes: all but the one that is missing
    assert score.mean_class.value == pytest.approx(100 * (1 + 0 + 0.5) / 3)
    assert score.confusion.tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 1]]
    rows = [(row.videos, row.decoded, row.right, row.confused_with, row.confused) for row in score.per_class]
    assert rows == [(1, 1, 1, None, 0), (1, 1, 0, "c0", 1), (2, 1, 1, None, 0)]


def test_top5_counts_the_first_five():
    one_view = np.array([[[0.02, 0.03, 0.05, 0.1, 0.2, 0.25, 0.35]]] * 2)
    score = scores(made(one_view, labels=[2, 1]))
    assert (score.top1.value, score.top5.value) == (0, 50)


@given(some_predictions(), st.randoms(use_true_random=False))
def test_the_order_of_videos_changes_nothing(predictions, random):
    order = list(range(len(predictions.labels)))
    random.shuffle(order)
    shuffled = Predictions(
        predictions.scores[order],
        predictions.labels[order],
        [predictions.names[index] for index in order],
        predictions.views,
        predictions.classes,
        predictions.failures,
    )
    assert scores(shuffled).to_dict() == scores(predictions).to_dict()


@given(some_predictions())
def test_figures_stand_within_their_intervals_and_misses_count(predictions):
    score = scores(predictions)
    for figure in (score.top1, score.top5, score.mean_class):
        assert 0 <= figure.low <= figure.value <= figure.high <= 100
    assert score.top1.value <= score.top5.value <= 100 * score.coverage + 1e-9
    assert score.confusion.sum() == score.decoded == score.videos - len(predictions.failures)
    assert score.confusion.trace() == sum(row.right for row in score.per_class)
    assert score.top1.value == pytest.approx(100 * score.confusion.trace() / score.videos)
    json.dumps(score.to_dict(), allow_nan=False)


@given(some_predictions(), st.data())
def test_a_subset_of_views_equals_predictions_of_these_alone(predictions, data):
    chosen = data.draw(st.lists(st.sampled_from(predictions.views), min_size=1, unique=True))
    positions = [predictions.views.index(view) for view in chosen]
    alone = Predictions(
        predictions.scores[:, positions],
        predictions.labels,
        predictions.names,
        chosen,
        predictions.classes,
        predictions.failures,
    )
    np.testing.assert_allclose(predictions.averaged(chosen), alone.averaged(), rtol=0, atol=1e-12)
    assert scores(predictions, chosen).to_dict() == scores(alone).to_dict()


@given(some_predictions())
def test_accuracy_against_views_ends_with_all_of_them(predictions):
    rows = by_views(predictions)
    everything = scores(predictions).top1
    last = rows[-1]
    assert last["macs_factor"] == len(predictions.views) == last["clips"] * last["crops"]
    assert (last["top1"], last["low"], last["high"]) == (everything.value, everything.low, everything.high)
    for row in rows:
        chosen = spread(predictions, row["clips"], row["crops"])
        assert len(set(chosen)) == row["macs_factor"]
        assert row["top1"] == scores(predictions, chosen).top1.value


def test_fewer_views_are_spread_and_one_crop_is_the_middle_one():
    views = [(clip, crop) for clip in range(10) for crop in range(3)]
    predictions = made(np.ones((1, 30, 2)), [0], views)
    assert spread(predictions, 1, 1) == [(4, 2)]  # of three crops the third is the middle one
    assert [clip for clip, _ in spread(predictions, 5, 1)] == [0, 2, 4, 6, 8]
    assert spread(predictions, 10, 3) == views
    with pytest.raises(PredictionsError, match="1 to 10 clips, 1 or 3 crops"):
        spread(predictions, 4, 2)
    with pytest.raises(PredictionsError, match="view \\(10, 0\\) was not predicted; there are 10 clips x 3 crops"):
        scores(predictions, [(10, 0)])


def test_the_bootstrap_is_one_over_videos():
    random = np.random.default_rng(1)
    labels = random.integers(4, size=120)
    right = random.random(120) < np.array([0.9, 0.5, 0.3, 0.7])[labels]
    figure = mean_class(np.bincount(labels[right], minlength=4), np.bincount(labels, minlength=4))
    drawn = []
    for _ in range(3000):
        chosen = random.integers(120, size=120)
        drawn.append(100 * np.mean([right[chosen][labels[chosen] == label].mean() for label in range(4)]))
    assert figure.value == pytest.approx(100 * np.mean([right[labels == label].mean() for label in range(4)]))
    np.testing.assert_allclose([figure.low, figure.high], np.percentile(drawn, [2.5, 97.5]), rtol=0, atol=1.0)


def test_classes_without_videos_are_not_in_the_mean():
    score = scores(made(np.eye(3)[[0, 0, 1]][:, None], labels=[0, 0, 0]))
    assert score.mean_class.value == pytest.approx(200 / 3)
    assert score.per_class[2].top1 is None


def test_predictions_survive_a_file(tmp_path):
    before = made(np.random.default_rng(0).dirichlet(np.ones(3), (4, 2)), [0, 1, 2, 0], failures=[2])
    before.names[0], before.facts = "Größe, 猫.mp4", {"data_digest": "abc", "sampling": {"frames": 32}}
    after = Predictions.load(before.save(tmp_path / "new" / "predictions.npz"))
    np.testing.assert_array_equal(after.scores, before.scores)
    np.testing.assert_array_equal(after.labels, before.labels)
    for name in ("names", "views", "classes", "failures", "facts"):
        assert getattr(after, name) == getattr(before, name)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["predictions.npz"]


def test_a_failed_save_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = made(np.ones((1, 1, 2)), [0]).save(tmp_path / "predictions.npz")
    before = path.read_bytes()

    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(predictions_module.np, "savez", full)
    with pytest.raises(OSError, match=r"predictions.npz cannot be written.*No space left.*not full"):
        made(np.ones((2, 1, 2)), [0, 1]).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_damaged_files_are_named(tmp_path):
    whole = made(np.ones((3, 1, 2)), [0, 1, 1]).save(tmp_path / "whole.npz").read_bytes()
    cut, text, pickled = tmp_path / "cut.npz", tmp_path / "text.npz", tmp_path / "pickled.npz"
    cut.write_bytes(whole[: len(whole) // 2])
    text.write_text("no predictions")
    np.savez(pickled, scores=np.array([{"a": 1}], dtype=object))
    for path in (cut, text, pickled):
        with pytest.raises(PredictionsError, match=rf"{path.name} holds no predictions that can be read"):
            Predictions.load(path)
    with pytest.raises(FileNotFoundError, match=r"absent\.npz"):
        Predictions.load(tmp_path / "absent.npz")


def test_contradictions_are_named():
    for fields, message in (
        (dict(labels=[0, 5]), "label 5 is outside of the 2 classes"),
        (dict(labels=[0]), "1 labels do not fit"),
        (dict(names=["a", "a"]), "name 'a' is given twice"),
        (dict(failures={"c": "?"}), "failures name 'c'"),
    ):
        good = dict(scores=np.ones((2, 1, 2)), labels=[0, 1], names=["a", "b"], views=[(0, 0)], classes=["x", "y"])
        with pytest.raises(PredictionsError, match=message):
            Predictions(**(good | fields))


def test_what_is_not_predicted_yet_is_not_scored():
    unfinished = made(np.ones((3, 1, 2)), [0, 1, 1])
    unfinished.scores[1] = np.nan
    with pytest.raises(PredictionsError, match="1 of 3 videos are not predicted yet"):
        scores(unfinished)
    with pytest.raises(PredictionsError, match="no videos to score"):
        scores(made(np.ones((0, 1, 2)), []))


class Clips(torch.utils.data.Dataset):
    """Random views of seven videos, the fourth of which is damaged; may end with an error after five."""

    def __init__(self, views=3, error=None):
        self.views, self.error, self.read = views, error, []
        random = torch.Generator().manual_seed(5)
        shape = (7, views, 3, FRAMES, SIZE, SIZE)
        self.clips = torch.randint(0, 256, shape, generator=random, dtype=torch.uint8)

    def __len__(self):
        return 7

    def __getitem__(self, index):
        if index >= 7:
            raise IndexError(index)
        if self.error is not None and len(self.read) == 5:
            raise self.error
        self.read.append(index)
        return {"views": "3.mp4: cut off" if index == 3 else self.clips[index], "label": index % 3, "index": index}


def run(clips, model=None, batch_size=4, dtype="float32", facts=None, **options):
    protocol = Protocol(
        Sampling(frames=FRAMES),
        recipe.Testing(resize=SIZE),
        Augmentation(size=SIZE, mean=(120.0, 120.0, 120.0), std=(60.0, 60.0, 60.0)),
        batch_size=batch_size,
        dtype=dtype,
    )
    names, labels = [f"{number}.mp4" for number in range(7)], [number % 3 for number in range(7)]
    empty = Predictions.empty(names, labels, [(clip, 0) for clip in range(clips.views)], COLOURS, facts)
    return predicted(model or colour_model(), clips, empty, protocol, **options)


def same(a, b, atol=1e-6):
    np.testing.assert_allclose(a.scores, b.scores, rtol=0, atol=atol)
    assert a.failures == b.failures
    assert (a.names, a.views, a.classes) == (b.names, b.views, b.classes)


def test_predictions_do_not_depend_on_the_batch():
    torch.manual_seed(0)
    model = backbones.create(colour_model().config, 3).train()
    whole = run(Clips(), model, batch_size=100)
    assert model.training  # as it was; the predictions are those of eval mode
    assert whole.failures == {"3.mp4": "3.mp4: cut off"}
    assert np.isnan(whole.scores[3]).all()
    np.testing.assert_allclose(whole.scores[whole.decoded].sum(axis=2), 1, rtol=0, atol=1e-6)
    for batch_size in (1, 2, 5):
        same(run(Clips(), model, batch_size=batch_size), whole)
    same(run(Clips(), model, batch_size=4, dtype="bfloat16"), whole, atol=0.05)


def test_anything_iterable_is_predicted():
    clips = Clips()

    class Stream:
        views = clips.views

        def __iter__(self):
            return (clips[index] for index in (6, 0, 3, 1, 5, 2, 4))

    same(run(Stream()), run(clips))


@pytest.mark.parametrize("error, seconds", [(MemoryError, 0.0), (KeyboardInterrupt, 1e9)])
def test_a_stopped_evaluation_goes_on_where_it_was(tmp_path, error, seconds):
    whole, keep = run(Clips(), batch_size=2), tmp_path / "predictions.npz"
    facts = {"data_digest": "d", "sampling": {"kind": "dense", "frames": 4}}
    with pytest.raises(error):
        run(Clips(error=error), batch_size=2, keep=keep, save_every_seconds=seconds, facts=facts)
    before = Predictions.load(keep)
    assert 0 < len(before.pending) < 7
    with pytest.raises(PredictionsError, match="not predicted yet"):
        scores(before)

    again, lines = Clips(), []
    same(run(again, batch_size=3, keep=keep, facts=facts, say=lines.append), whole)
    assert sorted(again.read) == sorted({*before.pending.tolist(), 3})  # nothing twice but what has failed
    assert lines[0] == f"{7 - len(again.read)} of 7 videos are predicted already"
    same(Predictions.load(keep), whole)

    done = Clips()
    same(run(done, keep=keep, facts=facts), whole)
    assert done.read == [3]  # it may have been repaired


def test_a_repaired_file_is_no_miss_any_more(tmp_path):
    keep, repaired = tmp_path / "predictions.npz", Clips()
    assert run(Clips(), keep=keep).failures
    repaired.__class__ = type(
        "Repaired", (Clips,), {"__getitem__": lambda self, i: {"views": self.clips[i], "index": i}}
    )
    predictions = run(repaired, keep=keep)
    assert not predictions.failures
    assert predictions.decoded.all()


def test_predictions_of_something_else_are_not_taken_over(tmp_path):
    keep = tmp_path / "predictions.npz"
    run(Clips(), keep=keep, facts={"weights_digest": "one"})
    before = keep.read_bytes()
    with pytest.raises(PredictionsError, match=r"another evaluation: weights_digest is one there and two here"):
        run(Clips(), keep=keep, facts={"weights_digest": "two"})
    with pytest.raises(PredictionsError, match=r"another evaluation: views is"):
        run(Clips(views=2), keep=keep, facts={"weights_digest": "one"})
    assert keep.read_bytes() == before
    keep.write_bytes(before[:100])
    lines = []
    run(Clips(), keep=keep, facts={"weights_digest": "one"}, say=lines.append)
    assert "this begins anew" in lines[0]
    assert not len(Predictions.load(keep).pending)


def test_scores_that_are_not_finite_are_misses():
    model = colour_model()
    broken = Clips()
    plain = run(broken, model)

    class SometimesNaN(torch.nn.Module):
        def forward(self, clips):
            odd = clips[:, 0, 0, 0, 0] == (broken.clips[0, 0, 0, 0, 0, 0].float() - 120) / 60
            return model(clips).masked_fill(odd[:, None], float("nan"))

    predictions = run(broken, SometimesNaN())
    assert predictions.failures["0.mp4"] == NOT_FINITE
    assert scores(predictions).coverage < scores(plain).coverage

    class Diverged(torch.nn.Module):
        def forward(self, clips):
            return clips.new_full((len(clips), 3), float("nan"))

    with pytest.raises(PredictionsError, match="the weights have diverged, or float32 is too narrow"):
        run(Clips(), Diverged())


def test_a_model_of_other_classes_is_refused():
    with pytest.raises(PredictionsError, match="the model gives 5 scores, but there are 3 classes"):
        run(Clips(), backbones.create(colour_model().config, 5))


def test_videos_have_names_of_their_own(tmp_path):
    items = (Item("a.mp4", 0), Item("a.mp4", 0, start=1, end=2.5), Item("a.mp4", 1), Item("a.mp4", 1, start=1, end=2.5))
    names = video_names(DataSet("x", "val", tmp_path, items, ("p", "q")))
    assert names == ["a.mp4", "a.mp4@1-2.5", "a.mp4 (2)", "a.mp4@1-2.5 (2)"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two videos of each colour, one of them damaged; a checkpoint that knows colours, beside them."""
    root = tmp_path_factory.mktemp("colours")
    rows = [
        (colour_video(root / f"{colour}{n}.mp4", colour).name, c) for n in (0, 1) for c, colour in enumerate(COLOURS)
    ]
    (root / "green1.mp4").write_bytes((root / "green1.mp4").read_bytes()[:200])
    (root / "val.csv").write_text("".join(f"{name},{label}\n" for name, label in rows))
    (root / "classes.txt").write_text("\n".join(COLOURS) + "\n")
    backbones.save_checkpoint(colour_model(), root / "model.safetensors")
    return root


def test_predicting_a_data_set(folder):
    items = tuple(Item(f"{colour}0.mp4", label) for label, colour in enumerate(COLOURS)) + (Item("green1.mp4", 1),)
    data = DataSet("colours", "val", folder, items, COLOURS)
    testing = recipe.Testing(clips=2, crops=3, resize=SIZE)
    predictions = predict(colour_model(), data, Protocol(Sampling(frames=FRAMES), testing, Augmentation(size=SIZE)))
    assert predictions.scores.shape == (4, 6, 3)
    assert predictions.views == [(clip, crop) for clip in range(2) for crop in range(3)]
    assert list(predictions.failures) == ["green1.mp4"]
    assert "green1.mp4" in predictions.failures["green1.mp4"]
    assert predictions.averaged()[:3].argmax(axis=1).tolist() == [0, 1, 2]
    assert predictions.facts["data_digest"] == data.digest
    assert scores(predictions).top1.value == 75


def arguments(folder, out, *more):
    return [f"checkpoint={folder / 'model.safetensors'}", f"data={folder}", f"out={out}", "views=2x1", *more]


def test_the_command_line_writes_everything(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert evaluate.main(arguments(folder, out)) == 0
    printed = capsys.readouterr().out
    assert "top-1       83.3 % [43.6, 97.0]" in printed
    assert "coverage    83.3 % (5 of 6 videos; the rest count as misses)" in printed
    assert "green1.mp4" in printed
    assert "written to" in printed
    assert printed.rstrip().endswith("per_class.md, confusion.png")
    assert sorted(file.name for file in out.iterdir()) == [
        "confusion.png",
        "per_class.csv",
        "per_class.md",
        "predictions.npz",
        "scores.json",
    ]
    stored = json.loads((out / "scores.json").read_text())
    assert (out / "confusion.png").read_bytes() == confusion.picture(stored)
    assert stored["top1"]["value"] == pytest.approx(500 / 6)
    assert stored["classes"] == list(COLOURS)
    assert stored["confusion"] == [[2, 0, 0], [0, 1, 0], [0, 0, 2]]
    assert [row["clips"] for row in stored["by_views"]] == [1, 2]
    assert list(stored["failures"]) == ["green1.mp4"]
    ((decoder, count),) = stored["facts"]["run"]["decoders"].items()
    assert f"decoded by  {decoder} ({count})" in printed
    assert count == 5
    with (out / "per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["class"], row["videos"], row["right"]) for row in rows] == [
        ("red", "2", "2"),
        ("green", "2", "1"),
        ("blue", "2", "2"),
    ]
    assert "| green | 2 | 1 | 50.0 | 9.5 to 90.5 | — |" in (out / "per_class.md").read_text()

    assert evaluate.main(arguments(folder, out)) == 0
    assert "5 of 6 videos are predicted already" in capsys.readouterr().err  # the damaged one is tried again


@pytest.mark.parametrize(
    "more, message",
    [
        (["views=4"], "views=4 is not CLIPSxCROPS"),
        (["split=validation"], "split=validation: unknown; allowed: test, train, val"),
        (["data=nowhere/at/all"], "neither a folder nor the name of a data set"),
        (["batch_size=0"], "batch_size=0 is not a whole number from 1"),
        (["order=backwards"], "order=backwards: unknown; allowed: ordered, shuffled, single"),
        (["device=gpu"], "unknown device 'gpu'; did you mean 'cuda'"),
        (["model=video_swin_tiny"], "is not of video_swin_tiny"),
        (["model.position=none"], "holds its own config"),
        (["resize=8"], "size 32"),
        (["mean=[1,2]"], "is not three numbers"),
        (["recipe=dualformer_tny_k400"], "did you mean 'dualformer_tiny_k400'"),
    ],
)
def test_slips_are_one_error(folder, tmp_path, capsys, more, message):
    words = [a for a in arguments(folder, tmp_path) if a.partition("=")[0] not in {m.partition("=")[0] for m in more}]
    assert evaluate.main([*words, *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_other_classes_are_refused(folder, tmp_path, capsys):
    (tmp_path / "val.csv").write_text("a.mp4,0\nb.mp4,1\n")
    (tmp_path / "classes.txt").write_text("red\nblue\n")
    assert evaluate.main([f"checkpoint={folder / 'model.safetensors'}", f"data={tmp_path}"]) == 2
    assert "2 classes, the checkpoint answers for 3" in capsys.readouterr().err
    named = tmp_path / "names.txt"
    named.write_text("red\nblue\ngreen\n")
    named.write_text("red\nblue\nyellow\n")
    assert evaluate.main(arguments(folder, tmp_path / "out", f"classes={named}")) == 2
    error = capsys.readouterr().err
    assert "class 1 is 'blue' for the checkpoint, 'green' in" in error
    assert "the checkpoint has no 'green'" in error


def test_classes_in_another_order_are_matched_by_their_names(folder, tmp_path, capsys):
    """The model takes green for its third class, the checkpoint's list calls its third class green: all is right."""
    listed = tmp_path / "colours"
    shutil.copytree(folder, listed)
    (listed / "classes.txt").write_text("GREEN\n'blue'\nred\n")
    labels = {"red": 2, "green": 0, "blue": 1}
    (listed / "val.csv").write_text("".join(f"{colour}0.mp4,{label}\n" for colour, label in labels.items()))
    named = tmp_path / "names.txt"
    named.write_text("\n".join(COLOURS) + "\n")
    assert evaluate.main(arguments(listed, tmp_path / "out", f"classes={named}")) == 0
    printed = capsys.readouterr().out
    assert "counts its classes in another order than the checkpoint" in printed
    assert "top-1       100.0 %" in printed
    assert json.loads((tmp_path / "out/scores.json").read_text())["classes"] == list(COLOURS)


def test_scores_are_made_without_torch():
    code = "import sys, harness.evaluation.scores, harness.evaluate; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.slow
def test_a_killed_evaluation_ends_as_if_it_had_not_been(folder, tmp_path):
    rows = [f"red{n % 2}.mp4,0" for n in range(40)]
    listing = tmp_path / "val.csv"
    for name in ("red0.mp4", "red1.mp4", "classes.txt", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    listing.write_text("\n".join(rows) + "\n")
    keep = tmp_path / "out" / "predictions.npz"
    more = ["save_every_seconds=0", "batch_size=1"]
    command = [sys.executable, "-m", "harness.evaluate", *arguments(tmp_path, keep.parent, *more)]
    for _ in range(20):  # a machine may be done before it is killed
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        until = time.monotonic() + 300
        while not keep.exists() and time.monotonic() < until and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if len(Predictions.load(keep).pending):
            break
        keep.unlink()
    assert len(Predictions.load(keep).pending)
    assert evaluate.main(arguments(tmp_path, keep.parent, *more)) == 0
    assert evaluate.main(arguments(tmp_path, tmp_path / "whole", *more)) == 0
    same(Predictions.load(keep), Predictions.load(tmp_path / "whole" / "predictions.npz"), atol=0)
