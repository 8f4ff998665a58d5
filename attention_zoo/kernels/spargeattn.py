"""SpargeAttn's block-sparse attention, for schemes whose blocks choose blocks: `block_topk` and `sparse_linear`.

CUDA only, forward only; elsewhere PyTorch has it. Which blocks are chosen is the scheme's own choice. It is no exact
kernel: queries and keys are rounded to 8 bits, values too, and small shares inside of chosen blocks are left out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from attention_zoo.kernels import Kernel, KernelUnavailable, add
from attention_zoo.kernels.sdpa import sdpa

NEEDS = "the package spas_sage_attn, 0.1 or later, and a CUDA GPU of compute capability 8.0 or more"
CHANNELS, LEAST = (64, 128), 128  # of a head; tokens of a clip


@functools.cache
def _block_sparse() -> Callable[..., Tensor] | str:
    """The function, or the reason that there is none."""
    try:
        from spas_sage_attn import block_sparse_sage2_attn_cuda
    except (ImportError, OSError, RuntimeError) as error:
        return (
            f"spas_sage_attn cannot be imported ({error}); there is no wheel: build it beside the GPU from thu-ml/"
            "SpargeAttn with: python setup.py install"
        )
    return block_sparse_sage2_attn_cuda


def _block_size(device: torch.device) -> tuple[int, int]:
    """Queries and keys of a block of the programs for this card."""
    return (64, 128) if torch.cuda.get_device_capability(device) == (9, 0) else (128, 64)


def blocks(
    q: Tensor, k: Tensor, v: Tensor, query_sizes: Sequence[int], key_sizes: Sequence[int], chosen: Tensor
) -> Tensor:
    """See `Kernel.blocks`. Raises: KernelUnavailable for other sizes of blocks and heads than the programs have."""
    needed, tokens = _block_size(q.device), sum(query_sizes)
    whole = all(size == x.shape[3] for x, sizes in ((q, query_sizes), (k, key_sizes)) for size in sizes[:-1])
    if (q.shape[3], k.shape[3]) != needed or q.shape[4] not in CHANNELS or tokens < LEAST or not whole:
        raise KernelUnavailable(
            f"kernel 'spargeattn' cannot run here: blocks of {q.shape[3]} queries and {k.shape[3]} keys, {tokens} "
            f"tokens, heads of {q.shape[4]} channels; it takes blocks of {needed[0]} queries and {needed[1]} keys on "
            f"this card, none but the last short, {LEAST} tokens or more, and heads of "
            f"{' or '.join(map(str, CHANNELS))} channels; available: kernel='sdpa'"
        )
    slots = q.shape[3]
    q, k, v = (x.flatten(2, 3)[:, :, :tokens].contiguous() for x in (q, k, v))
    y = _block_sparse()(q, k, v, mask_id=chosen.to(torch.int8).contiguous(), tensor_layout="HND")
    return pad(y, (0, 0, 0, -tokens % slots)).unflatten(2, (-1, slots))


def _missing(device: torch.device, dtype: torch.dtype, backward: bool) -> str | None:
    if device.type != "cuda":
        return f"SpargeAttn's kernels need a CUDA GPU, the tensors are on {device.type!r}"
    if isinstance(operator := _block_sparse(), str):
        return operator
    if backward:
        return "SpargeAttn has no backward pass; run it under torch.no_grad()"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"SpargeAttn's kernels are for bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
    if torch.cuda.is_available() and torch.cuda.get_device_capability(device)[0] < 8:
        return "SpargeAttn's kernels need a card of compute capability 8.0 or more"
    return None


add(Kernel("spargeattn", sdpa, needs=NEEDS, missing=_missing, blocks=blocks))
