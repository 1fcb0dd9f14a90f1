"""Engines behind one small contract: open, run, describe, close."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray


class BackendInfo(Struct, frozen=True, kw_only=True):
    """What a backend found that it runs on, read back from the library.

    Attributes:
        provider: the execution provider that holds the nodes.
        nodes: how many of the graph's nodes each provider holds; empty where the library cannot tell.
    """

    provider: str
    nodes: dict[str, int]


class Backend(Protocol):
    """A network that is ready to run. Safe to call from several threads."""

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Uint8 (N, H, W, C), N >= 1, to float32 logits (N, num_classes)."""
        ...

    def describe(self) -> BackendInfo:
        """What the network runs on."""
        ...

    def close(self) -> None:
        """Releases the device's memory. A closed backend cannot run."""
        ...
