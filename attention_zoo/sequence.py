"""Plain multi-head self-attention over batches of token sequences: the part that most schemes share."""

from __future__ import annotations

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from attention_zoo.kernels import attend


def self_attention(
    x: Float[Tensor, "s n d"],
    qkv: nn.Linear,
    proj: nn.Linear,
    num_heads: int,
    bias: Float[Tensor, "period _ n n"] | None = None,
    *,
    kernel: str,
) -> Float[Tensor, "s n d"]:
    """Each sequence attends to itself. The rows of `qkv` are all queries, then all keys, then all values, head-major.

    `bias` has one entry for every sequence of a period: sequence i takes entry i modulo the period.
    """
    periods = 1 if bias is None else bias.shape[0]
    q, k, v = rearrange(qkv(x), "s n (qkv m c) -> qkv s m n c", qkv=3, m=num_heads)
    if periods in (1, x.shape[0]):
        y = attend(q, k, v, bias, kernel=kernel)
    else:
        # The period joins the heads, so that the bias is shared by the clips of a batch instead of copied for each.
        q, k, v = (rearrange(a, "(b g) m n c -> b (g m) n c", g=periods) for a in (q, k, v))
        bias = rearrange(bias.expand(-1, num_heads, -1, -1), "g m n s -> 1 (g m) n s")
        y = rearrange(attend(q, k, v, bias, kernel=kernel), "b (g m) n c -> (b g) m n c", g=periods)
    return proj(rearrange(y, "s m n c -> s n (m c)"))


def self_attention_macs(sequences: int, length: int, dim: int) -> int:
    """Four projections of every token, then scores and weighted sum inside each sequence."""
    return 4 * sequences * length * dim * dim + 2 * sequences * length * length * dim
