"""How far scores can be believed: of the images given a score of 0.9, are nine in ten right?"""

from __future__ import annotations

from typing import Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

BINS: Final = 15


class ScoreBin(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The images whose score lies in (low, high]; the first bin also holds a score of 0.

    Attributes:
        images: how many there are.
        score: their mean score; None where there are none.
        accuracy: the share of them that is right; None where there are none.
    """

    low: float
    high: float
    images: int
    score: float | None
    accuracy: float | None


class Calibration(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Scores held against outcomes.

    Attributes:
        images: how many outcomes there were.
        ece: expected calibration error: the mean distance, over images, between the score and the
            accuracy of their bin; 0 is perfect, 1 the worst.
        bins: of equal width, from 0 to 1.
    """

    images: int
    ece: float
    bins: tuple[ScoreBin, ...]


def calibration(scores: NDArray[np.float64], correct: NDArray[np.bool_], *, bins: int = BINS) -> Calibration:
    """Holds the scores of the chosen labels against whether these were right.

    Args:
        scores: float64 (N,), in [0, 1], of each image's top-1 label; N is at least 1.
        correct: bool (N,).
        bins: how many parts of equal width [0, 1] is cut into.

    Source: the error is that of M. Naeini et al., "Obtaining Well Calibrated Probabilities Using
    Bayesian Binning", AAAI 2015; for networks, with 15 bins, C. Guo et al., "On Calibration of Modern
    Neural Networks", ICML 2017, section 2.
    """
    place = np.clip(np.ceil(scores * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    score_sum = np.bincount(place, weights=scores, minlength=bins)
    right = np.bincount(place, weights=correct.astype(np.float64), minlength=bins)
    return Calibration(
        images=len(scores),
        ece=float(np.abs(score_sum - right).sum() / len(scores)),
        bins=tuple(
            ScoreBin(
                low=index / bins,
                high=(index + 1) / bins,
                images=int(images),
                score=float(score_sum[index] / images) if images else None,
                accuracy=float(right[index] / images) if images else None,
            )
            for index, images in enumerate(count)
        ),
    )
