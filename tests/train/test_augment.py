"""Random changes keep what they must."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from shipnet.runtime import PreprocessSpec
from shipnet.train.augment import BatchAugment, augment_photo


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_crop_is_a_window_of_the_padded_image() -> None:
    images = torch.randint(1, 256, (6, 28, 28, 1), dtype=torch.uint8)
    augment = BatchAugment(images, flip=False)
    assert (augment.pad_y, augment.pad_x) == (3, 3)
    indices = torch.arange(6).repeat(50)
    crops = augment(indices, generator())
    assert (crops.shape, crops.dtype) == ((300, 28, 28, 1), torch.uint8)
    padded = np.pad(images.numpy(), ((0, 0), (3, 3), (3, 3), (0, 0)))
    seen = set()
    for index, crop in zip(indices.tolist(), crops.numpy(), strict=True):
        places = [
            (y, x)
            for y in range(7)
            for x in range(7)
            if np.array_equal(padded[index, y : y + 28, x : x + 28], crop)
        ]
        assert len(places) == 1
        seen.update(places)
    assert len(seen) == 49


@pytest.mark.parametrize(("side", "padding"), [(8, 1), (28, 3), (32, 3), (63, 7)])
def test_padding_is_in_proportion(side: int, padding: int) -> None:
    assert BatchAugment(torch.zeros(1, side, side, 3, dtype=torch.uint8), flip=True).pad_x == padding


def test_half_of_the_images_are_mirrored() -> None:
    image = torch.arange(8, dtype=torch.uint8).expand(8, 8).reshape(1, 8, 8, 1) + 1
    batch = BatchAugment(image, flip=True)(torch.zeros(1000, dtype=torch.int64), generator())
    mirrored = (batch[:, 4, 3, 0] > batch[:, 4, 4, 0]).float().mean().item()
    assert 0.4 < mirrored < 0.6


def test_the_generator_decides() -> None:
    augment = BatchAugment(torch.randint(0, 256, (4, 28, 28, 1), dtype=torch.uint8), flip=True)
    indices = torch.arange(4).repeat(10)
    assert torch.equal(augment(indices, generator(1)), augment(indices, generator(1)))
    assert not torch.equal(augment(indices, generator(1)), augment(indices, generator(2)))


SPEC = PreprocessSpec(height=64, width=64, channels=3, resize="shorter_side_crop", resize_size=73)


def gradient() -> Image.Image:
    """Red grows to the right, green grows downwards, over 200x120 pixels."""
    y, x = np.mgrid[0:120, 0:200]
    return Image.fromarray(np.stack([x, 2 * y, np.zeros_like(x)], axis=-1).astype(np.uint8))


def test_a_photograph_is_cropped_out_of_itself() -> None:
    areas, mirrored = [], 0
    for seed in range(200):
        crop = augment_photo(gradient(), SPEC, flip=True, seed=seed).astype(int)
        assert crop.shape == (64, 64, 3)
        left, right, top, bottom = crop[32, 0, 0], crop[32, -1, 0], crop[0, 32, 1], crop[-1, 32, 1]
        mirrored += left > right
        assert bottom > top
        areas.append(abs(right - left) * (bottom - top) / (200 * 240))
    assert 70 < mirrored < 130
    assert min(areas) < 0.45 < max(areas) < 1.0
    assert min(areas) > 0.3


def test_the_seed_decides_and_the_callers_random_state_stays() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = augment_photo(gradient(), SPEC, flip=True, seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert np.array_equal(first, augment_photo(gradient(), SPEC, flip=True, seed=1))
    assert not np.array_equal(first, augment_photo(gradient(), SPEC, flip=True, seed=2))


def test_grey_stays_grey() -> None:
    spec = PreprocessSpec(height=64, width=64, channels=1, resize="shorter_side_crop", resize_size=73)
    assert augment_photo(gradient(), spec, flip=False, seed=0).shape == (64, 64, 1)
