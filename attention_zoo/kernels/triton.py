"""Programs of Triton for attention that PyTorch's fused attention makes copies for: windows, read from the map and
written to it, and many queries of few keys with their linear maps. Elsewhere PyTorch has it. CUDA only.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor, nn

from attention_zoo import dispatch
from attention_zoo.kernels import Kernel, add
from attention_zoo.kernels.sdpa import sdpa

try:
    from attention_zoo.kernels._few_keys import WIDEST, few_keys_attend, pyramid_attend
    from attention_zoo.kernels._windows import window_attend
except ImportError:
    WIDEST = 0  # Triton is not on every machine; `_missing` says so

CHANNELS = (16, 32, 64, 128)  # of a head: what tensor cores multiply without padding


def windows(
    qkv: Tensor, padding: Tensor | None, bias: Tensor | None, order: Tensor, plain: int, num_heads: int,
    padded: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...],
) -> Tensor:  # fmt: skip
    """See `_windows.window_attend`."""
    bias = None if bias is None else bias.to(qkv.dtype).contiguous()
    qkv, padding, bias = dispatch.autocast(qkv, padding, bias)
    keep = torch.is_grad_enabled() and (qkv.requires_grad or (bias is not None and bias.requires_grad))
    y, _ = window_attend(qkv, padding, bias, order, plain, num_heads, list(padded), list(window), list(shift), keep)
    return y


def few_keys(x: Tensor, q: nn.Linear, k: Tensor, v: Tensor, proj: nn.Linear) -> Tensor:
    """From tokens (b, n, d) to tokens, by way of keys and values (b, m, s, c)."""
    d = x.shape[-1]
    as_built = all(
        type(part) is nn.Linear and part.bias is not None and not dispatch.watched(part) for part in (q, proj)
    )
    if d > WIDEST or d & (d - 1) or not as_built:
        return proj(few_keys_attend(*dispatch.autocast(q(x), k, v)))
    x, wq, bq, k, v, wo, bo = dispatch.autocast(x, q.weight, q.bias, k, v, proj.weight, proj.bias)
    return pyramid_attend(x, wq, bq, k, v, wo, bo)


def _missing(device: torch.device, dtype: torch.dtype, backward: bool) -> str | None:
    if device.type != "cuda":
        return f"programs of Triton need a CUDA GPU, the tensors are on {device.type!r}"
    if find_spec("triton") is None:
        return "Triton, which compiles them, is not installed; install it with: pip install triton"
    if dtype == torch.float64:
        return "programs of Triton are for float32, bfloat16 and float16, not float64"
    if torch.cuda.is_available() and torch.cuda.get_device_capability(device)[0] < 8:
        return "programs of Triton need a card of compute capability 8.0 or more"
    return None


PROGRAMS = {"windows": windows, "few_keys": few_keys, "channels": CHANNELS}
add(Kernel("triton", sdpa, needs="Triton and a CUDA GPU", missing=_missing, **PROGRAMS))
