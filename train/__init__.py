"""From labelled images to a trained network. Names load when they are used, so that importing this is light."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import CacheConfig, DataConfig, TrainConfig
    from .data import load_data
    from .images import Dataset, ImageSet, pixels
    from .lr_finder import find_lr
    from .normalize import Deployable
    from .run import Run, RunError, RunRecord, load_run
    from .splits import split_halves
    from .training import fit

_HOME = {
    "CacheConfig": "config",
    "DataConfig": "config",
    "Dataset": "images",
    "Deployable": "normalize",
    "ImageSet": "images",
    "Run": "run",
    "RunError": "run",
    "RunRecord": "run",
    "TrainConfig": "config",
    "find_lr": "lr_finder",
    "fit": "training",
    "load_data": "data",
    "load_run": "run",
    "pixels": "images",
    "split_halves": "splits",
}
__all__ = [
    "CacheConfig",
    "DataConfig",
    "Dataset",
    "Deployable",
    "ImageSet",
    "Run",
    "RunError",
    "RunRecord",
    "TrainConfig",
    "find_lr",
    "fit",
    "load_data",
    "load_run",
    "pixels",
    "split_halves",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
