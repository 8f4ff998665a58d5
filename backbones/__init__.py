"""Backbones that are given their attention: one pyramid, in which only the attention scheme of each block differs.

model = backbones.create("dualformer_tiny", num_classes=400)
logits = model(clip)              # clip: (b, 3, t, h, w)
maps = model.features(clip)       # one map (b, d, t, h, w) for each stage
model.macs()                      # multiply-adds of one clip of the nominal size
backbones.load_checkpoint(model, "dualformer_tiny_k400.pth")
"""

from backbones.checkpoint import CheckpointError, LoadReport, from_checkpoint, load_checkpoint, save_checkpoint
from backbones.config import ModelConfig
from backbones.inflation import InflationReport, inflate
from backbones.models import config, create, names
from backbones.pyramid import Pyramid

__all__ = [
    "CheckpointError",
    "InflationReport",
    "LoadReport",
    "ModelConfig",
    "Pyramid",
    "config",
    "create",
    "from_checkpoint",
    "inflate",
    "load_checkpoint",
    "names",
    "save_checkpoint",
]
