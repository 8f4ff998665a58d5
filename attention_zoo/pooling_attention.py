"""Pooling attention: queries, keys and values are pooled by small convolutions, so that fewer tokens attend to fewer.

The only scheme here whose result may have another grid (that of the pooled queries) and another width than its input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from attention_zoo import cpu
from attention_zoo.depthwise import depthwise
from attention_zoo.grid import Grid, pooling_kernel
from attention_zoo.kernels import AUTO, attend
from attention_zoo.scheme import register
from attention_zoo.sequence import heads, joined

KEYS = 7  # rows and columns that MViT's adaptive strides leave of every key map of a 224-pixel clip
EPS = 1e-6


class Pool(nn.Module):
    """A depthwise convolution shared by all heads, then a norm over a head's width; class tokens are only normed."""

    def __init__(self, width: int, kernel: Grid, stride: Grid, eps: float):
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(width, 1, *kernel))
        self.norm = nn.LayerNorm(width, eps)
        nn.init.trunc_normal_(self.weight, std=0.02)

    @property
    def kernel_size(self) -> Grid:
        return Grid(*self.weight.shape[2:])

    def out_grid(self, grid: Sequence[int]) -> Grid:
        return Grid(
            *((n + 2 * (k // 2) - k) // s + 1 for n, k, s in zip(grid, self.kernel_size, self.stride, strict=True))
        )

    def forward(self, x: Float[Tensor, "b m n c"], grid: Sequence[int]) -> tuple[Float[Tensor, "b m s c"], Grid]:
        """Heads stay side by side, where the linear map left them, as channels of one convolution."""
        m, p, tokens = x.shape[1], x.shape[2] - math.prod(grid), x.transpose(1, 2)
        maps = tokens[:, p:].flatten(2).unflatten(1, tuple(grid))
        y = depthwise(maps, self.weight.repeat(m, 1, 1, 1, 1), None, tuple(self.stride))
        small = Grid(*y.shape[1:4])
        y = y.flatten(1, 3).unflatten(-1, (m, -1))
        return self.norm(torch.cat([tokens[:, :p], y], 1) if p else y).transpose(1, 2), small

    def support(self, grid: Grid) -> Bool[Tensor, "n_out n_in"]:
        """Which tokens each pooled token is made of."""
        axes = []
        for n, m, k, s in zip(grid, self.out_grid(grid), self.kernel_size, self.stride, strict=True):
            first = torch.arange(m)[:, None] * s - k // 2
            place = torch.arange(n)
            axes.append((place >= first) & (place < first + k))
        t, h, w = (axis.float() for axis in axes)
        return torch.kron(torch.kron(t, h), w) > 0

    def macs(self, grid: Grid, num_heads: int) -> int:
        return num_heads * self.out_grid(grid).tokens * self.weight.numel()


@register("pooling")
class PoolingAttention(nn.Module):
    """Source: Fan et al., MViT, arXiv:2104.11227, Sec. 3.1; with `residual` and `relative` Li et al., MViTv2,
    arXiv:2112.01526, Sec. 4.1; the class token's exceptions as in their released code (facebookresearch/SlowFast,
    Apache-2.0).

    Args:
        query_kernel: size of the convolution that pools the queries; None does not pool them.
        query_stride: of that convolution; the result has the grid that it leaves.
        key_kernel: size of the convolutions of keys and values; None stands for the stride plus one where the stride is
            above one, and one elsewhere. Where kernel and stride are all one nothing is pooled.
        key_stride: of those; None stands for MViT's adaptive strides, which leave about 7x7 places of each frame.
        out_dim: width of the result, None for `dim`. The heads divide it.
        residual: adds the pooled queries to what they gathered, but for class tokens.
        relative: decomposed relative positions, a table for each axis, added to the scores of the map.
        eps: of the norms after pooling (MultiTrain has PyTorch's 1e-5).

    Class tokens take part in attention, unpooled. A query reads only what the convolutions of keys and values reach:
    with stride 8 and kernel 3, 9 of 64 places of a frame.
    """

    example = dict(query_kernel=(3, 3, 3), key_stride=(1, 2, 2), residual=True, relative=True)
    takes_prefix = True
    growth = {"frames": (2, 2), "size": (1, 2)}
    inert = ("pool_k.norm.bias",)  # added to all keys alike, it moves all scores of a query alike

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: Grid,
        *,
        query_kernel: tuple[int, int, int] | None = None,
        query_stride: tuple[int, int, int] = (1, 1, 1),
        key_kernel: tuple[int, int, int] | None = (3, 3, 3),
        key_stride: tuple[int, int, int] | None = None,
        out_dim: int | None = None,
        residual: bool = False,
        relative: bool = False,
        eps: float = EPS,
        kernel: str = AUTO,
    ):
        super().__init__()
        self.dim, self.num_heads, self.grid, self.kernel = dim, num_heads, grid, kernel
        self.out_dim, self.residual = out_dim or dim, residual
        if self.out_dim % num_heads:
            raise ValueError(f"num_heads {num_heads} does not divide out_dim {self.out_dim}")
        query_stride = Grid.of(query_stride, "query_stride")
        key_stride = adaptive(grid) if key_stride is None else Grid.of(key_stride, "key_stride")
        if query_kernel is None and max(query_stride) > 1:
            raise ValueError(f"query_stride {tuple(query_stride)} needs a query_kernel, such as (3, 3, 3)")
        query_kernel = None if query_kernel is None else Grid.of(query_kernel, "query_kernel")
        key_kernel = pooling_kernel(key_stride) if key_kernel is None else Grid.of(key_kernel, "key_kernel")
        width = self.out_dim // num_heads
        self.qkv, self.proj = nn.Linear(dim, 3 * self.out_dim), nn.Linear(self.out_dim, self.out_dim)
        self.pool_q = _pool(width, query_kernel, query_stride, eps)
        self.pool_k, self.pool_v = (_pool(width, key_kernel, key_stride, eps) for _ in range(2))
        self.out_grid, self.key_grid = _pooled_grid(self.pool_q, grid), _pooled_grid(self.pool_k, grid)
        self.tables = nn.ParameterDict() if relative else None
        for axis, n_q, n_k in zip("thw", self.out_grid, self.key_grid, strict=True) if relative else ():
            self.tables[axis] = nn.Parameter(torch.empty(2 * max(n_q, n_k) - 1, width))
            nn.init.trunc_normal_(self.tables[axis], std=0.02)

    def forward(
        self, x: Float[Tensor, "b t h w d"], prefix: Float[Tensor, "b p d"] | None = None
    ) -> Float[Tensor, "b _t _h _w _d"] | tuple[Float[Tensor, "b _t _h _w _d"], Float[Tensor, "b p _d"]]:
        grid, tokens = Grid(*x.shape[1:4]), x.flatten(1, 3)
        p = 0 if prefix is None else prefix.shape[1]
        tokens = torch.cat([prefix, tokens], 1) if p else tokens
        q, k, v = heads(self.qkv(tokens), 3, self.num_heads)
        q, q_grid = (q, grid) if self.pool_q is None else self.pool_q(q, grid)
        k, k_grid = (k, grid) if self.pool_k is None else self.pool_k(k, grid)
        v, _ = (v, grid) if self.pool_v is None else self.pool_v(v, grid)
        if self.tables is None:
            y = attend(q, k, v, kernel=self.kernel)
        else:
            y = self._relative(q, k, v, self._terms(q[:, :, p:], q_grid, k_grid), k_grid)
        if self.residual:
            y = torch.cat([y[:, :, :p], y[:, :, p:] + q[:, :, p:]], 2) if p else y + q
        y = self.proj(joined(y))
        maps = y[:, p:].unflatten(1, tuple(q_grid))
        return (maps, y[:, :p]) if p else maps

    def _terms(self, q: Float[Tensor, "b m n c"], q_grid: Grid, k_grid: Grid) -> list[Float[Tensor, "b m n _"]]:
        """Of each axis the products of each query with the few rows that its place can meet there."""
        q = q.unflatten(2, tuple(q_grid))
        sizes = enumerate(zip("thw", q_grid, k_grid, strict=True), 2)
        return [_products(q, i, _rows(self.tables[axis], n_q, n_k)).flatten(2, 4) for i, (axis, n_q, n_k) in sizes]

    def _relative(
        self,
        q: Float[Tensor, "b m n c"],
        k: Float[Tensor, "b m s c"],
        v: Float[Tensor, "b m s c"],
        terms: Sequence[Float[Tensor, "b m _ _"]],
        k_grid: Grid,
    ) -> Float[Tensor, "b m n c"]:
        """Attention with the terms added to the scores; class tokens have none.

        On a CPU nothing as large as the scores is written for it: with its terms behind it, a query meets keys that
        have a one behind them for their place on each axis. Whoever counts operators sees the sum, which no product
        pays for.
        """
        p, c = q.shape[2] - terms[0].shape[2], q.shape[-1]
        if self.kernel not in (AUTO, "sdpa") or not cpu.eager(q):
            t, h, w = terms
            bias = t[..., :, None, None] + h[..., None, :, None] + w[..., None, None, :]
            return attend(q, k, v, pad(bias.flatten(3), (p, 0, p, 0)), kernel=self.kernel)
        places = pad(_places(k_grid).to(k), (0, 0, p, 0)).expand(*k.shape[:2], -1, -1)
        width = c + sum(k_grid)  # the square root of which `attend` divides by
        q = torch.cat([q * (width / c) ** 0.5, pad(torch.cat(terms, -1) * width**0.5, (0, 0, p, 0))], -1)
        # Fused attention takes values as wide as keys.
        return attend(q, torch.cat([k, places], -1), pad(v, (0, width - c)), kernel=self.kernel)[..., :c]

    def macs(self, prefix: int = 0) -> int:
        """Projections, convolutions, the products of pooled queries with pooled keys, and the relative terms."""
        n, queries, keys = self.grid.tokens + prefix, self.out_grid.tokens + prefix, self.key_grid.tokens + prefix
        pools = sum(pool.macs(self.grid, self.num_heads) for pool in self._pools() if pool is not None)
        relative = 0 if self.tables is None else self.out_grid.tokens * sum(self.key_grid) * self.out_dim
        linear = 3 * n * self.dim * self.out_dim + queries * self.out_dim**2
        return linear + pools + relative + 2 * queries * keys * self.out_dim

    def reach(self, prefix: int = 0) -> Bool[Tensor, "n_out n_in"]:
        """A query reaches what it is pooled from, and all that any key or value is pooled from."""
        n = self.grid.tokens
        whole = torch.eye(n, dtype=torch.bool)
        queries, *read = (whole if pool is None else pool.support(self.grid) for pool in self._pools())
        keys = (read[0] | read[1]).any(0)
        out = torch.zeros(prefix + len(queries), prefix + n, dtype=torch.bool)
        out[prefix:, prefix:] = queries | keys
        out[:prefix, prefix:] = keys
        out[:, :prefix] = True
        return out

    def _pools(self) -> tuple[Pool | None, Pool | None, Pool | None]:
        return self.pool_q, self.pool_k, self.pool_v


def adaptive(grid: Grid) -> Grid:
    """MViT's strides for keys and values: frames stay, of height and width about `KEYS` are left."""
    return Grid(1, max(1, grid.h // KEYS), max(1, grid.w // KEYS))


def _pool(width: int, kernel: Grid | None, stride: Grid, eps: float) -> Pool | None:
    if kernel is None or (math.prod(kernel) == 1 and math.prod(stride) == 1):
        return None
    return Pool(width, kernel, stride, eps)


def _pooled_grid(pool: Pool | None, grid: Grid) -> Grid:
    return grid if pool is None else pool.out_grid(grid)


def _places(grid: Grid) -> Float[Tensor, "s _"]:
    """For each place of a map a one in the column of its time, of its row and of its column."""
    t, h, w = (torch.eye(n) for n in grid)
    whole = [torch.ones(n, 1) for n in grid]
    axes = (t, whole[1], whole[2]), (whole[0], h, whole[2]), (whole[0], whole[1], w)
    return torch.cat([torch.kron(torch.kron(a, b), c) for a, b, c in axes], 1)


def _products(q: Float[Tensor, "b m t h w c"], axis: int, rows: Float[Tensor, "a s c"]) -> Float[Tensor, "b m t h w s"]:
    """Products of each query with the rows of its place on one axis of the map."""
    along = q.movedim(axis, 2)
    products = along.flatten(3, 4) @ rows.mT
    return products.unflatten(3, along.shape[3:5]).movedim(2, axis)


def _rows(table: Float[Tensor, "n c"], queries: int, keys: int) -> Float[Tensor, "_q _k c"]:
    """The row of a table for each place of a query and of a key on one axis."""
    query_places = torch.arange(queries, device=table.device)[:, None] * max(keys / queries, 1)
    key_places = torch.arange(keys, device=table.device) * max(queries / keys, 1)
    distance = (query_places - key_places + (keys - 1) * max(queries / keys, 1)).long()
    return _resized(table, 2 * max(queries, keys) - 1)[distance]


def _resized(table: Float[Tensor, "n c"], length: int) -> Float[Tensor, "m c"]:
    """A table of another length, linearly interpolated, for clips of another size."""
    if len(table) == length:
        return table
    return interpolate(table.T[None], size=length, mode="linear", align_corners=False)[0].T
