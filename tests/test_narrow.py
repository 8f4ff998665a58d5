"""Attention in bfloat16 in chunks: what fused attention computes, wherever the chunks end."""

import pytest
import torch

from attention_zoo import kernels
from attention_zoo.cpu import narrow


@pytest.mark.parametrize("most", [1, 3000, 2**21])  # a row, some rows or sequences, all at once
@pytest.mark.parametrize("of_bias", [None, (1, 1), (1, 3), (4, 1), (4, 3)])
@pytest.mark.parametrize("n, s", [(40, 40), (37, 5)])
def test_chunks_give_what_float64_gives(n, s, of_bias, most, monkeypatch):
    monkeypatch.setattr(narrow, "BYTES", most)
    generator = torch.Generator().manual_seed(n)

    def drawn(length):  # as schemes hand them over: a view, heads moved to the front
        return torch.randn(4, length, 3, 16, generator=generator).bfloat16().transpose(1, 2)

    q, k, v = drawn(n), drawn(s), drawn(s)
    bias = None
    if of_bias is not None:
        bias = torch.randn(*of_bias, n, s, generator=generator).bfloat16()
        bias[..., 1:][torch.rand(bias[..., 1:].shape, generator=generator) < 0.3] = -torch.inf
    wanted = kernels.attend(*(x.double() for x in (q, k, v)), bias, kernel="reference")
    with torch.no_grad():
        got = narrow.attend(q, k, v, bias)
    assert got.dtype == torch.bfloat16
    assert (got.double() - wanted).abs().max() < 2e-2 * wanted.abs().max()


@pytest.mark.parametrize("level", [-300, 300])  # 2 to the power of which is 0 or infinite
@pytest.mark.parametrize("masked", [False, True])
def test_scores_of_any_size_have_shares(level, masked):
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 2, 40, 16, generator=generator).bfloat16() for _ in range(3))
    q[..., 0], k[..., 0] = 4, level
    bias = torch.zeros(1, 1, 40, 40).masked_fill(torch.eye(40) > 0, -torch.inf).bfloat16() if masked else None
    wanted = kernels.attend(*(x.double() for x in (q, k, v)), bias, kernel="reference")
    with torch.no_grad():
        got = narrow.attend(q, k, v, bias)
    assert got.isfinite().all()
    assert (got.double().mean((2, 3)) - wanted.mean((2, 3))).abs().max() < 0.2  # 8 bits of 300 tell little apart


def test_auto_takes_them_where_the_processor_multiplies_so_and_nothing_is_kept(monkeypatch):
    seen = []
    monkeypatch.setattr(narrow, "multiplies", lambda: True)
    monkeypatch.setattr(narrow, "attend", lambda q, k, v, bias: seen.append(q.dtype) or q)
    x = torch.randn(1, 2, 40, 16)
    with torch.no_grad():
        kernels.attend(*[x.bfloat16()] * 3)
        assert seen == [torch.bfloat16]
        kernels.attend(*[x.bfloat16()] * 3, kernel="sdpa")
        kernels.attend(*[x] * 3)
        kernels.attend(*[x[:, :, : kernels.SHORT].bfloat16()] * 3)
        monkeypatch.setattr(narrow, "multiplies", lambda: False)
        kernels.attend(*[x.bfloat16()] * 3)
    monkeypatch.setattr(narrow, "multiplies", lambda: True)
    kernels.attend(*[x.bfloat16().requires_grad_()] * 3)
    assert len(seen) == 1
