"""Pixels come from the one implementation of pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shipnet.runtime import ImageError, PreprocessSpec, preprocess
from shipnet.train import DataConfig, Dataset, load_data, pixels


def one_by_one(data: Dataset, spec: PreprocessSpec, indices: Any) -> np.ndarray:
    return np.stack([preprocess(data.valid[index], spec) for index in indices])


@pytest.mark.parametrize(
    "spec",
    [
        PreprocessSpec(height=8, width=8, channels=1),
        PreprocessSpec(height=8, width=8, channels=1, resize="shorter_side_crop", resize_size=8),
        PreprocessSpec(height=8, width=8, channels=1, resize="shorter_side_crop", resize_size=9),
        PreprocessSpec(height=8, width=8, channels=3),
        PreprocessSpec(height=20, width=12, channels=1),
    ],
)
def test_arrays_become_what_preprocess_makes_of_them(spec: PreprocessSpec) -> None:
    data = load_data(DataConfig())
    indices = np.array([5, 3, 200, 3])
    found = pixels(data.valid, spec, indices)
    assert found.dtype == np.uint8
    assert np.array_equal(found, one_by_one(data, spec, indices))
    assert len(pixels(data.valid, spec)) == len(data.valid)


def test_pixels_are_the_callers_own() -> None:
    data = load_data(DataConfig())
    pixels(data.valid, data.spec)[:] = 0
    assert data.valid.sources.any()


def test_files_become_what_preprocess_makes_of_them(make_folder: Any) -> None:
    data = load_data(
        DataConfig(data=str(make_folder({"cat": 8, "dog": 8}, size=(90, 70), mode="RGB")), image_size=64)
    )
    indices = np.arange(len(data.valid))[::-1]
    assert np.array_equal(pixels(data.valid, data.spec, indices), one_by_one(data, data.spec, indices))


def test_a_truncated_file_is_named(make_folder: Any) -> None:
    root: Path = make_folder({"cat": 4, "dog": 4}, size=(40, 40))
    image = sorted((root / "cat").iterdir())[0]
    image.write_bytes(image.read_bytes()[:-60])
    data = load_data(DataConfig(data=str(root)))
    with pytest.raises(ImageError, match=image.name):
        pixels(data.train, data.spec), pixels(data.valid, data.spec)


def test_a_subset_keeps_names_labels_and_sources_together() -> None:
    valid = load_data(DataConfig()).valid
    part = valid.subset(np.array([7, 2]))
    assert part.names == (valid.names[7], valid.names[2])
    assert list(part.labels) == [valid.labels[7], valid.labels[2]]
    assert np.array_equal(part[1], valid[2])
