"""Programs of Triton for attention that PyTorch's fused attention makes copies for: windows, read from the map and
written to it. Where there is no such program, in training too, it is PyTorch's fused attention. CUDA only.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from attention_zoo import chunks
from attention_zoo.kernels import Kernel, add
from attention_zoo.kernels.sdpa import sdpa

CHANNELS = (16, 32, 64, 128)  # of a head: what tensor cores multiply without padding


def windows(
    qkv: Tensor, padding: Tensor | None, bias: Tensor | None, order: Tensor, plain: int, num_heads: int,
    padded: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...],
) -> Tensor:  # fmt: skip
    """See `_windows.window_attend`."""
    from attention_zoo.kernels._windows import window_attend

    bias = None if bias is None else bias.to(qkv.dtype).contiguous()
    qkv, padding, bias = chunks.autocast(qkv, padding, bias)
    keep = torch.is_grad_enabled() and (qkv.requires_grad or (bias is not None and bias.requires_grad))
    y, _ = window_attend(qkv, padding, bias, order, plain, num_heads, list(padded), list(window), list(shift), keep)
    return y


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


add(Kernel("triton", sdpa, needs="Triton and a CUDA GPU", missing=_missing, windows=windows, channels=CHANNELS))
