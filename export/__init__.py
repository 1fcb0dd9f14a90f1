"""Turns a training run into a proved, sealed bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .build import export
    from .config import ExportConfig

__all__ = ["ExportConfig", "export"]


def __getattr__(name: str) -> Any:
    """Loads torch only when something of it is used."""
    if name == "ExportConfig":
        from .config import ExportConfig

        return ExportConfig
    if name == "export":
        from .build import export

        return export
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
