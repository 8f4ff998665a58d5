"""Two linear maps with GELU between them, trained on a CPU.

The hidden layer is four times as large as the tokens. Eager PyTorch writes it, reads and writes it for the activation
and reads it again, and for the backward pass keeps it twice, before and after the activation. Here the maps and the
activation run on chunks that stay in the cache. Training keeps the hidden layer once, before the activation, which the
backward pass applies again: one elementwise pass instead of a tensor four times the tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attention_zoo import cpu

_aten = torch.ops.aten


def hidden_once(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, approximate: str) -> Tensor:
    """x (..., d) through maps with weights (hidden, d) and (out, hidden); `approximate` is that of GELU."""
    return _Mlp.apply(x, w1, b1, w2, b2, approximate)


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, approximate: str) -> Tensor:
        tokens = x.flatten(0, -2)
        kept = any(ctx.needs_input_grad)
        size = cpu.chunk_length(x, len(tokens), len(w1), 2 * w1.numel())
        hidden = tokens.new_empty(len(tokens) if kept else min(size, len(tokens)), len(w1))
        y = tokens.new_empty(len(tokens), len(w2))
        for start in range(0, len(tokens), size):
            stop = min(start + size, len(tokens))
            h = hidden[start:stop] if kept else hidden[: stop - start]
            torch.addmm(b1, tokens[start:stop], w1.t(), out=h)
            torch.addmm(b2, _aten.gelu(h, approximate=approximate), w2.t(), out=y[start:stop])
        ctx.save_for_backward(x, hidden, w1, w2)
        ctx.approximate = approximate
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, w1, w2 = ctx.saved_tensors
        needs_x, needs_w1, needs_b1, needs_w2, needs_b2, _ = ctx.needs_input_grad
        how = {"approximate": ctx.approximate}
        tokens, gradient = x.flatten(0, -2), gradient.reshape(-1, len(w2))
        functorch = torch._C._functorch
        if functorch.is_legacy_batchedtensor(gradient) or functorch.is_batchedtensor(gradient):
            # Many gradients at once, which cannot be added in place.
            grad_hidden = _aten.gelu_backward(gradient @ w2, hidden, **how)
            grad_w1 = grad_hidden.transpose(0, 1) @ tokens
            grad_w2 = gradient.transpose(0, 1) @ _aten.gelu(hidden, **how)
            return (grad_hidden @ w1).reshape(x.shape), grad_w1, grad_hidden.sum(0), grad_w2, gradient.sum(0), None
        grad_x = torch.empty_like(tokens) if needs_x else None
        grad_w1, grad_b1 = _zeros(w1) if needs_w1 else None, _zeros(w1[:, 0]) if needs_b1 else None
        grad_w2 = _zeros(w2) if needs_w2 else None
        size = cpu.chunk_length(x, len(tokens), 2 * len(w1), 4 * w1.numel())  # weights and their gradients
        for start in range(0, len(tokens), size):
            part = slice(start, start + size)
            if needs_w2:
                _add_product(grad_w2, gradient[part].t(), _aten.gelu(hidden[part], **how))
            if needs_x or needs_w1 or needs_b1:
                grad_hidden = _aten.gelu_backward(gradient[part] @ w2, hidden[part], **how)
                if needs_w1:
                    _add_product(grad_w1, grad_hidden.t(), tokens[part])
                if needs_b1:
                    grad_b1 += grad_hidden.sum(0)
                if needs_x:
                    torch.mm(grad_hidden, w1, out=grad_x[part])
        return (
            grad_x.view_as(x) if needs_x else None,
            *(None if sums is None else sums.to(x.dtype) for sums in (grad_w1, grad_b1, grad_w2)),
            gradient.sum(0) if needs_b2 else None,
            None,
        )


def _zeros(like: Tensor) -> Tensor:
    """Sums over chunks; in float32 at least, so that narrow formats round each product once, as in one piece."""
    return torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))


def _add_product(sums: Tensor, a: Tensor, b: Tensor) -> None:
    if sums.dtype == a.dtype:
        sums.addmm_(a, b)
    else:
        sums += a @ b
