"""Divisions are stratified, seeded, disjoint and complete."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shipnet.runtime import DataError
from shipnet.train import split_halves
from shipnet.train.splits import split_train_valid

labels_of = st.lists(st.integers(0, 4), min_size=0, max_size=80).map(
    lambda values: np.array(values, np.int64)
)


@given(labels_of, st.integers(0, 2**32 - 1))
def test_halves_are_disjoint_complete_and_balanced(labels: np.ndarray, seed: int) -> None:
    selection, evidence = split_halves(labels, seed)
    assert sorted([*selection, *evidence]) == list(range(len(labels)))
    assert 0 <= len(evidence) - len(selection) <= 1
    for label in set(labels):
        assert abs((labels[selection] == label).sum() - (labels[evidence] == label).sum()) <= 1


@given(labels_of, st.integers(0, 2**32 - 1), st.floats(0.01, 0.99))
def test_every_class_stands_on_both_sides(labels: np.ndarray, seed: int, fraction: float) -> None:
    labels = np.concatenate([labels, np.repeat(np.arange(5), 2)])
    train, valid = split_train_valid(labels, "abcde", fraction=fraction, seed=seed)
    assert sorted([*train, *valid]) == list(range(len(labels)))
    for label in range(5):
        have, validates = (labels == label).sum(), (labels[valid] == label).sum()
        assert 1 <= validates <= have - 1
        assert abs(validates - have * fraction) <= 1


def test_the_seed_decides() -> None:
    labels = np.repeat(np.arange(3), 50)
    first, second = split_halves(labels, 1)[0], split_halves(labels, 2)[0]
    assert np.array_equal(first, split_halves(labels, 1)[0])
    assert not np.array_equal(first, second)


def test_a_class_with_one_image_cannot_be_divided() -> None:
    labels = np.array([0, 0, 0, 1])
    with pytest.raises(DataError, match=r"class 'rare' has 1 image\(s\), so it cannot be divided"):
        split_train_valid(labels, ["common", "rare"], fraction=0.2, seed=0)
