"""FastVideo's block-sparse attention, for schemes whose blocks choose blocks of 64 tokens, `video_sparse` before all.

CUDA and bfloat16 only; elsewhere PyTorch has it. Which blocks are chosen is the scheme's own choice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from attention_zoo.kernels import Kernel, KernelUnavailable, add
from attention_zoo.kernels.sdpa import sdpa

NEEDS = "the package fastvideo-kernel, 0.3 or later, and a CUDA GPU"
TOKENS, CHANNELS = 64, (64, 128)  # of a block, and of a head


@functools.cache
def _block_sparse_attn() -> Callable[..., tuple[Tensor, Tensor]] | str:
    """The function, or the reason that there is none."""
    try:
        from fastvideo_kernel import block_sparse_attn
    except (ImportError, OSError, RuntimeError) as error:
        return f"fastvideo_kernel cannot be imported ({error}); install it with: pip install 'fastvideo-kernel>=0.3'"
    return block_sparse_attn


def blocks(
    q: Tensor, k: Tensor, v: Tensor, query_sizes: Sequence[int], key_sizes: Sequence[int], chosen: Tensor
) -> Tensor:
    """See `Kernel.blocks`. Raises: KernelUnavailable for other sizes of blocks and heads than the kernels have."""
    if max(q.shape[3], k.shape[3]) > TOKENS or q.shape[4] not in CHANNELS or len(query_sizes) != len(key_sizes):
        raise KernelUnavailable(
            f"kernel 'fastvideo' cannot run here: blocks of {q.shape[3]} queries and {k.shape[3]} keys, heads of "
            f"{q.shape[4]} channels; it takes blocks of {TOKENS} tokens at most, the same for both, and heads of "
            f"{' or '.join(map(str, CHANNELS))} channels; available: kernel='sdpa'"
        )
    slots = q.shape[3]
    q, k, v = (pad(x, (0, 0, 0, TOKENS - x.shape[3])).flatten(2, 3).contiguous() for x in (q, k, v))
    sizes = torch.tensor(key_sizes, dtype=torch.int32, device=q.device)
    y, _ = _block_sparse_attn()(q, k, v, chosen.contiguous(), sizes)
    return y.unflatten(2, (-1, TOKENS))[:, :, :, :slots]


def _missing(device: torch.device, dtype: torch.dtype, backward: bool) -> str | None:
    if device.type != "cuda":
        return f"FastVideo's kernels need a CUDA GPU, the tensors are on {device.type!r}"
    if isinstance(operator := _block_sparse_attn(), str):
        return operator
    if dtype != torch.bfloat16:
        return f"FastVideo's kernels are for bfloat16, not {str(dtype).removeprefix('torch.')}"
    return None


add(Kernel("fastvideo", sdpa, needs=NEEDS, missing=_missing, blocks=blocks))
