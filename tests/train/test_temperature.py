"""Temperatures that were planted are found again."""

from __future__ import annotations

import numpy as np
import pytest

from shipnet.train.temperature import HIGHEST, LOWEST, fit_temperature, nll


def drawn(count: int = 20_000, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from exactly the probabilities that they claim."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0.0, 2.0, (count, classes)).astype(np.float32)
    noise = rng.gumbel(size=logits.shape)  # the argmax of logits + Gumbel noise is a draw of the softmax
    return logits, (logits + noise).argmax(axis=1)


@pytest.mark.parametrize("planted", [0.4, 3.0])
def test_a_known_scaling_is_recovered(planted: float) -> None:
    logits, labels = drawn()
    assert fit_temperature(logits * np.float32(planted), labels) == pytest.approx(planted, rel=0.03)


def test_it_is_the_minimum_of_the_likelihood() -> None:
    logits, labels = drawn(300)
    found = fit_temperature(logits * np.float32(2.5), labels)
    around = [nll(logits * np.float32(2.5), labels, found * factor).mean() for factor in (0.98, 1.0, 1.02)]
    assert around[1] == min(around)


def test_it_stays_within_its_bounds() -> None:
    logits, labels = drawn()
    assert fit_temperature(logits * np.float32(100.0), labels) == pytest.approx(HIGHEST)
    assert fit_temperature(logits * np.float32(0.001), labels) == pytest.approx(LOWEST)


def test_images_that_say_nothing_change_nothing() -> None:
    logits, labels = drawn(50)
    right = logits.argmax(axis=1)
    assert fit_temperature(logits, right) == 1.0
    assert fit_temperature(logits, (right + 1) % 5) == 1.0
    assert fit_temperature(logits[:0], labels[:0]) == 1.0


def test_what_chance_explains_changes_nothing() -> None:
    logits, labels = drawn()
    assert fit_temperature(logits, labels) == 1.0
    few, many = slice(0, 30), slice(0, 20_000)
    sharp = logits * np.float32(1.2)
    assert fit_temperature(sharp[few], labels[few]) == 1.0
    assert fit_temperature(sharp[many], labels[many]) == pytest.approx(1.2, rel=0.03)


def test_nll_of_huge_logits_is_finite() -> None:
    logits = np.array([[1e4, 0.0], [0.0, 0.0]], np.float32)
    assert nll(logits, np.array([1, 0])) == pytest.approx([1e4, np.log(2)])
