"""Linear attention: a kernel in place of the softmax, so that keys meet values before queries; linear in the tokens."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attention_zoo.grid import Grid
from attention_zoo.kernels import AUTO
from attention_zoo.projected import Projected
from attention_zoo.scheme import register


@register("linear")
class LinearAttention(Projected):
    """Source: Sana, arXiv:2410.10629, Sec. 3.2, and Sana-Video, arXiv:2509.24695; code: diffusers 0.37.0 (Apache-2.0).

    o = f(q) (f(k)' v) / (f(q) . sum f(k)), f = ReLU, no scale, per head. `norm` divides queries and keys by the root
    mean square over the whole width first (all heads together); `rotary` turns f(q) and f(k) by their place, in the
    numerator alone, so that weights no longer sum to one. Sana-Video has both, Sana neither.

    There is no softmax, so every kernel computes the same. A query whose f(q) is zero finds nothing.
    """

    example = {}
    growth = {"frames": (1, 1), "size": (1, 1)}
    loose_reach = "a ReLU shuts some off"

    def __init__(
        self, dim: int, num_heads: int, grid: Grid, *, norm: bool = False, rotary: bool = False, kernel: str = AUTO
    ):
        if rotary and dim // num_heads % 2:
            raise ValueError(f"rotary positions turn pairs of channels; {dim} / {num_heads} channels per head are odd")
        super().__init__(dim, num_heads, grid, kernel)
        self.rotary = rotary
        self.norm_q, self.norm_k = (nn.RMSNorm(dim, eps=1e-5) if norm else None for _ in range(2))

    def attention(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> Float[Tensor, "b n m c"]:
        if self.norm_q is not None:
            q, k = (norm(part.flatten(2)).view(v.shape) for norm, part in ((self.norm_q, q), (self.norm_k, k)))
        q, k, v = (part.transpose(1, 2) for part in (q.relu(), k.relu(), v))
        angles = rotations(grid, q.shape[-1], q.device) if self.rotary else None
        return linear_attention(q, k, v, 1e-15, angles).transpose(1, 2)

    def products(self) -> int:
        return linear_attention_macs(self.grid.tokens, self.dim, self.num_heads)


def linear_attention(
    q: Float[Tensor, "b m n c"],
    k: Float[Tensor, "b m n c"],
    v: Float[Tensor, "b m n c"],
    least: float,
    angles: Float[Tensor, "n p"] | None = None,
) -> Float[Tensor, "b m n c"]:
    """Of queries and keys that are positive already; `least` is added to the denominator.

    In float32 at least: sums over all tokens overflow float16, and `least` is zero in it.
    """
    narrow = v.dtype
    q, k, v = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (q, k, v))
    weights = q @ k.sum(2)[..., None] + least
    if angles is not None:
        q, k = turned(q, angles), turned(k, angles)
    return (q @ (k.mT @ v) / weights).to(narrow)


def linear_attention_macs(tokens: int, dim: int, num_heads: int) -> int:
    """Both products of the numerator, and the denominator."""
    return 2 * tokens * dim * (dim // num_heads) + tokens * dim


def rotations(grid: Grid, channels: int, device: torch.device) -> Float[Tensor, "n p"]:
    """The angle of each pair of channels at each token: a third of the channels for each axis, time has the rest."""
    space = 2 * (channels // 6)
    sizes = channels - 2 * space, space, space
    angles = []
    for axis, (n, size) in enumerate(zip(grid, sizes, strict=True)):
        speed = 10000 ** (-torch.arange(0, size, 2, dtype=torch.float64, device=device) / max(size, 1))
        angle = torch.arange(n, dtype=torch.float64, device=device)[:, None] * speed
        angles.append(angle.view([n if a == axis else 1 for a in range(3)] + [-1]).expand(*grid, -1))
    return torch.cat(angles, -1).flatten(0, 2)


def turned(x: Float[Tensor, "b m n c"], angles: Float[Tensor, "n p"]) -> Float[Tensor, "b m n c"]:
    """Each pair of neighbouring channels, as a vector of a plane, turned by its angle."""
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
