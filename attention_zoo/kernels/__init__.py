"""Kernels: how softmax(q k' / sqrt(c) + bias) v is computed, never what is computed.

Every kernel is a function `(q, k, v, bias) -> y` on tensors `b m n c` and gives the same result up to rounding. A
kernel lives in one file here and registers itself; a scheme calls `attend` and leaves the choice to whoever built it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from attention_zoo.cpu import narrow
from attention_zoo.registry import Registry

registry: Registry[Kernel] = Registry("attention kernel", "attention_zoo.kernels")
AUTO = "auto"
FASTER = Path(__file__).with_name("faster.json")
MOST_SEQUENCES = 65_535  # of one launch on CUDA: flash and flex put them on an axis of the grid that ends there
MOST_NUMBERS = 2**31 - 1  # and the offsets of some kernels, flash's backward pass among them, are of 32 bits
BIAS_BYTES = (
    128 * 2**20
)  # of a learned bias's gradient on CUDA, which PyTorch makes for each sequence before it adds up
SHORT = 32  # tokens of a sequence, up to which PyTorch's fused attention on a CPU is no match for plain softmax


class KernelUnavailable(RuntimeError):
    """The chosen kernel cannot run here; the message says what it needs and which kernels can."""


@dataclass(frozen=True)
class Kernel:
    """A way to compute attention. `missing(device, dtype, backward)` is the reason it cannot run so, or None.

    `windows` is a way to attend inside windows of a whole map, `few_keys` one for many queries of few keys with the
    linear maps around them, without gradients; both are for heads of so many `channels`.

    Published kernels compute a rule as a whole: `neighborhood(q, k, v, grid, window, stride, dilation, causal)` on
    (b, n, m, c), and `blocks(q, k, v, query_sizes, key_sizes, chosen)` attention of blocks (b, m, blocks, slots, c) of
    so many real tokens, which come first, over those that a table (b, m, queries, keys) says.
    """

    name: str
    run: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    needs: str
    missing: Callable[[torch.device, torch.dtype, bool], str | None] = lambda device, dtype, backward: None
    windows: Callable[..., Tensor] | None = None
    few_keys: Callable[..., Tensor] | None = None
    neighborhood: Callable[..., Tensor] | None = None
    blocks: Callable[..., Tensor] | None = None
    channels: tuple[int, ...] = ()


def add(kernel: Kernel) -> Kernel:
    """Registers a kernel under its own name."""
    return registry.register(kernel.name)(kernel)


def names() -> tuple[str, ...]:
    return registry.names()


def missing(name: str, device: torch.device | str, dtype: torch.dtype, backward: bool = False) -> str | None:
    """Why the kernel `name` cannot run on this device and dtype (with gradients, if `backward`), or None if it can."""
    return registry.get(name).missing(torch.device(device), dtype, backward)


def available(device: torch.device | str, dtype: torch.dtype, backward: bool = False) -> tuple[str, ...]:
    return tuple(name for name in names() if missing(name, device, dtype, backward) is None)


def resolve(name: str, device: torch.device | str, dtype: torch.dtype, backward: bool = False) -> str:
    """The kernel that `name` stands for here: itself, or for `auto` the one to prefer.

    `auto` is `sdpa`: it runs wherever PyTorch does, has a backward pass, and chooses among PyTorch's fused
    implementations by shape. The ablation `kernels` measures the others beside it. (`attend`, which knows the shapes,
    makes two exceptions on a CPU; schemes ask `of_windows` and `of_few_keys`, which know what records say of a card.)

    Raises:
        UnknownName: `name` is no kernel.
        KernelUnavailable: it is one, but cannot run here.
    """
    if name == AUTO:
        return "sdpa"
    reason = missing(name, device, dtype, backward)
    if reason is not None:
        usable = ", ".join(available(device, dtype, backward))
        raise KernelUnavailable(f"kernel {name!r} cannot run here: {reason}; available: {usable}, or kernel='auto'")
    return name


def of_windows(name: str, x: Tensor, channels: int, scheme: str) -> Callable[..., Tensor] | None:
    """How the kernel attends inside windows of a whole map, or None where it does so window by window."""
    kernel = _special(name, x, channels, scheme, torch.is_grad_enabled())
    return kernel.windows if kernel else None


def of_few_keys(name: str, x: Tensor, channels: int, scheme: str) -> Callable[..., Tensor] | None:
    """How the kernel goes from tokens and a few keys to tokens, or None where it attends to given queries alone."""
    kernel = None if torch.is_grad_enabled() else _special(name, x, channels, scheme, False)
    return kernel.few_keys if kernel else None


def of_rule(name: str, rule: Literal["neighborhood", "blocks"], x: Tensor) -> Callable[..., Tensor] | None:
    """How a published kernel computes a whole rule, or None where the kernel has none for it; never `auto`'s choice.

    Raises: KernelUnavailable where it has one that cannot run here.
    """
    program = None if name == AUTO else getattr(registry.get(name), rule)
    if program is not None:
        resolve(name, x.device, x.dtype, torch.is_grad_enabled() and x.requires_grad)
    return program


def _special(name: str, x: Tensor, channels: int, scheme: str, backward: bool) -> Kernel | None:
    """The kernel, if it has programs for schemes as a whole; `auto` has those that are known to be faster."""
    if x.device.type != "cuda":
        return None
    if name == AUTO:
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
        name = _faster(x.device, dtype, scheme, backward)
        if name is None:
            return None
    kernel = registry.get(resolve(name, x.device, x.dtype))
    return kernel if channels in kernel.channels else None


@torch.compiler.assume_constant_result
def _faster(device: torch.device, dtype: torch.dtype, scheme: str, backward: bool) -> str | None:
    """The kernel that is known to be faster than `auto` there and can run, or None."""
    listed = known_faster()
    if not listed:
        return None
    name = listed.get((torch.cuda.get_device_name(device), str(dtype).removeprefix("torch."), scheme, backward))
    return None if name is None or missing(name, device, dtype, backward) else name


@cache
def known_faster() -> dict[tuple[str, str, str, bool], str]:
    """The kernel that records show to be faster than `auto` was: by card, number format, scheme, and whether gradients
    are wanted. `python -m reports.faster` writes it from the records.
    """
    entries = json.loads(FASTER.read_text(encoding="utf-8"))
    return {(entry["device"], entry["dtype"], entry["scheme"], entry["backward"]): entry["kernel"] for entry in entries}


def check_name(name: str) -> str:
    """Returns `name` if it is a kernel or `auto`, raises UnknownName if not."""
    names()  # finds the kernels now: a compiler that traces a first forward pass cannot trace imports
    return name if name == AUTO else registry.get(name).name


def attend(
    q: Float[Tensor, "b m n c"],
    k: Float[Tensor, "b m s c"],
    v: Float[Tensor, "b m s c"],
    bias: Float[Tensor, "#b #m n s"] | None = None,
    *,
    kernel: str = AUTO,
) -> Float[Tensor, "b m n c"]:
    """Attention of n queries over s keys, scaled by 1/sqrt(c), on the chosen kernel.

    `bias` is added to the scaled scores and broadcasts over b and m; minus infinity forbids a pair. Every query must be
    left at least one key: a row without any is 0 in one kernel and NaN in another.
    """
    inputs = (q, k, v) if bias is None else (q, k, v, bias)
    backward = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    name = resolve(kernel, q.device, q.dtype, backward)
    if kernel == AUTO and _short(q, k):
        name = "reference"
    if bias is not None and bias.dtype != q.dtype:
        bias = bias.to(q.dtype)
    run, most = registry.get(name).run, _at_once(q, k, bias, backward)
    if kernel == AUTO and narrow.fits(q) and max(q.shape[-2], k.shape[-2]) > SHORT:
        run = narrow.attend
    if most >= q.shape[0]:
        return run(q, k, v, bias)
    parts = [x.split(most) for x in (q, k, v)]
    shared = bias is None or len(bias) == 1
    biases = [bias] * len(parts[0]) if shared else bias.split(most)
    return torch.cat([run(*part, part_bias) for *part, part_bias in zip(*parts, biases, strict=True)])


def _at_once(q: Tensor, k: Tensor, bias: Tensor | None, backward: bool) -> int:
    """How many sequences one call of a kernel takes: on CUDA no more than its launches and its memory hold."""
    if q.device.type != "cuda":
        return q.shape[0]
    heads, n, c = q.shape[1:]
    rows = -(-max(n, k.shape[-2]) // 128) * 128
    most = min(MOST_SEQUENCES, MOST_NUMBERS // (heads * rows * max(c, 32)))
    if backward and bias is not None and bias.requires_grad:
        most = min(most, BIAS_BYTES // (heads * n * k.shape[-2] * bias.element_size()))
    return max(1, most)


def _short(q: Tensor, k: Tensor) -> bool:
    """Whether `auto` is plain softmax here: it takes half the time on a CPU where each sequence is a few tokens.

    In 16-bit formats fused attention keeps its sums in float32, which is worth more.
    """
    wide = q.dtype in (torch.float32, torch.float64)
    return q.device.type == "cpu" and wide and max(q.shape[-2], k.shape[-2]) <= SHORT
