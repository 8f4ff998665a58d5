"""Cutting a token map into non-overlapping 3-D windows: padding, cyclic shift, who may attend to whom, position bias.

One rule covers shift and padding: every token of the (padded, rolled) map has a label, and inside a window a token
attends to the tokens of its own label. Labels number the regions that the cyclic shift brought together from opposite
sides of the map; padding has a label of its own, so that no real token attends to it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from attention_zoo import dispatch
from attention_zoo.grid import Grid
from attention_zoo.kernels import of_windows
from attention_zoo.sequence import Groups, attended, self_attention, self_attention_macs

Padding = Literal["masked", "attended"]
ClippedBias = Literal["geometric", "published"]
MASK_BYTES = 128 * 2**20  # of the masks of one launch on CUDA
PADDED = -1  # the label of tokens that padding added


class Tiling(NamedTuple):
    """How windows lie on a grid: the window really used, its shift, and whether padding can be attended to."""

    grid: Grid
    window: Grid
    shift: tuple[int, int, int] = (0, 0, 0)
    padding: Padding = "masked"

    @classmethod
    def fitted(
        cls, grid: Grid, window: Grid, shift: tuple[int, int, int] = (0, 0, 0), padding: Padding = "masked"
    ) -> Tiling:
        """The window clipped to the grid; no shift along an axis that one window covers."""
        used = tuple(s if s and n > size else 0 for n, size, s in zip(grid, window, shift, strict=True))
        return cls(grid, grid.clipped(window), used, padding)

    @property
    def padded(self) -> Grid:
        return self.grid.padded(self.window)

    @property
    def count(self) -> int:
        """Number of windows."""
        return self.grid.ceil_div(self.window).tokens


def check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name} {value!r} is not one of {', '.join(get_args(choices))}")


def grid_of(x: Float[Tensor, "b t h w d"]) -> Grid:
    """The grid of a token map, as integers even under `torch.jit.trace`, where sizes are tensors (fvcore counts so).

    A compiler that leaves sizes open is told these: where windows lie follows from them. A tuple has no open length.
    An exporter leaves open what its caller asked for.
    """
    if torch.compiler.is_exporting():
        return Grid(*x.shape[1:4])
    sizes = (int(n) for n in x.shape[1:4])
    return Grid(*(len((0,) * n) for n in sizes) if torch.compiler.is_compiling() else sizes)


def partition(x: Float[Tensor, "b t h w d"], tiling: Tiling) -> Float[Tensor, "s n d"]:
    """Pads at the end of each axis, rolls by minus the shift, cuts: of every clip, the tokens of each window.

    The batch stays outermost: behind the windows, an open one makes strides that no exporter's solver follows.
    """
    x = _padded(x, tiling)
    if any(tiling.shift):
        x = x.roll([-s for s in tiling.shift], dims=(1, 2, 3))
    wt, wh, ww = tiling.window
    return rearrange(x, "b (nt wt) (nh wh) (nw ww) d -> (b nt nh nw) (wt wh ww) d", wt=wt, wh=wh, ww=ww)


def reverse(windows: Float[Tensor, "s n d"], tiling: Tiling) -> Float[Tensor, "b t h w d"]:
    """Undoes `partition`: joins, rolls back, crops the padding."""
    (nt, nh, nw), (wt, wh, ww) = tiling.grid.ceil_div(tiling.window), tiling.window
    x = rearrange(
        windows,
        "(b nt nh nw) (wt wh ww) d -> b (nt wt) (nh wh) (nw ww) d",
        nt=nt, nh=nh, nw=nw, wt=wt, wh=wh, ww=ww,
    )  # fmt: skip
    if any(tiling.shift):
        x = x.roll(tiling.shift, dims=(1, 2, 3))
    return _cropped(x, tiling)


def _padded(x: Float[Tensor, "b t h w d"], tiling: Tiling) -> Float[Tensor, "b pt ph pw d"]:
    if tiling.padded == tiling.grid:
        return x
    t, h, w = (p - n for p, n in zip(tiling.padded, tiling.grid, strict=True))
    return pad(x, (0, 0, 0, w, 0, h, 0, t))


def _cropped(x: Float[Tensor, "b pt ph pw d"], tiling: Tiling) -> Float[Tensor, "b t h w d"]:
    return x if tiling.padded == tiling.grid else x[:, : tiling.grid.t, : tiling.grid.h, : tiling.grid.w]


def labels(tiling: Tiling, device: torch.device | str = "cpu") -> Int[Tensor, "s n"]:
    """The label of every token of every window."""
    region = torch.zeros(tuple(tiling.padded), dtype=torch.int64, device=device)
    for axis, (n, size, shift) in enumerate(zip(tiling.padded, tiling.window, tiling.shift, strict=True)):
        if shift:
            places = torch.arange(n, device=device)
            cut = (places >= n - size).long() + (places >= n - shift)
            region = region * 3 + cut.view([-1 if a == axis else 1 for a in range(3)])
    if tiling.padding == "masked" and tiling.padded != tiling.grid:
        region = region.masked_fill(_token_numbers(tiling, device) == PADDED, PADDED)
    return _cut(region, tiling.window)


def _token_numbers(tiling: Tiling, device: torch.device | str) -> Int[Tensor, "t h w"]:
    """The padded, rolled map, each token with its number in (t, h, w) order, padding with PADDED."""
    number = torch.arange(tiling.grid.tokens, device=device).view(tuple(tiling.grid))
    t, h, w = (p - n for p, n in zip(tiling.padded, tiling.grid, strict=True))
    return pad(number, (0, w, 0, h, 0, t), value=PADDED).roll([-s for s in tiling.shift], dims=(0, 1, 2))


def _cut(x: Int[Tensor, "t h w"], window: Grid) -> Int[Tensor, "s n"]:
    wt, wh, ww = window
    return rearrange(x, "(nt wt) (nh wh) (nw ww) -> (nt nh nw) (wt wh ww)", wt=wt, wh=wh, ww=ww)


def reach(tiling: Tiling) -> Bool[Tensor, "n n"]:
    """Which tokens of the grid share a window and a label."""
    number, label = _cut(_token_numbers(tiling, "cpu"), tiling.window), labels(tiling)
    pairs = (label[:, :, None] == label[:, None]) & (number[:, :, None] >= 0) & (number[:, None] >= 0)
    s, i, j = pairs.nonzero(as_tuple=True)
    reachable = torch.zeros(tiling.grid.tokens, tiling.grid.tokens, dtype=torch.bool)
    reachable[number[s, i], number[s, j]] = True
    return reachable


def _apart(label: Int[Tensor, "*s n"], dtype: torch.dtype) -> Float[Tensor, "*s 1 n n"]:
    apart = label[..., None, :, None] != label[..., None, None, :]
    return torch.zeros(apart.shape, dtype=dtype, device=label.device).masked_fill(apart, -torch.inf)


class Slab(NamedTuple):
    """Windows that forbid the same pairs: a box in the grid of windows, each range from its first to past its last."""

    t: tuple[int, int]
    h: tuple[int, int]
    w: tuple[int, int]
    forbids: bool

    @property
    def count(self) -> int:
        (t, t_end), (h, h_end), (w, w_end) = self[:3]
        return (t_end - t) * (h_end - h) * (w_end - w)


def slabs(tiling: Tiling) -> list[Slab]:
    """The boxes of windows with one mask each; most windows lie in the first, which forbids nothing."""
    axes = [
        _runs(*sizes, tiling.padding)
        for sizes in zip(tiling.grid, tiling.padded, tiling.window, tiling.shift, strict=True)
    ]
    return [
        Slab(t, h, w, forbids=mixed_t or mixed_h or mixed_w)
        for (t, mixed_t), (h, mixed_h), (w, mixed_w) in itertools.product(*axes)
    ]


def _runs(n: int, padded: int, size: int, shift: int, padding: Padding) -> list[tuple[tuple[int, int], bool]]:
    """Windows along one axis that see the same labels: ranges, and whether the labels in them differ.

    Only the last two can see anything special: the end of the map, which the shift joins to its start, and padding.
    """
    count, mixed = padded // size, 1 if shift else 0
    if padding == "masked" and padded != n:
        moved = count > 1 and n - shift < padded - size  # the shift moved padding out of the last window
        mixed = 2 if moved else 1
    plain = count - mixed  # an exporter may leave it open, so no list is as long as it
    ranges = [((0, plain), False)] if plain else []
    return ranges + [((plain + i, plain + i + 1), True) for i in range(mixed)]


def _order(tiling: Tiling, device: torch.device) -> Int[Tensor, " s"]:
    """The windows, slab after slab."""
    numbers = torch.arange(tiling.count, device=device).view(tuple(tiling.grid.ceil_div(tiling.window)))
    return torch.cat([numbers[slice(*t), slice(*h), slice(*w)].flatten() for t, h, w, _ in slabs(tiling)])


def _places(tiling: Tiling, clips: int, device: torch.device) -> Int[Tensor, "2 n"]:
    """Where each token of each window of each clip lies in the padded clips, slab after slab; and the way back.

    One gather instead of a roll along each axis, a partition and a sorting of the windows, each a copy.
    """
    tokens = tiling.padded.tokens
    numbers = torch.arange(tokens, device=device).view(tuple(tiling.padded))
    rolled = numbers.roll([-s for s in tiling.shift], dims=(0, 1, 2))
    windows = _cut(rolled, tiling.window)[_order(tiling, device)]
    source = (windows[:, None] + tokens * torch.arange(clips, device=device)[:, None]).flatten()
    back = torch.empty_like(source)
    back[source] = torch.arange(len(source), device=device)
    return torch.stack([source, back])


def _slab_mask(tiling: Tiling, slab: Slab, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "1 1 n n"]:
    """What each window of a slab forbids, read off its first."""
    _, nh, nw = tiling.grid.ceil_div(tiling.window)
    first = (slab.t[0] * nh + slab.h[0]) * nw + slab.w[0]
    return _apart(labels(tiling, device)[first : first + 1], dtype)


def _masks(tiling: Tiling, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "s 1 n n"]:
    """What each window that forbids something does, in the order of the slabs."""
    plain = sum(slab.count for slab in slabs(tiling) if not slab.forbids)
    return _apart(labels(tiling, device)[_order(tiling, device)[plain:]], dtype)


def bias_rows(nominal: Grid, used: Grid, rule: ClippedBias, device: torch.device | str = "cpu") -> Int[Tensor, " p"]:
    """The row of the bias table for each (query, key) pair of a window, flattened; tokens in (t, h, w) order.

    Source: Video Swin Transformer, arXiv:2106.13230, Sec. 3.2. Where a window is clipped, the released code takes the
    first rows and columns of the nominal window's indices ("published"); these are right where only time is clipped and
    belong to other offsets where height or width is. "geometric" keeps the offsets right.
    """
    _, h, w = nominal if rule == "published" else used
    number = torch.arange(used.tokens, device=device)
    t, h, w = number // (h * w), number // w % h, number % w
    dt, dh, dw = (a[:, None] - a + (n - 1) for a, n in zip((t, h, w), (nominal.t, nominal.h, nominal.w), strict=True))
    return ((dt * (2 * nominal.h - 1) + dh) * (2 * nominal.w - 1) + dw).flatten()


def _constant(make: Callable[..., Tensor], *key) -> Tensor:
    """A tensor that follows from its key alone, cached outside of any state dict.

    Inside a compiled model it is computed where it is used, which the compiler fuses; under a dispatch mode, which may
    make fake tensors, it is not kept, nor under a tracer, whose second run would find a constant where the first one
    computed. It is made outside of inference mode, whose tensors no training step could use.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or is_in_torch_dispatch_mode():
        return make(*key)
    with torch.inference_mode(False):
        return _cached(make, *key)


