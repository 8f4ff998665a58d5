"""Blocks as sequences of residuals: skip(x) + drop_path(branch(norm(x))), each of a kind.

A residual says what is computed; it owns nothing. The block around it is the module that owns norms, attention and
MLP, under the names that its checkpoints have, and lists its residuals anew whenever it is asked. So two lists may
share one frozen MLP, and a part that somebody replaces is used at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from attention_zoo import Grid, Tokens


class Branch(Protocol):
    """What stands between the norm and the sum: `Attend`, `PerToken`, or what a family makes of them."""

    def __call__(self, tokens: Tokens) -> Tokens: ...

    def step(self, tokens: Tokens, state: Any) -> tuple[Tokens, Any]:
        """The same for the next frame, after what `state` holds of those before it."""
        ...

    def macs(self, grid: Grid, prefix: int) -> int: ...

    def out_grid(self, grid: Grid) -> Grid: ...

    def parts(self, kind: str) -> dict[str, Sequence[nn.Module]]:
        """Its modules by kind; `kind` is the residual's, for those that have no other."""
        ...


@dataclass(frozen=True)
class Attend:
    """Any attention scheme as a branch. The only place where map and class tokens are taken apart."""

    scheme: nn.Module

    def __call__(self, tokens: Tokens) -> Tokens:
        if not tokens.prefix:
            return tokens.of(self.scheme(tokens.map))
        return tokens.of(*self.scheme(tokens.map, tokens.head))

    def step(self, tokens: Tokens, state: Any) -> tuple[Tokens, Any]:
        if not hasattr(self.scheme, "step"):
            raise TypeError(f"{type(self.scheme).__name__} has no step(): it needs the whole clip at once")
        y, state = self.scheme.step(tokens.map, tokens.head, state)
        return tokens.of(*y) if tokens.prefix else tokens.of(y), state

    def macs(self, grid: Grid, prefix: int) -> int:
        return self.scheme.macs(prefix) if prefix else self.scheme.macs()

    def out_grid(self, grid: Grid) -> Grid:
        return self.scheme.out_grid

    def parts(self, kind: str) -> dict[str, Sequence[nn.Module]]:
        return {kind: [self.scheme]}


@dataclass(frozen=True)
class PerToken:
    """A map of each token by itself as a branch: MLP, adapter. The module has `macs(tokens)`."""

    module: nn.Module
    kind: str | None = None  # where it is another one than the residual's: an adapter beside attention

    def __call__(self, tokens: Tokens) -> Tokens:
        return tokens.with_x(self.module(tokens.x))

    def step(self, tokens: Tokens, state: Any) -> tuple[Tokens, Any]:
        return self(tokens), state

    def macs(self, grid: Grid, prefix: int) -> int:
        return self.module.macs(grid.tokens + prefix)

    def out_grid(self, grid: Grid) -> Grid:
        return grid

    def parts(self, kind: str) -> dict[str, Sequence[nn.Module]]:
        return {self.kind or kind: [self.module]}


@dataclass(frozen=True)
class Residual:
    """skip(x) + drop_path(branch(norm(x))), or norm(skip(x) + drop_path(branch(x))) where `norm_last`.

    Args:
        kind: names its row in tables of operators: "attention", "mlp", "adapter", or a word of the family's own.
        skip: (tokens, normed tokens) -> tokens, a module with `macs(grid, prefix)`, where the branch changes grid or
            width; None adds the tokens themselves.
        drop_path: stochastic depth of the branch, None for none.
    """

    kind: str
    norm: nn.Module
    branch: Branch
    skip: Callable[[Tokens, Tokens], Tokens] | None = None
    drop_path: nn.Module | None = None
    norm_last: bool = False

    def __call__(self, tokens: Tokens) -> Tokens:
        normed = self._normed(tokens, not self.norm_last)
        return self._joined(tokens, normed, self.branch(normed))

    def step(self, tokens: Tokens, state: Any) -> tuple[Tokens, Any]:
        normed = self._normed(tokens, not self.norm_last)
        change, state = self.branch.step(normed, state)
        return self._joined(tokens, normed, change), state

    def _joined(self, tokens: Tokens, normed: Tokens, change: Tokens) -> Tokens:
        kept = tokens if self.skip is None else self.skip(tokens, normed)
        summed = change.with_x(kept.x + (change.x if self.drop_path is None else self.drop_path(change.x)))
        return self._normed(summed, self.norm_last)

    def _normed(self, tokens: Tokens, now: bool) -> Tokens:
        return tokens.with_x(self.norm(tokens.x)) if now else tokens

    def macs(self, grid: Grid, prefix: int = 0) -> int:
        return self.branch.macs(grid, prefix) + (0 if self.skip is None else self.skip.macs(grid, prefix))

    def parts(self) -> dict[str, Sequence[nn.Module]]:
        """Every module that runs in it, by kind."""
        return (
            {"norm": [self.norm]} | self.branch.parts(self.kind) | ({} if self.skip is None else {"skip": [self.skip]})
        )


class Block(nn.Module, ABC):
    """A module that owns the parts of some residuals and runs them in order; a family lists them in `residuals`.

    Args:
        grid, prefix: the nominal map that goes in, and the number of class tokens before it.
    """

    def __init__(self, grid: Grid, prefix: int = 0):
        super().__init__()
        self.grid, self.prefix = grid, prefix

    @abstractmethod
    def residuals(self) -> Sequence[Residual]: ...

    def forward(self, tokens: Tokens) -> Tokens:
        for residual in self.residuals():
            tokens = residual(tokens)
        return tokens

    def step(self, tokens: Tokens, states: Sequence[Any] | None) -> tuple[Tokens, tuple[Any, ...]]:
        """The next frame; `states` has one entry for each residual, or is None before the first frame."""
        residuals, after = self.residuals(), []
        for residual, state in zip(residuals, states or [None] * len(residuals), strict=True):
            tokens, state = residual.step(tokens, state)
            after.append(state)
        return tokens, tuple(after)

    def macs(self) -> int:
        """Multiply-adds of one nominal clip."""
        total, grid = 0, self.grid
        for residual in self.residuals():
            total += residual.macs(grid, self.prefix)
            grid = residual.branch.out_grid(grid)
        return total

    @property
    def out_grid(self) -> Grid:
        grid = self.grid
        for residual in self.residuals():
            grid = residual.branch.out_grid(grid)
        return grid
