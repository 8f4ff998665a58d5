"""Plain multi-head self-attention over batches of token sequences: the part that most schemes share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from attention_zoo.kernels import attend

Groups = Sequence[tuple[int, Float[Tensor, "1 _ n n"] | None]]
"""Sequences that share a bias follow each other: how many, and their bias."""


def self_attention(
    x: Float[Tensor, "s n d"],
    qkv: nn.Linear,
    proj: nn.Linear,
    num_heads: int,
    groups: Groups | None = None,
    *,
    kernel: str,
) -> Float[Tensor, "s n d"]:
    """Each sequence attends to itself.

    The rows of `qkv` are all queries, then all keys, then all values, head-major.
    """
    q, k, v = rearrange(qkv(x), "s n (qkv m c) -> qkv s m n c", qkv=3, m=num_heads)
    groups = groups or [(x.shape[0], None)]
    # One call for each bias: a bias for every sequence would take more memory than all tokens, and time to read.
    parts = zip(*(a.split([count for count, _ in groups]) for a in (q, k, v)), strict=True)
    outputs = [
        rearrange(attend(*part, bias, kernel=kernel), "s m n c -> s n (m c)")
        for part, (_, bias) in zip(parts, groups, strict=True)
    ]
    return proj(outputs[0] if len(outputs) == 1 else torch.cat(outputs))


def self_attention_macs(sequences: int, length: int, dim: int) -> int:
    """Four projections of every token, then scores and weighted sum inside each sequence."""
    return 4 * sequences * length * dim * dim + 2 * sequences * length * length * dim
