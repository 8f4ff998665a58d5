"""What an attention scheme is, and how one is built by name."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

from jaxtyping import Bool, Float
from torch import Tensor, nn

from attention_zoo import kernels
from attention_zoo.empty import of_any_batch
from attention_zoo.grid import Grid, check_heads
from attention_zoo.registry import Registry, nearest

Mixed = Float[Tensor, "b t h w d"] | tuple[Float[Tensor, "b t h w d"], Float[Tensor, "b p d"]]
"""What a scheme gives back: the map; with a prefix, the map and the prefix."""
Growth = dict[str, tuple[float, float]]
"""With "frames" and with "size" (height and width): the least and the largest exponent among a scheme's products."""


def _prepared(scheme: type[AttentionScheme]) -> type[AttentionScheme]:
    """The class, whose `forward` takes batches without a clip too."""
    if not hasattr(scheme.forward, "__wrapped__"):
        scheme.forward = of_any_batch(scheme.forward)
    return scheme


schemes: Registry[type[AttentionScheme]] = Registry(
    "attention scheme", "attention_zoo", group="attention_zoo.schemes", prepared=_prepared
)


class AttentionScheme(Protocol):
    """A module that mixes the tokens of a clip and states what that costs. Any class of this shape can be registered.

    It owns its projections and is built for one grid, from which sizes of parameters follow; `forward` takes other
    grids where these parameters allow it. Options are keyword-only arguments of `__init__`, JSON values, each with a
    default.
    """

    example: dict[str, Any]  # options that fit Grid(4, 6, 8), dim 12 and two heads; tests build from these
    kernel: str  # which kernel computes the attention; may be changed at any time

    # A scheme writes these seven only where it differs; `build` fills in what it leaves out.
    out_grid: Grid  # of the map that comes out; left out: the one that goes in
    out_dim: int  # its width; left out: `dim`
    takes_prefix: bool  # whether class tokens may come before the map; left out: False
    growth: Growth  # exponents in theory of the attention products; left out: none is stated
    loose_reach: str  # why a token may influence another without a gradient, as by a choice; left out: it cannot
    fixed_map: bool  # whether a compiler that leaves sizes open is told those of a clip first; left out: False
    inert: tuple[str, ...]  # parameters that cannot change the result, such as an offset of all keys; left out: none

    def __init__(self, dim: int, num_heads: int, grid: Grid, *, kernel: str = kernels.AUTO): ...

    def forward(self, x: Float[Tensor, "b t h w d"], prefix: Float[Tensor, "b p d"] | None = None) -> Mixed:
        """The map; with a prefix, the map and the prefix. Without `takes_prefix` there is no such argument."""
        ...

    def macs(self, prefix: int = 0) -> int:
        """Multiply-adds of linear maps, convolutions and attention products: one clip, on the grid it was built for.

        `prefix`, here and in `reach`, is the number of class tokens; without `takes_prefix` there is no such argument.
        """
        ...

    def reach(self, prefix: int = 0) -> Bool[Tensor, "n_out n_in"]:
        """True at (i, j) where output token i may depend on input token j: class tokens, then (t, h, w) order."""
        ...

    # A scheme that only looks back in time may also take a clip one frame after the other. Folding `step` over the
    # frames, from the state None, gives what `forward` gives; each frame then brings its own class tokens.
    # def step(self, x: "b 1 h w d", prefix: "b p d" | None, state) -> (what forward returns for this frame, state)


def register(name: str):
    """Decorator: makes a class available as `attention_zoo.build(name, ...)` and in every ablation."""
    return schemes.register(name)


def options_of(name: str) -> dict[str, Any]:
    """The options of a scheme with their defaults; a required option has the default `inspect.Parameter.empty`."""
    parameters = inspect.signature(schemes.get(name).__init__).parameters.values()
    keyword = (p for p in parameters if p.kind is p.KEYWORD_ONLY)
    return {p.name: p.default for p in keyword if p.name != "kernel"}


def build(
    scheme: str, dim: int, num_heads: int, grid: Sequence[int], *, kernel: str = kernels.AUTO, **options: Any
) -> nn.Module:
    """A scheme by name, for tokens of width `dim` on `grid`.

    Raises:
        UnknownName: the scheme or the kernel is not registered; the nearest name is given.
        ValueError: an option is unknown or a size is impossible.
    """
    allowed = options_of(scheme)
    for name in options:
        if name not in allowed:
            raise ValueError(f"{scheme} has no option {name!r}; {nearest(name, allowed)}")
    check_heads(dim, num_heads)
    kernels.check_name(kernel)
    grid = Grid.of(grid)
    built = schemes.get(scheme)(dim, num_heads, grid, kernel=kernel, **options)
    for name, default in dict(
        out_grid=grid, out_dim=dim, takes_prefix=False, growth={}, inert=(), loose_reach="", fixed_map=False
    ).items():
        if not hasattr(built, name):
            setattr(built, name, default)
    return built


def growth_of(name: str) -> Growth:
    """The exponents in theory that a scheme states; empty if it states none."""
    return getattr(schemes.get(name), "growth", {})


def use_kernel(model: nn.Module, kernel: str) -> nn.Module:
    """Sets the kernel of every scheme inside `model` and returns the model. Weights and results stay what they are."""
    kernels.check_name(kernel)
    for module in model.modules():
        if isinstance(getattr(module, "kernel", None), str) and hasattr(module, "reach"):
            module.kernel = kernel
    return model
