"""16-bit numbers and compilation change no prediction beyond a stated tolerance, for every scheme.

The tolerance of a number format, against the same model in float64: of the relative error of all logits together, and
of one logit in standard deviations of the logits. Classes whose scores lie closer than two such errors may change
places; no others.
"""

import pytest
import torch
from small_cases import tiny
from test_kernels import WITH_TABLES

import attention_zoo
from attention_zoo import kernels
from harness.cost.build import build

TOLERANCE = {"float32": (1e-5, 1e-4), "float16": (2e-3, 1e-2), "bfloat16": (1.5e-2, 8e-2)}
MODELS = [*(f"pyramid_tiny_{name}" for name in attention_zoo.schemes.names()), "dualformer_tiny", "video_swin_tiny"]
CHOOSING = [
    f"pyramid_tiny_{name}" for name in attention_zoo.schemes.names()
    if hasattr(attention_zoo.schemes.get(name), "selection")
]  # fmt: skip
SHORT = {"depths": [2, 1, 1, 1]}  # both blocks of a pattern, and a masked window
CLIPS = 12


def clips(dtype="float32"):
    noise = torch.randn(CLIPS, 3, 8, 64, 64, generator=torch.Generator().manual_seed(1))
    return noise.to(getattr(torch, dtype))


def model_of(name, changes=None, **fields):
    """A model whose attention matters: as initialised, all its scores are nearly equal, and no error in them shows."""
    model, generator = build(tiny(name, changes, frames=8, size=64, **fields)), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for path, module in model.named_modules():
            if ".attention." in path and isinstance(module, torch.nn.Linear):
                drawn = torch.randn(module.weight.shape, generator=generator) * module.in_features**-0.5
                module.weight.copy_(drawn)
    return model


def exact(name, changes=None):
    """Logits in float64."""
    with torch.inference_mode():
        return model_of(name, changes, kernel="reference").double()(clips().double())


def check_predictions(logits, expected, dtype):
    """The logits lie within the tolerance, and so does every change of the first class."""
    relative, single = TOLERANCE[dtype]
    logits = logits.double()
    assert (logits - expected).norm() / expected.norm() <= relative
    limit = single * expected.std()
    assert (logits - expected).abs().max() / expected.std() <= single
    first, second = expected.topk(2).values.unbind(-1)
    clear = first - second > 2 * limit
    assert clear.sum() >= CLIPS // 4, "too few clips whose class is clear: the test would say nothing"
    assert torch.equal(logits.argmax(-1)[clear], expected.argmax(-1)[clear])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", MODELS)
def test_a_number_format_keeps_the_predictions(name, dtype):
    if dtype != "float32" and name in CHOOSING:
        pytest.skip("scores in 16 bits choose other blocks, whatever the tolerance of sums")
    with torch.inference_mode():
        check_predictions(model_of(name, dtype=dtype)(clips(dtype)), exact(name), dtype)


def test_the_tolerance_finds_a_wrong_scale():
    """Scores that are a fifth too large are outside of it even in bfloat16."""
    expected, model = exact("dualformer_tiny"), model_of("dualformer_tiny", dtype="bfloat16")
    with torch.inference_mode():
        for path, module in model.named_modules():
            if path.endswith((".qkv", ".q")):
                module.weight[: module.in_features] *= 1.2
        with pytest.raises(AssertionError):
            check_predictions(model(clips("bfloat16")), expected, "bfloat16")


COMPILED = [(name, "float32") for name in MODELS] + [("dualformer_tiny", "bfloat16"), ("video_swin_tiny", "bfloat16")]


@pytest.mark.slow
@pytest.mark.parametrize("name, dtype", COMPILED)
def test_compiled_inference_keeps_the_predictions(name, dtype):
    """In one graph, without a break but for tables of who sees whom."""
    model = model_of(name, SHORT, dtype=dtype)
    torch._dynamo.reset()
    with torch.inference_mode():
        whole = name.removeprefix("pyramid_tiny_") not in WITH_TABLES
        logits = torch.compile(model, fullgraph=whole)(clips(dtype))
    check_predictions(logits, exact(name, SHORT), dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", kernels.names())
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", MODELS)
def test_predictions_are_kept_on_a_gpu(name, dtype, kernel, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    reason = kernels.missing(kernel, "cuda", getattr(torch, dtype))
    if reason:
        pytest.skip(reason)
    wide = {"widths": [32, 64, 128, 256]}  # a head of 32 channels, as published
    model = model_of(name, wide, dtype=dtype, device="cuda", kernel=kernel)
    with torch.inference_mode():
        check_predictions(model(clips(dtype).cuda()).cpu(), exact(name, wide), dtype)
