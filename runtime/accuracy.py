"""Accuracy with the interval that the number of images can carry."""

from __future__ import annotations

import math
from typing import Final

from .proofs import Accuracy, Interval

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


def share(count: int, images: int) -> Interval:
    """A share of the images with its 95 % Wilson interval."""
    low, high = wilson_interval(count, images)
    return Interval(value=count / images, low=low, high=high)


def paired_difference(lost: int, gained: int, images: int, *, z: float = _Z_95) -> Interval:
    """How much a share fell between two answers to the same images, with a 95 % score interval.

    Args:
        lost: images that only the first answer got right.
        gained: images that only the second got right.
        images: all of them, at least 1.
        z: quantile of the normal distribution; the default gives 95 %.

    Returns:
        `(lost - gained) / images`, from -1 to 1, positive where the second is worse. Without any
        difference in `images` images the upper end is still `z**2 / (images + z**2)`.

    Source: T. Tango, "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", Statistics in Medicine 17 (1998), 891-908.
    """
    value = (lost - gained) / images

    def end(inside: float, outside: float) -> float:
        for _ in range(_HALVINGS):
            middle = (inside + outside) / 2
            if abs(_tango_score(middle, lost, gained, images)) < z:
                inside = middle
            else:
                outside = middle
        return (inside + outside) / 2

    return Interval(value=value, low=end(value, -1.0), high=end(value, 1.0))


_HALVINGS: Final = 60  # of an interval of length 2: the ends are exact to a float


def _tango_score(difference: float, lost: int, gained: int, images: int) -> float:
    """How many standard deviations the counts are from what `difference` makes likely."""
    surprise = lost - gained - images * difference
    linear = (2 * images - lost + gained) * difference - lost - gained
    root = math.sqrt(max(linear**2 + 8 * images * gained * difference * (1 - difference), 0.0))
    gained_share = (root - linear) / (4 * images)
    variance = images * (2 * gained_share + difference * (1 - difference))
    if variance <= 0.0:
        return 0.0 if surprise == 0.0 else math.copysign(math.inf, surprise)
    return surprise / math.sqrt(variance)
