"""Mean and standard deviation per channel of the training images."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from shipnet.runtime.manifest import Normalization
from shipnet.runtime.preprocess import preprocess

from .images import READING_THREADS, Dataset, pixels
from .photos import Photos

# Of photographs a seeded sample is decoded: at 1,000 images the mean's standard error is below 0.01.
SAMPLE = 1_000
_SMALLEST_STD = 1e-3  # a constant channel would divide by zero


def measure(dataset: Dataset, seed: int, *, photos: Photos | None = None) -> Normalization:
    """Statistics of the training images as `preprocess` gives them, in units of [0, 1].

    All images where they are in memory, else a sample of up to `SAMPLE` that `seed` chooses, of which
    `photos` holds the pixels.

    Raises:
        ImageError: a file that is no image.
    """
    if dataset.in_memory:
        return of_pixels(pixels(dataset.train, dataset.spec))
    source, count = photos or Photos(dataset), len(dataset.train)
    indices = np.sort(np.random.default_rng(seed).choice(count, min(SAMPLE, count), replace=False))
    with ThreadPoolExecutor(READING_THREADS) as pool:
        chosen = pool.map(lambda index: preprocess(source.train(int(index)), dataset.spec), indices)
        return of_pixels(np.stack(list(chosen)))


def of_pixels(images: NDArray[np.uint8]) -> Normalization:
    """Statistics over every pixel of uint8 (N, H, W, C), exact: from the counts of the 256 values."""
    values = np.arange(256) / 255
    mean, std = [], []
    for channel in range(images.shape[-1]):
        share = np.bincount(images[..., channel].ravel(), minlength=256) / images[..., channel].size
        center = float(share @ values)
        mean.append(round(center, 6))
        std.append(round(max(float(share @ (values - center) ** 2) ** 0.5, _SMALLEST_STD), 6))
    return Normalization(mean=tuple(mean), std=tuple(std))
