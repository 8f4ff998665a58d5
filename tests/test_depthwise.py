"""The depthwise convolution of position encodings and pooling: its own backward pass against PyTorch's."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import conv3d

from attention_zoo.depthwise import depthwise


def by_pytorch(x, weight, bias, stride=1):
    padding = tuple(n // 2 for n in weight.shape[2:])
    y = conv3d(x.permute(0, 4, 1, 2, 3), weight, bias, stride, padding, groups=len(weight))
    return y.permute(0, 2, 3, 4, 1)


@given(
    grid=st.tuples(*[st.integers(1, 6)] * 3),
    kernel=st.tuples(*[st.integers(1, 5)] * 3),
    stride=st.tuples(*[st.integers(1, 4)] * 3) | st.just((1, 1, 1)),
    dim=st.integers(1, 5),
    clips=st.integers(1, 3),
)
def test_output_and_gradients_are_pytorchs(grid, kernel, stride, dim, clips):
    random = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    values, probe, results = (drawn(clips, *grid, dim), drawn(dim, 1, *kernel), drawn(dim)), None, []
    for convolution in (depthwise, by_pytorch):
        inputs = [value.clone().requires_grad_() for value in values]
        y = convolution(*inputs, stride)
        probe = drawn(*y.shape) if probe is None else probe
        results.append((y, *torch.autograd.grad(y, inputs, probe)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradients_by_finite_differences():
    random = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape, generator=random, dtype=torch.float64, requires_grad=True)
        for shape in ((1, 2, 3, 2, 2), (2, 1, 3, 1, 3), (2,))
    )
    assert torch.autograd.gradcheck(depthwise, (x, weight, bias))


def test_what_needs_no_gradient_gets_none():
    x, weight = torch.randn(1, 2, 2, 2, 3), torch.randn(3, 1, 3, 3, 3, requires_grad=True)
    y = depthwise(x, weight, None)
    (gradient,) = torch.autograd.grad(y.sum(), weight)
    assert gradient.shape == weight.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_number_formats_are_kept(dtype):
    x = torch.randn(2, 4, 5, 3, 8, dtype=dtype, requires_grad=True)
    weight = torch.randn(8, 1, 3, 3, 3, dtype=dtype, requires_grad=True)
    y = depthwise(x, weight, None)
    y.float().sum().backward()
    assert y.dtype == x.grad.dtype == weight.grad.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("of_x", [torch.float32, torch.bfloat16, torch.float64])
def test_autocast_narrows_it_as_it_does_pytorchs(dtype, of_x):
    random = torch.Generator().manual_seed(0)
    values = [torch.randn(*shape, generator=random) for shape in ((2, 4, 5, 3, 8), (8, 1, 3, 3, 3), (8,))]
    values = [value.double() for value in values] if of_x == torch.float64 else [values[0].to(of_x), *values[1:]]
    results = []
    for convolution in (depthwise, by_pytorch):
        inputs = [value.clone().requires_grad_() for value in values]
        with torch.autocast("cpu", dtype):
            y = convolution(*inputs)
        results.append((y, *torch.autograd.grad(y.float().square().sum(), inputs)))
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.5)
