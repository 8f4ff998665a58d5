"""The names under which checkpoints keep their tensors, and how they become ours. Rules are data, tried in order."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NATIVE_NAME = "attention-zoo"  # of the layout that each family has: its own names
# What wrapping a module (in DDP, torch.compile, a trainer, a recogniser with a head) puts before every name.
WRAPPED = re.compile(r"^(?:module\.|_orig_mod\.|_forward_module\.|model\.|net\.|network\.|backbone\.)*")
COUNTERS = re.compile(r"(?:^|\.)(?:n_averaged|total_ops|total_params|_extra_state)$")


@dataclass(frozen=True)
class Layout:
    """A naming scheme: `sign` finds it, `renames` translates it, `ignored` says what we leave out and why.

    A new name that ends in `#0`, `#1` and so on is a part of our tensor, such as the queries of `qkv.weight#0`: parts
    are stacked in that order, or made one by `joined`, which gets the name and the parts. `shaped` makes what a name
    stands for there, such as a kernel of JAX, our shape. `note` says what the released code does otherwise with the
    same weights.
    """

    name: str
    sign: str
    renames: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = ()
    ignored: tuple[tuple[str, str], ...] = ()
    shaped: Callable[[str, Tensor], Tensor] | None = None
    note: str = ""
    joined: Callable[[str, Sequence[Tensor]], Tensor] = lambda name, parts: torch.cat(tuple(parts))

    def rename(self, key: str) -> str:
        """The first rule that matches renames; a name that none matches stays."""
        for pattern, replacement in self.renames:
            new, count = re.subn(pattern, replacement, key)
            if count:
                return new
        return key


@dataclass(frozen=True)
class Translated:
    """A state dict under our names; `origin` gives the name in the file, `ignored` what was left out and why."""

    layout: Layout
    tensors: dict[str, Tensor]
    origin: dict[str, str]
    ignored: dict[str, str]


def detect(keys: Iterable[str], layouts: Sequence[Layout], expected: Collection[str] = ()) -> Layout | None:
    """The layout that has such names; of several the one that makes most of them `expected` ones, else the first."""
    stripped = [WRAPPED.sub("", key) for key in keys]
    having = [layout for layout in layouts if any(re.search(layout.sign, key) for key in stripped)]
    fits = lambda layout: sum(layout.rename(key).partition("#")[0] in expected for key in stripped)  # noqa: E731
    return max(having, key=fits) if len(having) > 1 and expected else having[0] if having else None


def renamed(state: Mapping[str, Tensor], layouts: Sequence[Layout], expected: Collection[str] = ()) -> Translated:
    """Finds the layout by the names, see `detect`, and renames.

    Raises:
        ValueError: no known layout has such names, or two of them mean the same tensor.
    """
    layout = detect(state, layouts, expected)
    if layout is None:
        raise ValueError(
            f"names such as {', '.join(list(state)[:3])} belong to no known layout; "
            f"known: {', '.join(dict.fromkeys(candidate.name for candidate in layouts))}"
        )
    tensors: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    ignored: dict[str, str] = {}
    for key, tensor in state.items():
        bare = WRAPPED.sub("", key)
        reason = next((why for pattern, why in layout.ignored if re.search(pattern, bare)), None)
        reason = "a counter that a trainer keeps beside the weights" if COUNTERS.search(bare) else reason
        if reason:
            ignored[key] = reason
            continue
        new = layout.rename(bare)
        if new in tensors:
            raise ValueError(f"{origin[new]} and {key} both stand for {new}; remove one of them")
        tensors[new], origin[new] = tensor if layout.shaped is None else layout.shaped(bare, tensor), key
    parts: dict[str, list[Tensor]] = {}
    for part in sorted(name for name in tensors if "#" in name):
        whole = part.partition("#")[0]
        parts.setdefault(whole, []).append(tensors.pop(part))
        origin[whole] = origin.pop(part)
    tensors |= {whole: layout.joined(whole, pieces) for whole, pieces in parts.items()}
    return Translated(layout, tensors, origin, ignored)
