"""Tries one engine on this machine, in a process of its own, as a broken driver may end the process that calls it.

`shipnet doctor` runs `python -m shipnet.runtime.probe NAME` and reads the last line of its stdout.
"""

from __future__ import annotations

import base64
import importlib
import sys
from typing import Final

import msgspec
import numpy as np
from msgspec import Struct

from .backends.ort import OrtBackend
from .errors import ShipnetError, require

NATIVE_TENSORRT: Final = "tensorrt"
# uint8 (N) -> Cast -> Relu -> float32 (N), opset 13: what every bundle starts with, as small as it gets.
MODEL: Final = base64.b64decode(
    "CAg6bAofCgZwaXhlbHMSBGNhc3QiBENhc3QqCQoCdG8YAaABAgoUCgRjYXN0EgZsb2dpdHMiBFJlbHUSBXByb2JlWhUKBnBp"
    "eGVscxILCgkIAhIFCgMSAU5iFQoGbG9naXRzEgsKCQgBEgUKAxIBTkIECgAQDQ=="
)


class Probe(Struct, frozen=True, kw_only=True):
    """What came of trying an engine.

    Attributes:
        opens: whether it ran, and gave the right numbers.
        reason: why not; empty where it did.
        listed: the execution providers that the installed onnxruntime names, whether they open or not.
        cuda: the version that onnxruntime was built for; None where it was built without.
        version: of the engine; None where it is not installed.
    """

    opens: bool
    reason: str = ""
    listed: tuple[str, ...] = ()
    cuda: str | None = None
    version: str | None = None


def probe(name: str) -> Probe:
    """Runs a tiny network on an engine.

    Args:
        name: an execution provider of onnxruntime, or "tensorrt" for the library itself, which is loaded only.
    """
    return _probe_tensorrt() if name == NATIVE_TENSORRT else _probe_provider(name)


def _probe_provider(provider: str) -> Probe:
    try:
        ort = require("onnxruntime")
        listed = tuple(ort.get_available_providers())
    except ShipnetError as error:
        return Probe(opens=False, reason=str(error))
    except (
        ImportError,
        AttributeError,
        OSError,
    ) as error:  # files of two wheels in one folder, or some missing
        return Probe(opens=False, reason=f"import onnxruntime fails: {type(error).__name__}: {error}")
    cuda = (
        getattr(importlib.import_module("onnxruntime.capi.build_and_package_info"), "cuda_version", None)
        or None
    )
    pixels = np.arange(3, dtype=np.uint8)
    reason = ""
    try:
        backend = OrtBackend.open(MODEL, provider=provider)
        if not np.array_equal(backend.run(pixels), pixels.astype(np.float32)):
            reason = "gives wrong numbers"
    except ShipnetError as error:
        reason = str(error.__cause__ or error)
    return Probe(opens=not reason, reason=reason, listed=listed, cuda=cuda, version=ort.__version__)


def _probe_tensorrt() -> Probe:
    try:
        library = importlib.import_module("tensorrt")
        runtime = library.Runtime(library.Logger(library.Logger.ERROR))
    except (ImportError, AttributeError, OSError, RuntimeError, TypeError) as error:
        return Probe(opens=False, reason=f"{type(error).__name__}: {error}")
    reason = "" if runtime is not None else "gives no runtime"
    return Probe(opens=not reason, reason=reason, version=library.__version__)


if __name__ == "__main__":
    sys.stdout.write("\n" + msgspec.json.encode(probe(sys.argv[1])).decode() + "\n")
