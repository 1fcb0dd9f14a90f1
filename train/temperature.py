"""One number that makes a network's scores believable."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from shipnet.runtime.classifier import softmax

LOWEST: Final = 0.1
HIGHEST: Final = 10.0
# Twice a gain of log-likelihood below this is chance: the 95 % quantile of chi-squared with one degree of freedom.
SIGNIFICANT: Final = 3.841
_HALVINGS: Final = 30  # of the logarithm of the range: the last interval is 4e-9 wide


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The temperature under which the labels are most likely: softmax(logits / temperature).

    The mean negative log-likelihood is convex in 1/temperature, so its derivative changes sign once
    at most, and halving the range finds that place. No order and no label changes.

    Args:
        logits: float32 (N, K).
        labels: int64 (N,).

    Returns:
        A number from `LOWEST` to `HIGHEST`, to six digits. 1.0 where the images do not tell it from 1:
        where N is 0, where every label is right or every one is wrong (then the likelihood has no
        maximum), and where what it gains is within chance.

    Source: C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2; for the
    likelihood-ratio test S. Wilks, Annals of Mathematical Statistics 9 (1938), 60-62.
    """
    correct = logits.argmax(axis=1) == labels if len(labels) else np.ones(0, bool)
    if correct.all() or not correct.any():
        return 1.0
    low, high = np.log(LOWEST), np.log(HIGHEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _too_sharp(logits, labels, float(np.exp(middle))):
            low = middle
        else:
            high = middle
    found = float(f"{np.exp((low + high) / 2):.6g}")
    gain = nll(logits, labels).sum() - nll(logits, labels, found).sum()
    return found if 2 * gain > SIGNIFICANT else 1.0


def nll(
    logits: NDArray[np.float32], labels: NDArray[np.int64], temperature: float = 1.0
) -> NDArray[np.float64]:
    """The negative log-likelihood of each label, float64 (N,), in nats."""
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    losses: NDArray[np.float64] = np.log(np.exp(scaled).sum(axis=1))
    losses -= scaled[np.arange(len(labels)), labels]
    return losses


def _too_sharp(logits: NDArray[np.float32], labels: NDArray[np.int64], temperature: float) -> bool:
    """Whether a higher temperature is more likely: the mean logit expected is above the labels' own."""
    expected = (softmax(logits, temperature) * logits).sum(axis=1)
    return bool(expected.mean() > logits[np.arange(len(labels)), labels].mean(dtype=np.float64))
