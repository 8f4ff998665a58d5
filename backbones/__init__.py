"""Families of models that are given their attention, so that only the attention scheme of each block differs.

model = backbones.create("dualformer_tiny", num_classes=400)
logits = model(clip)              # clip: (b, 3, t, h, w)
maps = model.features(clip)       # one map (b, d, t, h, w) for each stage
model.macs()                      # multiply-adds of one clip of the nominal size
backbones.load_checkpoint(model, "dualformer_tiny_k400.pth")
"""

from backbones.checkpoint import CheckpointError, LoadReport, from_checkpoint, load_checkpoint, save_checkpoint
from backbones.config import Config
from backbones.family import (
    Backbone,
    Family,
    Origin,
    config,
    create,
    families,
    kinds,
    learning,
    names,
    origin,
    read_config,
)
from backbones.inflation import InflationReport, inflate
from backbones.pyramid import Pyramid, PyramidConfig

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
