"""What leaves PyTorch's eager mode: models and schemes are exported and compiled with sizes that stay open."""

import pytest
import torch
from torch.export import Dim

import attention_zoo
import backbones
from attention_zoo import Grid

SMALL = {"clip": [16, 16, 16], "widths": [8, 16], "num_heads": [1, 2], "depths": [2, 2], "temporal_pooling": [1]}
WINDOWS = {"video_swin_tiny": ("W", "S"), "dualformer_tiny": ("L",)}  # and the schemes of their blocks that have some


def small(name):
    """Two stages; the windows of 2x3 do not divide their maps of 4x4 and 2x2 places."""
    changes = {f"attention.{entry}.window": [4, 2, 3] for entry in WINDOWS[name]}
    stages = backbones.config(name).stages[:2]
    return backbones.create(name, 2, changes={**SMALL, **changes, "stages": stages}).eval()


def exported(model, clip, sizes):
    with torch.no_grad():
        return torch.export.export(model, (clip,), dynamic_shapes=(sizes,)).module()


@pytest.mark.parametrize("name", WINDOWS)
def test_a_window_model_is_exported_with_the_batch_open(name):
    model = small(name)
    program = exported(model, torch.randn(2, 3, 24, 16, 16), {0: Dim("clips", min=1, max=16)})
    for clips in (1, 5):
        clip = torch.randn(clips, 3, 24, 16, 16)
        with torch.no_grad():
            torch.testing.assert_close(program(clip), model(clip))


@pytest.mark.slow
@pytest.mark.parametrize("name", WINDOWS)
def test_a_window_model_is_exported_with_batch_and_frames_open(name):
    """Two clips or more, of three windows of time or more: the last one is apart where windows shift."""
    model = small(name)
    sizes = {0: Dim("clips", min=2, max=16), 2: 8 * Dim("windows", min=3, max=8)}
    program = exported(model, torch.randn(2, 3, 32, 16, 16), sizes)
    for clips, frames in ((2, 24), (5, 40)):
        clip = torch.randn(clips, 3, frames, 16, 16)
        with torch.no_grad():
            torch.testing.assert_close(program(clip), model(clip))


@pytest.mark.slow
@pytest.mark.parametrize("name", attention_zoo.schemes.names())
def test_every_scheme_is_exported_with_the_batch_open(name):
    """With the options of its example, by which no number of products follows from the content of a clip."""
    module = attention_zoo.build(name, 12, 2, Grid(4, 6, 8), **attention_zoo.schemes.get(name).example).eval()
    x = torch.randn(3, 4, 6, 8, 12)
    program = exported(module, x[:2], {0: Dim("clips", min=1, max=16)})
    with torch.no_grad():
        torch.testing.assert_close(program(x), module(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", attention_zoo.schemes.names())
def test_every_scheme_is_traced_the_same_each_time(name):
    """Tables that are kept from the first run are constants of both."""
    module = attention_zoo.build(name, 12, 2, Grid(3, 5, 8), **attention_zoo.schemes.get(name).example).eval()
    x = torch.randn(2, 3, 5, 8, 12)
    traced = torch.jit.trace(module, x)  # which runs twice and compares
    with torch.no_grad():
        torch.testing.assert_close(traced(x), module(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", WINDOWS)
def test_a_window_model_is_compiled_once_for_batches_of_any_size(name):
    model = small(name)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for clips in (2, 5, 3):
        clip = torch.randn(clips, 3, 24, 16, 16)
        with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=clips != 2):
            torch.testing.assert_close(compiled(clip), model(clip))


@pytest.mark.parametrize("name", WINDOWS)
def test_only_the_batch_of_a_window_model_stays_open(name):
    """Else a compiler simplifies for minutes what the stages make of frames, height and width, which are fixed."""
    stage = {**SMALL, "widths": [8], "num_heads": [1], "depths": [1], "temporal_pooling": []}
    model = backbones.create(name, 2, changes={**stage, "stages": backbones.config(name).stages[:1]}).eval()
    opened = []

    def backend(graph, inputs):
        opened.append([size for size in inputs if isinstance(size, torch.SymInt)])
        return graph.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(model, fullgraph=True, dynamic=True, backend=backend)(torch.randn(2, 3, 24, 16, 16))
    assert opened
    assert all(len(sizes) == 1 for sizes in opened)
