"""Families of models that are given their attention, so that only the attention scheme of each block differs.

model = backbones.create("dualformer_tiny", num_classes=400)
logits = model(clip)              # clip: (b, 3, t, h, w)
maps = model.features(clip)       # one map (b, d, t, h, w) for each stage
model.macs()                      # multiply-adds of one clip of the nominal size
backbones.load_checkpoint(model, "dualformer_tiny_k400.pth")
"""

import importlib
from typing import TYPE_CHECKING, Any

from backbones.config import Config
from backbones.configs.pyramid import PyramidConfig
from backbones.files import CheckpointError
from backbones.named import config, families, names, read_config

if TYPE_CHECKING:
    from backbones.checkpoint import LoadReport, from_checkpoint, load_checkpoint, save_checkpoint
    from backbones.family import Backbone, Family, Origin, create, kinds, learning, origin
    from backbones.inflation import InflationReport, inflate
    from backbones.pyramid import Pyramid

__all__ = [
    "Backbone",
    "CheckpointError",
    "Config",
    "Family",
    "InflationReport",
    "LoadReport",
    "Origin",
    "Pyramid",
    "PyramidConfig",
    "config",
    "create",
    "families",
    "from_checkpoint",
    "inflate",
    "kinds",
    "learning",
    "load_checkpoint",
    "names",
    "origin",
    "read_config",
    "save_checkpoint",
]
_HOMES = {
    "checkpoint": ("LoadReport", "from_checkpoint", "load_checkpoint", "save_checkpoint"),
    "family": ("Backbone", "Family", "Origin", "create", "kinds", "learning", "origin"),
    "inflation": ("InflationReport", "inflate"),
    "pyramid": ("Pyramid",),
}


def __getattr__(name: str) -> Any:
    """Found on first use: configs are checked before torch is loaded."""
    home = next((module for module, held in _HOMES.items() if name in held), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
