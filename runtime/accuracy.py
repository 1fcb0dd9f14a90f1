"""Accuracy with the interval that the number of images can carry."""

from __future__ import annotations

import math
from typing import Final

from .manifest import Accuracy

_Z_95: Final = 1.959963984540054  # the 97.5 % quantile of the normal distribution


def wilson_interval(correct: int, images: int, *, z: float = _Z_95) -> tuple[float, float]:
    """The Wilson score interval of a share, each end within [0, 1].

    Args:
        correct: how many of the images were right, 0 to `images`.
        images: how many there were, at least 1.
        z: quantile of the normal distribution; the default gives 95 %.

    Source: E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference",
    Journal of the American Statistical Association 22 (1927), 209-212.
    """
    share = correct / images
    weight = 1.0 + z * z / images
    centre = (share + z * z / (2 * images)) / weight
    half = z / weight * math.sqrt(share * (1.0 - share) / images + z * z / (4.0 * images * images))
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == images else min(1.0, centre + half)
    return low, high


def accuracy(correct: int, images: int) -> Accuracy:
    """Top-1 accuracy with its 95 % Wilson interval."""
    low, high = wilson_interval(correct, images)
    return Accuracy(images=images, correct=correct, accuracy=correct / images, low=low, high=high)
