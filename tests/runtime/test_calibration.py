"""Expected calibration error against sums made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from shipnet.runtime.calibration import calibration


def test_the_error_is_the_one_counted_by_hand() -> None:
    scores = np.array([0.95, 0.85, 0.55, 0.45, 0.05])
    correct = np.array([True, False, True, False, False])
    found = calibration(scores, correct, bins=2)
    # (0.5, 1]: mean score 2.35/3, accuracy 2/3; [0, 0.5]: mean score 0.25, accuracy 0.
    expected = 3 / 5 * abs(2.35 / 3 - 2 / 3) + 2 / 5 * 0.25
    assert found.ece == pytest.approx(expected)
    low, high = found.bins
    assert (low.low, low.high, low.images, low.accuracy) == (0.0, 0.5, 2, 0.0)
    assert (high.low, high.high, high.images) == (0.5, 1.0, 3)
    assert high.score == pytest.approx(2.35 / 3)
    assert high.accuracy == pytest.approx(2 / 3)


def test_edges_belong_to_the_bin_below_and_zero_to_the_first() -> None:
    found = calibration(np.array([0.0, 0.5, 1.0]), np.array([False, True, True]), bins=2)
    assert [part.images for part in found.bins] == [2, 1]


def test_scores_that_tell_the_truth_have_little_error_and_boasts_have_much() -> None:
    rng = np.random.default_rng(0)
    scores = rng.uniform(0.2, 1.0, 50_000)
    correct = rng.random(50_000) < scores
    assert calibration(scores, correct).ece < 0.01
    assert calibration(np.sqrt(scores), correct).ece == pytest.approx(
        (np.sqrt(scores) - scores).mean(), abs=0.01
    )


def test_empty_bins_say_nothing() -> None:
    found = calibration(np.ones(4), np.array([True, True, True, False]))
    assert found.ece == 0.25
    assert len(found.bins) == 15
    assert all(part.score is None and part.accuracy is None for part in found.bins[:-1])
    assert found.bins[-1].accuracy == 0.75
