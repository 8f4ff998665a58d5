"""The forms for a CPU: outputs and gradients are those of one piece, whatever the chunk; one door shuts them all."""

import contextlib
import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import conv3d

import backbones
from attention_zoo import Grid, cpu, schemes
from attention_zoo.cpu import depthwise, learned_bias, onednn
from attention_zoo.cpu import mlp as mlp_form
from attention_zoo.depthwise import pooled
from backbones.mlp import Mlp

SMALL = {"clip": [4, 64, 64], "widths": [4, 8, 16, 32], "num_heads": [1, 2, 4, 8], "depths": [2, 2, 2, 2]}


def drawn(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(params=[1, 100, 3000], ids="{} bytes".format)
def small_chunks(request, monkeypatch):
    monkeypatch.setattr(cpu, "BYTES", request.param)


def perturbed(module):
    """With weights that nothing hides behind: none zero, none tiny."""
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.copy_(
                drawn(*parameter.shape, dtype=parameter.dtype, seed=i) / max(1, parameter[0].numel()) ** 0.5
            )
    return module


def gradients(module, x, probe):
    x = x.clone().requires_grad_()
    y = module(x)
    return y, *torch.autograd.grad(y, [x, *module.parameters()], probe)


@given(count=st.integers(1, 5000), numbers=st.integers(1, 10**6), weights=st.integers(0, 10**7))
def test_chunks_are_about_equal_and_hold_more_than_the_weights(count, numbers, weights):
    length = cpu.chunk_length(torch.empty(1), count, numbers, weights)
    number = -(-count // length)
    least = max(cpu.BYTES / 4, 2 * weights) / numbers
    assert number == 1 or count / number >= least / 1.5
    assert number == count or count / number <= 1.5 * max(least, 1) + 1
    assert count - (number - 1) * length > 0


@pytest.mark.parametrize("name", schemes.names())
def test_schemes_attend_alike_in_chunks(name, small_chunks):
    grid = Grid(4, 6, 8)
    scheme = perturbed(schemes.get(name)(12, 2, grid, **schemes.get(name).example).double().eval())
    x = drawn(3, *grid, 12)
    with torch.inference_mode():
        in_chunks = scheme(x)
        with cpu.off():
            torch.testing.assert_close(in_chunks, scheme(x))


def test_the_mlp_is_the_same_in_chunks(small_chunks):
    mlp, x, probe = perturbed(Mlp(6, 4).double()), drawn(2, 3, 4, 5, 6), drawn(2, 3, 4, 5, 6, seed=1)
    trained = gradients(mlp, x, probe)
    with torch.inference_mode():
        inferred = mlp(x)
    with cpu.off():
        wanted = gradients(mlp, x, probe)
    for ours, theirs in zip((inferred, *trained), (wanted[0], *wanted), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_mlp_by_finite_differences(small_chunks):
    mlp = perturbed(Mlp(3, 2).double())
    parameters = [p.detach().requires_grad_() for p in mlp.parameters()]

    def run(x, *values):
        return torch.func.functional_call(mlp, dict(zip(dict(mlp.named_parameters()), values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (drawn(1, 1, 2, 3, 3).requires_grad_(), *parameters))


@pytest.mark.parametrize("frozen", ["x", "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"])
def test_what_needs_no_gradient_gets_none(frozen):
    mlp, x = perturbed(Mlp(4, 2).double()), drawn(1, 2, 2, 2, 4)
    free = x.requires_grad_(frozen != "x")
    for name, parameter in mlp.named_parameters():
        parameter.requires_grad_(name != frozen)
    mlp(free).sum().backward()
    for name, tensor in {"x": free, **dict(mlp.named_parameters())}.items():
        assert (tensor.grad is None) == (name == frozen)


def test_many_gradients_at_once_are_those_of_one_after_the_other():
    mlp, x = perturbed(Mlp(4, 2).double()), drawn(1, 2, 2, 2, 4).requires_grad_()
    probes, inputs = drawn(3, 1, 2, 2, 2, 4), [x, *mlp.parameters()]
    y = mlp(x)
    together = torch.autograd.grad(y, inputs, probes, is_grads_batched=True, retain_graph=True)
    for i, probe in enumerate(probes):
        for ours, theirs in zip(together, torch.autograd.grad(y, inputs, probe, retain_graph=True), strict=True):
            torch.testing.assert_close(ours[i], theirs)


def test_narrow_formats_lose_nothing_by_the_sums_over_chunks(monkeypatch):
    mlp, x, probe = perturbed(Mlp(8, 4)), drawn(1, 4, 16, 16, 8, dtype=torch.float32), drawn(1, 4, 16, 16, 8, seed=1)
    exact = gradients(mlp.double(), x.double(), probe)
    narrow = [t.bfloat16() for t in (x, probe)]
    mlp.bfloat16()
    monkeypatch.setattr(cpu, "BYTES", 2048)
    in_several = gradients(mlp, *narrow)
    with cpu.off():
        in_one = gradients(mlp, *narrow)
    for several, whole, right in zip(in_several, in_one, exact, strict=True):
        assert several.dtype == torch.bfloat16
        errors = [(rounded.double() - right).norm() / right.norm() for rounded in (several, whole)]
        assert errors[0] <= 1.5 * errors[1] + 1e-3


@pytest.mark.parametrize("mode", ["training", "inference"])
def test_autocast_reaches_both_passes(mode):
    mlp, x = Mlp(8, 4), drawn(1, 2, 2, 2, 8, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode(mode == "inference"):
        y = mlp(x)
    assert y.dtype == torch.bfloat16
    if mode == "training":
        y.float().sum().backward()
        assert x.grad.dtype == mlp.fc1.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("approximate", [None, "none", "tanh"])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_maps_of_onednn_compute_the_same(bias, approximate, dtype, tolerance):
    if not onednn.faster(dtype):
        pytest.skip(f"this processor has no faster {dtype} of oneDNN")
    layer, x = nn.Linear(24, 40, bias=bias).to(dtype), drawn(3, 7, 24, dtype=torch.float32).to(dtype)
    with torch.inference_mode():
        wanted = layer.double()(x.double())
        wanted = wanted if approximate is None else nn.functional.gelu(wanted, approximate=approximate)
        layer.to(dtype)
        run = onednn.linear(layer, x, approximate)
        assert run is not layer
        for part, want in zip(x.split(2), wanted.split(2), strict=True):
            y = run(part)
            assert y.dtype == dtype
            torch.testing.assert_close(y.double(), want, atol=tolerance, rtol=tolerance)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert onednn.linear(nn.Linear(24, 4), x.float())(x.float()).dtype == torch.bfloat16


@pytest.mark.parametrize("change", ["a hook", "another layer"])
def test_a_linear_map_that_is_not_plain_is_called(change, monkeypatch):
    monkeypatch.setattr(onednn, "faster", lambda dtype: True)
    layer = nn.Linear(4, 4)
    if change == "a hook":
        layer.register_forward_hook(lambda module, inputs, output: output + 1)
    else:
        layer = nn.Sequential(layer)
    x = drawn(2, 4, dtype=torch.float32)
    assert onednn.linear(layer, x) is layer
    torch.testing.assert_close(onednn.linear(layer, x, "none")(x), nn.functional.gelu(layer(x)))


@pytest.mark.parametrize("change", ["a hook", "another layer"])
def test_whoever_changes_a_part_of_the_mlp_is_heard(change):
    mlp, seen = Mlp(4, 2).eval(), []
    if change == "a hook":
        mlp.fc1.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    else:
        mlp.act = nn.ReLU()
    x = drawn(1, 2, 3, 4, 4, dtype=torch.float32)
    with torch.inference_mode(change == "another layer"):
        y = mlp(x)
    if change == "a hook":
        assert seen == [(1, 2, 3, 4, 8)]
    else:
        torch.testing.assert_close(y, mlp.fc2(mlp.fc1(x).relu()))


@given(
    blocks=st.tuples(*[st.integers(1, 3)] * 3),
    block=st.tuples(*[st.integers(1, 3)] * 3),
    dim=st.integers(1, 4),
    clips=st.integers(1, 2),
)
def test_pooling_has_pytorchs_output_and_gradients(blocks, block, dim, clips):
    shape = (n * size for n, size in zip(blocks, block, strict=True))
    values = drawn(clips, *shape, dim), drawn(dim, 1, *block, seed=1), drawn(dim, seed=2)
    probe, results = drawn(clips, *blocks, dim, seed=3), []

    def by_pytorch(x, weight, bias):
        return conv3d(x.movedim(-1, 1), weight, bias, stride=block, groups=dim).movedim(1, -1)

    for pool in (pooled, by_pytorch):
        inputs = [value.clone().requires_grad_() for value in values]
        y = pool(*inputs)
        results.append((y, *torch.autograd.grad(y, inputs, probe)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_whole_model_is_the_same_in_chunks(small_chunks):
    model = perturbed(
        backbones.create("dualformer_tiny", 3, changes={**SMALL, "drop_path": 0.0, "dropout": 0.0}).double()
    )
    clip, probe = drawn(2, 3, 4, 64, 64), drawn(2, 3, seed=1)
    in_chunks = gradients(model, clip, probe)
    with cpu.off():
        in_one = gradients(model, clip, probe)
    for ours, theirs in zip(in_chunks, in_one, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-6)


def test_one_door_shuts_every_form(monkeypatch):
    """With it shut no chunk is cut and no backward pass of ours runs."""
    called, chunk_length = [], cpu.chunk_length

    def noted(name, function, *arguments):
        called.append(name)
        return function(*arguments)

    own = depthwise._Depthwise, learned_bias._LearnedBias, mlp_form._Mlp
    for form in own:
        monkeypatch.setattr(form, "forward", staticmethod(functools.partial(noted, form, form.forward)))
    monkeypatch.setattr(cpu, "chunk_length", functools.partial(noted, "chunks", chunk_length))
    model = backbones.create("dualformer_tiny", 3, changes={**SMALL, "attention.L.relative_bias": True})
    clip = drawn(1, 3, 4, 64, 64, dtype=torch.float32)
    with cpu.off(), pytest.raises(KeyError), cpu.off():
        raise KeyError("the door is as it was before, whatever happened")
    for shut in (True, False):
        called.clear()
        with cpu.off() if shut else contextlib.nullcontext():
            model(clip).sum().backward()
            with torch.inference_mode():
                model(clip)
        assert set(called) == (set() if shut else {*own, "chunks"})
