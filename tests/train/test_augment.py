"""Random changes keep what they must."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from shipnet.runtime import PreprocessSpec
from shipnet.train.augment import BatchAugment, augment_photo, random_affine
from shipnet.train.recipe import Recipe


def recipe(*, flip: bool = False, **changes: float) -> Recipe:
    return Recipe(epochs=1, max_lr=0.1, batch_size=8, **{"flip": flip, "crop_padding": 3 / 28, **changes})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_crop_is_a_window_of_the_padded_image() -> None:
    images = torch.randint(1, 256, (6, 28, 28, 1), dtype=torch.uint8)
    augment = BatchAugment(images, recipe())
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
    assert BatchAugment(torch.zeros(1, side, side, 3, dtype=torch.uint8), recipe()).pad_x == padding


def test_half_of_the_images_are_mirrored() -> None:
    image = torch.arange(8, dtype=torch.uint8).expand(8, 8).reshape(1, 8, 8, 1) + 1
    batch = BatchAugment(image, recipe(flip=True))(torch.zeros(1000, dtype=torch.int64), generator())
    mirrored = (batch[:, 4, 3, 0] > batch[:, 4, 4, 0]).float().mean().item()
    assert 0.4 < mirrored < 0.6


def test_the_generator_decides() -> None:
    images = torch.randint(0, 256, (4, 28, 28, 1), dtype=torch.uint8)
    augment = BatchAugment(images, recipe(flip=True, affine_degrees=10, affine_scale=0.1))
    indices = torch.arange(4).repeat(10)
    assert torch.equal(augment(indices, generator(1)), augment(indices, generator(1)))
    assert not torch.equal(augment(indices, generator(1)), augment(indices, generator(2)))


def test_without_padding_and_chance_images_stay() -> None:
    images = torch.randint(0, 256, (4, 9, 9, 3), dtype=torch.uint8)
    augment = BatchAugment(images, recipe(crop_padding=0.0))
    assert torch.equal(augment(torch.arange(4), generator()), images)


def bar(height: int = 33, width: int = 33) -> torch.Tensor:
    """A white horizontal bar through the middle of a black image."""
    image = torch.zeros(1, height, width, 1, dtype=torch.uint8)
    image[:, height // 2 - 1 : height // 2 + 2, width // 4 : -(width // 4)] = 255
    return image


def angle_and_length(image: torch.Tensor) -> tuple[float, float]:
    """Of a bar, from the second moments of its pixels: degrees, and the length's standard deviation."""
    y, x = np.nonzero(image[:, :, 0].numpy() > 127)
    values, vectors = np.linalg.eigh(np.cov(np.stack([x, y])))
    (along_x, along_y), spread = vectors[:, 1], values[1] ** 0.5
    return float(np.degrees(np.arctan(along_y / along_x))), float(spread)


@pytest.mark.parametrize(("height", "width"), [(33, 33), (41, 61)])
def test_images_are_turned_each_by_its_own_angle(height: int, width: int) -> None:
    image = bar(height, width)
    turned = random_affine(image.expand(100, -1, -1, -1), generator(), degrees=30, scale=0)
    assert (turned.shape, turned.dtype) == ((100, height, width, 1), torch.uint8)
    angles, lengths = zip(*(angle_and_length(one) for one in turned), strict=True)
    assert -32 < min(angles) < -25
    assert 25 < max(angles) < 32
    assert max(lengths) / min(lengths) < 1.15


def test_images_are_scaled_each_by_its_own_factor() -> None:
    image = bar()
    scaled = random_affine(image.expand(100, -1, -1, -1), generator(), degrees=0, scale=0.3)
    _, before = angle_and_length(image[0])
    angles, lengths = zip(*(angle_and_length(one) for one in scaled), strict=True)
    assert max(map(abs, angles)) < 1
    assert 0.65 < min(lengths) / before < 0.8
    assert 1.2 < max(lengths) / before < 1.35


def test_an_affine_of_nothing_changes_nothing() -> None:
    images = torch.randint(0, 256, (5, 12, 20, 3), dtype=torch.uint8)
    assert torch.equal(random_affine(images, generator(), degrees=0, scale=0), images)


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


def test_trivial_augment_changes_most_photographs_by_the_seed() -> None:
    def augmented(seed: int, *, trivial: bool) -> np.ndarray:
        return augment_photo(gradient(), SPEC, flip=False, trivial=trivial, seed=seed)

    changed = [not np.array_equal(augmented(n, trivial=True), augmented(n, trivial=False)) for n in range(40)]
    assert sum(changed) > 25  # one operation of 14 is none, and some are drawn weak
    assert np.array_equal(augmented(3, trivial=True), augmented(3, trivial=True))
    grey = PreprocessSpec(height=64, width=64, channels=1, resize="shorter_side_crop", resize_size=73)
    for seed in range(40):
        assert augment_photo(gradient(), grey, flip=False, trivial=True, seed=seed).shape == (64, 64, 1)
