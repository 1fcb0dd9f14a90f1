"""Each rule on curves whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from shipnet.train.lr_curve import Curve, FlatCurveError, Watch, smooth, steepest, suggest, valley

RATES = np.geomspace(1e-6, 1.0, 61)  # ten a decade


def curve(losses: np.ndarray, rates: np.ndarray = RATES) -> Curve:
    return Curve(rates, losses, smooth(rates, losses), diverged=False)


def descent(noise: float, *, rates: np.ndarray, seed: int = 0) -> np.ndarray:
    """Losses that fall from 1.6 to 1.4 around 1e-3, and rise from 3e-3 on, as a ResNet's on few photographs do."""
    place = np.log10(rates)
    losses = 1.6 - 0.2 / (1.0 + np.exp(-8.0 * (place + 3.0))) + np.maximum(0.0, place + 2.5)
    return losses + noise * np.random.default_rng(seed).normal(size=len(rates))


def test_steepest_finds_the_middle_of_a_logistic_descent() -> None:
    losses = 2.0 - 1.0 / (1.0 + np.exp(-3.0 * np.log(RATES / 1e-3)))
    assert steepest(RATES, losses) == pytest.approx(1e-3)


def test_every_rule_looks_only_before_the_minimum() -> None:
    """A loss that explodes and falls back falls fast, at a rate that nobody wants."""
    losses = np.abs(np.log10(RATES) + 2.0)  # least at 1e-2
    losses[-10:] = 8.0
    losses[-1] = 3.0
    found = suggest(curve(losses))
    assert max(found.steepest, found.valley) < 1e-2
    assert found.minimum == pytest.approx(1e-3, rel=0.3)


def test_the_valley_is_the_middle_of_the_bottom() -> None:
    losses = np.full(61, 3.0)
    losses[20:41] = np.linspace(3.0, 1.0, 21)  # from 1e-4 to 1e-2: four fifths at 10^-2.4
    losses[41] = 1.2
    assert valley(RATES, losses, beginning=3.0) == pytest.approx(10**-2.15, rel=0.15)  # until 10^-1.9


def test_of_a_wide_bottom_the_first_half_decade_counts() -> None:
    losses = np.where(RATES < 0.9e-4, 3.0, 1.0)
    assert valley(RATES, losses, beginning=3.0) == pytest.approx(10**-3.75, rel=0.15)


def test_one_noisy_step_does_not_move_the_valley() -> None:
    losses = descent(0.0, rates=RATES)
    calm = suggest(curve(losses)).valley
    losses[30] = 2.0
    assert suggest(curve(losses)).valley == pytest.approx(calm, rel=0.5)


@pytest.mark.parametrize("seed", range(8))
def test_noise_half_as_large_as_the_fall_leaves_the_rate_within_a_factor_of_two(seed: int) -> None:
    rates = np.geomspace(1e-6, 1.0, 200)
    calm = suggest(curve(descent(0.0, rates=rates), rates)).valley
    found = suggest(curve(descent(0.1, rates=rates, seed=seed), rates)).valley
    assert calm / 2 < found < calm * 2


def test_a_longer_flat_part_does_not_move_the_valley() -> None:
    """Counting steps, as fast.ai's rule does, puts it ten times lower for each decade or two."""
    near, far = (np.geomspace(low, 1.0, 200) for low in (1e-5, 1e-8))
    rates = [suggest(curve(descent(0.03, rates=rates), rates)).valley for rates in (near, far)]
    assert rates[0] == pytest.approx(rates[1], rel=0.4)


def test_smoothing_keeps_a_constant_and_lags_behind_nothing() -> None:
    assert smooth(RATES, np.full(61, 2.5)) == pytest.approx(np.full(61, 2.5))
    step = np.where(RATES < 0.9e-3, 2.0, 1.0)
    calm = smooth(RATES, step)
    assert calm[30 - 1] > 1.5 > calm[30 + 1]
    assert (np.diff(calm) <= 1e-12).all()


def test_an_exploding_loss_does_not_drown_those_before_it() -> None:
    losses = np.full(61, 2.0)
    losses[-1] = 1e12
    assert smooth(RATES, losses).max() <= 4.0


def test_a_curve_that_says_nothing_is_refused() -> None:
    with pytest.raises(
        FlatCurveError, match="the loss never fell between learning rates 1e-06 and 1 by more"
    ):
        suggest(curve(np.linspace(1.0, 9.0, 61)))
    with pytest.raises(FlatCurveError, match="the sweep has 8 steps before the loss diverges"):
        suggest(curve(np.linspace(9.0, 1.0, 8), RATES[:8]))


@pytest.mark.parametrize("seed", range(8))
def test_noise_alone_is_no_fall(seed: int) -> None:
    noise = 2.0 + 0.3 * np.random.default_rng(seed).normal(size=200)
    with pytest.raises(FlatCurveError, match="by more than chance"):
        suggest(curve(noise, np.geomspace(1e-6, 10.0, 200)))


@pytest.mark.parametrize(
    ("losses", "stops"),
    [
        ([2.0] * 50, None),
        ([2.0] * 20 + [1.0] * 20 + [2.2] * 20, None),  # no better than at the start is not worse
        ([2.0] * 20 + [2.0, math.nan], 21),
        ([2.0] * 20 + [4.0] * 20, 25),  # half as much again as at the start
        ([2.0] * 20 + [0.1] * 60 + [0.6] * 40, 89),  # four times the least
    ],
)
def test_when_a_sweep_has_diverged(losses: list[float], stops: int | None) -> None:
    watch = Watch()
    found = next((step for step, loss in enumerate(losses) if watch.diverged(loss)), None)
    assert found == stops
