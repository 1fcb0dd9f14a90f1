"""Labelled folders made of real digits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shipnet.train import DataConfig, load_data

MakeFolder = Callable[..., Path]


@pytest.fixture(scope="session")
def digit_images() -> tuple[np.ndarray, np.ndarray]:
    """1,797 real digits, uint8 (N, 8, 8, 1), and their labels, in scikit-learn's order."""
    data = load_data(DataConfig())
    names = np.array([*data.train.names, *data.valid.names])
    images = np.concatenate([data.train.sources, data.valid.sources])
    labels = np.concatenate([data.train.labels, data.valid.labels])
    order = np.argsort(names)
    return images[order], labels[order]


@pytest.fixture
def make_folder(tmp_path: Path, digit_images: tuple[np.ndarray, np.ndarray]) -> MakeFolder:
    """Writes digits as files: `make_folder({"zero": 3, "one": 2}, size=(48, 32))`, each file another image."""
    images, labels = digit_images
    used = dict.fromkeys(range(10), 0)

    def make(
        classes: dict[str, int], *, at: str = "data", size: tuple[int, int] = (8, 8), mode: str = "L"
    ) -> Path:
        for digit, (name, count) in enumerate(sorted(classes.items())):
            folder = tmp_path / at / name
            folder.mkdir(parents=True, exist_ok=True)
            chosen = np.flatnonzero(labels == digit)[used[digit] : used[digit] + count]
            used[digit] += count
            for number in chosen:
                image = Image.fromarray(images[number, :, :, 0]).convert(mode).resize(size)
                image.save(folder / f"{number:04d}.png")
        return tmp_path / at.split("/", maxsplit=1)[0]

    return make