# A model of four stages of shifted windows needs up to 80 of them (32x256x256); with fewer it makes all anew, always.
@functools.lru_cache(maxsize=128)
def _cached(make: Callable[..., Tensor], *key) -> Tensor:
    return make(*key)


def forget_constants() -> None:
    """Free what is cached, for whoever goes through many shapes and needs the memory."""
    _cached.cache_clear()


class RelativeBias(nn.Module):
    """A learned bias for every offset inside a window and head, shared by all windows."""

    def __init__(self, window: Grid, num_heads: int, clipped: ClippedBias = "geometric"):
        super().__init__()
        self.window, self.clipped = window, clipped
        offsets = (2 * window.t - 1) * (2 * window.h - 1) * (2 * window.w - 1)
        self.table = nn.Parameter(torch.empty(offsets, num_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, used: Grid) -> Float[Tensor, "1 m n n"]:
        """The bias of a window that may be clipped; queries, then keys."""
        rows = _constant(bias_rows, self.window, used, self.clipped, self.table.device)
        # Contiguous: a kernel that is called for some windows at a time would copy it each time.
        return rearrange(self.table[rows], "(i j) m -> 1 m i j", i=used.tokens).contiguous()


def window_attention(
    x: Float[Tensor, "b t h w d"],
    qkv: nn.Linear,
    proj: nn.Linear,
    num_heads: int,
    tiling: Tiling,
    bias: RelativeBias | None,
    *,
    kernel: str,
    scheme: str,
) -> Float[Tensor, "b t h w d"]:
    """Self-attention inside the windows of `tiling`, those with the same mask together.

    `scheme` is the name under which records may know a faster kernel.
    """
    attend_map = of_windows(kernel, x, qkv.out_features // 3 // num_heads, scheme)
    if attend_map is not None and not (torch.is_grad_enabled() and _sees_padding(tiling)):
        return proj(_on_the_map(attend_map, qkv(x), qkv.bias, num_heads, tiling, bias))
    parts, b = slabs(tiling), x.shape[0]
    shared = None if bias is None else bias(tiling.window)
    launches = x.device.type == "cuda" and not torch.compiler.is_exporting()  # whose sizes depend on the batch
    groups = (_launches if launches else _by_mask)(parts, tiling, shared, x, num_heads)
    if len(parts) == 1:  # of one window, or without a mask
        y = self_attention(
            partition(x, tiling), qkv, proj, num_heads, [(b * tiling.count, groups[0][1])], kernel=kernel
        )
        return reverse(y, tiling)
    if dispatch.observed():
        return _by_clip(x, qkv, proj, num_heads, tiling, groups, kernel)
    groups = [(count * b, _repeated(bias, b, 1)) for count, bias in groups]
    source, back = _constant(_places, tiling, b, x.device)
    padded = _padded(x, tiling)
    windows = _Moved.apply(padded.reshape(-1, padded.shape[-1]), source, back).unflatten(0, (-1, tiling.window.tokens))
    y = self_attention(windows, qkv, proj, num_heads, groups, kernel=kernel)
    y = _Moved.apply(y.flatten(0, 1), back, source).view(b, *tiling.padded, -1)
    return _cropped(y, tiling)


def _by_clip(
    x: Float[Tensor, "b t h w d"],
    qkv: nn.Linear,
    proj: nn.Linear,
    num_heads: int,
    tiling: Tiling,
    groups: Groups,
    kernel: str,
) -> Float[Tensor, "b t h w d"]:
    """The same for who looks at the operators: a compiler fuses these copies, but would look up places in a table."""
    b, order = x.shape[0], _order(tiling, x.device)
    windows = partition(x, tiling).unflatten(0, (b, tiling.count)).index_select(1, order)
    counts, biases = zip(*groups, strict=True)
    parts = [
        attended(part.flatten(0, 1), num_heads, _repeated(bias, b, 0), kernel).unflatten(0, (b, part.shape[1]))
        for part, bias in zip(qkv(windows).split(counts, 1), biases, strict=True)
    ]
    y = proj(torch.cat(parts, 1)).index_select(1, order.argsort())
    return reverse(y.flatten(0, 1), tiling)


def _repeated(bias: Float[Tensor, "s _ n n"] | None, b: int, axis: int) -> Float[Tensor, "_ _ n n"] | None:
    """What windows forbid, for those of every clip: clips run slowest (axis 0) or fastest (1). One serves all."""
    if bias is None or len(bias) == 1:
        return bias
    sizes = [-1] * (bias.ndim + 1)
    sizes[axis] = b
    return bias.unsqueeze(axis).expand(sizes).flatten(0, 1)


def _on_the_map(
    attend: Callable[..., Tensor],
    qkv: Float[Tensor, "b t h w _"],
    padding_value: Tensor | None,
    num_heads: int,
    tiling: Tiling,
    bias: RelativeBias | None,
) -> Float[Tensor, "b t h w d"]:
    """What a kernel that knows windows is told of them; padding is seen as what the linear map makes of zeros."""
    padding = None
    if _sees_padding(tiling):
        padding = qkv.new_zeros(qkv.shape[-1]) if padding_value is None else padding_value
    shared = None if bias is None else bias(tiling.window)[0]
    plain = sum(slab.count for slab in slabs(tiling) if not slab.forbids)
    order = _constant(_order32, tiling, qkv.device)
    return attend(qkv, padding, shared, order, plain, num_heads, tiling.padded, tiling.window, tiling.shift)


def _sees_padding(tiling: Tiling) -> bool:
    return tiling.padding == "attended" and tiling.padded != tiling.grid


def _order32(tiling: Tiling, device: torch.device) -> Int[Tensor, " s"]:
    return _order(tiling, device).int()


def _by_mask(parts: list[Slab], tiling: Tiling, shared: Tensor | None, x: Tensor, num_heads: int) -> Groups:
    """A group for each slab, as so many windows of a clip: one mask, of one window, serves all of it."""
    groups = []
    for slab in parts:
        added = shared
        if slab.forbids:
            forbidden = _constant(_slab_mask, tiling, slab, x.device, x.dtype)
            added = forbidden if shared is None else shared + forbidden
        groups.append((slab.count, added))
    return groups


def _launches(parts: list[Slab], tiling: Tiling, shared: Tensor | None, x: Tensor, num_heads: int) -> Groups:
    """As few groups as there can be: the windows that forbid nothing, and the others with a mask each.

    On a GPU a launch of a few windows leaves most of it idle, and costs more than the mask's memory. The masks of one
    launch, with the bias in them, take `MASK_BYTES` at most.
    """
    b, n = len(x), tiling.window.tokens
    plain = sum(slab.count for slab in parts if not slab.forbids)  # the first slab, where there is one
    groups: list[tuple[int, Tensor | None]] = [(plain, shared)] if plain else []
    if plain < tiling.count:
        maps = 1 if shared is None else num_heads
        size = max(1, MASK_BYTES // (b * maps * n * n * x.element_size()))
        for forbidden in _constant(_masks, tiling, x.device, x.dtype).split(size):
            groups.append((len(forbidden), forbidden if shared is None else forbidden + shared))
    return groups


class _Moved(torch.autograd.Function):
    """Rows in another order: `back` undoes `there`, so that the gradient is moved and need not be added up."""

    @staticmethod
    def forward(ctx, x: Tensor, source: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(source, back)
        return x.index_select(0, source)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        source, back = ctx.saved_tensors
        return _Moved.apply(gradient, back, source), None, None


def window_attention_macs(tiling: Tiling, dim: int) -> int:
    """Every window costs the same, the padded tokens in it included."""
    return self_attention_macs(tiling.count, tiling.window.tokens, dim)
