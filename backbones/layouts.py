"""The names under which checkpoints keep their tensors, and how they become ours. Rules are data, tried in order."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

NATIVE_NAME = "attention-zoo"  # of the layout that each family has: its own names
# What wrapping a module (in DDP, torch.compile, a trainer, a recogniser with a head) puts before every name.
WRAPPED = re.compile(r"^(?:module\.|_forward_module\.|model\.|net\.|network\.|backbone\.)*")
# What wrapping single blocks puts within names.
WRAPPED_BLOCK = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
COUNTERS = re.compile(r"(?:^|\.)(?:n_averaged|total_ops|total_params|_extra_state)$")


@dataclass(frozen=True)
class Layout:
    """A naming scheme: `sign` finds it, `renames` translates it, `ignored` says what we leave out and why.

    A new name that ends in `#0`, `#1` and so on is a part of our tensor, such as the queries of `qkv.weight#0`: parts
    are stacked in that order, or made one by `joined`, which gets the name and the parts. `shaped` makes what a name
    stands for there, such as a kernel of JAX, our shape. `note` says what the released code does otherwise with the
    same weights. `own` is a beginning of names that looks like what wrapping puts before them, but is the layout's.
    """

    name: str
    sign: str
    renames: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = ()
    ignored: tuple[tuple[str, str], ...] = ()
    shaped: Callable[[str, Tensor], Tensor] | None = None
    note: str = ""
    own: str = ""
    joined: Callable[[str, Sequence[Tensor]], Tensor] = lambda name, parts: torch.cat(tuple(parts))

    def bare(self, key: str) -> str:
        """A name of a file without what wrapping a module puts before it."""
        key = WRAPPED_BLOCK.sub("", key)
        before = WRAPPED.match(key)[0]
        return key[len(before) - (len(self.own) if self.own and before.endswith(self.own) else 0) :]

    def rename(self, key: str) -> str:
        """The first rule that matches renames; a name that none matches stays."""
        return self.renaming(key)[0]

    def renaming(self, key: str) -> tuple[str, int]:
        """The new name, and of how many parts its tensor is made by the rules: 1, or as many as are numbered alike."""
        for pattern, replacement in self.renames:
            new, count = re.subn(pattern, replacement, key)
            if count and isinstance(replacement, str) and "#" in replacement:
                whole = replacement.partition("#")[0]
                return new, len({r for _, r in self.renames if isinstance(r, str) and r.partition("#")[0] == whole})
            if count:
                return new, 1
        return key, 1


def stacked(theirs: str, ours: str, roles: Sequence[str] = ("query", "key", "value")) -> tuple[tuple[str, str], ...]:
    """Rules for maps of which a file has one for each ROLE, and we one for all."""
    return tuple((theirs.replace("ROLE", role), f"{ours}#{i}") for i, role in enumerate(roles))


@dataclass(frozen=True)
class Translated:
    """A state dict under our names; `origin` gives the name in the file, `ignored` what was left out and why, `partial`
    the tensors of which the file has some parts alone, and what these are called there.
    """

    layout: Layout
    tensors: dict[str, Tensor]
    origin: dict[str, str]
    ignored: dict[str, str]
    partial: dict[str, list[str]] = field(default_factory=dict)


def detect(keys: Iterable[str], layouts: Sequence[Layout], expected: Collection[str] = ()) -> Layout | None:
    """The layout that has such names; of several the one that makes most of them `expected` ones, else the first."""
    keys = list(keys)
    having = [layout for layout in layouts if any(re.search(layout.sign, layout.bare(key)) for key in keys)]
    fits = lambda layout: sum(layout.rename(layout.bare(key)).partition("#")[0] in expected for key in keys)  # noqa: E731
    return max(having, key=fits) if len(having) > 1 and expected else having[0] if having else None


def renamed(state: Mapping[str, Tensor], layouts: Sequence[Layout], expected: Collection[str] = ()) -> Translated:
    """Finds the layout by the names, see `detect`, and renames.

    Raises:
        ValueError: no known layout has such names, or two of them mean the same tensor.
    """
    layout, state = _detected(state, layouts, expected)
    if layout is None:
        raise ValueError(
            f"names such as {', '.join(list(state)[:3])} belong to no known layout; "
            f"known: {', '.join(dict.fromkeys(candidate.name for candidate in layouts))}"
        )
    tensors: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    ignored: dict[str, str] = {}
    counts: dict[str, int] = {}
    for key, tensor in state.items():
        bare = layout.bare(key)
        reason = next((why for pattern, why in layout.ignored if re.search(pattern, bare)), None)
        reason = "a counter that a trainer keeps beside the weights" if COUNTERS.search(bare) else reason
        if reason:
            ignored[key] = reason
            continue
        new, count = layout.renaming(bare)
        counts[new.partition("#")[0]] = count
        if new in tensors:
            raise ValueError(f"{origin[new]} and {key} both stand for {new}; remove one of them")
        tensors[new], origin[new] = _shaped(layout, bare, tensor), key
    parts: dict[str, list[str]] = {}
    for part in sorted(name for name in tensors if "#" in name):
        parts.setdefault(part.partition("#")[0], []).append(part)
    partial: dict[str, list[str]] = {}
    for whole, names in parts.items():
        pieces, sources = [tensors.pop(name) for name in names], [origin.pop(name) for name in names]
        if len(names) < counts[whole]:
            partial[whole] = sources
        else:
            tensors[whole], origin[whole] = _joined(layout, whole, pieces), sources[-1]
    return Translated(layout, tensors, origin, ignored, partial)


def _detected(
    state: Mapping[str, Tensor], layouts: Sequence[Layout], expected: Collection[str]
) -> tuple[Layout | None, Mapping[str, Tensor]]:
    """The layout, and the state dict without what all of its names begin with, where none has such names as they are:
    `student.`, `ema_model.` or whatever a trainer called the model."""
    layout = detect(state, layouts, expected)
    starts = {key.partition(".")[0] for key in state if not COUNTERS.search(key)}
    if layout is not None or len(starts) != 1:
        return layout, state
    (start,) = starts
    shorter = {key.removeprefix(f"{start}."): tensor for key, tensor in state.items()}
    if len(shorter) < len(state) or shorter.keys() == state.keys():
        return None, state
    layout, inner = _detected(shorter, layouts, expected)
    return (layout, inner) if layout else (None, state)


def _shaped(layout: Layout, name: str, tensor: Tensor) -> Tensor:
    try:
        return tensor if layout.shaped is None else layout.shaped(name, tensor)
    except (IndexError, RuntimeError):  # of fewer axes than the layout's has: whoever compares shapes will say so
        return tensor


def _joined(layout: Layout, whole: str, parts: Sequence[Tensor]) -> Tensor:
    try:
        return layout.joined(whole, parts)
    except (IndexError, RuntimeError):  # they do not fit each other: one that differs stands for the misfit
        return next(part for part in parts if part.shape != parts[0].shape)
