"""Classifies images with a bundle, without PyTorch."""

from .bundle import Bundle
from .classifier import Classifier, Failure, Prediction
from .errors import (
    BundleError,
    DataError,
    DeviceError,
    ImageError,
    MissingExtraError,
    OutputError,
    ParityError,
    ShipnetError,
    SignatureError,
    TrainingError,
    UsageError,
)
from .manifest import Manifest
from .pack import pack, sign
from .plan import ExecutionPlan
from .preprocess import PreprocessSpec, preprocess

__all__ = [
    "Bundle",
    "BundleError",
    "Classifier",
    "DataError",
    "DeviceError",
    "ExecutionPlan",
    "Failure",
    "ImageError",
    "Manifest",
    "MissingExtraError",
    "OutputError",
    "ParityError",
    "Prediction",
    "PreprocessSpec",
    "ShipnetError",
    "SignatureError",
    "TrainingError",
    "UsageError",
    "pack",
    "preprocess",
    "sign",
]
