"""Attention schemes for video behind one interface: tokens `b t h w d` in, tokens `b t h w d` out, cost stated.

    scheme = attention_zoo.build("global_pyramid", dim=64, num_heads=2, grid=Grid(16, 56, 56), kernel="sdpa")
    y = scheme(x)          # x: (b, 16, 56, 56, 64)
    scheme.macs()          # multiply-adds of one clip

`python -m attention_zoo` lists the schemes and kernels and what this machine can run.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attention_zoo import kernels
    from attention_zoo.grid import Grid, check_heads
    from attention_zoo.registry import Registry, UnknownName
    from attention_zoo.scheme import (
        AttentionScheme,
        build,
        growth_of,
        options_of,
        register,
        schemes,
        use_kernel,
    )
    from attention_zoo.tokens import Tokens

__all__ = [
    "AttentionScheme",
    "Grid",
    "Registry",
    "Tokens",
    "UnknownName",
    "build",
    "check_heads",
    "growth_of",
    "kernels",
    "options_of",
    "register",
    "schemes",
    "use_kernel",
]
_HOMES = {
    "kernels": "kernels", "Grid": "grid", "check_heads": "grid", "Registry": "registry", "Tokens": "tokens",
    "UnknownName": "registry",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Found on first use: command lines name schemes and check grids long before they need torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES.get(name, "scheme")
    module = importlib.import_module(f"{__name__}.{home}")
    return module if home == name else getattr(module, name)
