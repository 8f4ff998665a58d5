"""What float32 means: float32, in products and convolutions, in every process that computes.

PyTorch's own default is exact products beside convolutions in TF32, whose numbers have 10 bits behind the point.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """No TF32 on CUDA while open; what was set before is set again."""
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = False
        yield
    finally:
        for switch, allowed in zip(switches, before, strict=True):
            switch.allow_tf32 = allowed
