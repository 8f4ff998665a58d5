"""Token labelling against the released loss, the traps it excludes, and what models start from."""

import json
import os
from pathlib import Path

import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file, save_file

import backbones
from harness.spec.recipe import TokenLabels
from harness.training.start import initialise
from harness.training.token_labels import Annotator, TokenLabelled, annotator, loss, reconciled, targets

FOLDER = Path(os.environ.get("ATTENTION_ZOO_GOLDENS") or Path(__file__).parents[2] / "shared" / "goldens")
GOLDEN = FOLDER / "dualformer_token_label_loss.data.safetensors"
needs_golden = pytest.mark.skipif(
    not GOLDEN.is_file(), reason=f"no {GOLDEN.name} in {FOLDER}; ATTENTION_ZOO_GOLDENS names another folder"
)
SMALL = {
    "widths": (8, 16, 16, 24), "num_heads": (1, 2, 2, 3), "depths": (2, 2, 2, 2), "clip": (8, 56, 56),
    "stages": [["L", "G2"]] * 4,
}  # fmt: skip
CLASSES = 6


def attention(local=(2, 7, 7), scales=((4, 2, 2), (2, 1, 1))):
    return {"L": {"scheme": "local_window", "window": local}, "G2": {"scheme": "global_pyramid", "scales": scales}}


def small(num_classes=CLASSES, **changes):
    return backbones.create("dualformer_tiny", num_classes, changes={**SMALL, "attention": attention(), **changes})


@pytest.fixture
def student():
    torch.manual_seed(0)
    return TokenLabelled(small(), TokenLabels())


def clips(count=2, frames=8):
    return torch.randn(count, 3, frames, 56, 56, generator=torch.Generator().manual_seed(1))


@needs_golden
@pytest.mark.parametrize(("precision", "dtype"), [("f32", torch.float32), ("f64", torch.float64)])
def test_loss_equals_the_released_one(precision, dtype):
    golden = load_file(GOLDEN)
    facts = json.loads((FOLDER / "dualformer_token_label_loss.json").read_text())["config"]
    settings = TokenLabels(weight=facts["gamma"], top_k=facts["top_k"], grouping="strided")
    pooled, positions = (golden[key].to(dtype).requires_grad_() for key in ("cls_score", "token_preds"))
    teacher = golden["teacher_preds"].to(dtype)
    tolerance = {"f32": 1e-6, "f64": 1e-12}[precision]

    def close(actual, key):
        expected = golden[f"{key}.{precision}"]
        error = (actual.double() - expected.double()).abs().max() / expected.double().abs().max()
        assert error <= tolerance, key

    close(reconciled(teacher, tuple(facts["student_tokens"]), "strided"), "teacher_reconciled")
    value = loss((pooled, positions), golden["labels"], teacher, settings)
    assert value.dtype == dtype
    value.backward()
    close(value.detach()[None], "loss")
    close(pooled.grad, "grad.cls_score")
    close(positions.grad, "grad.token_preds")


def test_groupings_average_neighbours_or_steps_far_apart():
    teacher = torch.arange(8.0).reshape(1, 8, 1, 1, 1).expand(2, 8, 2, 3, 4)
    assert reconciled(teacher, (4, 2, 3), "neighbours")[0, :, 0, 0, 0].tolist() == [0.5, 2.5, 4.5, 6.5]
    assert reconciled(teacher, (4, 2, 3), "strided")[0, :, 0, 0, 0].tolist() == [2, 3, 4, 5]
    assert reconciled(teacher, (8, 2, 3), "strided") is teacher
    with pytest.raises(ValueError, match=r"\(8, 2, 3\) does not match the student's \(3, 2, 3\)"):
        reconciled(teacher, (3, 2, 3), "strided")
    with pytest.raises(ValueError, match="height and width"):
        reconciled(teacher, (4, 3, 2), "strided")


def test_small_scores_become_zero_not_nothing():
    scores = torch.tensor([3.0, -1.0, 2.0, 1.0])
    torch.testing.assert_close(targets(scores, 2), torch.tensor([3.0, 0.0, 2.0, 0.0]).softmax(0))
    torch.testing.assert_close(targets(scores, 9), scores.softmax(0))  # fewer classes than top_k
    tied = torch.tensor([1.0, 1.0, 1.0, -2.0])
    torch.testing.assert_close(targets(tied, 2), torch.tensor([1.0, 1.0, 1.0, 0.0]).softmax(0))


