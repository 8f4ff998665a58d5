"""xFormers' `memory_efficient_attention`. CUDA only; imported on first use: importing it warns and takes time.

It is no independent implementation everywhere: its wheels of today hand over to PyTorch's own kernels, flash without a
bias and cutlass with one. The names of the device's kernels in a record say which ran.
"""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor
from torch.nn.functional import pad

from attention_zoo.kernels import Kernel, add


@functools.cache
def _operator():
    """The function, or the reason that there is none."""
    logging.getLogger("xformers").setLevel(logging.ERROR)
    try:
        from xformers import _cpp_lib as library
        from xformers.ops import memory_efficient_attention
    except (ImportError, OSError, RuntimeError) as error:
        # A wheel built for another CUDA or torch raises any of these while it loads.
        return f"xformers cannot be imported ({error}); install it with: pip install xformers"
    if not library._built_with_cuda:
        # It imports all the same, and every operator of it then refuses every input.
        return (
            "xformers' own library does not load, without which no operator of it runs "
            f"({' '.join(str(library._cpp_library_load_exception).split())[:120]}); a wheel built for CUDA 12 beside a "
            "torch of CUDA 13 needs a folder with libcudart.so.12, of the package nvidia-cuda-runtime-cu12, on "
            "LD_LIBRARY_PATH"
        )
    return memory_efficient_attention


def xformers(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    if bias is not None:
        # The kernel reads rows of the bias in groups of eight: keep the rows of a wider buffer.
        wide = pad(bias, (0, -bias.shape[-1] % 8))[..., : bias.shape[-1]]
        bias = wide.expand(q.shape[0], q.shape[1], -1, -1)
    y = _operator()(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_bias=bias)
    return y.transpose(1, 2)


def _missing(device: torch.device, dtype: torch.dtype, backward: bool) -> str | None:
    if device.type != "cuda":
        return f"xformers' memory_efficient_attention needs a CUDA GPU, the tensors are on {device.type!r}"
    if dtype == torch.float64:
        return "xformers has kernels for float32, bfloat16 and float16, not float64"
    operator = _operator()
    return operator if isinstance(operator, str) else None


add(Kernel("xformers", xformers, needs="the xformers package and a CUDA GPU", missing=_missing))
