"""Labels in another order, another preprocessing, other weights: what labelled images say against them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shipnet.export.label_order import suspicion

LABELS = ("ant", "bee", "cat", "dog")
TRUTHS = np.repeat(np.arange(4), 10)


def noisy(given: np.ndarray, share: float, seed: int = 0) -> np.ndarray:  # type: ignore[type-arg]
    """Some outputs exchanged by random ones."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, 4, len(given))
    return np.where(rng.random(len(given)) < share, drawn, given)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5])
def test_nothing_speaks_against_a_network_that_is_mostly_right(share: float) -> None:
    assert suspicion(noisy(TRUTHS, share), TRUTHS, LABELS) is None


def test_every_label_in_another_place_is_named() -> None:
    found = suspicion((TRUTHS + 1) % 4, TRUTHS, LABELS)
    assert found is not None
    assert found.startswith(
        "the labels seem to be in another order than the network's outputs: on 40 images accuracy"
    )
    assert "in another order 100.0%" in found
    for output, label, truth in ((1, "ant", "dog"), (2, "bee", "ant"), (3, "cat", "bee"), (4, "dog", "cat")):
        assert f"output {output}, called {label!r}, is mostly {truth!r}" in found


def test_two_labels_that_are_exchanged_are_named_alone() -> None:
    swapped = np.array([0, 2, 1, 3])[noisy(TRUTHS, 0.1)]
    found = suspicion(swapped, TRUTHS, LABELS)
    assert found is not None
    assert "output 2, called 'bee', is mostly 'cat'; output 3, called 'cat', is mostly 'bee': write" in found
    assert "'ant'" not in found


def test_of_many_labels_five_are_named() -> None:
    truths = np.repeat(np.arange(12), 6)
    found = suspicion((truths + 1) % 12, truths, tuple(map(str, range(12))))
    assert found is not None
    assert found.count("is mostly") == 5
    assert "; output 5, called '4', is mostly '3', and 7 more: write the labels" in found


def test_one_label_for_every_image_is_named() -> None:
    found = suspicion(np.full(40, 2), TRUTHS, LABELS)
    assert found is not None
    assert found.startswith(
        "the network gives every one of 40 images the label 'cat': are preprocessing (--mean"
    )


def test_one_class_of_images_may_get_one_label() -> None:
    assert suspicion(np.full(10, 2), np.full(10, 2), LABELS) is None


@pytest.mark.parametrize("seed", range(20))
def test_a_network_that_guesses_is_told_from_one_with_other_labels(seed: int) -> None:
    """An order that was chosen on the images that measure it would find a structure in noise."""
    found = suspicion(np.random.default_rng(seed).integers(0, 4, 40), TRUTHS, LABELS)
    assert found is None or "another order than the network's" not in found


def test_guessing_is_named_with_its_numbers() -> None:
    given = np.tile(np.arange(4), 10)
    found = suspicion(given, TRUTHS, LABELS)
    assert found is not None
    assert (
        "on 40 images accuracy is 25.0% (14.2% to 40.2%), which cannot be told from guessing among 4 labels"
        in found
    )


def test_a_class_that_has_no_images_asks_nothing() -> None:
    truths = np.repeat([0, 3], 10)
    assert suspicion(truths, truths, LABELS) is None
    found = suspicion(3 - truths, truths, LABELS)
    assert found is not None
    assert "output 1, called 'ant', is mostly 'dog'; output 4, called 'dog', is mostly 'ant'" in found


@given(st.permutations(range(4)), st.integers(0, 99))
def test_an_order_is_doubted_exactly_where_it_is_another(order: list[int], seed: int) -> None:
    truths = np.random.default_rng(seed).permutation(TRUTHS)
    found = suspicion(np.array(order)[truths], truths, LABELS)
    assert (found is None) == (order == [0, 1, 2, 3])