def test_soft_labels_of_the_clip():
    torch.manual_seed(0)
    outputs, teacher = (torch.randn(3, 5), torch.randn(3, 2, 2, 2, 5)), torch.randn(3, 2, 2, 2, 5)
    label = torch.tensor([0, 4, 2])
    hard = loss(outputs, label, teacher, TokenLabels())
    soft = loss(outputs, torch.nn.functional.one_hot(label, 5).float(), teacher, TokenLabels())
    torch.testing.assert_close(hard, soft)
    alone = loss(outputs, label, teacher, TokenLabels(weight=1.0))
    torch.testing.assert_close(alone, torch.nn.functional.cross_entropy(outputs[0], label))
    half = tuple(x.bfloat16() for x in outputs)
    assert loss(half, label, teacher.bfloat16(), TokenLabels()).dtype == torch.float32


def test_student_trains_every_parameter_and_tests_as_the_plain_model(student):
    pooled, positions = student(clips())
    assert pooled.shape == (2, CLASSES)
    assert positions.shape == (2, *student.student.grids[-1], CLASSES)
    teacher = torch.randn(positions.shape)
    loss((pooled, positions), torch.tensor([1, 2]), teacher, TokenLabels()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())
    student.eval()
    torch.testing.assert_close(student(clips()), student.student(clips()))


def test_training_scores_are_the_models_own():
    student = TokenLabelled(small(dropout=0.0, drop_path=0.0), TokenLabels()).train()
    for norm in student.modules():
        if isinstance(norm, torch.nn.BatchNorm3d):
            norm.momentum = 0.0
    torch.testing.assert_close(student(clips())[0], student.student(clips()))


def test_head_is_the_released_one(student):
    shapes = {key: tuple(p.shape) for key, p in student.position_head.named_parameters() if key.endswith("weight")}
    assert shapes == {"0.weight": (48, 24), "3.weight": (96, 48), "6.weight": (CLASSES, 96)}
    kinds = [type(m).__name__ for m in student.position_head]
    assert kinds == ["Linear", "Dropout", "ReLU", "Linear", "Dropout", "ReLU", "Linear"]
    assert [m.p for m in student.position_head if isinstance(m, torch.nn.Dropout)] == [0.5, 0.5]


def test_teacher_labels_every_position_with_its_classifier():
    torch.manual_seed(0)
    teacher = small()
    label = Annotator(teacher)(clips())
    x = teacher.norm(rearrange(teacher.features(clips())[-1], "b d t h w -> b t h w d"))
    torch.testing.assert_close(label, teacher.classifier(x))
    torch.testing.assert_close(label.mean(dim=(1, 2, 3)), teacher(clips()), rtol=1e-4, atol=1e-5)
    assert not label.requires_grad
    assert not label.is_inference()


def test_teacher_stays_frozen_and_in_evaluation_mode(student):
    """The released code's teacher is trained along: dropout on, BatchNorm statistics drifting."""
    torch.manual_seed(0)
    teacher = small()
    annotate = Annotator(teacher)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    first = annotate(clips())
    student.annotate = annotate  # even kept on the student
    student.train()
    teacher.train()  # and even switched by somebody else
    torch.testing.assert_close(annotate(clips()), first)
    assert not any(module.training for module in teacher.modules())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert {key.partition(".")[0] for key in student.state_dict()} == {"student", "position_head"}
    assert len(list(student.modules())) == len(list(TokenLabelled(small(), TokenLabels()).modules()))


def test_student_is_saved_alone(student, tmp_path):
    path = backbones.save_checkpoint(student.student, tmp_path / "student.safetensors")
    again = backbones.from_checkpoint(path).eval()
    torch.testing.assert_close(again(clips()), student.eval()(clips()))


def test_teacher_from_a_file(tmp_path):
    torch.manual_seed(0)
    teacher = small()
    save_file(teacher.state_dict(), tmp_path / "bare.safetensors")
    bare = annotator(tmp_path / "bare.safetensors", CLASSES, teacher.config, clip=(8, 56, 56))
    torch.testing.assert_close(bare(clips()), Annotator(teacher)(clips()))
    path = backbones.save_checkpoint(teacher, tmp_path / "teacher.safetensors")
    label = annotator(path, CLASSES)(clips())
    torch.testing.assert_close(label, Annotator(teacher)(clips()))
    with pytest.raises(backbones.CheckpointError, match="knows 6 classes, the student 7"):
        annotator(path, 7)


