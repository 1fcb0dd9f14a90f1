"""Each rule on curves whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from shipnet.runtime import TrainingError
from shipnet.train.lr_curve import Curve, longest_descent, smooth, steepest, suggest, tenth_of_minimum, valley

RATES = np.geomspace(1e-6, 1.0, 61)  # ten a decade


def curve(losses: np.ndarray, rates: np.ndarray = RATES) -> Curve:
    return Curve(rates, losses, losses, diverged=False)


def test_steepest_finds_the_middle_of_a_logistic_descent() -> None:
    losses = 2.0 - 1.0 / (1.0 + np.exp(-3.0 * np.log(RATES / 1e-3)))
    assert steepest(RATES, losses) == pytest.approx(1e-3)


def test_steepest_looks_only_before_the_minimum() -> None:
    """A loss that explodes and falls back falls fast, at a rate that nobody wants."""
    losses = np.abs(np.log10(RATES) + 2.0)  # least at 1e-2
    losses[-10:] = 50.0
    losses[-1] = 3.0
    assert steepest(RATES, losses) <= 1e-2


def test_the_tenth_of_the_minimum() -> None:
    assert tenth_of_minimum(RATES, (np.log10(RATES) + 2.0) ** 2) == pytest.approx(1e-3)


def test_the_valley_is_the_middle_of_the_longest_descent() -> None:
    losses = np.full(61, 3.0)
    losses[20:41] = np.linspace(2.9, 1.0, 21)  # from 1e-4 to 1e-2; the plateau before is its first step
    losses[41:] = np.linspace(1.1, 9.0, 20)
    assert valley(RATES, losses) == pytest.approx(1e-3, rel=0.3)


def test_one_noisy_step_does_not_cut_the_valley() -> None:
    losses = np.full(61, 3.0)
    losses[20:41] = np.linspace(2.9, 1.0, 21)
    losses[41:] = 9.0
    calm = valley(RATES, losses)
    losses[30] = 5.0
    assert valley(RATES, losses) == pytest.approx(calm, rel=0.3)


def test_longest_descent() -> None:
    assert longest_descent(np.array([5.0, 9.0, 4.0, 4.0, 6.0, 3.0])) == [0, 2, 5]
    assert longest_descent(np.array([1.0, 2.0, 3.0])) == [0]


def test_the_average_starts_at_the_first_loss_and_is_right_for_a_constant() -> None:
    assert smooth(np.full(50, 2.5)) == pytest.approx(np.full(50, 2.5))
    losses = np.array([4.0, 2.0])
    assert smooth(losses, 0.5) == pytest.approx([4.0, (0.25 * 4.0 + 0.5 * 2.0) / 0.75])


def test_the_first_tenth_is_left_out() -> None:
    losses = (np.log10(RATES) + 2.0) ** 2 + 1.0
    expected = suggest(curve(losses))
    losses[0], losses[1:6] = 99.0, -5.0  # a cliff at the very start, to the least loss of all
    assert suggest(curve(losses)) == expected


def test_a_curve_that_says_nothing_is_refused() -> None:
    with pytest.raises(TrainingError, match="the loss never fell between learning rates 4e-06 and 1:"):
        suggest(curve(np.linspace(1.0, 9.0, 61)))
    with pytest.raises(TrainingError, match="the sweep has 8 steps before the loss diverges"):
        suggest(curve(np.linspace(9.0, 1.0, 8), RATES[:8]))
