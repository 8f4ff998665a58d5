"""Plain multi-head self-attention over batches of token sequences: the part that most schemes share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attention_zoo import cpu
from attention_zoo.cpu import onednn
from attention_zoo.kernels import attend

Groups = Sequence[tuple[int, Float[Tensor, "#s _ n n"] | None]]
"""Sequences of one call follow each other: how many, and the bias that they share, or one for each."""


def self_attention(
    x: Float[Tensor, "s n d"],
    qkv: nn.Linear,
    proj: nn.Linear | None,
    num_heads: int,
    groups: Groups | None = None,
    *,
    kernel: str,
) -> Float[Tensor, "s n d"]:
    """Each sequence attends to itself. Without `proj` the result is what the heads found, side by side.

    The rows of `qkv` are all queries, then all keys, then all values, head-major. Sequences that are views are copied
    first: a linear map of rows that do not follow each other copies them too, and adds its bias in a pass of its own.
    """
    groups = groups or [(x.shape[0], None)]
    counts, biases = zip(*groups, strict=True)
    if cpu.inference(x):  # queries, keys, values, and what was found
        numbers = x.shape[1] * (qkv.out_features + qkv.out_features // 3)
        weights = qkv.weight.numel() + (0 if proj is None else proj.weight.numel())
        make, project = onednn.linear(qkv, x), None if proj is None else onednn.linear(proj, x)
        pieces = (
            (piece.contiguous(), bias)
            for part, bias in zip(x.split(counts), biases, strict=True)
            for piece in part.split(cpu.chunk_length(x, len(part), numbers, weights))
        )
        results = (attended(make(piece), num_heads, bias, kernel) for piece, bias in pieces)
        return cpu.joined(results if project is None else map(project, results), x)
    projected = qkv(x.contiguous())
    if len(groups) == 1:
        result = attended(projected, num_heads, biases[0], kernel)
    else:  # one call for each bias: a bias for every sequence would take more memory than all tokens, and time to read
        parts = zip(projected.split(counts), biases, strict=True)
        result = torch.cat([attended(part, num_heads, bias, kernel) for part, bias in parts])
    return result if proj is None else proj(result)


def attended(
    qkv: Float[Tensor, "s n _"], num_heads: int, bias: Float[Tensor, "#s _ n n"] | None, kernel: str
) -> Float[Tensor, "s n d"]:
    """What each sequence finds in itself, from its queries, keys and values; before the last linear map."""
    return joined(attend(*heads(qkv, 3, num_heads), bias, kernel=kernel))


def heads(x: Float[Tensor, "s n _"], parts: int, num_heads: int) -> tuple[Float[Tensor, "s m n c"], ...]:
    """Splits what a linear map made for queries, keys and values: part-major, then head-major; no copy.

    Unbound where they lie, the gradients of the parts join in one copy; moved to the front first, they take two.
    """
    return tuple(part.transpose(1, 2) for part in x.unflatten(-1, (parts, num_heads, -1)).unbind(2))


def joined(x: Float[Tensor, "s m n c"]) -> Float[Tensor, "s n d"]:
    """What the heads found, side by side."""
    return x.transpose(1, 2).flatten(2)


def self_attention_macs(sequences: int, length: int, dim: int) -> int:
    """Four projections of every token, then scores and weighted sum inside each sequence."""
    return 4 * sequences * length * dim * dim + 2 * sequences * length * length * dim