def test_a_teacher_that_does_not_fit_is_refused(tmp_path):
    """The released code loads what matches, which may be nothing."""
    state = small().state_dict()
    wrong = {f"surprise{number}": tensor for number, tensor in enumerate(state.values())}
    save_file(wrong, tmp_path / "strange.safetensors")
    with pytest.raises(backbones.CheckpointError):
        annotator(tmp_path / "strange.safetensors", CLASSES, small().config)
    del state["norm.bias"]
    path = tmp_path / "part.safetensors"
    save_file(state, path)
    with pytest.raises(backbones.CheckpointError, match="no model config"):
        annotator(path, CLASSES)
    with pytest.raises(backbones.CheckpointError, match=r"1 missing .*: norm\.bias"):
        annotator(path, CLASSES, small().config)
    with pytest.raises(FileNotFoundError):
        annotator(tmp_path / "none.safetensors", CLASSES)


def test_models_without_classifier_are_refused():
    with pytest.raises(ValueError, match="student has no classifier"):
        TokenLabelled(small(0), TokenLabels())
    with pytest.raises(ValueError, match="teacher has no classifier"):
        Annotator(small(0))


def test_a_longer_teacher_map_is_brought_to_the_students_length():
    torch.manual_seed(0)
    student = TokenLabelled(small(temporal_pooling=(2, 1, 1)), TokenLabels())
    label = Annotator(small())(clips())
    outputs = student(clips())
    assert (outputs[1].shape[1], label.shape[1]) == (2, 4)
    values = [loss(outputs, torch.tensor([0, 1]), label, TokenLabels(grouping=g)) for g in ("strided", "neighbours")]
    assert values[0] != values[1]


def test_the_normed_map_is_what_is_pooled():
    model = small().eval()
    pooled = model.norm(model.tokens(clips()).map).mean(dim=(1, 2, 3))
    torch.testing.assert_close(model.classifier(pooled), model(clips()))


def test_a_start_from_the_same_model(tmp_path, monkeypatch):
    path = backbones.save_checkpoint(small(), tmp_path / "start.safetensors")
    monkeypatch.setenv("HOME", str(tmp_path))  # as the file of an ablation may name it
    model = small()
    notes = initialise(model, "~/start.safetensors")
    assert len(notes) == 1
    assert "start.safetensors" in notes[0]
    for key, value in load_file(path).items():
        assert torch.equal(model.state_dict()[key], value)


def test_other_classes_leave_the_classifier_fresh(tmp_path, student):
    path = backbones.save_checkpoint(small(9), tmp_path / "start.safetensors")
    before = student.student.classifier.weight.clone()
    notes = initialise(student, path)
    assert "the classifier starts fresh: the file's has 9 classes, the model 6" in notes
    assert torch.equal(student.student.classifier.weight, before)
    assert torch.equal(student.student.norm.weight, load_file(path)["norm.weight"])
    backbones.save_checkpoint(small(0), path)
    assert "the classifier starts fresh: the file has none" in initialise(student, path)


def test_kernels_of_another_clip_length_start_fresh_and_are_told(tmp_path):
    path = backbones.save_checkpoint(small(clip=(16, 56, 56)), tmp_path / "long.safetensors")
    notes = initialise(small(), path)
    assert any("9 tensors: stages.[0-3].blocks.1.attention.priors" in note for note in notes)


def test_another_model_is_refused(tmp_path):
    path = backbones.save_checkpoint(small(widths=(8, 16, 16, 48), num_heads=(1, 2, 2, 3)), tmp_path / "x.safetensors")
    with pytest.raises(backbones.CheckpointError, match="another shape"):
        initialise(small(), path)
    path = backbones.save_checkpoint(small(depths=(2, 2, 2, 1)), tmp_path / "y.safetensors")
    with pytest.raises(backbones.CheckpointError, match="missing"):
        initialise(small(), path)
    path = backbones.save_checkpoint(
        small(attention=attention(scales=((2, 2, 2), (2, 1, 1)))), tmp_path / "z.safetensors"
    )
    with pytest.raises(backbones.CheckpointError, match="another config: attention"):
        initialise(small(), path)


def test_a_start_from_an_image_model(tmp_path):
    flat = attention((1, 7, 7), ((1, 2, 2), (1, 1, 1)))
    image = small(3, clip=(1, 56, 56), patch=(1, 4, 4), position_kernel=(1, 3, 3), attention=flat)
    path = backbones.save_checkpoint(image, tmp_path / "image.safetensors")
    model = small()
    notes = initialise(model, path, inflate=True)
    assert "inflated from image.safetensors" in notes[0]
    assert "the classifier starts fresh: the image model's is of other classes" in notes
    patch = model.state_dict()["stages.0.embed.proj.weight"]
    torch.testing.assert_close(patch.sum(dim=2), load_file(path)["stages.0.embed.proj.weight"].sum(dim=2))
    with pytest.raises(backbones.CheckpointError, match="inflate=true"):
        initialise(small(), path)
