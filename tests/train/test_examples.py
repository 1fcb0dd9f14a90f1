"""The images that are shown are those that the network gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shipnet.train import DataConfig, TrainConfig, load_data
from shipnet.train.examples import draw_examples, spread
from shipnet.train.recipe import resolve

MakeFolder = Callable[..., Path]


def test_classes_take_turns() -> None:
    labels = np.repeat([0, 1, 2], [50, 3, 1])
    chosen = spread(labels, 8, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [4, 3, 1]
    assert (np.diff(labels[chosen]) >= 0).all()
    assert len(set(chosen)) == 8
    assert len(spread(labels, 1000, seed=0)) == 54
    assert spread(labels, 8, seed=0).tolist() == chosen.tolist() != spread(labels, 8, seed=1).tolist()


@pytest.mark.parametrize("padding", [0.0, 0.2])
def test_small_images(padding: float) -> None:
    data = load_data(DataConfig())
    config = resolve(TrainConfig(crop_padding=padding, balance=True), data)
    train, valid = draw_examples(data, config, 20)
    assert sorted(train.labels) == sorted(valid.labels) == [str(digit) for digit in range(10) for _ in (0, 1)]
    known = {
        image.tobytes(): label for image, label in zip(data.valid.sources, data.valid.labels, strict=True)
    }
    assert [str(known[image.tobytes()]) for image in valid.images] == list(valid.labels)
    trained = {image.tobytes() for image in data.train.sources}
    unchanged = [image.tobytes() in trained for image in train.images]
    assert all(unchanged) if padding == 0 else not all(unchanged)


def test_photographs(make_folder: MakeFolder) -> None:
    root = make_folder({"cat": 20, "dog": 20}, size=(90, 70), mode="RGB")
    data = load_data(DataConfig(data=str(root), image_size=64))
    train, valid = draw_examples(data, resolve(TrainConfig(), data), 6)
    assert train.images.shape == (6, 64, 64, 3)
    assert train.labels == valid.labels == ("cat",) * 3 + ("dog",) * 3
    one = replace(data, valid=data.valid.subset(np.array([0])))
    assert draw_examples(one, resolve(TrainConfig(), data), 6)[1].labels == ("cat",)
