import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shipnet.runtime.accuracy import accuracy, paired_difference, share, wilson_interval


@pytest.mark.parametrize(
    ("correct", "images", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_published_values(correct: int, images: int, low: float, high: float) -> None:
    assert wilson_interval(correct, images) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10**7).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_share(pair: tuple[int, int]) -> None:
    found = accuracy(*pair)
    assert 0.0 <= found.low <= found.accuracy <= found.high <= 1.0


def test_all_right_is_no_certainty() -> None:
    assert accuracy(10, 10).low == pytest.approx(0.7225, abs=5e-4)
    assert accuracy(10, 10).high == 1.0


@pytest.mark.parametrize(
    ("lost", "gained", "images", "z", "low", "high"),
    [
        # Tango, Statistics in Medicine 17 (1998), section 6: sleeping difficulties, and lens disinfection at 90 %.
        (9, 3, 32, 1.959964, -0.027, 0.390),
        (0, 1, 44, 1.644854, -0.096, None),
        # Fagerland et al., Statistics in Medicine 33 (2014): airway reactivity.
        (1, 7, 21, 1.959964, -0.517, -0.026),
    ],
)
def test_published_paired_intervals(
    lost: int, gained: int, images: int, z: float, low: float, high: float | None
) -> None:
    found = paired_difference(lost, gained, images, z=z)
    assert found.low == pytest.approx(low, abs=1e-3)
    assert high is None or found.high == pytest.approx(high, abs=1e-3)


@pytest.mark.parametrize(("lost", "gained", "images"), [(9, 3, 32), (2, 0, 180), (0, 5, 60), (40, 20, 160)])
def test_the_ends_are_where_the_score_test_turns(lost: int, gained: int, images: int) -> None:
    """The score is taken from the likelihood itself, maximised by search under the hypothesis."""

    def score(difference: float) -> float:
        low, high = max(0.0, -difference), (1.0 - difference) / 2
        tried = np.linspace(low, high, 200_001)[1:-1]  # the share that only gains
        same = images - lost - gained
        likelihood = (
            lost * np.log(tried + difference)
            + gained * np.log(tried)
            + same * np.log1p(-2 * tried - difference)
        )
        gain = float(tried[likelihood.argmax()])
        return (lost - gained - images * difference) / math.sqrt(
            images * (2 * gain + difference * (1 - difference))
        )

    found = paired_difference(lost, gained, images)
    assert score(found.low) == pytest.approx(1.959964, abs=1e-3)
    assert score(found.high) == pytest.approx(-1.959964, abs=1e-3)


def test_without_a_difference_the_interval_is_the_closed_form() -> None:
    found = paired_difference(0, 0, 5000)
    z2 = 1.959963984540054**2
    assert found.value == 0.0
    assert (found.low, found.high) == pytest.approx((-z2 / (5000 + z2), z2 / (5000 + z2)))


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 2000))
def test_a_paired_difference_lies_in_its_interval_and_turns_with_the_order(
    lost: int, gained: int, same: int
) -> None:
    images = lost + gained + same + 1
    found, turned = paired_difference(lost, gained, images), paired_difference(gained, lost, images)
    assert -1.0 <= found.low <= found.value <= found.high <= 1.0
    assert (found.low, found.high) == pytest.approx((-turned.high, -turned.low), abs=1e-12)
    wide = paired_difference(lost, gained, images, z=3.0)
    assert wide.low <= found.low and found.high <= wide.high


@pytest.mark.parametrize("images", [100, 313, 1000, 5000])
@pytest.mark.parametrize("rate", [0.0005, 0.002, 0.005, 0.01, 0.02, 0.05])
def test_the_upper_end_of_a_rare_share_covers_it(images: int, rate: float) -> None:
    """Counted exactly, the end that a budget of flips is held against lies below the truth in 2.5 % of draws or less.

    Wilson's interval errs to the safe side there; the whole interval's 95 % would not tell.
    """
    missed = 0.0
    chance = (1 - rate) ** images
    for count in range(images + 1):
        if share(count, images).high >= rate:
            break
        missed += chance
        chance *= (images - count) / (count + 1) * rate / (1 - rate)
    assert missed <= 0.026


@pytest.mark.parametrize("images", [180, 1000])
@pytest.mark.parametrize(("lose", "gain"), [(0.01, 0.0), (0.01, 0.005), (0.02, 0.01), (0.05, 0.04)])
def test_the_upper_end_of_a_rare_fall_covers_it(images: int, lose: float, gain: float) -> None:
    """Over all counts of images lost and gained, each with its exact probability."""
    same = 1 - lose - gain
    missed = 0.0
    for lost in range(images + 1):
        for gained in range(60):
            if lost + gained > images or (gained and not gain):
                break
            logarithm = (
                math.lgamma(images + 1)
                - math.lgamma(lost + 1)
                - math.lgamma(gained + 1)
                - math.lgamma(images - lost - gained + 1)
                + lost * math.log(lose)
                + (gained * math.log(gain) if gained else 0.0)
                + (images - lost - gained) * math.log(same)
            )
            if logarithm > -18 and paired_difference(lost, gained, images).high < lose - gain:
                missed += math.exp(logarithm)
    assert missed <= 0.03
