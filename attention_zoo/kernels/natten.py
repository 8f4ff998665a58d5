"""NATTEN's neighbourhood attention, for the schemes that are one: `neighborhood` and `sliding_tile`. CUDA only.

Elsewhere PyTorch has it. The package installs on any machine, and then without its own kernels; that is `missing` here,
since what is left of it is PyTorch's FlexAttention.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from attention_zoo.grid import Grid
from attention_zoo.kernels import Kernel, KernelUnavailable, add
from attention_zoo.kernels.sdpa import sdpa

NEEDS = "the package natten, 0.21 or later, with its own kernels, and a CUDA GPU"


@functools.cache
def _na3d() -> Callable[..., Tensor] | str:
    """The function, or the reason that there is none."""
    try:
        import natten
    except (ImportError, OSError, RuntimeError) as error:
        return (
            f"natten cannot be imported ({error}); install it beside a CUDA tool kit with: pip install 'natten>=0.21'"
        )
    if not natten.HAS_LIBNATTEN:
        return "natten was built without its own kernels; build it again beside a CUDA tool kit, or take its CUDA wheel"
    return natten.na3d


def neighborhood(
    q: Tensor, k: Tensor, v: Tensor, grid: Grid, window: Grid, stride: Grid, dilation: Grid, causal: tuple[bool, ...]
) -> Tensor:
    """q, k, v and what is found (b, n, m, c), tokens in (t, h, w) order.

    Raises: KernelUnavailable where NATTEN refuses what the scheme clips.
    """
    size = Grid(*(min(k, n) if d == 1 else k for k, n, d in zip(window, grid, dilation, strict=True)))
    if min(size) < 2 or any(k * d > n for k, d, n in zip(size, dilation, grid, strict=True)):
        raise KernelUnavailable(
            f"kernel 'natten' cannot run here: window {tuple(window)} with dilation {tuple(dilation)} on grid "
            f"{tuple(grid)}; it takes windows of 2 tokens at least, and the axis must hold window times dilation; "
            "available: kernel='sdpa'"
        )
    q, k, v = (x.unflatten(1, tuple(grid)) for x in (q, k, v))
    y = _na3d()(
        q, k, v, kernel_size=tuple(size), stride=tuple(map(min, stride, size)), dilation=tuple(dilation),
        is_causal=tuple(causal),
    )  # fmt: skip
    return y.flatten(1, 3)


def _missing(device: torch.device, dtype: torch.dtype, backward: bool) -> str | None:
    if device.type != "cuda":
        return f"NATTEN's kernels need a CUDA GPU, the tensors are on {device.type!r}"
    if isinstance(operator := _na3d(), str):
        return operator
    return None if dtype != torch.float64 else "NATTEN has kernels for float32, bfloat16 and float16, not float64"


add(Kernel("natten", sdpa, needs=NEEDS, missing=_missing, neighborhood=neighborhood))
