"""What can go wrong, one type per way to be wrong. A message says where, what was found and what to do."""

from __future__ import annotations

import importlib
from types import ModuleType


class ShipnetError(Exception):
    """The base of every error that a user of shipnet can cause and mend."""


class UsageError(ShipnetError):
    """An option or argument that cannot be meant: an unknown name, a value out of range."""


class OutputError(ShipnetError):
    """A place that cannot be written: no permission, a full disk, something else in the way."""


class DataError(ShipnetError):
    """A data set that cannot be trained on or evaluated: empty, one class, an unknown class."""


class ImageError(ShipnetError):
    """A file or array that is no image, or one whose pixels have no stated meaning."""


class BundleError(ShipnetError):
    """A bundle that the format does not allow. The message lists everything wrong at once."""


class SignatureError(BundleError):
    """A bundle that is not signed by the key that was given."""


class DeviceError(ShipnetError):
    """A device or provider that was asked for and cannot run here."""


class ParityError(ShipnetError):
    """An exported network that does not decide as the trained one.

    Attributes:
        report: the evidence, as the export measured it; None where nothing could be measured.
    """

    def __init__(self, message: str, report: object = None) -> None:
        super().__init__(message)
        self.report = report


class TrainingError(ShipnetError):
    """A training run that cannot go on: a loss that is not a number, a device out of memory."""


class MissingExtraError(ShipnetError):
    """A library that is not installed, with the command that installs it."""


# Which extra brings a module. The keys are import names.
_EXTRAS = {
    "onnxruntime": "cpu",
    "torch": "train",
    "torchvision": "train",
    "onnx": "train",
    "onnxscript": "train",
    "safetensors": "train",
    "sklearn": "train",
    "matplotlib": "train",
    "model_signing": "sign",
    "cryptography": "sign",
    "OpenSSL": "sign",
}


def require(module: str) -> ModuleType:
    """Imports a library that one of shipnet's extras brings.

    Args:
        module: the import name, such as ``"torch"`` or ``"sklearn.datasets"``.

    Raises:
        MissingExtraError: it is not installed; the message holds the ``pip install`` line.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != top:
            raise
        extra = _EXTRAS[top]
        alternative = " (on an NVIDIA GPU: 'shipnet[gpu]')" if extra == "cpu" else ""
        raise MissingExtraError(
            f"{top} is not installed: run  pip install 'shipnet[{extra}]'{alternative}"
        ) from error
