"""The MLP of a block; on a CPU in a form that never holds its hidden layer whole where nothing needs it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attention_zoo import cpu, dispatch
from attention_zoo.cpu import onednn
from attention_zoo.cpu.mlp import hidden_once
from backbones.config import Activation


class QuickGelu(nn.Module):
    """x sigmoid(1.702 x), of CLIP."""

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": nn.GELU, "gelu_tanh": partial(nn.GELU, "tanh"), "relu": nn.ReLU, "quick_gelu": QuickGelu}


class Mlp(nn.Module):
    """Two linear maps with an activation between them, token by token; to another width where `out_dim` is named.

    Args:
        ratio: width of the hidden layer over `dim`.
        rank: of both maps, over `dim`: each becomes a product of two thinner ones; None for whole maps. DualFormer's
            paper names this as a limitation's remedy and gives no rank.
    """

    def __init__(
        self,
        dim: int,
        ratio: float | int,
        out_dim: int | None = None,
        activation: Activation = "gelu",
        rank: float | None = None,
    ):
        super().__init__()
        hidden, rank = int(dim * ratio), None if rank is None else max(1, int(dim * rank))
        self.fc1, self.fc2 = _map(dim, hidden, rank), _map(hidden, out_dim or dim, rank)
        self.act = ACTIVATIONS[activation]()

    @classmethod
    def of(cls, config: Any, dim: int, out_dim: int | None = None) -> Mlp:
        """The MLP of a block whose model's config has `mlp_ratio`, `mlp_rank` and, if it may vary, `activation`."""
        return cls(dim, config.mlp_ratio, out_dim, getattr(config, "activation", "gelu"), config.mlp_rank)

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n _d"]:
        if not cpu.eager(x) or not self._as_built():
            return self.fc2(self.act(self.fc1(x)))
        if not torch.is_grad_enabled():
            return self._in_chunks(x)
        tensors = dispatch.autocast(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
        return hidden_once(*tensors, self.act.approximate)

    def _as_built(self) -> bool:
        """Whether the parts are what the chunked forms take them for: nobody has put in others, or hooks."""
        parts = (self.fc1, nn.Linear), (self.act, nn.GELU), (self.fc2, nn.Linear)
        return all(type(part) is kind and not dispatch.watched(part) for part, kind in parts)

    def _in_chunks(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n _d"]:
        tokens = x.flatten(0, -2)
        parts = tokens.split(cpu.chunk_length(x, len(tokens), self.fc1.out_features, 2 * self.fc1.weight.numel()))
        widen, narrow = onednn.linear(self.fc1, x, self.act.approximate), onednn.linear(self.fc2, x)
        return cpu.joined((narrow(widen(part)) for part in parts), tokens).view(*x.shape[:-1], -1)

    def macs(self, tokens: int) -> int:
        return tokens * sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Linear))


def _map(dim: int, out_dim: int, rank: int | None) -> nn.Module:
    if rank is None:
        return nn.Linear(dim, out_dim)
    return nn.Sequential(nn.Linear(dim, rank, bias=False), nn.Linear(rank, out_dim))
