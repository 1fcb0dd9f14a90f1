"""Networks that several tests export, and the images that they are proved on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from PIL import Image

import small_resnet
from foreign_nets import LABELS, MEAN, SIDE, STD, LinearDigits, train_linear
from shipnet.export import ForeignConfig
from shipnet.train import DataConfig, load_data

Save = Callable[[onnx.ModelProto], Path]
MakeConfig = Callable[..., ForeignConfig]


@pytest.fixture(scope="session")
def linear_digits() -> LinearDigits:
    """A network trained by numpy on the built-in digits."""
    data = load_data(DataConfig())
    return train_linear(data.train.sources, data.train.labels)


@pytest.fixture(scope="session")
def coloured_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled folder: 4 validation digits of each class, in slightly different colours, as PNG files."""
    data = load_data(DataConfig())
    root, rng = tmp_path_factory.mktemp("coloured"), np.random.default_rng(0)
    for label, name in enumerate(data.labels):
        (root / name).mkdir()
        for index in np.flatnonzero(data.valid.labels == label)[:4]:
            tint = rng.uniform(0.85, 1.0, (1, 1, 3))
            image = (data.valid.sources[index].repeat(3, axis=2) * tint).astype(np.uint8)
            Image.fromarray(image).save(root / name / f"{index}.png")
    return root


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Writes a model to a file `net.onnx`, and gives its path."""

    def write(model: onnx.ModelProto) -> Path:
        path = tmp_path / "net.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return write


@pytest.fixture
def foreign(coloured_files: Path) -> MakeConfig:
    """What must be told of the linear digits in float; fields that are given stand in for its own."""

    def make(**changes: object) -> ForeignConfig:
        own = {"labels": LABELS, "val": str(coloured_files), "resize": "fit", "mean": MEAN, "std": STD}
        return ForeignConfig(**{**own, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def drawn() -> np.ndarray:  # type: ignore[type-arg]
    """Pixels that are no digits: uint8 (9, 8, 8, 3)."""
    return np.random.default_rng(1).integers(0, 256, (9, SIDE, SIDE, 3), np.uint8)


@pytest.fixture(scope="session")
def colours() -> NDArray[np.uint8]:
    return small_resnet.colours()


@pytest.fixture(scope="session")
def resnet_onnx() -> bytes:
    return small_resnet.resnet_onnx()


@pytest.fixture(scope="module")
def resnet_graph() -> onnx.ModelProto:
    return small_resnet.resnet_graph()
