"""Turns a training run, weights or an ONNX graph into a proved, sealed bundle. Names load when they are used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .build import export
    from .config import ExportConfig
    from .foreign_config import ForeignConfig, read_labels
    from .from_onnx import export_onnx
    from .from_weights import export_weights

_HOME = {
    "ExportConfig": "config",
    "ForeignConfig": "foreign_config",
    "export": "build",
    "export_onnx": "from_onnx",
    "export_weights": "from_weights",
    "read_labels": "foreign_config",
}
__all__ = ["ExportConfig", "ForeignConfig", "export", "export_onnx", "export_weights", "read_labels"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
