"""Packages that are imported when they are first needed, by one function, each with its reason."""

from __future__ import annotations

import importlib
from types import ModuleType

LATE = {
    "av": "loads ffmpeg, which who only names a file, or lists data sets, need not wait for",
    "decord": "not on every machine",
    "fvcore": "slow to load, and every measuring process has the module of its metric",
    "kornia": "not on every machine",
    "pynvml": "not on every machine",
    "submitit": "not on every machine",
    "torch": "modules of it that are private, or need TensorBoard, so may be missing",
}
"""By package."""


def late(module: str) -> ModuleType:
    """A module of such a package. Raises: ImportError."""
    package = module.partition(".")[0]
    assert package in LATE, f"{package}: import it at the top, or say in LATE why not"
    importlib.import_module(package)
    return importlib.import_module(module)
